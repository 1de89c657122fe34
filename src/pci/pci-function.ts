/**
 * The base of every device model: an endpoint function with its config space, BARs, interrupts (MSI-X, MSI or the
 * INTx line, whichever software turned on) and DMA. PCI Express Base Specification 5.0, §6.1 (interrupts), §6.6.2
 * (function-level reset), §7.5.
 *
 * A model says what it is (`FunctionShape`), answers its BARs and starts anew at reset. It sees no access that a real
 * function would not: none outside a BAR, none while decoding is off or the function is in D3hot.
 *
 * Left out: BARs that software moves (firmware's placement stands), PME, error reporting.
 */
import type { Clock } from "../base/clock.ts";
import { type EventSink, silent } from "../base/events.ts";
import type { Scheduler } from "../base/scheduler.ts";
import { Access, TranslateStatus } from "../hardware/unit.ts";
import { formatAddress, requesterId } from "./address.ts";
import * as capabilities from "./capabilities.ts";
import { type Capability, ConfigSpace, type ConfigWidth } from "./config.ts";
import type { HostBridge, ParkedCounts, PasidRights, UnitPort } from "./dma.ts";
import type { Bar, BarKind, PciAddress, PciFunction, Rom } from "./function.ts";
import { Msi } from "./msi.ts";
import { Msix } from "./msix.ts";
import type { PageRequestCounts, PageRequests } from "./page-requests.ts";
import {
  AtsCapability,
  AtsControl,
  BAR_COUNT,
  BarBits,
  Command,
  DeviceControl,
  EXTENDED_CONFIG_BYTES,
  ExpressCapability,
  ExtendedCapabilityId,
  Header,
  MsixCapability,
  MsixControl,
  PasidCapability,
  PasidControl,
  PasidFlags,
  PowerCapability,
  PowerControl,
  PriCapability,
  PriControl,
  PriStatus,
  ROM_MAX_BYTES,
  ROM_MIN_BYTES,
  RomBits,
  Status,
} from "./spec.ts";

/** The ROM among the places that firmware gives. */
const ROM_INDEX = BAR_COUNT;
const POWER_ON = 0;
const POWER_D3HOT = 3;
const ENQUEUE_BYTES = 64;

/** A BAR before firmware has placed it. */
export interface BarShape {
  readonly index: number;
  readonly kind: BarKind;
  /** Bytes, a power of two; at least 16 (4 for io). */
  readonly size: number;
  readonly prefetchable?: boolean;
  /** Default true. */
  readonly mappable?: boolean;
}

/** What a model is, to the bus. */
export interface FunctionShape {
  readonly model: string;
  readonly vendorId: number;
  readonly deviceId: number;
  /** Base class, sub-class and programming interface, 24 bits: 0x010802 is an NVMe controller. */
  readonly classCode: number;
  readonly revision?: number;
  readonly subsystemVendorId?: number;
  readonly subsystemId?: number;
  readonly bars: readonly BarShape[];
  /** INTA … INTD as 1 … 4; none by default. */
  readonly interruptPin?: number;
  /** log2 of the MSI vectors; no MSI by default. */
  readonly msiVectorsLg2?: number;
  readonly msix?: capabilities.MsixPlace;
  /** Further capabilities, extended ones included. */
  readonly capabilities?: readonly Capability[];
}

/** Where a function is plugged in, and what it may use. */
export interface FunctionContext {
  readonly address: PciAddress;
  /** Instead of the address. */
  readonly name?: string;
  /** The bridge of the unit the function is behind. */
  readonly bridge: HostBridge;
  /** Host physical address firmware gives to a BAR: a multiple of its size. */
  readonly barBase: (bar: BarShape) => number;
  readonly scheduler: Scheduler;
  readonly clock: Clock;
  readonly events?: EventSink;
  /** Contents of the function's expansion ROM; it has none by default. */
  readonly rom?: Uint8Array | undefined;
  /** VFIO offers no mmap of any BAR (the machine file's option). Default: as the model says. */
  readonly mappable?: boolean;
  /** VFIO offers no mmap of pages with the vector table. */
  readonly sparse?: boolean;
}

export abstract class Endpoint implements PciFunction {
  readonly address: PciAddress;
  readonly name: string;
  readonly rid: number;
  readonly model: string;
  readonly bars: readonly Bar[];
  readonly rom: Rom | undefined;
  readonly configSize = EXTENDED_CONFIG_BYTES;
  onIntx: (asserted: boolean) => void = () => {};
  protected readonly dma: UnitPort;
  protected readonly scheduler: Scheduler;
  protected readonly clock: Clock;
  protected readonly events: EventSink;
  readonly #config = new ConfigSpace(EXTENDED_CONFIG_BYTES);
  readonly #msix: Msix | undefined;
  readonly #msi: Msi | undefined;
  readonly #msixAt: number;
  readonly #powerAt: number;
  readonly #expressAt: number;
  /** Where its extended capabilities are, by id. */
  readonly #extended = new Map<number, number>();
  readonly #byIndex: (Bar | undefined)[] = new Array(BAR_COUNT).fill(undefined);
  /** Vectors whose message waits for the unit; another event of such a vector is the same message. */
  readonly #waiting = new Set<number>();
  #decodesMemory = false;
  #decodesIo = false;
  #powerState: number = POWER_ON;
  #wantsIntx = false;
  #intx = false;

  constructor(shape: FunctionShape, context: FunctionContext) {
    const { address, bridge, scheduler, clock, events = silent } = context;
    this.address = address;
    this.name = context.name ?? formatAddress(address);
    this.rid = requesterId(address);
    this.model = shape.model;
    this.scheduler = scheduler;
    this.clock = clock;
    this.events = events;
    this.dma = bridge.port(this.rid);
    this.bars = shape.bars.map((bar) => placeBar(bar, context));
    this.rom = context.rom && placeRom(context.rom, context);
    for (const bar of this.bars) this.#byIndex[bar.index] = bar;
    const send = (vector: number, lo: number, hi: number, data: number) => this.#send(vector, lo, hi, data);
    const config = this.#config;
    declareHeader(config, shape, this.bars);
    if (this.rom) declareRom(config, this.rom);
    this.#powerAt = config.add(capabilities.powerManagement());
    if (shape.msiVectorsLg2 !== undefined)
      this.#msi = new Msi(config, config.add(capabilities.msi(shape.msiVectorsLg2)), send);
    this.#msixAt = shape.msix ? config.add(capabilities.msix(shape.msix)) : 0;
    this.#msix = shape.msix && new Msix(shape.msix, send);
    this.#expressAt = config.add(capabilities.express());
    for (const capability of shape.capabilities ?? []) {
      const at = config.add(capability);
      if (capability.version !== undefined) this.#extended.set(capability.id, at);
    }
    this.#addServices();
    config.onWrite = () => this.#configured();
    this.#apply();
  }

  /** §10 A function with the ATS capability can keep translations, one with PRI ask for pages. */
  #addServices(): void {
    const services = this.#extended.has(ExtendedCapabilityId.ATS) ? this.dma.addServices() : undefined;
    const pri = this.#extended.get(ExtendedCapabilityId.PRI);
    if (!services || pri === undefined) return;
    services.pages.onStatus = () => this.#showPageRequests(services.pages, pri);
  }

  /** What became of operations that had to wait, and of requests for pages, since power-on. */
  get waits(): ParkedCounts & { readonly pages?: PageRequestCounts } {
    const pages = this.dma.services?.pages.counts;
    return { ...this.dma.counts, ...(pages && { pages: { ...pages } }) };
  }

  configRead(offset: number, width: ConfigWidth): number {
    return this.#config.read(offset, width);
  }

  configWrite(offset: number, width: ConfigWidth, value: number): void {
    this.#config.write(offset, width, value);
  }

  barRead(index: number, offset: number, into: Uint8Array): void {
    if (!this.#decodes(index, offset, into.length)) into.fill(0xff);
    else if (this.#msix?.covers(index, offset, into.length)) this.#msix.read(offset, into);
    else this.readBar(index, offset, into);
  }

  barWrite(index: number, offset: number, data: Uint8Array): void {
    if (!this.#decodes(index, offset, data.length)) return;
    if (this.#msix?.covers(index, offset, data.length)) this.#msix.write(offset, data);
    else this.writeBar(index, offset, data);
  }

  barEnqueue(index: number, offset: number, command: Uint8Array): boolean {
    if (command.length !== ENQUEUE_BYTES || offset % ENQUEUE_BYTES !== 0) return false;
    return this.#decodes(index, offset, ENQUEUE_BYTES) && this.enqueueBar(index, offset, command);
  }

  reset(): void {
    this.dropRequests();
    this.dma.reset();
    this.#config.reset();
    this.#msix?.reset();
    this.resetModel();
    this.#wantsIntx = false;
    this.#configured();
    if (this.events.on) this.events.emit("device", { device: this.name, what: "function-level reset" });
  }

  /** Unplugged: like a reset, and what the model holds outside the machine (a file) is given back. */
  close(): void {
    this.reset();
  }

  get intx(): boolean {
    return this.#intx;
  }

  /** An access inside BAR `index`. `into` is to be filled. */
  protected abstract readBar(index: number, offset: number, into: Uint8Array): void;
  protected abstract writeBar(index: number, offset: number, data: Uint8Array): void;
  /** A non-posted write of 64 bytes inside BAR `index`; false: to be tried again. */
  protected enqueueBar(_index: number, _offset: number, _command: Uint8Array): boolean {
    return false;
  }
  /** Power-on state of everything the model has itself. Its parked operations are gone already. */
  protected abstract resetModel(): void;
  /** Bus mastering or the kind of interrupts may have changed. */
  protected reconfigured(): void {}

  /** Message-signalled interrupts are on: `signal` sends. Otherwise the model drives the line with `drive`. */
  protected get messages(): boolean {
    return this.msixOn || this.msiOn;
  }
  protected get msixOn(): boolean {
    return this.#msix?.enabled === true;
  }
  protected get msiOn(): boolean {
    return this.#msi?.enabled === true;
  }

  /** An event of a vector; nothing happens while messages are off. */
  protected signal(vector: number): void {
    if (this.msixOn) this.#msix?.signal(vector);
    else this.#msi?.signal(vector);
  }

  /** Level of the model's interrupt line. */
  protected drive(level: boolean): void {
    this.#wantsIntx = level;
    this.#driveLine();
  }

  /** Requests that wait for the unit are forgotten, interrupt messages too. */
  protected dropRequests(): void {
    this.dma.dropParked();
    this.#waiting.clear();
  }

  #decodes(index: number, offset: number, length: number): boolean {
    const bar = this.#byIndex[index];
    if (!bar || !(offset >= 0 && offset + length <= bar.size)) return false;
    return bar.kind === "io" ? this.#decodesIo : this.#decodesMemory;
  }

  /** Takes over what the config registers say now. */
  #configured(): void {
    const config = this.#config;
    const control = config.read(this.#expressAt + ExpressCapability.DEVICE_CONTROL, 2);
    if (control & DeviceControl.fields.InitiateFunctionLevelReset.mask) {
      this.reset();
      return;
    }
    this.#apply();
    this.reconfigured();
    this.#driveLine();
  }

  #apply(): void {
    const config = this.#config;
    const command = config.read(Header.COMMAND, 2);
    const awake = this.#power() === POWER_ON;
    this.#decodesMemory = awake && (command & Command.MEMORY_SPACE) !== 0;
    this.#decodesIo = awake && (command & Command.IO_SPACE) !== 0;
    this.dma.mastering = awake && (command & Command.BUS_MASTER) !== 0;
    this.#applyTranslations();
    this.#msi?.update();
    if (this.#msix) {
      const message = config.read(this.#msixAt + MsixCapability.MESSAGE_CONTROL, 2);
      const { Enable, FunctionMask } = MsixControl.fields;
      this.#msix.control((message & Enable.mask) !== 0, (message & FunctionMask.mask) !== 0);
    }
  }

  /** §7.8.9 What requests may carry, and (§10.5) whether the function keeps translations and asks for pages. */
  #applyTranslations(): void {
    const config = this.#config;
    const pasid = this.#extended.get(ExtendedCapabilityId.PASID);
    if (pasid !== undefined) this.dma.pasids = pasidRights(config, pasid);
    const { services } = this.dma;
    const ats = this.#extended.get(ExtendedCapabilityId.ATS);
    const pri = this.#extended.get(ExtendedCapabilityId.PRI);
    if (!services || ats === undefined) return;
    if (pri !== undefined) this.#applyPageRequests(services.pages, pri);
    const { Enable, SmallestTranslationUnit } = AtsControl.fields;
    const control = config.read(ats + AtsCapability.CONTROL, 2);
    services.leastLg2 = 12 + (control & SmallestTranslationUnit.mask);
    services.enabled = (control & Enable.mask) !== 0;
  }

  #applyPageRequests(pages: PageRequests, at: number): void {
    const config = this.#config;
    const { Enable, Reset } = PriControl.fields;
    const { ResponseFailure, UnexpectedGroup } = PriStatus.fields;
    const control = config.read(at + PriCapability.CONTROL, 2);
    const status = config.read(at + PriCapability.STATUS, 2);
    const capacity = config.read(at + PriCapability.OUTSTANDING_CAPACITY, 4);
    pages.allocation = Math.min(config.read(at + PriCapability.OUTSTANDING_ALLOCATION, 4), capacity);
    pages.failed = (status & ResponseFailure.mask) !== 0;
    pages.unexpected = (status & UnexpectedGroup.mask) !== 0;
    pages.enabled = (control & Enable.mask) !== 0;
    if (control & Reset.mask) config.set(at + PriCapability.CONTROL, 2, control & ~Reset.mask);
    if (control & Reset.mask && !pages.enabled) pages.reset();
    else pages.onStatus();
  }

  #showPageRequests({ failed, unexpected, stopped }: PageRequests, at: number): void {
    const { ResponseFailure, UnexpectedGroup, Stopped } = PriStatus.fields;
    const changing = ResponseFailure.mask | UnexpectedGroup.mask | Stopped.mask;
    const now =
      (failed ? ResponseFailure.mask : 0) |
      (unexpected ? UnexpectedGroup.mask : 0) |
      (stopped ? Stopped.mask : 0);
    const status = this.#config.read(at + PriCapability.STATUS, 2);
    this.#config.set(at + PriCapability.STATUS, 2, (status & ~changing) | now);
  }

  /** The power state. There is no D1 and no D2: a write of those is as if it had not been made (§7.5.2.2). */
  #power(): number {
    const at = this.#powerAt + PowerCapability.PMCSR;
    const control = this.#config.read(at, 4);
    const asked = control & PowerControl.fields.PowerState.mask;
    if (asked === POWER_ON || asked === POWER_D3HOT) this.#powerState = asked;
    else this.#config.set(at, 4, (control & ~PowerControl.fields.PowerState.mask) | this.#powerState);
    return this.#powerState;
  }

  #driveLine(): void {
    const command = this.#config.read(Header.COMMAND, 2);
    const wanted = this.#wantsIntx && !this.messages;
    const status = this.#config.read(Header.STATUS, 2);
    this.#config.set(Header.STATUS, 2, wanted ? status | Status.INTERRUPT : status & ~Status.INTERRUPT);
    const level = wanted && (command & Command.INTERRUPT_DISABLE) === 0;
    if (level === this.#intx) return;
    this.#intx = level;
    if (this.events.on) this.events.emit("interrupt", { device: this.name, intx: level });
    this.onIntx(level);
  }

  #send(vector: number, lo: number, hi: number, data: number): void {
    if (this.#waiting.has(vector)) return;
    const status = this.dma.message(lo, hi, data);
    if (status === TranslateStatus.stalled) {
      this.#waiting.add(vector);
      this.dma.park((ok) => {
        this.#waiting.delete(vector);
        if (ok) this.#send(vector, lo, hi, data);
      });
    } else if (status === TranslateStatus.ok && this.events.on)
      this.events.emit("interrupt", { device: this.name, vector });
  }
}

const pasidRights = (config: ConfigSpace, at: number): PasidRights => {
  const control = config.read(at + PasidCapability.CONTROL, 2);
  const { Enable, Execute, Privileged } = PasidControl.fields;
  if ((control & Enable.mask) === 0) return { bits: 0, access: 0 };
  return {
    bits: PasidFlags.fields.MaxWidth.get([config.read(at + PasidCapability.CAPABILITY, 2)]),
    access:
      (control & Execute.mask ? Access.execute : 0) | (control & Privileged.mask ? Access.privileged : 0),
  };
};

const isPowerOfTwo = (value: number): boolean => value > 0 && 2 ** Math.round(Math.log2(value)) === value;

/** Asks firmware for the place of a BAR. RangeError when the shape or the place is impossible. */
const placeBar = (shape: BarShape, { barBase, mappable = true, sparse = false }: FunctionContext): Bar => {
  const { index, kind, size, prefetchable = false } = shape;
  const last = kind === "mem64" ? index + 1 : index;
  if (!(Number.isInteger(index) && index >= 0 && last < BAR_COUNT))
    throw new RangeError(`a ${kind} BAR cannot have index ${index}`);
  if (!isPowerOfTwo(size) || size < (kind === "io" ? 4 : 16))
    throw new RangeError(`BAR ${index}: ${size} bytes is not a power of two of at least 16 (4 for io)`);
  const base = barBase(shape);
  const limit = kind === "mem64" ? Number.MAX_SAFE_INTEGER : 2 ** 32;
  if (!(base >= 0 && base % size === 0 && base + size <= limit))
    throw new RangeError(`BAR ${index}: 0x${base.toString(16)} is no place for ${size} bytes of ${kind}`);
  return { index, kind, size, prefetchable, base, sparse, mappable: mappable && (shape.mappable ?? true) };
};

/** Its size is the next power of two; what the contents do not fill reads as ones. RangeError when it is too large. */
const placeRom = (bytes: Uint8Array, { barBase }: FunctionContext): Rom => {
  const size = Math.max(ROM_MIN_BYTES, 2 ** Math.ceil(Math.log2(bytes.length)));
  if (size > ROM_MAX_BYTES)
    throw new RangeError(`an expansion ROM of ${bytes.length} bytes; ${ROM_MAX_BYTES} are the most`);
  const contents = new Uint8Array(size).fill(0xff);
  contents.set(bytes);
  return { size, base: barBase({ index: ROM_INDEX, kind: "mem32", size }), contents };
};

const declareRom = (config: ConfigSpace, { size, base }: Rom): void =>
  config.declare({
    offset: Header.EXPANSION_ROM,
    width: 4,
    value: base,
    writable: ((~(size - 1) & RomBits.ADDRESS) | RomBits.ENABLE) >>> 0,
  });

const declareHeader = (config: ConfigSpace, shape: FunctionShape, bars: readonly Bar[]): void => {
  const { vendorId, deviceId, classCode, revision = 0, interruptPin = 0 } = shape;
  const io = bars.some((bar) => bar.kind === "io");
  const decoding =
    (bars.some((bar) => bar.kind !== "io") ? Command.MEMORY_SPACE : 0) | (io ? Command.IO_SPACE : 0);
  const { BUS_MASTER, PARITY_ERROR_RESPONSE, SERR, INTERRUPT_DISABLE } = Command;
  config.declare({ offset: Header.VENDOR_ID, width: 2, value: vendorId });
  config.declare({ offset: Header.DEVICE_ID, width: 2, value: deviceId });
  config.declare({
    offset: Header.COMMAND,
    width: 2,
    value: decoding,
    writable: decoding | BUS_MASTER | PARITY_ERROR_RESPONSE | SERR | INTERRUPT_DISABLE,
  });
  config.declare({
    offset: Header.STATUS,
    width: 2,
    value: Status.CAPABILITIES_LIST,
    clears: Status.ERRORS,
  });
  config.declare({ offset: Header.REVISION_ID, width: 4, value: ((classCode << 8) | revision) >>> 0 });
  config.declare({ offset: Header.CACHE_LINE_SIZE, width: 1, value: 0, writable: 0xff });
  config.declare({
    offset: Header.SUBSYSTEM_VENDOR_ID,
    width: 2,
    value: shape.subsystemVendorId ?? vendorId,
  });
  config.declare({ offset: Header.SUBSYSTEM_ID, width: 2, value: shape.subsystemId ?? deviceId });
  config.declare({ offset: Header.INTERRUPT_LINE, width: 1, value: 0, writable: 0xff });
  config.declare({ offset: Header.INTERRUPT_PIN, width: 1, value: interruptPin });
  for (const bar of bars) declareBar(config, bar);
};

const declareBar = (config: ConfigSpace, { index, kind, size, prefetchable, base }: Bar): void => {
  const offset = Header.BASE_ADDRESS + 4 * index;
  const flags =
    kind === "io"
      ? BarBits.IO
      : (kind === "mem64" ? BarBits.MEMORY_64 : 0) | (prefetchable ? BarBits.PREFETCHABLE : 0);
  const low = base % 2 ** 32;
  const sizeLow = size >= 2 ** 32 ? 0 : ~(size - 1) >>> 0;
  const flagBits = kind === "io" ? BarBits.IO_FLAGS : BarBits.MEMORY_FLAGS;
  config.declare({
    offset,
    width: 4,
    value: (low | flags) >>> 0,
    writable: (sizeLow & ~flagBits) >>> 0,
  });
  if (kind !== "mem64") return;
  const sizeHigh = size >= 2 ** 32 ? ~(size / 2 ** 32 - 1) >>> 0 : 0xffff_ffff;
  config.declare({
    offset: offset + 4,
    width: 4,
    value: Math.floor(base / 2 ** 32),
    writable: sizeHigh,
  });
};
