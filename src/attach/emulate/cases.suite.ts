/**
 * Random instructions for comparing the emulator with the CPU: a table of opcode forms, and a generator that
 * completes one with prefixes, a memory operand of any addressing form, and registers that make it point into the
 * memory of cpu-oracle.c.
 */

export const MEMORY = 0x1000_0000;
export const IMAGE = 1024;
export const CODE = 0x2000_0000;

/** A small seeded generator (mulberry32): a case is named by its seed. */
export function random(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (t ^ (t >>> 14)) >>> 0;
  };
}

export interface Form {
  readonly name: string;
  /** Mandatory prefix 66, F2 or F3. */
  readonly pp?: number;
  /** Opcode bytes; for VEX the last one only, the map comes from `map`. */
  readonly opcode: readonly number[];
  /** ModRM.reg: a number for /digit, -1 for any register, undefined: no ModRM. */
  readonly reg?: number;
  readonly imm?: 0 | 1 | "z";
  readonly operandSize?: boolean;
  readonly wide?: boolean;
  readonly lock?: boolean;
  readonly vex?: {
    readonly map: number;
    readonly l: readonly number[];
    readonly nds: boolean;
    readonly w?: boolean;
  };
  readonly align?: number;
  readonly string?: boolean;
  readonly moffs?: boolean;
  readonly stack?: boolean;
}

const INT = { operandSize: true, wide: true } as const;
const forms: Form[] = [];
const rm = (name: string, opcode: readonly number[], extra: Partial<Form> = {}): void => {
  forms.push({ name, opcode, reg: -1, ...extra });
};

rm("mov8 store", [0x88]);
rm("mov8 load", [0x8a]);
rm("mov store", [0x89], INT);
rm("mov load", [0x8b], INT);
rm("mov8 imm", [0xc6], { reg: 0, imm: 1 });
rm("mov imm", [0xc7], { ...INT, reg: 0, imm: "z" });
for (const op of [0xb6, 0xb7, 0xbe, 0xbf]) rm(`movx 0f ${op.toString(16)}`, [0x0f, op], INT);
rm("movsxd", [0x63], INT);
rm("movbe load", [0x0f, 0x38, 0xf0], INT);
rm("movbe store", [0x0f, 0x38, 0xf1], INT);
rm("movnti", [0x0f, 0xc3], { wide: true });
for (let op = 0xa0; op <= 0xa3; op++) {
  forms.push({ name: `moffs ${op.toString(16)}`, opcode: [op], moffs: true, ...(op & 1 ? INT : {}) });
}
for (let k = 0; k < 8; k++) {
  const lock = k !== 7;
  rm(`alu${k} rm8`, [k * 8], { lock });
  rm(`alu${k} rm`, [k * 8 + 1], { ...INT, lock });
  rm(`alu${k} r8`, [k * 8 + 2]);
  rm(`alu${k} r`, [k * 8 + 3], INT);
  rm(`alu${k} rm8 i8`, [0x80], { reg: k, imm: 1, lock });
  rm(`alu${k} rm iz`, [0x81], { ...INT, reg: k, imm: "z", lock });
  rm(`alu${k} rm i8`, [0x83], { ...INT, reg: k, imm: 1, lock });
}
rm("test8", [0x84]);
rm("test", [0x85], INT);
rm("test8 imm", [0xf6], { reg: 0, imm: 1 });
rm("test imm", [0xf7], { ...INT, reg: 0, imm: "z" });
for (const [digit, name] of [
  [2, "not"],
  [3, "neg"],
] as const) {
  rm(`${name}8`, [0xf6], { reg: digit, lock: true });
  rm(name, [0xf7], { ...INT, reg: digit, lock: true });
}
for (const digit of [0, 1]) {
  rm(`incdec8 ${digit}`, [0xfe], { reg: digit, lock: true });
  rm(`incdec ${digit}`, [0xff], { ...INT, reg: digit, lock: true });
}
rm("push", [0xff], { reg: 6, operandSize: true, stack: true });
rm("pop", [0x8f], { reg: 0, operandSize: true, stack: true });
rm("xchg8", [0x86], { lock: true });
rm("xchg", [0x87], { ...INT, lock: true });
rm("xadd8", [0x0f, 0xc0], { lock: true });
rm("xadd", [0x0f, 0xc1], { ...INT, lock: true });
rm("cmpxchg8", [0x0f, 0xb0], { lock: true });
rm("cmpxchg", [0x0f, 0xb1], { ...INT, lock: true });
rm("cmpxchg8b/16b", [0x0f, 0xc7], { reg: 1, wide: true, lock: true, align: 16 });
rm("bt", [0x0f, 0xa3], INT);
for (const op of [0xab, 0xb3, 0xbb]) rm(`bit ${op.toString(16)}`, [0x0f, op], { ...INT, lock: true });
rm("bt imm", [0x0f, 0xba], { ...INT, reg: 4, imm: 1 });
for (const digit of [5, 6, 7])
  rm(`bit imm ${digit}`, [0x0f, 0xba], { ...INT, reg: digit, imm: 1, lock: true });
for (const digit of [0, 1, 4, 5, 7]) {
  rm(`shift${digit} rm8 1`, [0xd0], { reg: digit });
  rm(`shift${digit} rm 1`, [0xd1], { ...INT, reg: digit });
  rm(`shift${digit} rm8 imm`, [0xc0], { reg: digit, imm: 1 });
  rm(`shift${digit} rm imm`, [0xc1], { ...INT, reg: digit, imm: 1 });
  rm(`shift${digit} rm8 cl`, [0xd2], { reg: digit });
  rm(`shift${digit} rm cl`, [0xd3], { ...INT, reg: digit });
}
for (let cc = 0; cc < 16; cc++) {
  rm(`setcc ${cc}`, [0x0f, 0x90 + cc]);
  rm(`cmovcc ${cc}`, [0x0f, 0x40 + cc], INT);
}
for (let digit = 0; digit < 4; digit++) rm(`prefetch ${digit}`, [0x0f, 0x18], { reg: digit });
for (const op of [0xa4, 0xa6, 0xaa, 0xac, 0xae]) {
  forms.push({ name: `string ${op.toString(16)}`, opcode: [op], string: true });
  forms.push({ name: `string ${(op + 1).toString(16)}`, opcode: [op + 1], string: true, ...INT });
}

const A = { align: 32 } as const;
type Vector = readonly [
  name: string,
  pp: number,
  map: number,
  op: number,
  extra: Partial<Form> & { three?: boolean },
];
const SSE: readonly Vector[] = [
  ...[0, 0x66, 0xf3, 0xf2].flatMap((pp): Vector[] => [
    ["mov load", pp, 1, 0x10, {}],
    ["mov store", pp, 1, 0x11, {}],
  ]),
  ...[0, 0x66].flatMap((pp): Vector[] => [
    ["movap load", pp, 1, 0x28, A],
    ["movap store", pp, 1, 0x29, A],
    ["movl load", pp, 1, 0x12, { three: true }],
    ["movl store", pp, 1, 0x13, {}],
    ["movh load", pp, 1, 0x16, { three: true }],
    ["movh store", pp, 1, 0x17, {}],
    ["movntp", pp, 1, 0x2b, A],
    ["and", pp, 1, 0x54, { ...A, three: true }],
    ["andn", pp, 1, 0x55, { ...A, three: true }],
    ["or", pp, 1, 0x56, { ...A, three: true }],
    ["xor", pp, 1, 0x57, { ...A, three: true }],
  ]),
  ["movntdq", 0x66, 1, 0xe7, A],
  ["movdqa load", 0x66, 1, 0x6f, A],
  ["movdqa store", 0x66, 1, 0x7f, A],
  ["movdqu load", 0xf3, 1, 0x6f, {}],
  ["movdqu store", 0xf3, 1, 0x7f, {}],
  ["movq store", 0x66, 1, 0xd6, {}],
  ["movq load", 0xf3, 1, 0x7e, {}],
  ["movd load", 0x66, 1, 0x6e, { wide: true }],
  ["movd store", 0x66, 1, 0x7e, { wide: true }],
  ["lddqu", 0xf2, 1, 0xf0, {}],
  ["movntdqa", 0x66, 2, 0x2a, A],
  ["movddup", 0xf2, 1, 0x12, {}],
  ...[0x74, 0x75, 0x76, 0xdb, 0xdf, 0xeb, 0xef, 0xda, 0xde, 0xfc, 0xf8, 0xd8].map(
    (op): Vector => [`lanes ${op.toString(16)}`, 0x66, 1, op, { ...A, three: true }],
  ),
  ["pcmpeqq", 0x66, 2, 0x29, { ...A, three: true }],
  ["ptest", 0x66, 2, 0x17, A],
  ["pextrb", 0x66, 3, 0x14, { imm: 1 }],
  ["pextrw", 0x66, 3, 0x15, { imm: 1 }],
  ["pextrd", 0x66, 3, 0x16, { imm: 1, wide: true }],
  ["pinsrb", 0x66, 3, 0x20, { imm: 1, three: true }],
  ["pinsrd", 0x66, 3, 0x22, { imm: 1, three: true, wide: true }],
  ["pinsrw", 0x66, 1, 0xc4, { imm: 1, three: true }],
];
const MAPS: readonly (readonly number[])[] = [[], [0x0f], [0x0f, 0x38], [0x0f, 0x3a]];
for (const [name, pp, map, op, { three = false, ...extra }] of SSE) {
  rm(`sse ${name}`, [...MAPS[map]!, op], { ...(pp ? { pp } : {}), ...extra });
  forms.push({
    name: `avx ${name}`,
    pp,
    opcode: [op],
    reg: -1,
    ...extra,
    vex: { map, l: [0, 1], nds: three },
  });
}
rm("movntsd", [0x0f, 0x2b], { pp: 0xf2 });
const avx2 = (name: string, map: number, op: number, l: readonly number[], imm: 0 | 1, nds = false): void => {
  forms.push({ name, pp: 0x66, opcode: [op], reg: -1, imm, vex: { map, l, nds, w: false } });
};
avx2("vbroadcastss", 2, 0x18, [0, 1], 0);
avx2("vbroadcastsd", 2, 0x19, [1], 0);
avx2("vbroadcastf128", 2, 0x1a, [1], 0);
avx2("vbroadcasti128", 2, 0x5a, [1], 0);
for (const op of [0x58, 0x59, 0x78, 0x79]) avx2(`vpbroadcast ${op.toString(16)}`, 2, op, [0, 1], 0);
avx2("vextractf128", 3, 0x19, [1], 1);
avx2("vextracti128", 3, 0x39, [1], 1);
avx2("vinsertf128", 3, 0x18, [1], 1, true);
avx2("vinserti128", 3, 0x38, [1], 1, true);

export const FORMS: readonly Form[] = forms;

export interface Case {
  readonly form: Form;
  readonly code: Uint8Array;
  /** General registers 0..15 by number. */
  readonly registers: bigint[];
  readonly flags: number;
  readonly gsBase: bigint;
  readonly vectors: Uint8Array;
  readonly memory: Uint8Array;
}

/** Builds one case of a form. */
export function build(form: Form, next: () => number): Case {
  const chance = (percent: number): boolean => next() % 100 < percent;
  const word = (): bigint => {
    const value = (BigInt(next()) << 32n) | BigInt(next());
    if (chance(40)) return value;
    return chance(50) ? BigInt.asUintN(64, BigInt((next() % 600) - 300)) : 1n << BigInt(next() % 64);
  };
  const memory = Uint8Array.from({ length: IMAGE }, () =>
    chance(30) ? [0, 0xff, 0x80, 1][next() % 4]! : next() & 255,
  );
  const vectors = Uint8Array.from({ length: 512 }, () => next() & 255);
  if (chance(30)) for (let i = 0; i < 512; i += 32) vectors.set(memory.subarray(256, 288), i);
  const registers = Array.from({ length: 16 }, word);
  const align = form.align ?? (chance(50) ? 16 : 1);
  const target = (): number => MEMORY + 256 + ((next() % 512) & -align);
  const wide = form.wide === true && chance(40);
  const size16 = form.operandSize === true && !wide && chance(40);
  const context = { form, next, chance, registers, target: target(), gsBase: 0n, size16, wide };
  const pointers = stage(context, target);
  const code = form.vex ? encodeVex(context) : encodeLegacy(context, pointers);
  if (chance(40)) registers[0] = littleEndian(memory, context.target - MEMORY);
  const flags = 0x202 | (next() & 0x8d5) | (form.string && chance(30) ? 0x400 : 0);
  return { form, code, registers, flags, gsBase: context.gsBase, vectors, memory };
}

interface Context {
  readonly form: Form;
  readonly next: () => number;
  readonly chance: (percent: number) => boolean;
  readonly registers: bigint[];
  target: number;
  gsBase: bigint;
  readonly size16: boolean;
  readonly wide: boolean;
}

function littleEndian(memory: Uint8Array, at: number): bigint {
  return new DataView(memory.buffer).getBigUint64(Math.min(Math.max(at, 0), IMAGE - 8), true);
}

/** Registers with a fixed role: the string pointers, the stack. */
function stage(c: Context, target: () => number): boolean {
  if (c.form.stack) c.registers[4] = BigInt(target());
  if (!c.form.string) return false;
  c.registers[6] = BigInt(target());
  c.registers[7] = BigInt(target());
  c.registers[1] = BigInt(c.next() % 24);
  return true;
}

interface Operand {
  readonly bytes: readonly number[];
  readonly r: number;
  readonly x: number;
  readonly b: number;
  readonly ripAt: number;
}

const le32 = (value: number): number[] => [
  value & 255,
  (value >> 8) & 255,
  (value >> 16) & 255,
  (value >> 24) & 255,
];

/** A memory operand that reaches c.target; sets the registers it needs. `rip` forms are completed by the caller. */
function memoryOperand(c: Context): Operand {
  const reg = c.form.reg === -1 ? c.next() % 16 : c.form.reg!;
  const at = BigInt(c.target) - c.gsBase;
  const modrm = (mod: number, low: number): number => (mod << 6) | ((reg & 7) << 3) | low;
  const r = reg >> 3;
  const style = c.next() % 10;
  if (style === 0) return { bytes: [modrm(0, 5), ...le32(0)], r, x: 0, b: 0, ripAt: 1 };
  if (style === 1 && at < 0x7fff_ffffn && at > 0n) {
    return { bytes: [modrm(0, 4), 0x25, ...le32(Number(at))], r, x: 0, b: 0, ripAt: -1 };
  }
  const wide = c.chance(40);
  const displacement = wide ? (c.next() | 0) >> 2 : (c.next() << 24) >> 24;
  const tail = wide ? le32(displacement) : [displacement & 255];
  const mod = wide ? 2 : 1;
  const base = c.next() % 16;
  const index = c.next() % 16;
  if (style < 5 || index === 4 || index === base) {
    if (!(c.form.stack && base === 4)) c.registers[base] = BigInt.asUintN(64, at - BigInt(displacement));
    const sib = (base & 7) === 4 ? [0x24] : [];
    return { bytes: [modrm(mod, base & 7), ...sib, ...tail], r, x: 0, b: base >> 3, ripAt: -1 };
  }
  const scale = c.next() % 4;
  c.registers[index] = BigInt.asUintN(64, BigInt((c.next() % 2000) - 1000));
  const offset = BigInt.asIntN(64, c.registers[index]!) << BigInt(scale);
  if (!(c.form.stack && base === 4))
    c.registers[base] = BigInt.asUintN(64, at - offset - BigInt(displacement));
  const sib = (scale << 6) | ((index & 7) << 3) | (base & 7);
  return { bytes: [modrm(mod, 4), sib, ...tail], r, x: index >> 3, b: base >> 3, ripAt: -1 };
}

function immediate(c: Context): number[] {
  if (c.form.imm === 1) return [c.next() & 255];
  if (c.form.imm === "z") return c.size16 ? [c.next() & 255, c.next() & 255] : le32(c.next());
  return [];
}

function segment(c: Context): number[] {
  if (!c.chance(10)) return [];
  c.gsBase = BigInt(c.next() % 0x10000);
  return [0x65];
}

function finish(c: Context, head: readonly number[], operand: Operand): Uint8Array {
  const imm = immediate(c);
  const bytes = Uint8Array.from([...head, ...operand.bytes, ...imm]);
  if (operand.ripAt >= 0) {
    const relative = Number(BigInt(c.target) - c.gsBase) - (CODE + bytes.length);
    bytes.set(le32(relative), head.length + operand.ripAt);
  }
  return bytes;
}

function encodeLegacy(c: Context, pointers: boolean): Uint8Array {
  const { form, chance } = c;
  const prefixes: number[] = [];
  if (form.moffs || pointers || form.reg !== undefined) prefixes.push(...(pointers ? [] : segment(c)));
  const repeated = pointers && chance(70);
  if (repeated) prefixes.push(chance(50) ? 0xf3 : 0xf2);
  if (form.lock && chance(40)) prefixes.push(0xf0);
  if (c.size16) prefixes.push(0x66);
  const narrow = (pointers || form.reg !== undefined) && chance(8);
  if (narrow) prefixes.push(0x67);
  if (form.pp) prefixes.push(form.pp);
  const rexW = c.wide ? 8 : 0;
  if (form.moffs) {
    const at = new Uint8Array(new BigUint64Array([BigInt(c.target) - c.gsBase]).buffer);
    return Uint8Array.from([...prefixes, ...(rexW ? [0x48] : []), ...form.opcode, ...at]);
  }
  if (form.reg === undefined) return Uint8Array.from([...prefixes, ...(rexW ? [0x48] : []), ...form.opcode]);
  const operand = memoryOperand(c);
  const rex = rexW | (operand.r << 2) | (operand.x << 1) | operand.b;
  const head = [...prefixes, ...(rex || chance(30) ? [0x40 | rex] : []), ...form.opcode];
  return finish(c, head, operand);
}

function encodeVex(c: Context): Uint8Array {
  const { form, chance, next } = c;
  const vex = form.vex!;
  const head = segment(c);
  if (chance(8)) head.push(0x67);
  const operand = memoryOperand(c);
  const pp = form.pp === 0x66 ? 1 : form.pp === 0xf3 ? 2 : form.pp === 0xf2 ? 3 : 0;
  const l = vex.l[next() % vex.l.length]!;
  const vvvv = vex.nds ? next() % 16 : 0;
  const w = vex.w === false ? 0 : c.wide ? 1 : 0;
  const second = ((~operand.r & 1) << 7) | ((~operand.x & 1) << 6) | ((~operand.b & 1) << 5) | vex.map;
  const third = (w << 7) | ((~vvvv & 15) << 3) | (l << 2) | pp;
  return finish(c, [...head, 0xc4, second, third, form.opcode[0]!], operand);
}
