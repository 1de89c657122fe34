/** The event sink of a run: adds the time, and gives each event to everybody who listens. */
import type { Clock } from "../base/clock.ts";
import type { EventFields, EventKind, EventSink } from "../base/events.ts";

/** An event as listeners see it. */
export interface TraceEvent {
  /** Nanoseconds since the machine was powered on. */
  readonly at: number;
  readonly kind: EventKind;
  readonly fields: EventFields;
}

export type Listener = (event: TraceEvent) => void;

export class Fan implements EventSink {
  readonly #clock: Clock;
  readonly #listeners = new Set<Listener>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  get on(): boolean {
    return this.#listeners.size > 0;
  }

  emit(kind: EventKind, fields: EventFields): void {
    const event = { at: this.#clock.now(), kind, fields };
    for (const listen of this.#listeners) listen(event);
  }

  /** Returns how to stop listening. */
  listen(listener: Listener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}
