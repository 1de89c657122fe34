/**
 * What the driver tells an SMMUv3 by commands (IHI 0070, §4): what to forget, and answers to stalls and page requests.
 * Each of them is done when it returns, except those of a guest, which are pushed one by one and done by `sync`.
 */

import {
  AtcCommand,
  Opcode,
  PriCommand,
  ResumeCommand,
  StreamCommand,
  TlbiCommand,
} from "../../hardware/smmuv3/queue-spec.ts";
import { NO_PASID } from "../../hardware/unit.ts";
import type { CommandQueue } from "./command-queue.ts";

const PAGE = 4096;
/** Pages up to which a range is told page by page, where the unit knows no ranges. */
const MOST_SINGLE = 128;
/** §4.4.1 Most pages of a command with a range: NUM + 1, in units of 2^SCALE. */
const MOST_UNITS = 32;
const MOST_SCALE_LG2 = 31;
/** TG of a range in pages of 4 KiB. */
const RANGE_4K = 1;
/** §4.5.1 ATC_INV.Size of all addresses. */
const EVERY_PAGE_LG2 = 52;
/** §4.5.2 PRI_RESP.Resp: a failure, as there are no page requests here. */
const DENIED = 0;

/** Which of the translations of an address space. */
export interface Tag {
  readonly asid: number;
  readonly vmid: number;
  /** Of stage 2 only, or of a context. */
  readonly stage: 1 | 2;
}

export class Invalidations {
  readonly #queue: CommandQueue;
  readonly #ranges: boolean;
  readonly #words = new Uint32Array(4);

  /** `ranges`: the unit takes ranges of pages (IDR3.RIL). */
  constructor(queue: CommandQueue, ranges: boolean) {
    this.#queue = queue;
    this.#ranges = ranges;
  }

  /** The entry of the stream, and its contexts. */
  stream(sid: number): void {
    this.#stream(Opcode.CFGI_STE, sid, 0);
    this.#queue.sync();
  }

  /** Everything that is remembered of configuration, and of translations. */
  everything(): void {
    this.#begin(StreamCommand, Opcode.CFGI_STE_RANGE);
    StreamCommand.fields.RANGE.set(this.#words, 31);
    this.#queue.push(this.#words);
    this.#begin(TlbiCommand, Opcode.TLBI_NSNH_ALL);
    this.#queue.push(this.#words);
    this.#queue.sync();
  }

  /** A context descriptor of the stream. */
  context(sid: number, ssid: number): void {
    this.#stream(Opcode.CFGI_CD, sid, ssid);
    this.#queue.sync();
  }

  /** All translations of an address space. */
  space(tag: Tag): void {
    this.#tlb(tag.stage === 1 ? Opcode.TLBI_NH_ASID : Opcode.TLBI_S12_VMALL, tag);
    this.#queue.push(this.#words);
    this.#queue.sync();
  }

  /** The guest's translations above a stage 2: which addresses came of what changed below nobody knows. */
  guests(tag: Tag): void {
    this.#tlb(Opcode.TLBI_NH_ALL, tag);
    this.#queue.push(this.#words);
    this.#queue.sync();
  }

  /** Translations of [iova, iova + length). `leavesOnly`: no table went away. */
  range(tag: Tag, iova: number, length: number, leavesOnly: boolean): void {
    let pages = length / PAGE;
    if (!this.#ranges && pages > MOST_SINGLE) {
      this.space(tag);
      return;
    }
    const { NUM, SCALE, TG, LEAF, ADDRESS } = TlbiCommand.fields;
    for (let at = iova; pages > 0; ) {
      this.#tlb(tag.stage === 1 ? Opcode.TLBI_NH_VA : Opcode.TLBI_S2_IPA, tag);
      const scale = this.#ranges ? scaleOf(pages) : 0;
      const units = this.#ranges ? Math.min(Math.floor(pages / 2 ** scale), MOST_UNITS) : 1;
      if (units > 1 || scale > 0) {
        TG.set(this.#words, RANGE_4K);
        NUM.set(this.#words, units - 1);
        SCALE.set(this.#words, scale);
      }
      LEAF.set(this.#words, leavesOnly ? 1 : 0);
      ADDRESS.set(this.#words, at);
      this.#queue.push(this.#words);
      const done = units * 2 ** scale;
      at += done * PAGE;
      pages -= done;
    }
    this.#queue.sync();
  }

  /** What a function remembers of [iova, iova + length), in the one naturally aligned range that holds it. */
  device(sid: number, pasid: number, iova: number, length: number): void {
    let lg2 = Math.max(0, Math.ceil(Math.log2(length / PAGE)));
    const last = iova + length - PAGE;
    while (Math.floor(iova / PAGE / 2 ** lg2) !== Math.floor(last / PAGE / 2 ** lg2)) lg2 += 1;
    this.#begin(AtcCommand, Opcode.ATC_INV);
    const { SID, SSV, SSID, SIZE, ADDRESS } = AtcCommand.fields;
    SID.set(this.#words, sid);
    if (pasid !== NO_PASID) {
      SSV.set(this.#words, 1);
      SSID.set(this.#words, pasid);
    }
    SIZE.set(this.#words, lg2);
    const span = PAGE * 2 ** lg2;
    ADDRESS.set(this.#words, Math.floor(iova / span) * span);
    this.#queue.push(this.#words);
    this.#queue.sync();
  }

  /** All that a function remembers, with and without PASIDs. */
  wholeDevice(sid: number): void {
    const { SID, SSV, G, SIZE } = AtcCommand.fields;
    for (const withPasids of [0, 1]) {
      this.#begin(AtcCommand, Opcode.ATC_INV);
      SID.set(this.#words, sid);
      SSV.set(this.#words, withPasids);
      G.set(this.#words, withPasids);
      SIZE.set(this.#words, EVERY_PAGE_LG2);
      this.#queue.push(this.#words);
    }
    this.#queue.sync();
  }

  /** A stalled access is tried again, or has failed. */
  resume(sid: number, tag: number, retry: boolean): void {
    this.#begin(ResumeCommand, Opcode.RESUME);
    const { SID, STAG, AC, AB } = ResumeCommand.fields;
    SID.set(this.#words, sid);
    STAG.set(this.#words, tag);
    AC.set(this.#words, retry ? 1 : 0);
    AB.set(this.#words, retry ? 0 : 1);
    this.#queue.push(this.#words);
    this.#queue.sync();
  }

  /** A group of page requests is denied. */
  deny(sid: number, pasid: number, group: number): void {
    this.#begin(PriCommand, Opcode.PRI_RESP);
    const { SID, SSV, SSID, PRGINDEX, RESP } = PriCommand.fields;
    SID.set(this.#words, sid);
    if (pasid !== NO_PASID) {
      SSV.set(this.#words, 1);
      SSID.set(this.#words, pasid);
    }
    PRGINDEX.set(this.#words, group);
    RESP.set(this.#words, DENIED);
    this.#queue.push(this.#words);
    this.#queue.sync();
  }

  /** A command as it is. */
  push(words: Uint32Array): void {
    this.#queue.push(words);
  }
  sync(): void {
    this.#queue.sync();
  }

  #begin(
    { fields }: { readonly fields: { readonly OPCODE: typeof TlbiCommand.fields.OPCODE } },
    opcode: number,
  ): void {
    this.#words.fill(0);
    fields.OPCODE.set(this.#words, opcode);
  }

  #stream(opcode: number, sid: number, ssid: number): void {
    this.#begin(StreamCommand, opcode);
    StreamCommand.fields.SID.set(this.#words, sid);
    StreamCommand.fields.SSID.set(this.#words, ssid);
    this.#queue.push(this.#words);
  }

  #tlb(opcode: number, { asid, vmid }: Tag): void {
    this.#begin(TlbiCommand, opcode);
    TlbiCommand.fields.ASID.set(this.#words, asid);
    TlbiCommand.fields.VMID.set(this.#words, vmid);
  }
}

/** The greatest power of two that divides the number of pages, lg2: whole units of it, so that no page too many goes. */
const scaleOf = (pages: number): number => {
  let scale = 0;
  for (let left = pages; left % 2 === 0 && scale < MOST_SCALE_LG2; left /= 2) scale += 1;
  return scale;
};
