/**
 * The host's driver of a function with work queues: it keeps the function, whose group's DMA it owns, hands its queues to
 * mediated devices, and takes their interrupts. The function itself has no use of its own for memory, so it has no domain:
 * units with PASIDs for the whole machine do not translate interrupt messages.
 */
import { AuxiliaryDriver } from "../../iommu/auxiliary.ts";
import type { Device } from "../../iommu/core.ts";
import type { MsiController } from "../../kernel/msi.ts";
import { enableMsix, programMsix } from "../../kernel/msix.ts";
import { QUEUE_IDENTITY, QueueFunctionRegister } from "../../pci/devices/queue-function.ts";
import { QueueRegister } from "../../pci/devices/work-queue.ts";
import { Command, Header } from "../../pci/spec.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { HostQueue } from "./host-queue.ts";

export class QueueParent {
  readonly device: Device;
  /** What gives its parts domains of their own. */
  readonly parts: AuxiliaryDriver;
  readonly queues: number;
  readonly #free: HostQueue[];

  /** Throws ENODEV for another function, EBUSY when somebody has its DMA. */
  constructor(device: Device, msi: MsiController) {
    const { function: pci, group } = device;
    group.claim(this);
    this.device = device;
    this.parts = new AuxiliaryDriver(device);
    const command = pci.configRead(Header.COMMAND, 2);
    pci.configWrite(Header.COMMAND, 2, command | Command.MEMORY_SPACE | Command.BUS_MASTER);
    if (this.#read(QueueFunctionRegister.IDENTITY) !== QUEUE_IDENTITY)
      throw new LinuxError("ENODEV", "it is no function with work queues", device.name);
    this.queues = this.#read(QueueFunctionRegister.QUEUES);
    this.#free = Array.from({ length: this.queues }, (_, index) => new HostQueue(pci, index));
    this.#free.forEach((queue, index) => {
      queue.set(QueueRegister.VECTOR, index);
      const { address, data } = msi.allocate(() => queue.onInterrupt(), { source: pci.rid });
      programMsix(pci, index, address, data);
    });
    enableMsix(pci);
  }

  get name(): string {
    return this.device.name;
  }

  /** Queues that nobody has. */
  get available(): number {
    return this.#free.length;
  }

  /** A queue, until it is given back; undefined: somebody has each of them. */
  take(): HostQueue | undefined {
    return this.#free.shift();
  }

  giveBack(queue: HostQueue): void {
    queue.disable();
    queue.onInterrupt = () => {};
    this.#free.push(queue);
  }

  #read(register: number): number {
    const bytes = new Uint8Array(4);
    this.device.function.barRead(0, register, bytes);
    return new DataView(bytes.buffer).getUint32(0, true);
  }
}
