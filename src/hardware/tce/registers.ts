/**
 * The register file of a host bridge as storage: 64-bit registers of which software may write some bits. Halves are where
 * the machine's byte order puts them, the less significant one first. An access that is not aligned, or of another width,
 * is not made: reads give 0.
 */
import {
  IodaAddr,
  PestBar,
  PHB4_VERSION,
  Phb4Config,
  REGISTER_BYTES,
  Register,
  RtcInvalidate,
  RttBar,
  TceKill,
} from "./spec.ts";

const MASK = (1n << 64n) - 1n;
const ALL = MASK;

/** Bits that software may write and that stay; commands read as done. */
const writable = new Map<number, bigint>([
  [Register.PHB4_CONFIG, MASK & ~Phb4Config.reserved],
  [Register.RTT_BAR, MASK & ~RttBar.reserved],
  [Register.PEST_BAR, MASK & ~PestBar.reserved],
  [Register.IODA_ADDR, MASK & ~IodaAddr.reserved],
  [Register.INT_NOTIFY_ADDR, ALL],
  [Register.INT_NOTIFY_INDEX, ALL],
]);
/** Registers that are no storage: what is written sets something in motion, when the upper half comes. */
const commands = new Map<number, bigint>([
  [Register.RTC_INVALIDATE, MASK & ~RtcInvalidate.reserved],
  [Register.TCE_KILL, MASK & ~TceKill.reserved],
]);

const names = new Map<number, string>(Object.entries(Register).map(([name, offset]) => [offset, name]));
/** The name of the register at an offset, for people. */
export const registerName = (offset: number): string => names.get(offset - (offset % 8)) ?? "reserved";

/** Whether an access is one the register file takes. */
export const takes = (offset: number, width: number): boolean =>
  (width === 4 || width === 8) && offset >= 0 && offset % width === 0 && offset + width <= REGISTER_BYTES;

/** A value with one half, or all, of it replaced. */
export const merge = (before: bigint, offset: number, width: number, value: bigint): bigint => {
  if (width === 8) return value & MASK;
  const shift = BigInt((offset % 8) * 8);
  return (before & ~(0xffff_ffffn << shift)) | ((value & 0xffff_ffffn) << shift);
};

/** The half of a value that an access reads, or all of it. */
export const part = (value: bigint, offset: number, width: number): bigint =>
  width === 8 ? value : (value >> BigInt((offset % 8) * 8)) & 0xffff_ffffn;

export class RegisterFile {
  readonly #values = new Map<number, bigint>();
  /** What was written of commands whose upper half is still to come. */
  readonly #pending = new Map<number, bigint>();

  constructor() {
    this.reset();
  }

  reset(): void {
    this.#values.clear();
    this.#pending.clear();
    this.#values.set(Register.VERSION, BigInt(PHB4_VERSION));
  }

  /** A register's value; `offset` is its first byte. */
  get(offset: number): bigint {
    return this.#values.get(offset) ?? 0n;
  }

  /**
   * Stores what software may change; returns the command that was completed, or undefined: the register holds what was
   * written, if it is there.
   */
  write(offset: number, width: 4 | 8, value: bigint): bigint | undefined {
    const register = offset - (offset % 8);
    const mask = writable.get(register);
    if (mask !== undefined)
      this.#values.set(register, merge(this.get(register), offset, width, value) & mask);
    const command = commands.get(register);
    if (command === undefined) return undefined;
    const merged = merge(this.#pending.get(register) ?? 0n, offset, width, value) & command;
    const whole = width === 8 || offset !== register;
    this.#pending.set(register, whole ? 0n : merged);
    return whole ? merged : undefined;
  }
}
