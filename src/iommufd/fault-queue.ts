/**
 * Fault queues (linux/iommufd.h, "struct iommu_fault_alloc"): page requests under a HWPT go to a file. A group is read
 * whole or not at all, gets a cookie then, and is answered by writing the cookie. What waits when its device leaves the
 * HWPT, or when the file or the queue goes, is answered `invalid`.
 */
import { Ids } from "../base/ids.ts";
import type { PageResponse } from "../iommu/driver.ts";
import type { PageRequestGroup } from "../iommu/page-requests.ts";
import type { Call, KernelFile } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  IOMMU_FAULT_QUEUE_ALLOC,
  IOMMU_PGFAULT_FLAGS_LAST_PAGE,
  IOMMU_PGFAULT_FLAGS_PASID_VALID,
  IOMMUFD_PAGE_RESP_INVALID,
  IOMMUFD_PAGE_RESP_SUCCESS,
  IommuFaultAlloc,
  IommuHwptPageResponse,
  IommuHwptPgfault,
} from "../uapi/iommufd.ts";
import type { IommufdContext } from "./context.ts";
import { IommufdObject } from "./objects.ts";
import { request, requireFlags } from "./request.ts";

const POLLIN = 1;
const POLLOUT = 4;
/** Groups that wait in one queue; a device that asks for more is refused, as is one whose queue nobody can read. */
const MOST_WAITING = 65_536;

/** Page requests of a device under a HWPT that want an answer. */
export interface FaultGroup {
  readonly device: IommufdObject;
  /** With which PASID the device has the HWPT. */
  readonly pasid: number | undefined;
  readonly group: PageRequestGroup;
}

export class FaultQueue extends IommufdObject {
  readonly type = "fault";
  readonly context: IommufdContext;
  readonly file: FaultFile;
  /** Not read yet, oldest first. */
  #pending: FaultGroup[] = [];
  /** Read and not answered, by cookie. */
  readonly #outstanding = new Map<number, FaultGroup>();
  readonly #cookies = new Ids(1, 2 ** 32);
  /** Cookie 0 can be given out: see `#respond`. */
  #zeroFree = false;

  constructor(context: IommufdContext) {
    super();
    this.context = context;
    this.file = new FaultFile(this);
  }

  get pending(): boolean {
    return this.#pending.length > 0;
  }

  report(group: FaultGroup): void {
    const room = this.#pending.length + this.#outstanding.size < MOST_WAITING;
    if (!room || !this.file.isOpen) {
      group.group.respond("invalid");
      return;
    }
    this.#pending.push(group);
    this.file.onReady?.();
  }

  /** Answers every group that meets the condition: nobody will. */
  answer(which: (group: FaultGroup) => boolean): void {
    for (const [cookie, waiting] of [...this.#outstanding]) {
      if (!which(waiting)) continue;
      this.#forget(cookie);
      waiting.group.respond("invalid");
    }
    const gone = this.#pending.filter(which);
    this.#pending = this.#pending.filter((waiting) => !which(waiting));
    for (const { group } of gone) group.respond("invalid");
    if (gone.length > 0) this.file.onReady?.();
  }

  /** Whole groups, as many as fit. Throws ESPIPE, EINVAL (not even one fits), EFAULT, ENOMEM. */
  readTo(call: Call, at: bigint, length: number): number {
    const { size } = IommuHwptPgfault;
    if (length % size !== 0)
      throw new LinuxError(
        "ESPIPE",
        `${length} bytes are not a multiple of ${size}, a page fault`,
        this.name,
      );
    let done = 0;
    for (let first = this.#pending[0]; first; first = this.#pending[0]) {
      const bytes = first.group.requests.length * size;
      if (bytes > length - done) {
        if (done === 0)
          throw new LinuxError("EINVAL", `the next group has ${bytes} bytes, and is read whole`, this.name);
        break;
      }
      let cookie: number | undefined;
      try {
        cookie = this.#takeCookie();
        call.memory.write(at + BigInt(done), faultBytes(first, cookie));
      } catch (error) {
        if (cookie !== undefined) this.#giveCookie(cookie);
        if (done === 0) throw error;
        break;
      }
      this.#pending.shift();
      this.#outstanding.set(cookie, first);
      done += bytes;
    }
    return done;
  }

  /** Answers, one after the other, up to the first that is not valid. Throws ESPIPE, EINVAL, EFAULT. */
  writeFrom(call: Call, at: bigint, length: number): number {
    const { size } = IommuHwptPageResponse;
    if (length % size !== 0)
      throw new LinuxError("ESPIPE", `${length} bytes are not a multiple of ${size}, a response`, this.name);
    let done = 0;
    try {
      for (; done < length; done += size) this.#respond(call, at + BigInt(done));
    } catch (error) {
      if (done === 0) throw error;
    }
    return done;
  }

  destroy(): void {
    this.answer(() => true);
  }

  /** The lowest that is free, from 1. Throws ENOMEM. */
  #takeCookie(): number {
    this.context.allocate("the cookie of a page fault");
    if (!this.#zeroFree) return this.#cookies.take();
    this.#zeroFree = false;
    return 0;
  }

  #giveCookie(cookie: number): void {
    if (cookie === 0) this.#zeroFree = true;
    else this.#cookies.give(cookie);
  }

  #forget(cookie: number): void {
    this.#outstanding.delete(cookie);
    this.#giveCookie(cookie);
    if (this.#outstanding.size === 0) this.#zeroFree = false;
  }

  #respond(call: Call, at: bigint): void {
    const bytes = new Uint8Array(IommuHwptPageResponse.size);
    call.memory.read(at, bytes);
    const { cookie, code } = IommuHwptPageResponse.read(bytes);
    const answer = ANSWERS.get(code);
    if (!answer)
      throw new LinuxError("EINVAL", `response code ${code} is neither SUCCESS nor INVALID`, this.name);
    const waiting = this.#outstanding.get(cookie);
    // Linux looks cookies up by taking them out; taking out number 0, which was never given, frees it.
    if (!waiting && cookie === 0 && this.#outstanding.size > 0) this.#zeroFree = true;
    if (!waiting)
      throw new LinuxError("EINVAL", `no page fault with cookie ${cookie} waits for an answer`, this.name);
    this.#forget(cookie);
    waiting.group.respond(answer);
  }
}

const ANSWERS: ReadonlyMap<number, PageResponse["code"]> = new Map([
  [IOMMUFD_PAGE_RESP_SUCCESS, "success"],
  [IOMMUFD_PAGE_RESP_INVALID, "invalid"],
]);

/** The group as it is read. */
const faultBytes = ({ device, group }: FaultGroup, cookie: number): Uint8Array => {
  const { size } = IommuHwptPgfault;
  const bytes = new Uint8Array(size * group.requests.length);
  group.requests.forEach(({ pasid, last, permissions, address }, index) => {
    const flags =
      (pasid === undefined ? 0 : IOMMU_PGFAULT_FLAGS_PASID_VALID) |
      (last ? IOMMU_PGFAULT_FLAGS_LAST_PAGE : 0);
    IommuHwptPgfault.write(
      bytes,
      {
        flags,
        dev_id: device.id,
        pasid: pasid ?? 0,
        grpid: group.number,
        perm: permissions,
        addr: address,
        cookie,
      },
      size * index,
    );
  });
  return bytes;
};

/** What the caller reads and writes. It keeps the queue, and the iommufd file's objects, while it is open. */
export class FaultFile implements KernelFile {
  readonly kind = "fault-queue";
  readonly #queue: FaultQueue;
  onReady: (() => void) | undefined;
  #open = true;

  constructor(queue: FaultQueue) {
    this.#queue = queue;
  }

  get name(): string {
    return `file of ${this.#queue.name}`;
  }
  get isOpen(): boolean {
    return this.#open;
  }

  readTo(call: Call, at: bigint, length: number): number {
    return this.#queue.readTo(call, at, length);
  }

  writeFrom(call: Call, at: bigint, length: number): number {
    return this.#queue.writeFrom(call, at, length);
  }

  poll(): number {
    return POLLOUT | (this.#queue.pending ? POLLIN : 0);
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    const { context } = this.#queue;
    this.#queue.answer(() => true);
    this.#queue.users -= 1;
    context.release();
  }
}

export const faultQueueOf = (context: IommufdContext, id: number): FaultQueue =>
  context.objects.get(id, FaultQueue, "fault_id");

export const faultQueueAlloc = request(
  IOMMU_FAULT_QUEUE_ALLOC,
  IommuFaultAlloc,
  "out_fault_fd",
  ({ context, call, argument, respond, at }) => {
    requireFlags(argument.flags, 0);
    const queue = context.add(new FaultQueue(context));
    queue.users += 1;
    context.keep();
    try {
      context.allocate("a file");
      call.install(queue.file, { at: at + BigInt(IommuFaultAlloc.offsets.out_fault_fd), closeOnExec: true });
      respond({ out_fault_id: queue.id });
    } catch (error) {
      queue.file.close();
      context.objects.remove(queue);
      throw error;
    }
  },
);
