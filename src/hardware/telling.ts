/** What units tell who listens, each in the same words: messages that they send, and accesses that they refuse. */
import type { EventSink } from "../base/events.ts";
import type { ExplainStep } from "../pagetable/step.ts";
import type { SendMessage, Transaction, UnitContext } from "./unit.ts";

/** Sends messages as the context does, and tells of each first. */
export const tellingMessages =
  (unit: string, { events, interrupt }: UnitContext): SendMessage =>
  (address, data) => {
    if (events.on) events.emit("interrupt", { unit, address, data });
    interrupt(address, data);
  };

/** An address that is kept as two words. */
export const addressOf = (lo: number, hi: number): bigint => (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);

/** The entry that a walk ended at, as far as there was one. */
export interface WalkedTo {
  readonly level?: number | undefined;
  readonly entryAddress?: number | undefined;
  readonly entry?: bigint | undefined;
}

/** The last entry that a walk looked at, for people. */
export const walkedTo = (steps: Iterable<ExplainStep>): WalkedTo => {
  let where: WalkedTo = {};
  for (const { level, address, value } of steps)
    if (address !== undefined) where = { level, entryAddress: address, entry: value };
  return where;
};

/** The refusal of an access; `recorded`: software can read of it. */
export const tellFault = (
  events: EventSink,
  unit: string,
  transaction: Transaction,
  fault: { readonly code: number; readonly reason: string; readonly recorded: boolean } & WalkedTo,
): void => {
  const { rid, pasid, access, lo, hi } = transaction;
  events.emit("fault", { unit, rid, pasid, address: addressOf(lo, hi), access, ...fault });
};
