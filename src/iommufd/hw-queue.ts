/**
 * Hardware queues of vIOMMUs (linux/iommufd.h, "struct iommu_hw_queue_alloc"): memory of the guest that the unit reads
 * by itself. Where it reads physical addresses the memory is pinned, contiguous, and stays mapped.
 */
import type { HardwareQueue } from "../iommu/driver.ts";
import { LinuxError } from "../uapi/errno.ts";
import { IOMMU_HW_QUEUE_ALLOC, IOMMU_HW_QUEUE_TYPE_DEFAULT, IommuHwQueueAlloc } from "../uapi/iommufd.ts";
import { hex, MAX_ADDRESS, PAGE_BYTES, pageOf } from "./address.ts";
import type { Area } from "./areas.ts";
import { IommufdObject } from "./objects.ts";
import { holdAll, type PageRange } from "./pages.ts";
import { request, requireFlags } from "./request.ts";
import { type Viommu, viommuOf } from "./viommu.ts";

/** Pages of one queue; beyond it the request is ERANGE. */
const MOST_PAGES = 2 ** 31;

/** The guest's memory, held in place. */
class HeldMemory {
  /** Physical address of its first byte. */
  readonly pa: number;
  readonly #areas: Area[] = [];
  readonly #ranges: PageRange[] = [];

  /** Throws ENOENT (not all of it is mapped), EINVAL (not contiguous, memory of a device), ENOMEM, EFAULT, Restart. */
  constructor(viommu: Viommu, iova: bigint, length: bigint) {
    const { pagetable } = viommu.ioas;
    const runs: { readonly area: Area; readonly start: number; readonly length: number }[] = [];
    pagetable.areas.walk(iova, length, (area, from, bytes) => {
      area.pages.requireOrdinary();
      const start = area.start + (from - area.iova);
      this.#areas.push(area);
      this.#ranges.push({ pages: area.pages, first: pageOf(start), last: pageOf(start + bytes - 1n) });
      runs.push({ area, start: Number(start), length: Number(bytes) });
    });
    holdAll(this.#ranges);
    let first = -1;
    let next = -1;
    for (const { area, start, length: bytes } of runs)
      area.pages.physical(start, bytes, (pa, count) => {
        if (first < 0) first = pa;
        else if (pa !== next) first = Number.NaN;
        next = pa + count;
      });
    this.pa = first;
    if (Number.isNaN(first)) {
      this.#unpin();
      throw new LinuxError(
        "EINVAL",
        `the memory behind ${hex(iova)} is not physically contiguous`,
        viommu.name,
      );
    }
    for (const area of this.#areas) area.locks += 1;
  }

  release(): void {
    for (const area of this.#areas) area.locks -= 1;
    this.#unpin();
  }

  #unpin(): void {
    for (const { pages, first, last } of this.#ranges) pages.release(first, last);
  }
}

/** As Linux reaches the memory by an access of its own, a number goes with it that nobody can destroy. */
class QueueAccess extends IommufdObject {
  readonly type = "access";
  override users = 1;

  destroy(): void {}
}

export class HwQueue extends IommufdObject {
  readonly type = "hw-queue";
  readonly viommu: Viommu;
  readonly #key: string;
  readonly #queue: HardwareQueue;
  readonly #memory: HeldMemory | undefined;
  #access: QueueAccess | undefined;

  constructor(viommu: Viommu, key: string, queue: HardwareQueue, memory: HeldMemory | undefined) {
    super();
    this.viommu = viommu;
    this.#key = key;
    this.#queue = queue;
    this.#memory = memory;
    viommu.queues.add(key);
    viommu.users += 1;
  }

  /** In the table; behind its number comes that of its access. Throws ENOMEM; then it is destroyed. */
  add(): void {
    const { context } = this.viommu;
    try {
      context.add(this);
    } catch (error) {
      this.destroy();
      throw error;
    }
    if (!this.#memory) return;
    try {
      this.#access = context.add(new QueueAccess());
    } catch (error) {
      context.objects.remove(this);
      throw error;
    }
  }

  destroy(): void {
    if (this.#access) this.viommu.context.objects.remove(this.#access);
    this.#queue.free();
    this.#memory?.release();
    this.viommu.queues.delete(this.#key);
    this.viommu.users -= 1;
  }
}

/** What the caller wants. */
interface WantedQueue {
  readonly type: number;
  readonly index: number;
  readonly address: bigint;
  readonly length: bigint;
}

const make = (viommu: Viommu, { type, index, address, length }: WantedQueue): HwQueue => {
  const { virtual, context } = viommu;
  const key = `${type} ${index}`;
  if (!virtual.allocateQueue || !virtual.queueTypes?.includes(type))
    throw new LinuxError("EOPNOTSUPP", `it has no queues of type ${hex(type)}`, viommu.name);
  context.allocate("a hardware queue");
  if (length / BigInt(PAGE_BYTES) > MOST_PAGES)
    throw new LinuxError("ERANGE", `length ${hex(length)} is beyond ${hex(MOST_PAGES)} pages`, viommu.name);
  const memory = virtual.queuesArePhysical ? new HeldMemory(viommu, address, length) : undefined;
  try {
    const queue = virtual.allocateQueue({
      type,
      index,
      address,
      pa: memory?.pa ?? -1,
      length: Number(length),
    });
    return new HwQueue(viommu, key, queue, memory);
  } catch (error) {
    memory?.release();
    throw error;
  }
};

export const hwQueueAlloc = request(
  IOMMU_HW_QUEUE_ALLOC,
  IommuHwQueueAlloc,
  "length",
  ({ context, argument, respond }) => {
    const { type, index, nesting_parent_iova: address, length } = argument;
    requireFlags(argument.flags, 0);
    if (type === IOMMU_HW_QUEUE_TYPE_DEFAULT)
      throw new LinuxError("EOPNOTSUPP", "type 0 is no type of hardware queue");
    if (length === 0n) throw new LinuxError("EINVAL", "length is 0; a queue has at least a byte");
    if (address + length - 1n > MAX_ADDRESS)
      throw new LinuxError("EOVERFLOW", `nesting_parent_iova ${hex(address)} + length ${hex(length)} wraps`);
    const queue = make(viommuOf(context, argument.viommu_id), { type, index, address, length });
    queue.add();
    try {
      respond({ out_hw_queue_id: queue.id });
    } catch (error) {
      context.objects.remove(queue);
      throw error;
    }
  },
);
