/**
 * The device's side of a split virtqueue (virtio 1.3, §2.7): it takes chains of descriptors from the available ring and puts
 * them into the used ring. All of it lies in guest memory and is the guest's to spoil: a chain has no more descriptors than
 * the queue, and what cannot be is a `MalformedQueue`, after which the queue is not used any more.
 */
import type { HostMemory } from "../../memory/host-memory.ts";
import { AvailRing, Descriptor, DescriptorFlag, INDICES, UsedElement, UsedRing } from "./transport-spec.ts";

/** The guest has written what no queue can be. Stays within the device, which needs a reset then. */
export class MalformedQueue extends Error {}

/** Where the parts of a queue are, and its number of descriptors: a power of two. */
export interface QueuePlace {
  readonly size: number;
  readonly descriptors: number;
  readonly available: number;
  readonly used: number;
}

interface Segment {
  readonly pa: number;
  readonly length: number;
}

/** One buffer of the driver: a part to read and a part to write. */
export class Chain {
  /** Number of its first descriptor. */
  readonly head: number;
  readonly #memory: HostMemory;
  readonly #readable: readonly Segment[];
  readonly #writable: readonly Segment[];

  constructor(memory: HostMemory, head: number, readable: readonly Segment[], writable: readonly Segment[]) {
    this.head = head;
    this.#memory = memory;
    this.#readable = readable;
    this.#writable = writable;
  }

  /** Bytes the device may write. */
  get room(): number {
    return this.#writable.reduce((sum, { length }) => sum + length, 0);
  }

  /** The first bytes of what the device may read, `most` of them or as many as there are. Throws MalformedQueue. */
  read(most: number): Uint8Array {
    const bytes = new Uint8Array(
      Math.min(
        most,
        this.#readable.reduce((sum, one) => sum + one.length, 0),
      ),
    );
    let done = 0;
    for (const { pa, length } of this.#readable) {
      const part = bytes.subarray(done, done + length);
      if (part.length > 0 && !this.#memory.readBytes(pa, part)) throw new MalformedQueue(notThere(pa));
      done += part.length;
    }
    return bytes;
  }

  /** Writes to `at` of what the device may write; what there is no room for is left out. Throws MalformedQueue. */
  write(data: Uint8Array, at = 0): void {
    let start = 0;
    for (const { pa, length } of this.#writable) {
      const from = Math.max(at, start);
      const part = data.subarray(from - at, Math.max(from, start + length) - at);
      if (part.length > 0 && !this.#memory.writeBytes(pa + from - start, part))
        throw new MalformedQueue(notThere(pa));
      start += length;
    }
  }
}

export class SplitQueue {
  readonly #memory: HostMemory;
  readonly #place: QueuePlace;
  /** Entries that were taken, and entries that were used, as the rings count them. */
  #taken = 0;
  #used = 0;
  readonly #two = new Uint8Array(2);

  constructor(memory: HostMemory, place: QueuePlace) {
    this.#memory = memory;
    this.#place = place;
  }

  /** Buffers that wait. Throws MalformedQueue. */
  get waiting(): number {
    const { size, available } = this.#place;
    const waiting = (this.#load16(available + AvailRing.IDX) - this.#taken + INDICES) % INDICES;
    if (waiting > size)
      throw new MalformedQueue(`${waiting} buffers are said to wait in a queue of ${size} descriptors`);
    return waiting;
  }

  /** Whether the driver wants to be told of used buffers. Throws MalformedQueue. */
  get interrupts(): boolean {
    return (this.#load16(this.#place.available + AvailRing.FLAGS) & AvailRing.NO_INTERRUPT) === 0;
  }

  /** The next buffer; undefined: none waits. Throws MalformedQueue. */
  take(): Chain | undefined {
    if (this.waiting === 0) return undefined;
    const { size, available } = this.#place;
    const head = this.#load16(available + AvailRing.RING + 2 * (this.#taken % size));
    const chain = this.#follow(head);
    this.#taken = (this.#taken + 1) % INDICES;
    return chain;
  }

  /** Gives a buffer back, of which the device has written so many bytes. Throws MalformedQueue. */
  use({ head }: Chain, written: number): void {
    const { size, used } = this.#place;
    const at = used + UsedRing.RING + UsedElement.size * (this.#used % size);
    this.#store(at, UsedElement.bytes({ id: head, len: written }));
    this.#used = (this.#used + 1) % INDICES;
    this.#store(used + UsedRing.IDX, Uint8Array.of(this.#used & 0xff, this.#used >> 8));
  }

  #follow(head: number): Chain {
    const { size, descriptors } = this.#place;
    const readable: Segment[] = [];
    const writable: Segment[] = [];
    const bytes = new Uint8Array(Descriptor.size);
    for (let at = head, count = 0; ; count += 1) {
      if (at >= size) throw new MalformedQueue(`descriptor ${at} is not of a queue of ${size}`);
      if (count === size) throw new MalformedQueue(`the chain from descriptor ${head} has no end`);
      this.#load(descriptors + Descriptor.size * at, bytes);
      const { addr, len, flags, next } = Descriptor.read(bytes);
      if (flags & DescriptorFlag.INDIRECT)
        throw new MalformedQueue(`descriptor ${at} is indirect, which the device does not offer`);
      const writes = (flags & DescriptorFlag.WRITE) !== 0;
      if (!writes && writable.length > 0)
        throw new MalformedQueue(`descriptor ${at} is to be read after one that is to be written`);
      (writes ? writable : readable).push({ pa: Number(addr), length: len });
      if ((flags & DescriptorFlag.NEXT) === 0) return new Chain(this.#memory, head, readable, writable);
      at = next;
    }
  }

  #load16(pa: number): number {
    this.#load(pa, this.#two);
    return this.#two[0]! | (this.#two[1]! << 8);
  }
  #load(pa: number, into: Uint8Array): void {
    if (!this.#memory.readBytes(pa, into)) throw new MalformedQueue(notThere(pa));
  }
  #store(pa: number, bytes: Uint8Array): void {
    if (!this.#memory.writeBytes(pa, bytes)) throw new MalformedQueue(notThere(pa));
  }
}

const notThere = (pa: number): string => `nothing of the guest's is at 0x${pa.toString(16)}`;
