/**
 * An NVM Express controller (Base Specification 1.4) as a PCI Express function: the register file of §3.1, doorbells,
 * interrupts (§7.5), enabling, controller and subsystem reset, shutdown (§7.3, §7.6). Doorbells only
 * note what was written; the engine does the work afterwards, in slices given by the scheduler.
 *
 * Left out: everything `spec.ts` and `admin.ts` leave out; more than one controller in the subsystem.
 */
import { serialNumber } from "../../capabilities.ts";
import type { PciAddress } from "../../function.ts";
import { type BarShape, Endpoint, type FunctionContext } from "../../pci-function.ts";
import { MsixEntry } from "../../spec.ts";
import { Admin } from "./admin.ts";
import { Engine } from "./engine.ts";
import { Features } from "./features.ts";
import { extension, type Identity } from "./identify.ts";
import { decodeIo, firstBlock, type IoContext } from "./io.ts";
import { Logs } from "./logs.ts";
import { flushAll, type Namespace, openNamespaces } from "./namespace.ts";
import { type CheckedOptions, checkOptions, type NvmeOptions } from "./options.ts";
import { type Command, CompletionQueue, SubmissionQueue } from "./queue.ts";
import {
  Aqa,
  AsyncEvent,
  Cap,
  Cc,
  CLASS_CODE,
  CommandWord,
  Csts,
  Feature,
  PCI_IDS,
  Register,
  StatusCode,
  SUBSYSTEM_RESET,
  statusName,
  VERSION_1_4,
} from "./spec.ts";

/** MLBAR has bits 31:14: at least 16 KiB. */
const SMALLEST_REGISTER_BAR = 16 * 1024;
const PAGE = 4096;
const MSI_VECTORS_LG2 = 5;
const MSIX_BAR = 4;
/** 500 ms. */
const TIMEOUT = 1;
/** Pages up to 64 KiB. */
const LARGEST_PAGE = 4;
const QUEUE_ADDRESS_MASK = ~0xfff;
const Shutdown = { NORMAL: 0, OCCURRING: 1, COMPLETE: 2 } as const;
const { EN, CSS, MPS, AMS, SHN } = Cc.fields;
const { RDY, CFS, SHST, NSSRO } = Csts.fields;
const { ASQS, ACQS } = Aqa.fields;

const powerOfTwo = (bytes: number): number => 2 ** Math.ceil(Math.log2(bytes));

/** BAR 0 registers and doorbells, BAR 4 the MSI-X table and, on a page of its own, its pending bits. */
const shapeOf = (options: CheckedOptions, address: PciAddress) => {
  const vectors = options.queues + 1;
  const registers = Register.DOORBELLS + 2 * vectors * (4 << options.dstrd);
  const pending = Math.ceil((vectors * MsixEntry.BYTES) / PAGE) * PAGE;
  const bars: BarShape[] = [
    { index: 0, kind: "mem64", size: Math.max(SMALLEST_REGISTER_BAR, powerOfTwo(registers)) },
    { index: MSIX_BAR, kind: "mem32", size: powerOfTwo(pending + PAGE) },
  ];
  return {
    model: "nvme",
    vendorId: PCI_IDS.vendor,
    deviceId: PCI_IDS.device,
    classCode: CLASS_CODE,
    revision: 1,
    interruptPin: 1,
    msiVectorsLg2: MSI_VECTORS_LG2,
    msix: { vectors, bar: MSIX_BAR, table: 0, pending },
    capabilities: [
      serialNumber(extension({ serial: options.serial, controllerId: controllerId(address) }), 0),
    ],
    bars,
  };
};

const controllerId = ({ bus, device, function: number }: PciAddress): number =>
  (bus << 8) | (device << 3) | number;

export class Nvme extends Endpoint {
  readonly #options: CheckedOptions;
  readonly #namespaces: readonly Namespace[];
  readonly #engine: Engine;
  readonly #admin: Admin;
  readonly #features: Features;
  readonly #logs = new Logs();
  readonly #io: IoContext;
  /** Registers below END as words, and as the bytes a read sees. */
  readonly #registers = new Uint32Array(Register.END / 4);
  readonly #image = new Uint8Array(this.#registers.buffer);
  readonly #stride: number;
  /** INTMS: vectors the host has masked (line and MSI). */
  #masked = 0;

  /** Throws a RangeError for options that cannot be, or what opening the file throws. */
  constructor(context: FunctionContext, options: NvmeOptions = {}) {
    const checked = checkOptions(options);
    super(shapeOf(checked, context.address), context);
    this.#options = checked;
    this.#stride = 4 << checked.dstrd;
    this.#namespaces = openNamespaces(checked.namespaces);
    const maxTransfer = PAGE * 2 ** checked.mdts;
    const identity: Identity = {
      serial: checked.serial,
      mdts: checked.mdts,
      controllerId: controllerId(context.address),
      namespaces: this.#namespaces.length,
    };
    const vectors = checked.queues + 1;
    this.#features = new Features({ queues: checked.queues, vectors, namespaces: identity.namespaces });
    this.#engine = new Engine({
      dma: this.dma,
      defer: (work) => this.scheduler.defer(work),
      deferPastPrograms: (work) => this.scheduler.deferPastPrograms(work),
      execute: (command) => this.#execute(command),
      finished: (command) => this.#finished(command),
      posted: (cq) => this.#notify(cq),
      fatal: (reason) => this.#fatal(reason),
    });
    const shared = { namespaces: this.#namespaces, maxTransfer, logs: this.#logs };
    this.#admin = new Admin({
      ...shared,
      identity,
      engine: this.#engine,
      features: this.#features,
      queues: checked.queues,
      queueEntries: checked.queueEntries,
      vectors,
      now: () => this.clock.now(),
      configuration: () => this.#register(Register.CC),
    });
    this.#io = {
      ...shared,
      pageBytes: () => this.#engine.pageBytes,
      cached: () => this.#features.value(Feature.VOLATILE_WRITE_CACHE) !== 0,
    };
    this.#powerOn();
  }

  override close(): void {
    super.close();
    for (const { media } of this.#namespaces) media.close();
  }

  protected readBar(_index: number, offset: number, into: Uint8Array): void {
    for (let i = 0; i < into.length; i++) into[i] = this.#image[offset + i] ?? 0;
  }

  protected writeBar(index: number, offset: number, data: Uint8Array): void {
    if (this.#engine.busy) {
      const copy = data.slice();
      this.scheduler.defer(() => this.barWrite(index, offset, copy));
      return;
    }
    if ((offset | data.length) & 3) return; // registers are written by dwords
    for (let at = 0; at < data.length; at += 4) {
      const value = (data[at]! | (data[at + 1]! << 8) | (data[at + 2]! << 16) | (data[at + 3]! << 24)) >>> 0;
      const register = offset + at;
      if (register >= Register.DOORBELLS) this.#ring(register - Register.DOORBELLS, value);
      else this.#write(register, value);
    }
  }

  protected resetModel(): void {
    this.#engine.clear();
    this.#admin.clear();
    this.#features.reset();
    this.#powerOn();
  }

  protected override reconfigured(): void {
    this.#run();
    this.#driveByQueues();
  }

  #powerOn(): void {
    const { queueEntries, dstrd } = this.#options;
    this.#masked = 0;
    this.#registers.fill(0);
    Cap.toWords(
      Cap.make({
        MQES: queueEntries - 1,
        CQR: true,
        TO: TIMEOUT,
        DSTRD: dstrd,
        NSSRS: true,
        CSS: 1,
        MPSMAX: LARGEST_PAGE,
      }),
      this.#registers,
      Register.CAP / 4,
    );
    this.#registers[Register.VS / 4] = VERSION_1_4;
  }

  #register(offset: number): number {
    return this.#registers[offset / 4]!;
  }

  #set(offset: number, value: number): void {
    this.#registers[offset / 4] = value;
  }

  #write(offset: number, value: number): void {
    switch (offset) {
      case Register.INTMS:
        this.#mask(this.#masked | value);
        break;
      case Register.INTMC:
        this.#mask(this.#masked & ~value);
        break;
      case Register.CC:
        this.#configure(value);
        break;
      case Register.CSTS:
        if (value & NSSRO.mask) this.#set(offset, this.#register(offset) & ~NSSRO.mask);
        break;
      case Register.NSSR:
        if (value === SUBSYSTEM_RESET) this.#resetSubsystem();
        break;
      case Register.AQA:
        this.#set(offset, value & (ASQS.mask | ACQS.mask));
        break;
      case Register.ASQ:
      case Register.ACQ:
        this.#set(offset, value & QUEUE_ADDRESS_MASK);
        break;
      case Register.ASQ + 4:
      case Register.ACQ + 4:
        this.#set(offset, value);
        break;
    }
  }

  /** §3.1.5. The controller becomes ready, and shuts down, after the write has been answered. */
  #configure(value: number): void {
    const before = this.#register(Register.CC);
    const defined = Object.values(Cc.fields).reduce((all, { mask }) => all | mask, 0);
    this.#set(Register.CC, value & defined);
    const enabling = (value & EN.mask) !== 0 && (before & EN.mask) === 0;
    if ((value & EN.mask) === 0 && (before & EN.mask) !== 0) this.#resetController();
    if (enabling) this.#later(() => this.#enable());
    const shutdown = (value & SHN.mask) !== 0 && (before & SHN.mask) === 0;
    if (shutdown) {
      this.#setShutdown(Shutdown.OCCURRING);
      this.#later(() => this.#shutDown());
    } else if (enabling) this.#setShutdown(Shutdown.NORMAL);
  }

  /** Work for after the present access, unless CC has been written or reset meanwhile. */
  #later(work: () => void): void {
    const written = this.#register(Register.CC);
    this.scheduler.defer(() => {
      if (this.#register(Register.CC) === written) work();
    });
  }

  #setShutdown(state: number): void {
    const csts = this.#register(Register.CSTS) & ~SHST.mask;
    this.#set(Register.CSTS, csts | (state << SHST.shift));
  }

  #shutDown(): void {
    flushAll(this.#namespaces);
    this.#setShutdown(Shutdown.COMPLETE);
    this.#tell("shutdown");
  }

  /** §7.6.1: the settings are taken over, the admin queues exist, RDY is set. */
  #enable(): void {
    const words = this.#registers;
    const cc = [this.#register(Register.CC)];
    const aqa = [this.#register(Register.AQA)];
    if (this.#register(Register.CSTS) & (RDY.mask | CFS.mask)) return;
    const wrong = this.#whyNotReady(cc, aqa);
    if (wrong) {
      this.#fatal(wrong);
      return;
    }
    this.#engine.pageBytes = PAGE << MPS.get(cc);
    const [acqLo = 0, acqHi = 0] = words.subarray(Register.ACQ / 4);
    const [asqLo = 0, asqHi = 0] = words.subarray(Register.ASQ / 4);
    const cq = new CompletionQueue(0, ACQS.get(aqa) + 1, acqLo, acqHi, 0, true);
    this.#engine.addCompletionQueue(cq);
    this.#engine.addSubmissionQueue(new SubmissionQueue(0, ASQS.get(aqa) + 1, asqLo, asqHi, cq));
    this.#set(Register.CSTS, this.#register(Register.CSTS) | RDY.mask);
    this.#run();
    this.#tell("ready");
  }

  #whyNotReady(cc: readonly number[], aqa: readonly number[]): string | undefined {
    if (CSS.get(cc) !== 0) return `CC.CSS is ${CSS.get(cc)}; only the NVM command set, 0, is here`;
    if (AMS.get(cc) !== 0) return `CC.AMS is ${AMS.get(cc)}; only round robin, 0, is here`;
    if (MPS.get(cc) > LARGEST_PAGE) return `CC.MPS is ${MPS.get(cc)}; CAP.MPSMAX is ${LARGEST_PAGE}`;
    if (ASQS.get(aqa) === 0 || ACQS.get(aqa) === 0) return "an admin queue of AQA has less than two entries";
    const inside = (PAGE << MPS.get(cc)) - 1;
    if ((this.#register(Register.ASQ) | this.#register(Register.ACQ)) & inside)
      return "ASQ or ACQ is not at the beginning of a page of CC.MPS";
    return undefined;
  }

  /** §7.3.2: queues and features are gone; AQA, ASQ, ACQ stay as they are. */
  #resetController(): void {
    this.dropRequests();
    this.#engine.clear();
    this.#admin.clear();
    this.#features.reset();
    this.#masked = 0;
    this.#showMask();
    this.#set(Register.CSTS, this.#register(Register.CSTS) & NSSRO.mask);
    this.drive(false);
    this.#tell("controller reset");
  }

  /** §7.3.1 */
  #resetSubsystem(): void {
    this.#resetController();
    this.#powerOn();
    this.#set(Register.CSTS, NSSRO.mask);
  }

  /** The engine may work: ready, nothing fatal, and a bus master. */
  #run(): void {
    const csts = this.#register(Register.CSTS);
    this.#engine.running = (csts & (RDY.mask | CFS.mask)) === RDY.mask && this.dma.mastering;
  }

  #fatal(reason: string): void {
    this.#set(Register.CSTS, this.#register(Register.CSTS) | CFS.mask);
    this.#run();
    const fault = this.events.on ? this.dma.lastFault?.reason : undefined;
    if (this.events.on)
      this.events.emit("device", {
        device: this.name,
        what: "fatal status",
        reason,
        ...(fault && { fault }),
      });
  }

  #tell(what: string): void {
    if (this.events.on) this.events.emit("device", { device: this.name, what });
  }

  /** §3.1.24, §3.1.25: a doorbell, by its offset from the first. */
  #ring(offset: number, value: number): void {
    const csts = this.#register(Register.CSTS);
    if ((csts & (RDY.mask | CFS.mask)) !== RDY.mask) return;
    const index = offset / this.#stride;
    const id = index >>> 1;
    const isHead = (index & 1) === 1;
    const queue = Number.isInteger(index)
      ? isHead
        ? this.#engine.cqs[id]
        : this.#engine.sqs[id]
      : undefined;
    if (!queue) {
      this.#admin.report(AsyncEvent.INVALID_DOORBELL_REGISTER);
      return;
    }
    const to = value & 0xffff;
    if (to >= queue.size) this.#admin.report(AsyncEvent.INVALID_DOORBELL_VALUE);
    else if (queue instanceof CompletionQueue) this.#consumed(queue, to);
    else {
      queue.tail = to;
      this.#engine.kick();
    }
  }

  #consumed(cq: CompletionQueue, head: number): void {
    const count = (head - cq.head + cq.size) % cq.size;
    if (count > cq.unread) {
      this.#admin.report(AsyncEvent.INVALID_DOORBELL_VALUE);
      return;
    }
    cq.head = head;
    this.#engine.room(cq);
    this.#driveByQueues();
  }

  #execute(command: Command): void {
    const { PSDT, FUSE } = CommandWord.fields;
    const plain = (command.words[0]! & (PSDT.mask | FUSE.mask)) === 0;
    if (!plain) command.status = StatusCode.INVALID_FIELD;
    else if (command.sq?.id === 0) command.status = this.#admin.decode(command);
    else command.status = decodeIo(command, this.#io);
  }

  #finished(command: Command): void {
    const { status, nsid, cid } = command;
    if (status === StatusCode.SUCCESS) return;
    const sqid = command.sq?.id ?? 0;
    const lba = sqid === 0 ? 0 : firstBlock(command);
    if (status === StatusCode.UNRECOVERED_READ || status === StatusCode.WRITE_FAULT)
      this.#logs.mediaErrors += 1;
    this.#logs.failed({ sqid, cid, status, nsid, lba });
    if (!this.events.on) return;
    const fault = status === StatusCode.DATA_TRANSFER_ERROR ? this.dma.lastFault : undefined;
    this.events.emit("device", {
      device: this.name,
      what: "command failed",
      queue: sqid,
      command: cid,
      opcode: command.opcode,
      status: statusName(status),
      ...(fault && { address: fault.address, reason: fault.reason }),
    });
  }

  /** §7.5: a queue has new entries. INTMS does not apply to MSI-X. */
  #notify(cq: CompletionQueue): void {
    if (!cq.interrupts) return;
    if (this.msixOn || !this.#isMasked(cq.vector)) this.signal(cq.vector);
    this.#driveByQueues();
  }

  #isMasked(vector: number): boolean {
    return vector < 32 && (this.#masked & (1 << vector)) !== 0;
  }

  #mask(masked: number): void {
    const opened = this.#masked & ~masked;
    this.#masked = masked;
    this.#showMask();
    if (this.msiOn && opened)
      for (const cq of this.#engine.cqs)
        if (cq?.interrupts && cq.unread > 0 && cq.vector < 32 && opened & (1 << cq.vector))
          this.signal(cq.vector);
    this.#driveByQueues();
  }

  #showMask(): void {
    this.#set(Register.INTMS, this.#masked);
    this.#set(Register.INTMC, this.#masked);
  }

  /** The line is up while a queue has entries the host has not consumed; vector 0 stands for all. */
  #driveByQueues(): void {
    if (this.messages) return;
    this.drive(!this.#isMasked(0) && this.#engine.cqs.some((cq) => cq?.interrupts && cq.unread > 0));
  }
}

/** A controller with its namespaces; see `NvmeOptions`. Throws a RangeError for options that cannot be. */
export const createNvme = (context: FunctionContext, options: NvmeOptions = {}): Nvme =>
  new Nvme(context, options);
