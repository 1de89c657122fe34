/**
 * The configuration cache of an SMMUv3 (IHI 0070, §3.21): what the stream table entry and the context descriptors of a
 * stream said when they were read; and, in front of the IOTLB, the page a stream used last. What is not valid is not
 * remembered.
 */
import { NO_PASID, type Transaction } from "../unit.ts";
import type { Context, Stream } from "./config.ts";

/** A context, and the number of its address space as long as `generation` is that of the spaces. */
export interface ContextSlot {
  readonly context: Context;
  space: number;
  generation: number;
}

/** What is remembered of a stream. */
export class StreamSlot {
  readonly sid: number;
  stream: Stream | undefined;
  /** The stream is remembered; else it is that of the transaction at hand. */
  held = false;
  readonly contexts = new Map<number, ContextSlot>();
  /** `Right` bits that are wanted for each combination of `Access` bits. */
  readonly wants = new Uint8Array(32);

  // The page used last: good while the IOTLB's stamp is `stamp`.
  stamp = -1;
  pasid = NO_PASID;
  /** Lower word of the page's address, and its mask; the upper word, signed. */
  pageLo = 0;
  pageHi = 0;
  mask = 0;
  /** Physical address and size of the page, in bytes. */
  pa = 0;
  size = 0;
  /** `Right` bits that are refused. */
  denied = 0;

  constructor(sid: number) {
    this.sid = sid;
  }

  /** The page of 2^lg2 bytes at `base` was used last. */
  keep({ lo, hi, pasid }: Transaction, stamp: number, base: number, lg2: number, denied: number): void {
    this.stamp = stamp;
    this.pasid = pasid;
    this.mask = -1 << lg2;
    this.pageLo = lo & this.mask;
    this.pageHi = hi | 0;
    this.pa = base;
    this.size = 1 << lg2;
    this.denied = denied;
  }

  forget(): void {
    this.stream = undefined;
    this.held = false;
    this.contexts.clear();
    this.stamp = -1;
  }

  forgetContext(ssid: number): void {
    this.contexts.delete(ssid);
    this.stamp = -1;
  }

  forgetContexts(): void {
    this.contexts.clear();
    this.stamp = -1;
  }
}

export class StreamCache {
  /** By the upper and the lower bits of the StreamID. */
  readonly #slots = new Map<number, (StreamSlot | undefined)[]>();

  /** The stream's slot, whatever it holds. */
  slot(sid: number): StreamSlot | undefined {
    return this.#slots.get(sid >>> 8)?.[sid & 0xff];
  }

  /** The stream's slot, made when it is its first. */
  open(sid: number): StreamSlot {
    let part = this.#slots.get(sid >>> 8);
    if (!part) {
      part = [];
      this.#slots.set(sid >>> 8, part);
    }
    return (part[sid & 0xff] ??= new StreamSlot(sid));
  }

  /** Forgets the streams from `sid` on, `count` of them. */
  invalidate(sid: number, count: number): void {
    for (const slot of this.#each()) if (slot.sid >= sid && slot.sid < sid + count) slot.forget();
  }

  invalidateAll(): void {
    this.#slots.clear();
  }

  *#each(): Generator<StreamSlot> {
    for (const part of this.#slots.values()) for (const slot of part) if (slot) yield slot;
  }
}
