/**
 * The register file of an SMMUv3 (IHI 0070, §6) as storage: which words exist, which bits software may write, what they
 * are after reset, and which are locked while something is enabled. What a write sets in motion is in `unit.ts`. A
 * 64-bit access is its lower half, then its upper half. An access that is not aligned, or of another width, is not made:
 * reads give 0.
 */
import type { Capabilities } from "./capabilities.ts";
import {
  BASE_HI,
  CR1_MASK,
  Cr0,
  Cr2,
  Gbpa,
  GERROR_MASK,
  IrqCtrl,
  OVERFLOW,
  QUEUE_INDEX,
  QueueBase,
  REGISTER_BYTES,
  Register,
  STRTAB_ADDRESS_LO,
  StrtabBaseCfg,
} from "./spec.ts";

const ALL = 0xffff_ffff;

interface Word {
  readonly offset: number;
  /** Bits software may write. */
  readonly writable?: number;
  readonly reset?: number;
  /** CR0 bits any of which makes the word read-only. */
  readonly locked?: number;
}

/** A queue's base; PROD and CONS are where their page is. */
const baseWords = (offset: number, locked: number): Word[] => [
  { offset, writable: (QueueBase.ADDRESS_LO | QueueBase.LOG2SIZE) >>> 0, locked },
  { offset: offset + 4, writable: BASE_HI, locked },
];

/** §6.3.19 Address, data and attributes of an interrupt message. */
const messageWords = (offset: number): Word[] => [
  { offset, writable: 0xffff_fffc },
  { offset: offset + 4, writable: 0x000f_ffff },
  { offset: offset + 8, writable: ALL },
  { offset: offset + 12, writable: 0x3f },
];

const strtabCfg = (): number => {
  const { LOG2SIZE, SPLIT, FMT } = StrtabBaseCfg.fields;
  return LOG2SIZE.mask | SPLIT.mask | FMT.mask;
};

const wordsOf = (unit: Capabilities): Word[] => {
  const cr0 = Cr0.SMMUEN | Cr0.EVENTQEN | Cr0.CMDQEN | (unit.pri ? Cr0.PRIQEN : 0);
  const more = (unit.ats ? Cr0.ATSCHK : 0) | (unit.vmidWildcard ? Cr0.VMW : 0);
  return [
    { offset: Register.IDR0, reset: unit.idr0 },
    { offset: Register.IDR1, reset: unit.idr1 },
    { offset: Register.IDR3, reset: unit.idr3 },
    { offset: Register.IDR5, reset: unit.idr5 },
    { offset: Register.IIDR, reset: unit.iidr },
    { offset: Register.AIDR, reset: unit.aidr },
    { offset: Register.CR0, writable: cr0 | more },
    { offset: Register.CR0ACK },
    { offset: Register.CR1, writable: CR1_MASK },
    // The value after reset is the unit's choice: streams without an entry are recorded.
    {
      offset: Register.CR2,
      writable: Cr2.RECINVSID | Cr2.PTM | (unit.hyp ? Cr2.E2H : 0),
      reset: Cr2.RECINVSID,
      locked: Cr0.SMMUEN,
    },
    { offset: Register.GBPA, reset: Gbpa.RESET },
    { offset: Register.IRQ_CTRL, writable: IrqCtrl.GERROR | IrqCtrl.EVENTQ | (unit.pri ? IrqCtrl.PRIQ : 0) },
    { offset: Register.IRQ_CTRLACK },
    { offset: Register.GERROR },
    { offset: Register.GERRORN, writable: GERROR_MASK },
    { offset: Register.STRTAB_BASE, writable: STRTAB_ADDRESS_LO, locked: Cr0.SMMUEN },
    { offset: Register.STRTAB_BASE + 4, writable: BASE_HI, locked: Cr0.SMMUEN },
    { offset: Register.STRTAB_BASE_CFG, writable: strtabCfg(), locked: Cr0.SMMUEN },
    ...baseWords(Register.CMDQ_BASE, Cr0.CMDQEN),
    { offset: Register.CMDQ_PROD, writable: QUEUE_INDEX },
    { offset: Register.CMDQ_CONS, writable: QUEUE_INDEX, locked: Cr0.CMDQEN },
    ...baseWords(Register.EVENTQ_BASE, Cr0.EVENTQEN),
    { offset: Register.EVENTQ_PROD, writable: (QUEUE_INDEX | OVERFLOW) >>> 0, locked: Cr0.EVENTQEN },
    { offset: Register.EVENTQ_CONS, writable: (QUEUE_INDEX | OVERFLOW) >>> 0 },
    ...(unit.pri
      ? [
          ...baseWords(Register.PRIQ_BASE, Cr0.PRIQEN),
          { offset: Register.PRIQ_PROD, writable: (QUEUE_INDEX | OVERFLOW) >>> 0, locked: Cr0.PRIQEN },
          { offset: Register.PRIQ_CONS, writable: (QUEUE_INDEX | OVERFLOW) >>> 0 },
        ]
      : []),
    ...(unit.msi
      ? [
          ...messageWords(Register.GERROR_IRQ_CFG0),
          ...messageWords(Register.EVENTQ_IRQ_CFG0),
          ...(unit.pri ? messageWords(Register.PRIQ_IRQ_CFG0) : []),
        ]
      : []),
  ];
};

export class RegisterFile {
  /** Every word, by offset / 4. */
  readonly #words = new Uint32Array(REGISTER_BYTES / 4);
  readonly #declared = new Map<number, Word>();

  constructor(unit: Capabilities) {
    for (const word of wordsOf(unit)) this.#declared.set(word.offset, word);
    this.reset();
  }

  reset(): void {
    for (const { offset, reset = 0 } of this.#declared.values()) this.#words[offset / 4] = reset;
  }

  /** Whether an access is one the register file takes. */
  takes(offset: number, width: number): boolean {
    const fits = offset >= 0 && offset + width <= REGISTER_BYTES;
    return (width === 4 || width === 8) && fits && offset % width === 0;
  }

  read(offset: number, width: number): bigint {
    if (!this.takes(offset, width)) return 0n;
    const low = BigInt(this.get(offset));
    return width === 4 ? low : low | (BigInt(this.get(offset + 4)) << 32n);
  }

  /** Stores what software may change of a word; whether there was anything. */
  store(offset: number, value: number): boolean {
    const { writable = 0, locked = 0 } = this.#declared.get(offset) ?? {};
    if (writable === 0 || (this.get(Register.CR0) & locked) !== 0) return false;
    this.#words[offset / 4] = value & writable;
    return true;
  }

  get(offset: number): number {
    return this.#words[offset / 4]!;
  }

  set(offset: number, value: number): void {
    this.#words[offset / 4] = value;
  }

  /** The address of a base or message register, without what else its words hold. */
  address(offset: number, lowMask: number): number {
    const high = this.get(offset + 4) & 0x000f_ffff;
    return high * 0x1_0000_0000 + ((this.get(offset) & lowMask) >>> 0);
  }
}

const names = new Map<number, string>(Object.entries(Register).map(([name, offset]) => [offset, name]));

/** The name of the register a word belongs to, for people. */
export const registerName = (offset: number): string =>
  names.get(offset) ?? names.get(offset - 4) ?? "reserved";
