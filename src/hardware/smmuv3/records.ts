/** Event records and page requests as an SMMUv3 writes them (IHI 0070, §7.3 and §8.1): from what happened to words. */
import type { PageRequest } from "../ats.ts";
import { Access, NO_PASID, type Transaction } from "../unit.ts";
import type { Stream } from "./config.ts";
import { type Fault, isTranslationFault } from "./faults.ts";
import { EVENT_BYTES, EventCode, EventRecord, PageRequestRecord, PRI_BYTES } from "./queue-spec.ts";
import { isInstruction, isPrivileged, isRead } from "./rights.ts";

const WORD = 0x1_0000_0000;
/** Index of the first word of the input address, and of the fetched one. */
const ADDRESS = EventRecord.fields.ADDRESS.word;
const FETCH = EventRecord.fields.FETCH.word;

const e = EventRecord.fields;
const p = PageRequestRecord.fields;

/** §7.3.7, §7.3.8 Events that say nothing of the SubstreamID. */
const WITHOUT_SUBSTREAM: ReadonlySet<number> = new Set([
  EventCode.F_STREAM_DISABLED,
  EventCode.F_TRANSL_FORBIDDEN,
]);

/** The record of a fault. `tag`: of the stall, or -1. */
export const buildEvent = (
  transaction: Transaction,
  fault: Fault,
  stream: Stream | undefined,
  tag: number,
): Uint32Array => {
  const words = new Uint32Array(EVENT_BYTES / 4);
  const { rid, pasid, access, lo, hi } = transaction;
  const { code } = fault;
  e.TYPE.set(words, code);
  e.SID.set(words, rid >>> 0);
  if (pasid !== NO_PASID && !WITHOUT_SUBSTREAM.has(code)) {
    e.SSV.set(words, code === EventCode.C_BAD_SUBSTREAMID ? 0 : 1);
    e.SSID.set(words, pasid & 0xf_ffff);
  }
  const translation = isTranslationFault(code);
  if (code === EventCode.F_BAD_ATS_TREQ) {
    words[ADDRESS] = lo;
    words[ADDRESS + 1] = hi;
  }
  if (translation || code === EventCode.F_WALK_EABT || code === EventCode.F_TRANSL_FORBIDDEN) {
    words[ADDRESS] = lo;
    words[ADDRESS + 1] = hi;
    const read = fault.ownRead || isRead(access);
    e.RNW.set(words, read ? 1 : 0);
    if (!fault.ownRead && stream) {
      e.PNU.set(words, isPrivileged(access, stream) ? 1 : 0);
      e.IND.set(words, isInstruction(access, stream) ? 1 : 0);
    }
  }
  if (translation || code === EventCode.F_WALK_EABT) {
    e.CLASS.set(words, fault.class);
    e.S2.set(words, fault.stage2 ? 1 : 0);
  }
  const low = fault.address % WORD;
  words[FETCH] = translation ? low & ~0xfff : low;
  words[FETCH + 1] = Math.floor(fault.address / WORD);
  if (tag >= 0) {
    e.STALL.set(words, 1);
    e.STAG.set(words, tag);
  }
  return words;
};

export const buildPageRequest = ({ rid, pasid, lo, hi, access, group, last }: PageRequest): Uint32Array => {
  const words = new Uint32Array(PRI_BYTES / 4);
  p.SID.set(words, rid >>> 0);
  if (pasid !== NO_PASID) {
    p.SSV.set(words, 1);
    p.SSID.set(words, pasid & 0xf_ffff);
  }
  p.PNU.set(words, access & Access.privileged ? 1 : 0);
  p.EXEC.set(words, access & Access.execute ? 1 : 0);
  p.READ.set(words, access & Access.read ? 1 : 0);
  p.WRITE.set(words, access & Access.write ? 1 : 0);
  p.LAST.set(words, last ? 1 : 0);
  words[2] = lo & ~0xfff;
  words[3] = hi;
  p.PRGINDEX.set(words, group & 0x1ff);
  return words;
};
