/**
 * A virtio device that is reached by memory-mapped I/O (virtio 1.3, §4.2): registers for features, status, queues and
 * configuration, and one wired interrupt. What the device is, a `VirtioModel` says. A queue that is malformed ends the
 * device until its driver resets it (DEVICE_NEEDS_RESET). The registers of this project are of 4 or 8 bytes, and so is
 * configuration space here, where the specification has bytes and halfwords as well.
 */
import type { EventSink } from "../../base/events.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { MalformedQueue, SplitQueue } from "./split-queue.ts";
import { DeviceStatus, Interrupt, MAGIC, Register, VERSION, VIRTIO_F_VERSION_1 } from "./transport-spec.ts";

/** What makes a virtio device the device that it is. */
export interface VirtioModel {
  readonly name: string;
  readonly deviceId: number;
  /** What it offers, without VERSION_1. */
  readonly features: bigint;
  readonly queues: number;
  /** Configuration space as it is now. */
  readonly config: Uint8Array;
  /** The driver writes a word of configuration space; `accepted`: the features it has accepted. */
  configure(offset: number, value: number, accepted: bigint): void;
  /** There may be buffers in the queue; it is only called while the driver has the device running. Throws MalformedQueue. */
  serve(queue: number): void;
  /** Everything that its driver made it do is undone. */
  reset(): void;
}

export interface MmioDeviceOptions {
  /** The guest's. */
  readonly memory: HostMemory;
  readonly events: EventSink;
  /** Raises the device's interrupt. */
  readonly interrupt: () => void;
}

/** Descriptors of a queue. */
const QUEUE_SIZE = 256;
const VENDOR_ID = 0x5446;
const WORD = 0xffff_ffffn;
const SHIFT = 32n;

/** What the driver has said of a queue. */
class QueueRegisters {
  size = QUEUE_SIZE;
  descriptors = 0n;
  available = 0n;
  used = 0n;
  /** Present while it is ready. */
  queue: SplitQueue | undefined;
}

export class MmioDevice {
  readonly #model: VirtioModel;
  readonly #options: MmioDeviceOptions;
  #status = 0;
  #accepted = 0n;
  #deviceHigh = 0n;
  #driverHigh = 0n;
  #selected = 0;
  #pending = 0;
  #queues: QueueRegisters[];
  /** Queues being served; what its own interrupts set going is served afterwards. */
  #serving = false;
  readonly #notified = new Set<number>();

  constructor(model: VirtioModel, options: MmioDeviceOptions) {
    this.#model = model;
    this.#options = options;
    this.#queues = this.#fresh();
  }

  /** Features that the driver has accepted; 0n before it has. */
  get accepted(): bigint {
    return this.#status & DeviceStatus.FEATURES_OK ? this.#accepted : 0n;
  }

  /** The queue, while the driver has it running. */
  queue(index: number): SplitQueue | undefined {
    const running = (this.#status & DeviceStatus.DRIVER_OK) !== 0 && !this.#broken;
    return running ? this.#queues[index]?.queue : undefined;
  }

  /** The device has something for a queue that it did not have before: whatever goes wrong with that is the guest's. */
  attempt(work: () => void): void {
    try {
      work();
    } catch (error) {
      if (!(error instanceof MalformedQueue)) throw error;
      this.#breakDown(error.message);
    }
  }

  /** The driver is told of used buffers, unless it does not want to know. */
  signal(queue: SplitQueue): void {
    if (queue.interrupts) this.#raise(Interrupt.USED);
  }

  mmioRead(offset: number, width: 4 | 8): bigint {
    const low = BigInt(this.#read(offset));
    return width === 8 ? low | (BigInt(this.#read(offset + 4)) << SHIFT) : low;
  }

  mmioWrite(offset: number, width: 4 | 8, value: bigint): void {
    this.#write(offset, Number(value & WORD));
    if (width === 8) this.#write(offset + 4, Number((value >> SHIFT) & WORD));
  }

  get #broken(): boolean {
    return (this.#status & DeviceStatus.DEVICE_NEEDS_RESET) !== 0;
  }

  get #offered(): bigint {
    return this.#model.features | VIRTIO_F_VERSION_1;
  }

  #read(offset: number): number {
    if (offset >= Register.Config) return wordAt(this.#model.config, offset - Register.Config);
    switch (offset) {
      case Register.MagicValue:
        return MAGIC;
      case Register.Version:
        return VERSION;
      case Register.DeviceID:
        return this.#model.deviceId;
      case Register.VendorID:
        return VENDOR_ID;
      case Register.DeviceFeatures:
        return Number((this.#offered >> this.#deviceHigh) & WORD);
      case Register.QueueNumMax:
        return this.#queues[this.#selected] ? QUEUE_SIZE : 0;
      case Register.QueueReady:
        return this.#queues[this.#selected]?.queue ? 1 : 0;
      case Register.InterruptStatus:
        return this.#pending;
      case Register.Status:
        return this.#status;
      default:
        return 0;
    }
  }

  #write(offset: number, value: number): void {
    if (offset >= Register.Config) {
      this.#model.configure(offset - Register.Config, value, this.accepted);
      return;
    }
    switch (offset) {
      case Register.DeviceFeaturesSel:
        this.#deviceHigh = SHIFT * BigInt(value);
        return;
      case Register.DriverFeaturesSel:
        this.#driverHigh = SHIFT * BigInt(value);
        return;
      case Register.DriverFeatures:
        this.#accept(BigInt(value));
        return;
      case Register.QueueSel:
        this.#selected = value;
        return;
      case Register.QueueNotify:
        this.#notify(value);
        return;
      case Register.InterruptACK:
        this.#pending &= ~value;
        return;
      case Register.Status:
        this.#setStatus(value);
        return;
      default:
        this.#writeQueue(offset, value);
    }
  }

  /** §2.2 Features are settled once they are said to be. */
  #accept(half: bigint): void {
    if (this.#status & DeviceStatus.FEATURES_OK || this.#driverHigh > SHIFT) return;
    this.#accepted = (this.#accepted & ~(WORD << this.#driverHigh)) | (half << this.#driverHigh);
  }

  #setStatus(value: number): void {
    if (value === 0) {
      this.#reset();
      return;
    }
    const enough = (this.#accepted & ~this.#offered) === 0n && (this.#accepted & VIRTIO_F_VERSION_1) !== 0n;
    const before = this.#status;
    const settled =
      enough || (before & DeviceStatus.FEATURES_OK) !== 0 ? value : value & ~DeviceStatus.FEATURES_OK;
    // What the driver has said once holds until it resets the device.
    this.#status = before | (settled & ~DeviceStatus.DEVICE_NEEDS_RESET);
    if ((this.#status & DeviceStatus.FEATURES_OK) === 0) this.#status &= ~DeviceStatus.DRIVER_OK;
    if (this.#status & ~before & DeviceStatus.DRIVER_OK)
      for (let queue = 0; queue < this.#queues.length; queue++) this.#notify(queue);
  }

  #reset(): void {
    this.#status = 0;
    this.#accepted = 0n;
    this.#pending = 0;
    this.#notified.clear();
    this.#queues = this.#fresh();
    this.#model.reset();
  }

  #fresh(): QueueRegisters[] {
    return Array.from({ length: this.#model.queues }, () => new QueueRegisters());
  }

  #writeQueue(offset: number, value: number): void {
    const registers = this.#queues[this.#selected];
    if (!registers) return;
    if (offset === Register.QueueReady) {
      registers.queue = value & 1 ? this.#ready(registers) : undefined;
      return;
    }
    // §4.2.2.2 Where it is cannot change while it is in use.
    if (registers.queue) return;
    const word = BigInt(value);
    switch (offset) {
      case Register.QueueNum:
        registers.size = value;
        return;
      case Register.QueueDesc:
      case Register.QueueDesc + 4:
        registers.descriptors = withWord(registers.descriptors, offset - Register.QueueDesc, word);
        return;
      case Register.QueueDriver:
      case Register.QueueDriver + 4:
        registers.available = withWord(registers.available, offset - Register.QueueDriver, word);
        return;
      case Register.QueueDevice:
      case Register.QueueDevice + 4:
        registers.used = withWord(registers.used, offset - Register.QueueDevice, word);
    }
  }

  #ready({ size, descriptors, available, used }: QueueRegisters): SplitQueue | undefined {
    if (size === 0 || size > QUEUE_SIZE || (size & (size - 1)) !== 0) {
      this.#breakDown(`a queue of ${size} descriptors: a power of two up to ${QUEUE_SIZE} is possible`);
      return undefined;
    }
    return new SplitQueue(this.#options.memory, {
      size,
      descriptors: Number(descriptors),
      available: Number(available),
      used: Number(used),
    });
  }

  #notify(queue: number): void {
    this.#notified.add(queue);
    if (this.#serving) return;
    this.#serving = true;
    try {
      for (const next of this.#notified) {
        this.#notified.delete(next);
        if (this.queue(next)) this.attempt(() => this.#model.serve(next));
      }
    } finally {
      this.#serving = false;
    }
  }

  #breakDown(reason: string): void {
    this.#status |= DeviceStatus.DEVICE_NEEDS_RESET;
    const { events } = this.#options;
    if (events.on) events.emit("device", { device: this.#model.name, what: "needs a reset", reason });
    this.#raise(Interrupt.CHANGED);
  }

  #raise(cause: number): void {
    this.#pending |= cause;
    this.#options.interrupt();
  }
}

const withWord = (value: bigint, at: number, word: bigint): bigint =>
  at === 0 ? (value & ~WORD) | word : (value & WORD) | (word << SHIFT);

/** Little-endian; beyond the end is zero. */
const wordAt = (bytes: Uint8Array, at: number): number =>
  [0, 1, 2, 3].reduce((value, index) => value + (bytes[at + index] ?? 0) * 2 ** (8 * index), 0);
