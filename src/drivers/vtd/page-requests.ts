/**
 * The driver's side of a unit's page request queue (revision 4.1, §7.4 to §7.7): requests are taken from memory in their
 * order and told to the core; every group gets one answer, by a page group response. When the queue was full the unit has
 * answered the groups that found no room itself, so that functions ask again: what had come of them is void.
 */
import { PageRequestDescriptor, PqaRegister, Prs } from "../../hardware/vtd/scalable-spec.ts";
import { Register } from "../../hardware/vtd/spec.ts";
import { type PageRequest, RequestPermission } from "../../iommu/driver.ts";
import type { Message, MsiController } from "../../kernel/msi.ts";
import { FRAME_BYTES, type HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { enableEvent } from "./event-message.ts";
import type { InvalidationQueue } from "./queue.ts";
import type { Registers } from "./registers.ts";

/** Log2 of the queue's frames, unless other is asked for: room for 2047 requests. */
const FRAMES_LG2 = 4;

export interface PageRequestSink {
  take(rid: number, request: PageRequest): void;
  /** Requests were lost: groups that are not whole never will be. */
  overflowed(): void;
}

export interface PageRequestQueueContext {
  readonly name: string;
  readonly memory: HostMemory;
  readonly registers: Registers;
  readonly queue: InvalidationQueue;
  readonly msi: MsiController;
  readonly sink: PageRequestSink;
  /** Log2 of the queue's frames. */
  readonly framesLg2?: number | undefined;
}

export class PageRequestQueue {
  readonly #context: PageRequestQueueContext;
  readonly #base: number;
  readonly #frames: number;
  readonly #message: Message;
  readonly #words = new Uint32Array(PageRequestDescriptor.words);
  #busy = false;

  constructor(context: PageRequestQueueContext) {
    this.#context = context;
    const { memory, registers, msi, name, framesLg2 = FRAMES_LG2 } = context;
    this.#frames = 2 ** framesLg2;
    this.#base = memory.allocate(this.#frames);
    if (this.#base < 0) throw new LinuxError("ENOMEM", "no host memory for the page request queue", name);
    registers.write64(Register.PQH, 0n);
    registers.write64(Register.PQT, 0n);
    registers.write64(Register.PQA, PqaRegister.make({ PQS: framesLg2, PQA: this.#base }));
    this.#message = msi.allocate(() => context.queue.whenIdle(() => this.service()));
    enableEvent(registers, Register.PECTL, this.#message);
  }

  /** Takes every request that is in the queue. */
  service(): void {
    if (this.#busy) return;
    this.#busy = true;
    const { registers, sink } = this.#context;
    try {
      do {
        registers.write32(Register.PRS, Prs.PPR);
        this.#takeAll();
        if (registers.read32(Register.PRS) & Prs.PRO) {
          sink.overflowed();
          registers.write32(Register.PRS, Prs.PRO);
        }
      } while (registers.read32(Register.PRS) & Prs.PPR);
    } finally {
      this.#busy = false;
    }
  }

  /** The unit is off. */
  free(): void {
    this.#message.free();
    this.#context.memory.free(this.#base, this.#frames);
  }

  #takeAll(): void {
    const { registers } = this.#context;
    const bytes = this.#frames * FRAME_BYTES;
    let head = Number(registers.read64(Register.PQH));
    while (head !== Number(registers.read64(Register.PQT))) {
      this.#take(head);
      head = (head + PageRequestDescriptor.bytes) % bytes;
      registers.write64(Register.PQH, BigInt(head));
    }
  }

  #take(head: number): void {
    const { memory, sink } = this.#context;
    const words = this.#words;
    for (let at = 0; at < words.length; at += 2) {
      memory.load64(this.#base + head + at * 4);
      words[at] = memory.lo;
      words[at + 1] = memory.hi;
    }
    const { PP, RID, PASID, EXE, PRIV, RD, WR, LPIG, PRGI, ADDR } = PageRequestDescriptor.fields;
    const permissions =
      (RD.get(words) && RequestPermission.read) |
      (WR.get(words) && RequestPermission.write) |
      (EXE.get(words) && RequestPermission.execute) |
      (PRIV.get(words) && RequestPermission.privileged);
    const last = LPIG.get(words) === 1;
    // §7.10 A stop marker wants nothing, and no answer.
    if (last && (permissions & (RequestPermission.read | RequestPermission.write)) === 0) return;
    sink.take(RID.get(words), {
      ...(PP.get(words) === 1 && { pasid: PASID.get(words) }),
      group: PRGI.get(words),
      last,
      address: BigInt(ADDR.get(words)),
      permissions,
    });
  }
}
