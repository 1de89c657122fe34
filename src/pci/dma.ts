/**
 * How a function reaches memory. A host bridge stands between the functions behind one IOMMU and host memory; each
 * function has a port of it. An access is translated leaf by leaf, and leaves that lie together in host memory are
 * moved as one run, so that a large transfer costs one copy per run and a small one allocates nothing.
 *
 * Without a unit an address is a host physical address. A translated write to 0xFEE… is a write like any other: the
 * interrupt window of the machine lies there in memory.
 *
 * A function whose address translation services are on keeps translations itself (`device-tlb.ts`). Left out: peer-to-peer
 * without the bridge, completion timeouts.
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
import { connect, DeviceTlb, isAtsUnit } from "./device-tlb.ts";
import type { DmaPort } from "./function.ts";

type Resume = (ok: boolean) => void;

const WORD = 0x1_0000_0000;

const memoryReasons: { readonly [cause: number]: string } = {
  [MemoryError.absent]: "nothing answers there",
  [MemoryError.poisoned]: "the frame is poisoned",
  [MemoryError.protected]: "the frame may not be written",
  [MemoryError.unsupported]: "what answers there does not take this kind of access",
};

/** Fault codes of the bus itself, in the records of requests that no unit refused. */
export const BusFault = { notMaster: -1, memory: -2, beyond: -3 } as const;

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
    if (unit) unit.onResume = (token, ok) => this.#resume(token, ok);
    if (unit && isAtsUnit(unit)) connect(unit, (rid) => this.#ports.get(rid)?.tlb);
  }

  /** A port for the function with this requester id. */
  port(rid: number): UnitPort {
    const port = new UnitPort(this, rid);
    this.#ports.set(rid, port);
    return port;
  }

  /** A function's own translations; undefined: its unit gives none. */
  deviceTlb(rid: number): DeviceTlb | undefined {
    const { unit } = this;
    if (!unit || !isAtsUnit(unit)) return undefined;
    return new DeviceTlb({
      rid,
      unit,
      nextToken: () => {
        this.#token -= 1;
        return this.#token;
      },
      resume: (token, ok) => this.#resume(token, ok),
    });
  }

  /** Operations that wait for the unit, of all functions. */
  get parked(): number {
    return this.#parked.size;
  }

  park(token: number, port: UnitPort, resume: Resume): void {
    this.#parked.set(token, { port, resume });
  }

  dropParked(port: UnitPort): void {
    for (const [token, parked] of this.#parked) if (parked.port === port) this.#parked.delete(token);
  }

  #resume(token: number, ok: boolean): void {
    const parked = this.#parked.get(token);
    if (!parked) return; // the operation was dropped meanwhile
    this.#parked.delete(token);
    parked.resume(ok);
  }
}

export class UnitPort implements DmaPort {
  /** Command.BUS_MASTER: without it the function makes no requests. */
  mastering = false;
  done = 0;
  /** Translations of its own, when its unit gives them. */
  readonly tlb: DeviceTlb | undefined;
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

  constructor(bridge: HostBridge, rid: number) {
    this.#bridge = bridge;
    this.#rid = rid;
    this.tlb = bridge.deviceTlb(rid);
  }

  read(lo: number, hi: number, into: Uint8Array, pasid: number = NO_PASID): TranslateStatus {
    return this.#transfer(lo, hi, into, pasid, false);
  }

  write(lo: number, hi: number, data: Uint8Array, pasid: number = NO_PASID): TranslateStatus {
    return this.#transfer(lo, hi, data, pasid, true);
  }

  message(lo: number, hi: number, data: number): TranslateStatus {
    const bytes = this.#message;
    bytes[0] = data;
    bytes[1] = data >>> 8;
    bytes[2] = data >>> 16;
    bytes[3] = data >>> 24;
    this.#sendsMessage = true;
    try {
      return this.#transfer(lo, hi, bytes, NO_PASID, true);
    } finally {
      this.#sendsMessage = false;
    }
  }

  park(resume: Resume): void {
    this.#bridge.park(this.#request.token, this, resume);
  }

  dropParked(): void {
    this.#bridge.dropParked(this);
    this.tlb?.reset();
  }

  /** One access. A write that reaches a device may make it send one of its own, but not through this port. */
  #transfer(lo: number, hi: number, bytes: Uint8Array, pasid: number, write: boolean): TranslateStatus {
    if (this.#busy) return TranslateStatus.fault;
    const request = this.#request;
    this.done = 0;
    request.rid = this.#rid;
    request.pasid = pasid;
    request.access = write ? Access.write : Access.read;
    request.lo = lo >>> 0;
    request.hi = hi >>> 0;
    if (!this.mastering)
      return this.#refuse(BusFault.notMaster, "bus", "the function is not a bus master (Command bit 2)");
    this.#busy = true;
    try {
      return this.#runs(request, bytes, write);
    } finally {
      this.#busy = false;
    }
  }

  /** Translates and moves `bytes` run by run. What is done when it ends early is in `done`. */
  #runs(request: Transaction, bytes: Uint8Array, write: boolean): TranslateStatus {
    const { unit: behind } = this.#bridge;
    const unit = this.tlb?.enabled && !this.#sendsMessage ? this.tlb : behind;
    const length = bytes.length;
    let runStart = 0;
    let runPa = 0;
    let at = 0;
    while (at < length) {
      const status = unit ? unit.translate(request) : this.#identity(request);
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

  #identity(request: Transaction): TranslateStatus {
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
