import { describeFormat } from "./format.suite.ts";
import { vtdSecondLevel } from "./vtd-second-level.ts";

describeFormat("VT-d 3 levels", () => vtdSecondLevel(3, { hostAddressWidth: 39 }));
describeFormat("VT-d 4 levels", () =>
  vtdSecondLevel(4, { hostAddressWidth: 46, snoopControl: true, forceSnoop: true }),
);
describeFormat("VT-d 5 levels, dirty tracking", () => vtdSecondLevel(5, { accessedDirty: true }));
describeFormat("VT-d 4 levels, 4 KiB pages only", () => vtdSecondLevel(4, { pageLg2s: [12] }));
