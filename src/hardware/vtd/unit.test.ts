import { unitSuite } from "../unit.suite.ts";
import { VtdRig } from "./rig.suite.ts";

unitSuite("VT-d", () => new VtdRig());
unitSuite("VT-d without caches", () => new VtdRig({ cache: "none" }));
unitSuite("VT-d with caching mode", () => new VtdRig({ capabilities: { cachingMode: true } }));
unitSuite("VT-d with four IOTLB entries", () => new VtdRig({ iotlbEntries: 4 }));
