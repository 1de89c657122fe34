/**
 * Access objects: how a part of the kernel that is no hardware (a mediated device, a test) reaches the memory of an
 * IOAS. It pins pages for long, or reads and writes bytes at once. Before an unmap takes pages that are pinned, it is
 * told and gives them back; the unmap waits for that (`unmap.ts`).
 */
import { Protection } from "../iommu/driver.ts";
import { LinuxError } from "../uapi/errno.ts";
import { hex, MAX_ADDRESS, PAGE_BYTES, pageOf } from "./address.ts";
import type { Area } from "./areas.ts";
import type { IommufdContext } from "./context.ts";
import type { IoPagetable, PinHolder } from "./io-pagetable.ts";
import { Ioas } from "./ioas.ts";
import { IommufdObject } from "./objects.ts";
import { holdAll, type PageRange } from "./pages.ts";

/** Who has an access. */
export interface AccessUser {
  /** It pins pages: IOVAs of the IOAS are then aligned to pages, and `unmap` is called before pages go. */
  readonly pins: boolean;
  /** IOVAs [iova, iova + length) are about to be unmapped: `AccessPin.release` what lies there, now or soon. */
  unmap(iova: bigint, length: bigint): void;
}

interface HeldPart extends PageRange {
  readonly area: Area;
  /** First byte within the pages, and bytes. */
  readonly start: bigint;
  readonly length: bigint;
}

/** Pages that an access has pinned. */
export class AccessPin {
  readonly iova: bigint;
  readonly length: bigint;
  #parts: readonly HeldPart[];

  constructor(iova: bigint, length: bigint, parts: readonly HeldPart[]) {
    this.iova = iova;
    this.length = length;
    this.#parts = parts;
  }

  /** Whether it touches the range. */
  touches(iova: bigint, length: bigint): boolean {
    return this.iova <= iova + (length - 1n) && iova <= this.iova + (this.length - 1n);
  }

  /** The physical memory, run by run. */
  physical(visit: (pa: number, length: number) => void): void {
    for (const { pages, start, length } of this.#parts) pages.physical(Number(start), Number(length), visit);
  }

  /** Gives the pages back; a second time nothing happens. */
  release(): void {
    for (const { area, pages, first, last } of this.#parts) {
      area.accesses -= 1;
      pages.release(first, last);
    }
    this.#parts = [];
  }
}

const requireLength = (iova: bigint, length: bigint): void => {
  if (length === 0n) throw new LinuxError("EINVAL", "length is 0; at least a byte is accessed");
  if (iova + (length - 1n) > MAX_ADDRESS)
    throw new LinuxError("EOVERFLOW", `iova ${hex(iova)} + length ${hex(length)} goes beyond 64 bits`);
};

/** An access as an object of the file. The kernel holds it: DESTROY of it is EBUSY. */
export class Access extends IommufdObject {
  readonly type = "access";
  readonly #context: IommufdContext;
  readonly #holder: PinHolder;
  readonly #user: AccessUser;
  #ioas: Ioas | undefined;

  constructor(context: IommufdContext, user: AccessUser) {
    super();
    this.#context = context;
    this.#user = user;
    this.#holder = {
      alignment: user.pins ? BigInt(PAGE_BYTES) : 1n,
      unmap: (iova, length) => user.unmap(iova, length),
    };
    this.users = 1;
  }

  get ioas(): Ioas | undefined {
    return this.#ioas;
  }

  /** Throws EINVAL when it is attached already, ENOENT. */
  attach(ioasId: number): void {
    if (this.#ioas)
      throw new LinuxError("EINVAL", `it is attached to ${this.#ioas.name}; replace changes that`, this.name);
    this.#change(this.#find(ioasId));
  }

  /** Its user is told to unpin everything; then it is attached to another IOAS. Throws ENOENT. */
  replace(ioasId: number): void {
    if (!this.#ioas)
      throw new LinuxError("ENOENT", "it is not attached, so there is nothing to replace", this.name);
    const next = this.#find(ioasId);
    if (next !== this.#ioas) this.#change(next);
  }

  detach(): void {
    this.#change(undefined);
  }

  /**
   * Pins the pages behind [iova, iova + length). Throws EINVAL (length 0, memory of a device, memory not aligned like its IOVA), EOVERFLOW,
   * ENOENT (not mapped, or being unmapped), EPERM (not mapped for that), EFAULT, ENOMEM, Restart.
   */
  pin(iova: bigint, length: bigint, write: boolean): AccessPin {
    requireLength(iova, length);
    const parts: HeldPart[] = [];
    const pagetable = this.#pagetable();
    const collect = (area: Area, from: bigint, bytes: bigint): void => {
      this.#require(area, write);
      if (area.leaving)
        throw new LinuxError("ENOENT", `the area at ${hex(area.iova)} is being unmapped`, this.name);
      if (((area.start - area.iova) & BigInt(PAGE_BYTES - 1)) !== 0n)
        throw new LinuxError(
          "EINVAL",
          `the area at ${hex(area.iova)} has its memory at another place within the page, so its pages cannot be pinned`,
          this.name,
        );
      const start = area.start + (from - area.iova);
      const last = pageOf(start + bytes - 1n);
      parts.push({ area, pages: area.pages, first: pageOf(start), last, start, length: bytes });
    };
    try {
      pagetable.areas.walk(iova, length, collect);
    } catch (error) {
      // Areas are pinned one after the other: what cannot be pinned before the hole is the answer.
      holdAll(parts);
      for (const { pages, first, last } of parts) pages.release(first, last);
      throw error;
    }
    this.#context.allocate("a list of pages");
    holdAll(parts);
    for (const { area } of parts) area.accesses += 1;
    return new AccessPin(iova, length, parts);
  }

  /** Copies bytes out of the IOAS. Throws like `pin`; bytes before a hole were copied. */
  read(iova: bigint, into: Uint8Array): void {
    this.#transfer(iova, BigInt(into.length), false, (area, page, offset, from, to) =>
      area.pages.read(this.#context.system.memory, page, offset, into.subarray(from, to)),
    );
  }

  /** Copies bytes into the IOAS. Throws like `pin`; bytes before a hole were copied. */
  write(iova: bigint, data: Uint8Array): void {
    this.#transfer(iova, BigInt(data.length), true, (area, page, offset, from, to) =>
      area.pages.write(this.#context.system.memory, page, offset, data.subarray(from, to)),
    );
  }

  /** Its user gives it back: detached, and gone. */
  release(): void {
    this.detach();
    this.users = 0;
    this.#context.objects.remove(this);
    this.#context.release();
  }

  destroy(): void {
    this.detach();
  }

  #transfer(
    iova: bigint,
    length: bigint,
    write: boolean,
    copy: (area: Area, page: number, offset: number, from: number, to: number) => void,
  ): void {
    requireLength(iova, length);
    let done = 0;
    this.#pagetable().areas.walk(iova, length, (area, from, bytes) => {
      this.#require(area, write);
      const start = area.start + (from - area.iova);
      const next = done + Number(bytes);
      copy(area, pageOf(start), Number(start & BigInt(PAGE_BYTES - 1)), done, next);
      done = next;
    });
  }

  #require(area: Area, write: boolean): void {
    area.pages.requireOrdinary();
    if (area.protection & (write ? Protection.write : Protection.read)) return;
    throw new LinuxError(
      "EPERM",
      `the area at ${hex(area.iova)} was not mapped with ${write ? "WRITEABLE" : "READABLE"}`,
      this.name,
    );
  }

  #pagetable(): IoPagetable {
    if (!this.#ioas) throw new LinuxError("ENOENT", "it is attached to no IOAS", this.name);
    return this.#ioas.pagetable;
  }

  #find(ioasId: number): Ioas {
    return this.#context.objects.get(ioasId, Ioas, "ioas_id");
  }

  #change(next: Ioas | undefined): void {
    const before = this.#ioas;
    if (next) this.#context.allocate("a place among the accesses of an IOAS");
    next?.pagetable.addHolder(this.#holder);
    if (next) next.users += 1;
    this.#ioas = next;
    if (!before) return;
    if (this.#user.pins) this.#user.unmap(0n, MAX_ADDRESS);
    before.pagetable.removeHolder(this.#holder);
    before.users -= 1;
  }
}

/** A new access of the file, attached to nothing. The file stays until it is released. Throws ENOMEM. */
export const createAccess = (context: IommufdContext, user: AccessUser): Access => {
  const access = context.add(new Access(context, user));
  context.keep();
  return access;
};
