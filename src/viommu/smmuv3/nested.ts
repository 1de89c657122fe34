/**
 * The back end for Arm hosts that nest: one vIOMMU above a page table that maps the guest's memory, a vDEVICE for each
 * device by the StreamID that the guest gives it, and a nested HWPT for what the guest's stream table entry says
 * (IOMMU_HWPT_DATA_ARM_SMMUV3). The guest's context descriptors, and with them its PASIDs, are read by the host's unit
 * itself. All devices must be behind one unit of the host: its vIOMMU takes no others.
 */
import { Opcode, StreamCommand } from "../../hardware/smmuv3/queue-spec.ts";
import { Config, Ste } from "../../hardware/smmuv3/spec.ts";
import { IOMMU_HWPT_ALLOC_NEST_PARENT } from "../../uapi/iommufd.ts";
import type { AssignedDevice, GuestRam } from "../assigned.ts";
import type { HostCalls, InvalidationCount } from "../host-calls.ts";
import { NO_ENTRY, type SmmuBackEnd } from "./back-end.ts";

export interface NestedOptions {
  readonly calls: HostCalls;
  readonly ram: GuestRam;
  readonly devices: readonly AssignedDevice[];
  /** What the guest's entry of a stream asks for: of its first two words what is the guest's to say. */
  entryOf(sid: number): bigint;
  /** Fault queue for nested HWPTs; undefined: stalls are not passed on. */
  readonly faults: number | undefined;
}

/** What a device has on the host. */
interface Attached {
  readonly entry: bigint;
  readonly hwpt: number;
}

const isStage1 = (entry: bigint): boolean =>
  entry !== NO_ENTRY && Ste.fields.CONFIG.of(entry) === BigInt(Config.stage1);

export class NestedBackEnd implements SmmuBackEnd {
  readonly viommu: number;
  readonly #options: NestedOptions;
  readonly #attached = new Map<AssignedDevice, Attached>();

  /** Maps all of the guest's RAM; devices get what the guest's entries say. */
  constructor(options: NestedOptions) {
    const { calls, ram, devices } = options;
    this.#options = options;
    const first = devices[0];
    if (!first) throw new RangeError("a virtual IOMMU without devices has nothing to nest");
    const ioas = calls.allocateIoas();
    calls.map(ioas, { iova: 0, va: ram.va, length: ram.bytes });
    const parent = calls.allocateHwpt(first.id, ioas, IOMMU_HWPT_ALLOC_NEST_PARENT);
    this.viommu = calls.allocateViommu(first.id, parent);
    for (const { id, rid } of devices) calls.allocateVdevice(this.viommu, id, rid);
    this.reread(0, Number.POSITIVE_INFINITY);
  }

  get held(): number {
    return [...this.#attached.values()].filter(({ entry }) => isStage1(entry)).length;
  }

  reread(first: number, end: number): void {
    for (const device of this.#options.devices)
      if (device.rid >= first && device.rid < end) this.#follow(device);
  }

  command(commands: readonly bigint[]): InvalidationCount {
    return this.#options.calls.command(this.viommu, commands);
  }

  #follow(device: AssignedDevice): void {
    const { calls, entryOf, faults } = this.#options;
    const entry = entryOf(device.rid);
    const before = this.#attached.get(device);
    if (before?.entry === entry) {
      this.#forgetContexts(device, entry);
      return;
    }
    const hwpt = calls.allocateStream(device.id, this.viommu, entry, faults);
    try {
      calls.attach(device.fd, hwpt);
    } catch (error) {
      calls.destroy(hwpt);
      throw error;
    }
    this.#attached.set(device, { entry, hwpt });
    if (before) calls.destroy(before.hwpt);
  }

  /** §4.3.1 An entry that is as it was: its invalidation means the context descriptors too. */
  #forgetContexts({ rid }: AssignedDevice, entry: bigint): void {
    if (!isStage1(entry)) return;
    const { error } = this.command([StreamCommand.make({ OPCODE: Opcode.CFGI_CD_ALL, SID: rid })]);
    if (error) throw error;
  }
}
