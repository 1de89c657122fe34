/**
 * Trace files: JSON Lines, one event a line, or (a name that ends in `.json`) the trace event format that Perfetto and
 * chrome://tracing open. 64-bit values and addresses are hexadecimal strings. docs/tracing.md lists the fields.
 */
import { closeSync, openSync, writeSync } from "node:fs";
import type { EventFields } from "../base/events.ts";
import type { TraceEvent } from "./fan.ts";

/** Bytes gathered before they are written. */
const CHUNK = 1 << 16;

export class TraceFile {
  /** Why the trace ended early (a full disk), if it did: tracing never fails a program's call. */
  failure: string | undefined;
  readonly #fd: number;
  readonly #perfetto: boolean;
  #pending = "";
  #first = true;
  #open = true;

  /** Throws what open(2) does. */
  constructor(path: string) {
    this.#fd = openSync(path, "w");
    this.#perfetto = path.endsWith(".json");
    if (this.#perfetto) this.#pending = '{"displayTimeUnit":"ns","traceEvents":[';
  }

  write(event: TraceEvent): void {
    if (!this.#open) return;
    this.#pending += this.#perfetto ? `${this.#first ? "" : ","}\n${perfetto(event)}` : `${line(event)}\n`;
    this.#first = false;
    if (this.#pending.length >= CHUNK) this.#flush();
  }

  close(): void {
    if (!this.#open) return;
    if (this.#perfetto) this.#pending += "\n]}\n";
    this.#flush();
    this.#end();
  }

  #flush(): void {
    const bytes = Buffer.from(this.#pending);
    this.#pending = "";
    try {
      for (let done = 0; done < bytes.length; ) done += writeSync(this.#fd, bytes, done);
    } catch (error) {
      this.failure = error instanceof Error ? error.message : String(error);
      this.#end();
    }
  }

  #end(): void {
    if (!this.#open) return;
    this.#open = false;
    closeSync(this.#fd);
  }
}

/** Names of fields that hold addresses or bit patterns. */
const HEX = /^(iova|pa|address|vaddr|rip|entry|entryAddress|rid|from|data|offset|value|length)$/;

const plain = (fields: EventFields): Record<string, unknown> =>
  Object.fromEntries(
    Object.entries(fields)
      .filter(([, value]) => value !== undefined)
      .map(([name, value]) => [
        name,
        typeof value === "bigint" || (typeof value === "number" && HEX.test(name)) ? hex(value) : value,
      ]),
  );

const hex = (value: number | bigint): string => (value < 0 ? String(value) : `0x${value.toString(16)}`);

const line = ({ at, kind, fields }: TraceEvent): string => JSON.stringify({ at, kind, ...plain(fields) });

/** An instant event on the row of its process and thread; what has no process is on the machine's row, 0. */
const perfetto = ({ at, kind, fields }: TraceEvent): string => {
  const { pid = 0, tid = 0, ...args } = plain(fields);
  const name = typeof args["call"] === "string" ? `${args["call"]} ${args["details"] ?? ""}`.trim() : kind;
  return JSON.stringify({ name, cat: kind, ph: "i", s: "t", ts: at / 1000, pid, tid, args });
};
