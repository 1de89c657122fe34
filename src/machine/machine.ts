/**
 * A machine put together from its description: host memory, IOMMU units with their drivers, PCI functions behind
 * them, the IOMMU core, iommufd, VFIO, and the files that programs see. Whoever serves it to programs (attach/), or calls it
 * directly, goes through `nodes`.
 */
import { readFileSync } from "node:fs";
import type { Clock } from "../base/clock.ts";
import type { EventSink } from "../base/events.ts";
import type { Scheduler } from "../base/scheduler.ts";
import { MockDriver } from "../drivers/mock/driver.ts";
import { NoIommuDriver } from "../drivers/none/driver.ts";
import { SoftwareDriver } from "../drivers/software/driver.ts";
import { Rmp } from "../hardware/rmp.ts";
import { Access, NO_PASID, Transaction } from "../hardware/unit.ts";
import { IdxdSubsystem, type QueueSource } from "../idxd/subsystem.ts";
import { AuxiliaryDriver } from "../iommu/auxiliary.ts";
import { type Device, IommuCore } from "../iommu/core.ts";
import type { IommuDriver } from "../iommu/driver.ts";
import { Pasids } from "../iommu/pasids.ts";
import { IommufdSubsystem } from "../iommufd/file.ts";
import { Allocations, allocatePages } from "../kernel/allocations.ts";
import type { DeviceNode } from "../kernel/call.ts";
import { debugFiles } from "../kernel/fault-injection.ts";
import { MSI_BASE, MsiController } from "../kernel/msi.ts";
import { SnpSubsystem } from "../kernel/snp/control-file.ts";
import { Banks } from "../memory/banks.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import type { ExplainStep } from "../pagetable/step.ts";
import { parseAddress } from "../pci/address.ts";
import { errorReporting, vendorSpecific } from "../pci/capabilities.ts";
import { AtsTestFunction } from "../pci/devices/ats-test.ts";
import { BareFunction } from "../pci/devices/bare.ts";
import { Dsa } from "../pci/devices/dsa/dsa.ts";
import { Edu } from "../pci/devices/edu.ts";
import { Ioat } from "../pci/devices/ioat.ts";
import { Nvme } from "../pci/devices/nvme/nvme.ts";
import type { NamespaceOptions } from "../pci/devices/nvme/options.ts";
import { QueueFunction } from "../pci/devices/queue-function.ts";
import type { RequestAbilities } from "../pci/devices/requests.ts";
import { TestFunction } from "../pci/devices/test-function.ts";
import { HostBridge } from "../pci/dma.ts";
import type { Endpoint, FunctionContext } from "../pci/pci-function.ts";
import { placement } from "../pci/placement.ts";
import { LinuxError } from "../uapi/errno.ts";
import { Mdevs } from "../vfio/mdev/mdevs.ts";
import { QueueParent } from "../vfio/mdev/queue-parent.ts";
import { VfioSubsystem } from "../vfio/subsystem.ts";
import { type Break, UnguardedPasids } from "./breaks.ts";
import { testCommand } from "./mock/test-command.ts";
import { pasidQuota } from "./parameters.ts";
import {
  type DeviceDescription,
  type MachineDescription,
  type NamespaceDescription,
  NO_UNIT,
  type RequestingDescription,
  type UnitDescription,
} from "./schema.ts";
import { Slots } from "./slots.ts";
import { sysfsTree } from "./sysfs.ts";
import type { TreeEntry } from "./tree.ts";
import { type PoweredUnit, powerOn } from "./units.ts";

export interface MachineContext {
  readonly events: EventSink;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  /** Faults injected on purpose. */
  readonly broken?: ReadonlySet<Break>;
  /**
   * What IOMMU units reach host memory through, in its place. One without a direct view (`HostMemory.words`) sees each word
   * that a unit reads or writes, those of walks too.
   */
  readonly unitMemory?: (memory: HostMemory) => HostMemory;
}

/** What stands between functions and memory. */
interface Front {
  readonly driver: IommuDriver;
  readonly bridge: HostBridge;
}

/** A unit with its driver, and the bridge to the functions behind it. */
interface UnitAssembly extends PoweredUnit {
  readonly bridge: HostBridge;
}

/** Where firmware puts things: RAM from 0 up to the hole, BARs in it, more RAM and 64-bit BARs above 4 GiB. */
const RAM_HOLE = 0x8000_0000;
const MMIO_32 = { start: 0xc000_0000, end: 0xfe00_0000 };
const MMIO_64 = { start: 0x20_0000_0000, end: 0x40_0000_0000 };
const ABOVE_4G = 0x1_0000_0000;

/** Of a bank of host memory. */
const BANK_BYTES = 2 ** 32;

/** Counts of what exists because of clients; all zero when every client is gone. */
export interface LiveCounts {
  readonly [what: string]: number;
}

export class Machine {
  readonly description: MachineDescription;
  readonly memory: Banks;
  /** What calls of programs allocate from, and how that is made to fail. */
  readonly allocations: Allocations;
  readonly msi: MsiController;
  readonly core: IommuCore;
  readonly pasids: Pasids;
  readonly iommufd: IommufdSubsystem;
  readonly idxd: IdxdSubsystem;
  readonly vfio: VfioSubsystem;
  readonly mdevs: Mdevs;
  /** Secure nested paging, where the machine has it (`snp-rmp`). */
  readonly snp: SnpSubsystem | undefined;
  readonly #context: MachineContext;
  /** Whose devices the test command makes. */
  readonly #mock: MockDriver | undefined;
  readonly #software: SoftwareDriver;
  readonly #units = new Map<string, UnitAssembly>();
  /** Before functions without an IOMMU. */
  #unprotected: Front | undefined;
  readonly #slots: Slots;
  readonly #barBase = placement({ mem32: MMIO_32, mem64: MMIO_64 });
  #framesAtRest: number;
  readonly #interruptsAtRest: number;

  /** Throws an Error with a sentence when a device cannot be made (a file that cannot be opened, no room for a BAR). */
  constructor(description: MachineDescription, context: MachineContext) {
    this.description = description;
    this.#context = context;
    this.memory = new Banks({ ram: ramRanges(description.memory.ram) });
    this.allocations = new Allocations(description.seed);
    this.msi = new MsiController(this.memory, context.events);
    this.core = new IommuCore(context.events);
    const unitMemory = context.unitMemory?.(this.memory) ?? this.memory;
    const secureNested = description.extensions.includes("snp-rmp");
    const rmp = secureNested ? new Rmp(this.memory.state.length * BANK_BYTES) : undefined;
    this.snp = rmp && new SnpSubsystem(rmp);
    for (const unit of description.units) {
      const powered = powerOn(unit, {
        memory: this.memory,
        unitMemory,
        msi: this.msi,
        events: context.events,
        scheduler: context.scheduler,
        interrupt: (address, data) => this.#deliver(address, data),
        seed: description.seed,
        extensions: description.extensions,
        broken: context.broken ?? new Set(),
        ...(rmp && { rmp }),
        behind: new Set(
          description.devices.filter((device) => this.#unitOf(device) === unit.name).map(({ at }) => at),
        ),
      });
      const bridge = new HostBridge({ memory: this.memory, unit: powered.unit, events: context.events });
      this.#units.set(unit.name, { ...powered, bridge });
      this.core.addDriver(powered.driver);
    }
    this.#slots = new Slots({
      core: this.core,
      memory: this.memory,
      make: (device) => this.#makeFunction(device),
      driverOf: (device) => this.#inFrontOf(device).driver,
    });
    for (const device of description.devices) this.#slots.plug(device);
    const Kind = context.broken?.has("wrong-owner") ? UnguardedPasids : Pasids;
    this.pasids = new Kind({
      bits: pasidBitsOf(this.core.drivers),
      quota: description.pasids.quota,
      userLimit: description.pasids["user-limit"],
      hostReserve: description.pasids["host-reserve"],
    });
    const { events, scheduler } = context;
    this.#mock = description.mock ? new MockDriver(this.memory) : undefined;
    this.iommufd = new IommufdSubsystem({
      memory: this.memory,
      scheduler,
      events,
      ...(this.#mock && { extra: [testCommand(this.#mock, events)] }),
    });
    const vsva2020 = description.extensions.includes("vsva2020");
    const parents = this.#parents();
    this.idxd = new IdxdSubsystem(this.#accelerators(), {
      msi: this.msi,
      events: context.events,
      pasids: this.pasids,
    });
    this.vfio = new VfioSubsystem({
      core: this.core,
      msi: this.msi,
      events: context.events,
      pasids: this.pasids,
      vsva2020,
      memory: this.memory,
      untold: new Set(description.units.filter(tellsNothing).map(({ name }) => name)),
    });
    this.#software = new SoftwareDriver(this.memory, events);
    const { core, vfio, msi, memory, pasids } = this;
    this.mdevs = new Mdevs({
      ...{ core, vfio, msi, memory, pasids, software: this.#software, parents, ...context },
      backed: vsva2020,
    });
    for (const { uuid, parent, type } of description.mdevs)
      this.mdevs.create(parents.find(({ name }) => name === parent)!, type, uuid);
    this.memory.onAllocate = allocatePages;
    this.#framesAtRest = this.memory.allocated;
    this.#interruptsAtRest = this.msi.allocated;
  }

  get functions(): readonly Endpoint[] {
    return this.#slots.functions;
  }
  get units(): ReadonlyMap<string, UnitAssembly> {
    return this.#units;
  }

  /** The device nodes of the machine. */
  nodes(): readonly DeviceNode[] {
    const { vfio, iommufd, idxd, snp } = this;
    return [...vfio.nodes, iommufd.node, ...idxd.nodes, ...(snp ? [snp.node] : [])];
  }

  /** The files programs look at. */
  tree(): TreeEntry[] {
    const own = sysfsTree({
      core: this.core,
      units: [...this.#units.values()].map(({ sysfs }) => sysfs),
      groupNodes: this.vfio.groupNodes,
      deviceNodes: this.vfio.deviceNodes,
      queueNodes: this.idxd.nodes,
      attributes: debugFiles(this.allocations),
      mdevs: this.mdevs,
      unplug: (name) => this.unplug(name),
      rescan: () => this.rescan(),
      noIommu: this.description["no-iommu"],
    });
    return this.description.extensions.includes("vsva2020") ? [...own, pasidQuota(this.pasids)] : own;
  }

  live(): LiveCounts {
    let domains = (this.#mock?.domains ?? 0) + this.#software.domains;
    let parked = 0;
    for (const { driver, bridge } of this.#units.values()) {
      domains += driver.domains;
      parked += bridge.parked;
    }
    return {
      ...this.vfio.live(),
      ...this.iommufd.live(),
      ...this.snp?.live(),
      queueFiles: this.idxd.files,
      domains,
      parked,
      pasids: this.pasids.ofUsers,
      interrupts: this.msi.allocated - this.#interruptsAtRest,
      tableFrames: this.memory.allocated - this.#framesAtRest,
      clientFrames: this.memory.clientSlots,
    };
  }

  /** One access of a device, or of a PASID of it, told step by step, without any effect. Undefined when there is no such device. */
  explain(device: string, iova: bigint, write: boolean, pasid = NO_PASID): Iterable<ExplainStep> | undefined {
    const found = this.core.devices.get(device);
    const unit = found && (this.#units.get(found.driver.name)?.unit ?? this.#software.unitOf(found.function));
    if (!found || !unit) return undefined;
    const { driver, function: requester } = found;
    const own = driver instanceof AuxiliaryDriver ? driver.defaultOf(requester) : NO_PASID;
    const transaction = new Transaction();
    transaction.rid = requester.rid;
    transaction.pasid = pasid === NO_PASID ? own : pasid;
    transaction.lo = Number(iova & 0xffff_ffffn);
    transaction.hi = Number((iova >> 32n) & 0xffff_ffffn);
    transaction.access = write ? Access.write : Access.read;
    return unit.explain(transaction);
  }

  /** Power off: functions give back their files, drivers their tables. Files of clients must have been closed. */
  close(): void {
    for (const device of this.functions) device.close();
    for (const { driver } of this.#units.values()) driver.close();
    this.msi.close();
    this.memory.close();
  }

  /** A unit's own interrupt: a write to the message's address. */
  #deliver(address: bigint, data: number): void {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, data, true);
    if (Number(address) >= MSI_BASE) this.memory.writeBytes(Number(address), bytes);
  }

  #unitOf(device: DeviceDescription): string {
    return device.unit ?? this.description.units[0]!.name;
  }

  /** What stands before a device. */
  #inFrontOf(device: DeviceDescription): Front {
    const unit = this.#unitOf(device);
    if (unit !== NO_UNIT) return this.#units.get(unit)!;
    const { memory } = this;
    this.#unprotected ??= {
      bridge: new HostBridge({ memory, events: this.#context.events }),
      driver: new NoIommuDriver(),
    };
    return this.#unprotected;
  }

  /** Accelerators whose queues are for programs: they belong to their driver too. */
  #accelerators(): QueueSource[] {
    return this.description.devices.flatMap((device) => {
      const queues = device.model === "dsa" ? device["user-queues"] : 0;
      return queues > 0 ? [{ device: this.core.devices.get(device.at)!, queues }] : [];
    });
  }

  /** Functions with work queues belong to their driver, not to VFIO. */
  #parents(): QueueParent[] {
    return [...this.core.devices.values()]
      .filter(({ function: { model } }) => model === "queues")
      .map((device: Device) => new QueueParent(device, this.msi));
  }

  #makeFunction(device: DeviceDescription): Endpoint {
    const { scheduler, clock, events } = this.#context;
    return makeFunction(device, {
      address: parseAddress(device.at)!,
      bridge: this.#inFrontOf(device).bridge,
      barBase: this.#barBase,
      scheduler,
      clock,
      events,
      mappable: device.mmap !== false,
      sparse: device.mmap === "sparse",
      rom: device.rom === undefined ? undefined : readFileSync(device.rom),
    });
  }

  /**
   * Takes a function out of its slot, as its `remove` in sysfs does. Throws ENODEV, and EBUSY while it, or another
   * function of its group, is open: its user has then been asked to close it (interrupt index REQ).
   */
  unplug(name: string): void {
    const device = this.core.devices.get(name);
    if (!device || device.function.mediated)
      throw new LinuxError("ENODEV", "there is no such function", name);
    if (!this.vfio.groupNodes.has(device.group.id))
      throw new LinuxError("EBUSY", "it belongs to a driver of the host, which keeps it", name);
    this.vfio.withdraw(device);
    this.#counted(() => this.#slots.unplug(device));
  }

  /** Functions that were taken out are found again, as by writing to `/sys/bus/pci/rescan`. Throws EBUSY. */
  rescan(): void {
    this.#counted(() => {
      for (const { group } of this.#slots.refill()) this.vfio.admit(group);
    });
  }

  /** What a function takes of memory is no client's. */
  #counted(change: () => void): void {
    const before = this.memory.allocated;
    change();
    this.#framesAtRest += this.memory.allocated - before;
  }
}

const tellsNothing = (unit: UnitDescription): boolean =>
  unit.model === "smmuv3" && unit["nesting-information"] === "empty";

/** Bits of PASIDs that all units with PASIDs take; 0: none has them. */
const pasidBitsOf = (drivers: Iterable<IommuDriver>): number => {
  const all = [...drivers].map(({ pasidBits = 0 }) => pasidBits).filter((bits) => bits > 0);
  return all.length === 0 ? 0 : Math.min(...all);
};

/** BARs one after the other; a 64-bit one takes two places. */
const placeBars = (bars: readonly { readonly kind: "mem32" | "mem64"; readonly size: number }[]) => {
  let next = 0;
  return bars.map(({ kind, size }) => {
    const index = next;
    next += kind === "mem64" ? 2 : 1;
    return { index, kind, size };
  });
};

/** What a vendor keeps for itself in a bare function. */
const VENDOR_BYTES = 13;
const BARE_CAPABILITIES = {
  vendor: () => vendorSpecific(new Uint8Array(VENDOR_BYTES)),
  errors: errorReporting,
};

const abilitiesOf = (device: RequestingDescription): RequestAbilities => ({
  pasidBits: device["pasid-bits"],
  ...("execute-requests" in device && { execute: device["execute-requests"] }),
  privileged: device["privileged-requests"],
  deviceTlb: device["device-tlb"],
  pageRequests: device["page-requests"],
});

const namespaceOf = ({ file, size, "block-size": blockSize }: NamespaceDescription): NamespaceOptions => ({
  blockSize,
  ...(file !== undefined && { file }),
  ...(size !== undefined && { size }),
});

const makeFunction = (device: DeviceDescription, context: FunctionContext): Endpoint => {
  switch (device.model) {
    case "nvme": {
      const { serial, queues } = device;
      return new Nvme(context, {
        ...namespaceOf(device),
        moreNamespaces: device["more-namespaces"].map(namespaceOf),
        queues,
        ...(serial !== undefined && { serial }),
      });
    }
    case "test":
      return new TestFunction(context, [], abilitiesOf(device));
    case "queues":
      return new QueueFunction(context, device.queues, abilitiesOf(device));
    case "dsa":
      return new Dsa(context, abilitiesOf(device));
    case "ioat":
      return new Ioat(context);
    case "edu":
      return new Edu(context);
    case "ats-test":
      return new AtsTestFunction(context);
    case "bare":
      return new BareFunction(
        context,
        placeBars(device.bars),
        device.capabilities.map((name) => BARE_CAPABILITIES[name]()),
      );
  }
};

/** RAM of so many bytes: up to the hole below 4 GiB, the rest above. */
const ramRanges = (bytes: number): { start: number; length: number }[] =>
  bytes <= RAM_HOLE
    ? [{ start: 0, length: bytes }]
    : [
        { start: 0, length: RAM_HOLE },
        { start: ABOVE_4G, length: bytes - RAM_HOLE },
      ];
