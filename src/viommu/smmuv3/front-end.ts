/**
 * An SMMUv3 that a VMM shows to its guest: the model of the silicon (`hardware/smmuv3`) over guest memory, with stage 1
 * alone, whose commands go on to a back end. The guest reaches it by register writes, queue memory and commands alone.
 *
 * Invalidations are collected and handed on together, as they are, before the next SYNC; what the host refuses stops the
 * queue with CERROR_ILL and CONS at that command (IHI 0070, §7.1). A changed stream table entry (CFGI_STE) is read, and
 * the host is given what of it is the guest's to say. Events of the host come into the guest's event queue; an access that
 * waits there is a stall here, which the guest's RESUME ends. Where the guest has no valid entry the host is given one that
 * its unit refuses too, so that accesses are aborted with an event (C_BAD_STE), which is then told as what it is here.
 */

import type { EventSink } from "../../base/events.ts";
import { type PageRequest, type PageResponder, PageResponse } from "../../hardware/ats.ts";
import type { Downstream } from "../../hardware/downstream.ts";
import type { Capabilities } from "../../hardware/smmuv3/capabilities.ts";
import { decodeSte } from "../../hardware/smmuv3/config.ts";
import { Fault } from "../../hardware/smmuv3/faults.ts";
import {
  EventClass,
  EventCode,
  EventRecord,
  Opcode,
  StreamCommand,
} from "../../hardware/smmuv3/queue-spec.ts";
import { Config, Cr0, Cr2, Gbpa, Register, STRTAB_ADDRESS_LO, Ste } from "../../hardware/smmuv3/spec.ts";
import { fetchSte, streamTableOf } from "../../hardware/smmuv3/tables.ts";
import { type SmmuCapabilities, SmmuV3Unit } from "../../hardware/smmuv3/unit.ts";
import { Access, NO_PASID, type SendMessage } from "../../hardware/unit.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { GUEST_STE_BITS } from "../../uapi/vendor/smmuv3.ts";
import { ALL_DEVICES, type CommandBackEnd, type DeviceRange, followedBy } from "../commands.ts";
import { Following } from "../following.ts";
import { NO_ENTRY } from "./no-entry.ts";

export interface FrontEndOptions {
  readonly name: string;
  /** The guest's. */
  readonly memory: HostMemory;
  readonly events: EventSink;
  /** Interrupts the guest. */
  readonly interrupt: SendMessage;
  readonly capabilities: SmmuCapabilities;
  /** See the front end. */
  readonly remembersAbsent?: boolean;
  readonly messagesPass?: boolean;
}

const ABORT = Ste.make({ V: true, CONFIG: Config.abort });
const BYPASS = Ste.make({ V: true, CONFIG: Config.bypass });
const ENTRY_WORDS = 8;
const ALL_STREAMS_LG2 = 32;
/** What of a base register is an address. */
const TABLE_ADDRESS = (0xf_ffffn << 32n) | BigInt(STRTAB_ADDRESS_LO);

export class SmmuFrontEnd implements Downstream {
  readonly model = "smmuv3";
  readonly name: string;
  /** The guest must tell about entries that it adds, too: firmware says so, as no register can. */
  readonly remembersAbsent: boolean;
  /** Messages of functions pass through the guest's tables to the host's doorbells: firmware says that, too. */
  readonly messagesPass: boolean;
  /** Takes the guest's answers to pages that were asked for. */
  onPageResponse: PageResponder = () => {};
  readonly #unit: SmmuV3Unit;
  readonly #memory: HostMemory;
  readonly #following: Following<bigint, DeviceRange>;
  /** Requests that wait for the guest, by token. */
  readonly #stalled = new Map<number, PageRequest>();
  readonly #words = new Uint32Array(2 * ENTRY_WORDS);
  readonly #fault = new Fault();

  constructor(options: FrontEndOptions) {
    this.name = options.name;
    this.remembersAbsent = options.remembersAbsent ?? false;
    this.messagesPass = options.messagesPass ?? false;
    this.#memory = options.memory;
    this.#following = new Following(options.name, options.events);
    const capabilities = { ...options.capabilities, stage1: true, stage2: false, hyp: false, pri: false };
    this.#unit = new SmmuV3Unit({ ...options, capabilities, cache: "none", downstream: this });
    this.#unit.onResume = (token, ok) => this.#resumed(token, ok);
  }

  /** Who makes the host follow; once, before the guest runs. */
  connect(backEnd: CommandBackEnd): void {
    this.#following.connect(followedBy(backEnd));
  }

  // What the guest reaches

  mmioRead(offset: number, width: 4 | 8): bigint {
    return this.#unit.mmioRead(offset, width);
  }

  mmioWrite(offset: number, width: 4 | 8, value: bigint): void {
    const before = this.#whole;
    this.#unit.mmioWrite(offset, width, value);
    if (before !== this.#whole) this.#following.restart(ALL_DEVICES);
  }

  #read(register: number): number {
    return Number(this.#unit.mmioRead(register, 4));
  }

  /** §6.3.14 What every stream is given while the unit is off; undefined: its stream table says. */
  get #whole(): bigint | undefined {
    if (this.#read(Register.CR0) & Cr0.SMMUEN) return undefined;
    return this.#read(Register.GBPA) & Gbpa.ABORT ? ABORT : BYPASS;
  }

  // What the guest wants

  get capabilities(): Capabilities {
    return this.#unit.capabilities;
  }

  /** What of the stream's entry the host is to do: its first two words, without what is not the guest's to say. */
  entryOf(sid: number): bigint {
    const whole = this.#whole;
    if (whole !== undefined) return whole;
    const { capabilities } = this.#unit;
    if (!this.#fetch(sid)) return NO_ENTRY;
    const stream = decodeSte(this.#words, capabilities);
    if (typeof stream === "string") return NO_ENTRY;
    if (stream.config === Config.abort) return ABORT;
    if (stream.config === Config.bypass) return BYPASS;
    // What the guest's unit ignores is not the host's to look at.
    const { EATS, S1FMT, S1CDMAX } = Ste.fields;
    EATS.set(this.#words, stream.ats);
    S1FMT.set(this.#words, stream.contextFormat);
    S1CDMAX.set(this.#words, stream.contextLg2);
    return Ste.fromWords(this.#words) & GUEST_STE_BITS;
  }

  /** The entry, as the guest's tables have it, into `#words`; false: there is none, and `#fault` says why. */
  #fetch(sid: number): boolean {
    const base = Number(this.#unit.mmioRead(Register.STRTAB_BASE, 8) & TABLE_ADDRESS);
    const table = streamTableOf(base, this.#read(Register.STRTAB_BASE_CFG), this.#unit.capabilities);
    return fetchSte(this.#memory, table, sid, this.#words, this.#fault);
  }

  // What its queue asks

  take(words: Uint32Array, at: number): number {
    const { OPCODE, SID, RANGE } = StreamCommand.fields;
    switch (OPCODE.get(words)) {
      case Opcode.CFGI_STE:
        return this.#reread(SID.get(words), 0, at);
      case Opcode.CFGI_STE_RANGE:
        return this.#reread(SID.get(words), RANGE.get(words) + 1, at);
      case Opcode.SYNC:
        return this.drain();
      case Opcode.PREFETCH_CONFIG:
      case Opcode.PREFETCH_ADDR:
      case Opcode.RESUME:
      case Opcode.STALL_TERM:
        return -1;
      default:
        this.#following.collect(StreamCommand.fromWords(words), at);
        return -1;
    }
  }

  drain(): number {
    return this.#following.drain();
  }

  /** The 2^lg2 streams around one. */
  #reread(sid: number, lg2: number, at: number): number {
    if (lg2 >= ALL_STREAMS_LG2) return this.#following.reread(ALL_DEVICES, at);
    const count = 2 ** lg2;
    const first = sid - (sid % count);
    return this.#following.reread({ first, end: first + count }, at);
  }

  // What comes from the host

  /** An event about the guest's own tables, with the guest's StreamID; undefined: some were lost. */
  reportEvent(event: bigint | undefined): void {
    if (event === undefined) {
      this.#unit.loseEvents();
      return;
    }
    const words = wordsOf(event);
    if (this.#isOfEntry(words)) this.#unit.reportEvent(words);
  }

  /** The host's unit says C_BAD_STE whatever the guest's finds wrong. False: the guest does not want to know of it. */
  #isOfEntry(event: Uint32Array): boolean {
    const { TYPE, SID, FETCH } = EventRecord.fields;
    if (TYPE.get(event) !== EventCode.C_BAD_STE || this.#fetch(SID.get(event))) return true;
    const { code, address } = this.#fault;
    TYPE.set(event, code);
    event[FETCH.word] = address;
    event[FETCH.word + 1] = Math.floor(address / 2 ** 32);
    return code !== EventCode.C_BAD_STREAMID || (this.#read(Register.CR2) & Cr2.RECINVSID) !== 0;
  }

  /** An access of a device of the guest waits for a page. */
  requestPage(request: PageRequest): void {
    const { rid, pasid, access, lo, hi } = request;
    const tagged = pasid !== NO_PASID;
    const event = EventRecord.make({
      TYPE: EventCode.F_TRANSLATION,
      SID: rid,
      ...(tagged && { SSV: true, SSID: pasid }),
      RNW: (access & Access.write) === 0,
      IND: (access & Access.execute) !== 0,
      PNU: (access & Access.privileged) !== 0,
      CLASS: EventClass.input,
      ADDRESS: (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0),
    });
    const token = this.#unit.reportStall(rid, wordsOf(event));
    if (token >= 0) this.#stalled.set(token, request);
    else this.onPageResponse(rid, pasid, request.group, PageResponse.invalid);
  }

  #resumed(token: number, ok: boolean): void {
    const request = this.#stalled.get(token);
    if (!request) return;
    this.#stalled.delete(token);
    const { rid, pasid, group } = request;
    this.onPageResponse(rid, pasid, group, ok ? PageResponse.success : PageResponse.invalid);
  }
}

const wordsOf = (event: bigint): Uint32Array => {
  const words = new Uint32Array(EventRecord.words);
  EventRecord.toWords(event, words);
  return words;
};
