/**
 * How a guest's AMD-Vi unit is nested on a host's (`viommu/nested-commands`), by the extension `amd-nesting`: a nested HWPT for
 * what the guest's device table entry says (IOMMU_HWPT_DATA_AMD_GUEST), and its commands as they are. The guest's GCR3
 * tables, and with them its PASIDs, are read by the host's units themselves; the host puts its own ids in the place of the
 * guest's.
 */
import { Command, InvalidateIotlb, Opcode } from "../../hardware/amdvi/queue-spec.ts";
import { Dte } from "../../hardware/amdvi/spec.ts";
import type { NestingModel } from "../nested-commands.ts";

/** No number of the interface names AMD's vIOMMUs: a host takes any but 0. */
const VIOMMU_TYPE = 1;

export const amdNesting: NestingModel = {
  viommu: VIOMMU_TYPE,
  allocate: (calls, { id }, viommu, entry, faults) => calls.allocateGuestEntry(id, viommu, entry, faults),
  send: (calls, viommu, commands) => calls.commandAmd(viommu, commands),
  deviceOf: (command) =>
    Number(Command.fields.OPCODE.of(command)) === Opcode.INVALIDATE_IOTLB_PAGES
      ? Number(InvalidateIotlb.fields.DEVICE.of(command))
      : undefined,
  translates: (entry) => Dte.fields.GV.of(entry) === 1n,
};
