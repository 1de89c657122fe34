/**
 * What the queue of a guest's unit asks of whoever makes the host follow, whatever the model: invalidations, collected until
 * they have to be done, because the host takes many with one call; and entries that changed, which are read at once, after
 * what was asked before. What the host refuses is told, and where in the queue it was asked for: the queue stops there.
 */
import type { EventSink } from "../base/events.ts";

/** How far a list of invalidations came. */
export interface Told {
  /** How many were done. */
  readonly done: number;
  /** What stopped it at the one after them. */
  readonly error?: unknown;
}

/** Who makes the host follow. */
export interface Followed<Request, Entries> {
  /** In order; stops at the first that the host refuses. */
  tell(requests: readonly Request[]): Told;
  /** Throws what the host answers. */
  reread(entries: Entries): void;
}

export class Following<Request, Entries> {
  readonly #name: string;
  readonly #events: EventSink;
  #host: Followed<Request, Entries> | undefined;
  readonly #requests: Request[] = [];
  /** Where in the queue each of them is asked for. */
  readonly #places: number[] = [];

  /** Of the unit; until somebody is connected nothing follows. */
  constructor(name: string, events: EventSink) {
    this.#name = name;
    this.#events = events;
  }

  connect(host: Followed<Request, Entries>): void {
    this.#host = host;
  }

  /** An invalidation that is asked for at this place. */
  collect(request: Request, at: number): void {
    this.#requests.push(request);
    this.#places.push(at);
  }

  /** Has all of them done: -1, or where the first is that could not be. */
  drain(): number {
    if (this.#requests.length === 0) return -1;
    const requests = this.#requests.splice(0);
    const places = this.#places.splice(0);
    const { done, error } = this.#host?.tell(requests) ?? { done: requests.length };
    if (done === requests.length) return -1;
    this.report("an invalidation", error);
    return places[done]!;
  }

  /** Has these entries read again, as is asked for at this place: -1, or where the queue stops. */
  reread(entries: Entries, at: number): number {
    const stopped = this.drain();
    if (stopped >= 0) return stopped;
    try {
      this.#host?.reread(entries);
      return -1;
    } catch (error) {
      this.report("changed entries", error);
      return at;
    }
  }

  /** Other tables hold from now on: no register tells that the host could not follow. */
  restart(entries: Entries): void {
    try {
      this.#host?.reread(entries);
    } catch (error) {
      this.report("new tables", error);
    }
  }

  /** Something that the guest asked for was refused. */
  report(what: string, error: unknown): void {
    const reason = error instanceof Error ? error.message : String(error);
    if (this.#events.on) this.#events.emit("device", { device: this.#name, what, reason });
  }
}
