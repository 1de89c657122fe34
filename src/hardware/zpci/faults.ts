/** Why a request is refused: codes with their words, by the exceptions of the PoP (chapter 6) and the model's own. */
import { WalkFault } from "../../pagetable/format.ts";

export const FaultCode = {
  protection: 0x04,
  addressing: 0x05,
  segment: 0x10,
  page: 0x11,
  specification: 0x12,
  asceType: 0x38,
  regionFirst: 0x39,
  regionSecond: 0x3a,
  regionThird: 0x3b,
  noParameters: 0x100,
  outOfRange: 0x101,
  unknownRequest: 0x102,
} as const;

const words: { readonly [code: number]: string } = {
  [FaultCode.protection]: "protection exception (PoP §6): the page may not be written",
  [FaultCode.addressing]: "addressing exception (PoP §6): a table cannot be read",
  [FaultCode.segment]: "segment-translation exception (PoP §6)",
  [FaultCode.page]: "page-translation exception (PoP §6)",
  [FaultCode.specification]: "translation-specification exception (PoP §6): an entry is not valid",
  [FaultCode.asceType]: "ASCE-type exception (PoP §6): the address is beyond the designated table",
  [FaultCode.regionFirst]: "region-first-translation exception (PoP §6)",
  [FaultCode.regionSecond]: "region-second-translation exception (PoP §6)",
  [FaultCode.regionThird]: "region-third-translation exception (PoP §6)",
  [FaultCode.noParameters]: "the function has no translation parameters (FIB: spec.ts §MPCIFC)",
  [FaultCode.outOfRange]: "the address is not between PBA and PAL (FIB: spec.ts §MPCIFC)",
  [FaultCode.unknownRequest]:
    "a request with a PASID or a translated address, of which the unit has none (§MPCIFC)",
};

export const describeFault = (code: number): string => words[code]!;

/** Of the level at which an entry is not valid. */
const translation = [
  FaultCode.page,
  FaultCode.segment,
  FaultCode.regionThird,
  FaultCode.regionSecond,
  FaultCode.regionFirst,
] as const;

/** The code of a walk that ended so (`WalkFault`, not none), at the level of this index. */
export const walkCode = (fault: number, level: number): number => {
  switch (fault) {
    case WalkFault.notPresent:
      return translation[level]!;
    case WalkFault.write:
      return FaultCode.protection;
    case WalkFault.inputWidth:
      return FaultCode.asceType;
    case WalkFault.tableUnreadable:
    case WalkFault.outputWidth:
      return FaultCode.addressing;
    default:
      return FaultCode.specification;
  }
};
