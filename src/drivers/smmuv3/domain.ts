/**
 * A host domain of an SMMUv3: a VMSAv8-64 table with 4 KiB pages, of stage 1 under an ASID, or of stage 2 under a VMID when
 * guests' tables are to lie above it. What is unmapped is flushed before its table pages go back to memory. Interrupt
 * messages of functions are translated like any access, so that the doorbells they write to are mapped here, at a window
 * of addresses that is kept free for them.
 */
import type { EventSink } from "../../base/events.ts";
import type { Capabilities } from "../../hardware/smmuv3/capabilities.ts";
import { ADDRESS_BITS, Cd, type Ste } from "../../hardware/smmuv3/spec.ts";
import {
  type DirtyTracking,
  type DomainGeometry,
  type PagingDomain,
  Protection,
} from "../../iommu/driver.ts";
import { MSI_BASE } from "../../kernel/msi.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import type { PageTableFormat } from "../../pagetable/format.ts";
import { Mapper } from "../../pagetable/mapper.ts";
import { levelShift, vmsaStage1, vmsaStage2 } from "../../pagetable/vmsa.ts";
import { requireEnd, stillUsed } from "../refusals.ts";
import type { Tag } from "./invalidations.ts";

/** Where functions find the doorbells of interrupts, as on Linux. */
export const DOORBELL_WINDOW = { start: 0x800_0000, length: 0x10_0000 } as const;

const PAGE = 4096;
const GRANULE_LG2 = 12;
/** Bits of virtual addresses, and of addresses in tables, with this granule. */
const WIDTH = 48;
/** Memory attributes, cacheability and shareability of a coherent host: write-back, inner shareable. */
const WRITE_BACK_MAIR = 0xff;
const WRITE_BACK = 1;
const INNER = 3;

/** What a domain asks of the driver that made it. */
export interface DomainHost {
  /** What is added is flushed, too. */
  readonly flushesAdded: boolean;
  /** Its functions, and guests above it, forget [iova, iova + length). `leavesOnly`: no table page was taken away. */
  flush(domain: SmmuDomain, iova: number, length: number, leavesOnly: boolean): void;
  /** The unit forgets all of it; its number can be given out again. */
  forget(domain: SmmuDomain): void;
}

export interface SmmuDomainOptions {
  readonly unitName: string;
  readonly stage: 1 | 2;
  /** ASID or VMID. */
  readonly id: number;
  readonly memory: HostMemory;
  readonly unit: Capabilities;
  readonly dirtyTracking: boolean;
  /** Guests' tables may lie above it. */
  readonly nestParent: boolean;
  readonly host: DomainHost;
  readonly events: EventSink;
}

const formatOf = ({ stage, unit, dirtyTracking }: SmmuDomainOptions): PageTableFormat => {
  const outputBits = Math.min(unit.outputBits, WIDTH);
  if (stage === 2)
    return vmsaStage2({
      granuleLg2: GRANULE_LG2,
      inputBits: outputBits,
      outputBits,
      twoExecuteNever: unit.twoExecuteNever,
    });
  return vmsaStage1({
    granuleLg2: GRANULE_LG2,
    inputBits: WIDTH,
    outputBits,
    ...(dirtyTracking && { updates: "dirty" }),
  });
};

export class SmmuDomain implements PagingDomain {
  readonly kind = "paging";
  readonly id: number;
  readonly name: string;
  readonly stage: 1 | 2;
  readonly nestParent: boolean;
  readonly apertures: DomainGeometry["apertures"];
  readonly pageSizes = 0x4020_1000n;
  readonly dirty?: DirtyTracking;
  /** Functions, PASIDs of functions, nested domains and vIOMMUs that use it. */
  users = 0;
  readonly tag: Tag;
  readonly #unit: Capabilities;
  readonly #host: DomainHost;
  readonly #mapper: Mapper;
  readonly #events: EventSink;
  /** Pages of the window that are mapped. */
  readonly #doorbells = new Set<number>();
  /** Context descriptors that were made of it, by whether faults wait. */
  readonly #descriptors = new Map<boolean, Uint32Array>();
  #passes = false;
  #freed = false;

  /** Throws ENOMEM. */
  constructor(options: SmmuDomainOptions) {
    const { unitName, stage, id, memory, unit, dirtyTracking, host, events } = options;
    this.id = id;
    this.stage = stage;
    this.nestParent = options.nestParent;
    this.name = `${unitName} stage ${stage} domain ${id}`;
    this.tag = stage === 1 ? { stage, asid: id, vmid: 0 } : { stage, asid: 0, vmid: id };
    this.#unit = unit;
    this.#host = host;
    this.#events = events;
    this.apertures = [{ start: 0, end: 2 ** (stage === 1 ? WIDTH : Math.min(unit.outputBits, WIDTH)) }];
    this.#mapper = new Mapper(memory, formatOf(options));
    if (dirtyTracking)
      this.dirty = {
        set: () => {}, // the unit always keeps dirty state here; reading tells it
        read: (iova, length, clear, visit) => this.#readDirty(iova, length, clear, visit),
      };
  }

  /** Physical address of the top table. */
  get root(): number {
    return this.#mapper.root;
  }

  /** §5.4 The context descriptor of stage 1, as words. `stalls`: faults wait for an answer. */
  contextDescriptor(stalls: boolean): Uint32Array {
    const known = this.#descriptors.get(stalls);
    if (known) return known;
    const words = new Uint32Array(Cd.words);
    Cd.toWords(this.#makeDescriptor(stalls), words);
    this.#descriptors.set(stalls, words);
    return words;
  }

  #makeDescriptor(stalls: boolean): bigint {
    const dirty = this.dirty !== undefined;
    return Cd.make({
      V: true,
      AA64: true,
      T0SZ: 64 - WIDTH,
      IR0: WRITE_BACK,
      OR0: WRITE_BACK,
      SH0: INNER,
      EPD1: true,
      IPS: this.#addressSize,
      HA: dirty,
      HD: dirty,
      S: stalls,
      R: true,
      A: true,
      ASET: true,
      ASID: this.id,
      TTB0: this.#mapper.root,
      MAIR0: WRITE_BACK_MAIR,
    });
  }

  /** §5.2 What a stream table entry says of stage 2. */
  get stage2Fields(): Parameters<typeof Ste.make>[0] {
    const { levels } = this.#mapper.format;
    const start = levels.at(-1)!.number;
    const inputBits = levelShift(GRANULE_LG2, start) + levels.at(-1)!.bits;
    return {
      S2VMID: this.id,
      S2T0SZ: 64 - inputBits,
      S2SL0: 2 - start,
      S2IR0: WRITE_BACK,
      S2OR0: WRITE_BACK,
      S2SH0: INNER,
      S2PS: this.#addressSize,
      S2AA64: true,
      S2R: true,
      S2TTB: this.#mapper.root,
    };
  }

  map(iova: number, pa: number, length: number, protection: number): void {
    const { end } = this.apertures[0]!;
    requireEnd(this.name, iova, length, end);
    this.#mapper.map(iova, pa, length, protection);
    if (this.#host.flushesAdded) this.#host.flush(this, iova, length, false);
    if (this.#events.on) this.#events.emit("map", { domain: this.name, iova, pa, length, protection });
  }

  /** Doorbells in the range stay. */
  unmap(iova: number, length: number): number {
    const end = iova + length;
    const { start } = DOORBELL_WINDOW;
    const after = start + DOORBELL_WINDOW.length;
    let unmapped = 0;
    if (!this.#hasWindow || end <= start || iova >= after) unmapped = this.#unmap(iova, length);
    else {
      if (iova < start) unmapped += this.#unmap(iova, start - iova);
      if (end > after) unmapped += this.#unmap(after, end - after);
    }
    if (this.#events.on) this.#events.emit("unmap", { domain: this.name, iova, length, unmapped });
    return unmapped;
  }

  physical(iova: number): number {
    return this.#mapper.physical(iova);
  }

  /** Functions reach the doorbell page at `doorbellAddress` of it from now on. Throws ENOMEM, EEXIST. */
  mapDoorbell(page: number): void {
    if (this.#doorbells.has(page)) return;
    this.#mapper.map(
      Number(doorbellAddress(BigInt(page))),
      page,
      PAGE,
      Protection.read | Protection.write | Protection.mmio,
    );
    this.#doorbells.add(page);
  }

  /** Messages pass at the addresses of the window: what lies beneath this table leads them on. Throws ENOMEM, EEXIST. */
  passMessages(): void {
    if (this.#passes) return;
    const { start, length } = DOORBELL_WINDOW;
    this.#mapper.map(start, start, length, Protection.read | Protection.write | Protection.mmio);
    this.#passes = true;
  }

  free(): void {
    if (this.#freed) return;
    if (this.users > 0) throw stillUsed(this.name, `${this.users} users`);
    this.#freed = true;
    this.#host.forget(this);
    this.#mapper.destroy();
  }

  /** Something in the window is to stay. */
  get #hasWindow(): boolean {
    return this.#passes || this.#doorbells.size > 0;
  }

  /** Encoding of the size of addresses in the table. */
  get #addressSize(): number {
    const sizes: readonly number[] = ADDRESS_BITS;
    return sizes.indexOf(Math.min(this.#unit.outputBits, WIDTH));
  }

  #unmap(iova: number, length: number): number {
    const unmapped = this.#mapper.unmap(iova, length);
    this.#forgetGathered();
    return unmapped;
  }

  #readDirty(
    iova: number,
    length: number,
    clear: boolean,
    visit: (iova: number, bytes: number) => void,
  ): void {
    this.#mapper.scanDirty(iova, length, clear, visit);
    this.#forgetGathered();
  }

  #forgetGathered(): void {
    const { gather } = this.#mapper;
    if (gather.pending) this.#host.flush(this, gather.start, gather.end - gather.start, !gather.tables);
    this.#mapper.release();
  }
}

/** Where a function finds the doorbell that is at this physical address. */
export const doorbellAddress = (physical: bigint): bigint =>
  physical - BigInt(MSI_BASE) + BigInt(DOORBELL_WINDOW.start);
