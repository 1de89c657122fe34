/**
 * The fault region of a device (extension `vsva2020`): pages that a VMM maps or reads, a head and a ring of struct
 * iommu_fault. The kernel writes faults and moves `producer`, the VMM moves `consumer`; both count faults since the region
 * was made, so that a fault's place is its number modulo `entries`. Page requests that wait for the VMM's answer are kept
 * here too, and are denied when the region goes: nothing waits for somebody who cannot answer.
 *
 * Pages that a program may write are believed in nothing but `consumer`, and in that only where it can be.
 */
import type { PageResponse } from "../iommu/driver.ts";
import type { MapSegment, PageOwner, Task } from "../kernel/call.ts";
import { FRAME_BYTES, type HostMemory } from "../memory/host-memory.ts";
import { LinuxError } from "../uapi/errno.ts";
import { SoftiommuFaultRegionHeader as Header } from "../uapi/extensions.ts";
import { IommuFault } from "../uapi/vsva.ts";
import { hex } from "./argument.ts";

const VERSION = 1;
/** A power of two, so that places go on when the counts wrap. */
const ENTRIES = 256;
const FRAMES = Math.ceil((Header.size + ENTRIES * IommuFault.size) / FRAME_BYTES);
export const FAULT_REGION_BYTES = FRAMES * FRAME_BYTES;
/** Groups that wait for an answer; a device that asks for more is refused. */
const MOST_WAITING = 4096;
const U32 = 4;

/** A guest's tables that a VMM has given functions. */
export interface FaultOwner {
  /** Its address space did. */
  ownedBy(task: Task): boolean;
}

/** Page requests that want one answer. */
export interface WaitingGroup {
  /** The tables they are under. */
  readonly under: FaultOwner;
  /** The PASIDs by which it is known; none: the requests have no PASID. */
  readonly pasids: readonly number[];
  /** The group's number as the VMM was told it. */
  readonly number: number;
  respond(code: PageResponse["code"]): void;
}

export class FaultRegion implements PageOwner {
  readonly name: string;
  readonly #memory: HostMemory;
  readonly #pa: number;
  readonly #listener: () => (() => void) | undefined;
  #waiting: WaitingGroup[] = [];
  #producer = 0;
  #lost = 0;
  #mappings = 0;
  #open = true;

  /** `listener` gives what tells the VMM that `producer` moved, while there is something. Throws ENOMEM. */
  constructor(memory: HostMemory, device: string, listener: () => (() => void) | undefined) {
    this.name = `fault region of ${device}`;
    this.#memory = memory;
    this.#listener = listener;
    this.#pa = memory.allocate(FRAMES);
    if (this.#pa < 0) throw new LinuxError("ENOMEM", "no host memory for the fault region", this.name);
    memory.fill(this.#pa, FAULT_REGION_BYTES, 0);
    const head = Header.bytes({ version: VERSION, entry_size: IommuFault.size, entries: ENTRIES });
    memory.writeBytes(this.#pa, head);
  }

  /** Groups that wait for an answer. */
  get waiting(): readonly WaitingGroup[] {
    return this.#waiting;
  }

  /** Tells of faults that nobody has to answer. */
  record(faults: readonly Uint8Array[]): void {
    this.#put(faults);
  }

  /**
   * Tells of page requests and keeps them until they are answered. Denied at once where nobody listens, as by a VMM that
   * knows nothing of page requests, and when the ring has no room for all of them.
   */
  report(group: WaitingGroup, faults: readonly Uint8Array[]): void {
    const listened = this.#open && this.#listener() !== undefined;
    if (!listened || this.#waiting.length >= MOST_WAITING) {
      group.respond("invalid");
      return;
    }
    this.#waiting.push(group);
    if (!this.#put(faults)) this.answer((waiting) => waiting === group, "invalid");
  }

  /** Answers those that meet the condition; how many there were. */
  answer(which: (group: WaitingGroup) => boolean, code: PageResponse["code"]): number {
    const found = this.#waiting.filter(which);
    this.#waiting = this.#waiting.filter((group) => !found.includes(group));
    for (const group of found) group.respond(code);
    return found.length;
  }

  read(at: number, into: Uint8Array): void {
    this.#memory.readBytes(this.#pa + at, into);
  }

  /** Throws EINVAL for anything but `consumer`, and for one that is not between it and `producer`. */
  write(at: number, data: Uint8Array): void {
    if (at !== Header.offsets.consumer || data.length !== U32)
      throw new LinuxError(
        "EINVAL",
        `${data.length} bytes at ${hex(at)}: the ${U32} bytes of consumer, at ${hex(Header.offsets.consumer)}, are what can be written`,
        this.name,
      );
    const consumer = new DataView(data.buffer, data.byteOffset, U32).getUint32(0, true);
    const used = this.#usedBy(consumer);
    if (used === undefined || used > (this.#used ?? ENTRIES))
      throw new LinuxError(
        "EINVAL",
        `consumer ${consumer}: it goes from ${this.#consumer} up to producer, ${this.#producer}`,
        this.name,
      );
    this.#memory.store32(this.#pa + at, consumer);
  }

  /** The range is of whole pages, within the region. */
  segments(at: number, length: number): readonly MapSegment[] {
    return [{ kind: "memory", offset: 0, length, pa: this.#pa + at, owner: this }];
  }

  mapped(): void {
    this.#mappings += 1;
  }

  unmapped(): void {
    this.#mappings -= 1;
    this.#settle();
  }

  /** The device's last file went. */
  close(): void {
    this.#open = false;
    this.answer(() => true, "invalid");
    this.#settle();
  }

  #settle(): void {
    if (!this.#open && this.#mappings === 0) this.#memory.free(this.#pa, FRAMES);
  }

  get #consumer(): number {
    this.#memory.load32(this.#pa + Header.offsets.consumer);
    return this.#memory.lo >>> 0;
  }

  /** Places that are taken; undefined: `consumer` says what cannot be. */
  get #used(): number | undefined {
    return this.#usedBy(this.#consumer);
  }

  #usedBy(consumer: number): number | undefined {
    const used = (this.#producer - consumer) >>> 0;
    return used > ENTRIES ? undefined : used;
  }

  /** All of them or none: what finds no room is lost, and counted. */
  #put(faults: readonly Uint8Array[]): boolean {
    if (!this.#open) return false;
    const used = this.#used;
    const fits = used !== undefined && used + faults.length <= ENTRIES;
    const { offsets } = Header;
    if (fits) {
      for (const fault of faults) {
        const place = Header.size + (this.#producer % ENTRIES) * IommuFault.size;
        this.#memory.writeBytes(this.#pa + place, fault);
        this.#producer = (this.#producer + 1) >>> 0;
      }
      this.#memory.store32(this.#pa + offsets.producer, this.#producer);
    } else {
      this.#lost = (this.#lost + faults.length) >>> 0;
      this.#memory.store32(this.#pa + offsets.lost, this.#lost);
    }
    this.#listener()?.();
    return fits;
  }
}
