import { unitSuite } from "../unit.suite.ts";
import { TceRig } from "./rig.suite.ts";

unitSuite("TCE", () => new TceRig());
unitSuite("TCE of 5 levels without caches", () => new TceRig({ levels: 5, cache: "none" }));
unitSuite("TCE with four IOTLB entries", () => new TceRig({ iotlbEntries: 4 }));
