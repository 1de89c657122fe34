/**
 * The contract of host physical memory: what a table walker, a DMA and a driver see of it. A physical address is a
 * number of bytes (exact to 2^53). Every access can fail and says so: it returns `false` and leaves the cause in
 * `cause`. 64-bit results are left in the result registers `lo` and `hi`, so that no access makes an object.
 *
 * Frames live in banks of 4 GiB: the bank of an address is `floor(pa / 2^32)`. RAM of the machine and pages of a
 * client are the same kind of frame.
 */
export const FRAME_BYTES = 4096;
export const FRAME_LG2 = 12;

/** Why an access failed. */
export const MemoryError = {
  none: 0,
  /** Nothing answers at this address. */
  absent: 1,
  /** The frame was marked bad, on purpose or because its backing went away. */
  poisoned: 2,
  /** The frame may not be written. */
  protected: 3,
  /** The address answers, but not to this kind of access (a table read from a device window). */
  unsupported: 4,
} as const;
export type MemoryError = (typeof MemoryError)[keyof typeof MemoryError];

/** Something that is not memory behind physical addresses: a BAR, the MSI doorbell. */
export interface MmioWindow {
  readonly name: string;
  /** False: the access is refused (`MemoryError.unsupported`). `from` is the requester id of a DMA, or -1 for the CPU. */
  read(offset: number, into: Uint8Array, from: number): boolean;
  write(offset: number, data: Uint8Array, from: number): boolean;
}

export interface HostMemory {
  /** Result registers of the last load. */
  lo: number;
  hi: number;
  /** Why the last access that returned false failed. */
  cause: MemoryError;

  /** 8-byte aligned loads and stores, little- and big-endian; for tables and queues. */
  load64(pa: number): boolean;
  load64be(pa: number): boolean;
  store64(pa: number, lo: number, hi: number): boolean;
  store64be(pa: number, lo: number, hi: number): boolean;
  load32(pa: number): boolean; // result in lo
  store32(pa: number, value: number): boolean;
  /** Atomically or-s bits into a 64-bit word (accessed and dirty bits). */
  or64(pa: number, lo: number, hi: number): boolean;
  /** Atomically clears these bits of a 64-bit word (a dirty state that is told by a clear bit). */
  clear64(pa: number, lo: number, hi: number): boolean;

  /** Payload. `from`: requester id of the DMA (for windows); -1 = CPU. Crosses frames; stops at the first bad one. */
  readBytes(pa: number, into: Uint8Array, from?: number): boolean;
  writeBytes(pa: number, data: Uint8Array, from?: number): boolean;
  /** Copies inside host memory at memory speed. */
  copy(target: number, source: number, length: number): boolean;
  fill(pa: number, length: number, byte: number): boolean;

  /** Zeroed RAM frames for tables and queues: `count` contiguous frames, aligned to their power of two; the pa, or -1 when full. */
  allocate(count: number): number;
  free(pa: number, count: number): void;
  /** RAM frames in use through `allocate`. */
  readonly allocated: number;

  /** Puts a window over addresses (multiples of a frame). The disposer takes it away. */
  addWindow(pa: number, length: number, window: MmioWindow): () => void;
  poison(pa: number, length: number): void;

  /**
   * Direct view for generated walkers: `words[bank]` is the bank's memory as 32-bit words (little-endian host), or an
   * empty array where the bank does not exist; `state[bank][frame]` is non-zero where a frame may be *read* directly
   * (bit 1: and written), and 0 for frames that answer slowly (windows, remote pages: use `load64`), are poisoned, or
   * absent. Addresses beyond the last bank are absent.
   */
  readonly words: readonly Uint32Array[];
  readonly state: readonly Uint8Array[];
}
