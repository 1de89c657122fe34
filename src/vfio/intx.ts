/**
 * The interrupt line of a function. It is level-triggered: it masks itself when it fires and stays masked until it is
 * unmasked, by a call or by an eventfd (as KVM's irqfd does at the end of an interrupt); what is still asserted then
 * fires again.
 */
import type { Call, EventFd } from "../kernel/call.ts";
import type { PciFunction } from "../pci/function.ts";
import { Command, Header } from "../pci/spec.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  VFIO_IRQ_SET_ACTION_MASK,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_ACTION_UNMASK,
} from "../uapi/vfio.ts";
import type { VfioContext } from "./context.ts";
import { holdEventfd } from "./held-eventfd.ts";
import type { IrqRequest } from "./irq-set.ts";

/** Sets the command register's interrupt disable bit. */
export const disableLine = (pci: PciFunction, disabled: boolean): void => {
  const command = pci.configRead(Header.COMMAND, 2) & ~Command.INTERRUPT_DISABLE;
  pci.configWrite(Header.COMMAND, 2, command | (disabled ? Command.INTERRUPT_DISABLE : 0));
};

export class Intx {
  readonly #context: VfioContext;
  readonly #pci: PciFunction;
  #active = false;
  #eventfd: EventFd | undefined;
  /** Counted up, it unmasks. */
  #unmasking: EventFd | undefined;
  #masked = false;
  /** The user's own interrupt disable bit. */
  #disabled = false;

  constructor(context: VfioContext, pci: PciFunction) {
    this.#context = context;
    this.#pci = pci;
  }

  /** It was set up, whether or not it has an eventfd now. */
  get active(): boolean {
    return this.#active;
  }

  /** One SET_IRQS while no messages are in use. */
  set(call: Call, { action, start, count, data }: IrqRequest): void {
    if (action === VFIO_IRQ_SET_ACTION_TRIGGER && this.#active && count === 0 && data.kind === "none") {
      this.close();
      return;
    }
    if (action === VFIO_IRQ_SET_ACTION_TRIGGER) {
      this.#checkRange(start, count);
      if (data.kind === "eventfd") this.#setEventfd(call, data.values[0]!);
      else {
        this.#checkActive();
        if (data.kind === "none" || data.values[0]) this.#eventfd?.signal();
      }
      return;
    }
    if (action !== VFIO_IRQ_SET_ACTION_MASK && action !== VFIO_IRQ_SET_ACTION_UNMASK)
      throw this.#error("ENOTTY", "exactly one of MASK (8), UNMASK (16) and TRIGGER (32) is needed");
    this.#checkActive();
    this.#checkRange(start, count);
    if (data.kind === "eventfd") {
      if (action === VFIO_IRQ_SET_ACTION_MASK)
        throw this.#error("ENOTTY", "INTx is masked by calls; an eventfd can unmask it");
      this.#setUnmasking(call, data.values[0]!);
      return;
    }
    if (data.kind === "bool" && !data.values[0]) return;
    if (action === VFIO_IRQ_SET_ACTION_MASK) this.#mask();
    else this.#unmask();
  }

  /** The user set or cleared the interrupt disable bit in the command register it sees. */
  disable(disabled: boolean): void {
    this.#disabled = disabled;
    if (!this.#active || this.#masked) return;
    disableLine(this.#pci, disabled);
    this.#fireIfAsserted();
  }

  /** The function was reset. */
  restore(): void {
    if (this.#active) disableLine(this.#pci, this.#masked || this.#disabled);
  }

  close(): void {
    if (!this.#active) return;
    this.#active = false;
    this.#masked = false;
    this.#pci.onIntx = () => {};
    this.#dropEventfd();
    this.#dropUnmasking();
    disableLine(this.#pci, false);
  }

  #setEventfd(call: Call, fd: number): void {
    const eventfd = fd >= 0 ? holdEventfd(this.#context, call, fd) : undefined;
    this.#dropEventfd();
    if (!eventfd) {
      if (this.#active) disableLine(this.#pci, true);
      return;
    }
    this.#eventfd = eventfd;
    if (!this.#active) this.#pci.onIntx = () => this.#fireIfAsserted();
    this.#active = true;
    disableLine(this.#pci, this.#masked || this.#disabled);
    this.#fireIfAsserted();
  }

  #dropEventfd(): void {
    this.#eventfd?.close();
    this.#eventfd = undefined;
  }

  /** Throws EBUSY while there is one. */
  #setUnmasking(call: Call, fd: number): void {
    if (fd < 0) {
      this.#dropUnmasking();
      return;
    }
    if (this.#unmasking)
      throw this.#error("EBUSY", "an eventfd unmasks INTx already; -1 takes it away first");
    this.#unmasking = holdEventfd(this.#context, call, fd);
    this.#unmasking.watch(() => this.#unmask());
  }

  #dropUnmasking(): void {
    this.#unmasking?.close();
    this.#unmasking = undefined;
  }

  #mask(): void {
    this.#masked = true;
    disableLine(this.#pci, true);
  }

  #unmask(): void {
    this.#masked = false;
    if (this.#disabled) return;
    disableLine(this.#pci, false);
    this.#fireIfAsserted();
  }

  #fireIfAsserted(): void {
    if (!this.#eventfd || this.#masked || this.#disabled || !this.#pci.intx) return;
    this.#mask();
    this.#eventfd.signal();
  }

  #checkRange(start: number, count: number): void {
    if (start !== 0 || count !== 1)
      throw this.#error("EINVAL", "INTx has one vector: start 0 and count 1 are needed");
  }

  #checkActive(): void {
    if (!this.#active) throw this.#error("EINVAL", "INTx is not set up; give it an eventfd first");
  }

  #error(code: "EINVAL" | "ENOTTY" | "EBUSY", reason: string): LinuxError {
    return new LinuxError(code, reason, `device ${this.#pci.name}`);
  }
}
