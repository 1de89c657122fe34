/** BIND_PGTBL and UNBIND_PGTBL: a guest's table becomes what devices have for a PASID, and ceases to be. */
import { LinuxError } from "../../uapi/errno.ts";
import { IOMMU_NESTING_FEAT_BIND_PGTBL, IOMMU_SVA_GPASID_VAL, IommuGpasidBindData } from "../../uapi/vsva.ts";
import { hex } from "../argument.ts";
import type { BindData } from "./format.ts";
import { type Operation, readData, requireFeature, requireForm } from "./operation.ts";

/** Guest PASIDs are at most PCI Express's (PCIe §6.20). */
const MOST_PASIDS = 2n ** 20n;

const readBind = (operation: Operation): BindData => {
  const { nesting } = operation;
  const data = readData(operation, IommuGpasidBindData);
  requireForm(operation, data);
  requireFeature(nesting, IOMMU_NESTING_FEAT_BIND_PGTBL, "tables of guests that are bound one by one");
  if (data.format !== nesting.format.number)
    throw new LinuxError(
      "EINVAL",
      `format ${data.format}: the unit's tables have format ${nesting.format.number}`,
      nesting.name,
    );
  if (data.flags & ~BigInt(IOMMU_SVA_GPASID_VAL))
    throw new LinuxError(
      "EINVAL",
      `flags ${hex(data.flags)}: only GPASID_VAL (${IOMMU_SVA_GPASID_VAL}) is known`,
      nesting.name,
    );
  return data;
};

export const bindTable = (operation: Operation): void => {
  const { nesting, call } = operation;
  const data = readBind(operation);
  const named = (data.flags & BigInt(IOMMU_SVA_GPASID_VAL)) !== 0n;
  if (named && data.gpasid >= MOST_PASIDS)
    throw new LinuxError("EINVAL", `gpasid ${data.gpasid}: a PASID has 20 bits`, nesting.name);
  const set = nesting.ownerOf(call.task, data.hpasid);
  nesting.bind(set, data, named ? Number(data.gpasid) : undefined);
};

/** ENOENT when the PASID has no table here. */
export const unbindTable = (operation: Operation): void => {
  const { nesting, call } = operation;
  const { hpasid } = readBind(operation);
  nesting.ownerOf(call.task, hpasid);
  const binding = nesting.bindingOf(Number(hpasid));
  if (!binding)
    throw new LinuxError("ENOENT", `PASID ${hpasid} has no table in this container`, nesting.name);
  binding.unbind();
};
