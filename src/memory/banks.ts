/**
 * Host physical memory as banks of 4 GiB: each is one reservation of address space, seen as one typed array and never
 * moved. Over its slots lie the machine's RAM (one sparse memfd of ours), clients' shared memory (their memfds and
 * files) and nothing; windows and the pages of a client that can only be reached by system call answer slowly.
 * A client that shrinks its file under us loses those pages (guard.ts), not the daemon.
 */
import * as libc from "../base/libc.ts";
import { Buddy, ceilLg2 } from "./buddy.ts";
import type { Guard } from "./guard.ts";
import { loadGuard } from "./guard.ts";
import { FRAME_BYTES, type HostMemory, MemoryError, type MmioWindow } from "./host-memory.ts";
import { type SlowFrames, SlowMap, windowFrames } from "./slow.ts";

const BANK_BYTES = 2 ** 32;
const BANK_FRAMES = 2 ** 20;
/** Pages of a 2 MiB leaf. */
const LARGE_PAGES = 512;
/** The most pages of one client run: with its lead it must fit in a bank. */
export const MAX_CLIENT_RUN = 2 ** 19;

/** Parts of RAM that have a file of their own at a time: each costs a descriptor and two mappings. */
const MAX_EXPOSED = 256;
/** What the files of such parts are called. */
export const EXPOSED_NAME = "softiommu pages";
/** MFD_CLOEXEC | MFD_ALLOW_SEALING. */
const MEMFD_SEALABLE = libc.MFD_CLOEXEC | 2;
/** F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW: a program that has the file cannot take the pages from under us. */
const FIXED_SIZE = 1 | 2 | 4;

/** Values of a frame's state byte. Bit 0: may be read directly; bit 1: and written; bit 2: a client's page. */
export const FrameState = {
  none: 0,
  readOnly: 1,
  readWrite: 3,
  clientReadOnly: 5,
  clientReadWrite: 7,
} as const;
const WRITABLE = 2;
const CLIENT = 4;

export interface BanksOptions {
  /** The machine's RAM; addresses and lengths in bytes, multiples of a frame. Frame 0 is never allocated. */
  readonly ram: readonly { readonly start: number; readonly length: number }[];
  /** Where clients' pages appear; multiples of 4 GiB. Windows and RAM keep out. Default: 256 GiB from 256 GiB. */
  readonly clients?: { readonly start: number; readonly length: number };
}

/** Where a frame's bytes really are, for mapping them elsewhere. */
export interface FrameBacking {
  readonly fd: number;
  readonly offset: number;
}

interface RamRange {
  readonly start: number;
  readonly length: number;
  /** Of its first byte in the memfd. */
  readonly offset: number;
  readonly frames: Buddy;
}

interface Bank {
  readonly address: number;
  readonly length: number;
  readonly stateAddress: number;
  /** Free slots for clients' pages. */
  readonly slots: Buddy | undefined;
}

/** What an absent bank looks like to those who index without asking. */
const noWords = new Uint32Array(0);
const noBytes = new Uint8Array(0);
const noFrames = new Uint8Array(BANK_FRAMES);
const eight = new Uint8Array(8);
const four = new Uint8Array(4);
const page = new Uint8Array(FRAME_BYTES);

const swap = (word: number): number =>
  ((word >>> 24) | ((word >>> 8) & 0xff00) | ((word << 8) & 0xff0000) | (word << 24)) >>> 0;
const littleEndian = (bytes: Uint8Array, at: number): number =>
  (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0;
const putLittleEndian = (bytes: Uint8Array, at: number, word: number): void => {
  bytes[at] = word;
  bytes[at + 1] = word >>> 8;
  bytes[at + 2] = word >>> 16;
  bytes[at + 3] = word >>> 24;
};

export class Banks implements HostMemory {
  lo = 0;
  hi = 0;
  cause: MemoryError = MemoryError.none;
  readonly words: Uint32Array[] = [];
  readonly bytes: Uint8Array[] = [];
  readonly state: Uint8Array[] = [];
  /** 1: the frame was marked bad. */
  readonly #bad: Uint8Array[] = [];
  readonly #banks: (Bank | undefined)[] = [];
  readonly #ram: RamRange[] = [];
  readonly #slow = new SlowMap();
  readonly #clientStart: number;
  readonly #clientEnd: number;
  readonly #memfd: number;
  #guard: Guard | undefined;
  /** How often the guard has replaced a page; what we have seen of it. */
  #trips: Int32Array = new Int32Array(1);
  #seenTrips = 0;
  #allocated = 0;
  #clientSlots = 0;
  /** RAM frames that lie in a file of their own, because a program may map them; by address. */
  readonly #exposed = new Map<number, { readonly length: number; readonly fd: number }>();
  /** lg2 of the slots taken for a run, by its first frame. */
  readonly #runs = new Map<number, number>();

  constructor(options: BanksOptions) {
    const ram = [...options.ram].sort((a, b) => a.start - b.start);
    const ramEnd = ram.reduce((end, { start, length }) => Math.max(end, start + length), 0);
    const above = Math.max(64, Math.ceil(ramEnd / BANK_BYTES)) * BANK_BYTES;
    const clients = options.clients ?? { start: above, length: 64 * BANK_BYTES };
    this.#clientStart = clients.start;
    this.#clientEnd = clients.start + clients.length;
    for (let at = 0; at < Math.max(ramEnd, this.#clientEnd); at += BANK_BYTES) {
      this.words.push(noWords);
      this.bytes.push(noBytes);
      this.state.push(noFrames);
      this.#bad.push(noFrames);
      this.#banks.push(undefined);
    }
    this.#memfd = libc.must("memfd_create", libc.memfdCreate("softiommu ram", libc.MFD_CLOEXEC));
    let offset = 0;
    for (const { start, length } of ram) {
      this.#addRam(start, length, offset, ramEnd);
      offset += length;
    }
  }

  /** Frames of clients that answer now or are kept mapped: slots in use, and the number of runs they form. */
  get clientSlots(): number {
    return this.#clientSlots;
  }
  get clientRuns(): number {
    return this.#runs.size;
  }
  get allocated(): number {
    return this.#allocated;
  }

  // ---- words -------------------------------------------------------------------------------------------------

  load64(pa: number): boolean {
    const bank = (pa / BANK_BYTES) | 0;
    const low = pa >>> 0;
    if (bank >= this.state.length || (low & 7) !== 0) return this.#load(pa, 8);
    const state = this.state[bank]![low >>> 12]!;
    if (state === 0) return this.#load(pa, 8);
    const words = this.words[bank]!;
    this.lo = words[low >>> 2]!;
    this.hi = words[(low >>> 2) + 1]!;
    return (state & CLIENT) === 0 || this.#trips[0] === this.#seenTrips || this.#unharmed(pa, 8);
  }

  load64be(pa: number): boolean {
    if (!this.load64(pa)) return false;
    const first = this.lo;
    this.lo = swap(this.hi);
    this.hi = swap(first);
    return true;
  }

  load32(pa: number): boolean {
    const bank = (pa / BANK_BYTES) | 0;
    const low = pa >>> 0;
    if (bank >= this.state.length || (low & 3) !== 0) return this.#load(pa, 4);
    const state = this.state[bank]![low >>> 12]!;
    if (state === 0) return this.#load(pa, 4);
    this.lo = this.words[bank]![low >>> 2]!;
    return (state & CLIENT) === 0 || this.#trips[0] === this.#seenTrips || this.#unharmed(pa, 4);
  }

  store64(pa: number, lo: number, hi: number): boolean {
    const bank = (pa / BANK_BYTES) | 0;
    const low = pa >>> 0;
    if (bank >= this.state.length || (low & 7) !== 0) return this.#store(pa, 8, lo, hi);
    const state = this.state[bank]![low >>> 12]!;
    if ((state & WRITABLE) === 0) return this.#store(pa, 8, lo, hi);
    const words = this.words[bank]!;
    // The half with the present bit last: another processor must not see half an entry.
    words[(low >>> 2) + 1] = hi;
    words[low >>> 2] = lo;
    return (state & CLIENT) === 0 || this.#trips[0] === this.#seenTrips || this.#unharmed(pa, 8);
  }

  store64be(pa: number, lo: number, hi: number): boolean {
    return this.store64(pa, swap(hi), swap(lo));
  }

  store32(pa: number, value: number): boolean {
    const bank = (pa / BANK_BYTES) | 0;
    const low = pa >>> 0;
    if (bank >= this.state.length || (low & 3) !== 0) return this.#store(pa, 4, value, 0);
    const state = this.state[bank]![low >>> 12]!;
    if ((state & WRITABLE) === 0) return this.#store(pa, 4, value, 0);
    this.words[bank]![low >>> 2] = value;
    return (state & CLIENT) === 0 || this.#trips[0] === this.#seenTrips || this.#unharmed(pa, 4);
  }

  clear64(pa: number, lo: number, hi: number): boolean {
    const bank = (pa / BANK_BYTES) | 0;
    const low = pa >>> 0;
    const state = bank < this.state.length && (low & 7) === 0 ? this.state[bank]![low >>> 12]! : 0;
    if ((state & WRITABLE) === 0) {
      if (!this.load64(pa)) return false;
      return this.#store(pa, 8, this.lo & ~lo, this.hi & ~hi);
    }
    const words = this.words[bank]!;
    if (lo !== 0) Atomics.and(words, low >>> 2, ~lo);
    if (hi !== 0) Atomics.and(words, (low >>> 2) + 1, ~hi);
    return (state & CLIENT) === 0 || this.#trips[0] === this.#seenTrips || this.#unharmed(pa, 8);
  }

  or64(pa: number, lo: number, hi: number): boolean {
    const bank = (pa / BANK_BYTES) | 0;
    const low = pa >>> 0;
    const state = bank < this.state.length && (low & 7) === 0 ? this.state[bank]![low >>> 12]! : 0;
    if ((state & WRITABLE) === 0) {
      if (!this.load64(pa)) return false;
      return this.#store(pa, 8, this.lo | lo, this.hi | hi);
    }
    const words = this.words[bank]!;
    if (lo !== 0) Atomics.or(words, low >>> 2, lo);
    if (hi !== 0) Atomics.or(words, (low >>> 2) + 1, hi);
    return (state & CLIENT) === 0 || this.#trips[0] === this.#seenTrips || this.#unharmed(pa, 8);
  }

  #load(pa: number, size: 4 | 8): boolean {
    if (!this.#slowWord(pa, size)) return false;
    const into = size === 8 ? eight : four;
    if (!this.readBytes(pa, into)) return false;
    this.lo = littleEndian(into, 0);
    if (size === 8) this.hi = littleEndian(into, 4);
    return true;
  }

  #store(pa: number, size: 4 | 8, lo: number, hi: number): boolean {
    if (!this.#slowWord(pa, size)) return false;
    const data = size === 8 ? eight : four;
    putLittleEndian(data, 0, lo);
    if (size === 8) putLittleEndian(data, 4, hi);
    return this.writeBytes(pa, data);
  }

  /** Whether a word that is not direct may be had as bytes: aligned, and memory rather than a window. */
  #slowWord(pa: number, size: number): boolean {
    const slow = pa >= 0 && pa % size === 0 ? this.#slow.find(pa) : undefined;
    if (pa % size === 0 && !slow?.device) return true;
    this.cause = MemoryError.unsupported;
    return false;
  }

  // ---- bytes -------------------------------------------------------------------------------------------------

  readBytes(pa: number, into: Uint8Array, from = -1): boolean {
    const length = into.length;
    let done = 0;
    while (done < length) {
      const bank = this.#bankOf(pa + done);
      const low = (pa + done) >>> 0;
      const run = this.#direct(bank, low, length - done, 1);
      if (run === 0) {
        const served = this.#slowBytes(pa + done, length - done);
        if (served === 0) return false;
        const slow = this.#slow.find(pa + done)!;
        const error = slow.read(pa + done, into.subarray(done, done + served), from);
        if (error !== MemoryError.none) return this.#failed(error);
        done += served;
        continue;
      }
      const bytes = this.bytes[bank]!;
      if (run < 64) for (let i = 0; i < run; i++) into[done + i] = bytes[low + i]!;
      else into.set(bytes.subarray(low, low + run), done);
      if (this.#trips[0] !== this.#seenTrips && !this.#unharmed(pa + done, run)) return false;
      done += run;
    }
    return true;
  }

  writeBytes(pa: number, data: Uint8Array, from = -1): boolean {
    const length = data.length;
    let done = 0;
    while (done < length) {
      const bank = this.#bankOf(pa + done);
      const low = (pa + done) >>> 0;
      const run = this.#direct(bank, low, length - done, WRITABLE);
      if (run === 0) {
        const served = this.#slowBytes(pa + done, length - done);
        if (served === 0) return false;
        const slow = this.#slow.find(pa + done)!;
        const error = slow.write(pa + done, data.subarray(done, done + served), from);
        if (error !== MemoryError.none) return this.#failed(error);
        done += served;
        continue;
      }
      const bytes = this.bytes[bank]!;
      if (run < 64) for (let i = 0; i < run; i++) bytes[low + i] = data[done + i]!;
      else bytes.set(done === 0 && run === length ? data : data.subarray(done, done + run), low);
      if (this.#trips[0] !== this.#seenTrips && !this.#unharmed(pa + done, run)) return false;
      done += run;
    }
    return true;
  }

  /** Overlapping ranges are copied as if through a buffer when both are direct and within one bank. */
  copy(target: number, source: number, length: number): boolean {
    let done = 0;
    while (done < length) {
      const from = this.#bankOf(source + done);
      const to = this.#bankOf(target + done);
      const fromLow = (source + done) >>> 0;
      const toLow = (target + done) >>> 0;
      const readable = this.#direct(from, fromLow, length - done, 1);
      const run = readable === 0 ? 0 : this.#direct(to, toLow, readable, WRITABLE);
      if (run === 0) {
        const step = Math.min(length - done, FRAME_BYTES - (fromLow & 4095), FRAME_BYTES - (toLow & 4095));
        const part = page.subarray(0, step);
        if (!this.readBytes(source + done, part) || !this.writeBytes(target + done, part)) return false;
        done += step;
        continue;
      }
      if (from === to) this.bytes[from]!.copyWithin(toLow, fromLow, fromLow + run);
      else this.bytes[to]!.set(this.bytes[from]!.subarray(fromLow, fromLow + run), toLow);
      if (this.#trips[0] !== this.#seenTrips) {
        if (!this.#unharmed(source + done, run) || !this.#unharmed(target + done, run)) return false;
      }
      done += run;
    }
    return true;
  }

  fill(pa: number, length: number, byte: number): boolean {
    let done = 0;
    while (done < length) {
      const bank = this.#bankOf(pa + done);
      const low = (pa + done) >>> 0;
      const run = this.#direct(bank, low, length - done, WRITABLE);
      if (run === 0) {
        const part = page.subarray(0, Math.min(length - done, FRAME_BYTES - (low & 4095))).fill(byte);
        if (!this.writeBytes(pa + done, part)) return false;
        done += part.length;
        continue;
      }
      this.bytes[bank]!.fill(byte, low, low + run);
      if (this.#trips[0] !== this.#seenTrips && !this.#unharmed(pa + done, run)) return false;
      done += run;
    }
    return true;
  }

  /** The bank of an address, or -1 when there can be none. */
  #bankOf(pa: number): number {
    return pa >= 0 && pa < this.state.length * BANK_BYTES ? (pa / BANK_BYTES) | 0 : -1;
  }

  /** How many of the `length` bytes at `low` lie in consecutive frames whose state has `bit`. */
  #direct(bank: number, low: number, length: number, bit: number): number {
    if (bank < 0) return 0;
    const state = this.state[bank]!;
    const end = Math.min(low + length, BANK_BYTES);
    let at = low;
    while (at < end && (state[at >>> 12]! & bit) !== 0) at = ((at >>> 12) + 1) * FRAME_BYTES;
    return at === low ? 0 : Math.min(at, end) - low;
  }

  /** Bytes that slow frames serve at `pa`, at most `length`; 0 with the cause when none do. */
  #slowBytes(pa: number, length: number): number {
    const bank = this.#bankOf(pa);
    const frame = (pa >>> 0) >>> 12;
    if (bank >= 0 && this.#bad[bank]![frame] === 1) {
      this.cause = MemoryError.poisoned;
      return 0;
    }
    if (bank >= 0 && this.state[bank]![frame] !== 0) {
      this.cause = MemoryError.protected;
      return 0;
    }
    const slow = this.#slow.find(pa);
    if (slow === undefined || !slow.answers(pa)) {
      this.cause = MemoryError.absent;
      return 0;
    }
    // A client's remote pages answer one by one; a window as a whole.
    const end = slow.device ? slow.end : Math.min(slow.end, (Math.floor(pa / FRAME_BYTES) + 1) * FRAME_BYTES);
    return Math.min(length, end - pa);
  }

  #failed(error: MemoryError): false {
    this.cause = error;
    return false;
  }

  /** The guard has replaced some page since we last looked: whether none of these `length` bytes was in it. */
  #unharmed(pa: number, length: number): boolean {
    const bank = (pa / BANK_BYTES) | 0;
    const bad = this.#bad[bank]!;
    const last = ((pa >>> 0) + length - 1) / FRAME_BYTES;
    for (let frame = (pa >>> 0) >>> 12; frame <= last; frame++)
      if (bad[frame] === 1) return this.#failed(MemoryError.poisoned);
    return true;
  }

  // ---- RAM ---------------------------------------------------------------------------------------------------

  /** Asked before frames of RAM are given out; what it throws, `allocate` throws. */
  onAllocate: ((count: number) => void) | undefined;

  allocate(count: number): number {
    this.onAllocate?.(count);
    if (!(count >= 1 && count <= BANK_FRAMES)) return -1;
    const lg2 = ceilLg2(count);
    for (let i = this.#ram.length - 1; i >= 0; i--) {
      const frame = this.#ram[i]!.frames.allocate(lg2);
      if (frame < 0) continue;
      this.#allocated += count;
      const pa = frame * FRAME_BYTES;
      this.bytes[(pa / BANK_BYTES) | 0]!.fill(0, pa >>> 0, (pa >>> 0) + count * FRAME_BYTES);
      return pa;
    }
    return -1;
  }

  free(pa: number, count: number): void {
    const frame = pa / FRAME_BYTES;
    const range = this.#ram.find(({ frames }) => frames.contains(frame));
    if (range === undefined) throw new Error(`0x${pa.toString(16)} is not RAM`);
    range.frames.free(frame, ceilLg2(count));
    this.#allocated -= count;
    if (this.#exposed.size > 0) this.#conceal(pa, count * FRAME_BYTES);
  }

  #addRam(start: number, length: number, offset: number, ramEnd: number): void {
    libc.must("ftruncate", libc.ftruncate(this.#memfd, offset + length));
    for (let done = 0; done < length; ) {
      const at = start + done;
      const bank = (at / BANK_BYTES) | 0;
      const bankStart = bank * BANK_BYTES;
      const run = Math.min(length - done, bankStart + BANK_BYTES - at);
      // Only as much of a bank as there is RAM: nothing else of it will ever be direct.
      const { address } = this.#bank(bank, Math.min(BANK_BYTES, ramEnd - bankStart), false);
      const flags = libc.MapFlag.shared | libc.MapFlag.fixed | libc.MapFlag.noReserve;
      const access = libc.Prot.read | libc.Prot.write;
      libc.must("mmap", libc.mmap(address + (at >>> 0), run, access, flags, this.#memfd, offset + done));
      const first = (at >>> 0) / FRAME_BYTES;
      this.state[bank]!.fill(FrameState.readWrite, first, first + run / FRAME_BYTES);
      done += run;
    }
    const skip = start === 0 ? 1 : 0;
    const frames = new Buddy(start / FRAME_BYTES + skip, length / FRAME_BYTES - skip);
    this.#ram.push({ start, length, offset, frames });
  }

  #bank(index: number, length: number, slots: boolean): Bank {
    const known = this.#banks[index];
    if (known !== undefined) return known;
    const anonymous = libc.MapFlag.private | libc.MapFlag.anonymous | libc.MapFlag.noReserve;
    const address = libc.must("mmap", libc.mmap(0, length, libc.Prot.none, anonymous, -1, 0));
    const access = libc.Prot.read | libc.Prot.write;
    const stateAddress = libc.must("mmap", libc.mmap(0, 2 * BANK_FRAMES, access, anonymous, -1, 0));
    const view = libc.viewOf(address, length);
    const frames = libc.viewOf(stateAddress, 2 * BANK_FRAMES);
    this.words[index] = new Uint32Array(view);
    this.bytes[index] = new Uint8Array(view);
    this.state[index] = new Uint8Array(frames, 0, BANK_FRAMES);
    this.#bad[index] = new Uint8Array(frames, BANK_FRAMES, BANK_FRAMES);
    const buddy = slots ? new Buddy(index * BANK_FRAMES, BANK_FRAMES) : undefined;
    const bank: Bank = { address, length, stateAddress, slots: buddy };
    this.#banks[index] = bank;
    return bank;
  }

  /** The file behind all RAM, which no program may have (`expose`), and where a frame lies in it; undefined where there is no RAM. */
  backing(pa: number): FrameBacking | undefined {
    const range = this.#ram.find(({ start, length }) => pa >= start && pa < start + length);
    return range && { fd: this.#memfd, offset: range.offset + (pa - range.start) };
  }

  /**
   * The file to map some RAM frames from, which holds nothing but them: they move into it when they are first asked for,
   * and leave it when they are freed; who maps the file then keeps the old bytes. Whole frames of one allocation. Undefined
   * when it is no RAM, when another file holds a part of it, or when no file more can be had.
   */
  expose(pa: number, length: number): FrameBacking | undefined {
    if (pa % FRAME_BYTES !== 0 || length % FRAME_BYTES !== 0 || length <= 0) return undefined;
    for (const [start, { length: bytes, fd }] of this.#exposed) {
      if (pa >= start && pa + length <= start + bytes) return { fd, offset: pa - start };
      if (pa < start + bytes && start < pa + length) return undefined;
    }
    const range = this.#ram.find((ram) => pa >= ram.start && pa + length <= ram.start + ram.length);
    if (range === undefined || this.#exposed.size >= MAX_EXPOSED) return undefined;
    const content = new Uint8Array(length);
    this.readBytes(pa, content);
    const fd = libc.memfdCreate(EXPOSED_NAME, MEMFD_SEALABLE);
    if (fd < 0) return undefined;
    libc.must("ftruncate", libc.ftruncate(fd, length));
    libc.must("fcntl", libc.fcntl(fd, libc.Fcntl.addSeals, FIXED_SIZE));
    this.#lay(pa, length, fd, 0);
    this.writeBytes(pa, content);
    this.#exposed.set(pa, { length, fd });
    return { fd, offset: 0 };
  }

  /** The frames are RAM like all other again. */
  #conceal(pa: number, length: number): void {
    for (const [start, { length: bytes, fd }] of this.#exposed) {
      if (start < pa || start >= pa + length) continue;
      const { fd: ram, offset } = this.backing(start)!;
      this.#lay(start, bytes, ram, offset);
      libc.close(fd);
      this.#exposed.delete(start);
    }
  }

  /** Maps a part of a file over RAM frames, which stay as accessible as they were. */
  #lay(pa: number, length: number, fd: number, offset: number): void {
    for (let done = 0; done < length; ) {
      const run = Math.min(length - done, BANK_BYTES - ((pa + done) >>> 0));
      const address = this.#addressOfFrame((pa + done) / FRAME_BYTES);
      const flags = libc.MapFlag.shared | libc.MapFlag.fixed | libc.MapFlag.noReserve;
      const access = libc.Prot.read | libc.Prot.write;
      libc.must("mmap", libc.mmap(address, run, access, flags, fd, offset + done));
      done += run;
    }
  }

  /** The inverse of `backing`: the address of a byte of the RAM file, or -1. */
  addressOf(offset: number): number {
    const range = this.#ram.find((one) => offset >= one.offset && offset < one.offset + one.length);
    return range === undefined ? -1 : range.start + (offset - range.offset);
  }

  // ---- windows, poison ---------------------------------------------------------------------------------------

  addWindow(pa: number, length: number, window: MmioWindow): () => void {
    if (pa % FRAME_BYTES !== 0 || length % FRAME_BYTES !== 0 || length <= 0)
      throw new Error(`window ${window.name}: address and length must be multiples of ${FRAME_BYTES}`);
    const end = pa + length;
    const overlaps = (start: number, stop: number) => pa < stop && end > start;
    const ram = this.#ram.find((range) => overlaps(range.start, range.start + range.length));
    if (ram !== undefined || overlaps(this.#clientStart, this.#clientEnd))
      throw new Error(
        `window ${window.name} at 0x${pa.toString(16)} lies over ${ram ? "RAM" : "clients' pages"}`,
      );
    const frames = windowFrames(pa, length, window);
    this.#slow.add(frames);
    return () => this.#slow.remove(frames);
  }

  poison(pa: number, length: number): void {
    const end = pa + length;
    for (let at = Math.floor(pa / FRAME_BYTES) * FRAME_BYTES; at < end; at += FRAME_BYTES) {
      const bank = this.#bankOf(at);
      if (bank < 0 || this.#banks[bank] === undefined) continue;
      const frame = (at >>> 0) >>> 12;
      if (this.state[bank]![frame] === 0 && this.#slow.find(at)?.device !== false) continue;
      this.state[bank]![frame] = FrameState.none;
      this.#bad[bank]![frame] = 1;
    }
  }

  // ---- clients' pages ----------------------------------------------------------------------------------------

  /**
   * Maps `pages` pages of a file, from `offset`, over free slots: congruent with `va` modulo 2 MiB when there are that
   * many, so that a large leaf can map them. Nothing answers there before `grant`. The first frame number, or -1 when
   * there are no more slots; throws a `SystemError` when the file cannot be mapped. At most `MAX_CLIENT_RUN` pages.
   */
  mapClient(fd: number, offset: number, pages: number, va: number, writable: boolean): number {
    const frame = this.#takeSlots(pages, va);
    if (frame < 0) return -1;
    const error = this.#mapOver(frame, pages, fd, offset, writable);
    if (error < 0) {
      this.#giveSlots(frame, pages);
      throw new libc.SystemError("mmap of a client's file", -error);
    }
    return frame;
  }

  /** Takes a whole run away. */
  unmapClient(frame: number, pages: number): void {
    this.revoke(frame, pages);
    const flags = libc.MapFlag.private | libc.MapFlag.anonymous | libc.MapFlag.fixed | libc.MapFlag.noReserve;
    const address = this.#addressOfFrame(frame);
    libc.must("mmap", libc.mmap(address, pages * FRAME_BYTES, libc.Prot.none, flags, -1, 0));
    this.#giveSlots(frame, pages);
  }

  /** Frame numbers for pages that answer slowly. `serve` makes what answers there, given the first address. */
  addRemote(pages: number, va: number, serve: (start: number) => SlowFrames): number {
    const frame = this.#takeSlots(pages, va);
    if (frame >= 0) this.#slow.add(serve(frame * FRAME_BYTES));
    return frame;
  }

  removeRemote(frame: number, pages: number): void {
    const frames = this.#slow.find(frame * FRAME_BYTES);
    if (frames !== undefined) this.#slow.remove(frames);
    this.revoke(frame, pages);
    this.#giveSlots(frame, pages);
  }

  /** Lets frames of one mapped run answer. */
  grant(frame: number, count: number, writable: boolean): void {
    const bank = (frame / BANK_FRAMES) | 0;
    const first = frame % BANK_FRAMES;
    const state = writable ? FrameState.clientReadWrite : FrameState.clientReadOnly;
    this.state[bank]!.fill(state, first, first + count);
  }

  /** Frames of one run answer no more; marks of being bad go too. */
  revoke(frame: number, count: number): void {
    const bank = (frame / BANK_FRAMES) | 0;
    const first = frame % BANK_FRAMES;
    this.state[bank]!.fill(0, first, first + count);
    this.#bad[bank]!.fill(0, first, first + count);
  }

  /** Whether the frame was marked bad. */
  isPoisoned(frame: number): boolean {
    return this.#bad[(frame / BANK_FRAMES) | 0]?.[frame % BANK_FRAMES] === 1;
  }

  #takeSlots(pages: number, va: number): number {
    const lead = pages >= LARGE_PAGES ? Math.floor(va / FRAME_BYTES) % LARGE_PAGES : 0;
    const lg2 = ceilLg2(pages + lead);
    for (let bank = this.#clientStart / BANK_BYTES; bank < this.#clientEnd / BANK_BYTES; bank++) {
      const frame = this.#clientBank(bank).slots!.allocate(lg2);
      if (frame < 0) continue;
      this.#runs.set(frame + lead, lg2);
      this.#clientSlots += pages;
      return frame + lead;
    }
    return -1;
  }

  #giveSlots(frame: number, pages: number): void {
    const lg2 = this.#runs.get(frame);
    if (lg2 === undefined) throw new Error(`frame ${frame} does not start a client's run`);
    this.#runs.delete(frame);
    this.#clientSlots -= pages;
    const start = Math.floor(frame / 2 ** lg2) * 2 ** lg2;
    this.#banks[(frame / BANK_FRAMES) | 0]!.slots!.free(start, lg2);
  }

  #clientBank(index: number): Bank {
    const known = this.#banks[index];
    if (known !== undefined) return known;
    const bank = this.#bank(index, BANK_BYTES, true);
    this.#guard ??= loadGuard();
    this.#trips = this.#guard.trips;
    this.#guard.watch(bank.address, bank.length, bank.stateAddress, bank.stateAddress + BANK_FRAMES);
    return bank;
  }

  #mapOver(frame: number, pages: number, fd: number, offset: number, writable: boolean): number {
    const access = libc.Prot.read | (writable ? libc.Prot.write : 0);
    const flags = libc.MapFlag.shared | libc.MapFlag.fixed | libc.MapFlag.noReserve;
    return libc.mmap(this.#addressOfFrame(frame), pages * FRAME_BYTES, access, flags, fd, offset);
  }

  #addressOfFrame(frame: number): number {
    return this.#banks[(frame / BANK_FRAMES) | 0]!.address + (frame % BANK_FRAMES) * FRAME_BYTES;
  }

  /** Gives everything back. Nothing answers any more; a view that somebody kept must not be used. */
  close(): void {
    for (const [index, bank] of this.#banks.entries()) {
      if (bank === undefined) continue;
      this.words[index] = noWords;
      this.bytes[index] = noBytes;
      this.state[index] = noFrames;
      this.#bad[index] = noFrames;
      this.#guard?.forget(bank.address);
      libc.munmap(bank.address, bank.length);
      libc.munmap(bank.stateAddress, 2 * BANK_FRAMES);
    }
    this.#banks.fill(undefined);
    for (const { fd } of this.#exposed.values()) libc.close(fd);
    this.#exposed.clear();
    libc.close(this.#memfd);
  }
}

/** Memory for a test or a small machine: RAM from 0, with the hole of a PC between 3 and 4 GiB when it reaches there. */
export const createMemory = ({ ramBytes }: { readonly ramBytes: number }): Banks => {
  const hole = 3 * 2 ** 30;
  const low = { start: 0, length: Math.min(ramBytes, hole) };
  return new Banks({
    ram: ramBytes > hole ? [low, { start: BANK_BYTES, length: ramBytes - hole }] : [low],
  });
};
