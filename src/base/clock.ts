/** Time and chance are given, never taken: nothing else in the program reads the wall clock or `Math.random`. */
export interface Clock {
  /** Nanoseconds since the machine was powered on. */
  now(): number;
}

/** A clock that moves only when told to. */
export class ManualClock implements Clock {
  #now = 0;
  now(): number {
    return this.#now;
  }
  advance(nanoseconds: number): void {
    this.#now += nanoseconds;
  }
}

export const monotonic = (): Clock => {
  const start = process.hrtime.bigint();
  return { now: () => Number(process.hrtime.bigint() - start) };
};

/** A reproducible stream of 32-bit numbers (splitmix32). */
export class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = seed >>> 0;
  }
  next(): number {
    this.#state = (this.#state + 0x9e3779b9) >>> 0;
    let z = this.#state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return (z ^ (z >>> 15)) >>> 0;
  }
  /** An integer in [0, bound). */
  below(bound: number): number {
    return this.next() % bound;
  }
}
