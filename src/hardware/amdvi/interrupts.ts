/**
 * Interrupts of an AMD-Vi unit (48882, revision 3.07, §3.4.1, §3.4.8 and §3.4.11): one message for everything, sent when a
 * condition of STATUS that CONTROL enables comes up. It is set up in the MSI registers of the register file.
 */
import type { SendMessage } from "../unit.ts";
import type { RegisterFile } from "./registers.ts";
import { ControlRegister, MsiCapability, Register, Status } from "./spec.ts";

const { EVENT_INT_EN, COM_WAIT_INT_EN, PPR_INT_EN } = ControlRegister.fields;
const sources = [
  [EVENT_INT_EN.mask, Status.EVENT_LOG_INT | Status.EVENT_OVERFLOW],
  [COM_WAIT_INT_EN.mask, Status.COM_WAIT_INT],
  [PPR_INT_EN.mask, Status.PPR_INT | Status.PPR_OVERFLOW],
] as const;

export class Interrupts {
  readonly #registers: RegisterFile;
  readonly #send: SendMessage;
  /** Conditions that are up and enabled. */
  #pending = 0;

  constructor(registers: RegisterFile, send: SendMessage) {
    this.#registers = registers;
    this.#send = send;
  }

  reset(): void {
    this.#pending = 0;
  }

  /** STATUS or CONTROL changed. */
  update(): void {
    const registers = this.#registers;
    const control = registers.get(Register.CONTROL);
    const enabled = sources.reduce((all, [enable, bits]) => (control & enable ? all | bits : all), 0);
    const pending = registers.get(Register.STATUS) & enabled;
    const came = pending & ~this.#pending;
    this.#pending = pending;
    if (came === 0 || (registers.get(Register.MSI_CAPABILITY) & MsiCapability.fields.EN.mask) === 0) return;
    const address = registers.read(Register.MSI_ADDRESS + 4, 4) << 32n;
    this.#send(address | registers.read(Register.MSI_ADDRESS, 4), registers.get(Register.MSI_DATA));
  }
}
