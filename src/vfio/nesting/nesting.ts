/**
 * The IOMMU of a nesting container (the proposal of 2020 for virtual SVA): a view of what stands behind every container and
 * HWPT. Its mappings are those of type 1 version 2 in a domain that is a nest parent, the second stage; each guest's table
 * that is bound is a nested domain above it, which all devices of the group have for one PASID, or in whose table their
 * PASIDs are. It has one group.
 *
 * Who may do what is asked of the caller's address space, not of the container: a forked child that inherited the file can
 * neither bind nor free its parent's PASIDs.
 */
import type { Group } from "../../iommu/core.ts";
import type { HardwareInfo, IommuDriver } from "../../iommu/driver.ts";
import type { PasidSet } from "../../iommu/pasids.ts";
import type { Task } from "../../kernel/call.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { InfoChain } from "../../uapi/info-chain.ts";
import type { VfioContext } from "../context.ts";
import type { FaultRegion } from "../fault-region.ts";
import { Type1 } from "../type1.ts";
import { Binding } from "./binding.ts";
import type { Invalidation } from "./changed-range.ts";
import type { BindData, DevicesHave, NestingFormat, PasidTableData } from "./format.ts";
import { PasidTable } from "./pasid-table.ts";
import { smmuv3Format } from "./smmuv3.ts";
import { vtdFormat } from "./vtd.ts";

/** Formats of guests' tables, by the type of hardware information of their units. */
const FORMATS: ReadonlyMap<number, NestingFormat> = new Map(
  [vtdFormat, smmuv3Format].map((format) => [format.hardwareType, format]),
);

/** Type of hardware information: whatever the unit has. */
const WHATEVER_IT_IS = 0;

/** A unit whose format is known. */
interface KnownUnit {
  readonly format: NestingFormat;
  readonly info: HardwareInfo;
}

const unitOf = ({ untold }: VfioContext, driver: IommuDriver): KnownUnit | undefined => {
  if (untold.has(driver.name)) return undefined;
  const info = driver.hardwareInfo?.(undefined, WHATEVER_IT_IS);
  const format = info && FORMATS.get(info.type);
  return format && { format, info };
};

/** Why no container of the machine can nest; undefined: they can where a unit's format is known. */
export const nestingDisabled = (context: VfioContext): string | undefined => {
  for (const format of FORMATS.values()) {
    const units = [...context.core.drivers].flatMap((driver) => {
      const unit = unitOf(context, driver);
      return unit?.format === format ? [{ name: driver.name, info: unit.info }] : [];
    });
    const reason = format.unfit(units);
    if (reason) return reason;
  }
  return undefined;
};

export class Nesting {
  readonly name: string;
  /** Its mappings. */
  readonly type1: Type1;
  readonly #context: VfioContext;
  readonly #task: Task;
  /** By the host's PASID. */
  readonly #bindings = new Map<number, Binding>();
  #pasidTable: PasidTable | undefined;
  #group: Group | undefined;
  #unit: KnownUnit | undefined;

  /** `task` has asked for it. */
  constructor(context: VfioContext, name: string, task: Task) {
    this.#context = context;
    this.#task = task;
    this.name = name;
    this.type1 = new Type1(context, 2, name, { nestParent: true });
  }

  get coherent(): boolean {
    return this.type1.coherent;
  }
  get bindings(): Iterable<Binding> {
    return this.#bindings.values();
  }
  /** IOMMU_NESTING_FEAT_*, once a group is attached. */
  get features(): number {
    const { format, info } = this.#attached;
    return format.features(info, this.#devicesHave);
  }
  /** The guest's table of PASIDs, while one is bound. */
  get pasidTable(): PasidTable | undefined {
    return this.#pasidTable;
  }
  /** Bits of the PASIDs that can be bound; 0: the unit has none. */
  get pasidBits(): number {
    const bits = this.#group?.devices[0]?.driver.pasidBits ?? 0;
    return Math.min(bits, this.#context.pasids.bits);
  }
  /** What its unit takes: the format's own requests are made from it. */
  get format(): NestingFormat {
    return this.#attached.format;
  }

  /** Where its devices' faults are told. */
  get faultRegions(): readonly FaultRegion[] {
    const devices = this.#group?.devices ?? [];
    return devices.flatMap(({ name }) => this.#context.device(name)?.faults ?? []);
  }

  get #devicesHave(): DevicesHave {
    const devices = this.#group?.devices ?? [];
    return {
      pasidBits: this.pasidBits,
      devicePasidBits: Math.min(...devices.map(({ capabilities }) => capabilities.pasidBits)),
      pageRequests: devices.every(({ capabilities }) => capabilities.pageRequests),
    };
  }

  get #attached(): KnownUnit {
    if (!this.#unit) throw new LinuxError("EINVAL", "no group is attached", this.name);
    return this.#unit;
  }

  /**
   * Gives the group the second stage. Throws EINVAL for a second group and for devices made by software, ENOENT where the
   * unit's format of tables is not known, EOPNOTSUPP where nesting is off or the unit has no second stage, and what
   * attaching to a domain throws.
   */
  attach(group: Group): void {
    if (this.#group)
      throw new LinuxError(
        "EINVAL",
        `it has group ${this.#group.id}; a nesting container has one group`,
        this.name,
      );
    const { driver } = group.devices[0]!;
    if (driver.software)
      throw new LinuxError(
        "EINVAL",
        `${group.devices[0]!.name} is not IOMMU-backed: no unit would walk a guest's tables for it`,
        this.name,
      );
    const unit = unitOf(this.#context, driver);
    if (!unit)
      throw new LinuxError(
        "ENOENT",
        `the format of guests' tables of ${driver.name} is not known, so a guest could not be told`,
        this.name,
      );
    const disabled = nestingDisabled(this.#context);
    if (disabled) throw new LinuxError("EOPNOTSUPP", `the machine nests no tables: ${disabled}`, this.name);
    this.type1.attach(group);
    this.#group = group;
    this.#unit = unit;
    this.#context.pasids.join(this.#task, this);
  }

  /** Guests' tables go, then the second stage, then the PASIDs of whoever has no other container. */
  detach(group: Group): void {
    if (this.#group !== group) return;
    for (const binding of [...this.#bindings.values()]) binding.unbind();
    if (this.#pasidTable) this.unbindPasidTable();
    this.type1.detach(group);
    this.#group = undefined;
    this.#unit = undefined;
    this.#context.pasids.leave(this);
  }

  /** The PASIDs of the caller, who uses the container from now on. */
  join(task: Task): PasidSet {
    return this.#context.pasids.join(task, this);
  }

  /** The PASIDs of the caller, when it has some. */
  setOf(task: Task): PasidSet | undefined {
    return this.#context.pasids.of(task);
  }

  /** What the capability says of the caller's PASIDs. */
  quotaOf(task: Task): { readonly quota: number; readonly available: number } {
    const { pasids } = this.#context;
    const most = Math.min(pasids.quota, pasids.leftFor(task.uid));
    return { quota: pasids.quota, available: this.setOf(task)?.available ?? most };
  }

  /**
   * The set of the caller, which has the PASID. Throws EINVAL for one that the unit cannot have, ENOENT for one that nobody
   * has, EACCES for somebody else's.
   */
  ownerOf(task: Task, pasid: bigint): PasidSet {
    if (pasid >= 2n ** BigInt(this.pasidBits))
      throw new LinuxError("EINVAL", `PASID ${pasid}: the unit's have ${this.pasidBits} bits`, this.name);
    const owner = this.#context.pasids.ownerOf(Number(pasid));
    if (!owner)
      throw new LinuxError(
        "ENOENT",
        `PASID ${pasid} was not allocated; VFIO_IOMMU_PASID_REQUEST gives one`,
        this.name,
      );
    const own = this.#context.pasids.grant(task, owner);
    if (!own)
      throw new LinuxError(
        "EACCES",
        `PASID ${pasid} is ${owner === "host" ? "the host's" : "of another address space"}, not of ${task.name}`,
        this.name,
      );
    return own;
  }

  /** Throws what `ownerOf` throws, unless a table that is bound is called so. */
  requireKnown(task: Task, pasid: number): void {
    if ([...this.bindings].some((binding) => binding.isCalled(BigInt(pasid)))) return;
    this.ownerOf(task, BigInt(pasid));
  }

  /** The PASID that has a table and that the guest, or else the host, calls so; undefined: none. */
  hostPasid(pasid: number): number | undefined {
    return (this.#calledByGuest(pasid) ?? this.#bindings.get(pasid))?.pasid;
  }

  #calledByGuest(pasid: number): Binding | undefined {
    return [...this.#bindings.values()].find(({ guestPasid }) => guestPasid === pasid);
  }

  bindingOf(pasid: number): Binding | undefined {
    return this.#bindings.get(pasid);
  }

  /**
   * The table of the guest is every device's of the group for the PASID, or no device's. Throws EBUSY when one is bound,
   * or the guest calls another one so already, and what allocating and attaching throw.
   */
  bind(set: PasidSet, data: BindData, guestPasid: number | undefined): void {
    const pasid = Number(data.hpasid);
    if (this.#bindings.has(pasid))
      throw new LinuxError(
        "EBUSY",
        `PASID ${pasid} has a table; it must be unbound before another is bound`,
        this.name,
      );
    const called = guestPasid === undefined ? undefined : this.#calledByGuest(guestPasid);
    if (called)
      throw new LinuxError(
        "EBUSY",
        `guest PASID ${guestPasid} is PASID ${called.pasid} already; a guest's number names one table`,
        this.name,
      );
    const group = this.#group!;
    const { format, info } = this.#attached;
    const without = group.devices.find(({ capabilities }) => capabilities.pasidBits === 0);
    if (without) throw new LinuxError("EOPNOTSUPP", "its requests carry no PASIDs", without.name);
    const { driver, function: requester } = group.devices[0]!;
    const table = format.tables!.tableOf(data, info);
    const parent = this.type1.domainOf(group)!;
    const nested = driver.allocateNested!(requester, parent, table, {
      pasid: true,
      faults: this.#devicesHave.pageRequests,
    });
    try {
      group.attach(nested, pasid);
    } catch (error) {
      nested.free();
      throw error;
    }
    const gone = (binding: Binding) => this.#bindings.delete(binding.pasid);
    const binding = new Binding(this.#context, { group, nested, set, pasid, guestPasid, gone });
    this.#bindings.set(pasid, binding);
    set.use(pasid, binding);
  }

  /** Adds the nesting capability, once a group is attached. */
  describe(chain: InfoChain): void {
    const { format, info } = this.#attached;
    format.describe(chain, info, this.#devicesHave);
  }

  /** The guest's whole table is every device's of the group, or no device's. Throws EBUSY when one is bound, and as `bind`. */
  bindPasidTable(task: Task, data: PasidTableData): void {
    const { format, info } = this.#attached;
    if (this.#pasidTable)
      throw new LinuxError(
        "EBUSY",
        "a PASID table is bound; it must be unbound before another is bound",
        this.name,
      );
    const group = this.#group!;
    const parent = this.type1.domainOf(group)!;
    const entry = format.pasidTables!.entryOf(data, info, this.#devicesHave);
    this.#pasidTable = new PasidTable(this.#context, { group, parent, entry, task });
  }

  unbindPasidTable(): void {
    this.#pasidTable?.unbind();
    this.#pasidTable = undefined;
  }

  /** The guest changed its table, or tables below it. Throws EINVAL for what names nothing, and what the unit answers. */
  invalidatePasidTable(table: PasidTable, data: Invalidation): void {
    const { format, info } = this.#attached;
    table.invalidate(format.pasidTables!.commandsOf(data, info, this.#devicesHave, table.streams));
  }
}
