/**
 * Global errors and interrupts of an SMMUv3 (IHI 0070, §3.18, §6.3.17 to §6.3.22 and §7.5): GERROR and its
 * acknowledgement, and the ways in which the unit reaches software: messages where they are implemented and an address is
 * set, else a wire.
 */
import type { HostMemory } from "../../memory/host-memory.ts";
import type { SendMessage } from "../unit.ts";
import type { Capabilities } from "./capabilities.ts";
import type { RegisterFile } from "./registers.ts";
import { IrqCtrl, Register } from "./spec.ts";

/** The wires, where no message is set up. */
export type Wire = "eventq" | "priq" | "gerror" | "cmdq-sync";

const sources = {
  eventq: { enable: IrqCtrl.EVENTQ, message: Register.EVENTQ_IRQ_CFG0 },
  priq: { enable: IrqCtrl.PRIQ, message: Register.PRIQ_IRQ_CFG0 },
  gerror: { enable: IrqCtrl.GERROR, message: Register.GERROR_IRQ_CFG0 },
} as const;

export interface ErrorContext {
  readonly registers: RegisterFile;
  readonly memory: HostMemory;
  readonly unit: Capabilities;
  readonly send: SendMessage;
  readonly wire: (wire: Wire) => void;
}

export class Errors {
  readonly #context: ErrorContext;

  constructor(context: ErrorContext) {
    this.#context = context;
  }

  /** Whether an error has come up and not been acknowledged. */
  active(error: number): boolean {
    const { registers } = this.#context;
    return ((registers.get(Register.GERROR) ^ registers.get(Register.GERRORN)) & error) !== 0;
  }

  /** An error that is active already stays so. */
  raise(error: number): void {
    if (this.active(error)) return;
    const { registers } = this.#context;
    registers.set(Register.GERROR, registers.get(Register.GERROR) ^ error);
    this.interrupt("gerror");
  }

  interrupt(source: keyof typeof sources): void {
    const { registers } = this.#context;
    const { enable, message } = sources[source];
    if ((registers.get(Register.IRQ_CTRL) & enable) === 0) return;
    this.#signal(source, registers.address(message, 0xffff_fffc), registers.get(message + 8));
  }

  /** §4.7.3 The completion of a SYNC. */
  complete(address: number, data: number): void {
    this.#signal("cmdq-sync", address, data);
  }

  /** A message is a write; where memory is, it lands there (§3.18.1). */
  #signal(wire: Wire, address: number, data: number): void {
    const { memory, unit, send, wire: pull } = this.#context;
    if (!unit.msi || address === 0) pull(wire);
    else if (!memory.store32(address, data)) send(BigInt(address), data);
  }
}
