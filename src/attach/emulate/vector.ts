/**
 * SSE, AVX and AVX-512 instructions with a memory operand: moves of every kind, broadcasts, inserts and extracts of
 * 128-bit lanes, and the byte-wise comparisons that string functions of C libraries make straight from memory (Intel
 * SDM volume 2). A move is one access of its full width. With an opmask, each run of enabled elements is one access.
 * Left out: most arithmetic on packed numbers, gathers and scatters, maskmov, MMX.
 */
import { Flag, STATUS_FLAGS } from "./cpu.ts";
import { Mnemonic } from "./decode.ts";
import type { Execution } from "./execution.ts";
import type { Executor } from "./integer.ts";

const isMemory = (e: Execution, i: number): boolean => e.operand(i).kind === "memory";

/** Whole-register load or store, optionally masked. */
function move(e: Execution): void {
  if (e.decoded.opMask !== 0) masked(e);
  else e.storeBytes(0, e.loadBytes(1, e.decoded.memorySize));
}

/** Runs [from, to) of enabled elements. */
function* enabledRuns(mask: bigint, elements: number): Generator<readonly [number, number]> {
  for (let i = 0; i < elements; i++) {
    if (((mask >> BigInt(i)) & 1n) === 0n) continue;
    const from = i;
    while (i < elements && ((mask >> BigInt(i)) & 1n) === 1n) i++;
    yield [from, i];
  }
}

function masked(e: Execution): void {
  const { memorySize, elementSize, opMask, zeroing } = e.decoded;
  const mask = e.cpu.vectors.readMask(opMask);
  const address = e.address();
  const elements = memorySize / elementSize;
  const loading = isMemory(e, 1);
  const bytes = zeroing && loading ? new Uint8Array(memorySize) : e.loadBytes(loading ? 0 : 1, memorySize);
  for (const [from, to] of enabledRuns(mask, elements)) {
    const piece = bytes.subarray(from * elementSize, to * elementSize);
    const at = address + BigInt(from * elementSize);
    if (loading) e.bus.read(at, piece);
    else e.bus.write(at, piece);
  }
  if (loading) e.storeBytes(0, bytes);
}

/** movd, movq, movss, movsd: a load clears the rest of the xmm register, a store writes the low part. */
function moveScalar(e: Execution): void {
  const { memorySize } = e.decoded;
  if (isMemory(e, 0)) {
    e.storeBytes(0, e.loadBytes(1, memorySize));
    return;
  }
  const bytes = new Uint8Array(16);
  bytes.set(e.loadBytes(1, memorySize));
  e.storeBytes(0, bytes);
}

/** movlps, movhps and kin: half of an xmm register; the VEX form takes the other half from operand 1. */
function moveHalf(high: boolean): Executor {
  return (e) => {
    if (isMemory(e, 0)) {
      const whole = e.loadBytes(1, 16);
      e.storeBytes(0, whole.subarray(high ? 8 : 0, high ? 16 : 8));
      return;
    }
    const last = e.decoded.operands.length - 1;
    const half = e.loadBytes(last, 8);
    const whole = e.loadBytes(last === 2 ? 1 : 0, 16);
    whole.set(half, high ? 8 : 0);
    e.storeBytes(0, whole);
  };
}

/** movddup: the even quadwords of the source, each twice. Of an xmm's source only the first 8 bytes are read. */
function moveDouble(e: Execution): void {
  const source = e.loadBytes(1, e.decoded.memorySize);
  const bytes = new Uint8Array(e.size(0));
  for (let at = 0; at < bytes.length; at += 16) {
    bytes.set(source.subarray(at, at + 8), at);
    bytes.set(source.subarray(at, at + 8), at + 8);
  }
  e.storeBytes(0, bytes);
}

/** vbroadcast, vpbroadcast: the memory operand repeated over the register. */
function broadcast(e: Execution): void {
  const piece = e.loadBytes(1, e.decoded.memorySize);
  const bytes = new Uint8Array(e.size(0));
  for (let at = 0; at < bytes.length; at += piece.length) bytes.set(piece, at);
  e.storeBytes(0, bytes);
}

/** vextractf128 and kin to memory. */
function extractLane(e: Execution): void {
  const { memorySize } = e.decoded;
  const source = e.operand(1);
  const lanes = source.kind === "vector" ? source.size / memorySize : 1;
  const lane = lowImmediate(e, 2) & (lanes - 1);
  const whole = e.loadBytes(1, lanes * memorySize);
  e.storeBytes(0, whole.subarray(lane * memorySize, (lane + 1) * memorySize));
}

/** vinsertf128 and kin from memory. */
function insertLane(e: Execution): void {
  const { memorySize } = e.decoded;
  const whole = e.loadBytes(1, e.size(0));
  const lane = lowImmediate(e, 3) & (whole.length / memorySize - 1);
  whole.set(e.loadBytes(2, memorySize), lane * memorySize);
  e.storeBytes(0, whole);
}

/** pextrb … pextrq: one element of an xmm register to memory. */
function extractElement(e: Execution): void {
  const { memorySize } = e.decoded;
  const element = lowImmediate(e, 2) & (16 / memorySize - 1);
  e.storeBytes(0, e.loadBytes(1, 16).subarray(element * memorySize, (element + 1) * memorySize));
}

/** pinsrb … pinsrq: one element of an xmm register from memory. */
function insertElement(e: Execution): void {
  const { memorySize } = e.decoded;
  const memory = e.decoded.operands.findIndex((operand) => operand.kind === "memory");
  const whole = e.loadBytes(memory === 2 ? 1 : 0, 16);
  const element = lowImmediate(e, memory + 1) & (16 / memorySize - 1);
  whole.set(e.loadBytes(memory, memorySize), element * memorySize);
  e.storeBytes(0, whole);
}

function lowImmediate(e: Execution, i: number): number {
  const operand = e.operand(i);
  return operand.kind === "immediate" ? Number(operand.value & 0xffn) : 0;
}

/** A lane-wise operation of two vectors; the legacy form has operand 0 as its first source. */
function combine(lane: number, operation: (a: Uint8Array, b: Uint8Array, at: number) => void): Executor {
  return (e) => {
    const three = e.decoded.operands.length === 3;
    const size = e.size(0);
    const b = e.loadBytes(three ? 2 : 1, size);
    const a = e.loadBytes(three ? 1 : 0, size);
    for (let at = 0; at < size; at += lane) operation(a, b, at);
    e.storeBytes(0, a);
  };
}

function compareEqual(lane: number): Executor {
  return combine(lane, (a, b, at) => {
    let equal = true;
    for (let i = at; i < at + lane; i++) equal &&= a[i] === b[i];
    a.fill(equal ? 0xff : 0, at, at + lane);
  });
}

const bytewise = (operation: (a: number, b: number) => number): Executor =>
  combine(1, (a, b, at) => {
    a[at] = operation(a[at]!, b[at]!);
  });

/** ptest: ZF when the operands share no bit, CF when the source has none outside the destination. */
function testBits(e: Execution): void {
  const size = e.size(0);
  const b = e.loadBytes(1, size);
  const a = e.loadBytes(0, size);
  let shared = 0;
  let outside = 0;
  for (let i = 0; i < size; i++) {
    shared |= a[i]! & b[i]!;
    outside |= ~a[i]! & b[i]!;
  }
  e.cpu.setFlags(STATUS_FLAGS, (shared === 0 ? Flag.ZF : 0) | (outside === 0 ? Flag.CF : 0));
}

/** AVX-512 comparison into a mask register; predicates 0..7: eq, lt, le, false, ne, ge, gt, true. */
function compareIntoMask(signed: boolean, predicate?: number): Executor {
  return (e) => {
    const { memorySize, elementSize, opMask } = e.decoded;
    const b = e.loadBytes(2, memorySize);
    const a = e.loadBytes(1, memorySize);
    const wanted = predicate ?? lowImmediate(e, 3) & 7;
    let mask = 0n;
    for (let i = 0; i < memorySize / elementSize; i++) {
      const order = compareLane(a, b, i * elementSize, elementSize, signed);
      if (predicateHolds(wanted, order)) mask |= 1n << BigInt(i);
    }
    const target = e.operand(0);
    if (target.kind !== "mask") throw new RangeError(`${e.decoded.text}: operand 0 is not a mask`);
    e.cpu.vectors.writeMask(target.index, opMask === 0 ? mask : mask & e.cpu.vectors.readMask(opMask));
  };
}

/** Less than, equal to or greater than zero, as lane a is to lane b. */
function compareLane(a: Uint8Array, b: Uint8Array, at: number, size: number, signed: boolean): number {
  const flip = signed ? 0x80 : 0;
  const top = at + size - 1;
  if (a[top] !== b[top]) return (a[top]! ^ flip) - (b[top]! ^ flip);
  for (let i = top - 1; i >= at; i--) if (a[i] !== b[i]) return a[i]! - b[i]!;
  return 0;
}

const predicateHolds = (predicate: number, order: number): boolean =>
  [order === 0, order < 0, order <= 0, false, order !== 0, order >= 0, order > 0, true][predicate]!;

type Name = keyof typeof Mnemonic;

function named(names: string, executor: Executor): (readonly [Mnemonic, Executor])[] {
  return names
    .trim()
    .split(/\s+/)
    .map((name) => [Mnemonic[name as Name], executor] as const);
}

const MOVES = `Movups Movupd Movaps Movapd Movdqu Movdqa Movntps Movntpd Movntdq Movntdqa Lddqu
  Vmovups Vmovupd Vmovaps Vmovapd Vmovdqu Vmovdqa Vmovntps Vmovntpd Vmovntdq Vmovntdqa Vlddqu
  Vmovdqu8 Vmovdqu16 Vmovdqu32 Vmovdqu64 Vmovdqa32 Vmovdqa64`;

/** Instructions whose destination is a mask register. Some names are also those of forms without masks. */
export const INTO_MASK: ReadonlyMap<Mnemonic, Executor> = new Map<Mnemonic, Executor>([
  ...named("Vpcmpub Vpcmpuw Vpcmpud Vpcmpuq", compareIntoMask(false)),
  ...named("Vpcmpb Vpcmpw Vpcmpd Vpcmpq", compareIntoMask(true)),
  ...named("Vpcmpeqb Vpcmpeqw Vpcmpeqd Vpcmpeqq", compareIntoMask(false, 0)),
  ...named("Vpcmpgtb Vpcmpgtw Vpcmpgtd Vpcmpgtq", compareIntoMask(true, 6)),
]);

/** Instructions that may carry an opmask; everything else with one is refused. */
export const MASKABLE: ReadonlySet<Mnemonic> = new Set([
  ...named(MOVES, move).map(([mnemonic]) => mnemonic),
  ...INTO_MASK.keys(),
]);

export const VECTOR: ReadonlyMap<Mnemonic, Executor> = new Map<Mnemonic, Executor>([
  ...named(MOVES, move),
  ...named("Movd Movq Movss Movsd Vmovd Vmovq Vmovss Vmovsd Movntss Movntsd", moveScalar),
  ...named("Movlps Movlpd Vmovlps Vmovlpd", moveHalf(false)),
  ...named("Movhps Movhpd Vmovhps Vmovhpd", moveHalf(true)),
  ...named("Vbroadcastss Vbroadcastsd Vbroadcastf128 Vbroadcasti128", broadcast),
  ...named("Movddup Vmovddup", moveDouble),
  ...named("Vpbroadcastb Vpbroadcastw Vpbroadcastd Vpbroadcastq", broadcast),
  ...named("Vextractf128 Vextracti128", extractLane),
  ...named("Vinsertf128 Vinserti128", insertLane),
  ...named("Pextrb Pextrw Pextrd Pextrq Vpextrb Vpextrw Vpextrd Vpextrq", extractElement),
  ...named("Pinsrb Pinsrw Pinsrd Pinsrq Vpinsrb Vpinsrw Vpinsrd Vpinsrq", insertElement),
  ...named("Pcmpeqb Vpcmpeqb", compareEqual(1)),
  ...named("Pcmpeqw Vpcmpeqw", compareEqual(2)),
  ...named("Pcmpeqd Vpcmpeqd", compareEqual(4)),
  ...named("Pcmpeqq Vpcmpeqq", compareEqual(8)),
  ...named(
    "Pand Vpand Andps Andpd Vandps Vandpd",
    bytewise((a, b) => a & b),
  ),
  ...named(
    "Pandn Vpandn Andnps Andnpd Vandnps Vandnpd",
    bytewise((a, b) => ~a & b),
  ),
  ...named(
    "Por Vpor Orps Orpd Vorps Vorpd",
    bytewise((a, b) => a | b),
  ),
  ...named(
    "Pxor Vpxor Xorps Xorpd Vxorps Vxorpd",
    bytewise((a, b) => a ^ b),
  ),
  ...named("Pminub Vpminub", bytewise(Math.min)),
  ...named("Pmaxub Vpmaxub", bytewise(Math.max)),
  ...named(
    "Paddb Vpaddb",
    bytewise((a, b) => a + b),
  ),
  ...named(
    "Psubb Vpsubb",
    bytewise((a, b) => a - b),
  ),
  ...named(
    "Psubusb Vpsubusb",
    bytewise((a, b) => Math.max(0, a - b)),
  ),
  ...named("Ptest Vptest", testBits),
]);
