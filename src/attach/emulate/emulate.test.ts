import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as fc from "fast-check";
import { Decoder, DecoderOptions, RflagsBits } from "iced-x86";
import { beforeAll, describe, expect, it } from "vitest";
import { build, type Case, CODE, FORMS, IMAGE, MEMORY, random } from "./cases.suite.ts";
import {
  type Bus,
  CpuState,
  Flag,
  GREG_OF,
  GREG_RFLAGS,
  GREG_RIP,
  GREG_WORDS,
  MemoryFault,
  Reg,
} from "./cpu.ts";
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
  writeMask(index: number, value: bigint): void {
    this.masks[index] = value;
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

  it("is one device access of its full width, or a read and a write", () => {
    const target = MEMORY + 64;
    const table: readonly (readonly [string, readonly string[]])[] = [
      ["8907", ["w4@64"]],
      ["488b07", ["r8@64"]],
      ["0f1007", ["r16@64"]],
      ["c5fe7f0f", ["w32@64"]],
      ["62e1fe486f27", ["r64@64"]],
      ["0107", ["r4@64", "w4@64"]],
      ["f00fb10f", ["r4@64", "w4@64"]],
      ["f0480fc10f", ["r8@64", "w8@64"]],
      ["3907", ["r4@64"]],
      ["0fba2703", ["r4@64"]],
      ["0fae3f", []],
      ["480f38f907", ["w8@64"]],
    ];
    for (const [code, accesses] of table) {
      const { outcome, bus } = one(code, { rdi: target });
      expect([code, outcome.kind, bus.accesses]).toEqual([code, "done", accesses]);
    }
  });

  it("MOVDIR64B and ENQCMD write 64 bytes at once; ENQCMD tells in ZF that the device wants a retry", () => {
    for (const [code, retry, zero] of [
      ["660f38f802", false, false],
      ["f20f38f802", false, false],
      ["f20f38f802", true, true],
    ] as const) {
      const { outcome, bus, cpu } = one(code, { rax: MEMORY + 128, rdx: MEMORY }, { retry });
      expect(outcome.kind).toBe("done");
      expect(bus.accesses).toEqual(["r64@0", "w64@128"]);
      expect((cpu.flags & Flag.ZF) !== 0).toBe(zero);
    }
  });

  it("with an opmask accesses the enabled elements only, a run at a time", () => {
    const masks = [0n, 0b1011_0110n];
    const store = one("62e17f297f0f", { rdi: MEMORY }, { masks });
    expect(store.bus.accesses).toEqual(["w2@1", "w2@4", "w1@7"]);
    const zeroing = one("62e17fa96f17", { rdi: MEMORY }, { masks });
    expect(zeroing.bus.accesses).toEqual(["r2@1", "r2@4", "r1@7"]);
    expect([...zeroing.vectors.bytes.subarray(18 * 64, 18 * 64 + 9)]).toEqual([0, 1, 2, 0, 4, 5, 0, 7, 0]);
    const merging = one("62e17f296f17", { rdi: MEMORY }, { masks, fill: 0xaa });
    expect([...merging.vectors.bytes.subarray(18 * 64, 18 * 64 + 4)]).toEqual([0xaa, 1, 2, 0xaa]);
  });

  it("compares with memory into a mask register", () => {
    const same = one("62f375203e0f00", { rdi: MEMORY });
    expect(same.outcome.kind).toBe("done");
    expect(same.vectors.masks[1]).toBe(0b1n);
    const differ = one("62f375203e0f04", { rdi: MEMORY });
    expect(differ.vectors.masks[1]).toBe(0xffff_fffen);
  });

  it("is refused, and changes nothing, when it is not a memory access that is known", () => {
    for (const code of [
      "ff17",
      "ff27",
      "dd07",
      "c4e265920c17",
      "62f16d58db0f",
      "0f6f07",
      "f737",
      "0f0b",
      "06",
    ]) {
      const { outcome, bus, cpu } = one(code, { rdi: MEMORY });
      expect([code, outcome.kind]).toEqual([code, "refused"]);
      expect(bus.accesses).toEqual([]);
      expect(cpu.rip).toBe(BigInt(CODE));
    }
    expect(one("dd07", { rdi: MEMORY }).outcome).toMatchObject({ reason: expect.stringContaining("fld") });
  });

  it("is refused with the address of the operand that the program cannot access, and changes nothing", () => {
    const { outcome, cpu } = one("48a5", { rsi: MEMORY, rdi: 0x1234 });
    expect(outcome).toMatchObject({ kind: "refused", address: 0x1234n });
    expect(cpu.general(6)).toBe(BigInt(MEMORY));
  });

  it("that repeats stops after a bounded number of elements and continues when it is executed again", () => {
    const bus = new Flat(new Uint8Array(IMAGE));
    const cpu = new CpuState(new Vectors());
    cpu.setGeneral(7, BigInt(MEMORY));
    cpu.setGeneral(1, 1n << 40n);
    cpu.rip = BigInt(CODE);
    const stos = Uint8Array.of(0xf3, 0xaa);
    expect(emulate(cpu, stos, bus).kind).toBe("done");
    expect([cpu.general(7), cpu.general(1)]).toEqual([BigInt(MEMORY + 4096), (1n << 40n) - 4096n]);
    expect(cpu.rip).toBe(BigInt(CODE));
    expect(emulate(cpu, stos, bus)).toMatchObject({ kind: "refused", address: BigInt(MEMORY + 4096) });
    expect(cpu.general(7)).toBe(BigInt(MEMORY + 4096));
  });

  it("that repeats keeps the progress made before an element faults", () => {
    const { outcome, cpu } = one("f348ab", { rdi: MEMORY + 4096 - 20, rcx: 5 });
    expect(outcome.kind).toBe("done");
    expect([cpu.general(1), cpu.rip]).toEqual([3n, BigInt(CODE)]);
  });

  it("gives string moves the same result whichever side is ordinary memory", () => {
    const property = fc.property(fc.integer(), fc.integer({ min: 0, max: 1024 }), (seed, border) => {
      const form = FORMS.filter(({ string }) => string)[Math.abs(seed) % 10]!;
      const c = build(form, random(seed));
      const device = emulated(c);
      for (const side of [1, -1]) {
        const mixed = emulated(c, (address) => (address - MEMORY - border) * side >= 0);
        if (overlaps(c)) continue;
        expect(Buffer.compare(mixed.bus.page, device.bus.page)).toBe(0);
        expect(mixed.cpu.words).toEqual(device.cpu.words);
      }
    });
    fc.assert(property, { numRuns: 500 });
  });

  it("never ends in anything but an outcome, whatever the bytes and registers", () => {
    const bytes = fc.uint8Array({ minLength: 0, maxLength: 15 });
    const registers = fc.array(fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }), {
      minLength: 16,
      maxLength: 16,
    });
    const property = fc.property(bytes, registers, fc.boolean(), (code, values, near) => {
      const cpu = new CpuState(new Vectors());
      values.forEach((value, i) => {
        cpu.setGeneral(i, near ? BigInt(MEMORY) + (value & 0xfffn) : value);
      });
      cpu.rip = BigInt(CODE);
      expect(["done", "refused"]).toContain(emulate(cpu, code, new Flat(new Uint8Array(IMAGE))).kind);
    });
    fc.assert(property, { numRuns: 5000 });
  });

  it("is decoded anew when its bytes change at the same address", () => {
    expect(one("8907", { rdi: MEMORY }).bus.accesses).toEqual(["w4@0"]);
    expect(one("8807", { rdi: MEMORY }).bus.accesses).toEqual(["w1@0"]);
    expect(one("668907", { rdi: MEMORY }).bus.accesses).toEqual(["w2@0"]);
  });
});

/** Source and target of a string move share bytes: then pages and elements may differ in order. */
function overlaps(c: Case): boolean {
  return Math.abs(Number(BigInt.asIntN(64, c.registers[6]! - c.registers[7]!))) < 24 * 8;
}

interface Setting {
  readonly retry?: boolean;
  readonly masks?: bigint[];
  readonly fill?: number;
}

/** Executes one instruction, all of whose memory is a device that holds 0, 1, 2, … */
function one(code: string, registers: Partial<Record<keyof typeof Reg, number>>, setting: Setting = {}) {
  const vectors = new Vectors();
  vectors.masks = setting.masks ?? [];
  vectors.bytes.fill(setting.fill ?? 0);
  const cpu = new CpuState(vectors);
  for (const [name, value] of Object.entries(registers))
    cpu.setGeneral(Reg[name as keyof typeof Reg], BigInt(value));
  cpu.rip = BigInt(CODE);
  const bus = new Flat(Uint8Array.from({ length: IMAGE }, (_, i) => i & 255));
  bus.retry = setting.retry ?? false;
  const outcome = emulate(cpu, Uint8Array.from(Buffer.from(code, "hex")), bus);
  return { cpu, bus, outcome, vectors };
}
