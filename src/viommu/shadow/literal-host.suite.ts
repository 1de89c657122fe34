/** A host for tests of copies: address spaces page by page, as iommufd has them, and nothing behind them. */
import { LinuxError } from "../../uapi/errno.ts";
import type { HostMapping } from "../host-calls.ts";
import type { ShadowCalls } from "./copy.ts";

const PAGE = 4096;

export interface LiteralPage {
  readonly va: number;
  readonly readable: boolean;
  readonly writable: boolean;
}

export class LiteralHost implements ShadowCalls {
  readonly spaces = new Map<number, Map<number, LiteralPage>>();
  /** Whole mappings, which are unmapped whole. */
  readonly #areas = new Map<string, number>();
  /** What was unmapped and mapped since the list was emptied, as text. */
  readonly unmapped: string[] = [];
  readonly mapped: string[] = [];
  /** Each mapping is refused when this is told to. */
  refuses: () => boolean = () => false;
  #next = 1;

  /** The pages of an address space; the newest by default. */
  content(ioas = [...this.spaces.keys()].at(-1)!): Map<number, LiteralPage> {
    return this.spaces.get(ioas)!;
  }

  allocateIoas(): number {
    this.spaces.set(this.#next, new Map());
    return this.#next++;
  }
  allocateHwpt(): number {
    return this.#next++;
  }
  attach(): void {}
  detach(): void {}
  destroy(id: number): void {
    this.spaces.delete(id);
  }

  map(ioas: number, mapping: HostMapping): void {
    const { iova, va, length, readable = true, writable = true } = mapping;
    if (this.refuses()) throw new LinuxError("ENOMEM", "on purpose");
    const pages = this.content(ioas);
    for (let at = 0; at < length; at += PAGE)
      if (pages.has(iova + at))
        throw new LinuxError("EEXIST", `something is at 0x${(iova + at).toString(16)}`);
    for (let at = 0; at < length; at += PAGE) pages.set(iova + at, { va: va + at, readable, writable });
    this.#areas.set(`${ioas} ${iova}`, length);
    this.mapped.push(JSON.stringify({ ioas, iova, va, length, readable, writable }));
  }

  unmap(ioas: number, iova: number, length: number): void {
    const pages = this.content(ioas);
    if (this.#areas.get(`${ioas} ${iova}`) !== length)
      throw new LinuxError("ENOENT", `no mapping is just there: 0x${iova.toString(16)}`);
    const { va, readable, writable } = pages.get(iova)!;
    this.unmapped.push(JSON.stringify({ ioas, iova, va, length, readable, writable }));
    this.#areas.delete(`${ioas} ${iova}`);
    for (let at = 0; at < length; at += PAGE) pages.delete(iova + at);
  }
}
