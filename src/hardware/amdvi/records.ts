/** Entries of the event log and the PPR log as an AMD-Vi unit writes them (48882, revision 3.07, §2.5 and §2.6). */
import type { PageRequest } from "../ats.ts";
import { Access, NO_PASID, type Transaction } from "../unit.ts";
import type { Fault } from "./faults.ts";
import { ENTRY_BYTES, EventCode, EventEntry, PAGE_SERVICE_REQUEST, PprEntry } from "./queue-spec.ts";

const WORD = 0x1_0000_0000;
const WORDS = ENTRY_BYTES / 4;
/** Index of the first word of the address. */
const ADDRESS = EventEntry.fields.ADDRESS.word;
const e = EventEntry.fields;
const p = PprEntry.fields;

/** The entry of a request that was refused; `asks`: a translation request. */
export const buildEvent = (
  { rid, pasid, access, lo, hi }: Transaction,
  fault: Fault,
  domain: number,
  asks: boolean,
): Uint32Array => {
  const words = new Uint32Array(WORDS);
  const bit = (field: { readonly set: typeof e.GN.set }, on: boolean) => field.set(words, on ? 1 : 0);
  const { code, guest, address } = fault;
  e.CODE.set(words, code);
  e.DEVICE.set(words, rid & 0xffff);
  bit(e.TR, asks);
  if (guest && pasid !== NO_PASID) {
    bit(e.GN, true);
    e.ID.set(words, pasid & 0xffff);
    e.PASID_19.set(words, (pasid >>> 16) & 0xf);
  } else if (code === EventCode.IO_PAGE_FAULT || code === EventCode.PAGE_TAB_HARDWARE_ERROR)
    e.ID.set(words, domain);
  bit(e.RW, (access & (Access.write | Access.atomic)) !== 0);
  if (guest) {
    bit(e.NX, (access & Access.execute) !== 0);
    bit(e.US, (access & Access.privileged) === 0);
  }
  bit(e.PR, fault.present);
  bit(e.PE, fault.permission);
  bit(e.RZ, fault.reserved);
  if (code === EventCode.INVALID_DEVICE_REQUEST) e.TYPE.set(words, fault.type);
  words[ADDRESS] = address < 0 ? lo : address % WORD;
  words[ADDRESS + 1] = address < 0 ? hi : Math.floor(address / WORD);
  return words;
};

/** The entry about a command. */
export const buildCommandEvent = (code: number, address: number, rid: number): Uint32Array => {
  const words = new Uint32Array(WORDS);
  e.CODE.set(words, code);
  e.DEVICE.set(words, rid);
  words[ADDRESS] = address % WORD;
  words[ADDRESS + 1] = Math.floor(address / WORD);
  return words;
};

/** §2.6.1 */
export const buildPageRequest = (request: PageRequest): Uint32Array => {
  const { rid, pasid, lo, hi, access, group, last } = request;
  const words = new Uint32Array(WORDS);
  const bit = (mask: number) => ((access & mask) !== 0 ? 1 : 0);
  p.CODE.set(words, PAGE_SERVICE_REQUEST);
  p.DEVICE.set(words, rid & 0xffff);
  if (pasid !== NO_PASID) {
    p.GN.set(words, 1);
    p.PASID.set(words, pasid & 0xffff);
    p.PASID_19.set(words, (pasid >>> 16) & 0xf);
    p.EXECUTE.set(words, bit(Access.execute));
    p.US.set(words, 1 - bit(Access.privileged));
  }
  p.READ.set(words, bit(Access.read));
  p.WRITE.set(words, bit(Access.write));
  p.TAG.set(words, group & 0x1ff);
  p.LAST.set(words, last ? 1 : 0);
  words[p.ADDRESS.word] = lo & 0xffff_f000;
  words[p.ADDRESS.word + 1] = hi;
  return words;
};
