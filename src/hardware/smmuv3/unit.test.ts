import { unitSuite } from "../unit.suite.ts";
import { SmmuRig } from "./rig.suite.ts";

unitSuite("SMMUv3 stage 1", () => new SmmuRig());
unitSuite("SMMUv3 stage 2", () => new SmmuRig({ stages: "stage2" }));
unitSuite("SMMUv3 nested", () => new SmmuRig({ stages: "nested" }));
unitSuite("SMMUv3 nested without caches", () => new SmmuRig({ stages: "nested", cache: "none" }));
unitSuite("SMMUv3 stage 1 with four IOTLB entries", () => new SmmuRig({ iotlbEntries: 4 }));
