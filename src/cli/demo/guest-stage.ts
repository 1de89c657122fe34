/** A VMM on a stage's machine with a guest in it, and the guest's driver of the test function. What happens is recorded. */

import { isVmmBreak } from "../../guest/breaks.ts";
import { Guest } from "../../guest/guest.ts";
import { TestDevice } from "../../guest/test-device.ts";
import { Vmm, type VmmOptions } from "../../guest/vmm.ts";
import { printArgument } from "../../uapi/requests.ts";
import type { Stage } from "./stage.ts";

const NAME = "vmm";
const RAM_BYTES = 16 * 2 ** 20;
const ADDRESS_WIDTH = 46;
/** 00:01.0 in the guest. */
const GUEST_RID = 0x0008;

export class GuestStage {
  readonly stage: Stage;
  readonly vmm: Vmm;
  readonly device: TestDevice;
  /** What the guest calls the device. */
  readonly requester = { rid: GUEST_RID, name: "0000:00:01.0" } as const;
  #guest: Guest | undefined;

  /** The VMM takes the device; the guest has not booted. */
  constructor(stage: Stage, capabilities: Partial<VmmOptions["capabilities"]> = {}) {
    const { machine, events, broken, calls } = stage;
    this.stage = stage;
    this.vmm = new Vmm({
      host: machine,
      name: NAME,
      ramBytes: RAM_BYTES,
      devices: [{ path: machine.vfio.deviceNodes.get(stage.device)!.path, rid: GUEST_RID }],
      events,
      capabilities: { addressWidths: [39, 48], hostAddressWidth: ADDRESS_WIDTH, ...capabilities },
      record: (call) => calls.push(call),
      broken: new Set([...broken].filter(isVmmBreak)),
    });
    this.device = new TestDevice(this.vmm.devices[0]!);
  }

  /** Boots when first asked. */
  get guest(): Guest {
    this.#guest ??= new Guest({
      name: "guest",
      memory: this.vmm.memory,
      iommu: this.vmm.iommu,
      addressWidth: ADDRESS_WIDTH,
      events: this.stage.events,
    });
    return this.#guest;
  }

  /** The device reads text at an address; what it says when it could not. */
  fetch(address: number, length: number, pasid?: number): string {
    this.device.fetch(address, length, pasid);
    this.stage.settle();
    const { result } = this.device;
    const bytes = result === "done" ? this.device.read(length) : new Uint8Array();
    this.stage.transfers.push({ direction: "read", address, pasid, result, bytes });
    return result === "done" ? Buffer.from(bytes).toString() : result;
  }

  /** The device writes text to an address; how it ended. */
  store(address: number, text: string, pasid?: number): string {
    const bytes = Buffer.from(text);
    this.device.write(bytes);
    this.device.store(address, bytes.length, pasid);
    this.stage.settle();
    const { result } = this.device;
    this.stage.transfers.push({ direction: "write", address, pasid, result, bytes });
    return result;
  }

  /** Lines that say what the VMM asked of its host since `from` of the calls. */
  asked(from: number): string[] {
    return this.stage.calls.slice(from).map(({ kind, name, request, given, data, error }) => {
      const argument = printArgument(kind, request, given);
      const blob = data ? ` data ${Buffer.from(data).toString("hex")}` : "";
      return `${name} ${argument}${blob}${error ? ` → ${error}` : ""}`;
    });
  }
}
