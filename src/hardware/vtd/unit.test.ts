import { unitSuite } from "../unit.suite.ts";
import { VtdRig } from "./rig.suite.ts";
import { ScalableRig } from "./scalable-rig.suite.ts";
import { Pgtt } from "./scalable-spec.ts";

unitSuite("VT-d", () => new VtdRig());
unitSuite("VT-d with caching mode", () => new VtdRig({ capabilities: { cachingMode: true } }));
unitSuite("VT-d without caches", () => new VtdRig({ cache: "none" }));
unitSuite("VT-d with four IOTLB entries", () => new VtdRig({ iotlbEntries: 4 }));
unitSuite("VT-d, first stage", () => new ScalableRig({ pgtt: Pgtt.first }));
unitSuite("VT-d, second stage in scalable mode", () => new ScalableRig({ pgtt: Pgtt.second }));
unitSuite("VT-d, nested", () => new ScalableRig({ pgtt: Pgtt.nested }));
unitSuite("VT-d, nested, without caches", () => new ScalableRig({ pgtt: Pgtt.nested, cache: "none" }));
