/**
 * The contract of an IOMMU as silicon: registers, queues in memory, and translations. A unit reads what its driver
 * wrote; it calls nobody but memory, the interrupt it was given, and the event sink.
 */
import type { EventSink } from "../base/events.ts";
import type { ExplainStep } from "../pagetable/step.ts";

/** What an access wants. */
export const Access = { read: 1, write: 2, execute: 4, privileged: 8, atomic: 16 } as const;

export const TranslateStatus = { ok: 0, fault: 1, stalled: 2 } as const;
export type TranslateStatus = (typeof TranslateStatus)[keyof typeof TranslateStatus];

/** No PASID on the request. */
export const NO_PASID = -1;

/**
 * One request of a function and, after `translate`, its answer. A function keeps one and uses it again: nothing is
 * allocated for an access.
 */
export class Transaction {
  // what is asked
  /** Requester id: bus << 8 | device << 3 | function. */
  rid = 0;
  pasid: number = NO_PASID;
  /** The address as two 32-bit words. */
  lo = 0;
  hi = 0;
  /** `Access` bits. */
  access = 0;
  /** The address was translated by an earlier request (ATS). */
  translated = false;
  // what is answered
  /** Host physical address of the first byte. */
  pa = 0;
  /** Bytes from `pa` to the end of the leaf (or of whatever covers the address): the access may go on so far. */
  span = 0;
  /** Of a translation request (`ats.ts`): the `Access` bits that the page allows. */
  granted = 0;
  /** The unit's own fault code (specification's numbers) when the status is fault. */
  fault = 0;
  /** When stalled: names the stall towards `onResume`. */
  token = 0;
}

/** A fault as the unit recorded it, for the log and for people. */
export interface FaultRecord {
  readonly unit: string;
  readonly rid: number;
  readonly pasid: number;
  readonly address: bigint;
  readonly access: number;
  /** The specification's code and its words, with the section. */
  readonly code: number;
  readonly reason: string;
  /** Where the walk ended, as far as there was one. */
  readonly level?: number;
  readonly entryAddress?: number;
  readonly entry?: bigint;
}

/** How a unit reaches software: it writes a message. */
export type SendMessage = (address: bigint, data: number) => void;

export interface IommuUnit {
  readonly name: string;
  /** Register file; `width` in bytes (4 or 8), offset from the unit's base. A 64-bit value is given and returned as bigint: registers are an edge. */
  mmioRead(offset: number, width: 4 | 8): bigint;
  mmioWrite(offset: number, width: 4 | 8, value: bigint): void;
  /** Translates one access; the result is in the transaction. Records the fault when there is one. */
  translate(transaction: Transaction): TranslateStatus;
  /** The unit tells here that a stalled access may be tried again (`ok`) or has failed. */
  onResume: (token: number, ok: boolean) => void;
  /** A translation told step by step, without any effect on the unit: no fault record, no accessed bits, no cache fill. */
  explain(transaction: Transaction): Iterable<ExplainStep>;
  /** Power-on state. */
  reset(): void;
}

export interface UnitContext {
  readonly events: EventSink;
  readonly interrupt: SendMessage;
}
