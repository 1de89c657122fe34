/**
 * What tests of functions stand on: memory, a unit that translates page by page and stalls when told to, and a
 * function plugged in behind it. The page table is a map; what it lacks is a fault.
 */
import { ManualClock } from "../base/clock.ts";
import type { EventFields, EventKind, EventSink } from "../base/events.ts";
import { WorkQueue } from "../base/scheduler.ts";
import { type AtsUnit, type PageRequest, PageResponse } from "../hardware/ats.ts";
import { Access, type IommuUnit, NO_PASID, type Transaction, TranslateStatus } from "../hardware/unit.ts";
import { Banks } from "../memory/banks.ts";
import type { ExplainStep } from "../pagetable/step.ts";
import { extendedCapabilitiesOf } from "./capability-list.ts";
import { HostBridge } from "./dma.ts";
import type { PciFunction } from "./function.ts";
import type { FunctionContext } from "./pci-function.ts";
import { placement } from "./placement.ts";
import {
  AtsCapability,
  AtsControl,
  Command,
  ExtendedCapabilityId,
  Header,
  PasidCapability,
  PasidControl,
  PriCapability,
  PriControl,
} from "./spec.ts";

const PAGE = 4096;
export const RAM_BYTES = 32 * 1024 * 1024;
/** Where the rig's interrupt window lies. */
export const MSI_BASE = 0xfee0_0000;
const MSI_BYTES = 0x10_0000;

/** A unit whose answers the test decides. What would stall an access makes a translation request find no page. */
export class PaperUnit implements IommuUnit, AtsUnit {
  readonly name = "paper";
  onResume: (token: number, ok: boolean) => void = () => {};
  /** IOVA page → physical page; undefined: identity. */
  pages: Map<number, number> | undefined;
  /** Pages nothing may touch, whatever `pages` says. */
  readonly forbidden = new Set<number>();
  /** Shall this request stall? A resumed one may stall again. */
  stall: (request: Transaction) => boolean = () => false;
  invalidateDeviceTlb: AtsUnit["invalidateDeviceTlb"] = () => "done";
  onPageResponse: AtsUnit["onPageResponse"] = () => {};
  /** Groups of page requests without a response. */
  readonly asked: PageRequest[] = [];
  readonly pasids: number[] = [];
  translations = 0;
  #token = 0;
  #stalled: number[] = [];

  translate(request: Transaction): TranslateStatus {
    if (request.translated) {
      request.pa = request.hi * 2 ** 32 + request.lo;
      request.span = PAGE - (request.pa % PAGE);
      return TranslateStatus.ok;
    }
    this.translations += 1;
    const address = request.hi * 2 ** 32 + request.lo;
    const page = Math.floor(address / PAGE);
    if (request.pasid !== NO_PASID) this.pasids.push(request.pasid);
    const isMessage = address >= MSI_BASE && address < MSI_BASE + MSI_BYTES;
    const target = this.pages && !isMessage ? this.pages.get(page) : page;
    if (target === undefined || this.forbidden.has(page)) {
      request.fault = 6;
      return TranslateStatus.fault;
    }
    if (this.stall(request)) {
      this.#token += 1;
      request.token = this.#token;
      this.#stalled.push(this.#token);
      return TranslateStatus.stalled;
    }
    request.pa = target * PAGE + (address % PAGE);
    request.span = PAGE - (address % PAGE);
    return TranslateStatus.ok;
  }

  requestTranslation(request: Transaction): TranslateStatus {
    const status = this.translate(request);
    request.granted = status === TranslateStatus.ok ? Access.read | Access.write : 0;
    if (status === TranslateStatus.stalled) this.#stalled.pop();
    return TranslateStatus.ok;
  }

  requestPage(request: PageRequest): void {
    if (request.last) this.asked.push(request);
  }

  get stalled(): number {
    return this.#stalled.length + this.asked.length;
  }

  /** Answers every stall there is now; returns how many. */
  resume(ok = true): number {
    const tokens = this.#stalled.splice(0);
    for (const token of tokens) this.onResume(token, ok);
    const asked = this.asked.splice(0);
    const response = ok ? PageResponse.success : PageResponse.invalid;
    for (const { rid, pasid, group } of asked) this.onPageResponse(rid, pasid, group, response);
    return tokens.length + asked.length;
  }

  mmioRead(): bigint {
    return 0n;
  }
  mmioWrite(): void {}
  *explain(): Iterable<ExplainStep> {
    yield { what: "paper entry", level: 1, address: 0x1000, value: 2n };
    yield { what: "paper entry", outcome: { ok: false, code: 6, reason: "the page is not in the table" } };
  }
  reset(): void {}
}

export class Rig implements EventSink {
  readonly on = true;
  readonly memory = new Banks({ ram: [{ start: 0, length: RAM_BYTES }] });
  readonly unit = new PaperUnit();
  readonly bridge: HostBridge;
  readonly work = new WorkQueue();
  readonly clock = new ManualClock();
  readonly told: { readonly kind: EventKind; readonly fields: EventFields }[] = [];
  /** Data of the messages that arrived in the interrupt window. */
  readonly interrupts: number[] = [];
  readonly context: FunctionContext;

  constructor(bus = 1) {
    this.bridge = new HostBridge({ memory: this.memory, unit: this.unit, events: this });
    this.memory.addWindow(MSI_BASE, MSI_BYTES, {
      name: "interrupts",
      read: () => false,
      write: (_offset, data) => {
        this.interrupts.push(new DataView(data.buffer, data.byteOffset).getUint32(0, true));
        return true;
      },
    });
    this.context = {
      address: { segment: 0, bus, device: 0, function: 0 },
      bridge: this.bridge,
      barBase: placement({
        mem32: { start: 0xe000_0000, end: 0xf000_0000 },
        mem64: { start: 2 ** 40, end: 2 ** 41 },
        io: { start: 0x1000, end: 0x2000 },
      }),
      scheduler: this.work,
      clock: this.clock,
      events: this,
    };
  }

  emit(kind: EventKind, fields: EventFields): void {
    this.told.push({ kind, fields });
    if (this.told.length > 10_000) this.told.length = 0;
  }

  /** Runs deferred work and answers stalls until nothing is left. Throws when that takes suspiciously long. */
  settle(ok = true, limit = 200_000): void {
    let ran = 0;
    do {
      ran += this.work.run(1000) + 1;
      if (ran > limit) throw new Error(`still working after ${ran} pieces of work`);
      if (this.work.pending === 0) this.unit.resume(ok);
    } while (this.work.pending > 0 || this.unit.stalled > 0);
  }

  close(): void {
    this.memory.close();
  }
}

/** Memory decoding and bus mastering on. */
export const turnOn = (device: PciFunction): void => {
  const command = device.configRead(Header.COMMAND, 2);
  device.configWrite(Header.COMMAND, 2, command | Command.MEMORY_SPACE | Command.BUS_MASTER);
};

/** What the function has of PASIDs, page requests and translations of its own, as the driver of a unit turns it on. */
export const turnOnServices = (device: PciFunction): void => {
  const places = new Map(extendedCapabilitiesOf(device).map(({ id, at }) => [id, at]));
  const write = (id: number, offset: number, width: 2 | 4, value: number): void => {
    const at = places.get(id);
    if (at !== undefined) device.configWrite(at + offset, width, value);
  };
  const { PASID, PRI, ATS } = ExtendedCapabilityId;
  write(PASID, PasidCapability.CONTROL, 2, Number(PasidControl.make({ Enable: true })));
  write(PRI, PriCapability.OUTSTANDING_ALLOCATION, 4, 8);
  write(PRI, PriCapability.CONTROL, 2, Number(PriControl.make({ Enable: true })));
  write(ATS, AtsCapability.CONTROL, 2, Number(AtsControl.make({ Enable: true })));
};

const four = new Uint8Array(4);

export const read32 = (device: PciFunction, bar: number, offset: number): number => {
  device.barRead(bar, offset, four);
  return new DataView(four.buffer).getUint32(0, true);
};

export const write32 = (device: PciFunction, bar: number, offset: number, value: number): void => {
  new DataView(four.buffer).setUint32(0, value >>> 0, true);
  device.barWrite(bar, offset, four);
};
