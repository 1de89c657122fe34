/**
 * A function with work queues, each of which can be given to another user: a queue has a page of registers for itself
 * and a PASID that its requests carry, so that the IOMMU keeps the users apart. Its driver keeps the queues' pages and
 * lets users reach them through itself (mediated devices). BAR 0: a page that says what the function is, then a page a
 * queue (`QueueRegister`).
 *
 * Left out: queues that several processors submit to at once (ENQCMD), groups of engines, priorities.
 */
import { Endpoint, type FunctionContext } from "../pci-function.ts";
import { type RequestAbilities, requestCapabilities } from "./requests.ts";
import { QUEUE_BYTES, WorkQueue } from "./work-queue.ts";

/** BAR 0, page 0; all are read-only. */
export const QueueFunctionRegister = { IDENTITY: 0x00, QUEUES: 0x04 } as const;
export const QUEUE_IDENTITY = 0x5751_0001;
export const MOST_QUEUES = 64;
/** Where the registers of a queue begin in BAR 0. */
export const queueOffset = (queue: number): number => (queue + 1) * QUEUE_BYTES;

export const QUEUE_FUNCTION_IDS = { vendorId: 0x1234, deviceId: 0xd0a2, classCode: 0x08_80_00 } as const;
const MSIX_BAR = 2;
const PENDING = 0x800;

export class QueueFunction extends Endpoint {
  readonly #queues: readonly WorkQueue[];

  /** RangeError for a number of queues that cannot be. */
  constructor(context: FunctionContext, queues = 4, abilities: RequestAbilities = {}) {
    if (!(Number.isInteger(queues) && queues >= 1 && queues <= MOST_QUEUES))
      throw new RangeError(`${queues} work queues: 1 to ${MOST_QUEUES} are possible`);
    super(
      {
        model: "queues",
        ...QUEUE_FUNCTION_IDS,
        msix: { vectors: queues, bar: MSIX_BAR, table: 0, pending: PENDING },
        capabilities: requestCapabilities(abilities),
        bars: [
          { index: 0, kind: "mem32", size: 2 ** Math.ceil(Math.log2(queueOffset(queues))) },
          { index: MSIX_BAR, kind: "mem32", size: 4096 },
        ],
      },
      context,
    );
    const { dma, scheduler } = this;
    const signal = (vector: number): void => this.signal(vector);
    this.#queues = Array.from({ length: queues }, () => new WorkQueue({ dma, scheduler, signal }));
  }

  protected readBar(index: number, offset: number, into: Uint8Array): void {
    into.fill(0);
    if (index !== 0) return;
    const at = offset % QUEUE_BYTES;
    if (offset >= QUEUE_BYTES) this.#queues[Math.floor(offset / QUEUE_BYTES) - 1]?.read(at, into);
    else {
      const page = new Uint8Array(new Uint32Array([QUEUE_IDENTITY, this.#queues.length]).buffer);
      into.set(page.subarray(at, at + into.length));
    }
  }

  protected writeBar(index: number, offset: number, data: Uint8Array): void {
    if (index !== 0 || ((offset | data.length) & 3) !== 0) return;
    const view = new DataView(data.buffer, data.byteOffset, data.length);
    for (let done = 0; done < data.length; done += 4) {
      const at = offset + done;
      this.#queues[Math.floor(at / QUEUE_BYTES) - 1]?.write(at % QUEUE_BYTES, view.getUint32(done, true));
    }
  }

  protected resetModel(): void {
    for (const queue of this.#queues) queue.reset();
  }
}
