/**
 * vDEVICEs (linux/iommufd.h, "struct iommu_vdevice_alloc"): a bound device under the number a guest gives it on a
 * vIOMMU. It goes with the device; its number is not given out again then.
 */
import { LinuxError } from "../uapi/errno.ts";
import { IOMMU_VDEVICE_ALLOC, IommuVdeviceAlloc } from "../uapi/iommufd.ts";
import { hex } from "./address.ts";
import { type DeviceObject, deviceOf } from "./device.ts";
import { IommufdObject } from "./objects.ts";
import { request } from "./request.ts";
import { type Viommu, viommuOf } from "./viommu.ts";

export class Vdevice extends IommufdObject {
  readonly type = "vdevice";
  readonly viommu: Viommu;
  readonly device: DeviceObject;
  readonly virtualId: bigint;

  /** Throws what the driver answers. */
  constructor(viommu: Viommu, device: DeviceObject, virtualId: bigint) {
    super();
    this.viommu = viommu;
    this.device = device;
    this.virtualId = virtualId;
    viommu.virtual.addDevice?.(device.device.function, virtualId);
    viommu.devices.set(virtualId, this);
    viommu.users += 1;
    device.follower = this;
  }

  destroy(): void {
    this.device.follower = undefined;
    this.viommu.virtual.removeDevice?.(this.device.device.function, this.virtualId);
    this.viommu.devices.delete(this.virtualId);
    this.viommu.users -= 1;
  }
}

export const vdeviceAlloc = request(
  IOMMU_VDEVICE_ALLOC,
  IommuVdeviceAlloc,
  "virt_id",
  ({ context, argument, respond }) => {
    const viommu = viommuOf(context, argument.viommu_id);
    const device = deviceOf(context, argument.dev_id);
    const { virt_id: virtualId } = argument;
    if (device.device.driver !== viommu.driver)
      throw new LinuxError("EINVAL", `the device is not behind the IOMMU of ${viommu.name}`, device.name);
    if (device.follower)
      throw new LinuxError("EEXIST", `the device is ${device.follower.name} already`, device.name);
    if (viommu.devices.has(virtualId))
      throw new LinuxError("EEXIST", `another device has the number ${hex(virtualId)} there`, viommu.name);
    context.allocate("a vDEVICE");
    const vdevice = new Vdevice(viommu, device, virtualId);
    try {
      context.add(vdevice);
    } catch (error) {
      vdevice.destroy();
      throw error;
    }
    try {
      respond({ out_vdevice_id: vdevice.id });
    } catch (error) {
      context.objects.remove(vdevice);
      throw error;
    }
  },
);
