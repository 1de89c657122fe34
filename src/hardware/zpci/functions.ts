/** What a zPCI unit keeps of functions: the parameters that were registered for them, and the page each used last. */
import type { LastPage } from "../explained.ts";
import type { Transaction } from "../unit.ts";
import type { Parameters } from "./parameters.ts";

export class FunctionSlot implements LastPage {
  /** Undefined: none were registered. */
  parameters: Parameters | undefined;

  // The page used last: good while the IOTLB's stamp is `stamp`.
  stamp = -1;
  /** Lower word of the page's address, and its mask; the upper word, signed. */
  pageLo = 0;
  pageHi = 0;
  mask = 0;
  /** Physical address and size of the page, in bytes. */
  pa = 0;
  size = 0;
  /** `Permission` bits that are refused. */
  denied = 0;

  /** The page of 2^lg2 bytes at `base` was used last. */
  keep({ lo, hi }: Transaction, stamp: number, base: number, lg2: number, denied: number): void {
    this.stamp = stamp;
    this.mask = -1 << lg2;
    this.pageLo = lo & this.mask;
    this.pageHi = hi | 0;
    this.pa = base;
    this.size = 1 << lg2;
    this.denied = denied;
  }
}

export class FunctionTable {
  readonly #buses: (FunctionSlot | undefined)[][] = [];

  slot(rid: number): FunctionSlot | undefined {
    return this.#buses[rid >>> 8]?.[rid & 0xff];
  }

  /** Made when the function is met first. */
  open(rid: number): FunctionSlot {
    const bus = (this.#buses[rid >>> 8] ??= []);
    return (bus[rid & 0xff] ??= new FunctionSlot());
  }

  *all(): Generator<readonly [rid: number, slot: FunctionSlot]> {
    for (const [bus, slots] of this.#buses.entries())
      for (const [index, slot] of (slots ?? []).entries()) if (slot) yield [(bus << 8) | index, slot];
  }

  clear(): void {
    this.#buses.length = 0;
  }
}
