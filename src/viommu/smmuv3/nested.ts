/**
 * The back end for Arm hosts that nest: for each unit of the host that the guest's devices are behind a vIOMMU, above a page
 * table of its own that maps the guest's memory; a vDEVICE for each device by the StreamID that the guest gives it, and a
 * nested HWPT for what the guest's stream table entry says (IOMMU_HWPT_DATA_ARM_SMMUV3). The guest's context descriptors,
 * and with them its PASIDs, are read by the host's units themselves. The guest has one unit: a command of its about a
 * stream goes to the unit that the stream is behind, one about translations to all.
 */
import { Opcode, StreamCommand } from "../../hardware/smmuv3/queue-spec.ts";
import { Config, Ste } from "../../hardware/smmuv3/spec.ts";
import { LinuxError } from "../../uapi/errno.ts";
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

/** Commands that are about one stream. */
const OF_STREAM: ReadonlySet<number> = new Set([Opcode.ATC_INV, Opcode.CFGI_CD, Opcode.CFGI_CD_ALL]);

export class NestedBackEnd implements SmmuBackEnd {
  /** One for each unit of the host. */
  readonly viommus: readonly number[];
  readonly #options: NestedOptions;
  /** vIOMMU of each device, by the guest's StreamID. */
  readonly #viommuOf = new Map<number, number>();
  readonly #attached = new Map<AssignedDevice, Attached>();

  /** Maps all of the guest's RAM; devices get what the guest's entries say. */
  constructor(options: NestedOptions) {
    const { calls, ram, devices } = options;
    this.#options = options;
    if (devices.length === 0) throw new RangeError("a virtual IOMMU without devices has nothing to nest");
    const ioas = calls.allocateIoas();
    calls.map(ioas, { iova: 0, va: ram.va, length: ram.bytes });
    const viommus: number[] = [];
    for (const device of devices) {
      let viommu = viommus.find((known) => this.#takes(known, device));
      if (viommu === undefined) {
        const parent = calls.allocateHwpt(device.id, ioas, IOMMU_HWPT_ALLOC_NEST_PARENT);
        viommu = calls.allocateViommu(device.id, parent);
        calls.allocateVdevice(viommu, device.id, device.rid);
        viommus.push(viommu);
      }
      this.#viommuOf.set(device.rid, viommu);
    }
    this.viommus = viommus;
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
    for (let done = 0; done < commands.length; ) {
      const to = this.#destination(commands[done]!);
      let end = done + 1;
      while (end < commands.length && this.#destination(commands[end]!) === to) end += 1;
      const part = this.#send(to, commands.slice(done, end));
      if (part.error) return { ...part, done: done + part.done };
      done = end;
    }
    return { done: commands.length };
  }

  /** The vIOMMU that a command is for; undefined: all, which refuse what is about a stream of nobody. */
  #destination(command: bigint): number | undefined {
    const { OPCODE, SID } = StreamCommand.fields;
    if (this.viommus.length === 1) return this.viommus[0];
    if (!OF_STREAM.has(Number(OPCODE.of(command)))) return undefined;
    return this.#viommuOf.get(Number(SID.of(command)));
  }

  #send(to: number | undefined, commands: readonly bigint[]): InvalidationCount {
    const { calls } = this.#options;
    if (to !== undefined) return calls.command(to, commands);
    for (const viommu of this.viommus) {
      const sent = calls.command(viommu, commands);
      if (sent.error) return sent;
    }
    return { done: commands.length };
  }

  /** Makes the device a vDEVICE there; false: it is behind another unit of the host. */
  #takes(viommu: number, { id, rid }: AssignedDevice): boolean {
    try {
      this.#options.calls.allocateVdevice(viommu, id, rid);
      return true;
    } catch (error) {
      if (error instanceof LinuxError && error.code === "EINVAL") return false;
      throw error;
    }
  }

  #follow(device: AssignedDevice): void {
    const { calls, entryOf, faults } = this.#options;
    const entry = entryOf(device.rid);
    const before = this.#attached.get(device);
    if (before?.entry === entry) {
      this.#forgetContexts(device, entry);
      return;
    }
    const hwpt = calls.allocateStream(device.id, this.#viommuOf.get(device.rid)!, entry, faults);
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
