/**
 * The back end for hosts with `s390-nesting`: each anchor that the guest registers becomes a nested HWPT
 * (SOFTIOMMU_HWPT_DATA_S390_IOTA) above the one that maps guest memory, and goes with it; what the guest refreshes goes to
 * that HWPT. The host reads the guest's tables itself.
 */
import { LinuxError } from "../../uapi/errno.ts";
import { IOMMU_HWPT_ALLOC_NEST_PARENT } from "../../uapi/iommufd.ts";
import type { AssignedDevice, GuestRam } from "../assigned.ts";
import type { HostCalls } from "../host-calls.ts";
import type { BackEnd, FunctionState } from "./back-end.ts";

export interface NestedOptions {
  readonly calls: HostCalls;
  readonly ram: GuestRam;
  readonly devices: readonly AssignedDevice[];
  readonly stateOf: (rid: number) => FunctionState;
}

/** What a device has on the host. */
interface Attached {
  readonly kind: "identity" | "tables";
  /** Its own; undefined: the one that maps guest memory. */
  readonly hwpt: number | undefined;
}

export class ZpciNested implements BackEnd {
  /** The address space that maps guest memory. */
  readonly ioas: number;
  readonly #options: NestedOptions;
  readonly #parent: number;
  readonly #attached = new Map<AssignedDevice, Attached>();

  /** Maps all of the guest's RAM; functions get what the guest has registered. Throws EOPNOTSUPP when the host does not nest. */
  constructor(options: NestedOptions) {
    const { calls, ram, devices } = options;
    this.#options = options;
    const first = devices[0];
    if (!first) throw new RangeError("a virtual IOMMU without devices has nothing to nest");
    this.ioas = calls.allocateIoas();
    calls.map(this.ioas, { iova: 0, va: ram.va, length: ram.bytes });
    this.#parent = calls.allocateHwpt(first.id, this.ioas, IOMMU_HWPT_ALLOC_NEST_PARENT);
    for (const { rid } of devices) this.reread(rid);
  }

  /** HWPTs. */
  get held(): number {
    return [...this.#attached.values()].filter(({ hwpt }) => hwpt !== undefined).length;
  }

  /** An anchor is taken anew whenever it is registered: its tables may be others. */
  reread(rid: number): void {
    const { calls, stateOf } = this.#options;
    const device = this.#deviceOf(rid);
    if (!device) return;
    const before = this.#attached.get(device);
    const wanted = stateOf(rid);
    if (wanted.kind === "identity" && before?.kind === "identity") return;
    if (wanted.kind === "blocked") {
      if (before) calls.detach(device.fd);
      this.#attached.delete(device);
    } else {
      const hwpt =
        wanted.kind === "tables"
          ? calls.allocateAnchored(device.id, this.#parent, wanted.parameters.iota)
          : undefined;
      try {
        calls.attach(device.fd, hwpt ?? this.#parent);
      } catch (error) {
        if (hwpt !== undefined) calls.destroy(hwpt);
        throw error;
      }
      this.#attached.set(device, { kind: wanted.kind, hwpt });
    }
    if (before?.hwpt !== undefined) calls.destroy(before.hwpt);
  }

  refresh(rid: number, start: number, end: number): void {
    const device = this.#deviceOf(rid);
    const hwpt = device && this.#attached.get(device)?.hwpt;
    if (hwpt === undefined) throw new LinuxError("EINVAL", "the function has no tables to refresh");
    const { error } = this.#options.calls.refresh(hwpt, [{ start, end }]);
    if (error) throw error;
  }

  #deviceOf(rid: number): AssignedDevice | undefined {
    return this.#options.devices.find((device) => device.rid === rid);
  }
}
