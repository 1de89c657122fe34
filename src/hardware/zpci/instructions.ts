/**
 * The instructions that software gives a zPCI unit (`spec.ts`): what they change, and the condition code and status they
 * end with. What stands behind a unit that is not silicon is asked to follow, and may refuse.
 */
import type { EventSink } from "../../base/events.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { decodeFib, encodeFib, type Parameters } from "./parameters.ts";
import { Condition, Fib, FunctionControl, HANDLE_ENABLED, Instruction, Status } from "./spec.ts";

/** Who else answers for what instructions ask: whatever stands behind a unit that is not silicon (a guest's). */
export interface FunctionHost {
  /** The function has these parameters now, or none. False: whoever is behind cannot follow. */
  register(rid: number, parameters: Parameters | undefined): boolean;
  /** Entries of [start, end) have changed. False: not all could be taken; what could not is not valid. */
  refresh(rid: number, start: number, end: number): boolean;
}

/** What instructions act on. */
export interface InstructionTarget {
  parametersOf(rid: number): Parameters | undefined;
  register(rid: number, parameters: Parameters | undefined): void;
  refresh(rid: number, start: number, end: number): void;
  /** The next event, if there is one. */
  takeEvent(): Uint8Array | undefined;
}

export interface Outcome {
  readonly condition: number;
  readonly status: number;
}

const done: Outcome = { condition: Condition.done, status: Status.none };
const failed = (status: number): Outcome => ({ condition: Condition.error, status });
const invalidHandle: Outcome = { condition: Condition.invalidHandle, status: Status.none };

const PAGE = 4096n;
const RID = 0xffff;

export interface InstructionsOptions {
  readonly name: string;
  readonly memory: HostMemory;
  readonly events: EventSink;
  readonly target: InstructionTarget;
  readonly host: FunctionHost | undefined;
}

/** The operands of an instruction. */
export interface Operands {
  readonly handle: number;
  readonly first: bigint;
  readonly second: bigint;
}

export class Instructions {
  readonly #options: InstructionsOptions;

  constructor(options: InstructionsOptions) {
    this.#options = options;
  }

  run(instruction: number, operands: Operands): Outcome {
    if (instruction === Instruction.SEI) return this.#storeEvent(operands);
    const { handle } = operands;
    const rid = handle & RID;
    if ((HANDLE_ENABLED | rid) >>> 0 !== handle) return invalidHandle;
    switch (instruction) {
      case Instruction.MPCIFC:
        return this.#modify(rid, operands);
      case Instruction.RPCIT:
        return this.#refresh(rid, operands);
      case Instruction.STPCIFC:
        return this.#storeControls(rid, operands);
      default:
        return failed(Status.operation);
    }
  }

  #modify(rid: number, { first, second }: Operands): Outcome {
    const { target } = this.#options;
    const registered = target.parametersOf(rid) !== undefined;
    switch (Number(second)) {
      case FunctionControl.REGISTER:
        return registered ? failed(Status.sequence) : this.#register(rid, first);
      case FunctionControl.REREGISTER:
        return registered ? this.#register(rid, first) : failed(Status.sequence);
      case FunctionControl.DEREGISTER:
        return registered ? this.#give(rid, undefined, "no parameters") : failed(Status.sequence);
      default:
        return failed(Status.operation);
    }
  }

  #register(rid: number, block: bigint): Outcome {
    const bytes = new Uint8Array(Fib.bytes);
    if (!this.#options.memory.readBytes(Number(block), bytes)) return failed(Status.storage);
    const parameters = decodeFib(Fib.read(bytes));
    if (typeof parameters !== "string")
      return this.#give(rid, parameters, `anchor 0x${parameters.iota.toString(16)}`);
    this.#tell("MPCIFC", rid, `refused: ${parameters}`);
    return failed(Status.invalid);
  }

  #give(rid: number, parameters: Parameters | undefined, what: string): Outcome {
    const { target, host } = this.#options;
    this.#tell("MPCIFC", rid, what);
    const before = target.parametersOf(rid);
    target.register(rid, parameters);
    if (host?.register(rid, parameters) !== false) return done;
    target.register(rid, before);
    return failed(Status.resources);
  }

  #refresh(rid: number, { first, second }: Operands): Outcome {
    const { target, host } = this.#options;
    const parameters = target.parametersOf(rid);
    if (!parameters?.stage) return failed(Status.sequence);
    const end = first + second;
    const within = first >= BigInt(parameters.start) && end <= BigInt(parameters.end);
    if (first % PAGE !== 0n || second % PAGE !== 0n || second === 0n || !within)
      return failed(Status.invalid);
    this.#tell("RPCIT", rid, `0x${first.toString(16)}-0x${(end - 1n).toString(16)}`);
    target.refresh(rid, Number(first), Number(end));
    return host?.refresh(rid, Number(first), Number(end)) === false ? failed(Status.resources) : done;
  }

  #storeControls(rid: number, { first }: Operands): Outcome {
    const parameters = this.#options.target.parametersOf(rid);
    const bytes = new Uint8Array(Fib.bytes);
    if (parameters) Fib.write(bytes, encodeFib(parameters));
    return this.#options.memory.writeBytes(Number(first), bytes) ? done : failed(Status.storage);
  }

  /** What there is not is told by condition code 1. */
  #storeEvent({ first }: Operands): Outcome {
    const event = this.#options.target.takeEvent();
    if (!event) return failed(Status.none);
    return this.#options.memory.writeBytes(Number(first), event) ? done : failed(Status.storage);
  }

  #tell(name: string, rid: number, what: string): void {
    const { events, name: unit } = this.#options;
    if (events.on) events.emit("command", { unit, command: `${name} ${rid.toString(16)}: ${what}` });
  }
}
