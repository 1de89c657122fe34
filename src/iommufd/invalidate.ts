/** HWPT_INVALIDATE (linux/iommufd.h, "struct iommu_hwpt_invalidate"): a guest's invalidations, for its driver to read. */
import type { InvalidationOutcome, UserArray } from "../iommu/driver.ts";
import { LinuxError } from "../uapi/errno.ts";
import { IOMMU_HWPT_INVALIDATE, IommuHwptInvalidate } from "../uapi/iommufd.ts";
import { PAGE_BYTES } from "./address.ts";
import type { IommufdContext } from "./context.ts";
import { HwptNested } from "./hwpt.ts";
import { request, requireZero } from "./request.ts";
import { userArray } from "./user-data.ts";
import { Viommu } from "./viommu.ts";

const MOST_ENTRIES = 2 ** 19;

const target = (context: IommufdContext, id: number): HwptNested | Viommu => {
  const object = context.objects.find(id);
  if (object instanceof HwptNested || object instanceof Viommu) return object;
  throw new LinuxError(
    object ? "EINVAL" : "ENOENT",
    `hwpt_id ${id} names ${object ? object.type : "nothing"}; a nested HWPT or a vIOMMU is invalidated`,
  );
};

const invalidate = (context: IommufdContext, id: number, requests: UserArray): InvalidationOutcome => {
  const object = target(context, id);
  const one = object instanceof Viommu ? object.virtual : object.domain;
  if (!one.invalidate)
    throw new LinuxError("EOPNOTSUPP", "its IOMMU takes no invalidations there", object.name);
  return one.invalidate(requests);
};

export const hwptInvalidate = request(
  IOMMU_HWPT_INVALIDATE,
  IommuHwptInvalidate,
  "__reserved",
  ({ context, call, argument, respond }) => {
    const { entry_len: entryLength, entry_num: count, data_uptr: at, data_type: type } = argument;
    let done = 0;
    try {
      requireZero("__reserved", argument.__reserved);
      if (count > MOST_ENTRIES)
        throw new LinuxError("EINVAL", `entry_num ${count}: at most ${MOST_ENTRIES} at once`);
      if (count > 0 && (at === 0n || entryLength === 0 || entryLength > PAGE_BYTES))
        throw new LinuxError(
          "EINVAL",
          `entries of ${entryLength} bytes (1 to ${PAGE_BYTES}) at a pointer that is not 0`,
        );
      if (count > 0) context.allocate("a list of invalidations");
      const outcome = invalidate(
        context,
        argument.hwpt_id,
        userArray(call, { type, at, entryLength, count }),
      );
      done = outcome.done;
      if (outcome.error !== undefined) throw outcome.error;
    } finally {
      respond({ entry_num: done });
    }
  },
);
