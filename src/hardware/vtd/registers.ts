/**
 * The register file of a VT-d unit (revision 4.1, §11.4) as storage: which offsets exist, which bits software may
 * write, which it clears by writing 1, and what they are after reset. What a write sets in motion is in `unit.ts`.
 * A 64-bit access is its lower half, then its upper half, as the specification lets software do it itself.
 *
 * Left out: protected memory and advanced fault logging: their registers read 0 and ignore writes, as those of page
 * requests do without ECAP.PRS.
 */
import { type RegisterWord, RegisterWords, registerNames } from "../register-words.ts";
import type { Capabilities } from "./capabilities.ts";
import { PqaRegister, PqPointerRegister, Prs } from "./scalable-spec.ts";
import {
  CcmdRegister,
  EventControl,
  FaultRecording,
  Fsts,
  Ics,
  IotlbRegister,
  IQ_POINTER_MASK,
  IqaRegister,
  IrtaRegister,
  REGISTER_PAGE_BYTES,
  Register,
  RtaddrRegister,
} from "./spec.ts";

const ALL = 0xffff_ffff;
const PQ_POINTER = PqPointerRegister.fields.Q.mask;
/** Bits 31:12 of the lower word of a 64-bit address of a page. */
const PAGE = 0xffff_f000;

/** An event's control, data, address and upper address registers follow each other. */
const eventWords = (control: number): RegisterWord[] => [
  { offset: control, writable: EventControl.IM, reset: EventControl.IM },
  { offset: control + 4, writable: ALL },
  { offset: control + 8, writable: 0xffff_fffc },
  { offset: control + 12, writable: ALL },
];

const wordsOf = (capabilities: Capabilities): RegisterWord[] => {
  const { cap, ecap, has, faultRecordOffset, iotlbOffset, faultRecords } = capabilities;
  const { S, EIME } = IrtaRegister.fields;
  const words: RegisterWord[] = [
    { offset: Register.VER, reset: capabilities.version },
    { offset: Register.CAP, reset: Number(cap & 0xffff_ffffn) },
    { offset: Register.CAP + 4, reset: Number(cap >> 32n) },
    { offset: Register.ECAP, reset: Number(ecap & 0xffff_ffffn) },
    { offset: Register.ECAP + 4, reset: Number(ecap >> 32n) },
    { offset: Register.RTADDR, writable: PAGE + (has.scalable ? RtaddrRegister.fields.TTM.mask : 0) },
    { offset: Register.RTADDR + 4, writable: ALL },
    { offset: Register.CCMD, writable: CcmdRegister.fields.DID.mask },
    { offset: Register.CCMD + 4, writable: CcmdRegister.fields.CIRG.mask },
    { offset: Register.FSTS, clear: Fsts.PFO + Fsts.IQE + Fsts.ICE + Fsts.ITE },
    ...eventWords(Register.FECTL),
    { offset: iotlbOffset + 12, writable: iotlbWritable },
  ];
  if (has.queuedInvalidation)
    words.push(
      { offset: Register.IQT, writable: IQ_POINTER_MASK },
      {
        offset: Register.IQA,
        writable: PAGE + IqaRegister.fields.QS.mask + IqaRegister.fields.DW.mask,
      },
      { offset: Register.IQA + 4, writable: ALL },
      { offset: Register.ICS, clear: Ics.IWC },
      ...eventWords(Register.IECTL),
    );
  if (has.pageRequests)
    words.push(
      { offset: Register.PQH, writable: PQ_POINTER },
      { offset: Register.PQT, writable: PQ_POINTER },
      { offset: Register.PQA, writable: PAGE + PqaRegister.fields.PQS.mask },
      { offset: Register.PQA + 4, writable: ALL },
      { offset: Register.PRS, clear: Prs.PPR + Prs.PRO },
      ...eventWords(Register.PECTL),
    );
  if (has.interruptRemapping)
    words.push(
      { offset: Register.IRTA, writable: PAGE + S.mask + (has.extendedInterruptMode ? EIME.mask : 0) },
      { offset: Register.IRTA + 4, writable: ALL },
    );
  for (let i = 0; i < faultRecords; i++)
    words.push({
      offset: faultRecordOffset + i * FaultRecording.bytes + 12,
      clear: FaultRecording.fields.F.mask,
    });
  return words;
};
const iotlbWritable =
  (IotlbRegister.fields.DID.mask |
    IotlbRegister.fields.DW.mask |
    IotlbRegister.fields.DR.mask |
    IotlbRegister.fields.IIRG.mask) >>>
  0;

const bytesOf = ({ faultRecordOffset, faultRecords, iotlbOffset }: Capabilities): number => {
  const end = Math.max(faultRecordOffset + faultRecords * FaultRecording.bytes, iotlbOffset + 16);
  return Math.ceil(end / REGISTER_PAGE_BYTES) * REGISTER_PAGE_BYTES;
};

export class RegisterFile extends RegisterWords {
  /** Bytes of the register file, a whole number of pages. */
  readonly bytes: number;

  constructor(capabilities: Capabilities) {
    const bytes = bytesOf(capabilities);
    super(bytes, wordsOf(capabilities));
    this.bytes = bytes;
  }

  /** A 64-bit register's value as a number: for addresses, exact to 2^53. */
  address(offset: number): number {
    return this.words[offset / 4 + 1]! * 0x1_0000_0000 + this.words[offset / 4]!;
  }
}

/** The names of the registers by the offset of their first word, for people. */
export const registerName = (
  offset: number,
  { faultRecordOffset, iotlbOffset, faultRecords }: Capabilities,
) => {
  if (offset >= iotlbOffset && offset < iotlbOffset + 16) return offset < iotlbOffset + 8 ? "IVA" : "IOTLB";
  const record = Math.floor((offset - faultRecordOffset) / FaultRecording.bytes);
  if (record >= 0 && record < faultRecords) return `FRCD${record}`;
  return nameOf(offset);
};
const nameOf = registerNames(Register);
