import { describeDriver } from "../../iommu/driver.suite.ts";
import { smmuBench } from "./rig.suite.ts";

describeDriver("SMMUv3", () => smmuBench());
describeDriver("SMMUv3, linear stream table, no ranges", () =>
  smmuBench({ capabilities: { twoLevelStreams: false, streamIdBits: 10, rangeInvalidation: false } }),
);
describeDriver("SMMUv3, stage 2 only", () => smmuBench({ capabilities: { stage1: false } }));
describeDriver("SMMUv3, 40-bit addresses, stalls", () =>
  smmuBench({ capabilities: { stage1: false, outputBits: 40, stalls: "both" } }),
);
