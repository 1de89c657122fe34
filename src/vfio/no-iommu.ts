/**
 * The IOMMU type of devices without an IOMMU (linux/vfio.h, VFIO_NOIOMMU_IOMMU): no translation and no isolation, and no
 * request beyond CHECK_EXTENSION. Their groups are /dev/vfio/noiommu-N, whoever uses them has CAP_SYS_RAWIO, and a
 * container has such groups or others, never both. Only a machine that says so has devices of the kind.
 */
import type { Group } from "../iommu/core.ts";
import { Capability, type Task } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";

export const isUnprotected = (group: Group): boolean =>
  group.devices.some(({ driver }) => driver.unprotected === true);

/** Throws EPERM. */
export const requireRawio = (task: Task, object: string): void => {
  if (task.capable(Capability.sysRawio)) return;
  throw new LinuxError(
    "EPERM",
    `${task.name} has no CAP_SYS_RAWIO, which devices without an IOMMU need: they reach all memory`,
    object,
  );
};

/** Nothing is done for its groups. */
export class NoIommu {
  readonly coherent = false;
  attach(): void {}
  detach(): void {}
}
