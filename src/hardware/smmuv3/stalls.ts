/**
 * Stalled transactions (IHI 0070, §3.12.2): each waits under a tag until software resumes or terminates it. A record of
 * a stall is not lost when the event queue is full: it is written when there is room. When as many are stalled as the
 * unit can, further ones wait without a record, and are tried again when a tag is free.
 */

/** What a stall waits with. */
interface Stall {
  readonly sid: number;
  readonly token: number;
  /** The event that could not be written yet. */
  record: Uint32Array | undefined;
}

const TOKEN_LIMIT = 0x4000_0000;

export class Stalls {
  readonly #maximum: number;
  readonly #stalled = new Map<number, Stall>();
  /** Tokens of transactions that have no tag. */
  readonly #waiting: number[] = [];
  readonly #free: number[] = [];
  #tags = 0;
  #tokens = 0;

  constructor(maximum: number) {
    this.#maximum = maximum;
  }

  get count(): number {
    return this.#stalled.size;
  }

  /** Whether a record waits for room. */
  get pending(): boolean {
    for (const { record } of this.#stalled.values()) if (record) return true;
    return false;
  }

  #token(): number {
    this.#tokens = (this.#tokens + 1) % TOKEN_LIMIT;
    return this.#tokens;
  }

  /** A tag for a transaction of the stream; -1 when none is free. */
  claim(sid: number): number {
    if (this.#stalled.size >= this.#maximum) return -1;
    const tag = this.#free.pop() ?? this.#tags++;
    this.#stalled.set(tag, { sid, token: this.#token(), record: undefined });
    return tag;
  }

  token(tag: number): number {
    return this.#stalled.get(tag)!.token;
  }

  /** The event of the stall waits for room in the queue. */
  keep(tag: number, record: Uint32Array): void {
    this.#stalled.get(tag)!.record = record;
  }

  /** Token of a transaction that waits for a tag. */
  wait(): number {
    const token = this.#token();
    this.#waiting.push(token);
    return token;
  }

  /** Takes the events that wait as long as `write` does. */
  writePending(write: (record: Uint32Array) => boolean): void {
    for (const stall of this.#stalled.values()) {
      if (!stall.record) continue;
      if (!write(stall.record)) return;
      stall.record = undefined;
    }
  }

  /** Ends the stall of a tag, when it is of this stream: its token, or -1. */
  end(tag: number, sid: number): number {
    const stall = this.#stalled.get(tag);
    if (!stall || stall.sid !== sid) return -1;
    this.#release(tag);
    return stall.token;
  }

  /** Ends the stalls of a stream, or all: their tokens. */
  endAll(sid?: number): number[] {
    const tokens: number[] = [];
    for (const [tag, stall] of [...this.#stalled]) {
      if (sid !== undefined && stall.sid !== sid) continue;
      this.#release(tag);
      tokens.push(stall.token);
    }
    return tokens;
  }

  #release(tag: number): void {
    this.#stalled.delete(tag);
    this.#free.push(tag);
  }

  /** Tokens of those that waited for a tag, as many as there are tags; all with `every`. */
  next(every = false): number[] {
    return this.#waiting.splice(0, every ? this.#waiting.length : this.#maximum - this.#stalled.size);
  }
}
