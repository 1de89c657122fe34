/**
 * An Arm SMMUv3 as silicon (IHI 0070): registers, queues, caches and translation put together, for the Non-secure
 * programming interface. Software reaches it by its registers and its command queue alone; it reads what was written to
 * memory, and remembers it until it is told to forget.
 *
 * Left out: what `spec.ts` leaves out; AArch32 tables; merging of events; broadcast TLB maintenance; errors of messages
 * (nobody says whether one arrived); conflicts of TLB or configuration, which never come up here.
 */
import type { Random } from "../../base/clock.ts";
import type { EventSink } from "../../base/events.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import type { ExplainStep } from "../../pagetable/step.ts";
import {
  type AtsUnit,
  type DeviceTlbAnswer,
  type DeviceTlbInvalidation,
  type PageRequest,
  type PageResponder,
  PageResponse,
} from "../ats.ts";
import { type CachePolicy, requireRandom } from "../cache-policy.ts";
import type { Downstream } from "../downstream.ts";
import { RegisterPort } from "../register-port.ts";
import { tellFault, tellingMessages, walkedTo } from "../telling.ts";
import { type IommuUnit, NO_PASID, type Transaction, TranslateStatus, type UnitContext } from "../unit.ts";
import { type Capabilities, completeCapabilities, type SmmuCapabilities } from "./capabilities.ts";
import { CommandQueue } from "./command-queue.ts";
import type { Context, Stream } from "./config.ts";
import { Errors, type Wire } from "./errors.ts";
import { explainTransaction } from "./explain.ts";
import { ABORTED, describeFault, type Fault, isTranslationFault } from "./faults.ts";
import { EventCode, EventRecord } from "./queue-spec.ts";
import { RecordQueue } from "./queues.ts";
import { buildEvent, buildPageRequest } from "./records.ts";
import { RegisterFile, registerName } from "./registers.ts";
import {
  CR0_VMW_SHIFT,
  Cr0,
  Cr2,
  Gbpa,
  Gerror,
  REGISTER_BYTES,
  Register,
  STRTAB_ADDRESS_LO,
} from "./spec.ts";
import { Stalls } from "./stalls.ts";
import { streamTableOf } from "./tables.ts";
import { Transactions } from "./transactions.ts";

export type { CachePolicy } from "../cache-policy.ts";
export type { SmmuCapabilities } from "./capabilities.ts";
export type { Wire } from "./errors.ts";

export interface SmmuOptions extends UnitContext {
  readonly name: string;
  readonly memory: HostMemory;
  readonly capabilities?: SmmuCapabilities;
  /** `none`: nothing is remembered. `paranoid`: at random, things are forgotten and not remembered. Default `normal`. */
  readonly cache?: CachePolicy;
  /** Must be given for `paranoid`. */
  readonly random?: Random;
  /** IOTLB entries, a power of two; default 4096. */
  readonly iotlbEntries?: number;
  /** Interrupts that are not messages. Default: nobody is there. */
  readonly wire?: (wire: Wire) => void;
  /** For a unit that is not silicon: who makes its commands true. */
  readonly downstream?: Downstream;
}

/** Faults of the way to a stream's entry. */
const STREAM_FAULTS: ReadonlySet<number> = new Set([
  EventCode.C_BAD_STREAMID,
  EventCode.F_STE_FETCH,
  EventCode.C_BAD_STE,
]);

/** §6.3.9 CR0.VMW: VMID bits that do not count; values that are reserved are as 0. */
const wildcardBits = (cr0: number): number => {
  const bits = (cr0 & Cr0.VMW) >> CR0_VMW_SHIFT;
  return bits <= 4 ? bits : 0;
};

export class SmmuV3Unit implements IommuUnit, AtsUnit {
  readonly name: string;
  readonly capabilities: Capabilities;
  readonly registerBytes = REGISTER_BYTES;
  onResume: (token: number, ok: boolean) => void = () => {};
  invalidateDeviceTlb: (what: DeviceTlbInvalidation) => DeviceTlbAnswer = () => "done";
  onPageResponse: PageResponder = () => {};

  readonly #events: EventSink;
  readonly #memory: HostMemory;
  readonly #registers: RegisterFile;
  readonly #port: RegisterPort;
  readonly #errors: Errors;
  readonly #commandQueue: CommandQueue;
  readonly #eventQueue: RecordQueue;
  readonly #pageRequests: RecordQueue;
  readonly #transactions: Transactions;
  readonly #stalls: Stalls;

  constructor(options: SmmuOptions) {
    const { name, memory, events, interrupt, cache = "normal", random, iotlbEntries = 4096 } = options;
    requireRandom(name, cache, random);
    const unit = completeCapabilities(options.capabilities);
    const registers = new RegisterFile(unit);
    const send = tellingMessages(name, { events, interrupt });
    const wire = (line: Wire): void => {
      if (events.on) events.emit("interrupt", { unit: name, wire: line });
      options.wire?.(line);
    };
    this.name = name;
    this.capabilities = unit;
    this.#events = events;
    this.#memory = memory;
    this.#registers = registers;
    this.#port = new RegisterPort({
      ...{ unit: name, events, registers },
      nameOf: registerName,
      write: (offset, value) => this.#write(offset, value),
    });
    this.#stalls = new Stalls(unit.stallMax);
    this.#errors = new Errors({ registers, memory, unit, send, wire });
    this.#transactions = new Transactions({
      memory,
      unit,
      policy: cache,
      random,
      iotlbEntries,
      refuse: (transaction, fault, stream, context) => this.#refuse(transaction, fault, stream, context),
    });
    this.#eventQueue = new RecordQueue(registers, memory, {
      base: Register.EVENTQ_BASE,
      prod: Register.EVENTQ_PROD,
      cons: Register.EVENTQ_CONS,
      maximumLg2: unit.eventQueueLg2,
      entryLg2: 5,
    });
    this.#pageRequests = new RecordQueue(registers, memory, {
      base: Register.PRIQ_BASE,
      prod: Register.PRIQ_PROD,
      cons: Register.PRIQ_CONS,
      maximumLg2: unit.pageRequestQueueLg2,
      entryLg2: 4,
    });
    this.#commandQueue = this.#makeCommandQueue(options.downstream);
    this.#refresh();
  }

  #makeCommandQueue(downstream: Downstream | undefined): CommandQueue {
    const transactions = this.#transactions;
    const { streams } = transactions;
    return new CommandQueue({
      name: this.name,
      memory: this.#memory,
      registers: this.#registers,
      unit: this.capabilities,
      errors: this.#errors,
      events: this.#events,
      downstream,
      commands: {
        invalidateStreams: (sid, lg2) => {
          if (lg2 >= 32) streams.invalidateAll();
          else streams.invalidate(sid - (sid % 2 ** lg2), 2 ** lg2);
        },
        invalidateContext: (sid, ssid) => streams.slot(sid)?.forgetContext(ssid),
        invalidateContexts: (sid) => streams.slot(sid)?.forgetContexts(),
        invalidateTlb: (opcode, vmid, asid, range) => transactions.tlb.invalidate(opcode, vmid, asid, range),
        invalidateDeviceTlb: (what) => this.invalidateDeviceTlb(what),
        respond: (rid, pasid, group, response) => this.onPageResponse(rid, pasid, group, response),
        resume: (sid, tag, retry) => this.#resume(sid, tag, retry),
        terminate: (sid) => this.#terminate(sid),
      },
    });
  }

  reset(): void {
    this.#registers.reset();
    this.#commandQueue.reset();
    this.#transactions.forget();
    this.#refresh();
    this.#terminate();
  }

  // Registers

  mmioRead(offset: number, width: 4 | 8): bigint {
    return this.#port.read(offset, width);
  }

  mmioWrite(offset: number, width: 4 | 8, value: bigint): void {
    this.#port.write(offset, width, value);
  }

  #write(offset: number, value: number): void {
    const registers = this.#registers;
    const before = registers.get(offset);
    if (offset === Register.GBPA) this.#bypassAttributes(value);
    if (!registers.store(offset, value)) return;
    switch (offset) {
      case Register.CR0:
        this.#control(before);
        return;
      case Register.IRQ_CTRL:
        registers.set(Register.IRQ_CTRLACK, registers.get(Register.IRQ_CTRL));
        return;
      case Register.GERRORN:
        this.#commandQueue.run();
        this.#writePending();
        return;
      case Register.CMDQ_PROD:
        this.#commandQueue.run();
        return;
      case Register.EVENTQ_CONS:
        this.#writePending();
        return;
      case Register.CR2:
      case Register.STRTAB_BASE:
      case Register.STRTAB_BASE + 4:
      case Register.STRTAB_BASE_CFG:
        this.#refresh();
    }
  }

  /** §6.3.14 Taken when Update is written as 1; it reads as 0 then. */
  #bypassAttributes(value: number): void {
    if ((value & Gbpa.UPDATE) === 0) return;
    this.#registers.set(Register.GBPA, value & Gbpa.MASK);
    this.#refresh();
  }

  /** §6.3.9 Everything takes effect at once. What stalls when the unit is disabled is terminated. */
  #control(before: number): void {
    const registers = this.#registers;
    const now = registers.get(Register.CR0);
    registers.set(Register.CR0ACK, now);
    this.#refresh();
    if (before & ~now & Cr0.SMMUEN) this.#terminate();
    this.#commandQueue.run();
    this.#writePending();
  }

  /** What translation depends on follows the registers. */
  #refresh(): void {
    const registers = this.#registers;
    const transactions = this.#transactions;
    const cr0 = registers.get(Register.CR0);
    transactions.enabled = (cr0 & Cr0.SMMUEN) !== 0;
    transactions.checksTranslated = (cr0 & Cr0.ATSCHK) !== 0;
    transactions.aborting = (registers.get(Register.GBPA) & Gbpa.ABORT) !== 0;
    transactions.e2h = (registers.get(Register.CR2) & Cr2.E2H) !== 0;
    transactions.tlb.spaces.vmidMask = 0xffff & (-1 << wildcardBits(cr0));
    transactions.table = streamTableOf(
      registers.address(Register.STRTAB_BASE, STRTAB_ADDRESS_LO),
      registers.get(Register.STRTAB_BASE_CFG),
      this.capabilities,
    );
  }

  // Faults

  /** Records the fault, stalls the transaction, or just refuses it. */
  #refuse(
    transaction: Transaction,
    fault: Fault,
    stream: Stream | undefined,
    context: Context | undefined,
  ): TranslateStatus {
    const { code } = fault;
    const policy = fault.stage2 ? stream?.stage2 : context;
    const governed = isTranslationFault(code) && policy !== undefined;
    const stalls = governed && policy.stalls && this.capabilities.stallMax > 0;
    const record = stalls ? this.#stall(transaction) : !governed || policy.recorded;
    const told = record !== false && code !== ABORTED && !this.#unrecorded(code, transaction);
    if (told) {
      const tag = typeof record === "number" ? record : -1;
      const event = buildEvent(transaction, fault, stream, tag);
      if (!this.#record(event, tag >= 0) && tag >= 0) this.#stalls.keep(tag, event);
    }
    this.#tell(transaction, fault, told);
    return stalls ? TranslateStatus.stalled : TranslateStatus.fault;
  }

  /** §6.3.12 Streams without an entry are recorded when CR2 says so; §3.9.1.3 those of translated accesses never are. */
  #unrecorded(code: number, { translated }: Transaction): boolean {
    if (translated && STREAM_FAULTS.has(code)) return true;
    return code === EventCode.C_BAD_STREAMID && (this.#registers.get(Register.CR2) & Cr2.RECINVSID) === 0;
  }

  /** The tag of the stall; false: the transaction waits for one. */
  #stall(transaction: Transaction): number | false {
    const tag = this.#stalls.claim(transaction.rid);
    transaction.token = tag < 0 ? this.#stalls.wait() : this.#stalls.token(tag);
    return tag < 0 ? false : tag;
  }

  #tell(transaction: Transaction, fault: Fault, recorded: boolean): void {
    const events = this.#events;
    if (!events.on) return;
    const { code } = fault;
    const reason = `${describeFault(code)}${fault.stage2 ? ", in stage 2" : ""}`;
    const where = walkedTo(this.explain(transaction));
    tellFault(events, this.name, transaction, { code, reason, recorded, ...where });
  }

  /** Writes an event; false: it did not get into the queue, and is lost unless it is kept. */
  #record(event: Uint32Array, kept: boolean): boolean {
    if ((this.#registers.get(Register.CR0) & Cr0.EVENTQEN) === 0) return false;
    // §7.2 A queue whose memory does not answer is not written until that is acknowledged.
    if (this.#errors.active(Gerror.EVENTQ_ABT_ERR)) return false;
    const queue = this.#eventQueue;
    const wasEmpty = queue.empty;
    const written = queue.write(event);
    if (written === "full" && !kept) queue.overflow();
    if (written === "abort") this.#errors.raise(Gerror.EVENTQ_ABT_ERR);
    if (written === "written" && wasEmpty) this.#errors.interrupt("eventq");
    return written === "written";
  }

  /** Stalls whose events found no room. */
  #writePending(): void {
    if (this.#stalls.pending) this.#stalls.writePending((event) => this.#record(event, true));
  }

  // What comes from elsewhere, to a unit that stands for another one

  /** An event that the other one has recorded. */
  reportEvent(event: Uint32Array): void {
    this.#record(event, false);
  }

  /** The other one has lost events. The queue here may be empty, so that nothing else would make software look. */
  loseEvents(): void {
    this.#eventQueue.overflow();
    this.#errors.interrupt("eventq");
  }

  /** An access of the stream that waits at the other one: `onResume` is told its token. -1: too many wait. */
  reportStall(sid: number, event: Uint32Array): number {
    const tag = this.#stalls.claim(sid);
    if (tag < 0) return -1;
    EventRecord.fields.STALL.set(event, 1);
    EventRecord.fields.STAG.set(event, tag);
    if (!this.#record(event, true)) this.#stalls.keep(tag, event);
    return this.#stalls.token(tag);
  }

  // Stalls

  #resume(sid: number, tag: number, retry: boolean): void {
    const token = this.#stalls.end(tag, sid);
    if (token < 0) return;
    this.onResume(token, retry);
    this.#retryWaiting();
  }

  /** Ends the stalls of a stream, or all. */
  #terminate(sid?: number): void {
    for (const token of this.#stalls.endAll(sid)) this.onResume(token, false);
    if (sid === undefined) for (const token of this.#stalls.next(true)) this.onResume(token, false);
    else this.#retryWaiting();
  }

  #retryWaiting(): void {
    for (const token of this.#stalls.next()) this.onResume(token, true);
  }

  // Translation

  translate(transaction: Transaction): TranslateStatus {
    return this.#transactions.translate(transaction);
  }

  explain(transaction: Transaction): Iterable<ExplainStep> {
    return explainTransaction(this.#transactions, this.#memory, this.capabilities, transaction);
  }

  // ATS and page requests

  requestTranslation(transaction: Transaction): TranslateStatus {
    return this.#transactions.request(transaction);
  }

  /**
   * §8.1 A request goes into the queue; one that cannot is answered by the unit when it is the last of its group. While an
   * overflow is not acknowledged, nothing is written.
   */
  requestPage(request: PageRequest): void {
    const enables = Cr0.SMMUEN | Cr0.PRIQEN;
    const enabled = (this.#registers.get(Register.CR0) & enables) === enables;
    const broken = !enabled || this.#errors.active(Gerror.PRIQ_ABT_ERR);
    const wasEmpty = this.#pageRequests.empty;
    const lost = this.#pageRequests.overflowing;
    const written = broken ? "abort" : lost ? "full" : this.#pageRequests.write(buildPageRequest(request));
    if (written === "written") {
      if (wasEmpty) this.#errors.interrupt("priq");
      return;
    }
    if (written === "full") this.#pageRequests.overflow();
    else if (!broken) this.#errors.raise(Gerror.PRIQ_ABT_ERR);
    // §8.2 What does not fit the device may ask for again.
    const { rid, pasid, group, last } = request;
    if (!last) return;
    if (written === "full") this.onPageResponse(rid, pasid, group, PageResponse.success);
    else this.onPageResponse(rid, NO_PASID, group, PageResponse.failure);
  }
}
