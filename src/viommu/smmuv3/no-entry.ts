/** What an SMMUv3 of a host is given where the guest has no entry for a stream. */
import { Config, Ste } from "../../hardware/smmuv3/spec.ts";

/**
 * What stands for an entry that is missing or not valid: one that every unit finds illegal when a device makes an access,
 * with more context descriptors than SubstreamIDs have (IHI 0070, §5.2), and no host objects to before.
 */
export const NO_ENTRY = Ste.make({ V: true, CONFIG: Config.stage1, S1CDMAX: 31 });
