/**
 * Performs the instruction that a thread could not execute because a memory operand is a device. Pure: everything it
 * reads and changes is in its arguments. Either the whole instruction happens (a repeated string instruction: some of
 * its elements), or the registers stay as they were. The instructions are listed in integer.ts, strings.ts, vector.ts
 * and below; of all others the caller is told that they were refused.
 */
import { type Bus, type CpuState, Flag, MemoryFault, STATUS_FLAGS } from "./cpu.ts";
import { type Decoded, decode, Mnemonic } from "./decode.ts";
import { Execution } from "./execution.ts";
import { type Executor, INTEGER } from "./integer.ts";
import { STRINGS } from "./strings.ts";
import { INTO_MASK, MASKABLE, VECTOR } from "./vector.ts";

export type Outcome =
  | { readonly kind: "done" }
  /** The instruction has no effect here. `address`: the operand that was at fault, when it is known. */
  | { readonly kind: "refused"; readonly reason: string; readonly address?: bigint };

const DONE: Outcome = { kind: "done" };

/** movdir64b: 64 bytes from memory to the address in a register, as one write. */
function moveDirect(e: Execution): void {
  const command = new Uint8Array(64);
  e.bus.read(e.address(), command);
  e.bus.write(e.load(0), command);
}

/** enqcmd and enqcmds: the same as a non-posted write; ZF tells that the device wants it again. */
function enqueue(e: Execution): void {
  const command = new Uint8Array(64);
  e.bus.read(e.address(), command);
  const accepted = e.bus.enqueue(e.load(0), command);
  e.cpu.setFlags(STATUS_FLAGS, accepted ? 0 : Flag.ZF);
}

const DIRECT: ReadonlyMap<Mnemonic, Executor> = new Map([
  [Mnemonic.Movdir64b, moveDirect],
  [Mnemonic.Enqcmd, enqueue],
]);

/** Executes the instruction at the start of `code` on `cpu`, whose rip is the address of that instruction. */
export function emulate(cpu: CpuState, code: Uint8Array, bus: Bus): Outcome {
  const decoded = decode(code);
  if (decoded === undefined)
    return refuse(`the bytes ${hex(code)} at rip are not an instruction that is decoded here`);
  const run = executorOf(decoded);
  if (run === undefined)
    return refuse(`"${decoded.text}" is not among the instructions that can access a device`);
  cpu.save();
  try {
    if (run(new Execution(cpu, decoded, bus))) cpu.rip = BigInt.asUintN(64, cpu.rip + BigInt(decoded.length));
    return DONE;
  } catch (error) {
    cpu.restore();
    if (error instanceof MemoryFault) return refuse(`"${decoded.text}": ${error.message}`, error.address);
    throw error;
  }
}

/** Answers whether the instruction is complete. */
function executorOf(decoded: Decoded): ((e: Execution) => boolean) | undefined {
  if (decoded.broadcast || !decoded.operands.some((operand) => operand.kind === "memory")) return undefined;
  if (decoded.opMask !== 0 && !MASKABLE.has(decoded.mnemonic)) return undefined;
  if (decoded.isString) return STRINGS.get(decoded.mnemonic);
  const whole = wholeExecutor(decoded);
  if (whole === undefined) return undefined;
  return (e) => {
    whole(e);
    return true;
  };
}

function wholeExecutor({ mnemonic, operands }: Decoded): Executor | undefined {
  if (operands[0]?.kind === "mask") return INTO_MASK.get(mnemonic);
  return INTEGER.get(mnemonic) ?? VECTOR.get(mnemonic) ?? DIRECT.get(mnemonic);
}

function refuse(reason: string, address?: bigint): Outcome {
  return address === undefined ? { kind: "refused", reason } : { kind: "refused", reason, address };
}

function hex(code: Uint8Array): string {
  return Array.from(code, (byte) => byte.toString(16).padStart(2, "0")).join(" ");
}
