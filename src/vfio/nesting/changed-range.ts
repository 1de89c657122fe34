/** Addresses of a guest's table that changed, as an invalidation by address names them. */
import { LinuxError } from "../../uapi/errno.ts";
import type { ValueOf } from "../../uapi/struct.ts";
import { IOMMU_INV_ADDR_FLAGS_LEAF, type IommuCacheInvalidateInfo } from "../../uapi/vsva.ts";
import { hex } from "../argument.ts";

const PAGE = 4096n;
const ADDRESS_SPACE = 2n ** 64n;

export type Invalidation = ValueOf<typeof IommuCacheInvalidateInfo>;

export interface ChangedRange {
  /** First address, a multiple of 4 KiB; and bytes. */
  readonly start: bigint;
  readonly length: bigint;
  /** Only leaf entries changed. */
  readonly leavesOnly: boolean;
}

/** The addresses. EINVAL when the granules are none, are not pages, or end beyond 64 bits. */
export const rangeOf = ({ granu }: Invalidation, where: string): ChangedRange => {
  const { flags, addr, granule_size: granule, nb_granules: count } = granu.addr_info;
  if (granule < PAGE || (granule & (granule - 1n)) !== 0n)
    throw new LinuxError("EINVAL", `granule_size ${hex(granule)}: a power of two from 0x1000 on`, where);
  if (addr % granule !== 0n)
    throw new LinuxError(
      "EINVAL",
      `addr ${hex(addr)} is not a multiple of the granule, ${hex(granule)}`,
      where,
    );
  if (count === 0n || addr + granule * count > ADDRESS_SPACE)
    throw new LinuxError(
      "EINVAL",
      `${count} granules of ${hex(granule)} at ${hex(addr)}: one at least, within 64 bits`,
      where,
    );
  return {
    start: addr,
    length: granule * count,
    leavesOnly: (flags & IOMMU_INV_ADDR_FLAGS_LEAF) !== 0,
  };
};
