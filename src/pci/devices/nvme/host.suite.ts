/**
 * A small NVMe driver for tests: initialises a controller as §7.6.1 says, makes queues, builds PRPs, submits and
 * collects. Its memory is the rig's; addresses are physical ones, as the rig's unit translates one to one.
 */
import { MSI_BASE, type Rig, read32, turnOn, write32 } from "../../rig.suite.ts";
import type { Nvme } from "./nvme.ts";
import {
  Admin,
  Cap,
  Cc,
  CQE_BYTES,
  CQE_LG2,
  Csts,
  Feature,
  Nvm,
  Register,
  SQE_BYTES,
  SQE_LG2,
  StatusWord,
} from "./spec.ts";

export interface Submission {
  readonly opcode: number;
  readonly nsid?: number;
  /** PRP1 and PRP2. */
  readonly prps?: readonly number[];
  readonly cdw10?: number;
  readonly cdw11?: number;
  readonly cdw12?: number;
  readonly cdw13?: number;
  /** Bits 15:8 of dword 0: fused operation and PSDT. */
  readonly flags?: number;
}

export interface Completion {
  readonly cid: number;
  readonly sqid: number;
  readonly sqHead: number;
  readonly result: number;
  /** Type << 8 | code, without DNR. */
  readonly status: number;
  readonly dnr: boolean;
}

export interface HostQueue {
  readonly id: number;
  readonly size: number;
  readonly sq: number;
  readonly cq: number;
  tail: number;
  head: number;
  phase: number;
  cid: number;
}

const MSIX_CAPABILITY = 0x60;
const { EN, MPS, IOSQES, IOCQES, SHN } = Cc.fields;

export class NvmeHost {
  readonly admin: HostQueue;
  readonly rig: Rig;
  readonly device: Nvme;
  readonly pageBytes: number;
  readonly stride: number;
  #next = 0x10_0000;

  constructor(rig: Rig, device: Nvme, pageBytes = 4096, entries = 16) {
    this.rig = rig;
    this.device = device;
    this.pageBytes = pageBytes;
    turnOn(device);
    this.stride = 4 << Cap.fields.DSTRD.get([read32(device, 0, 0), read32(device, 0, 4)]);
    this.admin = this.#queue(0, entries);
  }

  /** Fresh pages; each call begins a page, and its pages are contiguous. */
  allocate(bytes: number): number {
    const at = Math.ceil(this.#next / this.pageBytes) * this.pageBytes;
    this.#next = at + Math.ceil(bytes / this.pageBytes) * this.pageBytes;
    this.rig.memory.fill(at, this.#next - at, 0);
    return at;
  }

  get csts(): number {
    return read32(this.device, 0, Register.CSTS);
  }
  get ready(): boolean {
    return (this.csts & Csts.fields.RDY.mask) !== 0;
  }
  get fatal(): boolean {
    return (this.csts & Csts.fields.CFS.mask) !== 0;
  }

  /** Sets up the admin queues and enables; RDY comes when the rig has worked. */
  enable(): void {
    const { device, admin } = this;
    write32(device, 0, Register.CC, 0);
    admin.tail = admin.head = 0;
    admin.phase = 1;
    this.rig.memory.fill(admin.cq, admin.size * CQE_BYTES, 0);
    write32(device, 0, Register.AQA, ((admin.size - 1) << 16) | (admin.size - 1));
    write32(device, 0, Register.ASQ, admin.sq);
    write32(device, 0, Register.ASQ + 4, 0);
    write32(device, 0, Register.ACQ, admin.cq);
    write32(device, 0, Register.ACQ + 4, 0);
    this.configure();
  }

  configure(shutdown = 0): void {
    const cc =
      EN.mask |
      (Math.log2(this.pageBytes / 4096) << MPS.shift) |
      (SQE_LG2 << IOSQES.shift) |
      (CQE_LG2 << IOCQES.shift) |
      (shutdown << SHN.shift);
    write32(this.device, 0, Register.CC, cc);
  }

  /** Every vector v sends v as its data. */
  useMsix(vectors: number): void {
    for (let vector = 0; vector < vectors; vector++) {
      write32(this.device, 4, vector * 16, MSI_BASE);
      write32(this.device, 4, vector * 16 + 4, 0);
      write32(this.device, 4, vector * 16 + 8, vector);
      write32(this.device, 4, vector * 16 + 12, 0);
    }
    this.device.configWrite(MSIX_CAPABILITY + 2, 2, 0x8000);
  }

  /** Enabled, with MSI-X, and `queues` I/O queue pairs that signal vector = their number. */
  initialise(queues = 1, entries = 32): HostQueue[] {
    this.enable();
    this.useMsix(queues + 1);
    this.rig.settle();
    if (!this.ready) throw new Error("the controller did not become ready");
    this.expect({ opcode: Admin.SET_FEATURES, cdw10: Feature.NUMBER_OF_QUEUES, cdw11: 0 });
    return Array.from({ length: queues }, (_, i) => this.createQueue(i + 1, entries));
  }

  createQueue(id: number, entries: number): HostQueue {
    const queue = this.#queue(id, entries);
    const size = (entries - 1) << 16;
    this.expect({ opcode: Admin.CREATE_CQ, prps: [queue.cq], cdw10: size | id, cdw11: (id << 16) | 3 });
    this.expect({ opcode: Admin.CREATE_SQ, prps: [queue.sq], cdw10: size | id, cdw11: (id << 16) | 1 });
    return queue;
  }

  #queue(id: number, size: number): HostQueue {
    const sq = this.allocate(size * SQE_BYTES);
    const cq = this.allocate(size * CQE_BYTES);
    return { id, size, sq, cq, tail: 0, head: 0, phase: 1, cid: 0 };
  }

  /** Writes an entry; the doorbell is rung by `ring`. Returns the command identifier. */
  push(queue: HostQueue, submission: Submission): number {
    const { opcode, nsid = 0, prps = [], cdw10 = 0, cdw11 = 0, cdw12 = 0, cdw13 = 0, flags = 0 } = submission;
    const cid = queue.cid;
    queue.cid = (queue.cid + 1) & 0xffff;
    const words = new Uint32Array(16);
    words[0] = opcode | (flags << 8) | (cid << 16);
    words[1] = nsid;
    for (let i = 0; i < 2; i++) {
      words[6 + 2 * i] = (prps[i] ?? 0) >>> 0;
      words[7 + 2 * i] = Math.floor((prps[i] ?? 0) / 2 ** 32);
    }
    words.set([cdw10, cdw11, cdw12, cdw13], 10);
    this.rig.memory.writeBytes(queue.sq + queue.tail * SQE_BYTES, new Uint8Array(words.buffer));
    queue.tail = (queue.tail + 1) % queue.size;
    return cid;
  }

  ring(queue: HostQueue): void {
    write32(this.device, 0, Register.DOORBELLS + 2 * queue.id * this.stride, queue.tail);
  }

  submit(queue: HostQueue, submission: Submission): number {
    const cid = this.push(queue, submission);
    this.ring(queue);
    return cid;
  }

  /** What has completed, by the phase bits; tells the controller unless `keep`. */
  collect(queue: HostQueue, keep = false): Completion[] {
    const found: Completion[] = [];
    const bytes = new Uint8Array(CQE_BYTES);
    const view = new DataView(bytes.buffer);
    for (;;) {
      this.rig.memory.readBytes(queue.cq + queue.head * CQE_BYTES, bytes);
      const status = view.getUint16(14, true);
      if ((status & 1) !== queue.phase) break;
      found.push({
        cid: view.getUint16(12, true),
        sqid: view.getUint16(10, true),
        sqHead: view.getUint16(8, true),
        result: view.getUint32(0, true),
        status: (status >>> 1) & 0x7ff,
        dnr: (status & StatusWord.fields.DNR.mask) !== 0,
      });
      queue.head = (queue.head + 1) % queue.size;
      if (queue.head === 0) queue.phase ^= 1;
    }
    if (found.length > 0 && !keep) this.consumed(queue);
    return found;
  }

  consumed(queue: HostQueue): void {
    write32(this.device, 0, Register.DOORBELLS + (2 * queue.id + 1) * this.stride, queue.head);
  }

  /** One command from submission to completion. */
  run(queue: HostQueue, submission: Submission): Completion {
    const cid = this.submit(queue, submission);
    this.rig.settle();
    const completion = this.collect(queue).find((one) => one.cid === cid);
    if (!completion) throw new Error(`command ${cid} of queue ${queue.id} did not complete`);
    return completion;
  }

  /** An admin command that must succeed; returns its result. */
  expect(submission: Submission): number {
    const { status, result } = this.run(this.admin, submission);
    if (status !== 0)
      throw new Error(`admin command ${submission.opcode} failed with 0x${status.toString(16)}`);
    return result;
  }

  /** PRP1 and PRP2 for pages (addresses), of which the first is begun at `offset`; a list when there are three. */
  prps(pages: readonly number[], offset = 0): number[] {
    const [first = 0, second = 0, ...more] = pages;
    if (more.length === 0) return [first + offset, second];
    return [first + offset, this.list(pages.slice(1))];
  }

  /** A PRP list of these pages, chained over as many pages as it takes; its address. */
  list(pages: readonly number[], startOffset = 0): number {
    const start = this.allocate(this.pageBytes) + startOffset;
    let at = start;
    let room = (this.pageBytes - startOffset) / 8;
    for (const [index, page] of pages.entries()) {
      if (room === 1 && index < pages.length - 1) {
        const next = this.allocate(this.pageBytes);
        this.rig.memory.store64(at, next >>> 0, Math.floor(next / 2 ** 32));
        at = next;
        room = this.pageBytes / 8;
      }
      this.rig.memory.store64(at, page >>> 0, Math.floor(page / 2 ** 32));
      at += 8;
      room -= 1;
    }
    return start;
  }

  io(opcode: number, lba: number, blocks: number, prps: readonly number[] = []): Submission {
    return {
      opcode,
      nsid: 1,
      prps,
      cdw10: lba >>> 0,
      cdw11: Math.floor(lba / 2 ** 32),
      cdw12: blocks - 1,
    };
  }

  read(queue: HostQueue, lba: number, blocks: number, prps: readonly number[]): Completion {
    return this.run(queue, this.io(Nvm.READ, lba, blocks, prps));
  }

  write(queue: HostQueue, lba: number, blocks: number, prps: readonly number[]): Completion {
    return this.run(queue, this.io(Nvm.WRITE, lba, blocks, prps));
  }

  bytes(pa: number, length: number): Uint8Array {
    const into = new Uint8Array(length);
    this.rig.memory.readBytes(pa, into);
    return into;
  }
}
