/**
 * The invalidation queue of a VT-d unit (revision 4.1, §6.5.2): descriptors are fetched from memory, checked and
 * carried out one after the other when the tail is written, so that a fence is always met. The first malformed one stops
 * the queue with IQE and the head at it, until software clears IQE.
 *
 * Device-TLBs are asked at once; one that does not answer in time aborts the next wait descriptor and stops the queue
 * with ITE. Which descriptors there are depends on their width and on the translation table mode (table 26); the upper
 * half of a wide one is reserved.
 */
import type { EventSink } from "../../base/events.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import type { Layout } from "../../uapi/layout.ts";
import type { DeviceTlbAnswer, DeviceTlbInvalidation } from "../ats.ts";
import type { Downstream } from "../downstream.ts";
import { NO_PASID } from "../unit.ts";
import type { Capabilities } from "./capabilities.ts";
import type { EventMessage } from "./event-message.ts";
import type { FaultLog } from "./fault-log.ts";
import type { RegisterFile } from "./registers.ts";
import {
  PageGroupResponse,
  PasidCacheGranularity,
  PasidCacheInvalidate,
  PasidDeviceTlbInvalidate,
  PasidIotlbGranularity,
  PasidIotlbInvalidate,
  ResponseCode,
} from "./scalable-spec.ts";
import {
  ContextCacheInvalidate,
  DESCRIPTOR_BYTES,
  Descriptor,
  DescriptorType,
  DeviceTlbInvalidate,
  Fsts,
  Granularity,
  Ics,
  InterruptEntryInvalidate,
  InvalidationWait,
  IotlbInvalidate,
  IqaRegister,
  IqercdRegister,
  Register,
  Ttm,
  WIDE_DESCRIPTOR_BYTES,
} from "./spec.ts";

/** What descriptors ask for. Addresses are two words. */
export interface Invalidations {
  contextCache(granularity: number, domain: number, rid: number, functionMask: number): void;
  iotlb(granularity: number, domain: number, lo: number, hi: number, addressMask: number): void;
  pasidCache(granularity: number, domain: number, pasid: number): void;
  pasidIotlb(
    granularity: number,
    domain: number,
    pasid: number,
    lo: number,
    hi: number,
    addressMask: number,
  ): void;
  deviceTlb(what: DeviceTlbInvalidation): DeviceTlbAnswer;
  pageGroupResponse(rid: number, pasid: number, group: number, response: number): void;
}

/** §4.1.2 lg2 of the bytes that an address with S set encodes: by the lowest bit that is zero, from bit 12 on. */
const encodedLg2 = (lo: number, hi: number): number => {
  const low = ~lo & PAGE;
  if (low !== 0) return 32 - Math.clz32(low & -low);
  const high = ~hi;
  return high === 0 ? 64 : 64 - Math.clz32(high & -high);
};

/** IQERCD.IQEI. */
const Iqei = {
  unknown: 0,
  tail: 1,
  fetch: 2,
  type: 3,
  reserved: 4,
  width: 5,
  tailAlignment: 6,
  mode: 7,
} as const;

interface Kind {
  readonly layout: Layout;
  /** The reserved bits, word by word. */
  readonly reserved: Uint32Array;
}
const kind = (layout: Layout): Kind => {
  const reserved = new Uint32Array(layout.words);
  layout.toWords(layout.reserved, reserved);
  return { layout, reserved };
};

/** Descriptors one write may set going; a queue that feeds itself by its own status writes ends here. */
const BUDGET = 0x1_0000;
const PAGE = 0xffff_f000;

export interface QueueContext {
  readonly name: string;
  readonly memory: HostMemory;
  readonly registers: RegisterFile;
  readonly capabilities: Capabilities;
  readonly faults: FaultLog;
  readonly completion: EventMessage;
  readonly invalidations: Invalidations;
  /** The translation table mode in use, `Ttm`. */
  mode(): number;
  readonly events: EventSink;
  /** Told of bytes of the queue; what it refuses stops the queue with IQE. */
  readonly downstream?: Downstream | undefined;
}

export class InvalidationQueue {
  readonly #context: QueueContext;
  readonly #kinds = new Map<number, Kind>();
  /** The descriptor at the head; the second half is of wide ones. */
  readonly #words = new Uint32Array(2 * Descriptor.words);
  #enabled = false;
  #running = false;
  /** Requester id of a device-TLB that did not answer, or -1; the next wait descriptor finds out. */
  #timedOut = -1;
  /** Type of the last descriptor that was carried out; 0: none since the queue was enabled. */
  #last = 0;

  constructor(context: QueueContext) {
    this.#context = context;
    const { deviceTlb, interruptRemapping, scalable, pageRequests, pasid } = context.capabilities.has;
    this.#kinds.set(DescriptorType.contextCache, kind(ContextCacheInvalidate));
    this.#kinds.set(DescriptorType.iotlb, kind(IotlbInvalidate));
    this.#kinds.set(DescriptorType.wait, kind(InvalidationWait));
    if (deviceTlb) this.#kinds.set(DescriptorType.deviceTlb, kind(DeviceTlbInvalidate));
    if (scalable) {
      this.#kinds.set(DescriptorType.pasidCache, kind(PasidCacheInvalidate));
      this.#kinds.set(DescriptorType.pasidIotlb, kind(PasidIotlbInvalidate));
    }
    if (deviceTlb && pasid) this.#kinds.set(DescriptorType.pasidDeviceTlb, kind(PasidDeviceTlbInvalidate));
    if (pageRequests) this.#kinds.set(DescriptorType.pageGroupResponse, kind(PageGroupResponse));
    if (interruptRemapping)
      this.#kinds.set(DescriptorType.interruptEntryCache, kind(InterruptEntryInvalidate));
  }

  get enabled(): boolean {
    return this.#enabled;
  }

  /** The queue may be disabled (§6.5.2): it is empty and ended with a wait descriptor, or it never ran, or it stopped. */
  get quiet(): boolean {
    const { registers } = this.#context;
    if ((registers.get(Register.FSTS) & (Fsts.IQE | Fsts.ITE)) !== 0) return true;
    const empty = registers.get(Register.IQH) === registers.get(Register.IQT);
    return empty && (this.#last === 0 || this.#last === DescriptorType.wait);
  }

  /** QIE changed: the head begins at 0. */
  enable(on: boolean): void {
    this.#enabled = on;
    this.#timedOut = -1;
    this.#last = 0;
    this.#context.registers.set(Register.IQH, 0);
  }

  /** Carries out what lies between head and tail, as far as it goes. */
  run(): void {
    if (this.#running) return;
    this.#running = true;
    const { registers } = this.#context;
    for (let budget = BUDGET; budget > 0 && this.#ready(); budget--) {
      const head = registers.get(Register.IQH);
      const size = this.#size();
      const tail = registers.get(Register.IQT);
      const bytes = this.#descriptorBytes();
      const misplaced = tail >= size ? Iqei.tail : tail % bytes !== 0 ? Iqei.tailAlignment : 0;
      const wrong = this.#wrongWidth() || misplaced;
      if (wrong !== 0) {
        this.#stop(wrong);
        break;
      }
      const next = (head + bytes) % size;
      const error = this.#fetch(head);
      if (error !== 0) {
        this.#stop(error);
        break;
      }
      // The head moves on first: what a descriptor sets going may look at it.
      registers.set(Register.IQH, next);
      if (this.#refused(this.#context.downstream?.take(this.#words, head))) break;
      this.#execute();
    }
    if (this.#enabled) this.#refused(this.#context.downstream?.drain());
    if (this.#timedOut >= 0 && !this.#ready()) this.#timeOut();
    this.#running = false;
  }

  /** Stops at the descriptor that whoever stands behind the unit could not carry out. */
  #refused(at = -1): boolean {
    if (at < 0) return false;
    this.#context.registers.set(Register.IQH, at);
    this.#stop(Iqei.unknown);
    return true;
  }

  #ready(): boolean {
    const { registers } = this.#context;
    const stopped = (registers.get(Register.FSTS) & (Fsts.IQE | Fsts.ITE)) !== 0;
    return this.#enabled && !stopped && registers.get(Register.IQH) !== registers.get(Register.IQT);
  }

  #size(): number {
    const { QS } = IqaRegister.fields;
    return 0x1000 << (this.#context.registers.get(Register.IQA) & QS.mask);
  }

  /** IQA.DW. */
  #descriptorBytes(): number {
    const wide = this.#context.registers.get(Register.IQA) & IqaRegister.fields.DW.mask;
    return wide === 0 ? DESCRIPTOR_BYTES : WIDE_DESCRIPTOR_BYTES;
  }

  /** Table 26: what the width of descriptors has to do with the mode. */
  #wrongWidth(): number {
    const { mode, capabilities } = this.#context;
    const wide = this.#descriptorBytes() === WIDE_DESCRIPTOR_BYTES;
    if (wide && !capabilities.has.scalable) return Iqei.width;
    if (mode() === Ttm.reserved) return Iqei.mode;
    return mode() !== Ttm.legacy && !wide ? Iqei.width : 0;
  }

  #stop(error: number): void {
    const { registers, capabilities, faults } = this.#context;
    if (capabilities.has.queueErrorRecord) registers.set(Register.IQERCD, error);
    faults.raise(Fsts.IQE);
  }

  #timeOut(): void {
    this.#blame(Fsts.ITE, IqercdRegister.fields.ITESID, this.#timedOut);
    this.#timedOut = -1;
  }

  /** §11.4.9.9 Raises an error of a device-TLB; the first one is recorded with the function. */
  #blame(
    error: number,
    { shift, mask }: { readonly shift: number; readonly mask: number },
    rid: number,
  ): void {
    const { registers, capabilities, faults } = this.#context;
    const first = (registers.get(Register.FSTS) & error) === 0;
    const record = Register.IQERCD + 4;
    if (first && capabilities.has.queueErrorRecord)
      registers.set(record, (registers.get(record) & ~mask) | (rid << shift));
    faults.raise(error);
  }

  /** Fetches and checks the descriptor at the head: 0, or what is wrong with it. */
  #fetch(head: number): number {
    const { memory, registers } = this.#context;
    const base =
      registers.get(Register.IQA + 4) * 0x1_0000_0000 + ((registers.get(Register.IQA) & PAGE) >>> 0);
    const words = this.#words;
    const wide = this.#descriptorBytes() / 4;
    for (let at = 0; at < wide; at += 2) {
      if (!memory.load64(base + head + at * 4)) return Iqei.fetch;
      words[at] = memory.lo;
      words[at + 1] = memory.hi;
    }
    const found = this.#kinds.get(this.#type());
    const foreign = this.#context.mode() === Ttm.legacy && this.#type() > DescriptorType.wait;
    if (found === undefined || foreign) return Iqei.type;
    for (let i = 0; i < Descriptor.words; i++)
      if ((words[i]! & found.reserved[i]!) !== 0) return Iqei.reserved;
    for (let i = Descriptor.words; i < wide; i++) if (words[i] !== 0) return Iqei.reserved;
    return this.#malformed() ? Iqei.reserved : 0;
  }

  #type(): number {
    const { TYPE, TYPE_HIGH } = Descriptor.fields;
    return TYPE.get(this.#words) | (TYPE_HIGH.get(this.#words) << 4);
  }

  /** A field has a value that is reserved. */
  #malformed(): boolean {
    const words = this.#words;
    switch (this.#type()) {
      case DescriptorType.contextCache:
        return ContextCacheInvalidate.fields.G.get(words) === Granularity.reserved;
      case DescriptorType.iotlb: {
        const { G, AM } = IotlbInvalidate.fields;
        const granularity = G.get(words);
        if (granularity === Granularity.reserved) return true;
        if (granularity !== Granularity.page) return false;
        const { has, maximumAddressMask } = this.#context.capabilities;
        return !has.pageSelective || AM.get(words) > maximumAddressMask;
      }
      case DescriptorType.pasidCache:
        return PasidCacheInvalidate.fields.G.get(words) === PasidCacheGranularity.reserved;
      case DescriptorType.pasidIotlb: {
        const { G, AM } = PasidIotlbInvalidate.fields;
        const granularity = G.get(words);
        if (granularity === PasidIotlbGranularity.pasid) return false;
        return (
          granularity !== PasidIotlbGranularity.page ||
          AM.get(words) > this.#context.capabilities.maximumAddressMask
        );
      }
      case DescriptorType.pageGroupResponse: {
        const code = PageGroupResponse.fields.RC.get(words);
        return !(
          code === ResponseCode.success ||
          code === ResponseCode.invalid ||
          code === ResponseCode.failure
        );
      }
      default:
        return false;
    }
  }

  #execute(): void {
    const { invalidations, events, name } = this.#context;
    const words = this.#words;
    this.#last = this.#type();
    if (events.on) {
      const { layout } = this.#kinds.get(this.#last)!;
      events.emit("command", { unit: name, command: layout.print(layout.fromWords(words)) });
    }
    switch (this.#last) {
      case DescriptorType.contextCache: {
        const { G, DID, SID, FM } = ContextCacheInvalidate.fields;
        invalidations.contextCache(G.get(words), DID.get(words), SID.get(words), FM.get(words));
        return;
      }
      case DescriptorType.iotlb: {
        const { G, DID, AM } = IotlbInvalidate.fields;
        invalidations.iotlb(G.get(words), DID.get(words), words[2]! & PAGE, words[3]!, AM.get(words));
        return;
      }
      case DescriptorType.pasidCache: {
        const { G, DID, PASID } = PasidCacheInvalidate.fields;
        invalidations.pasidCache(G.get(words), DID.get(words), PASID.get(words));
        return;
      }
      case DescriptorType.pasidIotlb: {
        const { G, DID, PASID, AM } = PasidIotlbInvalidate.fields;
        const [domain, pasid] = [DID.get(words), PASID.get(words)];
        invalidations.pasidIotlb(G.get(words), domain, pasid, words[2]! & PAGE, words[3]!, AM.get(words));
        return;
      }
      case DescriptorType.deviceTlb: {
        const { SID, S } = DeviceTlbInvalidate.fields;
        this.#invalidateDevice(SID.get(words), NO_PASID, false, S.get(words) === 1);
        return;
      }
      case DescriptorType.pasidDeviceTlb: {
        const { SID, PASID, G, S } = PasidDeviceTlbInvalidate.fields;
        this.#invalidateDevice(SID.get(words), PASID.get(words), G.get(words) === 1, S.get(words) === 1);
        return;
      }
      case DescriptorType.pageGroupResponse: {
        const { SID, PP, PASID, PRGI, RC } = PageGroupResponse.fields;
        const pasid = PP.get(words) === 1 ? PASID.get(words) : NO_PASID;
        invalidations.pageGroupResponse(SID.get(words), pasid, PRGI.get(words), RC.get(words));
        return;
      }
      case DescriptorType.wait:
        this.#wait();
        return;
      default:
        return; // the interrupt entry cache: nothing is cached
    }
  }

  /** Asks a device-TLB; the address is in the upper half of the descriptor. */
  #invalidateDevice(rid: number, pasid: number, global: boolean, sized: boolean): void {
    const [lo, hi] = [this.#words[2]! & PAGE, this.#words[3]!];
    const lg2 = sized ? encodedLg2(lo, hi) : 12;
    const [below, above] = lg2 >= 64 ? [0, 0] : lg2 >= 32 ? [0, -1 << (lg2 - 32)] : [-1 << lg2, -1];
    const start = { lo: (lo & below) >>> 0, hi: (hi & above) >>> 0 };
    const answer = this.#context.invalidations.deviceTlb({ rid, pasid, global, ...start, lg2 });
    if (answer === "timeout" && this.#timedOut < 0) this.#timedOut = rid;
    if (answer === "invalid") this.#blame(Fsts.ICE, IqercdRegister.fields.ICESID, rid);
  }

  /** §6.5.2.8 Status write, then the interrupt. A wait after a device-TLB that timed out is aborted (§6.5.2.11). */
  #wait(): void {
    if (this.#timedOut >= 0) {
      this.#timeOut();
      return;
    }
    const { memory, registers, completion } = this.#context;
    const { IF, SW, ADDR, STATUS } = InvalidationWait.fields;
    const words = this.#words;
    const interrupt = IF.get(words) === 1;
    if (SW.get(words) === 1) {
      const target = words[3]! * 0x1_0000_0000 + ((words[2]! & ADDR.mask) >>> 0);
      memory.store32(target, STATUS.get(words));
    }
    if (!interrupt) return;
    const status = registers.get(Register.ICS);
    registers.set(Register.ICS, status | Ics.IWC);
    if ((status & Ics.IWC) === 0) completion.trigger();
  }
}
