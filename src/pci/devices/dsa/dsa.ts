/**
 * Intel's Data Streaming Accelerator, version 1.0 (Intel Data Streaming Accelerator Architecture Specification): a function
 * that copies, fills and compares memory for whoever writes descriptors to the portals of its work queues. Software shares
 * out queues and engines to groups (BAR 0), enables the device and queues by commands, and is told of the end of a
 * descriptor by a completion record, an interrupt, or the software error register.
 *
 * An interrupt handle is the number of its MSI-X vector; it is valid without having been requested, and never revoked. What
 * is aborted leaves no record. Left out: delta records, data integrity fields, cache flush, readback, occupancy interrupts,
 * read buffers, traffic classes (they are accepted), halting, and what `spec.ts` leaves out.
 */
import { NO_PASID } from "../../../hardware/unit.ts";
import { Endpoint, type FunctionContext } from "../../pci-function.ts";
import { type RequestAbilities, requestCapabilities } from "../requests.ts";
import type { EngineAccess, Program } from "./access.ts";
import { Commands } from "./commands.ts";
import { check, type Descriptor, isCompletionMisplaced, type Outcome, recordOf } from "./descriptor.ts";
import { Engine } from "./engine.ts";
import { Group } from "./group.ts";
import { batch, operate, SUCCESS } from "./operations.ts";
import { DsaQueue } from "./queue.ts";
import { CAUSES, DsaRegisters } from "./registers.ts";
import {
  DESCRIPTOR_BYTES,
  DeviceState,
  DSA_IDS,
  DsaDescriptor,
  DsaFlag,
  DsaOperation,
  DsaRegister,
  DsaStatus,
  ENGINES,
  GenCtrl,
  GROUPS,
  IntCause,
  PORTAL_BAR,
  PORTAL_BYTES,
  PORTALS_A_QUEUE,
  QUEUES,
  REGISTER_BAR,
  REGISTER_BYTES,
  STATUS_WRITE,
  SwErr,
  VECTORS,
} from "./spec.ts";

/** The vector of errors and commands. */
const DEVICE_VECTOR = 0;

/** What goes to the software error register, beside the descriptor. */
interface SoftwareError {
  readonly error: number;
  readonly queue: number;
  readonly write?: boolean;
  readonly invalidFlags?: number;
  readonly address?: { readonly lo: number; readonly hi: number };
}

export class Dsa extends Endpoint {
  readonly #registers = new DsaRegisters();
  readonly #queues = Array.from({ length: QUEUES }, (_, index) => new DsaQueue(index));
  readonly #engines: readonly Engine[];
  readonly #commands: Commands;
  /** While the device is enabled. */
  #groups: readonly Group[] = [];
  #groupOfEngine: readonly (Group | undefined)[] = [];

  constructor(context: FunctionContext, abilities: RequestAbilities = {}) {
    super(
      {
        model: "dsa",
        ...DSA_IDS,
        msix: {
          vectors: VECTORS,
          bar: REGISTER_BAR,
          table: DsaRegister.MSIX_TABLE,
          pending: DsaRegister.MSIX_PENDING,
        },
        capabilities: requestCapabilities({ execute: false, ...abilities }),
        bars: [
          { index: REGISTER_BAR, kind: "mem64", size: REGISTER_BYTES },
          { index: PORTAL_BAR, kind: "mem64", size: QUEUES * PORTALS_A_QUEUE * PORTAL_BYTES },
        ],
      },
      context,
    );
    const { dma, scheduler } = this;
    this.#engines = Array.from(
      { length: ENGINES },
      (_, index) =>
        new Engine({
          dma,
          scheduler,
          next: () => this.#nextFor(index),
          execute: (descriptor, access) => this.#execute(descriptor, access),
          isOldest: (descriptor) => this.#queues[descriptor.rules.queue]!.isOldest(descriptor),
          ended: (descriptor) => this.#ended(descriptor),
        }),
    );
    this.#commands = new Commands({
      registers: this.#registers,
      queues: this.#queues,
      engines: this.#engines,
      scheduler,
      rights: () => ({ mastering: dma.mastering, ...rightsOf(dma.pasids) }),
      show: () => this.#showQueues(),
      enabled: () => this.#formGroups(),
      ended: (interrupt) => this.#cause(IntCause.fields.Command.mask, interrupt),
    });
  }

  protected readBar(index: number, offset: number, into: Uint8Array): void {
    if (index === REGISTER_BAR) this.#registers.read(offset, into);
    else into.fill(0xff);
  }

  protected writeBar(index: number, offset: number, data: Uint8Array): void {
    if (index === PORTAL_BAR) this.#submit(offset, data);
    else if (((offset | data.length) & 3) === 0) {
      const view = new DataView(data.buffer, data.byteOffset, data.length);
      for (let at = 0; at < data.length; at += 4) this.#write(offset + at, view.getUint32(at, true));
    }
  }

  protected override enqueueBar(index: number, offset: number, command: Uint8Array): boolean {
    if (index !== PORTAL_BAR) return false;
    const taken = this.#queueAt(offset).enqueue(command, isLimited(offset));
    if (taken) this.#work();
    return taken;
  }

  protected resetModel(): void {
    this.#commands.reset();
    for (const queue of this.#queues) queue.disable();
    for (const engine of this.#engines) engine.abort(() => true);
    this.#registers.reset();
    this.#groups = [];
    this.#groupOfEngine = [];
  }

  #write(offset: number, value: number): void {
    const { INTCAUSE, CMD, SWERR } = DsaRegister;
    const registers = this.#registers;
    if (offset === CMD) this.#commands.begin(value);
    else if (offset === INTCAUSE) registers.set(INTCAUSE, registers.get(INTCAUSE) & ~(value & CAUSES));
    else if (offset === SWERR) {
      const { Valid, Overflow } = SwErr.fields;
      registers.set(SWERR, registers.get(SWERR) & ~(value & (Valid.mask | Overflow.mask)));
    } else registers.write(offset, value, (queue) => this.#queues[queue]!.state === 0);
  }

  #queueAt(offset: number): DsaQueue {
    return this.#queues[Math.floor(offset / (PORTALS_A_QUEUE * PORTAL_BYTES))]!;
  }

  /** Portals take whole, aligned descriptors; what else is written there is nothing. */
  #submit(offset: number, data: Uint8Array): void {
    if (data.length !== DESCRIPTOR_BYTES || offset % DESCRIPTOR_BYTES !== 0) return;
    const queue = this.#queueAt(offset);
    const error = queue.submit(data);
    if (error === 0) this.#work();
    else this.#report({ error, queue: queue.index });
  }

  #work(): void {
    this.#showQueues();
    for (const engine of this.#engines) engine.kick();
  }

  #showQueues(): void {
    for (const { index, state, occupancy } of this.#queues) this.#registers.show(index, state, occupancy);
  }

  /** As the tables say when the device is enabled. */
  #formGroups(): void {
    const registers = this.#registers;
    this.#groups = Array.from({ length: GROUPS }, (_, group) => {
      const queues = registers.queuesOf(group);
      return new Group(this.#queues.filter(({ index }) => (queues & (1 << index)) !== 0));
    });
    this.#groupOfEngine = this.#engines.map((_, engine) =>
      this.#groups.find((_group, group) => (registers.enginesOf(group) & (1 << engine)) !== 0),
    );
  }

  #nextFor(engine: number): Descriptor | undefined {
    if (this.#registers.state !== DeviceState.ENABLED) return undefined;
    const descriptor = this.#groupOfEngine[engine]?.next();
    if (descriptor) this.#showQueues();
    return descriptor;
  }

  #ended(descriptor: Descriptor): void {
    this.#queues[descriptor.rules.queue]!.ended(descriptor);
    this.#commands.look();
    for (const engine of this.#engines) engine.kick();
  }

  /** The whole life of a descriptor; answers its status. */
  *#execute(descriptor: Descriptor, access: EngineAccess): Program<number> {
    if (isCompletionMisplaced(descriptor)) {
      this.#fail(descriptor, { status: DsaStatus.COMPLETION_ALIGNMENT });
      return DsaStatus.COMPLETION_ALIGNMENT;
    }
    const wrong = check(descriptor, (handle, pasid) => this.#mayInterrupt(handle, pasid));
    const idle = descriptor.operation === DsaOperation.NOOP ? SUCCESS : undefined;
    const outcome = wrong ?? idle ?? (yield* this.#carryOut(descriptor, access));
    yield* this.#tell(descriptor, outcome, access);
    if (descriptor.has(DsaFlag.REQUEST_INTERRUPT) && outcome.status !== DsaStatus.INTERRUPT_HANDLE)
      this.signal(descriptor.interrupt);
    return outcome.status;
  }

  #carryOut(descriptor: Descriptor, access: EngineAccess): Program<Outcome> {
    if (descriptor.operation !== DsaOperation.BATCH) return operate(descriptor, access);
    return batch(descriptor, access, (one) => this.#execute(one, access));
  }

  *#tell(descriptor: Descriptor, outcome: Outcome, access: EngineAccess): Program<void> {
    const failed = outcome.status !== DsaStatus.SUCCESS && outcome.status !== DsaStatus.UNEXPECTED_RESULT;
    const told = failed ? DsaFlag.COMPLETION_VALID : DsaFlag.REQUEST_COMPLETION;
    if (!descriptor.has(told)) {
      if (failed) this.#fail(descriptor, outcome);
      return;
    }
    const record = recordOf(outcome);
    const { COMPLETION } = DsaDescriptor;
    const written =
      (yield access.post(descriptor, COMPLETION, 1, record.subarray(1))) &&
      (yield access.post(descriptor, COMPLETION, 0, record.subarray(0, 1)));
    if (!written)
      this.#fail(descriptor, { status: DsaStatus.COMPLETION_FAULT | STATUS_WRITE, fault: access.stop });
  }

  #mayInterrupt(handle: number, pasid: number): boolean {
    return this.#registers.allows(handle, pasid === NO_PASID ? -1 : pasid);
  }

  #fail(descriptor: Descriptor, { status, invalidFlags, fault }: Outcome): void {
    const error = status & ~STATUS_WRITE;
    const write = (status & STATUS_WRITE) !== 0;
    this.#report(
      {
        error,
        queue: descriptor.rules.queue,
        write,
        ...(invalidFlags !== undefined && { invalidFlags }),
        ...(fault && { address: fault }),
      },
      descriptor,
    );
  }

  /** The first error stays until software clears it. */
  #report({ error, queue, write, invalidFlags, address }: SoftwareError, descriptor?: Descriptor): void {
    const registers = this.#registers;
    const { SWERR, GENCTRL } = DsaRegister;
    const { Valid, Overflow } = SwErr.fields;
    if (this.events.on)
      this.events.emit("device", { device: this.name, what: "software error", error, queue });
    if (registers.get(SWERR) & Valid.mask) {
      registers.set(SWERR, registers.get(SWERR) | Overflow.mask);
      return;
    }
    const record = SwErr.make({
      Valid: true,
      QueueValid: true,
      Error: error,
      Queue: queue,
      Write: write ?? false,
      InvalidFlags: invalidFlags ?? 0,
      Address: address ? (BigInt(address.hi) << 32n) | BigInt(address.lo) : 0n,
      ...(descriptor && {
        DescriptorValid: true,
        Batch: descriptor.batchIndex >= 0,
        Privileged: descriptor.privileged,
        Operation: descriptor.operation,
        Pasid: descriptor.pasid === NO_PASID ? 0 : descriptor.pasid,
        BatchIndex: Math.max(0, descriptor.batchIndex),
      }),
    });
    const words = new Uint32Array(SwErr.words);
    SwErr.toWords(record, words);
    words.forEach((word, at) => {
      registers.set(SWERR + 4 * at, word);
    });
    const interrupts = (registers.get(GENCTRL) & GenCtrl.fields.SoftwareErrors.mask) !== 0;
    this.#cause(IntCause.fields.SoftwareError.mask, interrupts);
  }

  #cause(cause: number, interrupt: boolean): void {
    const { INTCAUSE } = DsaRegister;
    if (!interrupt) return;
    this.#registers.set(INTCAUSE, this.#registers.get(INTCAUSE) | cause);
    this.signal(DEVICE_VECTOR);
  }
}

const isLimited = (offset: number): boolean => Math.floor(offset / PORTAL_BYTES) % 2 === 1;

const rightsOf = ({ bits, access }: { readonly bits: number; readonly access: number }) => ({
  pasids: bits > 0,
  privileged: access !== 0,
});
