/**
 * Looking for requests before the daemon sleeps: a processor that has nothing to do takes tens of microseconds to wake,
 * several times what a short call costs otherwise. After a request the pages of the threads that asked last are looked
 * at for a moment, and those threads need not ring meanwhile. Time that is looked in vain is a debt that found requests
 * pay off; too much of it is followed by a rest many times as long, so that programs that ask seldom, or a computer
 * whose processors all have other work, lose next to nothing. Finds requests only: the loop serves them, after what the
 * kernel has told of the time before.
 */
import { availableParallelism } from "node:os";
import type { Requests } from "./loop.ts";

/** Microseconds without a request after which the daemon sleeps. */
export const LONGEST_LOOK = 50;
/** Longer, and others had the processor meanwhile: they want it. */
const INTERRUPTED = 100;
/** Microseconds that a request found is worth: its wake-up. */
const WORTH = 5;
/** Debt in microseconds that is followed by a rest, and how many times as long that is. */
const MOST_DEBT = 150;
const REST = 64;
/** Threads that are looked for; others ring. */
export const MOST_PLACES = 8;

/** Where one thread posts its requests. */
export interface Place {
  /** Whether a request lies there that was not taken. */
  readonly posted: boolean;
  /**
   * Tells who posts whether it must ring. It posts first and reads this then; we say so first and look then, and every
   * step is ordered before the next. So one of the two sees the other, and no request lies there unheard.
   */
  announce(looking: boolean): void;
}

export interface LookoutOptions {
  /** Milliseconds that only grow. */
  readonly now?: () => number;
  /** How many processors there are for this process. */
  readonly processors?: number;
}

export class Lookout<P extends Place> implements Requests {
  readonly #serve: (place: P) => void;
  readonly #now: () => number;
  readonly #enabled: boolean;
  /** Those that asked lately, or are being looked at. */
  readonly #places: P[] = [];
  readonly #found: P[] = [];
  readonly #later: P[] = [];
  #looking = false;
  /** Milliseconds since the last request that went into looking. */
  #spent = 0;
  /** Milliseconds. */
  #debt = 0;
  #restsUntil = Number.NEGATIVE_INFINITY;

  constructor(serve: (place: P) => void, options: LookoutOptions = {}) {
    const { now = () => performance.now(), processors = availableParallelism() } = options;
    this.#serve = serve;
    this.#now = now;
    this.#enabled = processors > 1;
  }

  /** A request came from there: another may follow soon. */
  expect(place: P): void {
    if (!this.#enabled || this.#places.length === MOST_PLACES || this.#places.includes(place)) return;
    this.#places.push(place);
    if (this.#looking) place.announce(true);
  }

  /** To be served when the kernel has been asked once more. */
  postpone(place: P): void {
    this.#later.push(place);
  }

  /** Nobody will post there any more. */
  forget(place: P): void {
    for (const places of [this.#places, this.#found, this.#later]) {
      const at = places.indexOf(place);
      if (at >= 0) places.splice(at, 1);
    }
  }

  /**
   * Looks for that long unless it finds something; 0: once. False: there is nothing, and whoever posts rings from now
   * on: the loop may sleep. True: it must not, but ask the kernel what there is and call `serve`.
   */
  look(microseconds: number): boolean {
    while (this.#later.length > 0) this.#found.push(this.#later.pop()!);
    if (this.#found.length > 0) return true;
    if (!this.#looking && !this.#begin()) return false;
    const found = this.#finds(microseconds / 1000);
    if (this.#spent >= (found ? INTERRUPTED : LONGEST_LOOK) / 1000) return this.#end();
    if (found) {
      this.#spent = 0;
      this.#debt = Math.max(0, this.#debt - WORTH / 1000);
    }
    return true;
  }

  /** Serves what was found; what it finds meanwhile waits for the next time. */
  serve(): void {
    for (let left = this.#found.length; left > 0 && this.#found.length > 0; left -= 1)
      this.#serve(this.#found.shift()!);
  }

  #begin(): boolean {
    if (this.#places.length === 0) return false;
    if (this.#now() < this.#restsUntil) {
      this.#places.length = 0;
      return false;
    }
    for (const place of this.#places) place.announce(true);
    this.#looking = true;
    this.#spent = 0;
    return true;
  }

  #finds(milliseconds: number): boolean {
    if (this.#glance()) return true;
    if (milliseconds === 0) return false;
    const start = this.#now();
    for (;;) {
      const found = this.#glance();
      const spent = this.#now() - start;
      if (!found && spent < milliseconds) continue;
      this.#spent += spent;
      return found;
    }
  }

  #glance(): boolean {
    const places = this.#places;
    for (let i = 0; i < places.length; i += 1) if (places[i]!.posted) this.#found.push(places[i]!);
    return this.#found.length > 0;
  }

  /** Looks a last time after everybody was told to ring. */
  #end(): boolean {
    for (const place of this.#places) place.announce(false);
    this.#looking = false;
    this.#found.length = 0;
    this.#glance();
    this.#places.length = 0;
    this.#debt += this.#spent;
    if (this.#debt * 1000 > MOST_DEBT) {
      this.#restsUntil = this.#now() + REST * this.#debt;
      this.#debt = 0;
    }
    return this.#found.length > 0;
  }
}
