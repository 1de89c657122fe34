/** A work queue of a function as the function's driver reaches it: by the registers of its page in BAR 0. */
import { queueOffset } from "../../pci/devices/queue-function.ts";
import { DESCRIPTOR_BYTES, QueueControl, QueueRegister } from "../../pci/devices/work-queue.ts";
import type { PciFunction } from "../../pci/function.ts";

export class HostQueue {
  /** Called when a descriptor that asks for it has ended. */
  onInterrupt: () => void = () => {};
  readonly #pci: PciFunction;
  readonly #offset: number;
  readonly #bytes = new Uint8Array(4);
  readonly #view = new DataView(this.#bytes.buffer);

  constructor(pci: PciFunction, index: number) {
    this.#pci = pci;
    this.#offset = queueOffset(index);
  }

  get(register: number): number {
    this.#pci.barRead(0, this.#offset + register, this.#bytes);
    return this.#view.getUint32(0, true);
  }

  set(register: number, value: number): void {
    this.#view.setUint32(0, value, true);
    this.#pci.barWrite(0, this.#offset + register, this.#bytes);
  }

  /** The 16 dwords of a descriptor. */
  submit(descriptor: Uint32Array): void {
    const bytes = new Uint8Array(descriptor.buffer, descriptor.byteOffset, DESCRIPTOR_BYTES);
    this.#pci.barWrite(0, this.#offset + QueueRegister.PORTAL, bytes);
  }

  /** What it holds is forgotten. */
  disable(): void {
    this.set(QueueRegister.CONTROL, QueueControl.DISABLE);
  }
}
