/**
 * An AMD-Vi unit as silicon (48882, revision 3.07): registers, command buffer, logs, caches and translation put together.
 * Software reaches it by its registers and its command buffer alone; it reads what was written to memory, and remembers it
 * until it is told to forget.
 *
 * Left out: what `spec.ts` leaves out, with remapping of interrupts (messages pass); secure ATS; hardware error registers:
 * a log whose memory does not answer loses its entries.
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
import { describeRmp, type Rmp } from "../rmp.ts";
import { RmpMemory } from "../rmp-memory.ts";
import { addressOf, tellFault, tellingMessages, walkedTo } from "../telling.ts";
import { type IommuUnit, Transaction, type TranslateStatus, type UnitContext } from "../unit.ts";
import type { DeviceSlot } from "./caches.ts";
import { type AmdViCapabilities, type Capabilities, completeCapabilities } from "./capabilities.ts";
import { CommandBuffer } from "./command-buffer.ts";
import { explainRequest } from "./explain.ts";
import { describeFault, type Fault } from "./faults.ts";
import { Interrupts } from "./interrupts.ts";
import { EventCode } from "./queue-spec.ts";
import { buildCommandEvent, buildEvent, buildPageRequest } from "./records.ts";
import { RegisterFile, registerName } from "./registers.ts";
import { Log } from "./rings.ts";
import { ControlRegister, DeviceTableBase, ExclusionBase, REGISTER_BYTES, Register, Status } from "./spec.ts";
import { Transactions } from "./transactions.ts";

export type { CachePolicy } from "../cache-policy.ts";
export type { AmdViCapabilities } from "./capabilities.ts";

export interface AmdViOptions extends UnitContext {
  readonly name: string;
  readonly memory: HostMemory;
  readonly capabilities?: AmdViCapabilities;
  /** `none`: nothing is remembered. `paranoid`: at random, things are forgotten and not remembered. Default `normal`. */
  readonly cache?: CachePolicy;
  /** Must be given for `paranoid`. */
  readonly random?: Random;
  /** IOTLB entries, a power of two; default 4096. */
  readonly iotlbEntries?: number;
  /** Secure nested paging is on: what is whose. What the unit and its devices reach is checked then. */
  readonly rmp?: Rmp;
  /** For a unit that is not silicon: who makes its commands true. */
  readonly downstream?: Downstream;
}

const control = ControlRegister.fields;
/** What CONTROL must have for something to run, and its bit of STATUS. */
const running = [
  [control.IOMMU_EN.mask | control.EVENT_LOG_EN.mask, Status.EVENT_LOG_RUN],
  [control.IOMMU_EN.mask | control.CMD_BUF_EN.mask, Status.CMD_BUF_RUN],
  [control.IOMMU_EN.mask | control.PPR_LOG_EN.mask, Status.PPR_RUN],
] as const;
/** Of a base register its ring's head and tail. */
const ringPointers = new Map<number, readonly number[]>([
  [Register.CMDBUF_BASE, [Register.CMDBUF_HEAD, Register.CMDBUF_TAIL]],
  [Register.EVTLOG_BASE, [Register.EVTLOG_HEAD, Register.EVTLOG_TAIL]],
  [Register.PPRLOG_BASE, [Register.PPRLOG_HEAD, Register.PPRLOG_TAIL]],
]);
const PAGE = 0x1000;

export class AmdViUnit implements IommuUnit, AtsUnit {
  readonly name: string;
  readonly capabilities: Capabilities;
  readonly registerBytes = REGISTER_BYTES;
  onResume: (token: number, ok: boolean) => void = () => {};
  invalidateDeviceTlb: (what: DeviceTlbInvalidation) => DeviceTlbAnswer = () => "done";
  onPageResponse: PageResponder = () => {};

  readonly #events: EventSink;
  readonly #memory: HostMemory;
  readonly #rmp: Rmp | undefined;
  readonly #registers: RegisterFile;
  readonly #port: RegisterPort;
  readonly #interrupts: Interrupts;
  readonly #transactions: Transactions;
  readonly #commands: CommandBuffer;
  readonly #eventLog: Log;
  readonly #pprLog: Log;
  readonly #asked = new Transaction();
  /** The request at hand is for a translation. */
  #asks = false;

  constructor(options: AmdViOptions) {
    const { name, events, interrupt, cache = "normal", random, iotlbEntries = 4096, rmp } = options;
    const owned = rmp && new RmpMemory(options.memory, rmp);
    const memory = owned ?? options.memory;
    requireRandom(name, cache, random);
    const unit = completeCapabilities(options.capabilities);
    const registers = new RegisterFile(unit);
    const send = tellingMessages(name, { events, interrupt });
    this.name = name;
    this.capabilities = unit;
    this.#events = events;
    this.#memory = memory;
    this.#rmp = rmp;
    this.#registers = registers;
    this.#port = new RegisterPort({
      ...{ unit: name, events, registers },
      nameOf: registerName,
      write: (offset, value) => this.#write(offset, value),
    });
    this.#interrupts = new Interrupts(registers, send);
    const changed = () => this.#interrupts.update();
    this.#eventLog = new Log(registers, memory, eventPlace, changed);
    this.#pprLog = new Log(registers, memory, pprPlace, changed);
    this.#transactions = new Transactions({
      memory,
      owned,
      unit,
      policy: cache,
      random,
      iotlbEntries,
      refuse: (transaction, fault, slot, domain) => this.#refuse(transaction, fault, slot, domain),
    });
    this.#commands = this.#makeCommandBuffer(options.downstream);
    this.#refresh();
  }

  #makeCommandBuffer(downstream: Downstream | undefined): CommandBuffer {
    const transactions = this.#transactions;
    return new CommandBuffer({
      name: this.name,
      memory: this.#memory,
      registers: this.#registers,
      unit: this.capabilities,
      events: this.#events,
      downstream,
      commands: {
        invalidateDevice: (rid) => transactions.devices.slot(rid)?.forget(),
        invalidatePages: (domain, lo, hi, lg2) => transactions.invalidatePages(domain, lo, hi, lg2),
        invalidateGuestPages: (domain, pasid, lo, hi, lg2) =>
          transactions.invalidateGuestPages(domain, pasid, lo, hi, lg2),
        invalidateDeviceTlb: (what) => this.invalidateDeviceTlb(what),
        respond: (rid, pasid, group, response) => this.onPageResponse(rid, pasid, group, response),
        invalidateAll: () => transactions.forget(),
        interrupt: () => this.#status(Status.COM_WAIT_INT),
        report: (code, address, rid) => {
          this.#tellCommand(code, address);
          this.#eventLog.write(buildCommandEvent(code, address, rid));
        },
      },
    });
  }

  reset(): void {
    this.#registers.reset();
    this.#interrupts.reset();
    this.#transactions.forget();
    this.#refresh();
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
    if (!registers.store(offset, value)) return;
    switch (offset) {
      case Register.CONTROL:
        this.#control(before);
        return;
      case Register.CMDBUF_TAIL:
        this.#commands.run();
        return;
      case Register.STATUS:
        this.#interrupts.update();
        return;
      default:
        for (const pointer of ringPointers.get(offset & ~7) ?? []) registers.set(pointer, 0);
        if (offset < Register.EXT_FEATURE) this.#refresh();
    }
  }

  /** §3.4.1 What is enabled now runs; what is not stops. An overflow or an error stopped it before: so it starts again. */
  #control(before: number): void {
    const registers = this.#registers;
    const now = registers.get(Register.CONTROL);
    let status = registers.get(Register.STATUS);
    for (const [needed, bit] of running) {
      if ((now & needed) !== needed) status &= ~bit;
      else if ((before & needed) !== needed) status |= bit;
    }
    registers.set(Register.STATUS, status);
    this.#refresh();
    this.#interrupts.update();
    this.#commands.run();
  }

  #status(bits: number): void {
    this.#registers.set(Register.STATUS, this.#registers.get(Register.STATUS) | bits);
    this.#interrupts.update();
  }

  /** What translation depends on follows the registers. */
  #refresh(): void {
    const registers = this.#registers;
    const transactions = this.#transactions;
    const { words } = registers;
    const at = Register.CONTROL / 4;
    const { EX_EN, ALLOW } = ExclusionBase.fields;
    const exclusionAt = Register.EXCL_BASE / 4;
    const excludes = EX_EN.get(words, exclusionAt) === 1;
    transactions.enabled = control.IOMMU_EN.get(words, at) === 1;
    transactions.table = {
      base: registers.page(Register.DEVTAB_BASE),
      bytes: (DeviceTableBase.fields.SIZE.get(words, Register.DEVTAB_BASE / 4) + 1) * 0x1000,
      guestTranslation: control.GT_EN.get(words, at) === 1,
      gcr3Guest: control.GCR3_TRP_MODE.get(words, at) === 1,
    };
    transactions.exclusion = {
      start: registers.page(Register.EXCL_BASE),
      end: excludes ? registers.page(Register.EXCL_LIMIT) + PAGE : 0,
      all: ALLOW.get(words, exclusionAt) === 1,
    };
    // The page used last was one under the old registers.
    transactions.iotlb.stamp += 1;
  }

  // Faults

  #refuse(transaction: Transaction, fault: Fault, slot: DeviceSlot, domain: number): void {
    const suppressed = fault.code === EventCode.IO_PAGE_FAULT && this.#suppresses(slot);
    const event = buildEvent(transaction, fault, domain, this.#asks);
    const recorded = !suppressed && this.#eventLog.write(event);
    const events = this.#events;
    if (!events.on) return;
    const { code } = fault;
    const where = walkedTo(this.explain(transaction));
    const reason = this.#reasonOf(fault);
    tellFault(events, this.name, transaction, { code, reason, recorded, ...where });
  }

  #reasonOf({ code, page, pageLg2 }: Fault): string {
    const words = describeFault(code);
    return this.#rmp && page >= 0 ? `${words}: ${describeRmp(this.#rmp, page, pageLg2)}` : words;
  }

  /** §2.2.2.1 SA, and SE when a page fault of the device was logged already. */
  #suppresses(slot: DeviceSlot): boolean {
    const { device } = slot;
    if (device?.logsNothing) return true;
    if (!device?.logsOnce) return false;
    const before = slot.logged;
    slot.logged = true;
    return before;
  }

  #tellCommand(code: number, address: number): void {
    if (!this.#events.on) return;
    const command = `${describeFault(code)}, at 0x${address.toString(16)}`;
    this.#events.emit("command", { unit: this.name, command });
  }

  // Translation

  translate(transaction: Transaction): TranslateStatus {
    return this.#transactions.translate(transaction);
  }

  explain(transaction: Transaction): Iterable<ExplainStep> {
    return explainRequest(this.#transactions, this.#memory, this.capabilities, transaction);
  }

  // ATS and page requests

  requestTranslation(transaction: Transaction): TranslateStatus {
    this.#asks = true;
    const status = this.#transactions.request(transaction);
    this.#asks = false;
    return status;
  }

  /**
   * §2.6 A request goes into the log. One that may not be made is answered; one that finds the log full, or overflown, is
   * answered with success when automatic responses are on, so that the device asks again, and else is lost.
   */
  requestPage(request: PageRequest): void {
    const { rid, pasid, lo, hi, access, group, last } = request;
    const answer = (response: number) => {
      if (last) this.onPageResponse(rid, pasid, group, response);
    };
    const words = this.#registers.words;
    const at = Register.CONTROL / 4;
    const taken = control.PPR_EN.get(words, at) === 1 && control.PPR_LOG_EN.get(words, at) === 1;
    const asked = this.#asked;
    Object.assign(asked, { rid, pasid, lo, hi, access });
    if (!this.#transactions.enabled || !taken || !this.#transactions.admitPageRequest(asked)) {
      answer(PageResponse.invalid);
      return;
    }
    const written = this.#pprLog.write(buildPageRequest(request));
    if (this.#events.on) {
      const address = addressOf(lo, hi);
      const what = "page request";
      const told = { unit: this.name, what, rid, pasid, address, access, group, last, written };
      this.#events.emit("device", told);
    }
    if (!written && control.PPR_AUTO_RSP_EN.get(words, at) === 1) answer(PageResponse.success);
  }
}

const eventPlace = {
  base: Register.EVTLOG_BASE,
  head: Register.EVTLOG_HEAD,
  tail: Register.EVTLOG_TAIL,
  run: Status.EVENT_LOG_RUN,
  overflow: Status.EVENT_OVERFLOW,
  written: Status.EVENT_LOG_INT,
} as const;
const pprPlace = {
  base: Register.PPRLOG_BASE,
  head: Register.PPRLOG_HEAD,
  tail: Register.PPRLOG_TAIL,
  run: Status.PPR_RUN,
  overflow: Status.PPR_OVERFLOW,
  written: Status.PPR_INT,
} as const;
