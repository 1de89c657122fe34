/**
 * A mediated device as its user sees it: a PCI function that is on no bus, with the registers of one work queue in BAR 0
 * and one MSI-X vector. What the registers do is up to who made it, its front. Its interrupt messages reach the host's
 * interrupt window as they are: who writes its vector table is VFIO, and nobody else.
 */
import { pasid } from "../../pci/capabilities.ts";
import { QUEUE_FUNCTION_IDS } from "../../pci/devices/queue-function.ts";
import { QUEUE_BYTES, type QueueContext } from "../../pci/devices/work-queue.ts";
import { Endpoint, type FunctionContext } from "../../pci/pci-function.ts";

const MSIX_BAR = 2;
const PENDING = 0x800;

/** What stands behind the registers. */
export interface QueueFront {
  read(offset: number, into: Uint8Array): void;
  /** One aligned dword. */
  write(offset: number, value: number): void;
  /** Whether the device may make requests, as its user says in the command register. */
  mastering(on: boolean): void;
  /** Power-on state; nothing is under way. */
  reset(): void;
}

export type MdevHooks = Pick<QueueContext, "scheduler" | "signal">;

export class MdevFunction extends Endpoint {
  readonly mediated = true;
  readonly #front: QueueFront;

  /** `pasidBits`: requests may carry PASIDs of so many bits; 0: none. */
  constructor(context: FunctionContext, pasidBits: number, makeFront: (hooks: MdevHooks) => QueueFront) {
    super(
      {
        model: "mdev-queue",
        ...QUEUE_FUNCTION_IDS,
        msix: { vectors: 1, bar: MSIX_BAR, table: 0, pending: PENDING },
        capabilities: pasidBits > 0 ? [pasid(pasidBits)] : [],
        bars: [
          { index: 0, kind: "mem32", size: QUEUE_BYTES },
          { index: MSIX_BAR, kind: "mem32", size: 4096, mappable: false },
        ],
      },
      context,
    );
    this.#front = makeFront({ scheduler: this.scheduler, signal: (vector) => this.signal(vector) });
  }

  protected readBar(index: number, offset: number, into: Uint8Array): void {
    if (index === 0) this.#front.read(offset, into);
    else into.fill(0);
  }

  protected writeBar(index: number, offset: number, data: Uint8Array): void {
    if (index !== 0 || ((offset | data.length) & 3) !== 0) return;
    const view = new DataView(data.buffer, data.byteOffset, data.length);
    for (let at = 0; at < data.length; at += 4) this.#front.write(offset + at, view.getUint32(at, true));
  }

  protected resetModel(): void {
    this.#front.reset();
  }

  protected override reconfigured(): void {
    this.#front.mastering(this.dma.mastering);
  }
}
