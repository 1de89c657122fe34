/**
 * A request to a zPCI unit told step by step: the parameters of its function, every entry fetched, then what the unit
 * remembers where that is something else. Literal, with no effect on the unit; `transactions.ts` must agree with it.
 */
import type { HostMemory } from "../../memory/host-memory.ts";
import { explainWalk } from "../../pagetable/explain.ts";
import type { ExplainStep } from "../../pagetable/step.ts";
import {
  type Ending,
  explainTwice,
  fromIotlb,
  hex,
  lastPage,
  type Page,
  refused,
  type Steps,
  translated,
} from "../explained.ts";
import type { Transaction } from "../unit.ts";
import { describeFault, walkCode } from "./faults.ts";
import type { Parameters } from "./parameters.ts";
import { Iota } from "./spec.ts";
import { PASSES, TRANSLATED, type Transactions, wantOf } from "./transactions.ts";

const WORD = 0x1_0000_0000;
const PAGE_MASK = 0xfff;

const spanOf = ({ lo }: Transaction): number => PAGE_MASK + 1 - (lo & PAGE_MASK);

const describe = ({ start, end, stage, origin }: Parameters): string =>
  `addresses ${hex(start)} to ${hex(BigInt(end) - 1n)}: ${stage ? `${stage.format.name} at ${hex(origin)}` : "not translated"}`;

/** What the unit remembers of the page, if it grants the access. */
const held = ({ iotlb, functions }: Transactions, transaction: Transaction): Page | undefined => {
  const { rid, lo, hi, access } = transaction;
  const want = wantOf(access);
  const last = lastPage(functions.slot(rid), iotlb.stamp, transaction, want);
  if (last) return last;
  const entry = iotlb.lookup(rid, lo, hi);
  if (entry < 0 || (iotlb.denied(entry) & want) !== 0) return undefined;
  return { page: iotlb.page(entry), lg2: iotlb.lg2(entry) };
};

function* way(
  unit: Transactions,
  memory: HostMemory,
  transaction: Transaction,
  tables: Ending | undefined,
): Steps<Ending> {
  const { rid, lo, hi, access } = transaction;
  const parameters = unit.functions.slot(rid)?.parameters;
  const passage = unit.passage(transaction, parameters);
  const note = parameters ? describe(parameters) : "none are registered";
  yield {
    what: "function's parameters",
    note,
    ...(parameters && { value: parameters.iota, fields: Iota.decode(parameters.iota) }),
  };
  if (passage === PASSES)
    return translated((hi >>> 0) * WORD + (lo >>> 0), spanOf(transaction), "the request passes untranslated");
  if (passage !== TRANSLATED) return refused(passage, describeFault(passage));
  const known = tables && held(unit, transaction);
  if (known) {
    const offset = lo & ((1 << known.lg2) - 1);
    const answer = translated(known.page + offset, 2 ** known.lg2 - offset, "from the IOTLB");
    yield fromIotlb(`a page of ${hex(2 ** known.lg2)} bytes at ${hex(known.page)}`, answer, tables);
    return answer;
  }
  const { stage, origin } = parameters!;
  const address = (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);
  const walked = yield* explainWalk(stage!.format, memory, origin, address, wantOf(access));
  const { fault, level, reason, pa, span } = walked;
  if (fault === 0) return translated(pa, span, reason);
  const code = walkCode(fault, level);
  return refused(code, `${describeFault(code)}: ${reason}`);
}

export const explainRequest = (
  unit: Transactions,
  memory: HostMemory,
  transaction: Transaction,
): Generator<ExplainStep, void> => explainTwice((tables) => way(unit, memory, transaction, tables));
