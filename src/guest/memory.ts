/**
 * Guest physical memory: RAM from address 0 on that lies together in host memory, as the VMM's huge pages do, and
 * device windows. It is a `HostMemory`, so that what runs on a host runs in a guest: mappers, walkers, drivers and the
 * model of an IOMMU reach it at memory speed, and nothing of the host beyond it. Left out: memory hotplug.
 */
import { Buddy, ceilLg2 } from "../memory/buddy.ts";
import { FRAME_BYTES, type HostMemory, MemoryError, type MmioWindow } from "../memory/host-memory.ts";
import { SlowMap, windowFrames } from "../memory/slow.ts";

const BANK = 2 ** 32;
const WORDS_OF_FRAME = FRAME_BYTES / 4;

export class GuestMemory implements HostMemory {
  lo = 0;
  hi = 0;
  cause: MemoryError = MemoryError.none;
  readonly words: readonly Uint32Array[];
  readonly state: readonly Uint8Array[];
  /** Bytes of RAM. */
  readonly bytes: number;
  readonly #host: HostMemory;
  readonly #base: number;
  readonly #frames: Buddy;
  readonly #windows = new SlowMap();
  #allocated = 0;

  /** RAM of `bytes` at `base` of host memory; whole frames within one bank. */
  constructor(host: HostMemory, base: number, bytes: number) {
    const bank = Math.floor(base / BANK);
    if (base % FRAME_BYTES !== 0 || bytes % FRAME_BYTES !== 0 || base + bytes > (bank + 1) * BANK)
      throw new RangeError(`guest memory of ${bytes} bytes at ${base} is not whole frames of one bank`);
    this.bytes = bytes;
    this.#host = host;
    this.#base = base;
    const first = (base % BANK) / FRAME_BYTES;
    const end = first + bytes / FRAME_BYTES;
    this.words = [host.words[bank]!.subarray(first * WORDS_OF_FRAME, end * WORDS_OF_FRAME)];
    this.state = [host.state[bank]!.subarray(first, end)];
    // Frame 0 is not handed out: a table at address 0 looks like none.
    this.#frames = new Buddy(1, bytes / FRAME_BYTES - 1);
  }

  get allocated(): number {
    return this.#allocated;
  }

  load64(pa: number): boolean {
    return this.#word(pa, 8) && this.#loaded(this.#host.load64(this.#base + pa));
  }
  load64be(pa: number): boolean {
    return this.#word(pa, 8) && this.#loaded(this.#host.load64be(this.#base + pa));
  }
  load32(pa: number): boolean {
    return this.#word(pa, 4) && this.#loaded(this.#host.load32(this.#base + pa));
  }
  store64(pa: number, lo: number, hi: number): boolean {
    return this.#word(pa, 8) && this.#done(this.#host.store64(this.#base + pa, lo, hi));
  }
  store64be(pa: number, lo: number, hi: number): boolean {
    return this.#word(pa, 8) && this.#done(this.#host.store64be(this.#base + pa, lo, hi));
  }
  store32(pa: number, value: number): boolean {
    return this.#word(pa, 4) && this.#done(this.#host.store32(this.#base + pa, value));
  }
  or64(pa: number, lo: number, hi: number): boolean {
    return this.#word(pa, 8) && this.#done(this.#host.or64(this.#base + pa, lo, hi));
  }
  clear64(pa: number, lo: number, hi: number): boolean {
    return this.#word(pa, 8) && this.#done(this.#host.clear64(this.#base + pa, lo, hi));
  }

  readBytes(pa: number, into: Uint8Array, from = -1): boolean {
    if (this.#isRam(pa, into.length)) return this.#done(this.#host.readBytes(this.#base + pa, into, from));
    const window = this.#windowAt(pa, into.length);
    return window !== undefined && this.#outcome(window.read(pa, into, from));
  }
  writeBytes(pa: number, data: Uint8Array, from = -1): boolean {
    if (this.#isRam(pa, data.length)) return this.#done(this.#host.writeBytes(this.#base + pa, data, from));
    const window = this.#windowAt(pa, data.length);
    return window !== undefined && this.#outcome(window.write(pa, data, from));
  }
  copy(target: number, source: number, length: number): boolean {
    if (!this.#inRam(target, length) || !this.#inRam(source, length)) return false;
    return this.#done(this.#host.copy(this.#base + target, this.#base + source, length));
  }
  fill(pa: number, length: number, byte: number): boolean {
    return this.#inRam(pa, length) && this.#done(this.#host.fill(this.#base + pa, length, byte));
  }

  allocate(count: number): number {
    const frame = this.#frames.allocate(ceilLg2(count));
    if (frame < 0) return -1;
    this.#allocated += count;
    this.fill(frame * FRAME_BYTES, count * FRAME_BYTES, 0);
    return frame * FRAME_BYTES;
  }
  free(pa: number, count: number): void {
    this.#frames.free(pa / FRAME_BYTES, ceilLg2(count));
    this.#allocated -= count;
  }

  addWindow(pa: number, length: number, window: MmioWindow): () => void {
    if (pa < this.bytes) throw new Error(`${window.name} at 0x${pa.toString(16)} lies in the guest's RAM`);
    const frames = windowFrames(pa, length, window);
    this.#windows.add(frames);
    return () => this.#windows.remove(frames);
  }

  poison(pa: number, length: number): void {
    if (this.#isRam(pa, length)) this.#host.poison(this.#base + pa, length);
  }

  #isRam(pa: number, length: number): boolean {
    return pa >= 0 && pa + length <= this.bytes;
  }
  #inRam(pa: number, length: number): boolean {
    return this.#isRam(pa, length) || this.#failed(MemoryError.absent);
  }

  /** Whether a word of a table can be there: aligned, and RAM. */
  #word(pa: number, size: number): boolean {
    if (pa % size === 0 && this.#isRam(pa, size)) return true;
    const known = pa % size !== 0 || this.#windows.find(pa) !== undefined;
    return this.#failed(known ? MemoryError.unsupported : MemoryError.absent);
  }

  #windowAt(pa: number, length: number) {
    const window = this.#windows.find(pa);
    if (window !== undefined && pa + length <= window.end) return window;
    this.cause = MemoryError.absent;
    return undefined;
  }

  #loaded(ok: boolean): boolean {
    this.lo = this.#host.lo;
    this.hi = this.#host.hi;
    return this.#done(ok);
  }
  #done(ok: boolean): boolean {
    if (!ok) this.cause = this.#host.cause;
    return ok;
  }
  #outcome(error: MemoryError): boolean {
    return error === MemoryError.none || this.#failed(error);
  }
  #failed(cause: MemoryError): boolean {
    this.cause = cause;
    return false;
  }
}
