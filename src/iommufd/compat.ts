/** VFIO's container requests on /dev/iommu (linux/vfio.h, on the IOAS that IOMMU_VFIO_IOAS names). */
import type { Call, Suspended } from "../kernel/call.ts";
import type { IommufdContext } from "./context.ts";
import { unknown } from "./request.ts";

export const compatCall = (
  _context: IommufdContext,
  _call: Call,
  number: number,
  _at: bigint,
): number | Suspended => {
  throw unknown(number);
};
