/** What a run amounted to, counted from its events: the last line of `--explain`. */
import type { TraceEvent } from "./fan.ts";

export class Tally {
  readonly #counts = { calls: 0, failed: 0, accesses: 0, bytes: 0, refused: 0, interrupts: 0 };

  readonly count = ({ kind, fields }: TraceEvent): void => {
    const counts = this.#counts;
    if (kind === "call") {
      counts.calls += 1;
      if (fields["error"] !== undefined) counts.failed += 1;
    } else if (kind === "dma") {
      counts.accesses += 1;
      counts.bytes += Number(fields["bytes"]);
    } else if (kind === "fault") counts.refused += 1;
    else if (kind === "interrupt" && fields["vector"] !== undefined) counts.interrupts += 1;
  };

  /** "212 calls, 1 failed; 1034 DMA accesses (2.1 MiB), 1 refused; 12 interrupts" */
  toString(): string {
    const { calls, failed, accesses, bytes, refused, interrupts } = this.#counts;
    return (
      `${some(calls, "call")}, ${failed} failed; ` +
      `${some(accesses, "DMA access", "DMA accesses")} (${size(bytes)}), ${refused} refused; ` +
      some(interrupts, "interrupt")
    );
  }
}

const some = (count: number, one: string, many = `${one}s`): string => `${count} ${count === 1 ? one : many}`;

const size = (bytes: number): string => {
  const units = ["bytes", "KiB", "MiB", "GiB"];
  const step = Math.min(units.length - 1, bytes < 1024 ? 0 : Math.floor(Math.log2(bytes) / 10));
  return step === 0 ? `${bytes} bytes` : `${(bytes / 1024 ** step).toFixed(1)} ${units[step]}`;
};
