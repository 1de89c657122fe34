import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as fc from "fast-check";
import { Decoder, DecoderOptions, RflagsBits } from "iced-x86";
import { beforeAll, describe, expect, it } from "vitest";
import { build, type Case, CODE, FORMS, IMAGE, MEMORY, random } from "./cases.suite.ts";
import { type Bus, CpuState, Flag, GREG_OF, GREG_RFLAGS, GREG_RIP, GREG_WORDS, MemoryFault } from "./cpu.ts";
import { emulate } from "./emulate.ts";

const INPUT = GREG_WORDS * 8 + 512 + IMAGE + 8 + 4 + 20;
const OUTPUT = GREG_WORDS * 8 + 512 + IMAGE + 8;
const SIGILL = 4;

let oracle = "";
beforeAll(() => {
  oracle = join(mkdtempSync(join(tmpdir(), "cpu-oracle-")), "cpu-oracle");
  const source = new URL("cpu-oracle.c", import.meta.url).pathname;
  execFileSync("cc", ["-O1", "-Wall", "-Wextra", "-Werror", "-o", oracle, source]);
});

interface Observed {
  readonly words: BigUint64Array;
  readonly vectors: Uint8Array;
  readonly memory: Uint8Array;
  readonly signal: number;
}

function onTheCpu(cases: readonly Case[]): Observed[] {
  const input = Buffer.alloc(cases.length * INPUT);
  cases.forEach((c, i) => {
    const at = i * INPUT;
    c.registers.forEach((value, r) => {
      input.writeBigUInt64LE(value, at + GREG_OF[r]! * 8);
    });
    input.writeBigUInt64LE(BigInt(CODE), at + GREG_RIP * 8);
    input.writeBigUInt64LE(BigInt(c.flags), at + GREG_RFLAGS * 8);
    input.set(c.vectors, at + 144);
    input.set(c.memory, at + 144 + 512);
    input.writeBigUInt64LE(c.gsBase, at + 144 + 512 + IMAGE);
    input.writeUInt32LE(c.code.length, at + 144 + 512 + IMAGE + 8);
    input.set(c.code, at + 144 + 512 + IMAGE + 12);
  });
  const run = spawnSync(oracle, { input, maxBuffer: cases.length * OUTPUT + 1 });
  if (run.stdout.length !== cases.length * OUTPUT)
    throw new Error(`the oracle ended early: ${run.signal} ${run.stderr}`);
  return cases.map((_, i) => {
    const bytes = new Uint8Array(run.stdout.subarray(i * OUTPUT, (i + 1) * OUTPUT));
    return {
      words: new BigUint64Array(bytes.buffer, 0, GREG_WORDS),
      vectors: bytes.subarray(144, 144 + 512),
      memory: bytes.subarray(656, 656 + IMAGE),
      signal: Number(new DataView(bytes.buffer).getBigUint64(656 + IMAGE, true)),
    };
  });
}

/** Ordinary memory of the oracle's kind; `device` makes all of it look like a device to string instructions. */
class Flat implements Bus {
  readonly memory: Uint8Array;
  readonly page = new Uint8Array(4096);
  readonly device: (address: number) => boolean;
  readonly accesses: string[] = [];
  retry = false;

  constructor(memory: Uint8Array, device: (address: number) => boolean = () => true) {
    this.memory = memory;
    this.page.set(memory);
    this.device = device;
  }
  private at(address: bigint, length: number, writing: boolean): number {
    const at = Number(address) - MEMORY;
    if (!(at >= 0 && at + length <= 4096)) throw new MemoryFault(address, writing);
    return at;
  }
  read(address: bigint, into: Uint8Array): void {
    const at = this.at(address, into.length, false);
    into.set(this.page.subarray(at, at + into.length));
    if (this.device(at + MEMORY)) this.accesses.push(`r${into.length}@${at}`);
  }
  write(address: bigint, data: Uint8Array): void {
    const at = this.at(address, data.length, true);
    this.page.set(data, at);
    if (this.device(at + MEMORY)) this.accesses.push(`w${data.length}@${at}`);
  }
  enqueue(address: bigint, command: Uint8Array): boolean {
    this.write(address, command);
    return !this.retry;
  }
  ordinary(address: bigint): number {
    return this.device(Number(address)) ? 0 : 4096 - (Number(address) & 4095);
  }
}

class Vectors {
  readonly bytes = new Uint8Array(32 * 64);
  masks: bigint[] = [];
  read(index: number, into: Uint8Array): void {
    into.set(this.bytes.subarray(index * 64, index * 64 + into.length));
  }
  write(index: number, data: Uint8Array, zeroRest: boolean): void {
    if (zeroRest) this.bytes.fill(0, index * 64, index * 64 + 64);
    this.bytes.set(data, index * 64);
  }
  readMask(index: number): bigint {
    return this.masks[index] ?? 0n;
  }
}

function emulated(c: Case, device?: (address: number) => boolean) {
  const vectors = new Vectors();
  for (let i = 0; i < 16; i++) vectors.bytes.set(c.vectors.subarray(i * 32, i * 32 + 32), i * 64);
  const cpu = new CpuState(vectors);
  c.registers.forEach((value, r) => {
    cpu.setGeneral(r, value);
  });
  cpu.rip = BigInt(CODE);
  cpu.words[GREG_RFLAGS] = BigInt(c.flags);
  cpu.gsBase = c.gsBase;
  const bus = new Flat(c.memory, device);
  const outcome = emulate(cpu, c.code, bus);
  const ymm = new Uint8Array(512);
  for (let i = 0; i < 16; i++) ymm.set(vectors.bytes.subarray(i * 64, i * 64 + 32), i * 32);
  return { cpu, bus, outcome, ymm };
}

const describeCase = (c: Case): string =>
  `${c.form.name}: ${Buffer.from(c.code).toString("hex")} (${mnemonic(c.code).text})`;

function mnemonic(code: Uint8Array): { text: string; undefinedFlags: number } {
  const decoder = new Decoder(64, code, DecoderOptions.None);
  const instruction = decoder.decode();
  const bits = instruction.rflagsUndefined;
  const undefinedFlags =
    (bits & RflagsBits.OF ? Flag.OF : 0) |
    (bits & RflagsBits.SF ? Flag.SF : 0) |
    (bits & RflagsBits.ZF ? Flag.ZF : 0) |
    (bits & RflagsBits.AF ? Flag.AF : 0) |
    (bits & RflagsBits.CF ? Flag.CF : 0) |
    (bits & RflagsBits.PF ? Flag.PF : 0);
  const text = instruction.toString();
  instruction.free();
  decoder.free();
  return { text, undefinedFlags };
}

/** Random bit offsets reach the oracle's own code, which the emulator's memory does not have. */
const inCodePage = (address = 0n): boolean => address >> 12n === BigInt(CODE) >> 12n;

/** Empty when both agree, else what differs. */
function difference(c: Case, real: Observed): string {
  const { cpu, bus, outcome, ymm } = emulated(c);
  if (outcome.kind === "refused" && inCodePage(outcome.address)) return "";
  if (outcome.kind === "refused") return real.signal === 0 ? `refused: ${outcome.reason}` : "";
  if (real.signal !== 0) return `the CPU raised signal ${real.signal}`;
  const differences: string[] = [];
  const { undefinedFlags } = mnemonic(c.code);
  for (let i = 0; i < GREG_WORDS; i++) {
    const mask = i === GREG_RFLAGS ? BigInt(0xcd5 & ~undefinedFlags) : ~0n;
    if ((cpu.words[i]! & mask) !== (real.words[i]! & mask)) {
      differences.push(`greg ${i} is 0x${cpu.words[i]!.toString(16)}, not 0x${real.words[i]!.toString(16)}`);
    }
  }
  if (Buffer.compare(ymm, real.vectors) !== 0) differences.push("vector registers differ");
  if (Buffer.compare(bus.page.subarray(0, IMAGE), real.memory) !== 0) differences.push("memory differs");
  return differences.join("; ");
}

describe("an emulated instruction", () => {
  it("does to registers, flags and memory what the CPU does, in every form", () => {
    const property = fc.property(fc.integer(), (seed) => {
      const cases = FORMS.flatMap((form, i) => [0, 1, 2].map((n) => build(form, random(seed + i * 3 + n))));
      const real = onTheCpu(cases);
      const wrong = cases.flatMap((c, i) => {
        if (real[i]!.signal === SIGILL) return [];
        const text = difference(c, real[i]!);
        return text === "" ? [] : [`${describeCase(c)}: ${text}`];
      });
      expect(wrong).toEqual([]);
      const ran = real.filter((observed) => observed.signal === 0).length;
      expect(ran).toBeGreaterThan(cases.length * 0.8);
    });
    fc.assert(property, { numRuns: 12, endOnFailure: true });
  });
});
