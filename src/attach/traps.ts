/**
 * Serves an access to device memory: takes the registers and the instruction of the thread that faulted, performs
 * the instruction on the emulated file, and sends the registers back. Vector registers are read from the signal frame
 * of the program, and written there, when the instruction names one. What cannot be performed becomes the signal the
 * program would get on a real machine, and an event that says why.
 */
import type { EventSink } from "../base/events.ts";
import type { UserMemory } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { Connection, OpHandler, OpHandlers, Reply } from "./connection.ts";
import { CpuState, GREG_RIP, GREG_WORDS, MemoryFault, type VectorState } from "./emulate/cpu.ts";
import { MAX_INSTRUCTION } from "./emulate/decode.ts";
import { emulate, type Outcome } from "./emulate/emulate.ts";
import { XsaveArea, type XsaveLayout, xsaveSize } from "./emulate/xsave.ts";
import { BusError, TrapBus, type TrapTable, TrapWindow, windowAt } from "./trap-bus.ts";

/** shim/trap.h: OP_TRAP. */
export const OP_TRAP = 200;
export const TrapOutcome = { done: 0, refused: 1, busError: 2 } as const;

const GREGS_SIZE = GREG_WORDS * 8;

/** Layout of struct trap_body in shim/trap.h. */
export const TrapBody = {
  gregs: 0,
  fs_base: GREGS_SIZE,
  gs_base: GREGS_SIZE + 8,
  fpstate: GREGS_SIZE + 16,
  window: GREGS_SIZE + 24,
  table: GREGS_SIZE + 24 + TrapWindow.size,
  windows: GREGS_SIZE + 32 + TrapWindow.size,
  opmask_offset: GREGS_SIZE + 36 + TrapWindow.size,
  zmm_high_offset: GREGS_SIZE + 40 + TrapWindow.size,
  high_zmm_offset: GREGS_SIZE + 44 + TrapWindow.size,
  code_length: GREGS_SIZE + 48 + TrapWindow.size,
  code: GREGS_SIZE + 52 + TrapWindow.size,
  size: GREGS_SIZE + 72 + TrapWindow.size,
} as const;

/** Layout of struct trap_reply in shim/trap.h. */
export const TrapReply = { gregs: 0, refused_at: GREGS_SIZE, size: GREGS_SIZE + 8 } as const;

/** No XSAVE component lies further back than this on any CPU: what a client may claim. */
const MAX_XSAVE_OFFSET = 16_384;

/** The vector registers in the program's signal frame, fetched at the first use. */
class FrameVectors implements VectorState {
  private readonly memory: UserMemory;
  private readonly request: DataView;
  private area: XsaveArea | undefined;

  constructor(memory: UserMemory, request: DataView) {
    this.memory = memory;
    this.request = request;
  }

  read(index: number, into: Uint8Array): void {
    this.fetch().read(index, into);
  }
  write(index: number, data: Uint8Array, zeroRest: boolean): void {
    this.fetch().write(index, data, zeroRest);
  }
  readMask(index: number): bigint {
    return this.fetch().readMask(index);
  }
  writeMask(index: number, value: bigint): void {
    this.fetch().writeMask(index, value);
  }

  /** Stores what the instruction changed. */
  flush(): void {
    if (this.area?.dirty) this.memory.write(this.address, this.area.bytes);
  }

  private get address(): bigint {
    return this.request.getBigUint64(TrapBody.fpstate, true);
  }

  private fetch(): XsaveArea {
    if (this.area !== undefined) return this.area;
    const layout = layoutOf(this.request);
    const bytes = new Uint8Array(xsaveSize(layout));
    try {
      this.memory.read(this.address, bytes);
    } catch (error) {
      if (error instanceof LinuxError) throw new MemoryFault(this.address, false);
      throw error;
    }
    this.area = new XsaveArea(bytes, layout);
    return this.area;
  }
}

/** Between traps. */
const noVectors: VectorState = {
  read: (_index, into) => into.fill(0),
  write: () => {},
  readMask: () => 0n,
  writeMask: () => {},
};

function layoutOf(view: DataView): XsaveLayout {
  const offset = (field: number): number => {
    const value = view.getUint32(field, true);
    return value >= 832 && value <= MAX_XSAVE_OFFSET ? value : 0;
  };
  return {
    opmask: offset(TrapBody.opmask_offset),
    zmmHigh: offset(TrapBody.zmm_high_offset),
    highZmm: offset(TrapBody.high_zmm_offset),
  };
}

type Served = Outcome | { readonly kind: "bus-error"; readonly reason: string; readonly address: bigint };

/** Serves one trap at a time; its registers and its reply are used again for the next. */
class Traps {
  private readonly events: EventSink;
  private readonly cpu = new CpuState(noVectors);
  private readonly reply = new Uint8Array(TrapReply.size);
  private readonly replyView = new DataView(this.reply.buffer);

  constructor(events: EventSink) {
    this.events = events;
  }

  serve(connection: Connection, body: Uint8Array): Reply {
    if (body.length !== TrapBody.size) {
      throw new LinuxError(
        "EPROTO",
        `a trap request has ${TrapBody.size} bytes of body, this one ${body.length}`,
      );
    }
    const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
    const outcome = this.perform(connection, body, view);
    if (outcome.kind === "done") {
      this.reply.set(this.cpu.bytes, TrapReply.gregs);
      return { value: TrapOutcome.done, body: this.reply };
    }
    this.replyView.setBigUint64(TrapReply.refused_at, outcome.address ?? 0n, true);
    if (this.events.on) this.explain(connection, view, outcome.reason);
    return {
      value: outcome.kind === "refused" ? TrapOutcome.refused : TrapOutcome.busError,
      body: this.reply,
    };
  }

  private perform(connection: Connection, body: Uint8Array, view: DataView): Served {
    const { memory } = connection.task;
    const { cpu } = this;
    const vectors = new FrameVectors(memory, view);
    cpu.vectors = vectors;
    cpu.bytes.set(body.subarray(TrapBody.gregs, TrapBody.gregs + GREGS_SIZE));
    cpu.fsBase = view.getBigUint64(TrapBody.fs_base, true);
    cpu.gsBase = view.getBigUint64(TrapBody.gs_base, true);
    const bus = new TrapBus(memory, windowAt(view, TrapBody.window), tableOf(view), (window) =>
      connection.file(window.cookie, window.fd),
    );
    const length = Math.min(view.getUint32(TrapBody.code_length, true), MAX_INSTRUCTION);
    try {
      const outcome = emulate(cpu, body.subarray(TrapBody.code, TrapBody.code + length), bus);
      if (outcome.kind === "done") vectors.flush();
      return outcome;
    } catch (error) {
      if (!(error instanceof BusError)) throw error;
      return { kind: "bus-error", reason: error.message, address: error.address };
    }
  }

  private explain(connection: Connection, view: DataView, reason: string): void {
    this.events.emit("device", {
      what: "access refused",
      pid: connection.process.pid,
      tid: connection.tid,
      rip: view.getBigUint64(TrapBody.gregs + GREG_RIP * 8, true),
      reason,
    });
  }
}

function tableOf(view: DataView): TrapTable {
  return { address: view.getBigUint64(TrapBody.table, true), slots: view.getUint32(TrapBody.windows, true) };
}

/** The operations of shim/trap.c. `events` learns of every access that was refused, and why. */
export function trapHandlers(events: EventSink): OpHandlers {
  const traps = new Traps(events);
  return new Map<number, OpHandler>([[OP_TRAP, (connection, body) => traps.serve(connection, body)]]);
}
