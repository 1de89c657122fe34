/**
 * The sPAPR IOMMU behind a container (linux/vfio.h, "Additional API for SPAPR TCE"; Documentation/driver-api/vfio.rst,
 * "PPC64 sPAPR implementation note"): windows of bus addresses with a table each, whose entries a program sets and clears.
 * Version 1 has the window that is there, charges all of it when it is enabled, and pins what it maps. Version 2 maps
 * memory that was registered, which is pinned and charged once, and creates and removes windows. Its domain is of the same
 * kind as those behind type 1 and iommufd.
 *
 * Setting an entry that points somewhere replaces it, as a guest's H_PUT_TCE does. What is remembered of entries is bounded
 * by the windows, and tables of those that are created count as locked memory. Left out: error handling (EEH).
 */
import type { Group } from "../../iommu/core.ts";
import {
  type DmaWindow,
  type PagingDomain,
  Protection,
  type WindowAbilities,
  type WindowedDomain,
} from "../../iommu/driver.ts";
import { PinnedRun } from "../../iommufd/pinned-run.ts";
import type { Task, UserMemory } from "../../kernel/call.ts";
import { FRAME_BYTES } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { hex } from "../argument.ts";
import type { VfioContext } from "../context.ts";
import { requireLockable } from "../locked-memory.ts";
import { Entries, type Keeper } from "./entries.ts";
import { RegisteredMemory } from "./registered-memory.ts";

/** Bytes of an entry. */
const ENTRY_BYTES = 8;

export interface MapRequest {
  readonly iova: number;
  readonly vaddr: number;
  readonly length: number;
  readonly read: boolean;
  readonly write: boolean;
}

/** Locked memory that is not pinned: a window that may be filled (version 1), or a window's table (version 2). */
interface Charge {
  readonly payer: UserMemory;
  readonly pages: number;
}

/** What its groups have. */
interface Table {
  readonly domain: WindowedDomain;
  readonly abilities: WindowAbilities;
}

export class Spapr {
  readonly version: 1 | 2;
  readonly name: string;
  readonly coherent = false;
  readonly #context: VfioContext;
  readonly #entries = new Entries();
  readonly #registered: RegisteredMemory;
  readonly #groups = new Set<Group>();
  /** Of tables, by where their windows begin. */
  readonly #charges = new Map<number, Charge>();
  #table: Table | undefined;
  /** Version 1: it is enabled, and who pays. */
  #enabled: Charge | undefined;
  /** Whose memory it maps. */
  #owner: UserMemory | undefined;
  /** What of `context.live.mappings` is its own. */
  #counted = 0;

  constructor(context: VfioContext, version: 1 | 2, name: string) {
    this.#context = context;
    this.version = version;
    this.name = name;
    this.#registered = new RegisteredMemory(name);
  }

  /** What its unit can do. */
  get abilities(): WindowAbilities {
    return this.#attached.abilities;
  }
  get windows(): readonly DmaWindow[] {
    return this.#attached.domain.windows;
  }
  /** A group is attached: calls come only then. */
  get #attached(): Table {
    return this.#table!;
  }

  /**
   * Throws EINVAL for a group whose unit has no windows or is another one, EBUSY for a second group in version 1, and what
   * the driver throws; then nothing has changed.
   */
  attach(group: Group): void {
    const device = group.devices[0]!;
    const { windows, name } = device.driver;
    if (!windows)
      throw new LinuxError(
        "EINVAL",
        `group ${group.id} is behind ${name}, which has no windows; a container of type 1 takes it`,
        this.name,
      );
    if (this.version === 1 && this.#groups.size > 0)
      throw new LinuxError(
        "EBUSY",
        "it has a group; version 1 takes one, version 2 (SET_IOMMU 7) several",
        this.name,
      );
    if (this.#table) group.attach(this.#table.domain);
    else this.#attachFirst(group, windows);
    this.#groups.add(group);
  }

  /** The group's devices are blocked; with the last group everything goes. */
  detach(group: Group): void {
    if (!this.#groups.delete(group)) return;
    group.detach();
    if (this.#groups.size > 0) return;
    for (const { start, length } of this.windows) this.#clear(start, length);
    this.#attached.domain.free();
    this.#table = undefined;
    for (const charge of this.#charges.values()) giveBack(charge);
    this.#charges.clear();
    if (this.#enabled) giveBack(this.#enabled);
    this.#enabled = undefined;
    this.#registered.close();
    this.#owner = undefined;
    this.#count();
  }

  /** Version 1: entries can be set from now on. Throws EBUSY, EPERM, and ENOMEM when the window may not be locked whole. */
  enable(task: Task): void {
    this.#requireOwner(task);
    if (this.#enabled) throw new LinuxError("EBUSY", "it is enabled already", this.name);
    this.#enabled = this.#charge(task, this.abilities.first.length / FRAME_BYTES);
  }

  /** Version 1: what was mapped is mapped no more, and nothing can be. Throws EPERM. */
  disable(task: Task): void {
    this.#requireOwner(task);
    if (!this.#enabled) return;
    for (const { start, length } of this.windows) this.#clear(start, length);
    giveBack(this.#enabled);
    this.#enabled = undefined;
  }

  register(task: Task, vaddr: number, size: number): void {
    this.#requireOwner(task);
    this.#registered.register(task, vaddr, size);
    this.#count();
  }

  unregister(task: Task, vaddr: number, size: number): void {
    this.#requireOwner(task);
    this.#registered.unregister(vaddr, size);
    this.#count();
  }

  /** Sets entries. Throws EPERM, ENXIO, EINVAL, EFAULT, ENOMEM, or Restart. Those it replaces are empty if it fails. */
  map(task: Task, { iova, vaddr, length, read, write }: MapRequest): void {
    this.#requireOwner(task);
    this.#requireEnabled();
    const window = this.#windowOf(iova, length);
    this.#requireAligned(window, { iova, vaddr, size: length });
    const keeper = this.#keep(task, vaddr, length, write);
    const page = vaddr / FRAME_BYTES;
    const pages = length / FRAME_BYTES;
    try {
      this.#requireWhole(window, keeper, vaddr, length);
      this.#clear(iova, length);
      this.#set(iova, keeper, page, pages, protectionOf(read, write));
    } catch (error) {
      keeper.release(page, pages);
      throw error;
    }
    this.#entries.put(iova, length, keeper, page);
    this.#count();
    if (this.#context.events.on)
      this.#context.events.emit("map", {
        container: this.name,
        iova,
        length,
        vaddr,
        protection: protectionOf(read, write),
      });
  }

  /** Clears entries, whether they point anywhere or not. Throws EPERM, ENXIO, EINVAL. */
  unmap(task: Task, iova: number, length: number): void {
    this.#requireOwner(task);
    this.#requireEnabled();
    const window = this.#windowOf(iova, length);
    this.#requireAligned(window, { iova, size: length });
    this.#clear(iova, length);
    if (this.#context.events.on) this.#context.events.emit("unmap", { container: this.name, iova, length });
  }

  /** Throws EINVAL, ENOSPC, and ENOMEM when its table may not be locked. */
  createWindow(task: Task, wanted: Omit<DmaWindow, "start">): DmaWindow {
    this.#requireOwner(task);
    this.#requireAble(wanted);
    const bytes = 2 ** (Math.log2(wanted.length) - wanted.pageLg2) * ENTRY_BYTES;
    const pages = Math.ceil(bytes / FRAME_BYTES);
    requireLockable(task, pages, this.name);
    const window = this.#attached.domain.createWindow(wanted);
    this.#charges.set(window.start, this.#charge(task, pages));
    return window;
  }

  /** Throws EINVAL where no window begins. */
  removeWindow(task: Task, start: bigint): void {
    this.#requireOwner(task);
    const window = this.windows.find((each) => BigInt(each.start) === start);
    if (!window)
      throw new LinuxError("EINVAL", `no window begins at ${hex(start)}; ${this.#shownWindows()}`, this.name);
    this.#attached.domain.removeWindow(window.start);
    this.#forget(window.start, window.length);
    const charge = this.#charges.get(window.start);
    if (charge) giveBack(charge);
    this.#charges.delete(window.start);
  }

  /** A container begins with one window, below 4 GiB; a driver's domain may have more. */
  #attachFirst(group: Group, abilities: WindowAbilities): void {
    const domain = this.#context.core.allocatePaging(group.devices[0]!);
    try {
      if (!isWindowed(domain)) throw new LinuxError("EINVAL", `${domain.name} has no windows`, this.name);
      for (const { start } of domain.windows) if (start !== abilities.first.start) domain.removeWindow(start);
      group.attach(domain);
      this.#table = { domain, abilities };
    } catch (error) {
      domain.free();
      throw error;
    }
  }

  #clear(iova: number, length: number): void {
    this.#attached.domain.unmap(iova, length);
    this.#forget(iova, length);
  }

  /** The hardware has nothing of the range any more. */
  #forget(iova: number, length: number): void {
    this.#entries.take(iova, length);
    this.#count();
  }

  /** All or nothing. */
  #set(iova: number, keeper: Keeper, page: number, pages: number, protection: number): void {
    const { domain } = this.#attached;
    let at = iova;
    try {
      keeper.run.frames(page, pages, (pfn, count) => {
        domain.map(at, pfn * FRAME_BYTES, count * FRAME_BYTES, protection);
        at += count * FRAME_BYTES;
      });
    } catch (error) {
      if (at > iova) domain.unmap(iova, at - iova);
      throw error;
    }
  }

  #keep(task: Task, vaddr: number, length: number, write: boolean): Keeper {
    if (this.version === 2) return this.#registered.use(vaddr, length);
    const pin = task.memory.pin(vaddr, length, write);
    const base = vaddr / FRAME_BYTES;
    return {
      run: new PinnedRun(pin, base),
      release: (page, count) => pin.unpin(page - base, count),
    };
  }

  #charge(task: Task, pages: number): Charge {
    requireLockable(task, pages, this.name);
    task.memory.lockedPages += pages;
    return { payer: task.memory, pages };
  }

  /** The first who brings memory is the only one. */
  #requireOwner(task: Task): void {
    this.#owner ??= task.memory;
    if (this.#owner === task.memory) return;
    throw new LinuxError(
      "EPERM",
      `${task.name} has another address space than the one that this container serves`,
      this.name,
    );
  }

  #requireEnabled(): void {
    if (this.version === 1 && !this.#enabled)
      throw new LinuxError("EPERM", "it is not enabled; VFIO_IOMMU_ENABLE comes first", this.name);
  }

  #windowOf(iova: number, length: number): DmaWindow {
    const window = this.windows.find(
      (each) => each.start <= iova && iova + length <= each.start + each.length,
    );
    if (window) return window;
    throw new LinuxError(
      "ENXIO",
      `bus addresses [${hex(iova)}, ${hex(iova + length)}) are not within one window; ${this.#shownWindows()}`,
      this.name,
    );
  }

  #requireAligned({ pageLg2 }: DmaWindow, values: { readonly [name: string]: number }): void {
    const page = 2 ** pageLg2;
    for (const [name, value] of Object.entries(values))
      if (value % page !== 0)
        throw new LinuxError(
          "EINVAL",
          `${name} ${hex(value)} is not a multiple of ${hex(page)}, the page of the window`,
          this.name,
        );
  }

  /** An entry points to a page of the window's size, which must lie in one piece, and at its own multiple. */
  #requireWhole({ pageLg2 }: DmaWindow, { run }: Keeper, vaddr: number, length: number): void {
    const frames = 2 ** pageLg2 / FRAME_BYTES;
    if (frames === 1) return;
    run.frames(vaddr / FRAME_BYTES, length / FRAME_BYTES, (pfn, count) => {
      if (pfn % frames === 0 && count % frames === 0) return;
      throw new LinuxError(
        "EINVAL",
        `the memory at ${hex(vaddr)} does not lie in whole pages of ${hex(2 ** pageLg2)}, the page of the window; ` +
          "huge pages, or a window with smaller ones, are needed",
        this.name,
      );
    });
  }

  #requireAble({ pageLg2, levels, length }: Omit<DmaWindow, "start">): void {
    const { pageSizes, levels: most } = this.abilities;
    const sizes = Array.from({ length: 52 }, (_, lg2) => lg2).filter(
      (lg2) => (pageSizes >> BigInt(lg2)) & 1n,
    );
    const complaint = !sizes.includes(pageLg2)
      ? `page_shift ${pageLg2}: the unit has ${sizes.join(", ")}`
      : levels < 1 || levels > most
        ? `levels ${levels}: from 1 to ${most} are possible`
        : length < 2 ** pageLg2
          ? `window_size ${hex(length)}: at least a page is needed`
          : undefined;
    if (complaint) throw new LinuxError("EINVAL", complaint, this.name);
  }

  #shownWindows(): string {
    const shown = this.windows.map(({ start, length }) => `[${hex(start)}, ${hex(start + length)})`);
    return shown.length === 0 ? "there is none" : `there is ${shown.join(" and ")}`;
  }

  #count(): void {
    const now = this.#entries.size + this.#registered.size;
    this.#context.live.mappings += now - this.#counted;
    this.#counted = now;
  }
}

const giveBack = ({ payer, pages }: Charge): void => {
  payer.lockedPages -= pages;
};

const protectionOf = (read: boolean, write: boolean): number =>
  (read ? Protection.read : 0) | (write ? Protection.write : 0);

const isWindowed = (domain: PagingDomain): domain is WindowedDomain => "createWindow" in domain;
