/**
 * The calls of a nesting container: GET_INFO with the nesting capability, PASID_REQUEST, NESTING_OP (uapi/vsva.ts); the
 * rest are those of type 1 version 2. What an argument says is checked first (EINVAL), then what the unit has
 * (EOPNOTSUPP), then whose PASID it is (ENOENT, EACCES), and at last what the unit's format says of a table that is bound
 * (EINVAL, EOPNOTSUPP).
 */
import type { Call } from "../../kernel/call.ts";
import { LinuxError } from "../../uapi/errno.ts";
import {
  SOFTIOMMU_NESTING_OP_BIND_PASID_TABLE,
  SOFTIOMMU_NESTING_OP_PAGE_RESPONSE,
  SOFTIOMMU_NESTING_OP_UNBIND_PASID_TABLE,
  SOFTIOMMU_VFIO_INFO_CAP_PASID_QUOTA,
  SoftiommuVfioInfoCapPasidQuota,
} from "../../uapi/extensions.ts";
import { VFIO_IOMMU_GET_INFO } from "../../uapi/vfio.ts";
import {
  IOMMU_NESTING_FEAT_SYSWIDE_PASID,
  VFIO_IOMMU_FLAG_ALLOC_PASID,
  VFIO_IOMMU_FLAG_FREE_PASID,
  VFIO_IOMMU_NESTING_OP,
  VFIO_IOMMU_NESTING_OP_BIND_PGTBL,
  VFIO_IOMMU_NESTING_OP_CACHE_INVLD,
  VFIO_IOMMU_NESTING_OP_UNBIND_PGTBL,
  VFIO_IOMMU_PASID_BITS,
  VFIO_IOMMU_PASID_REQUEST,
  VFIO_NESTING_OP_MASK,
  VfioIommuType1NestingOp,
  VfioIommuType1PasidRequest,
} from "../../uapi/vsva.ts";
import { hex, readArgument } from "../argument.ts";
import { answerInfo, type1Call } from "../type1-calls.ts";
import { bindTable, unbindTable } from "./bind-calls.ts";
import { invalidateCaches } from "./invalidate-call.ts";
import type { Nesting } from "./nesting.ts";
import { type NestingOp, requireFeature } from "./operation.ts";
import { respondToGroup } from "./respond-call.ts";
import { bindPasidTable, unbindPasidTable } from "./table-calls.ts";

/** One call on a nesting container; `undefined` when it knows no such request. */
export const nestingCall = (
  nesting: Nesting,
  call: Call,
  request: number,
  argument: bigint,
): number | undefined => {
  switch (request) {
    case VFIO_IOMMU_GET_INFO:
      return getInfo(nesting, call, argument);
    case VFIO_IOMMU_PASID_REQUEST:
      return requestPasid(nesting, call, argument);
    case VFIO_IOMMU_NESTING_OP:
      return operate(nesting, call, argument);
    default:
      return type1Call(nesting.type1, call, request, argument);
  }
};

const getInfo = (nesting: Nesting, call: Call, at: bigint): number =>
  answerInfo(nesting.type1, call, at, (chain) => {
    nesting.describe(chain);
    chain.add(
      SOFTIOMMU_VFIO_INFO_CAP_PASID_QUOTA,
      1,
      SoftiommuVfioInfoCapPasidQuota,
      nesting.quotaOf(call.task),
    );
  });

/** The PASID that was allocated, or 0. */
const requestPasid = (nesting: Nesting, call: Call, at: bigint): number => {
  const { flags, range } = readArgument(
    call,
    at,
    VfioIommuType1PasidRequest,
    VfioIommuType1PasidRequest.size,
  );
  const { min, max } = range;
  if (flags !== VFIO_IOMMU_FLAG_ALLOC_PASID && flags !== VFIO_IOMMU_FLAG_FREE_PASID)
    throw new LinuxError("EINVAL", `flags ${hex(flags)}: either ALLOC (1) or FREE (2)`, nesting.name);
  if (min > max)
    throw new LinuxError("EINVAL", `min ${min} is above max ${max}; both are in the range`, nesting.name);
  if (max >= 2 ** VFIO_IOMMU_PASID_BITS)
    throw new LinuxError("EINVAL", `max ${max}: a PASID has ${VFIO_IOMMU_PASID_BITS} bits`, nesting.name);
  requireFeature(nesting, IOMMU_NESTING_FEAT_SYSWIDE_PASID, "system-wide PASIDs");
  if (flags === VFIO_IOMMU_FLAG_ALLOC_PASID) return nesting.join(call.task).allocate(min, max);
  nesting.setOf(call.task)?.free(min, max);
  return 0;
};

const OPERATIONS: ReadonlyMap<number, NestingOp> = new Map([
  [VFIO_IOMMU_NESTING_OP_BIND_PGTBL, bindTable],
  [VFIO_IOMMU_NESTING_OP_UNBIND_PGTBL, unbindTable],
  [VFIO_IOMMU_NESTING_OP_CACHE_INVLD, invalidateCaches],
  [SOFTIOMMU_NESTING_OP_BIND_PASID_TABLE, bindPasidTable],
  [SOFTIOMMU_NESTING_OP_UNBIND_PASID_TABLE, unbindPasidTable],
  [SOFTIOMMU_NESTING_OP_PAGE_RESPONSE, respondToGroup],
]);

const operate = (nesting: Nesting, call: Call, at: bigint): number => {
  const head = VfioIommuType1NestingOp.offsets.data;
  const { argsz, flags } = readArgument(call, at, VfioIommuType1NestingOp, head);
  const operation = OPERATIONS.get(flags & VFIO_NESTING_OP_MASK);
  if (!operation || (flags & ~VFIO_NESTING_OP_MASK) !== 0)
    throw new LinuxError(
      "EINVAL",
      `flags ${hex(flags)}: the operations are ${[...OPERATIONS.keys()].join(", ")}, and no other bits are known`,
      nesting.name,
    );
  operation({ nesting, call, at: at + BigInt(head), length: argsz - head });
  return 0;
};
