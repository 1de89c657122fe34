/**
 * One transfer between memory and a buffer of a function, as work that waits for nobody: it begins after the register
 * write that asked for it has ended, and where a request stalls it goes on from there when the unit says so.
 */
import type { Scheduler } from "../../base/scheduler.ts";
import { TranslateStatus } from "../../hardware/unit.ts";
import type { DmaPort } from "../function.ts";
import type { RequestTag } from "./requests.ts";

const WORD = 2 ** 32;

export interface TransferRequest {
  /** From the buffer to memory. */
  readonly write: boolean;
  /** Address in memory, two words. */
  readonly lo: number;
  readonly hi: number;
  readonly buffer: Uint8Array;
  readonly tag: RequestTag;
}

export interface TransferEnds {
  /** Bytes done so far. */
  moved?(bytes: number): void;
  end(ok: boolean): void;
}

export class Transfer {
  readonly #dma: DmaPort;
  readonly #scheduler: Scheduler;
  /** Counts transfers: what an earlier one deferred or parked is void. */
  #run = 0;

  constructor(dma: DmaPort, scheduler: Scheduler) {
    this.#dma = dma;
    this.#scheduler = scheduler;
  }

  /** Whatever was under way is given up. */
  begin(request: TransferRequest, ends: TransferEnds): void {
    this.cancel();
    this.#soon(request, ends, 0);
  }

  /** `end` of the present one is not called any more. */
  cancel(): void {
    this.#run += 1;
  }

  #soon(request: TransferRequest, ends: TransferEnds, done: number): void {
    const run = this.#run;
    this.#scheduler.defer(() => {
      if (run === this.#run) this.#step(request, ends, done);
    });
  }

  /** Makes the request, or goes on with it. */
  #step(request: TransferRequest, ends: TransferEnds, before: number): void {
    const status = this.#request(request, before);
    const done = before + this.#dma.done;
    ends.moved?.(done);
    if (status !== TranslateStatus.stalled) {
      ends.end(status === TranslateStatus.ok);
      return;
    }
    const run = this.#run;
    this.#dma.park((ok) => {
      if (run !== this.#run) return;
      if (ok) this.#soon(request, ends, done);
      else ends.end(false);
    });
  }

  #request({ write, lo, hi, buffer, tag }: TransferRequest, done: number): TranslateStatus {
    const low = lo + done;
    const high = hi + (low >= WORD ? 1 : 0);
    const rest = buffer.subarray(done);
    return write
      ? this.#dma.write(low, high, rest, tag.pasid, tag.writeExtra)
      : this.#dma.read(low, high, rest, tag.pasid, tag.readExtra);
  }
}

/** Requests that are made one after the other: a generator that yields each of them and is told whether it worked. */
export type TransferProgram = Generator<TransferRequest, void, boolean>;

/** Runs such a program, one at a time. */
export class TransferSequence {
  readonly #transfer: Transfer;

  constructor(dma: DmaPort, scheduler: Scheduler) {
    this.#transfer = new Transfer(dma, scheduler);
  }

  /** Whatever was under way is given up. */
  begin(program: TransferProgram): void {
    this.cancel();
    this.#advance(program, true);
  }

  /** The present program is not gone on with. */
  cancel(): void {
    this.#transfer.cancel();
  }

  #advance(program: TransferProgram, ok: boolean): void {
    const { done, value } = program.next(ok);
    if (!done) this.#transfer.begin(value, { end: (worked) => this.#advance(program, worked) });
  }
}
