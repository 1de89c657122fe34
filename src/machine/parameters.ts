/**
 * Parameters of modules that act when they are written: files of /sys/module, which everybody may read and only root may
 * write, as the proposal of 2020 has the quota of PASIDs (module vfio_pasid).
 */
import type { Pasids } from "../iommu/pasids.ts";
import { parseNumber } from "../kernel/fault-attributes.ts";
import { file, type TreeEntry } from "./tree.ts";

/** PASIDs a process may have: from the next allocation on. */
export const pasidQuota = (pasids: Pasids): TreeEntry => ({
  ...file("/sys/module/vfio_pasid/parameters/pasid_quota", String(pasids.quota)),
  store: (text) => {
    pasids.quota = Number(parseNumber(text, 0n, 2n ** 32n - 1n));
  },
});
