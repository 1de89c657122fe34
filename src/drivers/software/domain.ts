/** A page table that the host's processor walks for devices made by software: x86-64 tables of 4 levels, without caches. */
import type { PagingDomain } from "../../iommu/driver.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { compileWalker } from "../../pagetable/compile.ts";
import { mappedEnd, Protection } from "../../pagetable/format.ts";
import { Mapper } from "../../pagetable/mapper.ts";
import { x86Paging } from "../../pagetable/x86-64.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { requireEnd } from "../refusals.ts";

export const softwareFormat = x86Paging(4, { accessedDirty: false });
export const walkSoftware = compileWalker(softwareFormat);
const END = mappedEnd(softwareFormat);

export class SoftwareDomain implements PagingDomain {
  readonly kind = "paging";
  readonly id: number;
  readonly name: string;
  readonly apertures = [{ start: 0, end: END }] as const;
  /** 4 KiB, 2 MiB and 1 GiB. */
  readonly pageSizes = 0x4020_1000n;
  readonly memory: HostMemory;
  /** Devices that have it. */
  users = 0;
  readonly #mapper: Mapper;
  readonly #forget: (domain: SoftwareDomain) => void;
  #freed = false;

  /** Throws ENOMEM. */
  constructor(id: number, memory: HostMemory, forget: (domain: SoftwareDomain) => void) {
    this.id = id;
    this.name = `software domain ${id}`;
    this.memory = memory;
    this.#mapper = new Mapper(memory, softwareFormat);
    this.#forget = forget;
  }

  /** Host physical address of the top table. */
  get root(): number {
    return this.#mapper.root;
  }
  get freed(): boolean {
    return this.#freed;
  }

  map(iova: number, pa: number, length: number, protection: number): void {
    requireEnd(this.name, iova, length, END);
    // A table entry cannot say that a page is to be written only.
    this.#mapper.map(
      iova,
      pa,
      length,
      protection & Protection.write ? protection | Protection.read : protection,
    );
  }

  /** Nothing remembers what the tables said. */
  unmap(iova: number, length: number): number {
    const bytes = this.#mapper.unmap(iova, length);
    this.#mapper.release();
    return bytes;
  }

  physical(iova: number): number {
    return this.#mapper.physical(iova);
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
    this.#forget(this);
    this.#mapper.destroy();
  }
}
