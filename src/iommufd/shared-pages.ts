/**
 * Pages of an object that a program may map through its iommufd file (linux/iommufd.h: mmap offset and length of a
 * vIOMMU's data). While they are mapped the object has a user more, so that DESTROY of it is EBUSY, and the file stays.
 */
import type { PageOwner } from "../kernel/call.ts";
import type { IommufdObject } from "./objects.ts";

/** Whose pages they are: the file. */
interface Keeper {
  keep(): void;
  release(): void;
}

export class SharedPages implements PageOwner {
  readonly pa: number;
  readonly length: number;
  /** The object they belong to; it offers them while it is being made already. */
  owner: IommufdObject | undefined;
  readonly #file: Keeper;

  constructor(file: Keeper, pa: number, length: number) {
    this.#file = file;
    this.pa = pa;
    this.length = length;
  }

  /** Where mmap finds them. */
  get offset(): bigint {
    return BigInt(this.pa);
  }
  get name(): string {
    return `pages of ${this.owner?.name ?? "an object"}`;
  }

  mapped(): void {
    this.#file.keep();
    if (this.owner) this.owner.users += 1;
  }

  unmapped(): void {
    if (this.owner) this.owner.users -= 1;
    this.#file.release();
  }
}
