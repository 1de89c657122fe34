/** A VMM on a stage's machine with a guest in it, and the guest's driver of the test function. What happens is recorded. */

import { isVmmBreak } from "../../guest/breaks.ts";
import { ContainerVmm } from "../../guest/container-vmm.ts";
import { Guest } from "../../guest/guest.ts";
import type { PassedDevice } from "../../guest/passed-device.ts";
import { TestDevice } from "../../guest/test-device.ts";
import type { MemoryMapping } from "../../guest/virtual-unit.ts";
import { type ShownUnit, Vmm, type VmmOptions } from "../../guest/vmm.ts";
import type { VmmProcess, VmmProcessOptions } from "../../guest/vmm-process.ts";
import { printArgument } from "../../uapi/requests.ts";
import type { Stage } from "./stage.ts";

const NAME = "vmm";
const RAM_BYTES = 4 * 2 ** 20;
const ADDRESS_WIDTH = 46;
/** 00:01.0 in the guest. */
const GUEST_RID = 0x0008;

export interface StageOptions {
  readonly shows?: ShownUnit;
  /** What of the guest's memory the VMM maps. */
  readonly maps?: MemoryMapping;
  /** Guest memory; default 4 MiB, which programs of ordinary users may lock. */
  readonly ramBytes?: number;
  /** More functions of the machine, or mediated devices. */
  readonly others?: readonly string[];
}

/** The file of the group that a device is in. */
export const groupPath = ({ machine }: Stage, device: string): string =>
  `/dev/vfio/${machine.core.devices.get(device)!.group.id}`;

export class GuestStage {
  readonly stage: Stage;
  readonly vmm: VmmProcess;
  readonly device: TestDevice;
  /** As the guest finds it on its bus. */
  readonly requester: PassedDevice;
  #guest: Guest | undefined;

  /** The VMM takes the device, and others by their groups with `bound`; the guest has not booted. */
  constructor(
    stage: Stage,
    follow: VmmOptions["follow"] | "bound",
    { shows, maps, ramBytes = RAM_BYTES, others = [] }: StageOptions = {},
  ) {
    const { machine, events, broken, calls, work } = stage;
    this.stage = stage;
    const options: VmmProcessOptions = {
      host: machine,
      name: NAME,
      ramBytes,
      events,
      addressWidth: ADDRESS_WIDTH,
      ...(maps && { maps }),
      scheduler: work,
      record: (call) => calls.push(call),
      broken: new Set([...broken].filter(isVmmBreak)),
    };
    const { path } = machine.vfio.deviceNodes.get(stage.device)!;
    this.vmm =
      follow === "bound"
        ? new ContainerVmm({
            ...options,
            devices: [stage.device, ...others].map((name, index) => ({
              group: groupPath(stage, name),
              name,
              rid: GUEST_RID * (index + 1),
            })),
          })
        : new Vmm({
            ...{ ...options, follow, devices: [{ path, rid: GUEST_RID }] },
            ...(shows && { shows }),
          });
    this.requester = this.vmm.devices[0]!;
    this.device = new TestDevice(this.requester);
  }

  /** Boots when first asked; its driver of the device is told by interrupts then. */
  get guest(): Guest {
    this.#guest ??= this.#boot();
    return this.#guest;
  }

  /** The guest finds PASIDs: of its unit, and of the device. */
  get hasPasids(): boolean {
    return this.guest.pasidBitsOf(this.requester) > 0;
  }

  /** The device reads text at an address; what it says when it could not. */
  fetch(address: number, length: number, pasid?: number): string {
    this.device.fetch(address, length, pasid);
    const result = this.#ended();
    const bytes = result === "done" ? this.device.read(length) : new Uint8Array();
    this.stage.transfers.push({ direction: "read", address, pasid, result, bytes });
    return result === "done" ? Buffer.from(bytes).toString() : result;
  }

  /** The device writes text to an address; how it ended. */
  store(address: number, text: string, pasid?: number): string {
    const bytes = Buffer.from(text);
    this.device.write(bytes);
    this.device.store(address, bytes.length, pasid);
    const result = this.#ended();
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

  #boot(): Guest {
    const guest = new Guest({
      name: "guest",
      memory: this.vmm.memory,
      iommu: this.vmm.iommu,
      devices: this.vmm.devices,
      addressWidth: ADDRESS_WIDTH,
      scheduler: this.vmm.processors,
      events: this.stage.events,
    });
    this.device.listen(guest, this.requester);
    return guest;
  }

  /** How the request ended: as the driver was told, or as it finds when nothing tells it. */
  #ended(): string {
    this.stage.settle();
    const { result } = this.device;
    return result === "busy" ? this.device.poll() : result;
  }
}
