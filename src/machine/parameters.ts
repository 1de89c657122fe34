/**
 * Parameters of modules that act when they are written: files of /sys/module, which everybody may read and only root may
 * write, as the proposal of 2020 has the quota of PASIDs (module vfio_pasid).
 */
import type { Pasids } from "../iommu/pasids.ts";
import { Capability, type DeviceNode } from "../kernel/call.ts";
import { type Attribute, parseNumber } from "../kernel/fault-attributes.ts";
import { AttributeFile } from "../kernel/fault-injection.ts";
import { LinuxError } from "../uapi/errno.ts";

const S_IFREG = 0o100000;
const MODE = 0o644;
const O_ACCMODE = 3;
const O_RDONLY = 0;

export const PASID_QUOTA = "/sys/module/vfio_pasid/parameters/pasid_quota";

/** PASIDs a process may have: from the next allocation on. */
const quotaOf = (pasids: Pasids): Attribute => ({
  show: () => `${pasids.quota}\n`,
  store: (text) => {
    pasids.quota = Number(parseNumber(text, 0n, 2n ** 32n - 1n));
  },
});

/** The parameters of a machine by path. */
export const moduleParameters = (pasids: Pasids): ReadonlyMap<string, DeviceNode> =>
  new Map([[PASID_QUOTA, nodeOf(PASID_QUOTA, quotaOf(pasids))]]);

const nodeOf = (path: string, attribute: Attribute): DeviceNode => ({
  path,
  major: 0,
  minor: 0,
  mode: S_IFREG | MODE,
  open: (task, flags) => {
    if ((flags & O_ACCMODE) !== O_RDONLY && !task.capable(Capability.sysAdmin))
      throw new LinuxError("EACCES", `only root may write it, and ${task.name} is not root`, path);
    return new AttributeFile(path, attribute, flags);
  },
});
