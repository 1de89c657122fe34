/**
 * How a guest's SMMUv3 is nested on a host's (`viommu/nested-commands`): a nested HWPT for what the guest's stream table entry
 * says (IOMMU_HWPT_DATA_ARM_SMMUV3), and its commands as they are. The guest's context descriptors, and with them its
 * PASIDs, are read by the host's units themselves.
 */
import { Opcode, StreamCommand } from "../../hardware/smmuv3/queue-spec.ts";
import { Config, Ste } from "../../hardware/smmuv3/spec.ts";
import { IOMMU_VIOMMU_TYPE_ARM_SMMUV3 } from "../../uapi/vendor/smmuv3.ts";
import type { NestingModel } from "../nested-commands.ts";
import { NO_ENTRY } from "./no-entry.ts";

/** Commands that are about one stream. */
const OF_STREAM: ReadonlySet<number> = new Set([Opcode.ATC_INV, Opcode.CFGI_CD, Opcode.CFGI_CD_ALL]);

export const smmuNesting: NestingModel = {
  viommu: IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
  allocate: (calls, { id }, viommu, entry, faults) => calls.allocateStream(id, viommu, entry, faults),
  send: (calls, viommu, commands) => calls.command(viommu, commands),
  deviceOf(command) {
    const { OPCODE, SID } = StreamCommand.fields;
    return OF_STREAM.has(Number(OPCODE.of(command))) ? Number(SID.of(command)) : undefined;
  },
  translates: (entry) => entry !== NO_ENTRY && Ste.fields.CONFIG.of(entry) === BigInt(Config.stage1),
  /** §4.3.1 The invalidation of an entry that is as it was means the context descriptors too. */
  forgetContexts: (rid) => StreamCommand.make({ OPCODE: Opcode.CFGI_CD_ALL, SID: rid }),
};
