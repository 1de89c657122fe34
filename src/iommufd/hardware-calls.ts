/** The requests about hardware: page tables and what belongs to them, and virtual IOMMUs. */
import { getDirtyBitmap, setDirtyTracking } from "./dirty.ts";
import { faultQueueAlloc } from "./fault-queue.ts";
import { getHwInfo } from "./hw-info.ts";
import { hwQueueAlloc } from "./hw-queue.ts";
import { hwptAlloc } from "./hwpt-calls.ts";
import { hwptInvalidate } from "./invalidate.ts";
import { vdeviceAlloc } from "./vdevice.ts";
import { veventqAlloc } from "./veventq.ts";
import { viommuAlloc } from "./viommu.ts";

export const hwptRequests = [
  hwptAlloc,
  getHwInfo,
  setDirtyTracking,
  getDirtyBitmap,
  hwptInvalidate,
  faultQueueAlloc,
];
export const viommuRequests = [viommuAlloc, vdeviceAlloc, veventqAlloc, hwQueueAlloc];
