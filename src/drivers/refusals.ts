/** What drivers say, in the same words, to who asks of a domain what it cannot do. */
import type { PagingDomain } from "../iommu/driver.ts";
import { LinuxError } from "../uapi/errno.ts";

/** Throws EFAULT for addresses at or after `end`. */
export const requireEnd = (domain: string, iova: number, length: number, end: number): void => {
  if (iova + length > end)
    throw new LinuxError(
      "EFAULT",
      `iova 0x${iova.toString(16)} + 0x${length.toString(16)} is beyond 0x${end.toString(16)}, where this domain's addresses end`,
      domain,
    );
};

/** Of a domain that is to be freed. */
export const stillUsed = (domain: string, users: string): LinuxError =>
  new LinuxError("EBUSY", `${users} still have it; they must leave first`, domain);

/** Of a domain that guests' tables are to lie above. */
export const notNestParent = (domain: PagingDomain, unit: string): LinuxError =>
  new LinuxError("EINVAL", `${domain.name} is not a nest parent of ${unit}, the unit of this device`, unit);
