/** BIND_PASID_TABLE and UNBIND_PASID_TABLE: a guest's whole table of PASIDs, where the unit's format is such. */
import { LinuxError } from "../../uapi/errno.ts";
import { SOFTIOMMU_NESTING_FEAT_BIND_PASID_TABLE, SoftiommuPasidTableSmmuv3 } from "../../uapi/extensions.ts";
import type { Nesting } from "./nesting.ts";
import { type Operation, readData, requireFeature, requireForm } from "./operation.ts";
import type { PasidTable } from "./pasid-table.ts";

const requireTables = (nesting: Nesting): void =>
  requireFeature(
    nesting,
    SOFTIOMMU_NESTING_FEAT_BIND_PASID_TABLE,
    "tables of PASIDs that belong to a guest as a whole",
  );

/** EBUSY while one is bound. */
export const bindPasidTable = (operation: Operation): void => {
  const { nesting, call } = operation;
  const data = readData(operation, SoftiommuPasidTableSmmuv3);
  requireForm(operation, data);
  requireTables(nesting);
  nesting.bindPasidTable(call.task, data);
};

/** The one of the caller. Throws ENOENT when none is bound, EACCES when it is of another address space. */
export const tableOf = ({ nesting, call }: Operation): PasidTable => {
  const table = nesting.pasidTable;
  if (!table) throw new LinuxError("ENOENT", "no PASID table is bound in this container", nesting.name);
  if (table.ownedBy(call.task)) return table;
  throw new LinuxError(
    "EACCES",
    `the PASID table was bound by another address space, not by ${call.task.name}`,
    nesting.name,
  );
};

/** It has no data. */
export const unbindPasidTable = (operation: Operation): void => {
  requireTables(operation.nesting);
  tableOf(operation);
  operation.nesting.unbindPasidTable();
};
