/** A host bridge's registers as its driver uses them: tables on the chip, caches, and what the PE state table says. */

import { TceFault } from "../../hardware/tce/faults.ts";
import {
  IodaAddr,
  PEEV_ROW,
  PES,
  PEST_BYTES,
  Pest0,
  Pest1,
  PestBar,
  Phb4Config,
  REQUESTERS,
  Register,
  RTE_BYTES,
  RtcInvalidate,
  RttBar,
  Table,
  TceKill,
  TransactionType,
  WINDOWS,
} from "../../hardware/tce/spec.ts";
import type { Message } from "../../kernel/msi.ts";
import { FRAME_BYTES, type HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { RegisterAccess, type RegisterFile } from "../register-file.ts";

/** A fault as the driver read it from the PE state table. */
export interface ReportedFault {
  readonly rid: number;
  readonly pe: number;
  readonly address: bigint;
  readonly write: boolean;
  readonly code: number;
}

const RTT_FRAMES = (REQUESTERS * RTE_BYTES) / FRAME_BYTES;
const PEST_FRAMES = (PES * PEST_BYTES) / FRAME_BYTES;
/** More pages than this are flushed as the whole PE. */
const PAGEWISE_LIMIT = 32;
const WORD = 2 ** 32;

/** The PE of requesters that have none of their own: it has no windows. */
export const RESERVED_PE = PES - 1;

export class Bridge extends RegisterAccess {
  readonly #memory: HostMemory;
  readonly #rtt: number;
  readonly #pest: number;

  /** Brings the bridge up: every requester is in the reserved PE, no PE has a window. Throws ENOMEM. */
  constructor(file: RegisterFile, name: string, memory: HostMemory, message: Message) {
    super(file, name);
    this.#memory = memory;
    this.#rtt = allocate(memory, RTT_FRAMES, "requesters", name);
    try {
      this.#pest = allocate(memory, PEST_FRAMES, "PE states", name);
    } catch (error) {
      memory.free(this.#rtt, RTT_FRAMES);
      throw error;
    }
    const pair = ((RESERVED_PE << 16) | RESERVED_PE) >>> 0;
    for (let at = 0; at < REQUESTERS * RTE_BYTES; at += 8) memory.store64be(this.#rtt + at, pair, pair);
    for (let pe = 0; pe < PES; pe++) this.setWindows(pe, []);
    this.write64(Register.PEST_BAR, PestBar.make({ ENABLE: true, BASE: this.#pest }));
    this.write64(Register.INT_NOTIFY_ADDR, message.address);
    this.write64(Register.INT_NOTIFY_INDEX, BigInt(message.data));
    this.write64(Register.PHB4_CONFIG, Phb4Config.make({ MSI64_EN: true }));
    this.write64(Register.RTT_BAR, RttBar.make({ ENABLE: true, BASE: this.#rtt }));
    this.write64(Register.RTC_INVALIDATE, RtcInvalidate.make({ ALL: true }));
    this.write64(Register.TCE_KILL, TceKill.make({ ALL: true }));
  }

  /** The requester belongs to the PE from now on. */
  setPe(rid: number, pe: number): void {
    const bytes = new Uint8Array([pe >>> 8, pe & 0xff]);
    this.#memory.writeBytes(this.#rtt + rid * RTE_BYTES, bytes);
    this.write64(Register.RTC_INVALIDATE, RtcInvalidate.make({ RID: rid }));
  }

  /** Gives a PE these windows; those that are missing are void. What was remembered of the old ones is forgotten. */
  setWindows(pe: number, tves: readonly bigint[]): void {
    for (let window = 0; window < WINDOWS; window++)
      this.#writeChip(Table.TVT, pe * WINDOWS + window, tves[window] ?? 0n);
    this.killPe(pe);
  }

  killPe(pe: number): void {
    this.write64(Register.TCE_KILL, TceKill.make({ PE: true, PENUM: pe }));
  }

  /** The PE forgets pages of [iova, iova + length). */
  kill(pe: number, iova: number, length: number, pageLg2: number): void {
    const page = 2 ** pageLg2;
    if (length / page > PAGEWISE_LIMIT) {
      this.killPe(pe);
      return;
    }
    for (let at = iova; at < iova + length; at += page)
      this.write64(Register.TCE_KILL, TceKill.make({ ONE: true, PENUM: pe, ADDR: BigInt(at) }));
  }

  /** Takes the errors of all PEs and clears them. */
  *takeErrors(): Generator<ReportedFault> {
    for (let row = 0; row < PES / PEEV_ROW; row++) {
      const failed = this.#readChip(Table.PEEV, row);
      for (let bit = 0; bit < PEEV_ROW && failed !== 0n; bit++) {
        if (((failed >> BigInt(PEEV_ROW - 1 - bit)) & 1n) === 0n) continue;
        const pe = row * PEEV_ROW + bit;
        const fault = this.#readState(pe);
        this.#writeChip(Table.PESTB, pe, 0n);
        yield fault;
      }
    }
  }

  /** Off: addresses pass. */
  close(): void {
    this.write64(Register.RTT_BAR, 0n);
    this.write64(Register.PEST_BAR, 0n);
    this.write64(Register.INT_NOTIFY_ADDR, 0n);
    this.#memory.free(this.#rtt, RTT_FRAMES);
    this.#memory.free(this.#pest, PEST_FRAMES);
  }

  #readState(pe: number): ReportedFault {
    const { TTYPE, PARITY_UE, IODA_ERROR, TCE_PAGE_FAULT, RID } = Pest0.fields;
    const at = this.#pest + pe * PEST_BYTES;
    const first = this.#load(at);
    const code = PARITY_UE.of(first)
      ? TceFault.memory
      : IODA_ERROR.of(first)
        ? TceFault.ioda
        : TCE_PAGE_FAULT.of(first)
          ? TceFault.pageFault
          : TceFault.accessFault;
    return {
      rid: Number(RID.of(first)),
      pe,
      address: Pest1.fields.FAIL_ADDR.of(this.#load(at + 8)),
      write: Number(TTYPE.of(first)) === TransactionType.write,
      code,
    };
  }

  #load(pa: number): bigint {
    this.#memory.load64be(pa);
    return BigInt(this.#memory.hi >>> 0) * BigInt(WORD) + BigInt(this.#memory.lo >>> 0);
  }

  #readChip(table: number, entry: number): bigint {
    this.write64(Register.IODA_ADDR, IodaAddr.make({ TSEL: table, TADR: entry }));
    return this.read64(Register.IODA_DATA0);
  }
  #writeChip(table: number, entry: number, value: bigint): void {
    this.write64(Register.IODA_ADDR, IodaAddr.make({ TSEL: table, TADR: entry }));
    this.write64(Register.IODA_DATA0, value);
  }
}

const allocate = (memory: HostMemory, frames: number, what: string, unit: string): number => {
  const pa = memory.allocate(frames);
  if (pa < 0) throw new LinuxError("ENOMEM", `host memory has no ${frames} free frames for ${what}`, unit);
  return pa;
};
