/**
 * The register file of an AMD-Vi unit (48882, revision 3.07, §3.4) as storage: which words exist, which bits software may
 * write or clears by writing 1, and what they are after reset. What a write sets in motion is in `unit.ts`. A 64-bit
 * access is its lower half, then its upper half. An access that is not aligned, or of another width, is not made: reads
 * give 0.
 */
import type { Capabilities } from "./capabilities.ts";
import {
  ControlRegister,
  DeviceTableBase,
  ExclusionBase,
  MSI_CAPABILITY_ID,
  MsiCapability,
  POINTER_MASK,
  REGISTER_BYTES,
  Register,
  RingBase,
  STATUS_CLEARED,
} from "./spec.ts";

const ALL = 0xffff_ffff;

interface Word {
  readonly offset: number;
  /** Bits software may write. */
  readonly writable?: number;
  /** Bits software clears by writing 1. */
  readonly clear?: number;
  readonly reset?: number;
}

const low = (value: bigint): number => Number(value & 0xffff_ffffn);
const high = (value: bigint): number => Number((value >> 32n) & 0xffff_ffffn);

/** A register of 64 bits, of which software may write these. */
const wide = (offset: number, writable: bigint): Word[] => [
  { offset, writable: low(writable) },
  { offset: offset + 4, writable: high(writable) },
];
const fixed = (offset: number, value: bigint): Word[] => [
  { offset, reset: low(value) },
  { offset: offset + 4, reset: high(value) },
];
const named = (reserved: bigint): bigint => ~reserved & ((1n << 64n) - 1n);

/** Bits of CONTROL that the unit has. */
const controlBits = (unit: Capabilities): bigint => {
  const { fields } = ControlRegister;
  const without = (has: boolean, ...names: (keyof typeof fields)[]) =>
    has
      ? 0n
      : names.reduce((mask, name) => mask | fields[name].put((1n << BigInt(fields[name].width)) - 1n), 0n);
  const missing =
    without(unit.pageRequests, "PPR_LOG_EN", "PPR_INT_EN", "PPR_EN") |
    without(unit.autoResponse, "PPR_AUTO_RSP_EN") |
    without(unit.guestTranslation, "GT_EN") |
    without(unit.gcr3Guest, "GCR3_TRP_MODE") |
    without(unit.accessed, "HAD_UPDATE");
  return named(ControlRegister.reserved) & ~missing;
};

const wordsOf = (unit: Capabilities): Word[] => {
  const pointer = { writable: POINTER_MASK };
  const words: Word[] = [
    ...wide(Register.DEVTAB_BASE, named(DeviceTableBase.reserved)),
    ...wide(Register.CMDBUF_BASE, named(RingBase.reserved)),
    ...wide(Register.EVTLOG_BASE, named(RingBase.reserved)),
    ...wide(Register.CONTROL, controlBits(unit)),
    ...wide(Register.EXCL_BASE, named(ExclusionBase.reserved)),
    ...wide(Register.EXCL_LIMIT, ExclusionBase.fields.BASE.put(0xf_ffff_ffff_f000n)),
    ...fixed(Register.EXT_FEATURE, unit.efr),
    ...fixed(Register.EXT_FEATURE2, unit.efr2),
    { offset: Register.CMDBUF_HEAD, ...pointer },
    { offset: Register.CMDBUF_TAIL, ...pointer },
    { offset: Register.EVTLOG_HEAD, ...pointer },
    { offset: Register.EVTLOG_TAIL, ...pointer },
    { offset: Register.STATUS, clear: STATUS_CLEARED },
  ];
  if (unit.pageRequests)
    words.push(
      ...wide(Register.PPRLOG_BASE, named(RingBase.reserved)),
      { offset: Register.PPRLOG_HEAD, ...pointer },
      { offset: Register.PPRLOG_TAIL, ...pointer },
    );
  if (unit.msi)
    words.push(
      {
        offset: Register.MSI_CAPABILITY,
        writable: MsiCapability.fields.EN.mask,
        reset: Number(MsiCapability.make({ ID: MSI_CAPABILITY_ID, WIDE: true })),
      },
      { offset: Register.MSI_ADDRESS, writable: 0xffff_fffc },
      { offset: Register.MSI_ADDRESS + 4, writable: ALL },
      { offset: Register.MSI_DATA, writable: 0xffff },
    );
  return words;
};

export class RegisterFile {
  /** Every register, by offset / 4, as it reads. */
  readonly words = new Uint32Array(REGISTER_BYTES / 4);
  readonly #writable = new Uint32Array(REGISTER_BYTES / 4);
  readonly #clear = new Uint32Array(REGISTER_BYTES / 4);
  readonly #declared: readonly Word[];

  constructor(unit: Capabilities) {
    this.#declared = wordsOf(unit);
    for (const { offset, writable = 0, clear = 0 } of this.#declared) {
      this.#writable[offset / 4] = writable;
      this.#clear[offset / 4] = clear;
    }
    this.reset();
  }

  reset(): void {
    this.words.fill(0);
    for (const { offset, reset = 0 } of this.#declared) this.words[offset / 4] = reset;
  }

  /** Whether an access is one the register file takes. */
  takes(offset: number, width: number): boolean {
    const inside = offset >= 0 && offset % width === 0 && offset + width <= REGISTER_BYTES;
    return (width === 4 || width === 8) && inside;
  }

  read(offset: number, width: number): bigint {
    if (!this.takes(offset, width)) return 0n;
    const lower = BigInt(this.words[offset / 4]!);
    return width === 4 ? lower : lower | (BigInt(this.words[offset / 4 + 1]!) << 32n);
  }

  /** Stores what software may change of a word; false: nothing of it. */
  store(offset: number, value: number): boolean {
    const at = offset / 4;
    const writable = this.#writable[at]!;
    const clear = this.#clear[at]!;
    this.words[at] = (this.words[at]! & ~writable & ~(value & clear)) | (value & writable);
    return (writable | clear) !== 0;
  }

  get(offset: number): number {
    return this.words[offset / 4]!;
  }

  set(offset: number, value: number): void {
    this.words[offset / 4] = value;
  }

  /** The page address (bits 51:12) in a 64-bit register. */
  page(offset: number): number {
    const lower = (this.words[offset / 4]! & 0xffff_f000) >>> 0;
    return (this.words[offset / 4 + 1]! & 0xf_ffff) * 0x1_0000_0000 + lower;
  }
}

const names = new Map<number, string>(Object.entries(Register).map(([name, offset]) => [offset, name]));
/** The name of the register at an offset, for people. */
export const registerName = (offset: number): string =>
  names.get(offset) ?? names.get(offset & ~7) ?? "reserved";
