/**
 * An event interrupt of a VT-d unit (revision 4.1, §11.4.10 to §11.4.13): control, data, address and upper address
 * registers in a row, with the mask and the pending bit. The fault event and the invalidation event are two of them.
 */
import type { SendMessage } from "../unit.ts";
import type { RegisterFile } from "./registers.ts";
import { EventControl } from "./spec.ts";

export class EventMessage {
  readonly #registers: RegisterFile;
  readonly #control: number;
  readonly #send: SendMessage;

  constructor(registers: RegisterFile, control: number, send: SendMessage) {
    this.#registers = registers;
    this.#control = control;
    this.#send = send;
  }

  /** An interrupt condition came up. */
  trigger(): void {
    this.#registers.set(this.#control, this.#registers.get(this.#control) | EventControl.IP);
    this.release();
  }

  /** Sends what is pending unless it is masked. */
  release(): void {
    const control = this.#registers.get(this.#control);
    if ((control & EventControl.IP) === 0 || (control & EventControl.IM) !== 0) return;
    this.serviced();
    const data = this.#registers.get(this.#control + 4);
    const low = this.#registers.get(this.#control + 8);
    const high = this.#registers.get(this.#control + 12);
    this.#send((BigInt(high) << 32n) | BigInt(low), data);
  }

  /** Software dealt with every condition: nothing is pending. */
  serviced(): void {
    this.#registers.set(this.#control, (this.#registers.get(this.#control) & ~EventControl.IP) >>> 0);
  }
}
