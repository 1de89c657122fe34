import { unitSuite } from "../unit.suite.ts";
import { AmdViRig } from "./rig.suite.ts";

unitSuite("AMD-Vi host tables", () => new AmdViRig());
unitSuite("AMD-Vi host tables of 6 levels", () => new AmdViRig({ mode: 6 }));
unitSuite("AMD-Vi guest tables", () => new AmdViRig({ stages: "guest" }));
unitSuite("AMD-Vi nested", () => new AmdViRig({ stages: "nested" }));
unitSuite("AMD-Vi nested without caches", () => new AmdViRig({ stages: "nested", cache: "none" }));
unitSuite("AMD-Vi with four IOTLB entries", () => new AmdViRig({ iotlbEntries: 4 }));
