/**
 * Event queues of vIOMMUs (linux/iommufd.h, "struct iommu_veventq_alloc"): events of one type, each with a header that
 * counts them, in a file of limited depth. What did not fit, and what the unit lost before, shows as one header with
 * LOST_EVENTS, or as a gap in the numbers when more came after it.
 */
import { allocateAtomic } from "../kernel/allocations.ts";
import type { Call, KernelFile } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  IOMMU_VEVENTQ_ALLOC,
  IOMMU_VEVENTQ_FLAG_LOST_EVENTS,
  IOMMU_VEVENTQ_TYPE_DEFAULT,
  IommufdVeventHeader,
  IommuVeventqAlloc,
} from "../uapi/iommufd.ts";
import { hex } from "./address.ts";
import { IommufdObject } from "./objects.ts";
import { request, requireFlags, requireZero } from "./request.ts";
import { type EventListener, type Viommu, viommuOf } from "./viommu.ts";

const POLLIN = 1;
/** Sequence numbers go to 2^31 - 1 and begin again. */
const SEQUENCES = 2 ** 31;

/** The greatest depth. */
const MOST_EVENTS = 2 ** 19;

interface QueuedEvent {
  readonly sequence: number;
  readonly data: Uint8Array;
}

export class VeventQueue extends IommufdObject implements EventListener {
  readonly type = "veventq";
  readonly viommu: Viommu;
  readonly eventType: number;
  readonly depth: number;
  readonly file: VeventFile;
  readonly #events: QueuedEvent[] = [];
  /** Sequence number of the last event that was lost, until the marker is read. */
  #lost: number | undefined;
  #sequence = 0;

  constructor(viommu: Viommu, eventType: number, depth: number) {
    super();
    this.viommu = viommu;
    this.eventType = eventType;
    this.depth = depth;
    this.file = new VeventFile(this);
    viommu.listeners.set(eventType, this);
    viommu.users += 1;
  }

  get readable(): boolean {
    return this.#events.length > 0 || this.#lost !== undefined;
  }

  /** Throws ENOMEM; then it is lost, and shows as that. */
  event(data: Uint8Array): void {
    const sequence = this.#count();
    try {
      if (this.#events.length >= this.depth) this.#lost = sequence;
      else this.#queue(sequence, data);
    } catch (error) {
      this.#lost = sequence;
      throw error;
    } finally {
      this.file.onReady?.();
    }
  }

  /** They count as one, as nobody knows how many they were. */
  lost(): void {
    this.#lost = this.#count();
    this.file.onReady?.();
  }

  /** The sequence number of what comes now. */
  #count(): number {
    const sequence = this.#sequence;
    this.#sequence = (sequence + 1) % SEQUENCES;
    return sequence;
  }

  #queue(sequence: number, data: Uint8Array): void {
    allocateAtomic("an event");
    this.#lost = undefined;
    this.#events.push({ sequence, data });
  }

  /** Whole events, as many as fit. Throws EINVAL (not even a header fits), EFAULT. */
  readTo(call: Call, at: bigint, length: number): number {
    const { size } = IommufdVeventHeader;
    if (length < size)
      throw new LinuxError(
        "EINVAL",
        `${length} bytes are fewer than the ${size} of an event's header`,
        this.name,
      );
    let done = 0;
    for (;;) {
      const next = this.#events[0];
      if (!next && this.#lost === undefined) break;
      const bytes = next ? eventBytes(next) : lostBytes(this.#lost!);
      if (bytes.length > length - done) {
        if (done > 0) break;
        throw new LinuxError(
          "EINVAL",
          `the next event has ${bytes.length} bytes, and is read whole`,
          this.name,
        );
      }
      try {
        call.memory.write(at + BigInt(done), bytes);
      } catch (error) {
        if (done === 0) throw error;
        break;
      }
      if (next) this.#events.shift();
      else this.#lost = undefined;
      done += bytes.length;
    }
    return done;
  }

  destroy(): void {
    this.#events.length = 0;
    this.viommu.listeners.delete(this.eventType);
    this.viommu.users -= 1;
  }
}

const eventBytes = ({ sequence, data }: QueuedEvent): Uint8Array => {
  const bytes = new Uint8Array(IommufdVeventHeader.size + data.length);
  IommufdVeventHeader.write(bytes, { flags: 0, sequence });
  bytes.set(data, IommufdVeventHeader.size);
  return bytes;
};

const lostBytes = (sequence: number): Uint8Array =>
  IommufdVeventHeader.bytes({ flags: IOMMU_VEVENTQ_FLAG_LOST_EVENTS, sequence });

/** What the caller reads. It keeps the queue, and the iommufd file's objects, while it is open. */
export class VeventFile implements KernelFile {
  readonly kind = "event-queue";
  readonly #queue: VeventQueue;
  onReady: (() => void) | undefined;
  #open = true;

  constructor(queue: VeventQueue) {
    this.#queue = queue;
  }

  get name(): string {
    return `file of ${this.#queue.name}`;
  }

  readTo(call: Call, at: bigint, length: number): number {
    return this.#queue.readTo(call, at, length);
  }

  poll(): number {
    return this.#queue.readable ? POLLIN : 0;
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#queue.users -= 1;
    this.#queue.viommu.context.release();
  }
}

export const veventqAlloc = request(
  IOMMU_VEVENTQ_ALLOC,
  IommuVeventqAlloc,
  "out_veventq_fd",
  ({ context, call, at, argument, respond }) => {
    const { type, veventq_depth: depth } = argument;
    requireFlags(argument.flags, 0);
    requireZero("__reserved", argument.__reserved);
    if (type === IOMMU_VEVENTQ_TYPE_DEFAULT)
      throw new LinuxError("EOPNOTSUPP", "type 0 is no type of event queue");
    if (depth === 0 || depth > MOST_EVENTS)
      throw new LinuxError("EINVAL", `veventq_depth is ${depth}; a queue holds 1 to ${MOST_EVENTS} events`);
    const viommu = viommuOf(context, argument.viommu_id);
    if (!viommu.virtual.eventTypes?.includes(type))
      throw new LinuxError("EOPNOTSUPP", `it has no events of type ${hex(type)}`, viommu.name);
    if (viommu.listeners.has(type))
      throw new LinuxError("EEXIST", `it has a queue for events of type ${hex(type)} already`, viommu.name);
    context.allocate("an event queue");
    const queue = new VeventQueue(viommu, type, depth);
    try {
      context.add(queue);
    } catch (error) {
      queue.destroy();
      throw error;
    }
    queue.users += 1;
    context.keep();
    try {
      context.allocate("a file");
      call.install(queue.file, {
        at: at + BigInt(IommuVeventqAlloc.offsets.out_veventq_fd),
        closeOnExec: true,
      });
      respond({ out_veventq_id: queue.id });
    } catch (error) {
      queue.file.close();
      context.objects.remove(queue);
      throw error;
    }
  },
);
