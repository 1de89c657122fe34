/**
 * The interrupts of a PCI function by VFIO's indices (linux/vfio.h, VFIO_DEVICE_GET_IRQ_INFO and SET_IRQS). One of
 * INTx, MSI and MSI-X is in use at a time; ERR and REQ only hold an eventfd each, as does the index after them where a
 * fault region is there (extension `vsva2020`).
 */
import type { Call, EventFd } from "../kernel/call.ts";
import { findCapability } from "../pci/capability-list.ts";
import type { PciFunction } from "../pci/function.ts";
import { CapabilityId, Header } from "../pci/spec.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  VFIO_IRQ_INFO_AUTOMASKED,
  VFIO_IRQ_INFO_EVENTFD,
  VFIO_IRQ_INFO_MASKABLE,
  VFIO_IRQ_INFO_NORESIZE,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_PCI_ERR_IRQ_INDEX,
  VFIO_PCI_INTX_IRQ_INDEX,
  VFIO_PCI_MSI_IRQ_INDEX,
  VFIO_PCI_MSIX_IRQ_INDEX,
  VFIO_PCI_NUM_IRQS,
  VFIO_PCI_REQ_IRQ_INDEX,
} from "../uapi/vfio.ts";
import type { VfioContext } from "./context.ts";
import { holdEventfd } from "./held-eventfd.ts";
import { Intx } from "./intx.ts";
import type { IrqRequest } from "./irq-set.ts";
import { MessageVectors, type MsixTable } from "./message-vectors.ts";

/** Signalled when the fault region's `producer` moved. */
export const FAULT_IRQ_INDEX = VFIO_PCI_NUM_IRQS;

const NAMES = ["INTx", "MSI", "MSI-X", "ERR", "REQ", "the fault interrupt"];

export class Interrupts {
  readonly #context: VfioContext;
  readonly #pci: PciFunction;
  readonly #intx: Intx;
  readonly #messages: MessageVectors;
  readonly #express: boolean;
  /** How many there are. */
  readonly indices: number;
  /** Eventfds of ERR, REQ and faults. */
  readonly #single = new Map<number, EventFd>();

  /** `faults`: one more index tells of faults. */
  constructor(context: VfioContext, pci: PciFunction, faults: boolean) {
    this.#context = context;
    this.#pci = pci;
    this.indices = VFIO_PCI_NUM_IRQS + (faults ? 1 : 0);
    this.#intx = new Intx(context, pci);
    this.#messages = new MessageVectors(context, pci);
    this.#express = findCapability(pci, CapabilityId.EXPRESS) !== undefined;
  }

  get msixTable(): MsixTable | undefined {
    return this.#messages.table;
  }
  get msiActive(): boolean {
    return this.#messages.kind === VFIO_PCI_MSI_IRQ_INDEX;
  }

  /** What is signalled for an index of one vector, while there is something. */
  single(index: number): EventFd | undefined {
    return this.#single.get(index);
  }

  /** Vectors of an index; 0 when the function does not have it. */
  count(index: number): number {
    switch (index) {
      case VFIO_PCI_INTX_IRQ_INDEX:
        return this.#pci.configRead(Header.INTERRUPT_PIN, 1) ? 1 : 0;
      case VFIO_PCI_MSI_IRQ_INDEX:
        return this.#messages.msiVectors;
      case VFIO_PCI_MSIX_IRQ_INDEX:
        return this.#messages.table?.vectors ?? 0;
      case VFIO_PCI_ERR_IRQ_INDEX:
        return this.#express ? 1 : 0;
      default:
        return 1;
    }
  }

  /** VFIO_IRQ_INFO_* of an index. Vectors of MSI-X can be added one by one. */
  flags(index: number): number {
    if (index === VFIO_PCI_INTX_IRQ_INDEX)
      return VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED;
    return index === VFIO_PCI_MSIX_IRQ_INDEX
      ? VFIO_IRQ_INFO_EVENTFD
      : VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE;
  }

  /** One SET_IRQS whose range is within the index. Throws EINVAL, ENOTTY, EBADF, ENOSPC. */
  set(call: Call, request: IrqRequest): void {
    const { index, action } = request;
    if (index !== VFIO_PCI_INTX_IRQ_INDEX && action !== VFIO_IRQ_SET_ACTION_TRIGGER)
      throw this.#error("ENOTTY", `${NAMES[index]} can only be triggered (32), not masked or unmasked`);
    switch (index) {
      case VFIO_PCI_INTX_IRQ_INDEX:
        if (action === VFIO_IRQ_SET_ACTION_TRIGGER) this.#checkFree(index);
        this.#intx.set(call, request);
        return;
      case VFIO_PCI_MSI_IRQ_INDEX:
      case VFIO_PCI_MSIX_IRQ_INDEX:
        this.#checkFree(index);
        this.#messages.set(call, request, index);
        return;
      default:
        this.#setSingle(call, request);
    }
  }

  /** The user set or cleared the interrupt disable bit in the command register it sees. */
  disableIntx(disabled: boolean): void {
    this.#intx.disable(disabled);
  }

  /** The user should give the device back. */
  request(): void {
    this.#single.get(VFIO_PCI_REQ_IRQ_INDEX)?.signal();
  }

  /** The function was reset: what is in use is programmed again. */
  restore(): void {
    this.#intx.restore();
    this.#messages.restore();
  }

  /** The last file went: nothing is in use any more. */
  close(): void {
    this.#intx.close();
    this.#messages.close();
    for (const index of [...this.#single.keys()]) this.#dropSingle(index);
  }

  #checkFree(index: number): void {
    const inUse = this.#intx.active ? VFIO_PCI_INTX_IRQ_INDEX : this.#messages.kind;
    if (inUse === undefined || inUse === index) return;
    throw this.#error(
      "EINVAL",
      `${NAMES[inUse]} is in use; it must be taken away (TRIGGER, count 0) before ${NAMES[index]}`,
    );
  }

  #setSingle(call: Call, { index, start, count, data }: IrqRequest): void {
    if (start !== 0 || count > 1)
      throw this.#error("EINVAL", `${NAMES[index]} has one vector: start 0 and count 0 or 1 are possible`);
    const eventfd = this.#single.get(index);
    if (data.kind === "eventfd") {
      this.#setSingleEventfd(call, index, data.values);
      return;
    }
    if (data.kind === "bool") {
      if (count === 0) throw this.#error("EINVAL", "one boolean is needed");
      if (data.values[0]) eventfd?.signal();
      return;
    }
    if (!eventfd) throw this.#error("EINVAL", `${NAMES[index]} is not set up; give it an eventfd first`);
    if (count === 1) eventfd.signal();
    else this.#dropSingle(index);
  }

  #setSingleEventfd(call: Call, index: number, fds: Int32Array): void {
    const [fd] = fds;
    if (fd === undefined || fd < -1)
      throw this.#error(
        "EINVAL",
        `${fd === undefined ? "no descriptor" : `descriptor ${fd}`}: an eventfd or -1 is needed`,
      );
    const next = fd >= 0 ? holdEventfd(this.#context, call, fd) : undefined;
    this.#dropSingle(index);
    if (next) this.#single.set(index, next);
  }

  #dropSingle(index: number): void {
    this.#single.get(index)?.close();
    this.#single.delete(index);
  }

  #error(code: "EINVAL" | "ENOTTY", reason: string): LinuxError {
    return new LinuxError(code, reason, `device ${this.#pci.name}`);
  }
}
