/**
 * Replays recorded iommufd and VFIO programs against kernel files inside this process. A program is a list of system
 * calls with what Linux answered to each; the format is that of test/data/transcripts (one program a line). Each is run
 * by a modelled task whose anonymous memory must be adopted before it is pinned, as a real program's.
 * Left out: mapping memfds a second time.
 */
import { readFileSync } from "node:fs";
import { crc32 } from "node:zlib";
import type { DeviceNode, FileBacking } from "../../src/kernel/call.ts";
import { ModelTask } from "../../src/kernel/model-task.ts";
import type { HostMemory } from "../../src/memory/host-memory.ts";
import { LinuxError } from "../../src/uapi/errno.ts";

type Json = string | number | boolean | null | readonly Json[] | JsonObject;
interface JsonObject {
  readonly [key: string]: Json;
}
/** A number, or "0x…", "$symbol", "&area", "@fd" with an offset. */
type Value = string | number;

interface Area {
  readonly id: string;
  readonly va: Value;
  readonly pages?: Value;
  readonly kind: "anon" | "memfd" | "ro" | "none";
  readonly seed?: Value;
}

interface Setting {
  readonly at: Value;
  readonly hex?: string;
  readonly str?: string;
  readonly struct?: string;
  readonly v?: { readonly [field: string]: Value };
  readonly len?: Value;
  readonly fill?: Value;
}

interface Watch {
  readonly at: Value;
  readonly len?: Value;
  readonly struct?: string;
  readonly bind?: { readonly [field: string]: string };
  readonly nocmp?: readonly string[];
  readonly ids?: readonly string[];
}

interface Step {
  readonly op: string;
  readonly fd?: string;
  readonly path?: string;
  readonly cmd?: string;
  readonly struct?: string;
  readonly in?: { readonly [field: string]: Value };
  readonly arg?: Value;
  readonly tail?: string;
  readonly set?: readonly Setting[];
  readonly mem?: readonly Watch[];
  readonly bind?: { readonly [field: string]: string };
  readonly nocmp?: readonly string[];
  readonly retfd?: string;
  readonly forget?: readonly string[];
  readonly at?: Value;
  readonly len?: Value;
  readonly area?: string;
  readonly prot?: Value;
  readonly flags?: Value;
  readonly off?: Value;
  readonly events?: number;
  readonly seed?: Value;
  readonly expect: JsonObject;
}

export interface Program {
  readonly name: string;
  readonly tags?: readonly string[];
  readonly areas?: readonly Area[];
  readonly steps: readonly Step[];
}

interface LayoutFacts {
  readonly size: number;
  readonly fields: readonly (readonly [name: string, offset: number, size: number])[];
}
interface CommandFacts {
  readonly request: number;
  readonly layout: string;
  readonly op: number;
}
interface Facts {
  readonly layouts: { readonly [name: string]: LayoutFacts };
  readonly commands: { readonly [name: string]: CommandFacts };
}

const dataFile = (name: string) =>
  readFileSync(new URL(`../data/transcripts/${name}`, import.meta.url), "utf8");

const facts = JSON.parse(dataFile("layouts.json")) as Facts;

export const loadPrograms = (name: string): Program[] =>
  dataFile(`${name}.jsonl`)
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line) as Program);

/** The machine programs run on. */
export interface ReplayHost {
  readonly memory: HostMemory;
  node(path: string): DeviceNode | undefined;
  /** What stands for %GROUP%, %CDEV%, %BDF%. */
  readonly places: { readonly [placeholder: string]: string };
  /** What runs between calls. */
  drain?(): void;
  /** Capabilities of the program; recorded as root. */
  task?(memory: HostMemory): ModelTask;
}

export interface Difference {
  readonly step: number;
  readonly what: string;
  readonly expected: string;
  readonly got: string;
}

const PAGE = 4096;
const ARG_VA = 0xf000_0000n;
const UNKNOWN_ID = 0x7fff_fff0n;
const PROT_WRITE = 2n;

interface Symbol {
  value: bigint;
  live: boolean;
  readonly id: boolean;
}

interface MappedArea {
  readonly id: string;
  readonly va: number;
  readonly length: number;
  mapped: boolean;
  writable: boolean;
}

/** Runs one program; the first step that differs, or undefined. */
export const replay = (program: Program, host: ReplayHost): Difference | undefined =>
  new Replay(program, host).run();

class Replay {
  readonly #program: Program;
  readonly #host: ReplayHost;
  readonly #task: ModelTask;
  readonly #symbols = new Map<string, Symbol>();
  readonly #areas = new Map<string, MappedArea>();
  /** Every descriptor opened, in order. */
  readonly #opened: number[] = [];
  #raw: { [name: string]: Json } = {};

  constructor(program: Program, host: ReplayHost) {
    this.#program = program;
    this.#host = host;
    this.#task = host.task?.(host.memory) ?? new ModelTask(host.memory, { uid: 0, name: program.name });
    this.#task.memory.map(Number(ARG_VA), PAGE);
    for (const area of program.areas ?? []) this.#mapArea(area);
  }

  run(): Difference | undefined {
    let difference: Difference | undefined;
    this.#program.steps.forEach((step, index) => {
      this.#raw = {};
      const got = this.#runStep(step);
      this.#host.drain?.();
      const expected = step.expect;
      if (!difference && !same(expected["raw"] ? { ...got, raw: this.#raw } : got, expected)) {
        const { expect: _expect, ...what } = step;
        difference = {
          step: index,
          what: JSON.stringify(what),
          expected: JSON.stringify(expected),
          got: JSON.stringify(got),
        };
      }
    });
    for (const fd of this.#opened.reverse()) if (this.#task.descriptors.includes(fd)) this.#task.close(fd);
    this.#task.exit();
    this.#host.drain?.();
    return difference;
  }

  #mapArea(area: Area): void {
    const va = Number(BigInt(area.va));
    const length = Number(BigInt(area.pages ?? 1)) * PAGE;
    const mapped: MappedArea = { id: area.id, va, length, mapped: false, writable: true };
    this.#areas.set(area.id, mapped);
    if (area.kind === "none") return;
    this.#task.memory.map(va, length, { private: area.kind !== "memfd" });
    mapped.mapped = true;
    this.#fill(mapped, Number(BigInt(area.seed ?? 0)));
    if (area.kind === "memfd")
      this.#symbols.set(`@${area.id}`, plain(BigInt(this.#task.backing(this.#backing(mapped)))));
    if (area.kind === "ro") {
      mapped.writable = false;
      this.#task.memory.protect(va, length, false);
    }
  }

  #backing(area: MappedArea): FileBacking {
    const { memory } = this.#task;
    return {
      size: area.length,
      writable: true,
      pin: (offset, length, writable) => memory.pin(area.va + offset, length, writable),
      close: () => {},
    };
  }

  #fill({ va, length }: MappedArea, seed: number): void {
    if (seed === 0) return;
    const bytes = new Uint8Array(length);
    for (let i = 0; i < length; i += 1) bytes[i] = i * 7 + (i >> 12) * 13 + seed;
    this.#task.memory.poke(va, bytes);
  }

  #eval(value: Value): bigint {
    if (typeof value === "number") return BigInt.asUintN(64, BigInt(value));
    const match = /^([$&@]?)([^+-]*)(?:([+-])(.+))?$/.exec(value);
    if (!match) throw new Error(`no value: ${value}`);
    const [, kind, name = "", sign, rest] = match;
    const offset = rest === undefined ? 0n : BigInt(rest);
    return BigInt.asUintN(64, this.#base(kind!, name) + (sign === "-" ? -offset : offset));
  }

  #base(kind: string, name: string): bigint {
    if (kind === "") return name === "" ? 0n : BigInt(name);
    if (kind === "&") {
      const area = this.#areas.get(name);
      if (!area) throw new Error(`no area ${name}`);
      return BigInt(area.va);
    }
    return this.#symbols.get(kind + name)?.value ?? (kind === "@" ? -1n : UNKNOWN_ID);
  }

  #fd(value: Value): number {
    return Number(BigInt.asIntN(32, this.#eval(value)));
  }

  #text(text: string): string {
    return this.#host.places[text] ?? text;
  }

  #apply(settings: readonly Setting[] = []): void {
    for (const setting of settings) {
      const at = Number(this.#eval(setting.at));
      this.#task.memory.poke(at, this.#settingBytes(setting));
    }
  }

  #settingBytes({ hex, str, struct, v, len, fill }: Setting): Uint8Array {
    if (hex !== undefined) return Buffer.from(hex, "hex");
    if (str !== undefined) return Buffer.from(`${this.#text(str)}\0`, "latin1");
    if (struct !== undefined) {
      const layout = layoutOf(struct);
      const bytes = new Uint8Array(layout.size);
      this.#encode(layout, v ?? {}, bytes);
      return bytes;
    }
    return new Uint8Array(Number(this.#eval(len ?? 0))).fill(Number(this.#eval(fill ?? 0)));
  }

  #encode(layout: LayoutFacts, values: { readonly [field: string]: Value }, into: Uint8Array): void {
    for (const [name, value] of Object.entries(values)) {
      const field = layout.fields.find(([known]) => known === name);
      if (!field) throw new Error(`no field ${name}`);
      const [, offset, size] = field;
      if (isBlob(size)) into.set(Buffer.from(String(value), "hex"), offset);
      else into.set(littleEndian(this.#eval(value), size), offset);
    }
  }

  #runStep(step: Step): JsonObject {
    const result: { [key: string]: Json } = {};
    const attempt = (work: () => number): boolean => {
      try {
        result["ret"] = work();
        return true;
      } catch (error) {
        if (!(error instanceof LinuxError)) throw error;
        result["ret"] = -1;
        result["errno"] = error.code;
        return false;
      }
    };
    const succeeded = this.#perform(step, result, attempt);
    if (step.mem) result["mem"] = this.#memory(step.mem, step.expect["mem"] as readonly Json[] | undefined);
    if (succeeded) for (const name of step.forget ?? []) this.#forget(name);
    return result;
  }

  #perform(step: Step, result: { [key: string]: Json }, attempt: (work: () => number) => boolean): boolean {
    const task = this.#task;
    switch (step.op) {
      case "open":
        return attempt(() => this.#open(step));
      case "close":
        return attempt(() => this.#close(this.#fd(step.fd!)));
      case "ioctl":
        return this.#ioctl(step, result, attempt);
      case "read":
      case "write":
        this.#apply(step.set);
        return attempt(() => this.#transfer(step));
      case "poll":
        result["revents"] = (task.file(this.#fd(step.fd!))?.poll?.() ?? 0) & (step.events ?? 0);
        return attempt(() => (result["revents"] ? 1 : 0));
      case "mmap":
        return attempt(() => this.#mmap(step));
      case "munmap": {
        const area = this.#areas.get(step.area!)!;
        task.memory.unmap(area.va, area.length);
        area.mapped = false;
        return attempt(() => 0);
      }
      case "mem":
        this.#apply(step.set);
        return attempt(() => 0);
      default:
        throw new Error(`no operation ${step.op}`);
    }
  }

  #open(step: Step): number {
    this.#symbols.set(step.fd!, plain(-1n));
    const path = this.#text(step.path!);
    const node = this.#host.node(path);
    if (!node) throw new LinuxError("ENOENT", `no device node ${path}`);
    const fd = this.#task.open(node);
    this.#opened.push(fd);
    this.#symbols.set(step.fd!, plain(BigInt(fd)));
    return 0;
  }

  #close(fd: number): number {
    try {
      this.#task.close(fd);
    } finally {
      for (const [name, symbol] of this.#symbols)
        if (name.startsWith("@") && symbol.value === BigInt(fd)) symbol.value = -1n;
    }
    return 0;
  }

  #transfer(step: Step): number {
    const fd = this.#fd(step.fd!);
    const at = this.#eval(step.at!);
    const length = Number(this.#eval(step.len ?? 0));
    return step.op === "write" ? this.#task.writeFrom(fd, at, length) : this.#task.readTo(fd, at, length);
  }

  #mmap(step: Step): number {
    const area = this.#areas.get(step.area!)!;
    const length = step.len === undefined ? area.length : Number(this.#eval(step.len));
    if (step.fd !== undefined) {
      this.#task.mmap(
        this.#fd(step.fd),
        { va: area.va, length },
        {
          offset: this.#eval(step.off ?? 0),
          protection: Number(this.#eval(step.prot ?? 0)),
          flags: Number(this.#eval(step.flags ?? 0)),
        },
      );
      area.mapped = true;
      return 0;
    }
    const writable = step.prot === undefined || (this.#eval(step.prot) & PROT_WRITE) !== 0n;
    this.#task.memory.map(area.va, length, { private: true });
    area.mapped = true;
    area.writable = writable;
    if (writable) this.#fill({ ...area, length }, Number(this.#eval(step.seed ?? 0)));
    else this.#task.memory.protect(area.va, length, false);
    return 0;
  }

  #ioctl(step: Step, result: { [key: string]: Json }, attempt: (work: () => number) => boolean): boolean {
    const command = facts.commands[step.cmd!];
    const request = command?.request ?? Number(step.cmd);
    const layoutName = step.struct ?? command?.layout ?? "";
    const layout = layoutName ? layoutOf(layoutName) : undefined;
    this.#apply(step.set);
    const at = step.arg === undefined ? ARG_VA : this.#eval(step.arg);
    const prepared = step.in && layout ? this.#prepare(step, layout, command, at) : undefined;
    const fd = this.#fd(step.fd!);
    const done = attempt(() => {
      const value = this.#task.ioctl(fd, request, at);
      if (step.retfd === undefined) return value;
      this.#symbols.set(`@${step.retfd}`, plain(BigInt(value)));
      this.#opened.push(value);
      return 0;
    });
    if (prepared) this.#compareStruct(step, prepared, result, done);
    if (done && step.cmd === "IOMMU_DESTROY") this.#destroyed(step.in?.["id"]);
    return done;
  }

  #prepare(step: Step, layout: LayoutFacts, command: CommandFacts | undefined, at: bigint): Prepared {
    const before = new Uint8Array(layout.size);
    const first = layout.fields[0]?.[0];
    if (first === "size" || first === "argsz") before.set(littleEndian(BigInt(layout.size), 4));
    if (command?.op) before.set(littleEndian(BigInt(command.op), 4), 4);
    this.#encode(layout, step.in ?? {}, before);
    const tail = tailBytes(step.tail ?? "");
    const inPage = at === ARG_VA;
    if (inPage) this.#task.memory.poke(Number(at), new Uint8Array(PAGE).fill(0xa5));
    this.#task.memory.poke(Number(at), before);
    this.#task.memory.poke(Number(at) + layout.size, tail);
    return { layout, at, before, tail, guard: inPage ? PAGE - layout.size - tail.length : 0 };
  }

  /** Which fields the call changed, and whether it wrote beyond the structure. */
  #compareStruct(
    step: Step,
    { layout, at, before, tail, guard }: Prepared,
    result: { [key: string]: Json },
    done: boolean,
  ): void {
    const after = new Uint8Array(layout.size + tail.length + guard);
    this.#task.memory.read(at, after);
    const out: { [field: string]: Json } = {};
    const expected = step.expect["out"] as JsonObject | undefined;
    for (const [name, offset, size] of layout.fields) {
      const bind = done ? step.bind?.[name] : undefined;
      const changed = !Buffer.from(before.subarray(offset, offset + size)).equals(
        after.subarray(offset, offset + size),
      );
      if (!bind && !changed) continue;
      if (step.nocmp?.includes(name)) out[name] = "any";
      else if (bind) out[name] = this.#bind(bind, fieldOf(after, offset, size), size, expected?.[name]);
      else out[name] = shown(after, offset, size);
    }
    if (Object.keys(out).length > 0) result["out"] = out;
    if (after.subarray(layout.size + tail.length).some((byte) => byte !== 0xa5)) result["guard"] = "changed";
    if (!Buffer.from(tail).equals(after.subarray(layout.size, layout.size + tail.length)))
      result["tail"] = "changed";
  }

  #bind(bind: string, value: bigint, size: number, expected: Json | undefined): Json {
    const how = /^[?=~@]/.test(bind) ? bind[0] : "";
    const name = how ? bind.slice(1) : bind;
    if (how === "@") {
      const fd = BigInt.asIntN(size * 8, value);
      this.#symbols.set(`@${name}`, plain(fd));
      this.#opened.push(Number(fd));
      return fd >= 0n ? `@${name}` : "bad fd";
    }
    if (how === "=" || how === "~") {
      this.#symbols.set(`$${name}`, plain(value));
      return how === "~" ? "any" : numeral(value);
    }
    this.#raw[name] = Number(value);
    if (how === "?" && typeof expected === "string" && expected.startsWith("$")) {
      const known = this.#symbols.get(expected);
      if (known?.value === value && expected !== `$${name}`) {
        this.#symbols.set(`$${name}`, identity(value));
        return expected;
      }
    }
    this.#symbols.set(`$${name}`, identity(value));
    return value !== 0n && value !== UNKNOWN_ID ? `$${name}` : "no id";
  }

  #memory(watches: readonly Watch[], expected: readonly Json[] | undefined): Json[] {
    return watches.map((watch, index) => {
      const at = this.#eval(watch.at);
      const layout = watch.struct === undefined ? undefined : layoutOf(watch.struct);
      const bytes = new Uint8Array(layout?.size ?? Number(this.#eval(watch.len ?? 0)));
      try {
        this.#task.memory.read(at, bytes);
      } catch {
        return "unmapped";
      }
      if (layout) return this.#watchedStruct(watch, layout, bytes, expected?.[index]);
      return bytes.length <= 32
        ? Buffer.from(bytes).toString("hex")
        : `crc32:${crc32(bytes).toString(16).padStart(8, "0")}`;
    });
  }

  #watchedStruct(watch: Watch, layout: LayoutFacts, bytes: Uint8Array, expected: Json | undefined): Json {
    const fields: { [name: string]: Json } = {};
    for (const [name, offset, size] of layout.fields) {
      const bind = watch.bind?.[name];
      const value = () => fieldOf(bytes, offset, size);
      if (watch.nocmp?.includes(name)) fields[name] = "any";
      else if (bind)
        fields[name] = this.#bind(bind, value(), size, (expected as JsonObject | undefined)?.[name]);
      else if (watch.ids?.includes(name)) fields[name] = this.#knownId(value());
      else fields[name] = shown(bytes, offset, size);
    }
    return fields;
  }

  #knownId(value: bigint): Json {
    for (const [name, symbol] of [...this.#symbols].reverse())
      if (name.startsWith("$") && symbol.id && symbol.live && symbol.value === value) return name;
    return numeral(value);
  }

  #forget(name: string): void {
    const symbol = this.#symbols.get(`$${name}`);
    if (symbol) symbol.live = false;
  }

  #destroyed(id: Value | undefined): void {
    if (typeof id !== "string" || !id.startsWith("$")) return;
    const value = this.#eval(id);
    for (const [name, symbol] of this.#symbols)
      if (name.startsWith("$") && symbol.id && symbol.value === value) symbol.live = false;
  }
}

interface Prepared {
  readonly layout: LayoutFacts;
  readonly at: bigint;
  readonly before: Uint8Array;
  readonly tail: Uint8Array;
  /** Bytes after the tail that must stay 0xa5. */
  readonly guard: number;
}

const plain = (value: bigint): Symbol => ({ value, live: true, id: false });
const identity = (value: bigint): Symbol => ({ value, live: true, id: true });

const layoutOf = (name: string): LayoutFacts => {
  const layout = facts.layouts[name];
  if (!layout) throw new Error(`no structure ${name}`);
  return layout;
};

const isBlob = (size: number): boolean => size > 8 || size === 3;

const littleEndian = (value: bigint, size: number): Uint8Array =>
  Uint8Array.from({ length: size }, (_, i) => Number((value >> BigInt(8 * i)) & 0xffn));

const fieldOf = (bytes: Uint8Array, offset: number, size: number): bigint => {
  let value = 0n;
  for (let i = Math.min(size, 8) - 1; i >= 0; i -= 1) value = (value << 8n) | BigInt(bytes[offset + i]!);
  return value;
};

const numeral = (value: bigint): Json => (value < 65536n ? Number(value) : `0x${value.toString(16)}`);

const shown = (bytes: Uint8Array, offset: number, size: number): Json =>
  isBlob(size)
    ? Buffer.from(bytes.subarray(offset, offset + size)).toString("hex")
    : numeral(fieldOf(bytes, offset, size));

const tailBytes = (text: string): Uint8Array =>
  text.startsWith("zero:") ? new Uint8Array(Number(text.slice(5))) : Buffer.from(text, "hex");

const canonical = (value: Json): Json => {
  if (Array.isArray(value)) return value.map(canonical);
  if (typeof value !== "object" || value === null) return value;
  const object = value as JsonObject;
  return Object.fromEntries(
    Object.keys(object)
      .sort()
      .map((key) => [key, canonical(object[key]!)]),
  );
};

const same = (a: Json, b: Json): boolean => JSON.stringify(canonical(a)) === JSON.stringify(canonical(b));
