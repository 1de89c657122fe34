/**
 * A host domain of a POWER host bridge: up to two windows with TCE tables of their own, which come and go. What is unmapped
 * is flushed before its tables go back to memory.
 */
import type { EventSink } from "../../base/events.ts";
import { SIZE_LG2, Tve, WINDOWS } from "../../hardware/tce/spec.ts";
import type { Aperture, DmaWindow, WindowedDomain } from "../../iommu/driver.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { Mapper } from "../../pagetable/mapper.ts";
import { type TceGeometry, tce } from "../../pagetable/tce.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { bounds, geometryOf, slotOf } from "./windows.ts";

/** What a domain asks of the driver that made it. */
export interface DomainHost {
  readonly name: string;
  readonly memory: HostMemory;
  readonly events: EventSink;
  readonly pageLg2s: readonly number[];
  /** The PEs that have it have other windows now, and have forgotten what they knew of the old ones. */
  rewindow(domain: TceDomain): void;
  /** They forget [iova, iova + length) of pages of 2^pageLg2 bytes. */
  flush(domain: TceDomain, iova: number, length: number, pageLg2: number): void;
  forget(domain: TceDomain): void;
}

const hex = (value: number): string => `0x${value.toString(16)}`;

/** A window with its tables. */
class Window {
  readonly what: DmaWindow;
  readonly geometry: TceGeometry;
  readonly mapper: Mapper;
  /** Bus address that index 0 of its tables stands for. */
  readonly origin: number;
  readonly end: number;

  /** Throws EINVAL, ENOMEM. */
  constructor(what: DmaWindow, { memory, pageLg2s, name }: DomainHost) {
    this.what = what;
    this.geometry = geometryOf(what, pageLg2s, name);
    this.origin = bounds(slotOf(what.start)).start;
    this.end = what.start + what.length;
    this.mapper = new Mapper(memory, tce(this.geometry));
  }

  get slot(): number {
    return slotOf(this.what.start);
  }
  get tve(): bigint {
    const { pageLg2, levels, tableLg2 } = this.geometry;
    return Tve.make({
      TABLE: this.mapper.root,
      LEVELS: levels - 1,
      TABLE_SIZE: tableLg2 - SIZE_LG2,
      PSIZE: pageLg2 - SIZE_LG2,
    });
  }
  get aperture(): Aperture {
    return { start: this.what.start, end: this.end, pageSizes: 1n << BigInt(this.what.pageLg2) };
  }

  /** The part of [iova, iova + length) within the window, whole pages; empty: `start` is not below `end`. */
  within(iova: number, length: number): { start: number; end: number } {
    const page = 2 ** this.what.pageLg2;
    return {
      start: Math.ceil(Math.max(iova, this.what.start) / page) * page,
      end: Math.floor(Math.min(iova + length, this.end) / page) * page,
    };
  }
}

export class TceDomain implements WindowedDomain {
  readonly kind = "paging";
  readonly id: number;
  readonly name: string;
  /** Devices that have it. */
  users = 0;
  readonly #host: DomainHost;
  #windows: readonly Window[] = [];
  #freed = false;

  /** Throws EINVAL for windows that cannot be, ENOMEM; then nothing is left. */
  constructor(id: number, host: DomainHost, windows: readonly DmaWindow[]) {
    this.id = id;
    this.name = `TCE domain ${id}`;
    this.#host = host;
    const made: Window[] = [];
    try {
      for (const window of windows) made.push(new Window(window, host));
    } catch (error) {
      for (const { mapper } of made) mapper.destroy();
      throw error;
    }
    this.#windows = made;
  }

  get freed(): boolean {
    return this.#freed;
  }
  get windows(): readonly DmaWindow[] {
    return this.#windows.map(({ what }) => what);
  }
  get apertures(): readonly Aperture[] {
    return this.#windows.map(({ aperture }) => aperture);
  }
  get pageSizes(): bigint {
    return this.#windows.reduce((sizes, { what }) => sizes | (1n << BigInt(what.pageLg2)), 0n);
  }
  /** The TVEs of a PE that has the domain. */
  get tves(): readonly bigint[] {
    return Array.from(
      { length: WINDOWS },
      (_, slot) => this.#windows.find((one) => one.slot === slot)?.tve ?? 0n,
    );
  }

  map(iova: number, pa: number, length: number, protection: number): void {
    const window = this.#windows.find(({ what, end }) => iova >= what.start && iova + length <= end);
    if (!window)
      throw new LinuxError(
        "EFAULT",
        `iova ${hex(iova)} + ${hex(length)} is not within one window: there are ${this.#show()}`,
        this.name,
      );
    window.mapper.map(iova - window.origin, pa, length, protection);
    const { events } = this.#host;
    if (events.on) events.emit("map", { domain: this.name, iova, pa, length, protection });
  }

  unmap(iova: number, length: number): number {
    let unmapped = 0;
    for (const window of this.#windows) {
      const { start, end } = window.within(iova, length);
      if (start < end) unmapped += this.#empty(window, start, end);
    }
    const { events } = this.#host;
    if (events.on) events.emit("unmap", { domain: this.name, iova, length, unmapped });
    return unmapped;
  }

  physical(iova: number): number {
    const window = this.#windows.find(({ what, end }) => iova >= what.start && iova < end);
    return window ? window.mapper.physical(iova - window.origin) : -1;
  }

  createWindow(wanted: Omit<DmaWindow, "start">): DmaWindow {
    const free = Array.from({ length: WINDOWS }, (_, slot) => slot).filter(
      (slot) => !this.#windows.some((one) => one.slot === slot),
    );
    const fitting = free.find((slot) => wanted.length <= bounds(slot).end - bounds(slot).start);
    if (fitting === undefined)
      throw new LinuxError(
        "ENOSPC",
        `there is no room for a window of ${hex(wanted.length)} bytes: there are ${this.#show()}`,
        this.name,
      );
    const window = new Window({ ...wanted, start: bounds(fitting).start }, this.#host);
    this.#windows = [...this.#windows, window].sort((a, b) => a.slot - b.slot);
    this.#host.rewindow(this);
    return window.what;
  }

  removeWindow(start: number): void {
    const gone = this.#windows.find(({ what }) => what.start === start);
    if (!gone)
      throw new LinuxError(
        "EINVAL",
        `no window begins at ${hex(start)}: there are ${this.#show()}`,
        this.name,
      );
    this.#windows = this.#windows.filter((one) => one !== gone);
    this.#host.rewindow(this);
    gone.mapper.destroy();
  }

  free(): void {
    if (this.#freed) return;
    if (this.users > 0)
      throw new LinuxError(
        "EBUSY",
        `${this.users} devices still have it; they must be detached first`,
        this.name,
      );
    this.#freed = true;
    this.#host.forget(this);
    for (const { mapper } of this.#windows) mapper.destroy();
    this.#windows = [];
  }

  #empty({ mapper, origin, what }: Window, start: number, end: number): number {
    const bytes = mapper.unmap(start - origin, end - start);
    const { gather } = mapper;
    if (gather.pending)
      this.#host.flush(this, origin + gather.start, gather.end - gather.start, what.pageLg2);
    mapper.release();
    return bytes;
  }

  #show(): string {
    const all = this.#windows.map(
      ({ what, end }) => `${hex(what.start)} to ${hex(end)} with pages of ${hex(2 ** what.pageLg2)}`,
    );
    return all.join(" and ") || "none";
  }
}
