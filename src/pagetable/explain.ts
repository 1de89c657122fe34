/**
 * The literal walker: one table after the other as the specification tells it, in BigInt, a step for every entry
 * fetched with its fields decoded. It sets no accessed bits. It is slow and short; the generated walker (`compile.ts`)
 * must agree with it on any memory.
 */
import type { HostMemory } from "../memory/host-memory.ts";
import {
  absentAt,
  addressIn,
  type EntryTest,
  type FormatLevel,
  inputBits,
  type LeafKind,
  leafBySize,
  type PageTableFormat,
  Permission,
  type TableKind,
  WalkFault,
} from "./format.ts";
import type { ExplainStep } from "./step.ts";

/** How a walk ended. */
export interface WalkOutcome {
  readonly fault: WalkFault;
  /** A sentence for people: why it faulted, or what the leaf maps. */
  readonly reason: string;
  /** Index of the level of the last entry looked at, -1 when none was; where it is, and what it says. */
  readonly level: number;
  readonly entryAddress: number;
  readonly entry: bigint;
  /** Valid when there is no fault; as in `WalkResult`. */
  readonly pa: number;
  readonly lg2: number;
  readonly span: number;
  readonly allowed: number;
}

const hex = (value: bigint | number): string => `0x${value.toString(16)}`;
const holds = ({ mask, value }: EntryTest, entry: bigint): boolean => (entry & mask) === value;

const permissionNames = Object.entries(Permission) as [keyof typeof Permission, number][];
const allPermissions = permissionNames.reduce((all, [, bit]) => all | bit, 0);

const load = (memory: HostMemory, pa: number, bigEndian: boolean): bigint | undefined => {
  if (!(bigEndian ? memory.load64be(pa) : memory.load64(pa))) return undefined;
  return (BigInt(memory.hi >>> 0) << 32n) | BigInt(memory.lo >>> 0);
};

/** Of the permissions needed and denied, the one that the fault is named after. */
const refused = (denied: number): { fault: WalkFault; name: string } => {
  const [name] = permissionNames.find(([, bit]) => denied & bit)!;
  return { fault: WalkFault[name], name };
};

/** What an entry says about the access. */
interface Judgement {
  readonly denied: number;
  /** "R = 0 denies read" for each denial. */
  readonly remarks: readonly string[];
  readonly refusal?: { readonly fault: WalkFault; readonly reason: string };
}

const judge = (
  format: PageTableFormat,
  kind: TableKind | LeafKind,
  entry: bigint,
  before: number,
  need: number,
): Judgement => {
  let denied = before;
  const remarks: string[] = [];
  for (const denial of kind.denials) {
    if (!holds(denial, entry)) continue;
    denied |= denial.denies;
    const names = permissionNames.filter(([, bit]) => denial.denies & bit).map(([name]) => name);
    remarks.push(`${denial.why} denies ${names.join(" and ")}`);
  }
  const permission = (): Judgement | undefined => {
    if (!(denied & need)) return undefined;
    const { fault, name } = refused(denied & need);
    const where = remarks.length ? remarks.join(", ") : "an entry above denies it";
    return { denied, remarks, refusal: { fault, reason: `${name} is refused: ${where}` } };
  };
  if (format.deniedAt === "entry") {
    const refusal = permission();
    if (refusal) return refusal;
  }
  const failed = kind.checks.find((check) => !holds(check, entry));
  if (failed) return { denied, remarks, refusal: { fault: failed.fault, reason: failed.why } };
  return (format.deniedAt === "leaf" && "lg2" in kind && permission()) || { denied, remarks };
};

/** An entry that a walk used. `at` is the address that the walk knows it by. */
export interface UsedEntry {
  readonly level: number;
  readonly kind: TableKind | LeafKind;
  readonly at: bigint;
  readonly entry: bigint;
}

/** Told of every entry that is gone through; an object ends the walk. */
export type Use<Stop extends object> = (entry: UsedEntry) => Generator<ExplainStep, Stop | undefined>;

/** Where the walk's address of an entry of a level (index) is in host memory; an object ends the walk. */
export type Locate<Stop extends object> = (
  at: bigint,
  level: number,
) => Generator<ExplainStep, number | Stop>;

/**
 * Walks the tables at `root` for an access that needs all of `need` (`Permission` bits). Yields a step for every entry
 * fetched; returns how it ended. The outcome of the steps is left to the caller, whose unit has its own fault codes.
 */
export const explainWalk = (
  format: PageTableFormat,
  memory: HostMemory,
  root: number,
  address: bigint,
  need: number,
): Generator<ExplainStep, WalkOutcome> => walkTables<never>(format, memory, root, address, need, {});

/** The same when entries lie where `locate` says, and `use` is told of them. */
export function* walkTables<Stop extends object>(
  format: PageTableFormat,
  memory: HostMemory,
  root: number,
  address: bigint,
  need: number,
  { locate, use }: { readonly locate?: Locate<Stop>; readonly use?: Use<Stop> },
): Generator<ExplainStep, WalkOutcome | Stop> {
  let at = { level: -1, entryAddress: 0, entry: 0n };
  const end = (fault: WalkFault, reason: string): WalkOutcome => {
    return { fault, reason, ...at, pa: 0, lg2: 0, span: 0, allowed: 0 };
  };
  const width = inputBits(format);
  if (
    format.canonical
      ? BigInt.asUintN(64, BigInt.asIntN(width, address)) !== address
      : address >> BigInt(width)
  )
    return end(
      WalkFault.inputWidth,
      format.canonical
        ? `address ${hex(address)} is not canonical for the ${width} bits of ${format.name}`
        : `address ${hex(address)} has more than the ${width} bits of ${format.name}`,
    );

  let index = format.levels.length - 1;
  let table = BigInt(root);
  let denied = 0;
  for (;;) {
    const level = format.levels[index] as FormatLevel;
    const slot = (address >> BigInt(level.shift)) & ((1n << BigInt(level.bits)) - 1n);
    const what = level.name;
    const place = table + slot * 8n;
    const entryAddress = locate ? yield* locate(place, index) : Number(place);
    if (typeof entryAddress === "object") return entryAddress;
    const entry = load(memory, entryAddress, format.bigEndian);
    at = { level: index, entryAddress, entry: entry ?? 0n };
    if (entry === undefined) {
      const reason = `the table of the ${what} could not be read: no memory answers at ${hex(entryAddress)}`;
      yield { what, level: level.number, address: entryAddress, note: reason };
      return end(WalkFault.tableUnreadable, reason);
    }
    const found = { what, level: level.number, address: entryAddress, value: entry };

    const kind =
      [...level.tables, ...level.leaves].find(({ test }) => holds(test, entry)) ??
      (level.otherSizes && leafBySize(level.otherSizes, entry));
    const fields = (kind ?? level.leaves[0] ?? level.tables[0])?.layout.decode(entry) ?? [];
    if (holds(absentAt(format, index), entry)) {
      yield { ...found, fields, note: "not present" };
      return end(WalkFault.notPresent, `the ${what} at ${hex(entryAddress)} is not present`);
    }
    if (!kind) {
      const reason = `the ${what} at ${hex(entryAddress)} is neither a table nor a page that this level has`;
      yield { ...found, fields, note: reason };
      return end(WalkFault.reserved, reason);
    }

    const judgement = judge(format, kind, entry, denied, need);
    const { refusal } = judgement;
    denied = judgement.denied;
    if (refusal) {
      yield { ...found, fields, note: refusal.reason };
      return end(refusal.fault, `the ${what} at ${hex(entryAddress)}: ${refusal.reason}`);
    }
    const entered = { level: index, kind, at: place, entry };
    const also = judgement.remarks.map((remark) => `; ${remark}`).join("");
    const target = addressIn(kind, entry);

    if ("lg2" in kind) {
      const size = 1n << BigInt(kind.lg2);
      const offset = address & (size - 1n);
      const pa = Number(target + offset);
      const note = `a page of ${hex(size)} bytes at ${hex(target)}${also}`;
      yield { ...found, fields, note };
      const ended = use && (yield* use(entered));
      if (ended) return ended;
      return {
        ...end(WalkFault.none, `${hex(address)} is ${hex(pa)}, in ${note}`),
        pa,
        lg2: kind.lg2,
        span: Number(size - offset),
        allowed: ~denied & allPermissions,
      };
    }

    const below = format.levels[kind.to] as FormatLevel;
    const skipped = (1n << BigInt(level.shift)) - (1n << BigInt(below.shift + below.bits));
    if (address & skipped) {
      const reason = `address bits ${hex(address & skipped)} of the levels that the ${what} skips are not zero`;
      yield { ...found, fields, note: reason };
      return end(WalkFault.inputWidth, reason);
    }
    yield { ...found, fields, note: `next table at ${hex(target)}${also}` };
    const ended = use && (yield* use(entered));
    if (ended) return ended;
    table = target;
    index = kind.to;
  }
}
