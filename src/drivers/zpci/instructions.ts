/** How the driver gives a zPCI unit instructions: operands, the number, and what condition code and status say. */
import {
  CapabilityRegister,
  Condition,
  Control,
  ErrorEvent,
  EventControl,
  Fib,
  FunctionControl,
  HANDLE_ENABLED,
  Instruction,
  Register,
  Status,
} from "../../hardware/zpci/spec.ts";
import type { Message } from "../../kernel/msi.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { RegisterAccess, type RegisterFile } from "../register-file.ts";

/** Addresses [start, end) that a function may use, and its anchor. */
export interface FunctionParameters {
  readonly start: number;
  readonly end: number;
  readonly iota: bigint;
}

const statusNames = new Map<number, string>(Object.entries(Status).map(([name, status]) => [status, name]));

export class Instructions extends RegisterAccess {
  readonly #memory: HostMemory;
  /** Blocks of instructions. */
  readonly #block: number;

  /** Throws ENOMEM. */
  constructor(file: RegisterFile, memory: HostMemory, name: string) {
    super(file, name);
    this.#memory = memory;
    this.#block = memory.allocate(1);
    if (this.#block < 0)
      throw new LinuxError("ENOMEM", "host memory has no free frame for blocks of instructions", name);
  }

  /** Whether entries must be refreshed that become valid. */
  get refreshes(): boolean {
    return CapabilityRegister.fields.REFRESH.of(this.read64(Register.CAPABILITIES)) === 1n;
  }

  /** Functions without parameters are refused from now on, or pass. */
  require(required: boolean): void {
    this.write32(Register.CONTROL, required ? Control.REQUIRED : 0);
  }

  /** Errors are told by this message; undefined: by none. */
  enableEvents(message: Message | undefined): void {
    this.write64(Register.EVENT_ADDRESS, message?.address ?? 0n);
    this.write32(Register.EVENT_DATA, message?.data ?? 0);
    this.write32(Register.EVENT_CONTROL, message ? EventControl.ENABLE : 0);
  }

  /** Registers parameters (`known`: instead of others). Throws EIO when the unit does not take them. */
  register(rid: number, { start, end, iota }: FunctionParameters, known: boolean): void {
    const bytes = new Uint8Array(Fib.bytes);
    Fib.write(bytes, Fib.make({ PBA: BigInt(start), PAL: BigInt(end) - 1n, IOTA: iota }));
    this.#memory.writeBytes(this.#block, bytes);
    const operation = known ? FunctionControl.REREGISTER : FunctionControl.REGISTER;
    this.#issue(Instruction.MPCIFC, rid, BigInt(this.#block), BigInt(operation));
  }

  /** The function has no parameters any more. Throws EIO. */
  deregister(rid: number): void {
    this.#issue(Instruction.MPCIFC, rid, 0n, BigInt(FunctionControl.DEREGISTER));
  }

  /** Entries of [start, end) have changed. Throws EIO when the unit could not take them all. */
  refresh(rid: number, start: number, end: number): void {
    this.#issue(Instruction.RPCIT, rid, BigInt(start), BigInt(end) - BigInt(start));
  }

  /** The next error, as an integer of `ErrorEvent`; undefined: there is none. */
  nextError(): bigint | undefined {
    this.write64(Register.OPERAND1, BigInt(this.#block));
    this.write32(Register.INSTRUCTION, Instruction.SEI);
    if (this.read32(Register.CONDITION) !== Condition.done) return undefined;
    const bytes = new Uint8Array(ErrorEvent.bytes);
    this.#memory.readBytes(this.#block, bytes);
    return ErrorEvent.read(bytes);
  }

  free(): void {
    this.#memory.free(this.#block, 1);
  }

  #issue(instruction: number, rid: number, first: bigint, second: bigint): void {
    this.write32(Register.HANDLE, HANDLE_ENABLED | rid);
    this.write64(Register.OPERAND1, first);
    this.write64(Register.OPERAND2, second);
    this.write32(Register.INSTRUCTION, instruction);
    const condition = this.read32(Register.CONDITION);
    if (condition === Condition.done) return;
    const status = this.read32(Register.STATUS);
    throw new LinuxError(
      "EIO",
      `the unit answers instruction ${instruction} with condition code ${condition}, status ${status} (${statusNames.get(status)})`,
      this.name,
    );
  }
}
