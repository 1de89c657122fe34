/**
 * The literal nested walk: the first stage as `explain.ts` walks it, and before every fetch of one of its entries, and for
 * the address that comes out, the second stage the same way. A step for every entry fetched, of both stages, in order. It
 * sets no accessed bits, but asks whether they may be set. The generated walker (`nested.ts`) must agree with it.
 */
import type { HostMemory } from "../memory/host-memory.ts";
import { explainWalk, type UsedEntry, type WalkOutcome, walkTables } from "./explain.ts";
import { Permission, WalkFault } from "./format.ts";
import type { GuestTranslation } from "./guest-cache.ts";
import { Fetch, type NestedFormats } from "./nested.ts";
import type { ExplainStep } from "./step.ts";

/** How a nested walk ended; as in `NestedResult`. */
export interface NestedOutcome extends WalkOutcome {
  readonly stage: 1 | 2;
  readonly fetch: Fetch | 0;
  readonly guestLevel: number;
  readonly guestAddress: number;
}

const hex = (value: bigint | number): string => `0x${value.toString(16)}`;

const verbs: { readonly [fetch in Fetch]: string } = {
  [Fetch.table]: "read",
  [Fetch.update]: "set bits in",
  [Fetch.page]: "access the page of",
};

const nowhere = {
  fault: WalkFault.none,
  level: -1,
  entryAddress: 0,
  entry: 0n,
  stage: 1,
  fetch: 0,
  guestLevel: -1,
  guestAddress: 0,
} as const;

/** Whether the walk has bits of the entry to set or to clear. */
const isStale = ({ kind, entry }: UsedEntry, need: number): boolean => {
  const written = (need & Permission.write) !== 0 && "lg2" in kind;
  const set = (kind.accessed ?? 0n) | ((written && kind.dirty) || 0n);
  return (entry & set) !== set || (written && (entry & (kind.dirtyCleared ?? 0n)) !== 0n);
};

const outcomeOf = (walk: Generator<ExplainStep, WalkOutcome>): WalkOutcome => {
  for (;;) {
    const { value, done } = walk.next();
    if (done) return value;
  }
};

/** What a cache would say instead of the second stage; undefined: the second stage is walked. */
export type Remembered = (guest: bigint, need: number, fetch: Fetch) => GuestTranslation | undefined;

/**
 * Walks the first stage at `root` (guest physical) over the second at `lower` (host physical) for an access that needs all
 * of `need`. What is `remembered` is used as a walker with that cache would, and compared with the tables.
 */
export function* explainNested(
  formats: NestedFormats,
  memory: HostMemory,
  root: number,
  lower: number,
  address: bigint,
  need: number,
  remembered: Remembered = () => undefined,
): Generator<ExplainStep, NestedOutcome> {
  const { first, second, tableNeed = Permission.read } = formats;
  function* stageTwo(
    guest: bigint,
    wanted: number,
    fetch: Fetch,
    level: number,
  ): Generator<ExplainStep, NestedOutcome> {
    const name = first.levels[level]!.name;
    const known = fetch === Fetch.update ? undefined : remembered(guest, wanted, fetch);
    if (known) {
      const reason = `guest address ${hex(guest)} is remembered to be ${hex(known.pa)}`;
      const now = outcomeOf(explainWalk(second, memory, lower, guest, wanted));
      const same = now.fault === WalkFault.none && now.pa === known.pa;
      const note = same
        ? `${reason}: ${second.name} is not walked`
        : `${reason}. That is not what the tables say (${now.reason}); it is used until it is invalidated`;
      yield { what: "guest cache", note, cache: same ? "same" : "stale" };
      const size = 2 ** known.lg2;
      const span = size - Number(guest % BigInt(size));
      return { ...nowhere, ...known, span, reason };
    }
    const note = `${second.name} translates it to ${verbs[fetch]} the ${name}`;
    yield { what: `guest address ${hex(guest)}`, note };
    const walked = yield* explainWalk(second, memory, lower, guest, wanted);
    const { fault, reason } = walked;
    const why = `stage 2, asked to ${verbs[fetch]} the ${name} at guest address ${hex(guest)}: ${reason}`;
    const place = { stage: 2, fetch, guestLevel: level, guestAddress: Number(guest) } as const;
    return { ...walked, ...place, reason: fault === WalkFault.none ? reason : why };
  }
  /** Entries whose bits are set when the walk has succeeded. */
  const later: UsedEntry[] = [];
  function* write({ at, level }: UsedEntry) {
    const may = yield* stageTwo(at, tableNeed | Permission.write, Fetch.update, level);
    return may.fault === WalkFault.none ? undefined : may;
  }
  function* use(entry: UsedEntry) {
    if (!isStale(entry, need)) return undefined;
    if (first.accessedAtOnce && !("lg2" in entry.kind)) return yield* write(entry);
    later.push(entry);
    return undefined;
  }
  function* locate(at: bigint, level: number) {
    const found = yield* stageTwo(at, tableNeed, Fetch.table, level);
    return found.fault === WalkFault.none ? found.pa : found;
  }
  const outcome = yield* walkTables<NestedOutcome>(first, memory, root, address, need, { locate, use });
  if ("stage" in outcome) return outcome;
  const own = { stage: 1, fetch: 0, guestLevel: -1, guestAddress: 0 } as const;
  if (outcome.fault !== WalkFault.none) return { ...outcome, ...own };
  const page = yield* stageTwo(BigInt(outcome.pa), need, Fetch.page, outcome.level);
  if (page.fault !== WalkFault.none) return page;
  for (const entry of later) {
    const refused = yield* write(entry);
    if (refused) return refused;
  }
  const smaller = page.lg2 < outcome.lg2 ? page : outcome;
  return {
    ...outcome,
    ...own,
    reason: `${outcome.reason}; stage 2: ${page.reason}`,
    pa: page.pa,
    lg2: smaller.lg2,
    span: smaller.span,
    allowed: outcome.allowed & page.allowed,
    guestAddress: outcome.pa,
  };
}
