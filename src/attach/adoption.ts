/**
 * The daemon's half of adoption: one sparse memfd for each address space, in which every adopted range gets a window of
 * its own. A window is far longer than the range, so that a mapping that its program lets grow (realloc does, by an
 * mremap nobody can interpose) grows into fresh zeros and not into a neighbour. What the program does not map
 * and nobody pins any more is given back when enough has collected; the kernel's maps say what that is.
 */
import { closeSync } from "node:fs";
import * as libc from "../base/libc.ts";
import { FRAME_BYTES } from "../memory/host-memory.ts";
import type { ClientFile } from "./client-files.ts";
import type { Vma } from "./maps.ts";

/** Space behind a range in its window. */
const SLACK = 2 ** 36;
/** Windows of this length are used again; longer ones are rare. */
const WINDOW = 2 ** 37;
const FILE_BYTES = 2 ** 62;
const LARGE_PAGE = 2 ** 21;
/** Adopted ranges of one program: each costs it up to two of its 65530 mappings. */
const MAX_WINDOWS = 20_000;
const SWEEP_BYTES = 64 * 2 ** 20;
const SWEEP_RANGES = 256;

interface Window {
  readonly start: number;
  readonly length: number;
}

export class Adoption {
  readonly file: ClientFile;
  readonly #windows = new Map<number, Window>();
  readonly #free: number[] = [];
  #next = 0;
  /**
   * The window that was planned last: its owner may not have mapped it yet, so a sweep leaves it alone. The ones before
   * are mapped or given up: a program adopts one range at a time.
   */
  #latest: number | undefined;
  /** Adopted since the last sweep. */
  #bytes = 0;
  #ranges = 0;
  #patience = SWEEP_RANGES;

  constructor(file: ClientFile) {
    this.file = file;
  }

  /** A memfd for adopted memory. */
  static createFile(): number {
    const fd = libc.must("memfd_create", libc.memfdCreate("softiommu adopted", libc.MFD_CLOEXEC));
    const error = libc.ftruncate(fd, FILE_BYTES);
    if (error < 0) {
      closeSync(fd);
      throw new libc.SystemError("ftruncate", -error);
    }
    return fd;
  }

  get windows(): number {
    return this.#windows.size;
  }

  get full(): boolean {
    return this.#windows.size >= MAX_WINDOWS;
  }

  /** Time to look what the program still maps. */
  get due(): boolean {
    return this.#bytes >= SWEEP_BYTES || this.#ranges >= this.#patience;
  }

  /** Where a range goes: an offset in the memfd, congruent with its address modulo 2 MiB. -1: no room. */
  plan(va: number, length: number): number {
    const lead = va % LARGE_PAGE;
    const usual = length + lead + SLACK <= WINDOW;
    const size = usual ? WINDOW : Math.ceil((length + lead + SLACK) / WINDOW) * WINDOW;
    let start = usual ? this.#free.pop() : undefined;
    if (start === undefined) {
      if (this.#next + size > FILE_BYTES) return -1;
      start = this.#next;
      this.#next += size;
    }
    this.#windows.set(start, { start, length: size });
    this.#latest = start;
    this.#bytes += length;
    this.#ranges += 1;
    return start + lead;
  }

  /** The range did not go there after all. */
  cancel(offset: number): void {
    const window = this.#windows.get(Math.floor(offset / WINDOW) * WINDOW);
    if (window === undefined) return;
    this.#punch(window.start, window.start + window.length);
    this.#forget(window);
  }

  /** Gives back what the program, whose mappings of the memfd these are, does not map and nobody pins. */
  sweep(mapped: readonly Vma[]): void {
    this.#bytes = 0;
    this.#ranges = 0;
    const held = [...mapped].sort((a, b) => a.offset - b.offset);
    let next = 0;
    for (const window of [...this.#windows.values()].sort((a, b) => a.start - b.start)) {
      if (window.start === this.#latest) continue;
      const end = window.start + window.length;
      while (next < held.length && held[next]!.offset < window.start) next++;
      let from = window.start;
      let inUse = false;
      for (; next < held.length && held[next]!.offset < end; next++) {
        const { offset, start, end: stop } = held[next]!;
        inUse = true;
        if (offset > from) this.#punch(from, offset);
        from = Math.max(from, offset + (stop - start));
      }
      if (from < end) this.#punch(from, end);
      if (!inUse && !this.file.isPinned(window.start / FRAME_BYTES, end / FRAME_BYTES)) this.#forget(window);
    }
    this.#patience = Math.max(SWEEP_RANGES, this.#windows.size);
  }

  #forget(window: Window): void {
    this.file.dropIdle(window.start / FRAME_BYTES, (window.start + window.length) / FRAME_BYTES);
    this.#windows.delete(window.start);
    if (window.length === WINDOW) this.#free.push(window.start);
  }

  #punch(start: number, end: number): void {
    const mode = libc.FallocateMode.keepSize | libc.FallocateMode.punchHole;
    for (const gap of this.file.unpinned(start / FRAME_BYTES, end / FRAME_BYTES))
      libc.fallocate(this.file.fd, mode, gap.first * FRAME_BYTES, (gap.end - gap.first) * FRAME_BYTES);
  }
}
