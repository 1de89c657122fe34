/**
 * The address space of a modelled process: virtual pages over RAM frames of host memory. Pinned frames outlive the
 * mapping they came from, as on Linux. A range may be marked private: the first pin of it then asks for adoption
 * (`Restart`), as the memory of a real process does.
 */
import { FRAME_BYTES, type HostMemory } from "../memory/host-memory.ts";
import { LinuxError } from "../uapi/errno.ts";
import { type Adopter, type Pin, Restart, type UserMemory, type UserRange } from "./call.ts";

/** Addresses a user may have: 47 bits. */
const USER_END = 0x8000_0000_0000;

interface Frame {
  readonly pa: number;
  /** The mapping and the pins that hold it. */
  references: number;
  /** Pages that lie together in host memory go back together. */
  readonly run?: FrameRun;
}

/** Contiguous frames of host memory, given back when the last of them is dropped. */
interface FrameRun {
  readonly pa: number;
  readonly frames: number;
  left: number;
}

/** Pages of a file that are told when the last of them is unmapped. */
interface Shared {
  pages: number;
  readonly gone: () => void;
}

interface Page {
  readonly frame: Frame;
  readonly shared?: Shared;
  writable: boolean;
  adopted: boolean;
}

export interface MapOptions {
  readonly writable?: boolean;
  /** Must be adopted by its owner before it can be pinned. */
  readonly private?: boolean;
  /** The pages lie together in host memory, as huge pages do. */
  readonly contiguous?: boolean;
}

let nextId = 1;

export class ModelMemory implements UserMemory, Adopter {
  readonly id = nextId++;
  lockedPages = 0;
  pinnedPages = 0;
  readonly expected = new Set<UserRange>();
  readonly atEnd = new Set<() => void>();
  readonly #host: HostMemory;
  readonly #pages = new Map<number, Page>();
  /** Adoptions that were made, for tests. */
  adoptions = 0;

  constructor(host: HostMemory) {
    this.#host = host;
  }

  /** Fresh zeroed pages; what was there goes (MAP_FIXED). Throws ENOMEM. */
  map(va: number, length: number, options: MapOptions = {}): void {
    this.#checkWhole(va, length);
    this.unmap(va, length);
    const run = options.contiguous ? this.#allocateRun(length / FRAME_BYTES) : undefined;
    for (let page = va / FRAME_BYTES; page < (va + length) / FRAME_BYTES; page += 1) {
      const frame = run
        ? { pa: run.pa + (page * FRAME_BYTES - va), references: 1, run }
        : { pa: this.#allocate(1), references: 1 };
      this.#pages.set(page, {
        frame,
        writable: options.writable ?? true,
        adopted: !options.private,
      });
    }
  }

  /** Pages of host memory that belong to somebody else: a kernel file's. `gone` is called when all are unmapped. */
  mapPhysical(
    va: number,
    length: number,
    {
      pa,
      writable,
      gone = () => {},
    }: { readonly pa: number; readonly writable: boolean; readonly gone?: () => void },
  ): void {
    this.#checkWhole(va, length);
    this.unmap(va, length);
    const shared = { pages: length / FRAME_BYTES, gone };
    for (let done = 0; done < length; done += FRAME_BYTES)
      this.#pages.set((va + done) / FRAME_BYTES, {
        frame: { pa: pa + done, references: Number.POSITIVE_INFINITY },
        shared,
        writable,
        adopted: true,
      });
  }

  unmap(va: number, length: number): void {
    this.#checkWhole(va, length);
    for (let page = va / FRAME_BYTES; page < (va + length) / FRAME_BYTES; page += 1) {
      const mapped = this.#pages.get(page);
      if (!mapped) continue;
      this.#pages.delete(page);
      this.#unmapped(mapped);
    }
  }

  protect(va: number, length: number, writable: boolean): void {
    this.#checkWhole(va, length);
    for (let page = va / FRAME_BYTES; page < (va + length) / FRAME_BYTES; page += 1) {
      const mapped = this.#pages.get(page);
      if (!mapped) throw new LinuxError("ENOMEM", `page ${hex(page * FRAME_BYTES)} is not mapped`);
      mapped.writable = writable;
    }
  }

  /** The owner has moved these ranges to where they can be pinned. */
  adopt(ranges: readonly UserRange[]): void {
    this.adoptions += 1;
    for (const { va, length } of ranges)
      for (let page = va / FRAME_BYTES; page < (va + length) / FRAME_BYTES; page += 1) {
        const mapped = this.#pages.get(page);
        if (mapped) mapped.adopted = true;
      }
  }

  /** Frames are frames, wherever they are. */
  giveUp(ranges: readonly UserRange[]): void {
    this.adopt(ranges);
  }

  /** Physical address behind a virtual one, or -1. */
  physical(va: number): number {
    const mapped = this.#pages.get(Math.floor(va / FRAME_BYTES));
    return mapped ? mapped.frame.pa + (va % FRAME_BYTES) : -1;
  }

  get mappedPages(): number {
    return this.#pages.size;
  }

  read(va: bigint, into: Uint8Array): void {
    const start = startOf(va, into.length);
    for (let done = 0; done < into.length; ) {
      const piece = pieceOf(into, done, start);
      if (!this.#host.readBytes(this.#reach(start + done, false), piece)) throw lost(start + done);
      done += piece.length;
    }
  }

  write(va: bigint, data: Uint8Array): void {
    const start = startOf(va, data.length);
    for (let done = 0; done < data.length; ) {
      const piece = pieceOf(data, done, start);
      if (!this.#host.writeBytes(this.#reach(start + done, true), piece)) throw lost(start + done);
      done += piece.length;
    }
  }

  /** Writes regardless of protection: what the program itself did while it could. */
  poke(va: number, data: Uint8Array): void {
    for (let done = 0; done < data.length; ) {
      const pa = this.physical(va + done);
      const count = Math.min(data.length - done, FRAME_BYTES - ((va + done) % FRAME_BYTES));
      if (pa < 0) throw fault(va + done, "not mapped");
      this.#host.writeBytes(pa, data.subarray(done, done + count));
      done += count;
    }
  }

  pin(va: number, length: number, writable: boolean): Pin {
    this.#checkWhole(va, length);
    if (va + length > USER_END) throw fault(va, "beyond the user's addresses");
    const frames: Frame[] = [];
    let ask = false;
    for (let page = va / FRAME_BYTES; page < (va + length) / FRAME_BYTES; page += 1) {
      const mapped = this.#pages.get(page);
      if (!mapped) throw fault(page * FRAME_BYTES, "not mapped");
      if (mapped.shared)
        throw fault(page * FRAME_BYTES, "a page of a file of the kernel, which cannot be pinned");
      if (writable && !mapped.writable) throw fault(page * FRAME_BYTES, "read-only");
      ask ||= !mapped.adopted;
      frames.push(mapped.frame);
    }
    if (ask) throw new Restart(this, [{ va, length }]);
    for (const frame of frames) frame.references += 1;
    return {
      va,
      pages: frames.length,
      writable,
      extents: extentsOf(frames),
      unpin: (first, count) => {
        for (const frame of frames.slice(first, first + count)) this.#drop(frame);
      },
    };
  }

  /** Every mapping goes. */
  release(): void {
    const pages = [...this.#pages.values()];
    this.#pages.clear();
    for (const page of pages) this.#unmapped(page);
    for (const end of [...this.atEnd]) end();
    this.atEnd.clear();
  }

  #allocate(frames: number): number {
    const pa = this.#host.allocate(frames);
    if (pa < 0) throw new LinuxError("ENOMEM", `host memory has no ${frames} free frame(s) together`);
    return pa;
  }

  #allocateRun(frames: number): FrameRun {
    return { pa: this.#allocate(frames), frames, left: frames };
  }

  #unmapped({ frame, shared }: Page): void {
    this.#drop(frame);
    if (!shared) return;
    shared.pages -= 1;
    if (shared.pages === 0) shared.gone();
  }

  #drop(frame: Frame): void {
    frame.references -= 1;
    if (frame.references < 0) throw new Error(`frame ${hex(frame.pa)} was given back twice`);
    if (frame.references > 0) return;
    const { run } = frame;
    if (!run) this.#host.free(frame.pa, 1);
    else if (--run.left === 0) this.#host.free(run.pa, run.frames);
  }

  /** Physical address of a byte the task may read, or write. Throws EFAULT. */
  #reach(at: number, write: boolean): number {
    const mapped = this.#pages.get(Math.floor(at / FRAME_BYTES));
    if (!mapped) throw fault(at, "not mapped");
    if (write && !mapped.writable) throw fault(at, "read-only");
    return mapped.frame.pa + (at % FRAME_BYTES);
  }

  #checkWhole(va: number, length: number): void {
    if (va % FRAME_BYTES !== 0 || length % FRAME_BYTES !== 0)
      throw new RangeError(`${hex(va)} + ${hex(length)}: whole pages are needed`);
  }
}

const hex = (value: number | bigint): string => `0x${value.toString(16)}`;

/** The first address of an access. Throws EFAULT when it ends beyond the user's addresses. */
const startOf = (va: bigint, length: number): number => {
  const start = Number(va);
  if (length > 0 && start + length > USER_END) throw fault(va, "beyond the user's addresses");
  return start;
};

/** What of an access that begins at `start` lies in the page that byte `done` of it is in. */
const pieceOf = (bytes: Uint8Array, done: number, start: number): Uint8Array => {
  const count = Math.min(bytes.length - done, FRAME_BYTES - ((start + done) % FRAME_BYTES));
  return count === bytes.length ? bytes : bytes.subarray(done, done + count);
};

const lost = (va: number): LinuxError => fault(va, "lost its frame");

const fault = (va: number | bigint, why: string): LinuxError =>
  new LinuxError("EFAULT", `user address ${hex(va)} is ${why}`);

const extentsOf = (frames: readonly Frame[]): Float64Array => {
  const runs: number[] = [];
  for (const { pa } of frames) {
    const pfn = pa / FRAME_BYTES;
    const last = runs.length - 2;
    if (last >= 0 && runs[last]! + runs[last + 1]! === pfn) runs[last + 1]! += 1;
    else runs.push(pfn, 1);
  }
  return Float64Array.from(runs);
};
