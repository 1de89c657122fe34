/**
 * What the device models that are told what to request have in common: how software says what a request carries, and
 * which capabilities a function needs for it (PCIe §6.20 PASID, chapter 10 ATS and page requests).
 */
import { Access, NO_PASID } from "../../hardware/unit.ts";
import { bit, bits, layout } from "../../uapi/layout.ts";
import { ats, pasid, pri } from "../capabilities.ts";
import type { Capability } from "../config.ts";

/** A dword of a register or descriptor: the PASID of the requests. */
export const RequestPasid = layout("PASID of requests", 4, {
  Value: bits(0, 19, "PASID of the requests"),
  Execute: bit(29, "reads are for execution"),
  Privileged: bit(30, "requests are privileged"),
  Valid: bit(31, "requests carry it"),
});

/** What requests carry, as a port takes it. */
export interface RequestTag {
  readonly pasid: number;
  /** `Access` bits beside reading, and beside writing. */
  readonly readExtra: number;
  readonly writeExtra: number;
}

export const tagOf = (word: number): RequestTag => {
  const { Valid, Value, Execute, Privileged } = RequestPasid.fields;
  const words = [word];
  const privileged = Privileged.get(words) ? Access.privileged : 0;
  return {
    pasid: Valid.get(words) ? Value.get(words) : NO_PASID,
    readExtra: privileged | (Execute.get(words) ? Access.execute : 0),
    writeExtra: privileged,
  };
};

/** What a function's requests can be. A function without ATS asks for no pages either. */
export interface RequestAbilities {
  /** Bits of PASIDs, 0 for none; default 20. */
  readonly pasidBits?: number;
  /** Requests for execution, privileged requests; both by default. */
  readonly execute?: boolean;
  readonly privileged?: boolean;
  /** Keeps translations; default true. */
  readonly deviceTlb?: boolean;
  /** Pages it can ask for at a time, 0 for none; default 32. */
  readonly pageRequests?: number;
}

export const requestCapabilities = (abilities: RequestAbilities): Capability[] => {
  const {
    pasidBits = 20,
    execute = true,
    privileged = true,
    deviceTlb = true,
    pageRequests = 32,
  } = abilities;
  return [
    ...(pasidBits > 0 ? [pasid(pasidBits, { execute, privileged })] : []),
    ...(deviceTlb ? [ats()] : []),
    ...(deviceTlb && pageRequests > 0 ? [pri(pageRequests)] : []),
  ];
};
