/**
 * The page request queue of a VT-d unit (revision 4.1, §7.4): what functions ask for is written to memory and told by the
 * page request event. A request that may not be made, or finds the queue full, is answered by the unit itself when it is
 * the last of its group: the one with the response code of its reason, the other with success, so that the function asks
 * again (§7.4.1).
 */
import type { EventSink } from "../../base/events.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import type { PageRequest, PageResponder } from "../ats.ts";
import { Access, NO_PASID, Transaction } from "../unit.ts";
import type { Capabilities } from "./capabilities.ts";
import type { EventMessage } from "./event-message.ts";
import type { FaultLog } from "./fault-log.ts";
import { faultReasons } from "./faults.ts";
import type { RegisterFile } from "./registers.ts";
import {
  PAGE_REQUEST_TYPE,
  PageRequestDescriptor,
  PqaRegister,
  PqPointerRegister,
  Prs,
  ResponseCode,
} from "./scalable-spec.ts";
import { Register } from "./spec.ts";

export interface PageRequestsContext {
  readonly name: string;
  readonly memory: HostMemory;
  readonly registers: RegisterFile;
  readonly capabilities: Capabilities;
  readonly faults: FaultLog;
  readonly event: EventMessage;
  readonly events: EventSink;
  /** Whether a function may ask: 0, or the fault, and whether that is kept from being recorded. */
  admit(transaction: Transaction): { readonly code: number; readonly silent: boolean };
  respond: PageResponder;
}

const POINTER = PqPointerRegister.fields.Q.mask;
const CONDITIONS = Prs.PPR | Prs.PRO;

export class PageRequests {
  readonly #context: PageRequestsContext;
  readonly #words = new Uint32Array(PageRequestDescriptor.words);
  readonly #transaction = new Transaction();

  constructor(context: PageRequestsContext) {
    this.#context = context;
  }

  request(request: PageRequest): void {
    const { faults, events, name, capabilities } = this.#context;
    if (!capabilities.has.pageRequests) {
      this.#answer(request, ResponseCode.invalid);
      return;
    }
    const transaction = this.#transaction;
    transaction.rid = request.rid;
    transaction.pasid = request.pasid;
    transaction.lo = request.lo;
    transaction.hi = request.hi;
    transaction.access = request.access;
    const { code, silent } = this.#context.admit(transaction);
    if (code !== 0) {
      if (!(silent && faultReasons[code]!.qualified)) faults.record(transaction, code);
      this.#answer(request, ResponseCode.invalid);
      return;
    }
    const written = this.#write(request);
    if (events.on) {
      const { rid, pasid, group, last, access } = request;
      const address = (BigInt(request.hi >>> 0) << 32n) | BigInt(request.lo >>> 0);
      events.emit("device", {
        unit: name,
        what: "page request",
        rid,
        pasid,
        address,
        access,
        group,
        last,
        written,
      });
    }
    if (!written) this.#answer(request, ResponseCode.success);
  }

  /** Software cleared a bit of PRS: with nothing left, nothing is pending. */
  settle(): void {
    const { registers, event } = this.#context;
    if ((registers.get(Register.PRS) & CONDITIONS) === 0) event.serviced();
  }

  #answer({ rid, pasid, group, last }: PageRequest, response: number): void {
    if (last) this.#context.respond(rid, pasid, group, response);
  }

  /** False: there was no room, or no memory. */
  #write(request: PageRequest): boolean {
    const { registers, memory } = this.#context;
    if ((registers.get(Register.PRS) & Prs.PRO) !== 0) return false;
    const size = 0x1000 << (registers.get(Register.PQA) & PqaRegister.fields.PQS.mask);
    const tail = (registers.get(Register.PQT) & POINTER) % size;
    const next = (tail + PageRequestDescriptor.bytes) % size;
    const base = registers.address(Register.PQA) - (registers.get(Register.PQA) & 0xfff);
    const full = next === (registers.get(Register.PQH) & POINTER);
    if (full || !this.#store(memory, base + tail, request)) {
      this.#raise(Prs.PRO);
      return false;
    }
    registers.set(Register.PQT, next);
    this.#raise(Prs.PPR);
    return true;
  }

  #store(memory: HostMemory, pa: number, request: PageRequest): boolean {
    const { rid, pasid, access, group, last, lo, hi } = request;
    const words = this.#words;
    const { TYPE, PP, RID, PASID, EXE, PRIV, RD, WR, LPIG, PRGI } = PageRequestDescriptor.fields;
    const bit = (mask: number) => ((access & mask) !== 0 ? 1 : 0);
    words.fill(0);
    TYPE.set(words, PAGE_REQUEST_TYPE);
    RID.set(words, rid);
    if (pasid !== NO_PASID) {
      PP.set(words, 1);
      PASID.set(words, pasid);
      EXE.set(words, bit(Access.execute));
      PRIV.set(words, bit(Access.privileged));
    }
    RD.set(words, bit(Access.read));
    WR.set(words, bit(Access.write));
    LPIG.set(words, last ? 1 : 0);
    PRGI.set(words, group);
    words[2] = words[2]! | (lo & 0xffff_f000);
    words[3] = hi;
    for (let at = 0; at < words.length; at += 2)
      if (!memory.store64(pa + at * 4, words[at]!, words[at + 1]!)) return false;
    return true;
  }

  /** Sets a bit of PRS; an event unless one was there. */
  #raise(condition: number): void {
    const { registers, event } = this.#context;
    const status = registers.get(Register.PRS);
    registers.set(Register.PRS, status | condition);
    if ((status & CONDITIONS) === 0) event.trigger();
  }
}
