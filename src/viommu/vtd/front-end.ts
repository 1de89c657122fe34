/**
 * A VT-d unit that a VMM shows to its guest: the model of the silicon (`hardware/vtd`) over guest memory, whose
 * invalidations go on to a back end. The guest reaches it by register writes, queue memory and descriptors alone.
 *
 * IOTLB invalidations are collected and handed on together before the next wait descriptor; what the host refuses stops
 * the queue with IQE and the head at the descriptor that asked for it (§6.5.2.11). A unit reports caching mode (CAP.CM), so
 * that a guest tells about entries it adds as well. Device-TLB descriptors end here: the host flushes those itself.
 */
import type { EventSink } from "../../base/events.ts";
import type { PageRequest, PageResponder } from "../../hardware/ats.ts";
import type { Downstream } from "../../hardware/downstream.ts";
import { NO_PASID, type SendMessage } from "../../hardware/unit.ts";
import {
  PasidCacheGranularity,
  PasidCacheInvalidate,
  PasidIotlbGranularity,
  PasidIotlbInvalidate,
} from "../../hardware/vtd/scalable-spec.ts";
import {
  ContextCacheInvalidate,
  Descriptor,
  DescriptorType,
  Gcmd,
  Granularity,
  IotlbInvalidate,
  Register,
  RtaddrRegister,
} from "../../hardware/vtd/spec.ts";
import { type VtdCapabilities, VtdUnit } from "../../hardware/vtd/unit.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import type { BackEnd, Forget, Reread, Translation } from "../by-domain.ts";
import { Following } from "../following.ts";
import { type FirstStageTable, GuestTables, type Root } from "./tables.ts";
import { type PasidService, VirtualCommands } from "./virtual-command.ts";

export interface FrontEndOptions {
  readonly name: string;
  /** The guest's. */
  readonly memory: HostMemory;
  readonly events: EventSink;
  /** Interrupts the guest. */
  readonly interrupt: SendMessage;
  readonly capabilities: VtdCapabilities;
  /** Gives the guest its PASIDs by virtual commands; left out: the guest chooses them. */
  readonly pasids?: PasidService;
}

const PAGE = 4096;

export class VtdFrontEnd implements Downstream {
  readonly model = "vtd";
  readonly name: string;
  readonly #unit: VtdUnit;
  readonly #tables: GuestTables;
  readonly #commands: VirtualCommands | undefined;
  /** What the guest latched with SRTP. */
  #root: Root = { table: 0, mode: 0 };
  readonly #following: Following<Forget, Reread>;

  constructor(options: FrontEndOptions) {
    this.name = options.name;
    this.#following = new Following(options.name, options.events);
    this.#unit = new VtdUnit({
      ...options,
      capabilities: {
        ...options.capabilities,
        cachingMode: true,
        virtualCommands: options.pasids !== undefined,
      },
      cache: "none",
      downstream: this,
    });
    this.#tables = new GuestTables(options.memory, this.#unit.capabilities);
    this.#commands =
      options.pasids &&
      new VirtualCommands(options.pasids, (error) => this.#following.report("a virtual command", error));
  }

  /** Who makes the host follow; once, before the guest runs. */
  connect(backEnd: BackEnd): void {
    this.#following.connect({ tell: (list) => backEnd.forget(list), reread: (what) => backEnd.reread(what) });
  }

  get tables(): GuestTables {
    return this.#tables;
  }

  // What the guest reaches

  mmioRead(offset: number, width: 4 | 8): bigint {
    return this.#commands?.read(offset, width) ?? this.#unit.mmioRead(offset, width);
  }

  mmioWrite(offset: number, width: 4 | 8, value: bigint): void {
    this.#commands?.write(offset, width, value);
    const before = this.#status();
    this.#unit.mmioWrite(offset, width, value);
    if (offset !== Register.GCMD) return;
    const latches = (Number(value) & Gcmd.SRTP) !== 0;
    if (latches) this.#latch();
    const enabled = (this.#status() & Gcmd.TE) !== 0;
    if (enabled !== ((before & Gcmd.TE) !== 0) || (latches && enabled)) this.#following.restart({});
  }

  #status(): number {
    return Number(this.#unit.mmioRead(Register.GSTS, 4));
  }

  #latch(): void {
    const { RTA, TTM } = RtaddrRegister.fields;
    const register = this.#unit.mmioRead(Register.RTADDR, 8);
    this.#root = { table: Number(RTA.of(register)), mode: Number(TTM.of(register)) };
  }

  // What the guest wants

  get #translates(): boolean {
    return (this.#status() & Gcmd.TE) !== 0;
  }

  /** Of a device now; `pasid` left out: of its requests without one. */
  translationOf(rid: number, pasid: number = NO_PASID): Translation<FirstStageTable> {
    if (!this.#translates)
      return pasid === NO_PASID
        ? { kind: "passThrough", domain: 0, pasid }
        : { kind: "blocked", why: "translation is off, and without it there are no PASIDs" };
    return this.#tables.translationOf(this.#root, rid, pasid);
  }

  /** PASIDs of a device that the guest's tables have something for. Throws ENOSPC when there are too many. */
  pasidsOf(rid: number): number[] {
    return this.#translates ? this.#tables.pasidsOf(this.#root, rid) : [];
  }

  /** A page that a device of the guest asks for: it goes to the guest's page request queue. */
  requestPage(request: PageRequest): void {
    this.#unit.requestPage(request);
  }
  /** Takes the guest's answers, and those that the unit gives where the guest cannot. */
  set onPageResponse(respond: PageResponder) {
    this.#unit.onPageResponse = respond;
  }

  // What its queue asks

  take(words: Uint32Array, at: number): number {
    const { TYPE, TYPE_HIGH } = Descriptor.fields;
    switch (TYPE.get(words) | (TYPE_HIGH.get(words) << 4)) {
      case DescriptorType.iotlb:
        this.#following.collect(iotlbRequest(words), at);
        return -1;
      case DescriptorType.pasidIotlb:
        this.#following.collect(pasidIotlbRequest(words), at);
        return -1;
      case DescriptorType.contextCache: {
        const { G, SID, FM } = ContextCacheInvalidate.fields;
        // What a domain-selective one is about is known only after reading: everything is read.
        const one = G.get(words) === Granularity.device && FM.get(words) === 0;
        return this.#following.reread(one ? { rid: SID.get(words) } : {}, at);
      }
      case DescriptorType.pasidCache: {
        const { G, PASID } = PasidCacheInvalidate.fields;
        const one = G.get(words) === PasidCacheGranularity.pasid;
        return this.#following.reread(one ? { pasid: PASID.get(words) } : {}, at);
      }
      case DescriptorType.wait:
        return this.drain();
      default:
        return -1;
    }
  }

  drain(): number {
    return this.#following.drain();
  }
}

/** §6.5.2.3 */
const iotlbRequest = (words: Uint32Array): Forget => {
  const { G, DID, IH, AM, ADDR } = IotlbInvalidate.fields;
  const granularity = G.get(words);
  const paged = granularity === Granularity.page;
  return {
    domain: granularity === Granularity.global ? undefined : DID.get(words),
    pasid: undefined,
    range: paged ? alignedRange(words[2]! & ADDR.mask, words[3]!, AM.get(words)) : undefined,
    leavesOnly: paged && IH.get(words) === 1,
  };
};

/** §6.5.2.4 */
const pasidIotlbRequest = (words: Uint32Array): Forget => {
  const { G, DID, PASID, AM, IH, ADDR } = PasidIotlbInvalidate.fields;
  const paged = G.get(words) === PasidIotlbGranularity.page;
  return {
    domain: DID.get(words),
    pasid: PASID.get(words),
    range: paged ? alignedRange(words[2]! & ADDR.mask, words[3]!, AM.get(words)) : undefined,
    leavesOnly: paged && IH.get(words) === 1,
  };
};

/** 2^maskLg2 pages around an address. */
const alignedRange = (lo: number, hi: number, maskLg2: number) => {
  const length = PAGE * 2 ** maskLg2;
  const address = hi * 2 ** 32 + (lo >>> 0);
  return { start: Math.floor(address / length) * length, length };
};
