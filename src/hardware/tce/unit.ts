/**
 * The I/O translation of a POWER host bridge as silicon: a requester belongs to a partitionable endpoint (PE), a PE has
 * two windows that address bit 59 chooses between, a window has TCE tables or is memory itself. Requesters and TCEs are
 * remembered until software says to forget them; windows are on the chip, and change at once.
 *
 * An error is told by the PE's entry in the PE state table and its bit in PEEV, once until software has cleared it (by
 * writing the PE's PESTB), and by a write to INT_NOTIFY_ADDR. Left out is what `spec.ts` leaves out; PASIDs, translation
 * requests and page requests, which these bridges have not.
 */
import type { Random } from "../../base/clock.ts";
import type { EventSink } from "../../base/events.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import type { ExplainStep } from "../../pagetable/step.ts";
import { WalkResult } from "../../pagetable/walker.ts";
import { type CachePolicy, requireRandom } from "../cache-policy.ts";
import { type Iotlb, unitIotlb } from "../iotlb.ts";
import { tellFault, tellingMessages, walkedTo } from "../telling.ts";
import { type IommuUnit, type Transaction, TranslateStatus, type UnitContext } from "../unit.ts";
import { ChipTables } from "./chip-tables.ts";
import { Errors } from "./errors.ts";
import { explainRequest } from "./explain.ts";
import { describeFault, TceFault, walkCodes } from "./faults.ts";
import { merge, part, RegisterFile, registerName, takes } from "./registers.ts";
import { Requesters } from "./requesters.ts";
import {
  PES,
  Phb4Config,
  REGISTER_BYTES,
  Register,
  RtcInvalidate,
  RttBar,
  Space,
  TceKill,
  WINDOWS,
} from "./spec.ts";
import { needOf, type TceWindow } from "./translate.ts";

export type { CachePolicy } from "../cache-policy.ts";

export interface TceOptions extends UnitContext {
  readonly name: string;
  readonly memory: HostMemory;
  /** Log2 of the page sizes it has, 12 among them, up to 30. Default 4K, 64K, 2M, 16M, 256M and 1G. */
  readonly pageLg2s?: readonly number[];
  /** Where messages of functions end: the interrupt controller. */
  readonly messages?: { readonly start: number; readonly length: number };
  readonly cache?: CachePolicy;
  /** Must be given for `paranoid`. */
  readonly random?: Random;
  /** IOTLB entries, a power of two; default 4096. */
  readonly iotlbEntries?: number;
}

export const TCE_PAGE_LG2S: readonly number[] = [12, 16, 21, 24, 28, 30];

const WORD = 0x1_0000_0000;
const SPACE_SHIFT = 28;
const WINDOW_SHIFT = 27;
const OFFSET_HI = 0x07ff_ffff;
/** How a paranoid cache behaves: one in so many times. */
const WHIM = 4;

/** `needOf` by the `Access` bits of a transaction. */
const needs = Uint8Array.from({ length: 32 }, (_, access) => needOf(access));

export class TceUnit implements IommuUnit {
  readonly name: string;
  readonly registerBytes = REGISTER_BYTES;
  readonly pageLg2s: readonly number[];
  readonly messages: { readonly start: number; readonly length: number };
  readonly requesters: Requesters;
  readonly chip: ChipTables;
  readonly iotlb: Iotlb;
  /** Nothing stalls. */
  onResume: (token: number, ok: boolean) => void = () => {};
  readonly #memory: HostMemory;
  readonly #events: EventSink;
  readonly #registers = new RegisterFile();
  readonly #errors: Errors;
  readonly #policy: CachePolicy;
  readonly #random: Random | undefined;
  readonly #found = new WalkResult();
  /** RTT_BAR.ENABLE, and PHB4_CONFIG.MSI64_EN. */
  #enabled = false;
  #takesMessages = false;

  constructor(options: TceOptions) {
    const { name, memory, events, interrupt, cache = "normal", random, iotlbEntries = 4096 } = options;
    requireRandom(name, cache, random);
    const send = tellingMessages(name, { events, interrupt });
    this.name = name;
    this.pageLg2s = options.pageLg2s ?? TCE_PAGE_LG2S;
    this.messages = options.messages ?? { start: 0, length: 0 };
    this.#memory = memory;
    this.#events = events;
    this.#policy = cache;
    this.#random = random;
    this.requesters = new Requesters(memory);
    this.chip = new ChipTables(this.pageLg2s);
    this.iotlb = unitIotlb({ contexts: PES * WINDOWS, capacity: iotlbEntries });
    this.#errors = new Errors(this.#registers, memory, this.chip, send);
  }

  get enabled(): boolean {
    return this.#enabled;
  }
  get takesMessages(): boolean {
    return this.#takesMessages;
  }

  reset(): void {
    this.#registers.reset();
    this.chip.reset();
    this.requesters.forget();
    this.iotlb.invalidateAll();
    this.#refresh();
  }

  // Registers

  mmioRead(offset: number, width: 4 | 8): bigint {
    if (!takes(offset, width)) return 0n;
    const register = offset - (offset % 8);
    const value =
      register === Register.IODA_DATA0
        ? this.chip.read(this.#registers.get(Register.IODA_ADDR))
        : this.#registers.get(register);
    return part(value, offset, width);
  }

  mmioWrite(offset: number, width: 4 | 8, value: bigint): void {
    if (!takes(offset, width)) return;
    const register = offset - (offset % 8);
    if (this.#events.on) {
      const told = { unit: this.name, register: registerName(offset), offset, width, value };
      this.#events.emit("register", told);
    }
    if (register === Register.IODA_DATA0) {
      const selected = this.#registers.get(Register.IODA_ADDR);
      this.chip.write(selected, merge(this.chip.read(selected), offset, width, value));
      return;
    }
    const command = this.#registers.write(offset, width, value);
    if (command === undefined) this.#refresh();
    else if (register === Register.TCE_KILL) this.#kill(command);
    else this.#forgetRequesters(command);
  }

  /** What translation depends on follows the registers. */
  #refresh(): void {
    const rtt = this.#registers.get(Register.RTT_BAR);
    this.#enabled = RttBar.fields.ENABLE.of(rtt) === 1n;
    this.requesters.table = Number(RttBar.fields.BASE.of(rtt));
    this.#takesMessages = Phb4Config.fields.MSI64_EN.of(this.#registers.get(Register.PHB4_CONFIG)) === 1n;
  }

  #forgetRequesters(command: bigint): void {
    const { ALL, RID } = RtcInvalidate.fields;
    this.requesters.forget(ALL.of(command) ? undefined : Number(RID.of(command)));
  }

  #kill(command: bigint): void {
    const { ALL, PE, ONE, ADDR, PENUM } = TceKill.fields;
    const first = Number(PENUM.of(command)) * WINDOWS;
    if (ALL.of(command)) this.iotlb.invalidateAll();
    else if (PE.of(command))
      for (let window = first; window < first + WINDOWS; window++) this.iotlb.invalidateContext(window);
    else if (ONE.of(command)) this.#killOne(first, ADDR.of(command));
    if (this.#events.on) this.#events.emit("command", { unit: this.name, command: TceKill.print(command) });
  }

  /** The page of the window as it is now; where there is none, all that is remembered of the window. */
  #killOne(first: number, address: bigint): void {
    const [lo, hi] = [Number(address & 0xffff_ffffn), Number(address >> 32n)];
    const context = first + ((hi >>> WINDOW_SHIFT) & 1);
    const window = this.chip.window(context);
    if (typeof window === "string" || window.kind === "real") this.iotlb.invalidateContext(context);
    else this.iotlb.invalidateRange(context, lo, hi, window.pageLg2);
  }

  // Translation

  translate(transaction: Transaction): TranslateStatus {
    const { lo, hi, access } = transaction;
    if (!this.#enabled) return answer(transaction, hi, lo, Number.MAX_SAFE_INTEGER);
    if (this.#policy === "paranoid") this.#forgetAtRandom();
    const remembers = this.#remembers();
    const pe = this.requesters.pe(transaction.rid, remembers);
    if (pe < 0) return this.#refuse(transaction, pe, this.requesters.fault);
    // No PE has PASIDs, or translated addresses; bits 63:60 tell messages, and else are zero.
    if (transaction.pasid >= 0 || transaction.translated) return this.#refuse(transaction, pe, TceFault.ioda);
    if (hi >>> SPACE_SHIFT !== Space.dma) return this.#message(transaction, pe);
    const context = pe * WINDOWS + ((hi >>> WINDOW_SHIFT) & 1);
    const need = needs[access & 31]!;
    const entry = this.iotlb.lookup(context, lo, hi);
    if (entry >= 0 && (need & this.iotlb.denied(entry)) === 0) {
      const size = 2 ** this.iotlb.lg2(entry);
      const offset = lo & (size - 1);
      transaction.pa = this.iotlb.page(entry) + offset;
      transaction.span = size - offset;
      return TranslateStatus.ok;
    }
    const window = this.chip.window(context);
    if (typeof window === "string") return this.#refuse(transaction, pe, TceFault.ioda);
    if (window.kind === "tce") return this.#walk(transaction, window, pe, context, need, remembers);
    const address = (hi & OFFSET_HI) * WORD + (lo >>> 0);
    if (address < window.start || address >= window.end) return this.#refuse(transaction, pe, TceFault.ioda);
    transaction.pa = address;
    transaction.span = window.end - address;
    return TranslateStatus.ok;
  }

  #walk(
    transaction: Transaction,
    { walk, root }: TceWindow,
    pe: number,
    context: number,
    need: number,
    remembers: boolean,
  ): TranslateStatus {
    const { lo, hi } = transaction;
    const found = this.#found;
    const fault = walk(this.#memory, root, lo, hi & OFFSET_HI, need, found);
    if (fault !== 0) return this.#refuse(transaction, pe, walkCodes[fault]!);
    const { pa, lg2, span, allowed } = found;
    transaction.pa = pa;
    transaction.span = span;
    const paHi = Math.floor(pa / WORD);
    if (remembers) this.iotlb.enter(context, lo, hi, lg2, pa - paHi * WORD, paHi, EVERYTHING & ~allowed);
    return TranslateStatus.ok;
  }

  /** An address of the space of messages: writes go to the interrupt controller. */
  #message(transaction: Transaction, pe: number): TranslateStatus {
    const { lo, hi, access } = transaction;
    const { start, length } = this.messages;
    const inside = hi === MESSAGES_HI && lo >>> 0 < length;
    if (!this.#takesMessages || !inside || needs[access & 31] !== WRITE)
      return this.#refuse(transaction, pe, TceFault.ioda);
    transaction.pa = start + (lo >>> 0);
    transaction.span = length - (lo >>> 0);
    return TranslateStatus.ok;
  }

  #remembers(): boolean {
    return this.#policy === "normal" || (this.#policy === "paranoid" && this.#random!.below(WHIM) > 0);
  }

  #forgetAtRandom(): void {
    if (this.#random!.below(WHIM) === 0) this.iotlb.invalidateAll();
    if (this.#random!.below(WHIM) === 0) this.requesters.forget();
  }

  explain(transaction: Transaction): Iterable<ExplainStep> {
    return explainRequest(this, this.#memory, transaction);
  }

  #refuse(transaction: Transaction, pe: number, code: number): TranslateStatus {
    transaction.fault = code;
    const recorded = pe >= 0 && this.#errors.record(pe, transaction, code);
    const events = this.#events;
    if (!events.on) return TranslateStatus.fault;
    const where = walkedTo(this.explain(transaction));
    tellFault(events, this.name, transaction, { code, reason: describeFault(code), recorded, ...where });
    return TranslateStatus.fault;
  }
}

const WRITE = needOf(2);
const EVERYTHING = needOf(3);
/** Upper word of message addresses. */
export const MESSAGES_HI = Space.messages << SPACE_SHIFT;

/** The address is that of memory. */
const answer = (transaction: Transaction, hi: number, lo: number, span: number): TranslateStatus => {
  transaction.pa = (hi >>> 0) * WORD + (lo >>> 0);
  transaction.span = span;
  return TranslateStatus.ok;
};
