/**
 * Status flags of integer arithmetic (Intel SDM volume 1, 3.4.3.1, and the instruction pages of volume 2). Flags the
 * manual leaves undefined are kept, except AF after logic, which every known CPU clears.
 */
import { Flag } from "./cpu.ts";

const PARITY = new Uint8Array(256);
for (let i = 0; i < 256; i++) {
  let bits = i;
  bits ^= bits >> 4;
  bits ^= bits >> 2;
  bits ^= bits >> 1;
  PARITY[i] = bits & 1 ? 0 : Flag.PF;
}

/** A result of `size` bytes and the six status flags that go with it. */
export interface Result {
  readonly value: bigint;
  readonly flags: number;
}

/** SF, ZF and PF of a result. */
function signZeroParity(value: bigint, size: number): number {
  const sign = (value >> BigInt(size * 8 - 1)) & 1n ? Flag.SF : 0;
  return sign | (value === 0n ? Flag.ZF : 0) | PARITY[Number(value & 0xffn)]!;
}

const topBit = (value: bigint, size: number): boolean => ((value >> BigInt(size * 8 - 1)) & 1n) === 1n;

export function add(a: bigint, b: bigint, carry: bigint, size: number): Result {
  const sum = a + b + carry;
  const value = BigInt.asUintN(size * 8, sum);
  const flags =
    signZeroParity(value, size) |
    (sum !== value ? Flag.CF : 0) |
    (Number((a ^ b ^ value) & 0x10n) ? Flag.AF : 0) |
    (topBit((a ^ value) & (b ^ value), size) ? Flag.OF : 0);
  return { value, flags };
}

export function subtract(a: bigint, b: bigint, borrow: bigint, size: number): Result {
  const value = BigInt.asUintN(size * 8, a - b - borrow);
  const flags =
    signZeroParity(value, size) |
    (a < b + borrow ? Flag.CF : 0) |
    (Number((a ^ b ^ value) & 0x10n) ? Flag.AF : 0) |
    (topBit((a ^ b) & (a ^ value), size) ? Flag.OF : 0);
  return { value, flags };
}

export function logic(value: bigint, size: number): Result {
  return { value, flags: signZeroParity(value, size) };
}

/** Condition 1..16 (o, no, b, ae, e, ne, be, a, s, ns, p, np, l, ge, le, g) of the flags; Intel SDM volume 1, B.1. */
export function conditionHolds(condition: number, flags: number): boolean {
  const less = ((flags & Flag.SF) !== 0) !== ((flags & Flag.OF) !== 0);
  const base = [
    (flags & Flag.OF) !== 0,
    (flags & Flag.CF) !== 0,
    (flags & Flag.ZF) !== 0,
    (flags & (Flag.CF | Flag.ZF)) !== 0,
    (flags & Flag.SF) !== 0,
    (flags & Flag.PF) !== 0,
    less,
    less || (flags & Flag.ZF) !== 0,
  ][(condition - 1) >> 1];
  return (condition - 1) & 1 ? !base : base === true;
}
