/**
 * Instruction bytes to the few facts the emulator needs, by way of iced-x86 and a cache. The cache key is the bytes
 * themselves, never their address, so code that is rewritten in place (a JIT) can never meet an old decode. Decoding
 * is done as if at address 0; a rip-relative displacement is therefore relative to the instruction's own start.
 */
import {
  Decoder,
  DecoderOptions,
  type Instruction,
  MemorySizeExt,
  Mnemonic,
  OpKind,
  Register,
} from "iced-x86";
import { GREG_OF } from "./cpu.ts";

/** The longest instruction, Intel SDM volume 2, 2.3.11. */
export const MAX_INSTRUCTION = 15;
const CACHE_LIMIT = 8192;

export type Operand =
  /** `offset` is the register's first byte within the gregs. */
  | { readonly kind: "general"; readonly offset: number; readonly size: number }
  | { readonly kind: "vector"; readonly index: number; readonly size: number }
  | { readonly kind: "mask"; readonly index: number }
  | { readonly kind: "memory"; readonly size: number }
  | { readonly kind: "immediate"; readonly value: bigint };

/** An address computation: base + index * scale + displacement, cut to the address size, plus the segment's base. */
export interface AddressForm {
  /** General register 0..15, or -1. */
  readonly base: number;
  readonly index: number;
  readonly scale: bigint;
  readonly displacement: bigint;
  /** The displacement counts from the instruction's first byte. */
  readonly ripRelative: boolean;
  /** 32 with the 67h prefix, else 64. */
  readonly bits: number;
  readonly segment: "none" | "fs" | "gs";
}

export interface Decoded {
  readonly mnemonic: Mnemonic;
  readonly length: number;
  readonly operands: readonly Operand[];
  readonly address: AddressForm;
  /** One of movs, stos, lods, cmps, scas: movsd and cmpsd are also the names of SSE2 instructions. */
  readonly isString: boolean;
  /** Size of the memory operand in bytes; 0 without one. */
  readonly memorySize: number;
  readonly elementSize: number;
  readonly repeat: "none" | "equal" | "notEqual";
  /** Condition of cmovcc and setcc, iced's ConditionCode: 0 none, 1 o, 2 no, … */
  readonly condition: number;
  /** VEX or EVEX: the bytes of a destination above those written are cleared. */
  readonly zeroesUpper: boolean;
  /** Number of the opmask register, 0 without masking. */
  readonly opMask: number;
  readonly zeroing: boolean;
  readonly broadcast: boolean;
  /** The instruction in words, for messages. */
  readonly text: string;
}

interface Entry {
  readonly code: Uint8Array;
  readonly decoded: Decoded;
}

/** By a hash of the bytes; the entry's own bytes decide. */
const cache = new Map<number, Entry>();

function hash(code: Uint8Array, length: number): number {
  let h = length;
  for (let i = 0; i < length; i++) h = Math.imul(h ^ code[i]!, 0x01000193);
  return h;
}

function same(a: Uint8Array, b: Uint8Array, length: number): boolean {
  if (a.length !== length) return false;
  for (let i = 0; i < length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** Decodes the instruction at the start of `code` (up to 15 bytes; fewer when the next page is unreadable). */
export function decode(code: Uint8Array): Decoded | undefined {
  const length = Math.min(code.length, MAX_INSTRUCTION);
  const key = hash(code, length);
  const known = cache.get(key);
  if (known !== undefined && same(known.code, code, length)) return known.decoded;
  const copy = code.slice(0, length);
  const decoded = decodeFresh(copy);
  if (decoded === undefined) return undefined;
  if (cache.size >= CACHE_LIMIT) cache.clear();
  cache.set(key, { code: copy, decoded });
  return decoded;
}

function decodeFresh(code: Uint8Array): Decoded | undefined {
  const decoder = new Decoder(64, code, DecoderOptions.None);
  try {
    decoder.ip = 0n;
    const instruction = decoder.decode();
    try {
      return instruction.isInvalid ? undefined : facts(instruction);
    } finally {
      instruction.free();
    }
  } finally {
    decoder.free();
  }
}

function facts(instruction: Instruction): Decoded | undefined {
  if (instruction.isVsib) return undefined;
  const operands: Operand[] = [];
  for (let i = 0; i < instruction.opCount; i++) {
    const operand = operandOf(instruction, i);
    if (operand === undefined) return undefined;
    operands.push(operand);
  }
  const encoding = instruction.encoding;
  return {
    mnemonic: instruction.mnemonic,
    length: instruction.length,
    operands,
    address: addressOf(instruction),
    isString: instruction.isStringInstruction,
    memorySize: MemorySizeExt.size(instruction.memorySize),
    elementSize: MemorySizeExt.elementSize(instruction.memorySize),
    repeat: instruction.hasRepnePrefix ? "notEqual" : instruction.hasRepPrefix ? "equal" : "none",
    condition: instruction.conditionCode,
    zeroesUpper: encoding !== 0,
    opMask: instruction.opMask === Register.None ? 0 : instruction.opMask - Register.K0,
    zeroing: instruction.zeroingMasking,
    broadcast: instruction.isBroadcast,
    text: instruction.toString(),
  };
}

function operandOf(instruction: Instruction, i: number): Operand | undefined {
  const kind = instruction.opKind(i);
  switch (kind) {
    case OpKind.Register:
      return registerOperand(instruction.opRegister(i));
    case OpKind.Memory:
    case OpKind.MemorySegSI:
    case OpKind.MemorySegESI:
    case OpKind.MemorySegRSI:
    case OpKind.MemoryESDI:
    case OpKind.MemoryESEDI:
    case OpKind.MemoryESRDI:
      return { kind: "memory", size: MemorySizeExt.size(instruction.memorySize) };
    case OpKind.Immediate8:
    case OpKind.Immediate8_2nd:
    case OpKind.Immediate16:
    case OpKind.Immediate32:
    case OpKind.Immediate64:
    case OpKind.Immediate8to16:
    case OpKind.Immediate8to32:
    case OpKind.Immediate8to64:
    case OpKind.Immediate32to64:
      return { kind: "immediate", value: BigInt.asUintN(64, instruction.immediate(i)) };
    default:
      return undefined;
  }
}

function registerOperand(register: Register): Operand | undefined {
  const r: number = register;
  if (r >= Register.XMM0 && r < Register.YMM0) return { kind: "vector", index: r - Register.XMM0, size: 16 };
  if (r >= Register.YMM0 && r < Register.ZMM0) return { kind: "vector", index: r - Register.YMM0, size: 32 };
  if (r >= Register.ZMM0 && r <= Register.ZMM31)
    return { kind: "vector", index: r - Register.ZMM0, size: 64 };
  if (r >= Register.K0 && r <= Register.K7) return { kind: "mask", index: r - Register.K0 };
  if (r >= Register.AH && r <= Register.BH) {
    return { kind: "general", offset: GREG_OF[r - Register.AH]! * 8 + 1, size: 1 };
  }
  const index = generalIndex(r);
  if (index < 0) return undefined;
  const size = r >= Register.RAX ? 8 : r >= Register.EAX ? 4 : r >= Register.AX ? 2 : 1;
  return { kind: "general", offset: GREG_OF[index]! * 8, size };
}

/** 0..15 of any general register but ah, ch, dh and bh; -1 for all others. */
function generalIndex(r: number): number {
  if (r >= Register.RAX && r <= Register.R15) return r - Register.RAX;
  if (r >= Register.EAX && r <= Register.R15D) return r - Register.EAX;
  if (r >= Register.AX && r <= Register.R15W) return r - Register.AX;
  if (r >= Register.AL && r <= Register.BL) return r - Register.AL;
  if (r >= Register.SPL && r <= Register.R15L) return r - Register.SPL + 4;
  return -1;
}

function addressOf(instruction: Instruction): AddressForm {
  const base: number = instruction.memoryBase;
  const index: number = instruction.memoryIndex;
  const ripRelative = base === Register.RIP || base === Register.EIP;
  const segment: number = instruction.memorySegment;
  const narrow =
    (base >= Register.EAX && base <= Register.R15D) ||
    (index >= Register.EAX && index <= Register.R15D) ||
    base === Register.EIP ||
    (base === Register.None && index === Register.None && instruction.memoryDisplSize === 4) ||
    stringAddressIsNarrow(instruction);
  return {
    base: ripRelative ? -1 : generalIndex(base),
    index: generalIndex(index),
    scale: BigInt(instruction.memoryIndexScale),
    displacement: instruction.memoryDisplacement,
    ripRelative,
    bits: narrow ? 32 : 64,
    segment: segment === Register.FS ? "fs" : segment === Register.GS ? "gs" : "none",
  };
}

function stringAddressIsNarrow(instruction: Instruction): boolean {
  for (let i = 0; i < instruction.opCount; i++) {
    const kind = instruction.opKind(i);
    if (kind === OpKind.MemoryESEDI || kind === OpKind.MemorySegESI) return true;
  }
  return false;
}

export { Mnemonic };
