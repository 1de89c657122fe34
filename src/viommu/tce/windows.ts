/**
 * The windows of one function of a POWER guest and what its TCEs say, as mappings of one address space of the host that
 * allows these windows and nothing else: by map and unmap alone, whatever the model of the host's IOMMU.
 */
import { LinuxError } from "../../uapi/errno.ts";
import type { AssignedDevice, GuestRam } from "../assigned.ts";
import type { HostCalls } from "../host-calls.ts";
import { allocateSpace, attachSpace, type Space, type SpaceCalls } from "../shadow/space.ts";
import type { AddressRange } from "../shadow/table.ts";
import { type GuestWindow, HcallStatus, Tce } from "./spec.ts";

export type WindowCalls = SpaceCalls & Pick<HostCalls, "allowIovas" | "map" | "unmap">;

const { H_SUCCESS, H_HARDWARE, H_PARAMETER, H_RESOURCE } = HcallStatus;
/** Entries of all windows of a function together. */
export const MOST_TCES = 2 ** 16;

interface Window {
  readonly what: GuestWindow;
  /** By number of the page in the window: those that map something. */
  readonly tces: Map<number, bigint>;
}

export const rangeOf = ({ start, length }: GuestWindow): AddressRange => ({ start, end: start + length });

export class FunctionWindows {
  readonly #calls: WindowCalls;
  readonly #ram: GuestRam;
  readonly #space: Space;
  readonly #windows = new Map<number, Window>();
  #mapped = 0;
  /** The last thing that the host refused. */
  refusal: LinuxError | undefined;

  /** Gives the device an address space with these windows. Throws EADDRINUSE when the host has not all of their addresses. */
  constructor(calls: WindowCalls, ram: GuestRam, device: AssignedDevice, first: GuestWindow) {
    this.#calls = calls;
    this.#ram = ram;
    this.#space = allocateSpace(calls);
    this.#windows.set(first.liobn, { what: first, tces: new Map() });
    this.#allow();
    attachSpace(calls, this.#space, device, { pasids: false, faults: undefined });
  }

  /** Mappings. */
  get mapped(): number {
    return this.#mapped;
  }
  has(liobn: number): boolean {
    return this.#windows.has(liobn);
  }
  get all(): GuestWindow[] {
    return [...this.#windows.values()].map(({ what }) => what);
  }

  /** One more. Throws EADDRINUSE when the host has not all of its addresses; then nothing has changed. */
  add(what: GuestWindow): void {
    this.#windows.set(what.liobn, { what, tces: new Map() });
    try {
      this.#allow();
    } catch (error) {
      this.#windows.delete(what.liobn);
      throw error;
    }
  }

  /** The window goes, with what it maps. Throws what the host refuses; then it has what is still mapped. */
  remove(liobn: number): void {
    const window = this.#windows.get(liobn)!;
    for (const page of [...window.tces.keys()]) this.#empty(window, page);
    this.#windows.delete(liobn);
    this.#allow();
  }

  /** The TCE of a bus address; undefined: the window has no such address. */
  get(liobn: number, ioba: bigint): bigint | undefined {
    const place = this.#place(liobn, ioba, 1n);
    return place && (place.window.tces.get(place.page) ?? 0n);
  }

  /** Enters one TCE; what was there goes. */
  put(liobn: number, ioba: bigint, tce: bigint): HcallStatus {
    const place = this.#place(liobn, ioba, 1n);
    if (!place) return H_PARAMETER;
    const { window, page } = place;
    const size = 2 ** window.what.pageLg2;
    const target = Number(tce & Tce.address & ~BigInt(size - 1));
    const used = (tce & (Tce.read | Tce.write)) !== 0n;
    if (used && target + size > this.#ram.bytes) return H_PARAMETER;
    if (window.tces.has(page)) {
      const emptied = this.#tries(() => this.#empty(window, page));
      if (emptied !== H_SUCCESS) return emptied;
    }
    if (!used) return H_SUCCESS;
    if (this.#mapped >= MOST_TCES) return H_RESOURCE;
    return this.#tries(() => {
      this.#calls.map(this.#space.ioas, {
        iova: window.what.start + page * size,
        va: this.#ram.va + target,
        length: size,
        readable: (tce & Tce.read) !== 0n,
        writable: (tce & Tce.write) !== 0n,
      });
      window.tces.set(page, tce);
      this.#mapped += 1;
    });
  }

  /** Enters the same TCE so many times. */
  stuff(liobn: number, ioba: bigint, tce: bigint, count: bigint): HcallStatus {
    const place = this.#place(liobn, ioba, count);
    if (!place) return H_PARAMETER;
    const { window, page: first } = place;
    const end = first + Number(count);
    if ((tce & (Tce.read | Tce.write)) === 0n)
      return this.#tries(() => {
        for (const page of [...window.tces.keys()])
          if (page >= first && page < end) this.#empty(window, page);
      });
    const size = 1n << BigInt(window.what.pageLg2);
    for (let at = ioba; at < ioba + count * size; at += size) {
      const status = this.put(liobn, at, tce);
      if (status !== H_SUCCESS) return status;
    }
    return H_SUCCESS;
  }

  #place(liobn: number, ioba: bigint, count: bigint): { window: Window; page: number } | undefined {
    const window = this.#windows.get(liobn);
    if (!window) return undefined;
    const { start, length, pageLg2 } = window.what;
    const [shift, offset] = [BigInt(pageLg2), ioba - BigInt(start)];
    const fits = offset >= 0n && count > 0n && offset + (count << shift) <= BigInt(length);
    if (!fits || offset % (1n << shift) !== 0n) return undefined;
    return { window, page: Number(offset >> shift) };
  }

  #empty({ what, tces }: Window, page: number): void {
    const size = 2 ** what.pageLg2;
    this.#calls.unmap(this.#space.ioas, what.start + page * size, size);
    tces.delete(page);
    this.#mapped -= 1;
  }

  #allow(): void {
    this.#calls.allowIovas(this.#space.ioas, this.all.map(rangeOf));
  }

  #tries(work: () => void): HcallStatus {
    try {
      work();
      return H_SUCCESS;
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      this.refusal = error;
      return error.code === "ENOMEM" || error.code === "ENOSPC" ? H_RESOURCE : H_HARDWARE;
    }
  }
}
