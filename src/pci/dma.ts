/**
 * How a function reaches memory. A host bridge stands between the functions behind one IOMMU and host memory; each
 * function has a port of it. An access is translated leaf by leaf, and leaves that lie together in host memory are
 * moved as one run, so that a large transfer costs one copy per run and a small one allocates nothing.
 *
 * Without a unit an address is a host physical address. A translated write to 0xFEE… is a write like any other: the
 * interrupt window of the machine lies there in memory.
 *
 * A function whose address translation services are on keeps translations itself (`translation-services.ts`). Left out:
 * peer-to-peer without the bridge, completion timeouts.
 */
import { type EventSink, silent } from "../base/events.ts";
import {
  Access,
  type FaultRecord,
  type IommuUnit,
  NO_PASID,
  Transaction,
  TranslateStatus,
} from "../hardware/unit.ts";
import { type HostMemory, MemoryError } from "../memory/host-memory.ts";
import type { DmaPort } from "./function.ts";
import { connect, isAtsUnit, TranslationServices } from "./translation-services.ts";

type Resume = (ok: boolean) => void;

const WORD = 0x1_0000_0000;

const memoryReasons: { readonly [cause: number]: string } = {
  [MemoryError.absent]: "nothing answers there",
  [MemoryError.poisoned]: "the frame is poisoned",
  [MemoryError.protected]: "the frame may not be written",
  [MemoryError.unsupported]: "what answers there does not take this kind of access",
};

/** Fault codes of the bus itself, in the records of requests that no unit refused. */
export const BusFault = { notMaster: -1, memory: -2, beyond: -3, pasid: -4 } as const;

/** What a function may put on its requests (PCIe §7.8.9, PASID Control). */
export interface PasidRights {
  /** Bits of a PASID; 0: requests carry none. */
  readonly bits: number;
  /** `Access.execute` and `Access.privileged`, as far as requests may ask for them. */
  readonly access: number;
}
const NO_PASIDS: PasidRights = { bits: 0, access: 0 };

/** What became of the operations of a function that had to wait; those that wait still are the rest of `parked`. */
export interface ParkedCounts {
  parked: number;
  /** Tried again, failed, and forgotten by the function itself. */
  resumed: number;
  failed: number;
  dropped: number;
}

interface BusRefusal {
  readonly code: number;
  readonly unit: string;
  readonly reason: string;
}

export interface HostBridgeContext {
  readonly memory: HostMemory;
  /** The IOMMU in front of the functions; none: identity. */
  readonly unit?: IommuUnit | undefined;
  readonly events?: EventSink;
}

/** The functions behind one IOMMU. There is one bridge a unit: it takes the unit's `onResume`. */
export class HostBridge {
  readonly memory: HostMemory;
  readonly unit: IommuUnit | undefined;
  readonly events: EventSink;
  readonly #parked = new Map<number, { readonly port: UnitPort; readonly resume: Resume }>();
  readonly #ports = new Map<number, UnitPort>();
  /** Of functions' own stalls, below those of the unit. */
  #token = 0;

  constructor({ memory, unit, events = silent }: HostBridgeContext) {
    this.memory = memory;
    this.unit = unit;
    this.events = events;
    if (unit) unit.onResume = (token, ok) => this.resume(token, ok);
    if (unit && isAtsUnit(unit)) connect(unit, (rid) => this.#ports.get(rid)?.services);
  }

  /** A port for the function with this requester id. */
  port(rid: number): UnitPort {
    const port = new UnitPort(this, rid);
    this.#ports.set(rid, port);
    return port;
  }

  /** A new name for an operation that waits for pages: below those of the unit. */
  nextToken(): number {
    this.#token -= 1;
    return this.#token;
  }

  /** Operations that wait for the unit, of all functions. */
  get parked(): number {
    return this.#parked.size;
  }

  park(token: number, port: UnitPort, resume: Resume): void {
    port.counts.parked += 1;
    this.#parked.set(token, { port, resume });
  }

  dropParked(port: UnitPort): void {
    for (const [token, parked] of this.#parked) {
      if (parked.port !== port) continue;
      port.counts.dropped += 1;
      this.#parked.delete(token);
    }
  }

  /** Ends the wait of an operation; false: nobody waits, or it was dropped meanwhile. */
  resume(token: number, ok: boolean): boolean {
    const parked = this.#parked.get(token);
    if (!parked) return false;
    this.#parked.delete(token);
    parked.port.counts[ok ? "resumed" : "failed"] += 1;
    parked.resume(ok);
    return true;
  }
}

export class UnitPort implements DmaPort {
  /** Command.BUS_MASTER: without it the function makes no requests. */
  mastering = false;
  done = 0;
  asksForPages = true;
  /** What its requests may carry. */
  pasids: PasidRights = NO_PASIDS;
  /** Translations of its own; undefined: it has no such capability, or its unit gives none. */
  services: TranslationServices | undefined;
  readonly counts: ParkedCounts = { parked: 0, resumed: 0, failed: 0, dropped: 0 };
  readonly #bridge: HostBridge;
  readonly #rid: number;
  readonly #request = new Transaction();
  readonly #failed = new Transaction();
  readonly #message = new Uint8Array(4);
  #refusal: BusRefusal | undefined;
  #record: FaultRecord | undefined;
  #hasFailed = false;
  #busy = false;
  /** Interrupt messages are never translated by the function itself. */
  #sendsMessage = false;
  /** The answer to a request for pages that came before its operation was parked. */
  #early: { readonly token: number; readonly ok: boolean } | undefined;

  constructor(bridge: HostBridge, rid: number) {
    this.#bridge = bridge;
    this.#rid = rid;
  }

  /** The function has address translation services. They are off until it turns them on, and absent behind a unit without. */
  addServices(): TranslationServices | undefined {
    const { unit } = this.#bridge;
    if (!unit || !isAtsUnit(unit)) return undefined;
    this.services = new TranslationServices({
      rid: this.#rid,
      unit,
      nextToken: () => this.#bridge.nextToken(),
      resume: (token, ok) => {
        if (!this.#bridge.resume(token, ok)) this.#early = { token, ok };
      },
    });
    return this.services;
  }

  read(lo: number, hi: number, into: Uint8Array, pasid: number = NO_PASID, extra = 0): TranslateStatus {
    return this.#transfer(lo, hi, into, pasid, Access.read | extra);
  }

  write(lo: number, hi: number, data: Uint8Array, pasid: number = NO_PASID, extra = 0): TranslateStatus {
    return this.#transfer(lo, hi, data, pasid, Access.write | extra);
  }

  message(lo: number, hi: number, data: number): TranslateStatus {
    const bytes = this.#message;
    bytes[0] = data;
    bytes[1] = data >>> 8;
    bytes[2] = data >>> 16;
    bytes[3] = data >>> 24;
    this.#sendsMessage = true;
    try {
      return this.#transfer(lo, hi, bytes, NO_PASID, Access.write);
    } finally {
      this.#sendsMessage = false;
    }
  }

  park(resume: Resume): void {
    const early = this.#early;
    const { token } = this.#request;
    this.#bridge.park(token, this, resume);
    this.#early = undefined;
    if (early?.token === token) this.#bridge.resume(token, early.ok);
  }

  dropParked(): void {
    this.#bridge.dropParked(this);
    this.services?.drop();
  }

  /** Power-on state: nothing waits, and no translation is kept. */
  reset(): void {
    this.dropParked();
    this.services?.reset();
  }

  /** One access. A write that reaches a device may make it send one of its own, but not through this port. */
  #transfer(lo: number, hi: number, bytes: Uint8Array, pasid: number, access: number): TranslateStatus {
    if (this.#busy) return TranslateStatus.fault;
    const request = this.#request;
    this.done = 0;
    request.rid = this.#rid;
    request.pasid = pasid;
    request.access = access;
    request.translated = false;
    request.lo = lo >>> 0;
    request.hi = hi >>> 0;
    if (!this.mastering)
      return this.#refuse(BusFault.notMaster, "bus", "the function is not a bus master (Command bit 2)");
    const refusal = this.#refusalOf(pasid, access);
    if (refusal) return this.#refuse(BusFault.pasid, "bus", refusal);
    this.#early = undefined;
    this.#busy = true;
    try {
      return this.#runs(request, bytes, (access & Access.write) !== 0);
    } finally {
      this.#busy = false;
    }
  }

  /** Why the function may not make such a request; undefined: it may. */
  #refusalOf(pasid: number, access: number): string | undefined {
    const attributes = access & (Access.execute | Access.privileged);
    if (pasid === NO_PASID)
      return attributes === 0 ? undefined : "a request without a PASID is never privileged or for execution";
    const { bits, access: allowed } = this.pasids;
    if (bits === 0) return "the function's requests carry no PASID (PASID Control.Enable is 0)";
    if (!(pasid >= 0 && pasid < 2 ** bits))
      return `the function's PASIDs have ${bits} bits; ${pasid} has more`;
    return (attributes & ~allowed) === 0
      ? undefined
      : "the request is privileged or for execution, and PASID Control does not allow that";
  }

  /** Translates and moves `bytes` run by run. What is done when it ends early is in `done`. */
  #runs(request: Transaction, bytes: Uint8Array, write: boolean): TranslateStatus {
    const { unit } = this.#bridge;
    const services = this.services?.enabled && !this.#sendsMessage ? this.services : undefined;
    const length = bytes.length;
    let runStart = 0;
    let runPa = 0;
    let at = 0;
    while (at < length) {
      const status = services
        ? services.translate(request, length - at, this.asksForPages)
        : this.#translate(unit, request);
      if (status !== TranslateStatus.ok) {
        if (!this.#move(runPa, runStart, at, bytes, write)) return TranslateStatus.fault;
        return status === TranslateStatus.fault ? this.#faulted() : status;
      }
      if (!(request.span > 0)) return this.#refuse(BusFault.beyond, "bus", "the unit granted no bytes");
      if (at === runStart) runPa = request.pa;
      else if (request.pa !== runPa + (at - runStart)) {
        if (!this.#move(runPa, runStart, at, bytes, write)) return TranslateStatus.fault;
        runStart = at;
        runPa = request.pa;
      }
      const step = Math.min(request.span, length - at);
      at += step;
      if (at < length && !advance(request, step))
        return this.#refuse(BusFault.beyond, "bus", "the access goes on beyond the end of 64-bit addresses");
    }
    return this.#move(runPa, runStart, length, bytes, write) ? TranslateStatus.ok : TranslateStatus.fault;
  }

  #translate(unit: IommuUnit | undefined, request: Transaction): TranslateStatus {
    if (unit) return unit.translate(request);
    request.pa = request.hi * WORD + request.lo;
    request.span = Number.MAX_SAFE_INTEGER;
    return TranslateStatus.ok;
  }

  /** Moves bytes [from, to) of the access to or from `pa`. */
  #move(pa: number, from: number, to: number, bytes: Uint8Array, write: boolean): boolean {
    if (from === to) return true;
    const { memory, events } = this.#bridge;
    const part = from === 0 && to === bytes.length ? bytes : bytes.subarray(from, to);
    const rid = this.#rid;
    const ok = write ? memory.writeBytes(pa, part, rid) : memory.readBytes(pa, part, rid);
    if (!ok) {
      const reason = memoryReasons[memory.cause] ?? "the access failed";
      this.#refuse(BusFault.memory, "memory", `host physical 0x${pa.toString(16)}: ${reason}`);
      return false;
    }
    this.done = to;
    if (events.on) events.emit("dma", { rid, write, pa, bytes: to - from });
    return true;
  }

  #faulted(): TranslateStatus {
    this.#remember(undefined);
    return TranslateStatus.fault;
  }

  #refuse(code: number, unit: string, reason: string): TranslateStatus {
    this.#remember({ code, unit, reason });
    const { events } = this.#bridge;
    if (events.on) {
      const { rid, pasid, access } = this.#failed;
      events.emit("fault", { unit, rid, pasid, address: addressOf(this.#failed), access, code, reason });
    }
    return TranslateStatus.fault;
  }

  #remember(refusal: BusRefusal | undefined): void {
    const failed = this.#failed;
    const request = this.#request;
    failed.rid = request.rid;
    failed.pasid = request.pasid;
    failed.lo = request.lo;
    failed.hi = request.hi;
    failed.access = request.access;
    failed.translated = request.translated;
    failed.fault = request.fault;
    this.#refusal = refusal;
    this.#record = undefined;
    this.#hasFailed = true;
  }

  /** Made when asked for: a refused access itself costs no objects. The unit is asked to explain it as things are now. */
  get lastFault(): FaultRecord | undefined {
    if (!this.#hasFailed) return undefined;
    if (this.#record) return this.#record;
    const failed = this.#failed;
    const { rid, pasid, access } = failed;
    const common = { rid, pasid, access, address: addressOf(failed) };
    const refusal = this.#refusal;
    this.#record = refusal ? { ...common, ...refusal } : { ...common, ...this.#explain(failed) };
    return this.#record;
  }

  #explain(failed: Transaction): Omit<FaultRecord, "rid" | "pasid" | "access" | "address"> {
    const unit = this.#bridge.unit;
    let reason = "the unit refused the access";
    let where: { level?: number; entryAddress?: number; entry?: bigint } = {};
    for (const step of unit?.explain(failed) ?? []) {
      if (step.address !== undefined)
        where = {
          entryAddress: step.address,
          ...(step.level !== undefined && { level: step.level }),
          ...(step.value !== undefined && { entry: step.value }),
        };
      if (step.outcome && !step.outcome.ok) reason = step.outcome.reason;
    }
    return { unit: unit?.name ?? "bus", code: failed.fault, reason, ...where };
  }
}

const addressOf = (request: Transaction): bigint => (BigInt(request.hi) << 32n) | BigInt(request.lo);

/** Moves the request's address on; false when that leaves 64 bits. */
const advance = (request: Transaction, bytes: number): boolean => {
  const low = request.lo + bytes;
  if (low < WORD) {
    request.lo = low;
    return true;
  }
  const carry = Math.floor(low / WORD);
  request.lo = low - carry * WORD;
  request.hi += carry;
  return request.hi < WORD;
};
