/** PAGE_RESPONSE: the VMM answers page requests of its guest, which it found in a fault region. */
import type { PageResponse } from "../../iommu/driver.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { IOMMU_NESTING_FEAT_PAGE_RESP } from "../../uapi/extensions.ts";
import {
  IOMMU_PAGE_RESP_FAILURE,
  IOMMU_PAGE_RESP_INVALID,
  IOMMU_PAGE_RESP_PASID_VALID,
  IOMMU_PAGE_RESP_SUCCESS,
  IommuPageResponse,
} from "../../uapi/vsva.ts";
import { hex } from "../argument.ts";
import type { WaitingGroup } from "../fault-region.ts";
import { type Operation, readData, requireFeature, requireForm } from "./operation.ts";

const CODES: ReadonlyMap<number, PageResponse["code"]> = new Map([
  [IOMMU_PAGE_RESP_SUCCESS, "success"],
  [IOMMU_PAGE_RESP_INVALID, "invalid"],
  [IOMMU_PAGE_RESP_FAILURE, "failure"],
]);

/**
 * Answers the oldest group with the number and the PASID, by the guest's name or the host's. Throws ENOENT when none waits:
 * it was answered already, or denied because its table or its device went; EACCES when it is of another address space.
 */
export const respondToGroup = (operation: Operation): void => {
  const { nesting, call } = operation;
  const data = readData(operation, IommuPageResponse);
  requireForm(operation, data);
  const { flags, grpid } = data;
  const code = CODES.get(data.code);
  if (flags & ~IOMMU_PAGE_RESP_PASID_VALID)
    throw new LinuxError("EINVAL", `flags ${hex(flags)}: only PASID_VALID (1) is known`, nesting.name);
  if (!code)
    throw new LinuxError(
      "EINVAL",
      `code ${data.code}: SUCCESS (0), INVALID (1) and FAILURE (2) are known`,
      nesting.name,
    );
  requireFeature(nesting, IOMMU_NESTING_FEAT_PAGE_RESP, "page requests from all its devices");
  const pasid = flags & IOMMU_PAGE_RESP_PASID_VALID ? data.pasid : undefined;
  const asked = ({ number, pasids }: WaitingGroup): boolean =>
    number === grpid && (pasid === undefined ? pasids.length === 0 : pasids.includes(pasid));
  const found = nesting.faultRegions.flatMap((region) =>
    region.waiting.filter(asked).map((group) => ({ region, group })),
  );
  const own = found.find(({ group }) => group.under.ownedBy(call.task));
  if (own) {
    own.region.answer((group) => group === own.group, code);
    return;
  }
  const what = `group ${grpid} ${pasid === undefined ? "without PASID" : `of PASID ${pasid}`}`;
  if (found.length > 0)
    throw new LinuxError(
      "EACCES",
      `${what} is of another address space, not of ${call.task.name}`,
      nesting.name,
    );
  if (pasid !== undefined && nesting.format.tables) nesting.requireKnown(call.task, pasid);
  throw new LinuxError(
    "ENOENT",
    `no page request of ${what} waits for an answer: it was answered, or denied with its table or device`,
    nesting.name,
  );
};
