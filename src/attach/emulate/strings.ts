/**
 * String instructions movs, stos, lods, cmps and scas, with and without a repeat prefix (Intel SDM volume 2, REP).
 * A device sees one access an element. Ordinary memory on the other side is fetched and stored a page at a time. At
 * most CHUNK elements are done at once; the registers then tell how far it came, rip stays, and executing the
 * instruction again continues: as the real one does after an interrupt.
 */
import { Flag, MemoryFault, Reg, STATUS_FLAGS } from "./cpu.ts";
import { Mnemonic } from "./decode.ts";
import type { Execution } from "./execution.ts";
import { subtract } from "./flags.ts";

/** Elements done for one trap: bounds the time one program can hold the daemon. */
export const CHUNK = 4096;

/** True: the instruction is complete; false: it has to be executed again. */
export type StringExecutor = (e: Execution) => boolean;

/** The source and destination pointers of one repeated instruction, and how many elements are left. */
class Position {
  readonly e: Execution;
  readonly size: number;
  readonly step: bigint;
  private readonly bits: number;
  /** The last comparison ended the repetition. */
  ended = false;

  constructor(e: Execution) {
    this.e = e;
    this.size = e.decoded.memorySize;
    this.bits = e.decoded.address.bits;
    this.step = BigInt(e.cpu.flags & Flag.DF ? -this.size : this.size);
  }

  /** Linear address in rsi: the source, in the instruction's segment. */
  source(): bigint {
    return this.e.linear(this.pointer(Reg.rsi));
  }
  /** Linear address in rdi: always es, whose base is zero. */
  target(): bigint {
    return this.pointer(Reg.rdi);
  }

  private pointer(register: number): bigint {
    return BigInt.asUintN(this.bits, this.e.cpu.general(register));
  }

  advance(register: number, elements: number): void {
    this.set(register, this.pointer(register) + this.step * BigInt(elements));
  }

  private set(register: number, value: bigint): void {
    this.e.cpu.setGeneral(register, BigInt.asUintN(this.bits, value));
  }

  remaining(): bigint {
    return this.e.decoded.repeat === "none" ? 1n : this.pointer(Reg.rcx);
  }

  count(elements: number): void {
    if (this.e.decoded.repeat !== "none") this.set(Reg.rcx, this.pointer(Reg.rcx) - BigInt(elements));
  }
}

/** Whole elements of ordinary memory from `address` on that may be moved in one piece, at least 1 and at most `limit`. */
function run(position: Position, address: bigint, limit: number): number {
  if (position.step < 0n) return 1;
  const elements = Math.floor(position.e.bus.ordinary(address) / position.size);
  return Math.max(1, Math.min(elements, limit));
}

/**
 * Repeats `step` until rcx is zero or CHUNK elements are done. A fault after some progress leaves the progress in the
 * registers; the next execution meets the fault at once.
 */
function repeat(e: Execution, step: (position: Position, limit: number) => number): boolean {
  const position = new Position(e);
  let done = 0;
  while (done < CHUNK) {
    const remaining = position.remaining();
    if (remaining === 0n) return true;
    const limit = remaining > BigInt(CHUNK - done) ? CHUNK - done : Number(remaining);
    try {
      const elements = step(position, limit);
      done += elements;
      position.count(elements);
    } catch (fault) {
      if (fault instanceof MemoryFault && done > 0) return false;
      throw fault;
    }
    if (e.decoded.repeat === "none" || position.ended) return true;
  }
  return position.remaining() === 0n;
}

const element = new Uint8Array(8);

function moveString(e: Execution): boolean {
  return repeat(e, (position, limit) => {
    const { size } = position;
    const source = position.source();
    const target = position.target();
    let elements = 1;
    if (e.bus.ordinary(source) >= size)
      elements = fromMemory(position, source, target, run(position, source, limit));
    else if (e.bus.ordinary(target) >= size)
      elements = toMemory(position, source, target, run(position, target, limit));
    else {
      const bytes = element.subarray(0, size);
      e.bus.read(source, bytes);
      e.bus.write(target, bytes);
    }
    position.advance(Reg.rsi, elements);
    position.advance(Reg.rdi, elements);
    return elements;
  });
}

function fromMemory(position: Position, source: bigint, target: bigint, elements: number): number {
  const { e, size } = position;
  const bytes = new Uint8Array(elements * size);
  e.bus.read(source, bytes);
  for (let i = 0; i < elements; i++) {
    try {
      e.bus.write(target + BigInt(i * size), bytes.subarray(i * size, (i + 1) * size));
    } catch (fault) {
      if (fault instanceof MemoryFault && i > 0) return i;
      throw fault;
    }
  }
  return elements;
}

/** The target is probed by writing only after the device was read, so it is first read to see that it is there. */
function toMemory(position: Position, source: bigint, target: bigint, elements: number): number {
  const { e, size } = position;
  const bytes = new Uint8Array(elements * size);
  e.bus.read(target, bytes);
  let done = 0;
  for (; done < elements; done++) {
    try {
      e.bus.read(source + BigInt(done * size), bytes.subarray(done * size, (done + 1) * size));
    } catch (fault) {
      if (fault instanceof MemoryFault && done > 0) break;
      throw fault;
    }
  }
  e.bus.write(target, bytes.subarray(0, done * size));
  return done;
}

function storeString(e: Execution): boolean {
  return repeat(e, (position) => {
    e.storeMemory(position.target(), position.size, e.loadRegister(Reg.rax, position.size));
    position.advance(Reg.rdi, 1);
    return 1;
  });
}

function loadString(e: Execution): boolean {
  return repeat(e, (position) => {
    e.storeRegister(Reg.rax, position.size, e.loadMemory(position.source(), position.size));
    position.advance(Reg.rsi, 1);
    return 1;
  });
}

/** cmps and scas end early: repe when the elements differ, repne when they are equal. */
function compareElements(compare: (position: Position) => number): StringExecutor {
  return (e) =>
    repeat(e, (position) => {
      const flags = compare(position);
      e.cpu.setFlags(STATUS_FLAGS, flags);
      position.ended = e.decoded.repeat === (flags & Flag.ZF ? "notEqual" : "equal");
      return 1;
    });
}

const compareStrings = compareElements((position) => {
  const { e, size } = position;
  const a = e.loadMemory(position.source(), size);
  const b = e.loadMemory(position.target(), size);
  position.advance(Reg.rsi, 1);
  position.advance(Reg.rdi, 1);
  return subtract(a, b, 0n, size).flags;
});

const scanString = compareElements((position) => {
  const { e, size } = position;
  const b = e.loadMemory(position.target(), size);
  position.advance(Reg.rdi, 1);
  return subtract(e.loadRegister(Reg.rax, size), b, 0n, size).flags;
});

const WIDTHS = ["b", "w", "d", "q"] as const;
const each = (name: "Movs" | "Stos" | "Lods" | "Cmps" | "Scas", executor: StringExecutor) =>
  WIDTHS.map((width) => [Mnemonic[`${name}${width}`], executor] as const);

/** SSE2's movsd and cmpsd share their names with the string instructions: `isString` tells them apart. */
export const STRINGS: ReadonlyMap<Mnemonic, StringExecutor> = new Map([
  ...each("Movs", moveString),
  ...each("Stos", storeString),
  ...each("Lods", loadString),
  ...each("Cmps", compareStrings),
  ...each("Scas", scanString),
]);
