/**
 * An engine: takes descriptors from the queues of its group and carries them out, one at a time, in slices of bounded size
 * between which everybody else has a turn. A request that stalls stops the engine until the unit says how it goes on.
 */
import type { Scheduler } from "../../../base/scheduler.ts";
import { TranslateStatus } from "../../../hardware/unit.ts";
import type { DmaPort } from "../../function.ts";
import { EngineAccess, type Program } from "./access.ts";
import type { Descriptor } from "./descriptor.ts";

/** Bytes moved in a slice; a request that moves none counts as some. */
const SLICE_BYTES = 2 ** 20;
const LEAST_BYTES = 4096;
const WORD = 2 ** 32;

export interface EngineContext {
  readonly dma: DmaPort;
  readonly scheduler: Scheduler;
  /** The next descriptor for it; undefined: there is none. */
  next(): Descriptor | undefined;
  execute(descriptor: Descriptor, access: EngineAccess): Program<number>;
  /** What the queue took before this one has ended. */
  isOldest(descriptor: Descriptor): boolean;
  ended(descriptor: Descriptor): void;
}

export class Engine {
  readonly #context: EngineContext;
  readonly #access = new EngineAccess();
  #current: Descriptor | undefined;
  #program: Program<number> | undefined;
  /** The program has asked for `#access`. */
  #asked = false;
  #scheduled = false;
  #parked = false;
  /** Counts what it was told to give up: what was parked or deferred before is void. */
  #run = 0;

  constructor(context: EngineContext) {
    this.#context = context;
  }

  /** There may be something to do, or what was waited for has ended. */
  kick(): void {
    if (this.#scheduled || this.#parked) return;
    this.#scheduled = true;
    const run = this.#run;
    this.#context.scheduler.defer(() => {
      if (run === this.#run) this.#slice();
    });
  }

  /** Gives up its descriptor if it is such a one, without a record. */
  abort(which: (descriptor: Descriptor) => boolean): void {
    if (!this.#current || !which(this.#current)) return;
    this.#run += 1;
    this.#parked = false;
    this.#scheduled = false;
    this.#end();
    this.kick();
  }

  #slice(): void {
    this.#scheduled = false;
    for (let left = SLICE_BYTES; left > 0; ) {
      if (!this.#program && !this.#begin()) return;
      if (!this.#asked) {
        this.#advance(true);
        continue;
      }
      if (this.#access.kind === "drain") {
        if (!this.#context.isOldest(this.#current!)) return; // `ended` of another kicks
        this.#advance(true);
        continue;
      }
      const status = this.#move();
      left -= Math.max(this.#access.bytes.length, LEAST_BYTES);
      if (status === TranslateStatus.stalled) {
        this.#park();
        return;
      }
      this.#advance(status === TranslateStatus.ok);
    }
    this.kick();
  }

  #begin(): boolean {
    this.#current = this.#context.next();
    if (!this.#current) return false;
    this.#program = this.#context.execute(this.#current, this.#access);
    return true;
  }

  /** Lets the program go on; what it yields is the one access. */
  #advance(ok: boolean): void {
    this.#asked = this.#program!.next(ok).done !== true;
    if (!this.#asked) this.#end();
  }

  #end(): void {
    const ended = this.#current!;
    this.#current = undefined;
    this.#program = undefined;
    this.#asked = false;
    this.#context.ended(ended);
  }

  #move(): TranslateStatus {
    const { dma } = this.#context;
    const access = this.#access;
    const { pasid, extra } = this.#current!;
    const low = access.lo + access.done;
    const lo = low % WORD;
    const hi = access.hi + Math.floor(low / WORD);
    const rest = access.done === 0 ? access.bytes : access.bytes.subarray(access.done);
    dma.asksForPages = access.waits;
    const status =
      access.kind === "read" ? dma.read(lo, hi, rest, pasid, extra) : dma.write(lo, hi, rest, pasid, extra);
    dma.asksForPages = true;
    access.done += dma.done;
    return status;
  }

  #park(): void {
    const run = this.#run;
    this.#parked = true;
    this.#context.dma.park((ok) => {
      if (run !== this.#run) return;
      this.#parked = false;
      if (!ok) this.#advance(false);
      this.kick();
    });
  }
}
