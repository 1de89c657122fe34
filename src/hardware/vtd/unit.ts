/**
 * An Intel VT-d remapping unit as silicon (revision 4.1), legacy and scalable mode: registers, caches and queue put together. Software
 * reaches it by its registers and its queue alone; it reads what was written to memory, and remembers it until it is
 * told to forget.
 *
 * Left out: protected memory, advanced fault logging; remapping of interrupts (with IR reported its registers are there,
 * and interrupts pass).
 */
import type { Random } from "../../base/clock.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import type { ExplainStep } from "../../pagetable/step.ts";
import type { AtsUnit, DeviceTlbAnswer, DeviceTlbInvalidation, PageRequest, PageResponder } from "../ats.ts";
import { type CachePolicy, requireRandom } from "../cache-policy.ts";
import type { Downstream } from "../downstream.ts";
import { RegisterPort } from "../register-port.ts";
import { tellingMessages } from "../telling.ts";
import type { IommuUnit, Transaction, TranslateStatus, UnitContext } from "../unit.ts";
import { type Capabilities, completeCapabilities, type VtdCapabilities } from "./capabilities.ts";
import { EventMessage } from "./event-message.ts";
import { FaultLog } from "./fault-log.ts";
import { PageRequests } from "./page-requests.ts";
import { InvalidationQueue } from "./queue.ts";
import { RegisterFile, registerName } from "./registers.ts";
import { Remapping } from "./remapping.ts";
import {
  CcmdRegister,
  FaultRecording,
  Gcmd,
  Granularity,
  Ics,
  IotlbRegister,
  IvaRegister,
  Register,
  RtaddrRegister,
  Ttm,
} from "./spec.ts";

export type { CachePolicy } from "../cache-policy.ts";
export type { ScalableCapabilities, VtdCapabilities } from "./capabilities.ts";

export interface VtdOptions extends UnitContext {
  readonly name: string;
  readonly memory: HostMemory;
  readonly capabilities: VtdCapabilities;
  /** `none`: nothing is remembered. `paranoid`: at random, things are forgotten and not remembered. Default `normal`. */
  readonly cache?: CachePolicy;
  /** Must be given for `paranoid`. */
  readonly random?: Random;
  /** IOTLB entries, a power of two; default 4096. */
  readonly iotlbEntries?: number;
  /** Who stands behind a unit that is not silicon. */
  readonly downstream?: Downstream;
}

export class VtdUnit implements IommuUnit, AtsUnit {
  readonly name: string;
  readonly capabilities: Capabilities;
  onResume: (token: number, ok: boolean) => void = () => {};
  invalidateDeviceTlb: (what: DeviceTlbInvalidation) => DeviceTlbAnswer = () => "done";
  onPageResponse: PageResponder = () => {};

  readonly #registers: RegisterFile;
  readonly #port: RegisterPort;
  readonly #faults: FaultLog;
  readonly #faultEvent: EventMessage;
  readonly #completion: EventMessage;
  readonly #pageEvent: EventMessage;
  readonly #pageRequests: PageRequests;
  readonly #queue: InvalidationQueue;
  readonly #remapping: Remapping;
  /** Halves that software writes and that do not read back: IVA, and SID of CCMD. */
  #ivaLo = 0;
  #ivaHi = 0;
  #ccmdSource = 0;

  constructor(options: VtdOptions) {
    const {
      name,
      memory,
      events,
      interrupt,
      cache: policy = "normal",
      random,
      iotlbEntries = 4096,
    } = options;
    requireRandom(name, policy, random);
    this.name = name;
    const capabilities = completeCapabilities(options.capabilities);
    this.capabilities = capabilities;
    const registers = new RegisterFile(capabilities);
    this.#registers = registers;
    this.#port = new RegisterPort({
      ...{ unit: name, events, registers },
      nameOf: (offset) => registerName(offset, capabilities),
      write: (offset, value) => this.#write(offset, value),
    });
    const send = tellingMessages(name, { events, interrupt });
    this.#faultEvent = new EventMessage(registers, Register.FECTL, send);
    this.#completion = new EventMessage(registers, Register.IECTL, send);
    this.#pageEvent = new EventMessage(registers, Register.PECTL, send);
    const { faultRecordOffset, faultRecords } = capabilities;
    const faults = new FaultLog(registers, faultRecordOffset, faultRecords, this.#faultEvent);
    this.#faults = faults;
    const common = { name, memory, events, capabilities, faults };
    const remapping = new Remapping({ ...common, policy, random, iotlbEntries });
    this.#remapping = remapping;
    this.#pageRequests = new PageRequests({
      ...common,
      registers,
      event: this.#pageEvent,
      admit: (transaction) => remapping.admitPageRequest(transaction),
      respond: (rid, pasid, group, response) => this.onPageResponse(rid, pasid, group, response),
    });
    this.#queue = new InvalidationQueue({
      ...common,
      registers,
      mode: () => remapping.mode,
      completion: this.#completion,
      downstream: options.downstream,
      invalidations: {
        contextCache: (granularity, domain, rid, functionMask) =>
          remapping.invalidateContexts(granularity, domain, rid, functionMask),
        iotlb: (granularity, domain, lo, hi, addressMask) =>
          remapping.invalidateIotlb(granularity, domain, lo, hi, addressMask),
        pasidCache: (granularity, domain, pasid) =>
          remapping.scalable.invalidatePasids(granularity, domain, pasid),
        pasidIotlb: (granularity, domain, pasid, lo, hi, addressMask) =>
          remapping.scalable.invalidatePasidIotlb(granularity, domain, pasid, lo, hi, addressMask),
        deviceTlb: (what) => this.invalidateDeviceTlb(what),
        pageGroupResponse: (rid, pasid, group, response) => this.onPageResponse(rid, pasid, group, response),
      },
    });
  }

  reset(): void {
    this.#registers.reset();
    this.#faults.reset();
    this.#queue.enable(false);
    this.#remapping.enabled = false;
    this.#remapping.setRoot(0, Ttm.legacy);
    this.#remapping.forget();
    this.#ivaLo = 0;
    this.#ivaHi = 0;
    this.#ccmdSource = 0;
  }

  // Registers

  /** Bytes of the register file. */
  get registerBytes(): number {
    return this.#registers.bytes;
  }

  mmioRead(offset: number, width: 4 | 8): bigint {
    return this.#port.read(offset, width);
  }

  mmioWrite(offset: number, width: 4 | 8, value: bigint): void {
    this.#port.write(offset, width, value);
  }

  #write(offset: number, value: number): void {
    this.#registers.store(offset, value);
    const { iotlbOffset, faultRecordOffset, faultRecords } = this.capabilities;
    switch (offset) {
      case Register.GCMD:
        this.#command(value);
        return;
      case Register.CCMD:
        this.#ccmdSource = value >>> CcmdRegister.fields.SID.shift;
        return;
      case Register.CCMD + 4:
        this.#contextCommand(value);
        return;
      case Register.FSTS:
        this.#faults.settle();
        this.#queue.run();
        return;
      case Register.FECTL:
        this.#faultEvent.release();
        return;
      case Register.IECTL:
        this.#completion.release();
        return;
      case Register.ICS:
        if ((this.#registers.get(Register.ICS) & Ics.IWC) === 0) this.#completion.serviced();
        return;
      case Register.PECTL:
        this.#pageEvent.release();
        return;
      case Register.PRS:
        this.#pageRequests.settle();
        return;
      case Register.IQT:
        this.#queue.run();
        return;
      case iotlbOffset:
        this.#ivaLo = value;
        return;
      case iotlbOffset + 4:
        this.#ivaHi = value;
        return;
      case iotlbOffset + 12:
        this.#iotlbCommand(value);
        return;
    }
    if (offset >= faultRecordOffset && offset < faultRecordOffset + faultRecords * FaultRecording.bytes)
      this.#faults.settle();
  }

  /** §11.4.4 Global Command. */
  #command(value: number): void {
    const registers = this.#registers;
    const { has } = this.capabilities;
    let status = registers.get(Register.GSTS);
    if (value & Gcmd.SRTP) {
      const { TTM } = RtaddrRegister.fields;
      const low = registers.get(Register.RTADDR);
      const root = registers.address(Register.RTADDR) - (low & TTM.mask);
      this.#remapping.setRoot(root, (low & TTM.mask) >>> TTM.shift);
      status |= Gcmd.SRTP;
      if (has.rootPointerInvalidates) this.#remapping.forget();
    }
    if (has.interruptRemapping && value & Gcmd.SIRTP) status |= Gcmd.SIRTP;
    let enables = Gcmd.TE;
    if (has.queuedInvalidation) enables += Gcmd.QIE;
    if (has.interruptRemapping) enables += Gcmd.IRE + Gcmd.CFI;
    let changed = (status ^ value) & enables;
    if (changed & Gcmd.QIE && status & Gcmd.QIE && !this.#queue.quiet) changed &= ~Gcmd.QIE;
    status = (status ^ changed) >>> 0;
    registers.set(Register.GSTS, status);
    this.#remapping.enabled = (status & Gcmd.TE) !== 0;
    if ((changed & Gcmd.QIE) === 0) return;
    this.#queue.enable((status & Gcmd.QIE) !== 0);
    this.#queue.run();
  }

  /** §11.4.7 Register-based invalidation. With the queue enabled it is not done, and ICC stays set. */
  #contextCommand(value: number): void {
    const registers = this.#registers;
    const { ICC, CIRG, CAIG, FM, DID } = CcmdRegister.fields;
    if ((value & ICC.mask) === 0) return;
    if (this.#queue.enabled) {
      registers.set(Register.CCMD + 4, registers.get(Register.CCMD + 4) | ICC.mask);
      return;
    }
    // A domain-selective request is performed globally, and CAIG says so; CAIG 0: it is none of legacy mode, and ignored.
    const requested = (value & CIRG.mask) >>> CIRG.shift;
    const wide = requested === Granularity.domain ? Granularity.global : requested;
    const granularity = this.#remapping.mode === Ttm.legacy ? wide : Granularity.reserved;
    const domain = registers.get(Register.CCMD) & DID.mask;
    this.#remapping.invalidateContexts(granularity, domain, this.#ccmdSource, value & FM.mask);
    registers.set(
      Register.CCMD + 4,
      (registers.get(Register.CCMD + 4) & CIRG.mask) | (granularity << CAIG.shift),
    );
  }

  /** §11.4.8 Register-based invalidation of the IOTLB. IAIG 0: the request was not one the unit does. */
  #iotlbCommand(value: number): void {
    const registers = this.#registers;
    const offset = this.capabilities.iotlbOffset + 12;
    const { IVT, IIRG, IAIG, DID } = IotlbRegister.fields;
    if ((value & IVT.mask) === 0) return;
    if (this.#queue.enabled) {
      registers.set(offset, registers.get(offset) | IVT.mask);
      return;
    }
    const { AM, ADDR } = IvaRegister.fields;
    let granularity = (value & IIRG.mask) >>> IIRG.shift;
    const addressMask = this.#ivaLo & AM.mask;
    const { has, maximumAddressMask } = this.capabilities;
    if (granularity === Granularity.page && !has.pageSelective) granularity = Granularity.domain;
    if (granularity === Granularity.page && addressMask > maximumAddressMask) granularity = 0;
    if (this.#remapping.mode !== Ttm.legacy) granularity = Granularity.reserved;
    const domain = (value & DID.mask) >>> DID.shift;
    this.#remapping.invalidateIotlb(granularity, domain, this.#ivaLo & ADDR.mask, this.#ivaHi, addressMask);
    registers.set(offset, (registers.get(offset) & ~IAIG.mask) | (granularity << IAIG.shift));
  }

  // Translation

  translate(transaction: Transaction): TranslateStatus {
    return this.#remapping.translate(transaction);
  }

  requestTranslation(transaction: Transaction): TranslateStatus {
    return this.#remapping.requestTranslation(transaction);
  }

  requestPage(request: PageRequest): void {
    this.#pageRequests.request(request);
  }

  explain(transaction: Transaction): Iterable<ExplainStep> {
    return this.#remapping.explain(transaction);
  }
}
