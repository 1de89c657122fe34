/**
 * CACHE_INVLD: a guest changed tables that are bound, and units and devices forget what they know of them. What the unit
 * keeps of a first stage and what devices keep of it go together, so that either cache asks for both. Entries of the PASID
 * cache are the host's: a guest that changes one has it unbound and bound again; here everything under it is forgotten.
 * Where the guest owns the table of PASIDs its own commands are made of it.
 */
import { LinuxError } from "../../uapi/errno.ts";
import {
  CACHE_INVALIDATION_VALID,
  IOMMU_CACHE_INV_TYPE_NR,
  IOMMU_INV_ADDR_FLAGS_ARCHID,
  IOMMU_INV_ADDR_FLAGS_LEAF,
  IOMMU_INV_ADDR_FLAGS_PASID,
  IOMMU_INV_GRANU_ADDR,
  IOMMU_INV_GRANU_DOMAIN,
  IOMMU_INV_GRANU_NR,
  IOMMU_INV_PASID_FLAGS_ARCHID,
  IOMMU_INV_PASID_FLAGS_PASID,
  IOMMU_NESTING_FEAT_CACHE_INVLD,
  IommuCacheInvalidateInfo,
} from "../../uapi/vsva.ts";
import { hex } from "../argument.ts";
import type { Binding } from "./binding.ts";
import { type Invalidation, rangeOf } from "./changed-range.ts";
import type { SingleTables } from "./format.ts";
import { type Operation, readData, requireFeature, requireForm } from "./operation.ts";
import { tableOf } from "./table-calls.ts";

const CACHE_NAMES = ["IOTLB", "DEV_IOTLB", "PASID"];
const GRANULARITY_NAMES = ["DOMAIN", "PASID", "ADDR"];

/** EINVAL unless caches are named, all known, and each can be invalidated by the granularity. */
const requireCaches = ({ cache, granularity }: Invalidation, where: string): void => {
  if (granularity >= IOMMU_INV_GRANU_NR)
    throw new LinuxError(
      "EINVAL",
      `granularity ${granularity}: 0 to ${IOMMU_INV_GRANU_NR - 1} are known`,
      where,
    );
  if (cache === 0 || cache >= 1 << IOMMU_CACHE_INV_TYPE_NR)
    throw new LinuxError(
      "EINVAL",
      `cache ${hex(cache)}: one or more of IOTLB (1), DEV_IOTLB (2), PASID (4)`,
      where,
    );
  CACHE_NAMES.forEach((name, bit) => {
    const type = 1 << bit;
    if ((cache & type) === 0 || CACHE_INVALIDATION_VALID[type]!.includes(granularity)) return;
    throw new LinuxError(
      "EINVAL",
      `the ${name} cache is not invalidated by ${GRANULARITY_NAMES[granularity]}`,
      where,
    );
  });
};

/** Both structures begin with the same flags for what they name. */
const requireFlags = (flags: number, known: number, where: string): void => {
  if (flags & ~known)
    throw new LinuxError("EINVAL", `flags ${hex(flags)}: those of ${hex(known)} are known`, where);
  if ((flags & IOMMU_INV_PASID_FLAGS_PASID) === 0)
    throw new LinuxError("EINVAL", `flags ${hex(flags)}: the PASID must be given (1)`, where);
};

/** The bindings that the host or the guest calls so, and which are the caller's. */
const bindingsOf = ({ nesting, call }: Operation, pasid: bigint): Binding[] => {
  const found = [...nesting.bindings].filter((binding) => binding.isCalled(pasid));
  const own = found.filter(({ set }) => set === nesting.setOf(call.task));
  if (own.length > 0) return own;
  if (found.length === 0) nesting.ownerOf(call.task, pasid);
  throw found.length > 0
    ? new LinuxError(
        "EACCES",
        `PASID ${pasid} is of another address space, not of ${call.task.name}`,
        nesting.name,
      )
    : new LinuxError("ENOENT", `PASID ${pasid} has no table in this container`, nesting.name);
};

export const invalidateCaches = (operation: Operation): void => {
  const { nesting } = operation;
  const data = readData(operation, IommuCacheInvalidateInfo);
  requireForm(operation, data);
  requireCaches(data, nesting.name);
  requireFeature(nesting, IOMMU_NESTING_FEAT_CACHE_INVLD, "invalidations by a guest");
  const { tables } = nesting.format;
  if (tables) invalidateTables(operation, data, tables);
  else nesting.invalidatePasidTable(tableOf(operation), data);
};

const invalidateTables = (operation: Operation, data: Invalidation, tables: SingleTables): void => {
  const { nesting } = operation;
  if (data.granularity === IOMMU_INV_GRANU_DOMAIN) {
    for (const binding of nesting.bindings) binding.invalidate(tables, undefined);
    return;
  }
  const byAddress = data.granularity === IOMMU_INV_GRANU_ADDR;
  const { flags, pasid } = byAddress ? data.granu.addr_info : data.granu.pasid_info;
  const known = byAddress
    ? IOMMU_INV_ADDR_FLAGS_PASID | IOMMU_INV_ADDR_FLAGS_ARCHID | IOMMU_INV_ADDR_FLAGS_LEAF
    : IOMMU_INV_PASID_FLAGS_PASID | IOMMU_INV_PASID_FLAGS_ARCHID;
  requireFlags(flags, known, nesting.name);
  const range = byAddress ? rangeOf(data, nesting.name) : undefined;
  for (const binding of bindingsOf(operation, pasid)) binding.invalidate(tables, range);
};
