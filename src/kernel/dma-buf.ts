/**
 * Memory of a device as a file (Linux's driver-api/dma-buf): who holds a descriptor can have it mapped for other
 * devices, and the exporter can take it back at any moment. It knows physical ranges and who has imported them, not
 * what the memory is: a BAR, or what a test offers. Left out: exporters that cannot take their memory back, CPU
 * mappings, fences and names.
 */
import { LinuxError } from "../uapi/errno.ts";
import type { KernelFile } from "./call.ts";

const PAGE_BYTES = 4096;
const SEEK_SET = 0;
const SEEK_END = 2;

/** Physical memory, in bytes: multiples of a page. */
export interface PhysicalRange {
  readonly pa: number;
  readonly length: number;
}

export interface DmaBufParts {
  readonly name: string;
  /** In the order in which the file shows them; at least one. */
  readonly ranges: readonly PhysicalRange[];
  /** Neither a descriptor nor an importer is left: the exporter may use its memory for something else. */
  released(): void;
}

/** Who has imported a dma-buf. */
export interface DmaBufImporter {
  /** The exporter takes the memory back: it may not be reached any more when this returns. Never throws. */
  revoked(): void;
}

export class DmaBuf implements KernelFile {
  readonly kind = "dma-buf";
  readonly name: string;
  readonly ranges: readonly PhysicalRange[];
  /** Bytes of all ranges. */
  readonly size: number;
  readonly #released: () => void;
  readonly #importers = new Set<DmaBufImporter>();
  #open = true;
  #revoked = false;

  constructor({ name, ranges, released }: DmaBufParts) {
    for (const { pa, length } of ranges)
      if (pa % PAGE_BYTES !== 0 || length % PAGE_BYTES !== 0 || length <= 0)
        throw new RangeError(`${name}: 0x${pa.toString(16)} + 0x${length.toString(16)} are no whole pages`);
    this.name = name;
    this.ranges = ranges;
    this.size = ranges.reduce((sum, { length }) => sum + length, 0);
    this.#released = released;
  }

  get revoked(): boolean {
    return this.#revoked;
  }
  get importers(): number {
    return this.#importers.size;
  }

  /** Until `detach` the memory stays what it is, revoked or not. Throws ENODEV while it is revoked. */
  attach(importer: DmaBufImporter): void {
    if (this.#revoked)
      throw new LinuxError(
        "ENODEV",
        "its memory was revoked by the exporter; map it when it is back",
        this.name,
      );
    this.#importers.add(importer);
  }

  detach(importer: DmaBufImporter): void {
    if (this.#importers.delete(importer)) this.#letGo();
  }

  /** Takes the memory away from all importers; they do not get it back with `restore`. */
  revoke(): void {
    if (this.#revoked) return;
    this.#revoked = true;
    for (const importer of [...this.#importers]) importer.revoked();
  }

  /** It can be imported again. */
  restore(): void {
    this.#revoked = false;
  }

  /** Only to tell how large it is: the end, and back to the start. Throws EINVAL. */
  seek(offset: bigint, whence: number): number {
    if (offset === 0n && whence === SEEK_END) return this.size;
    if (offset === 0n && whence === SEEK_SET) return 0;
    throw new LinuxError("EINVAL", "it can be sought to offset 0 of its start and its end only", this.name);
  }

  /** Throws EINVAL: no exporter here offers its memory to the processor. */
  mmap(): never {
    throw new LinuxError("EINVAL", "its exporter has no mmap", this.name);
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#letGo();
  }

  #letGo(): void {
    if (!this.#open && this.#importers.size === 0) this.#released();
  }
}
