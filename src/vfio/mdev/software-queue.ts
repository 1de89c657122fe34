/**
 * The work queue of a mediated device that is not IOMMU-backed: its maker carries the descriptors out itself, in the memory
 * that the device's domain lets it reach. Requests with a PASID are refused.
 */
import { WorkQueue } from "../../pci/devices/work-queue.ts";
import type { UnitPort } from "../../pci/dma.ts";
import type { MdevHooks, QueueFront } from "./mdev-function.ts";

export class SoftwareQueue implements QueueFront {
  readonly #port: UnitPort;
  readonly #queue: WorkQueue;

  constructor(port: UnitPort, hooks: MdevHooks) {
    this.#port = port;
    this.#queue = new WorkQueue({ dma: port, ...hooks });
  }

  read(offset: number, into: Uint8Array): void {
    this.#queue.read(offset, into);
  }
  write(offset: number, value: number): void {
    this.#queue.write(offset, value);
  }
  mastering(on: boolean): void {
    this.#port.mastering = on;
  }
  reset(): void {
    this.#queue.reset();
  }
}
