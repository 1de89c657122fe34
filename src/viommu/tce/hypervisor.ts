/**
 * A hypervisor towards a guest on POWER, as far as TCE tables go: hypervisor calls that put TCEs, and RTAS calls that make
 * and remove windows besides the one that each function has from the start. What a guest says is checked; what the host
 * refuses is the call's status.
 */
import type { EventSink } from "../../base/events.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { AssignedDevice, GuestRam } from "../assigned.ts";
import {
  BUID,
  DDW_PAGES,
  type GuestWindow,
  Hcall,
  HcallStatus,
  LIST_BYTES,
  LIST_TCES,
  Rtas,
  RtasStatus,
  statusName,
} from "./spec.ts";
import { FunctionWindows, type WindowCalls } from "./windows.ts";

export interface HypervisorOptions {
  readonly name: string;
  readonly calls: WindowCalls;
  readonly ram: GuestRam;
  /** The guest's. */
  readonly memory: HostMemory;
  readonly devices: readonly AssignedDevice[];
  readonly events: EventSink;
  /** The window that each function has from the start, and where another one is. */
  readonly low: Omit<GuestWindow, "liobn">;
  readonly high: { readonly start: number; readonly length: number };
  /** Log2 of the smallest page that the host maps. */
  readonly pageLg2: number;
}

/** What a hypervisor call leaves in the first two registers. */
export interface HcallAnswer {
  readonly status: HcallStatus;
  readonly value: bigint;
}

/** LIOBN of a function's window: number 0 is there from the start. */
const liobnOf = (rid: number, number: number): number => 0x8000_0000 + rid * 0x100 + number;
const RID_SHIFT = 8;
const WORD = 2 ** 32;
const { H_SUCCESS, H_FUNCTION, H_PARAMETER } = HcallStatus;

export class TceHypervisor {
  readonly model = "tce";
  readonly #options: HypervisorOptions;
  readonly #functions = new Map<number, FunctionWindows>();

  /** Throws what the host refuses: EADDRINUSE, when it has not all addresses of a window. */
  constructor(options: HypervisorOptions) {
    this.#options = options;
    const { calls, ram, devices, low } = options;
    for (const device of devices) {
      const first = { ...low, liobn: liobnOf(device.rid, 0) };
      this.#functions.set(device.rid, new FunctionWindows(calls, ram, device, first));
    }
  }

  /** Mappings of the host. */
  get held(): number {
    return [...this.#functions.values()].reduce((sum, { mapped }) => sum + mapped, 0);
  }

  /** There are no registers. */
  mmioRead(): bigint {
    return 0n;
  }
  mmioWrite(): void {}

  /** What the device tree says of a function: its windows from the start. */
  windowsOf(rid: number): readonly GuestWindow[] {
    return this.#functions.get(rid)?.all.slice(0, 1) ?? [];
  }

  hypercall(number: number, liobn: bigint, ioba: bigint, third = 0n, count = 0n): HcallAnswer {
    const windows = [...this.#functions.values()].find((one) => one.has(Number(liobn)));
    const answer = (status: HcallStatus, value = 0n): HcallAnswer => {
      if (status !== H_SUCCESS)
        this.#tell(`hypervisor call 0x${number.toString(16)}`, statusName(status), windows);
      return { status, value };
    };
    if (!(Object.values(Hcall) as number[]).includes(number)) return answer(H_FUNCTION);
    if (!windows) return answer(H_PARAMETER);
    const at = Number(liobn);
    switch (number) {
      case Hcall.GET_TCE: {
        const tce = windows.get(at, ioba);
        return tce === undefined ? answer(H_PARAMETER) : answer(H_SUCCESS, tce);
      }
      case Hcall.PUT_TCE:
        return answer(windows.put(at, ioba, third));
      case Hcall.STUFF_TCE:
        return answer(windows.stuff(at, ioba, third, count));
      default:
        return answer(this.#indirect(windows, at, ioba, third, count));
    }
  }

  /** An RTAS call by its name; the first number that it answers is its status. */
  rtas(name: string, ...args: readonly number[]): readonly number[] {
    switch (name) {
      case Rtas.query:
        return this.#query(args);
      case Rtas.create:
        return this.#create(args);
      case Rtas.remove:
        return this.#remove(args[0] ?? 0);
      default:
        return [RtasStatus.parameter];
    }
  }

  /** TCEs from a list in guest memory, up to the first that cannot be put. */
  #indirect(windows: FunctionWindows, liobn: number, ioba: bigint, list: bigint, count: bigint): HcallStatus {
    const window = windows.all.find((one) => one.liobn === liobn)!;
    if (list % BigInt(LIST_BYTES) !== 0n || list >= BigInt(this.#options.ram.bytes)) return H_PARAMETER;
    if (count < 1n || count > BigInt(LIST_TCES)) return H_PARAMETER;
    const { memory } = this.#options;
    const size = 1n << BigInt(window.pageLg2);
    for (let index = 0; index < Number(count); index++) {
      if (!memory.load64be(Number(list) + 8 * index)) return H_PARAMETER;
      const tce = (BigInt(memory.hi >>> 0) << 32n) | BigInt(memory.lo >>> 0);
      const status = windows.put(liobn, ioba + BigInt(index) * size, tce);
      if (status !== H_SUCCESS) return status;
    }
    return H_SUCCESS;
  }

  /** "ibm,query-pe-dma-window": windows that may be made, TCEs of the largest, page sizes, whether it migrates. */
  #query(args: readonly number[]): readonly number[] {
    const windows = this.#functionOf(args);
    if (!windows) return [RtasStatus.parameter];
    const { high, pageLg2 } = this.#options;
    const free = windows.all.length === 1 ? 1 : 0;
    const pages = [...DDW_PAGES].filter(([lg2]) => lg2 >= pageLg2).reduce((mask, [, bit]) => mask | bit, 0);
    return [RtasStatus.success, free, high.length / 2 ** pageLg2, pages, 0];
  }

  /** "ibm,create-pe-dma-window": the number of the new window, and where it begins in two halves. */
  #create(args: readonly number[]): readonly number[] {
    const windows = this.#functionOf(args);
    const [configAddress = 0, , , pageShift = 0, windowShift = 0] = args;
    const { high, pageLg2 } = this.#options;
    const possible = DDW_PAGES.has(pageShift) && pageShift >= pageLg2;
    const fits = windowShift >= pageShift && 2 ** windowShift <= high.length;
    if (!windows || !possible || !fits) return [RtasStatus.parameter];
    if (windows.all.length > 1) return [RtasStatus.hardware];
    const liobn = liobnOf(configAddress >>> RID_SHIFT, 1);
    const made = { liobn, start: high.start, length: 2 ** windowShift, pageLg2: pageShift };
    const complaint = "the host has not these addresses";
    if (!this.#hostDoes(Rtas.create, complaint, windows, () => windows.add(made)))
      return [RtasStatus.hardware];
    return [RtasStatus.success, liobn, Math.floor(made.start / WORD), made.start % WORD];
  }

  /** "ibm,remove-pe-dma-window": only what was made can be removed. */
  #remove(liobn: number): readonly number[] {
    const windows = [...this.#functions.values()].find((one) => one.has(liobn));
    if (!windows || windows.all[0]!.liobn === liobn) return [RtasStatus.parameter];
    const complaint = "the host does not take everything back";
    const done = this.#hostDoes(Rtas.remove, complaint, windows, () => windows.remove(liobn));
    return [done ? RtasStatus.success : RtasStatus.hardware];
  }

  /** Whether the host did it; if not, why is told. */
  #hostDoes(what: string, complaint: string, windows: FunctionWindows, work: () => void): boolean {
    try {
      work();
      return true;
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      windows.refusal = error;
      this.#tell(what, complaint, windows);
      return false;
    }
  }

  #functionOf([configAddress = 0, high, low]: readonly number[]): FunctionWindows | undefined {
    if (high !== BUID.high || low !== BUID.low) return undefined;
    return this.#functions.get(configAddress >>> RID_SHIFT);
  }

  #tell(what: string, status: string, windows: FunctionWindows | undefined): void {
    const { events, name } = this.#options;
    const reason = windows?.refusal ? `${status}: ${windows.refusal.message}` : status;
    if (events.on) events.emit("device", { device: name, what, reason });
  }
}
