/**
 * Memory that a program registers with a container of version 2 before it maps it (linux/vfio.h,
 * VFIO_IOMMU_SPAPR_REGISTER_MEMORY; Documentation/driver-api/vfio.rst, "PPC64 sPAPR implementation note", 5): pinned and
 * counted as locked once, however often it is mapped. It goes as the block it came as, and only while nothing maps it.
 */
import { IntervalMap } from "../../base/interval-map.ts";
import { PinnedRun } from "../../iommufd/pinned-run.ts";
import type { Task, UserMemory } from "../../kernel/call.ts";
import { FRAME_BYTES } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { hex } from "../argument.ts";
import { requireLockable } from "../locked-memory.ts";
import type { Keeper } from "./entries.ts";

const LAST_OFFSET = FRAME_BYTES - 1;

/** A block; entries that point to it keep it. */
class Registration implements Keeper {
  readonly run: PinnedRun;
  readonly payer: UserMemory;
  /** Pages that entries point to, counted once an entry. */
  used = 0;

  constructor(run: PinnedRun, payer: UserMemory) {
    this.run = run;
    this.payer = payer;
  }

  get pages(): number {
    return this.run.pin.pages;
  }

  release(_page: number, count: number): void {
    this.used -= count;
  }
}

export class RegisteredMemory {
  readonly #object: string;
  /** By page number in user memory. */
  readonly #blocks = new IntervalMap<Registration>();

  /** `object` names the container. */
  constructor(object: string) {
    this.#object = object;
  }

  get size(): number {
    return this.#blocks.size;
  }

  /**
   * Pins and charges. The range is of whole pages. Throws EBUSY for a block that is registered, EINVAL for one that
   * overlaps another, ENOMEM (RLIMIT_MEMLOCK), EFAULT, or Restart; then nothing has changed.
   */
  register(task: Task, vaddr: number, size: number): void {
    const page = vaddr / FRAME_BYTES;
    const last = page + size / FRAME_BYTES - 1;
    if (this.#blocks.overlaps(page, 0, last, LAST_OFFSET)) {
      const same = this.#blocks.startPage === page && this.#blocks.lastPage === last;
      throw new LinuxError(
        same ? "EBUSY" : "EINVAL",
        same
          ? `${span(vaddr, size)} is registered already`
          : `${span(vaddr, size)} overlaps the registered ${this.#shown()}, which must be unregistered first`,
        this.#object,
      );
    }
    const pages = size / FRAME_BYTES;
    requireLockable(task, pages, this.#object);
    const pin = task.memory.pin(vaddr, size, true);
    task.memory.lockedPages += pages;
    this.#blocks.insert(page, 0, last, LAST_OFFSET, new Registration(new PinnedRun(pin, page), task.memory));
  }

  /** Throws ENOENT for what is no block, EBUSY while entries point to it. */
  unregister(vaddr: number, size: number): void {
    const page = vaddr / FRAME_BYTES;
    const last = page + size / FRAME_BYTES - 1;
    const found = this.#blocks.overlaps(page, 0, last, LAST_OFFSET);
    if (!found || this.#blocks.startPage !== page || this.#blocks.lastPage !== last)
      throw new LinuxError(
        "ENOENT",
        found
          ? `${span(vaddr, size)} is not exactly the registered ${this.#shown()}; blocks are not cut`
          : `nothing is registered at ${span(vaddr, size)}`,
        this.#object,
      );
    const { used } = this.#blocks.value;
    if (used > 0)
      throw new LinuxError(
        "EBUSY",
        `${span(vaddr, size)} is mapped: ${used} pages, counted once an entry, must be unmapped first`,
        this.#object,
      );
    this.#giveBack(this.#blocks.value);
    this.#blocks.remove();
  }

  /** Entries will point to the whole range. EINVAL when it is not in one registered block. */
  use(vaddr: number, size: number): Keeper {
    const page = vaddr / FRAME_BYTES;
    const pages = size / FRAME_BYTES;
    const found = this.#blocks.overlaps(page, 0, page + pages - 1, LAST_OFFSET);
    if (!found || this.#blocks.startPage > page || this.#blocks.lastPage < page + pages - 1)
      throw new LinuxError(
        "EINVAL",
        `${span(vaddr, size)} is not within one registered block; SPAPR_REGISTER_MEMORY comes before MAP_DMA`,
        this.#object,
      );
    const registration = this.#blocks.value;
    registration.used += pages;
    return registration;
  }

  /** Nothing points to any of it. */
  close(): void {
    for (let more = this.#blocks.first(); more; more = this.#blocks.next())
      this.#giveBack(this.#blocks.value);
    this.#blocks.clear();
  }

  #giveBack({ run: { pin }, payer, pages }: Registration): void {
    pin.unpin(0, pages);
    payer.lockedPages -= pages;
  }

  #shown(): string {
    const { startPage, lastPage } = this.#blocks;
    return span(startPage * FRAME_BYTES, (lastPage - startPage + 1) * FRAME_BYTES);
  }
}

const span = (vaddr: number, size: number): string => `user memory [${hex(vaddr)}, ${hex(vaddr + size)})`;
