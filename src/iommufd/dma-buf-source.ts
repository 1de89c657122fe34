/**
 * Pages of a dma-buf (IOMMU_IOAS_MAP_FILE of one): memory of a device, at a physical address that its exporter may take
 * back. Only those of a single range are mapped, as in Linux 7.2, whose exporters tell nothing but one address.
 */
import type { Pin } from "../kernel/call.ts";
import type { DmaBuf, DmaBufImporter } from "../kernel/dma-buf.ts";
import { LinuxError } from "../uapi/errno.ts";
import { hex, PAGE_BYTES } from "./address.ts";
import type { PageSource } from "./pages.ts";

export class DmaBufSource implements PageSource, DmaBufImporter {
  readonly base: bigint;
  readonly #buffer: DmaBuf;
  /** Frame of page 0. */
  readonly #pfn: number;
  #taken: (() => void) | undefined;

  /**
   * Bytes [start, end) of the buffer. Throws EINVAL (beyond its end), ENODEV (revoked), EOPNOTSUPP (several ranges); then it
   * is not imported.
   */
  constructor(buffer: DmaBuf, start: bigint, end: bigint) {
    if (end > BigInt(buffer.size))
      throw new LinuxError(
        "EINVAL",
        `bytes ${hex(start)} to ${hex(end)} are beyond its ${hex(buffer.size)}`,
        buffer.name,
      );
    buffer.attach(this);
    const [range, second] = buffer.ranges;
    if (range === undefined || second !== undefined) {
      buffer.detach(this);
      throw new LinuxError(
        "EOPNOTSUPP",
        `it has ${buffer.ranges.length} ranges of physical memory; one can be mapped`,
        buffer.name,
      );
    }
    const page = start / BigInt(PAGE_BYTES);
    this.#buffer = buffer;
    this.base = page * BigInt(PAGE_BYTES);
    this.#pfn = range.pa / PAGE_BYTES + Number(page);
  }

  whenTaken(taken: () => void): void {
    this.#taken = taken;
  }

  revoked(): void {
    this.#taken?.();
  }

  pin(first: number, count: number, writable: boolean): Pin {
    return {
      va: Number(this.base) + first * PAGE_BYTES,
      pages: count,
      writable,
      extents: Float64Array.of(this.#pfn + first, count),
      unpin: () => {},
    };
  }

  close(): void {
    this.#buffer.detach(this);
  }
}
