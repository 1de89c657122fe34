/**
 * The type 1 IOMMU behind a container: the domains of its groups, and one list of mappings that all of them have
 * (linux/vfio.h, "IOCTLs for VFIO IOMMU type 1"). A mapping pins the caller's memory when it is made and gives it
 * back when no domain maps it any more. Version 2 unmaps whole mappings only; version 1 may unmap more than was asked.
 *
 * Devices do not report which pages they write, so while dirty pages are tracked every mapped page counts as dirty,
 * as on a real host whose groups pin nothing through software.
 */
import { IntervalMap } from "../base/interval-map.ts";
import type { Group, IommuCore } from "../iommu/core.ts";
import { type PagingDomain, type PagingOptions, Protection } from "../iommu/driver.ts";
import type { Pin, Task, UserMemory } from "../kernel/call.ts";
import { FRAME_BYTES } from "../memory/host-memory.ts";
import { LinuxError } from "../uapi/errno.ts";
import { hex } from "./argument.ts";
import type { VfioContext } from "./context.ts";
import { holds, type IovaRange, intersect, withoutReserved } from "./iova-ranges.ts";
import { requireLockable } from "./locked-memory.ts";

/** Mappings a container may have; Linux's default for its module parameter dma_entry_limit. */
export const MAPPING_LIMIT = 65535;

const ALL_IOVAS: readonly IovaRange[] = [{ start: 0, end: 2 ** 64 }];
const LAST_OFFSET = FRAME_BYTES - 1;

export interface Mapping {
  readonly iova: number;
  /** Bytes, a multiple of the smallest page. */
  readonly length: number;
  readonly pin: Pin;
  /** Registers of a device, which are nobody's memory. */
  readonly registers: boolean;
  /** `Protection` bits. */
  readonly protection: number;
  /** Whose memory is charged for it. */
  payer: UserMemory;
  vaddr: number;
  /** False between an unmap and a map with the VADDR flag. */
  vaddrValid: boolean;
}

export interface MapRequest {
  readonly iova: number;
  readonly vaddr: number;
  readonly length: number;
  readonly read: boolean;
  readonly write: boolean;
}

/** Groups that share a page table. */
interface SharedDomain {
  readonly domain: PagingDomain;
  readonly groups: Set<Group>;
}

/** Pages that are charged for it. */
const pages = ({ length, registers }: Mapping): number => (registers ? 0 : length / FRAME_BYTES);
const end = (mapping: Mapping): number => mapping.iova + mapping.length;

export class Type1 {
  readonly version: 1 | 2;
  readonly name: string;
  /** Dirty pages are being tracked. */
  tracking = false;
  readonly #context: VfioContext;
  readonly #core: IommuCore;
  readonly #mappings = new IntervalMap<Mapping>();
  readonly #options: PagingOptions | undefined;
  #domains: SharedDomain[] = [];
  #ranges: readonly IovaRange[] = [];

  /** `options`: what its domains are wanted for beside plain mappings. */
  constructor(context: VfioContext, version: 1 | 2, name: string, options?: PagingOptions) {
    this.#context = context;
    this.#core = context.core;
    this.#options = options;
    this.version = version;
    this.name = name;
  }

  /** Mappings that may still be made. */
  get available(): number {
    return MAPPING_LIMIT - this.#mappings.size;
  }
  get mappings(): number {
    return this.#mappings.size;
  }
  /** What can be mapped, without reserved regions. */
  get ranges(): readonly IovaRange[] {
    return this.#ranges;
  }
  /** Page sizes that all domains can map, as bits; below a page of the host they count as one. */
  get pageSizes(): bigint {
    const common = this.#domains.reduce((sizes, { domain }) => sizes & domain.pageSizes, (1n << 64n) - 1n);
    const subPage = BigInt(FRAME_BYTES - 1);
    return common & subPage ? (common & ~subPage) | BigInt(FRAME_BYTES) : common;
  }
  /** Bytes of the smallest page; a mapping is made of whole ones. */
  get granule(): number {
    const sizes = this.pageSizes;
    return Number(sizes & -sizes);
  }
  /** Every device's DMA is coherent with the caches, whatever it asks for. */
  get coherent(): boolean {
    return this.#domains.every(({ groups }) =>
      [...groups].every((group) => group.devices.every((device) => device.capabilities.cacheCoherent)),
    );
  }
  /** Some devices are made by software, which reaches memory for them by the addresses of the user. */
  get emulated(): boolean {
    return this.#domains.some(({ groups }) =>
      [...groups].some((group) => group.devices.some(({ driver }) => driver.software)),
    );
  }
  get groups(): number {
    return this.#domains.reduce((count, { groups }) => count + groups.size, 0);
  }

  /** The domain that the group's devices have. */
  domainOf(group: Group): PagingDomain | undefined {
    return this.#domains.find(({ groups }) => groups.has(group))?.domain;
  }

  /**
   * Gives the group a domain with all mappings. Throws EBUSY while a mapping has no valid user address, EINVAL when one
   * lies where this group cannot have it, and what the driver throws; then nothing has changed.
   */
  attach(group: Group): void {
    const without = this.#all().find((mapping) => !mapping.vaddrValid);
    if (without)
      throw new LinuxError(
        "EBUSY",
        `the mapping ${show(without)} has no valid user address; a group can join once MAP_DMA with VADDR gave it one`,
        this.name,
      );
    for (const shared of this.#domains) {
      if (!this.#tryAttach(group, shared.domain)) continue;
      try {
        this.#ranges = this.#rangesWith(group, shared.domain);
      } catch (error) {
        group.detach();
        throw error;
      }
      shared.groups.add(group);
      return;
    }
    const domain = this.#core.allocatePaging(group.devices[0]!, this.#options);
    try {
      const ranges = this.#rangesWith(group, domain);
      this.#replay(domain);
      group.attach(domain);
      this.#ranges = ranges;
    } catch (error) {
      this.#unmapAll(domain);
      domain.free();
      throw error;
    }
    this.#domains.push({ domain, groups: new Set([group]) });
  }

  /** The group's devices are blocked; with the last group everything goes. */
  detach(group: Group): void {
    const shared = this.#domains.find(({ groups }) => groups.has(group));
    if (!shared) return;
    shared.groups.delete(group);
    group.detach();
    if (shared.groups.size > 0) {
      this.#ranges = this.#rangesOfAll();
      return;
    }
    this.#unmapAll(shared.domain);
    this.#domains = this.#domains.filter((other) => other !== shared);
    shared.domain.free();
    if (this.#domains.length > 0) {
      this.#ranges = this.#rangesOfAll();
      return;
    }
    for (const mapping of this.#all()) this.#giveBack(mapping);
    this.#mappings.clear();
    this.#ranges = [];
    this.tracking = false;
  }

  /**
   * Pins and maps. The request is aligned and does not wrap. Throws EEXIST, ENOSPC (limit of mappings), EINVAL (no
   * IOVA of the container), ENOMEM (RLIMIT_MEMLOCK), EFAULT (user address), or Restart; then nothing has changed.
   */
  map(task: Task, request: MapRequest): void {
    const { iova, vaddr, length } = request;
    const page = iova / FRAME_BYTES;
    const lastPage = page + length / FRAME_BYTES - 1;
    if (this.#mappings.overlaps(page, 0, lastPage, LAST_OFFSET))
      throw new LinuxError(
        "EEXIST",
        `IOVAs ${span(iova, length)} overlap the mapping ${show(this.#mappings.value)}; it must be unmapped first`,
        this.name,
      );
    if (this.available === 0)
      throw new LinuxError(
        "ENOSPC",
        `the container has its ${MAPPING_LIMIT} mappings; fewer and larger ones are needed`,
        this.name,
      );
    if (!holds(this.#ranges, iova, iova + length))
      throw new LinuxError(
        "EINVAL",
        `IOVAs ${span(iova, length)} are not within one of the container's ranges ${this.#ranges.map(showRange).join(", ")}`,
        this.name,
      );
    const { pin, registers } = this.#pin(task, request);
    const protection = (request.read ? Protection.read : 0) | (request.write ? Protection.write : 0);
    const owner = { payer: task.memory, vaddr, vaddrValid: true };
    const mapping: Mapping = { iova, length, pin, registers, protection, ...owner };
    try {
      for (const { domain } of this.#domains) mapPin(domain, mapping);
    } catch (error) {
      for (const { domain } of this.#domains) domain.unmap(iova, length);
      pin.unpin(0, pin.pages);
      throw error;
    }
    task.memory.lockedPages += pages(mapping);
    this.#mappings.insert(page, 0, lastPage, LAST_OFFSET, mapping);
    this.#context.live.mappings += 1;
    if (this.#context.events.on)
      this.#context.events.emit("map", { container: this.name, iova, length, vaddr, protection });
  }

  /** What cannot be pinned may be registers of a device, which peers can reach. */
  #pin(task: Task, { vaddr, length, write }: MapRequest): { readonly pin: Pin; readonly registers: boolean } {
    try {
      requireLockable(task, length / FRAME_BYTES, this.name);
      return { pin: task.memory.pin(vaddr, length, write), registers: false };
    } catch (error) {
      const refused = error instanceof LinuxError && (error.code === "EFAULT" || error.code === "ENOMEM");
      const pin = refused ? task.memory.registers?.(vaddr, length, write) : undefined;
      if (!pin) throw error;
      return { pin, registers: true };
    }
  }

  /**
   * The mappings an unmap of [iova, iova + length) is about, in order. Version 2: EINVAL when the range cuts one.
   * Version 1: none when it begins within one, and one that it cuts at the end is meant as a whole.
   */
  covered(iova: number, length: number): readonly Mapping[] {
    const found: Mapping[] = [];
    const lastPage = (iova + length) / FRAME_BYTES - 1;
    let more = this.#mappings.overlaps(iova / FRAME_BYTES, 0, lastPage, LAST_OFFSET);
    while (more && this.#mappings.startPage <= lastPage) {
      found.push(this.#mappings.value);
      more = this.#mappings.next();
    }
    const first = found[0];
    if (this.version === 1) return first && first.iova < iova ? [] : found;
    for (const cut of [first, found.at(-1)])
      if (cut && (cut.iova < iova || end(cut) > iova + length))
        throw new LinuxError(
          "EINVAL",
          `IOVAs ${span(iova, length)} cut the mapping ${show(cut)}; whole mappings are needed`,
          this.name,
        );
    return found;
  }

  all(): readonly Mapping[] {
    return this.#all();
  }

  /** Takes adjacent mappings (`covered`, `all`) away: first from the hardware, then their pins. The bytes unmapped. */
  unmap(mappings: readonly Mapping[]): number {
    const first = mappings[0];
    if (!first) return 0;
    for (const { domain } of this.#domains) unmapSpan(domain, first.iova, end(mappings.at(-1)!));
    let total = 0;
    for (const mapping of mappings) {
      this.#mappings.find(mapping.iova / FRAME_BYTES, 0);
      this.#mappings.remove();
      this.#giveBack(mapping);
      total += mapping.length;
    }
    return total;
  }

  /**
   * Their user addresses are no longer valid. EBUSY with devices made by software, which use them; EINVAL when one already
   * had none; then nothing has changed.
   */
  invalidateVaddr(mappings: readonly Mapping[]): number {
    if (this.emulated)
      throw new LinuxError(
        "EBUSY",
        "a device made by software uses the user's addresses; they cannot be exchanged while it is here",
        this.name,
      );
    const without = mappings.find((mapping) => !mapping.vaddrValid);
    if (without)
      throw new LinuxError(
        "EINVAL",
        `the mapping ${show(without)} has no valid user address already`,
        this.name,
      );
    for (const mapping of mappings) mapping.vaddrValid = false;
    return mappings.reduce((total, mapping) => total + mapping.length, 0);
  }

  /**
   * Gives a mapping whose user address was invalidated another one; from now on its new owner is charged. ENOENT
   * without a mapping there, EINVAL when it is another one or has an address, ENOMEM when the owner may lock no more.
   */
  updateVaddr(task: Task, iova: number, vaddr: number, length: number): void {
    const page = iova / FRAME_BYTES;
    if (!this.#mappings.overlaps(page, 0, page + length / FRAME_BYTES - 1, LAST_OFFSET))
      throw new LinuxError("ENOENT", `nothing is mapped at IOVAs ${span(iova, length)}`, this.name);
    const mapping = this.#mappings.value;
    if (mapping.iova !== iova || mapping.length !== length)
      throw new LinuxError(
        "EINVAL",
        `IOVAs ${span(iova, length)} are not exactly the mapping ${show(mapping)}`,
        this.name,
      );
    if (mapping.vaddrValid)
      throw new LinuxError(
        "EINVAL",
        `the mapping ${show(mapping)} has a valid user address; it must be invalidated first`,
        this.name,
      );
    if (mapping.payer !== task.memory) {
      requireLockable(task, pages(mapping), this.name);
      mapping.payer.lockedPages -= pages(mapping);
      task.memory.lockedPages += pages(mapping);
      mapping.payer = task.memory;
    }
    mapping.vaddr = vaddr;
    mapping.vaddrValid = true;
  }

  #all(): Mapping[] {
    const found: Mapping[] = [];
    for (let more = this.#mappings.first(); more; more = this.#mappings.next())
      found.push(this.#mappings.value);
    return found;
  }

  /** No domain maps it any more. */
  #giveBack(mapping: Mapping): void {
    mapping.pin.unpin(0, mapping.pin.pages);
    mapping.payer.lockedPages -= pages(mapping);
    this.#context.live.mappings -= 1;
    if (this.#context.events.on)
      this.#context.events.emit("unmap", {
        container: this.name,
        iova: mapping.iova,
        length: mapping.length,
      });
  }

  #tryAttach(group: Group, domain: PagingDomain): boolean {
    try {
      group.attach(domain);
      return true;
    } catch (error) {
      if (error instanceof LinuxError && error.code === "EINVAL") return false;
      throw error;
    }
  }

  /** The ranges once this group has the domain too. EINVAL when a mapping is then outside. */
  #rangesWith(group: Group, domain: PagingDomain): readonly IovaRange[] {
    const before = this.#domains.length === 0 ? ALL_IOVAS : this.#ranges;
    const ranges = withoutReserved(intersect(before, domain.apertures), group.reserved());
    for (const mapping of this.#all())
      if (!holds(ranges, mapping.iova, end(mapping)))
        throw new LinuxError(
          "EINVAL",
          `the container's mapping ${show(mapping)} lies where group ${group.id} cannot map: its ranges are ${ranges.map(showRange).join(", ")}`,
          this.name,
        );
    return ranges;
  }

  #rangesOfAll(): readonly IovaRange[] {
    let ranges: readonly IovaRange[] = ALL_IOVAS;
    for (const { domain, groups } of this.#domains) {
      ranges = intersect(ranges, domain.apertures);
      for (const group of groups) ranges = withoutReserved(ranges, group.reserved());
    }
    return ranges;
  }

  /** A new domain gets the mappings there are. */
  #replay(domain: PagingDomain): void {
    for (const mapping of this.#all()) mapPin(domain, mapping);
  }

  /** Of a domain that has them all, or none. */
  #unmapAll(domain: PagingDomain): void {
    const mappings = this.#all();
    const first = mappings[0];
    if (first) unmapSpan(domain, first.iova, end(mappings.at(-1)!));
  }
}

/** Unmaps what the domain can have of [start, end). */
const unmapSpan = (domain: PagingDomain, start: number, end: number): void => {
  for (const part of intersect([{ start, end }], domain.apertures))
    domain.unmap(part.start, part.end - part.start);
};

/** Maps every run of frames of the pin. */
const mapPin = (domain: PagingDomain, mapping: Mapping): void => {
  const { extents } = mapping.pin;
  let iova = mapping.iova;
  for (let at = 0; at < extents.length; at += 2) {
    const length = extents[at + 1]! * FRAME_BYTES;
    domain.map(iova, extents[at]! * FRAME_BYTES, length, mapping.protection);
    iova += length;
  }
};

const span = (iova: number, length: number): string => `[${hex(iova)}, ${hex(iova + length)})`;
const show = (mapping: Mapping): string => span(mapping.iova, mapping.length);
const showRange = (range: IovaRange): string => `[${hex(range.start)}, ${hex(range.end)})`;
