/**
 * PCI translation of an s390 machine as silicon: instructions, the parameters of functions, IOTLB, events (`spec.ts`). Software
 * reaches it by its instructions alone; it reads what was written to memory, and remembers pages until it is told to
 * refresh them.
 *
 * Left out: enabling functions and what their groups tell (every function is enabled); the error state that stops a
 * function after an error until it is reset; measurement; adapter interruptions (messages of functions pass, and the
 * unit's own events are a message too); translation services and PASIDs, which s390 does not have.
 */
import type { Random } from "../../base/clock.ts";
import type { EventSink } from "../../base/events.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import type { ExplainStep } from "../../pagetable/step.ts";
import { type CachePolicy, requireRandom } from "../cache-policy.ts";
import { RegisterPort } from "../register-port.ts";
import {
  fixedRegister,
  type RegisterWord,
  RegisterWords,
  registerNames,
  wideRegister,
} from "../register-words.ts";
import { addressOf, tellFault, tellingMessages, walkedTo } from "../telling.ts";
import {
  Access,
  type IommuUnit,
  type SendMessage,
  type Transaction,
  type TranslateStatus,
  type UnitContext,
} from "../unit.ts";
import { explainRequest } from "./explain.ts";
import { describeFault } from "./faults.ts";
import { type FunctionHost, Instructions } from "./instructions.ts";
import { decodeFib, encodeFib, type Parameters } from "./parameters.ts";
import {
  CapabilityRegister,
  Control,
  ErrorEvent,
  EVENTS,
  EventControl,
  HANDLE_ENABLED,
  REGISTER_BYTES,
  Register,
} from "./spec.ts";
import { Transactions } from "./transactions.ts";

export type { CachePolicy } from "../cache-policy.ts";
export type { FunctionHost } from "./instructions.ts";

export interface ZpciOptions extends UnitContext {
  readonly name: string;
  readonly memory: HostMemory;
  /** Where functions write messages; 1 MiB from there on is not translated. */
  readonly msiAddress: number;
  /** CAPABILITIES.REFRESH: entries that become valid must be refreshed. Default false. */
  readonly refreshes?: boolean;
  /** `none`: nothing is remembered. `paranoid`: at random, pages are forgotten and not remembered. Default `normal`. */
  readonly cache?: CachePolicy;
  /** Must be given for `paranoid`. */
  readonly random?: Random;
  /** IOTLB entries, a power of two; default 4096. */
  readonly iotlbEntries?: number;
  /** For a unit that is not silicon: who makes its instructions true. */
  readonly host?: FunctionHost;
}

const ALL = 2n ** 64n - 1n;

const registersOf = (capabilities: bigint, msiAddress: number): RegisterWord[] => [
  ...fixedRegister(Register.CAPABILITIES, capabilities),
  ...fixedRegister(Register.MSI_ADDRESS, BigInt(msiAddress)),
  { offset: Register.CONTROL, writable: Control.REQUIRED },
  { offset: Register.HANDLE, writable: 0xffff_ffff },
  ...wideRegister(Register.OPERAND1, ALL),
  ...wideRegister(Register.OPERAND2, ALL),
  ...wideRegister(Register.EVENT_ADDRESS, ALL),
  { offset: Register.EVENT_DATA, writable: 0xffff_ffff },
  { offset: Register.EVENT_CONTROL, writable: EventControl.ENABLE },
];
const registerName = registerNames(Register);

export class ZpciUnit implements IommuUnit {
  readonly name: string;
  readonly registerBytes = REGISTER_BYTES;
  onResume: (token: number, ok: boolean) => void = () => {};
  readonly #memory: HostMemory;
  readonly #events: EventSink;
  readonly #send: SendMessage;
  readonly #registers: RegisterWords;
  readonly #port: RegisterPort;
  readonly #transactions: Transactions;
  readonly #instructions: Instructions;
  /** Errors that software has not stored yet. */
  readonly #errors: Uint8Array[] = [];
  #lost = false;

  constructor(options: ZpciOptions) {
    const {
      name,
      memory,
      events,
      interrupt,
      msiAddress,
      cache = "normal",
      random,
      refreshes = false,
    } = options;
    requireRandom(name, cache, random);
    this.name = name;
    this.#memory = memory;
    this.#events = events;
    this.#send = tellingMessages(name, { events, interrupt });
    this.#registers = new RegisterWords(
      REGISTER_BYTES,
      registersOf(CapabilityRegister.make({ REFRESH: refreshes }), msiAddress),
    );
    this.#port = new RegisterPort({
      ...{ unit: name, events, registers: this.#registers },
      nameOf: registerName,
      write: (offset, value) => this.#write(offset, value),
    });
    this.#transactions = new Transactions({
      ...{ memory, msiAddress, random },
      policy: cache,
      iotlbEntries: options.iotlbEntries ?? 4096,
      refuse: (transaction) => this.#refuse(transaction),
    });
    const transactions = this.#transactions;
    this.#instructions = new Instructions({
      ...{ name, memory, events },
      host: options.host,
      target: {
        parametersOf: (rid) => this.parametersOf(rid),
        register: (rid, parameters) => transactions.register(rid, parameters),
        refresh: (rid, start, end) => transactions.refresh(rid, start, end),
        takeEvent: () => this.#takeEvent(),
      },
    });
  }

  reset(): void {
    this.#registers.reset();
    this.#transactions.forget();
    this.#transactions.required = false;
    this.#errors.length = 0;
    this.#lost = false;
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
    registers.store(offset, value);
    if (offset === Register.CONTROL)
      this.#transactions.required = (registers.get(Register.CONTROL) & Control.REQUIRED) !== 0;
    if (offset !== Register.INSTRUCTION) return;
    const { condition, status } = this.#instructions.run(value, {
      handle: registers.get(Register.HANDLE),
      first: registers.read(Register.OPERAND1, 8),
      second: registers.read(Register.OPERAND2, 8),
    });
    registers.set(Register.CONDITION, condition);
    registers.set(Register.STATUS, status);
  }

  // Errors

  #takeEvent(): Uint8Array | undefined {
    const event = this.#errors.shift();
    this.#registers.set(Register.PENDING, this.#errors.length);
    return event;
  }

  #refuse(transaction: Transaction): void {
    const recorded = this.#report(transaction);
    const events = this.#events;
    if (!events.on) return;
    const { fault: code } = transaction;
    const where = walkedTo(this.explain(transaction));
    tellFault(events, this.name, transaction, { code, reason: describeFault(code), recorded, ...where });
  }

  /** Keeps the error for software, and interrupts it; false: there were too many. */
  #report(transaction: Transaction): boolean {
    const fits = this.#errors.length < EVENTS;
    if (fits) this.#errors.push(this.#errorOf(transaction));
    this.#lost = !fits;
    const registers = this.#registers;
    registers.set(Register.PENDING, this.#errors.length);
    if ((registers.get(Register.EVENT_CONTROL) & EventControl.ENABLE) !== 0)
      this.#send(registers.read(Register.EVENT_ADDRESS, 8), registers.get(Register.EVENT_DATA));
    return fits;
  }

  #errorOf({ rid, access, lo, hi, fault }: Transaction): Uint8Array {
    const bytes = new Uint8Array(ErrorEvent.bytes);
    const event = ErrorEvent.make({
      FH: (HANDLE_ENABLED | rid) >>> 0,
      LOST: this.#lost,
      W: (access & (Access.write | Access.atomic)) !== 0,
      PEC: fault,
      FADDR: addressOf(lo, hi),
    });
    ErrorEvent.write(bytes, event);
    return bytes;
  }

  /** What is registered for a function; undefined: nothing. */
  parametersOf(rid: number): Parameters | undefined {
    return this.#transactions.functions.slot(rid)?.parameters;
  }

  // Saved states

  /** The information blocks that are registered, by requester id. */
  *blocks(): Generator<readonly [rid: number, fib: bigint]> {
    for (const [rid, { parameters }] of this.#transactions.functions.all())
      if (parameters) yield [rid, encodeFib(parameters)];
  }

  /** Registers a block, whatever was registered. One that is not valid is not. */
  restoreBlock(rid: number, fib: bigint): void {
    const parameters = decodeFib(fib);
    if (typeof parameters !== "string") this.#transactions.register(rid, parameters);
  }

  // Translation

  translate(transaction: Transaction): TranslateStatus {
    return this.#transactions.translate(transaction);
  }

  explain(transaction: Transaction): Iterable<ExplainStep> {
    return explainRequest(this.#transactions, this.#memory, transaction);
  }
}
