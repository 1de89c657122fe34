/**
 * Integer instructions with a memory operand: moves with and without extension, arithmetic and logic to and from
 * memory, bit tests, shifts, exchanges and stack transfers (Intel SDM volume 2). A locked instruction is one read and
 * one write; all trapped accesses are made by one thread, which makes it atomic against every other trapped access.
 * Left out: rcl and rcr, shld and shrd, multiplication and division, decimal and BMI instructions.
 */
import { Flag, Reg, STATUS_FLAGS } from "./cpu.ts";
import { Mnemonic } from "./decode.ts";
import { type Execution, widthMask } from "./execution.ts";
import { add, conditionHolds, logic, type Result, subtract } from "./flags.ts";

export type Executor = (e: Execution) => void;

function move(e: Execution): void {
  e.store(0, e.load(1));
}

function moveSigned(e: Execution): void {
  const value = BigInt.asIntN(e.size(1) * 8, e.load(1));
  e.store(0, BigInt.asUintN(e.size(0) * 8, value));
}

function moveSwapped(e: Execution): void {
  let value = e.load(1);
  let swapped = 0n;
  for (let i = e.size(0); i > 0; i--) {
    swapped = (swapped << 8n) | (value & 0xffn);
    value >>= 8n;
  }
  e.store(0, swapped);
}

function moveIf(e: Execution): void {
  const value = e.load(1);
  const size = e.size(0);
  const taken = conditionHolds(e.decoded.condition, e.cpu.flags);
  e.store(0, taken ? value : e.load(0) & widthMask(size));
}

function setIf(e: Execution): void {
  e.store(0, conditionHolds(e.decoded.condition, e.cpu.flags) ? 1n : 0n);
}

const carry = (e: Execution): bigint => ((e.cpu.flags & Flag.CF) !== 0 ? 1n : 0n);

type Arithmetic = (a: bigint, b: bigint, carry: bigint, size: number) => Result;

const ARITHMETIC: readonly (readonly [Mnemonic, Arithmetic])[] = [
  [Mnemonic.Add, (a, b, _c, size) => add(a, b, 0n, size)],
  [Mnemonic.Adc, add],
  [Mnemonic.Sub, (a, b, _c, size) => subtract(a, b, 0n, size)],
  [Mnemonic.Sbb, subtract],
  [Mnemonic.And, (a, b, _c, size) => logic(a & b, size)],
  [Mnemonic.Or, (a, b, _c, size) => logic(a | b, size)],
  [Mnemonic.Xor, (a, b, _c, size) => logic(a ^ b, size)],
];

function arithmetic(operation: Arithmetic, writes: boolean): Executor {
  return (e) => {
    const size = e.size(0);
    const a = e.load(0);
    const result = operation(a, e.load(1), carry(e), size);
    if (writes) e.store(0, result.value);
    e.cpu.setFlags(STATUS_FLAGS, result.flags);
  };
}

/** inc, dec, neg, not: one operand, some flags. */
function unary(operation: (a: bigint, size: number) => Result, flags: number): Executor {
  return (e) => {
    const result = operation(e.load(0), e.size(0));
    e.store(0, result.value);
    e.cpu.setFlags(flags, result.flags);
  };
}

/** bt, bts, btr, btc: a register bit number reaches beyond the operand, an immediate one wraps inside it. */
function bitTest(change: ((value: bigint, bit: bigint) => bigint) | undefined): Executor {
  return (e) => {
    const size = e.size(0);
    const bits = BigInt(size * 8);
    let number = e.load(1);
    let address = e.effective();
    if (e.operand(1).kind === "general") {
      const signed = BigInt.asIntN(size * 8, number);
      address = BigInt.asUintN(
        e.decoded.address.bits,
        address + (signed >> BigInt(Math.log2(size * 8))) * BigInt(size),
      );
    }
    number &= bits - 1n;
    const linear = e.linear(address);
    const value = e.loadMemory(linear, size);
    if (change !== undefined) e.storeMemory(linear, size, change(value, 1n << number));
    e.cpu.setFlags(Flag.CF, (value >> number) & 1n ? Flag.CF : 0);
  };
}

/** shl, shr, sar, rol, ror by an immediate or cl. A count of zero changes nothing but still writes. */
function shift(
  operation: (value: bigint, count: bigint, bits: bigint) => ShiftResult,
  rotates: boolean,
): Executor {
  return (e) => {
    const size = e.size(0);
    const bits = BigInt(size * 8);
    const count = e.load(1) & (size === 8 ? 63n : 31n);
    const value = e.load(0);
    if (count === 0n) {
      e.store(0, value);
      return;
    }
    const { value: result, carry: carryOut, overflow } = operation(value, count, bits);
    e.store(0, result);
    let flags = carryOut ? Flag.CF : 0;
    let mask: number = Flag.CF;
    if (count === 1n) {
      mask |= Flag.OF;
      flags |= overflow ? Flag.OF : 0;
    }
    if (!rotates) {
      mask |= Flag.SF | Flag.ZF | Flag.PF;
      flags |= logic(result, size).flags;
    }
    e.cpu.setFlags(mask, flags);
  };
}

interface ShiftResult {
  readonly value: bigint;
  readonly carry: boolean;
  /** Meaningful for a count of one only. */
  readonly overflow: boolean;
}

const bit = (value: bigint, n: bigint): boolean => n >= 0n && ((value >> n) & 1n) === 1n;

function shiftLeft(value: bigint, count: bigint, bits: bigint): ShiftResult {
  const wide = value << count;
  const result = BigInt.asUintN(Number(bits), wide);
  const out = bit(wide, bits);
  return { value: result, carry: out, overflow: bit(result, bits - 1n) !== out };
}

function shiftRight(value: bigint, count: bigint, bits: bigint): ShiftResult {
  return { value: value >> count, carry: bit(value, count - 1n), overflow: bit(value, bits - 1n) };
}

function shiftRightSigned(value: bigint, count: bigint, bits: bigint): ShiftResult {
  const signed = BigInt.asIntN(Number(bits), value);
  const out = ((signed >> (count - 1n)) & 1n) === 1n;
  return { value: BigInt.asUintN(Number(bits), signed >> count), carry: out, overflow: false };
}

function rotateLeft(value: bigint, count: bigint, bits: bigint): ShiftResult {
  const turn = count % bits;
  const result = BigInt.asUintN(Number(bits), (value << turn) | (value >> (bits - turn)));
  const out = bit(result, 0n);
  return { value: result, carry: out, overflow: bit(result, bits - 1n) !== out };
}

function rotateRight(value: bigint, count: bigint, bits: bigint): ShiftResult {
  const { value: result } = rotateLeft(value, bits - (count % bits), bits);
  const out = bit(result, bits - 1n);
  return { value: result, carry: out, overflow: out !== bit(result, bits - 2n) };
}

function exchange(e: Execution): void {
  const a = e.load(0);
  const b = e.load(1);
  const memoryFirst = e.operand(0).kind === "memory";
  e.store(memoryFirst ? 0 : 1, memoryFirst ? b : a);
  e.store(memoryFirst ? 1 : 0, memoryFirst ? a : b);
}

function exchangeAdd(e: Execution): void {
  const before = e.load(0);
  const result = add(before, e.load(1), 0n, e.size(0));
  e.store(0, result.value);
  e.store(1, before);
  e.cpu.setFlags(STATUS_FLAGS, result.flags);
}

/** The destination gets a write cycle whatever the comparison says, as the manual promises. */
function compareExchange(e: Execution): void {
  const size = e.size(0);
  const expected = e.loadRegister(Reg.rax, size);
  const before = e.load(0);
  const equal = expected === before;
  e.store(0, equal ? e.load(1) : before);
  if (!equal) e.storeRegister(Reg.rax, size, before);
  e.cpu.setFlags(STATUS_FLAGS, subtract(expected, before, 0n, size).flags);
}

/** cmpxchg8b and cmpxchg16b: rdx:rax against memory, rcx:rbx into it. */
function compareExchangePair(half: number): Executor {
  return (e) => {
    const shiftBy = BigInt(half * 8);
    const address = e.address();
    const memory = new Uint8Array(half * 2);
    e.bus.read(address, memory);
    let before = 0n;
    for (let i = memory.length - 1; i >= 0; i--) before = (before << 8n) | BigInt(memory[i]!);
    const expected = (e.loadRegister(Reg.rdx, half) << shiftBy) | e.loadRegister(Reg.rax, half);
    const equal = expected === before;
    let after = equal ? (e.loadRegister(Reg.rcx, half) << shiftBy) | e.loadRegister(Reg.rbx, half) : before;
    for (let i = 0; i < memory.length; i++) {
      memory[i] = Number(after & 0xffn);
      after >>= 8n;
    }
    e.bus.write(address, memory);
    if (!equal) {
      e.storeRegister(Reg.rax, half, before & widthMask(half));
      e.storeRegister(Reg.rdx, half, before >> shiftBy);
    }
    e.cpu.setFlags(Flag.ZF, equal ? Flag.ZF : 0);
  };
}

function push(e: Execution): void {
  const size = e.size(0);
  const value = e.load(0);
  const top = BigInt.asUintN(64, e.cpu.general(Reg.rsp) - BigInt(size));
  e.storeMemory(top, size, value);
  e.cpu.setGeneral(Reg.rsp, top);
}

/** The address of a pop's destination is computed with the incremented stack pointer. */
function pop(e: Execution): void {
  const size = e.size(0);
  const top = e.cpu.general(Reg.rsp);
  const value = e.loadMemory(top, size);
  e.cpu.setGeneral(Reg.rsp, BigInt.asUintN(64, top + BigInt(size)));
  try {
    e.store(0, value);
  } catch (fault) {
    e.cpu.setGeneral(Reg.rsp, top);
    throw fault;
  }
}

function nothing(): void {}

function conditional(prefix: string, executor: Executor): (readonly [Mnemonic, Executor])[] {
  const suffixes = ["o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g"];
  const names = suffixes.map((suffix) => `${prefix}${suffix}` as keyof typeof Mnemonic);
  return names.map((name) => [Mnemonic[name], executor] as const);
}

const decrement = (a: bigint, size: number): Result => subtract(a, 1n, 0n, size);
const increment = (a: bigint, size: number): Result => add(a, 1n, 0n, size);
const negate = (a: bigint, size: number): Result => subtract(0n, a, 0n, size);
const complement = (a: bigint, size: number): Result => ({ value: a ^ widthMask(size), flags: 0 });

export const INTEGER: ReadonlyMap<Mnemonic, Executor> = new Map<Mnemonic, Executor>([
  [Mnemonic.Mov, move],
  [Mnemonic.Movnti, move],
  [Mnemonic.Movdiri, move],
  [Mnemonic.Movzx, move],
  [Mnemonic.Movsx, moveSigned],
  [Mnemonic.Movsxd, moveSigned],
  [Mnemonic.Movbe, moveSwapped],
  ...conditional("Cmov", moveIf),
  ...conditional("Set", setIf),
  ...ARITHMETIC.map(([mnemonic, operation]) => [mnemonic, arithmetic(operation, true)] as const),
  [Mnemonic.Cmp, arithmetic((a, b, _c, size) => subtract(a, b, 0n, size), false)],
  [Mnemonic.Test, arithmetic((a, b, _c, size) => logic(a & b, size), false)],
  [Mnemonic.Inc, unary(increment, STATUS_FLAGS & ~Flag.CF)],
  [Mnemonic.Dec, unary(decrement, STATUS_FLAGS & ~Flag.CF)],
  [Mnemonic.Neg, unary(negate, STATUS_FLAGS)],
  [Mnemonic.Not, unary(complement, 0)],
  [Mnemonic.Bt, bitTest(undefined)],
  [Mnemonic.Bts, bitTest((value, mask) => value | mask)],
  [Mnemonic.Btr, bitTest((value, mask) => value & ~mask)],
  [Mnemonic.Btc, bitTest((value, mask) => value ^ mask)],
  [Mnemonic.Shl, shift(shiftLeft, false)],
  [Mnemonic.Sal, shift(shiftLeft, false)],
  [Mnemonic.Shr, shift(shiftRight, false)],
  [Mnemonic.Sar, shift(shiftRightSigned, false)],
  [Mnemonic.Rol, shift(rotateLeft, true)],
  [Mnemonic.Ror, shift(rotateRight, true)],
  [Mnemonic.Xchg, exchange],
  [Mnemonic.Xadd, exchangeAdd],
  [Mnemonic.Cmpxchg, compareExchange],
  [Mnemonic.Cmpxchg8b, compareExchangePair(4)],
  [Mnemonic.Cmpxchg16b, compareExchangePair(8)],
  [Mnemonic.Push, push],
  [Mnemonic.Pop, pop],
  [Mnemonic.Prefetcht0, nothing],
  [Mnemonic.Prefetcht1, nothing],
  [Mnemonic.Prefetcht2, nothing],
  [Mnemonic.Prefetchnta, nothing],
  [Mnemonic.Prefetchw, nothing],
  [Mnemonic.Clflush, nothing],
  [Mnemonic.Clflushopt, nothing],
  [Mnemonic.Clwb, nothing],
]);
