/**
 * How a translation is explained, in every unit: first what the tables in memory say, every structure and entry fetched
 * on the way, as if the unit remembered nothing; then, where it does remember, what its caches hold, and its answer beside
 * that of the tables. A unit supplies the way through its tables (`Way`); it is gone twice.
 */
import type { HostMemory } from "../memory/host-memory.ts";
import type { ExplainStep } from "../pagetable/step.ts";

export type Steps<T> = Generator<ExplainStep, T>;

/** The last step: how it ended. */
export type Ending = ExplainStep & { readonly outcome: NonNullable<ExplainStep["outcome"]> };

/**
 * The way of a transaction through a unit. Without `tables` by memory alone; with them (how that ended) as the unit goes
 * it, with what it remembers: steps about that have `cache` set.
 */
export type Way = (tables?: Ending) => Steps<Ending>;

export const hex = (value: number | bigint): string => `0x${value.toString(16)}`;

/** The integer of a structure of so many bytes; undefined where no memory answers. */
export const loadStructure = (memory: HostMemory, pa: number, bytes: number): bigint | undefined => {
  let value = 0n;
  for (let at = bytes - 8; at >= 0; at -= 8) {
    if (!memory.load64(pa + at)) return undefined;
    value = (value << 64n) | (BigInt(memory.hi >>> 0) << 32n) | BigInt(memory.lo >>> 0);
  }
  return value;
};

export const translated = (pa: number, span: number, note: string): Ending => ({
  what: "outcome",
  note,
  outcome: { ok: true, pa, span },
});

export const refused = (code: number, reason: string): Ending => ({
  what: "outcome",
  outcome: { ok: false, code, reason },
});

/** A page as a cache or the tables give it. */
export interface Page {
  readonly page: number;
  readonly lg2: number;
}

/** The page that a requester used last, as units keep it beside what they know of the requester. */
export interface LastPage {
  readonly stamp: number;
  readonly pageLo: number;
  readonly pageHi: number;
  readonly mask: number;
  readonly pa: number;
  readonly size: number;
  readonly denied: number;
}

/** The last page, when it is still good (`stamp` is the IOTLB's) and serves an access that wants these bits. */
export const lastPage = (
  slot: LastPage | undefined,
  stamp: number,
  { lo, hi }: { readonly lo: number; readonly hi: number },
  want: number,
): Page | undefined =>
  slot &&
  slot.stamp === stamp &&
  slot.pageLo === (lo & slot.mask) &&
  slot.pageHi === (hi | 0) &&
  (want & slot.denied) === 0
    ? { page: slot.pa, lg2: Math.log2(slot.size) }
    : undefined;

const sameEnd = ({ outcome: a }: Ending, { outcome: b }: Ending): boolean =>
  a.ok ? b.ok && a.pa === b.pa : !b.ok && a.code === b.code;

const said = ({ outcome }: Ending): string => (outcome.ok ? hex(outcome.pa) : outcome.reason);
const sentence = (end: Ending): string => (end.outcome.ok ? (end.note ?? said(end)) : end.outcome.reason);

/** What a cache holds that is something else than memory says: the step says so. */
export const stale = (what: string, holds: string): ExplainStep => ({
  what,
  note: `holds: ${holds}. That is not what the tables say; it is used until it is invalidated`,
  cache: "stale",
});

/** The IOTLB holds the page that is answered with. */
export const fromIotlb = (holds: string, answer: Ending, tables: Ending): ExplainStep => {
  const what = "IOTLB";
  if (sameEnd(answer, tables)) return { what, note: holds, cache: "same" };
  const says = `That is not what the tables say (${sentence(tables)})`;
  return { what, note: `${holds}. ${says}; it is used until it is invalidated`, cache: "stale" };
};

const drain = (steps: Steps<Ending>): { told: ExplainStep[]; end: Ending } => {
  const told: ExplainStep[] = [];
  for (;;) {
    const { value, done } = steps.next();
    if (done) return { told, end: value };
    told.push(value);
  }
};

/**
 * Tells what the tables say; what caches hold that is something else; and how the transaction would end now. Where caches
 * lead the unit elsewhere, its own way is told too, from the first cache on.
 */
export function* explainTwice(way: Way): Steps<void> {
  const tables = yield* way();
  const { told, end } = drain(way(tables));
  const first = told.findIndex(({ cache }) => cache !== undefined);
  if (first < 0) {
    yield end;
    return;
  }
  const differs = !sameEnd(tables, end);
  const own = told.slice(first);
  yield* differs ? own : own.filter(({ cache }) => cache === "stale");
  const names = own.filter(({ cache }) => cache).map(({ what }) => what);
  const caches = [...new Set(names)].join(" and its ");
  const note = differs
    ? `the unit answered from its ${caches}: ${said(end)}; the tables now say ${said(tables)}`
    : `${sentence(tables)}; the unit answers the same from its ${caches}`;
  yield { ...end, note };
}
