/** Why a host bridge refuses a transaction: the errors of PEST0, whose bit numbers are the codes here. */
import { faultCodes } from "../walk-faults.ts";

export const TceFault = {
  /** A table that is needed could not be read. */
  memory: 13,
  /** No PE, no window, or an address that is none of a window. */
  ioda: 16,
  pageFault: 18,
  accessFault: 19,
} as const;

const words = new Map<number, string>([
  [TceFault.memory, "PARITY_UE (PHB4 §5.4.1): memory did not answer"],
  [TceFault.ioda, "IODA error (PHB4 §5.4.1): the address belongs to no window of the requester"],
  [TceFault.pageFault, "TCE page fault (PHB4 §5.4.1): nothing is mapped"],
  [TceFault.accessFault, "TCE access fault (PHB4 §5.4.1): the TCE does not allow it"],
]);

export const describeFault = (code: number): string => words.get(code)!;

/** By `WalkFault`. */
export const walkCodes = faultCodes(TceFault.accessFault, {
  notPresent: TceFault.pageFault,
  inputWidth: TceFault.ioda,
  outputWidth: TceFault.memory,
  tableUnreadable: TceFault.memory,
});
