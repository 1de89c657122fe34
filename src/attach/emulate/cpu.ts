/**
 * The state of a trapped thread that an instruction can see or change: the sixteen general registers, rip and rflags
 * in the order of the ucontext of x86-64 Linux (`uc_mcontext.gregs`), the segment bases, and an accessor for
 * vector registers, which are fetched only when an instruction names one. Debug, segment selector and x87 state are
 * left out: no instruction that is emulated touches them.
 */

/** rflags bits, Intel SDM volume 1, 3.4.3. */
export const Flag = { CF: 0x1, PF: 0x4, AF: 0x10, ZF: 0x40, SF: 0x80, DF: 0x400, OF: 0x800 } as const;

/** The status flags an arithmetic instruction defines. */
export const STATUS_FLAGS = Flag.CF | Flag.PF | Flag.AF | Flag.ZF | Flag.SF | Flag.OF;

/** Word of the ucontext's gregs that holds general register 0..15 (rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8…). */
export const GREG_OF: readonly number[] = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];
export const GREG_RIP = 16;
export const GREG_RFLAGS = 17;
/** Words of gregs that the emulator uses: r8 … rip, rflags. */
export const GREG_WORDS = 18;

export const Reg = { rax: 0, rcx: 1, rdx: 2, rbx: 3, rsp: 4, rbp: 5, rsi: 6, rdi: 7 } as const;

/** The vector and mask registers of the thread. A register is 64 bytes (zmm); what the CPU lacks reads as zero. */
export interface VectorState {
  /** Bytes 0 … into.length of vector register `index` (0..31). */
  read(index: number, into: Uint8Array): void;
  /** Sets the low bytes. The rest is kept (legacy SSE) or, with `zeroRest`, cleared (VEX and EVEX). */
  write(index: number, data: Uint8Array, zeroRest: boolean): void;
  /** AVX-512 mask register k0..k7. */
  readMask(index: number): bigint;
  writeMask(index: number, value: bigint): void;
}

/** What the instruction's memory operands reach: device registers and ordinary memory of the program. */
export interface Bus {
  /** One access of exactly `into.length` bytes. Throws `MemoryFault`. */
  read(address: bigint, into: Uint8Array): void;
  /** One access of exactly `data.length` bytes. Throws `MemoryFault`. `data` is only valid during the call. */
  write(address: bigint, data: Uint8Array): void;
  /** A 64-byte non-posted write (ENQCMD); false: the device answered "retry". Throws `MemoryFault`. */
  enqueue(address: bigint, command: Uint8Array): boolean;
  /** Bytes from `address` on, at most to the end of its page, that are ordinary memory; 0 for a device. */
  ordinary(address: bigint): number;
}

/** A memory operand that neither a device nor ordinary memory answers: the program gets its SIGSEGV for it. */
export class MemoryFault extends Error {
  readonly address: bigint;
  readonly writing: boolean;
  constructor(address: bigint, writing: boolean) {
    super(`${writing ? "write to" : "read of"} 0x${address.toString(16)}, which the program cannot access`);
    this.address = address;
    this.writing = writing;
  }
}

export class CpuState {
  /** The first eighteen words of gregs. */
  readonly words = new BigUint64Array(GREG_WORDS);
  readonly bytes = new Uint8Array(this.words.buffer);
  fsBase = 0n;
  gsBase = 0n;
  vectors: VectorState;
  private readonly saved = new BigUint64Array(GREG_WORDS);

  constructor(vectors: VectorState) {
    this.vectors = vectors;
  }

  /** Remembers the registers for `restore`. */
  save(): void {
    this.saved.set(this.words);
  }
  restore(): void {
    this.words.set(this.saved);
  }

  get rip(): bigint {
    return this.words[GREG_RIP]!;
  }
  set rip(value: bigint) {
    this.words[GREG_RIP] = value;
  }

  /** General register 0..15, all 64 bits. */
  general(register: number): bigint {
    return this.words[GREG_OF[register]!]!;
  }
  setGeneral(register: number, value: bigint): void {
    this.words[GREG_OF[register]!] = value;
  }

  get flags(): number {
    return Number(this.words[GREG_RFLAGS]! & 0xffff_ffffn);
  }
  /** Replaces the flags in `mask` by those of `value`. */
  setFlags(mask: number, value: number): void {
    this.words[GREG_RFLAGS] = BigInt((this.flags & ~mask) | (value & mask));
  }
}
