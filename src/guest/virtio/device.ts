/**
 * A guest's access to its virtio-iommu (virtio 1.3, §3.1 and §5.13): initialization, requests one at a time, and fault
 * reports.
 */
import { RegisterAccess } from "../../drivers/register-file.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { type ErrnoName, LinuxError } from "../../uapi/errno.ts";
import {
  Config,
  DEVICE_ID,
  FaultReport,
  Feature,
  Queue,
  RequestStatus,
  RequestTail,
} from "../../viommu/virtio/spec.ts";
import {
  DeviceStatus,
  Interrupt,
  MAGIC,
  Register,
  VERSION,
  VIRTIO_F_VERSION_1,
} from "../../viommu/virtio/transport-spec.ts";
import { DriverQueue } from "./queue.ts";

/** Its registers and its interrupt. */
export interface VirtioRegisters {
  mmioRead(offset: number, width: 4 | 8): bigint;
  mmioWrite(offset: number, width: 4 | 8, value: bigint): void;
  /** Set by the driver. */
  onInterrupt?: (() => void) | undefined;
}

export type Fault = ReturnType<typeof FaultReport.read>;

const REQUEST = { at: 0, most: 128 } as const;
const ANSWER = 128;
const EVENT_BUFFERS = 16;
const SHIFT = 32n;

/** What the driver needs, and what it makes use of where it is there. */
const NEEDED =
  VIRTIO_F_VERSION_1 | Feature.INPUT_RANGE | Feature.DOMAIN_RANGE | Feature.MAP_UNMAP | Feature.PROBE;
const USED = NEEDED | Feature.BYPASS_CONFIG;

export class VirtioIommuDevice {
  readonly name: string;
  readonly config: ReturnType<typeof Config.read>;
  /** Endpoints can be let pass untranslated. */
  readonly passes: boolean;
  readonly #file: VirtioRegisters;
  readonly #registers: RegisterAccess;
  readonly #requests: DriverQueue;
  readonly #events: DriverQueue;

  /** Resets and initializes the device. Throws ENODEV when it is not one, or lacks what the driver needs. */
  constructor(name: string, file: VirtioRegisters, memory: HostMemory, onFault: (fault: Fault) => void) {
    this.name = name;
    this.#file = file;
    this.#registers = new RegisterAccess(file, name);
    const { ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK } = DeviceStatus;
    const registers = this.#registers;
    const identity = [Register.MagicValue, Register.Version, Register.DeviceID].map((at) =>
      registers.read32(at),
    );
    if (String(identity) !== String([MAGIC, VERSION, DEVICE_ID]))
      throw new LinuxError("ENODEV", "its registers are not those of a virtio-iommu", name);
    this.#setStatus(0);
    this.#setStatus(ACKNOWLEDGE | DRIVER);
    this.passes = (this.#negotiate() & Feature.BYPASS_CONFIG) !== 0n;
    this.#setStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if ((registers.read32(Register.Status) & FEATURES_OK) === 0)
      throw new LinuxError("ENODEV", "it does not work with the features that the driver uses", name);
    this.config = this.#readConfig();
    this.#requests = new DriverQueue({ memory, registers: file, index: Queue.requests, interrupts: false });
    this.#events = new DriverQueue({ memory, registers: file, index: Queue.events, interrupts: true });
    this.#setStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    for (let buffer = 0; buffer < EVENT_BUFFERS; buffer++) this.#offerEvent(buffer);
    file.onInterrupt = () => this.#interrupted(onFault);
  }

  /** Endpoints without a domain reach the guest's physical memory, or nothing: always nothing, where nothing passes. */
  setBypass(bypass: boolean): void {
    if (this.passes) this.#registers.write32(Register.Config + Config.offsets.bypass, bypass ? 1 : 0);
  }

  /** Sends a request and takes what the device wrote before the tail. Throws what a status says, EIO without one. */
  request(what: string, bytes: Uint8Array, answerBytes = 0): Uint8Array {
    if (bytes.length > REQUEST.most) throw new RangeError(`a request of ${bytes.length} bytes`);
    const length = answerBytes + RequestTail.size;
    this.#requests.write(REQUEST.at, bytes);
    this.#requests.offer(0, [
      { at: REQUEST.at, length: bytes.length, writes: false },
      { at: ANSWER, length, writes: true },
    ]);
    const done = this.#requests.used();
    if (!done || done.written === 0)
      throw new LinuxError(
        "EIO",
        `${what}: the device ${done ? "does not know the request" : "is broken"}`,
        this.name,
      );
    const answer = this.#requests.read(ANSWER, length);
    const { status } = RequestTail.read(answer, answerBytes);
    if (status !== RequestStatus.OK)
      throw new LinuxError(errnoOf(status), `${what}: status ${status}`, this.name);
    return answer.subarray(0, answerBytes);
  }

  /** The device forgets everything; what it had is the guest's again. */
  close(): void {
    this.#file.onInterrupt = undefined;
    this.#setStatus(0);
    this.#requests.free();
    this.#events.free();
  }

  #setStatus(status: number): void {
    this.#registers.write32(Register.Status, status);
  }

  /** The features that the driver accepts. */
  #negotiate(): bigint {
    const registers = this.#registers;
    let accepted = 0n;
    for (const half of [0n, 1n]) {
      registers.write32(Register.DeviceFeaturesSel, Number(half));
      registers.write32(Register.DriverFeaturesSel, Number(half));
      const [needed, used] = [NEEDED, USED].map((all) => Number((all >> (SHIFT * half)) & 0xffff_ffffn));
      const offered = registers.read32(Register.DeviceFeatures);
      if ((needed! & ~offered) !== 0)
        throw new LinuxError("ENODEV", `it lacks features: it offers 0x${offered.toString(16)}`, this.name);
      registers.write32(Register.DriverFeatures, used! & offered);
      accepted |= BigInt((used! & offered) >>> 0) << (SHIFT * half);
    }
    return accepted;
  }

  #readConfig(): ReturnType<typeof Config.read> {
    const bytes = new Uint8Array(Config.size);
    const view = new DataView(bytes.buffer);
    for (let at = 0; at < bytes.length; at += 4)
      view.setUint32(at, this.#registers.read32(Register.Config + at), true);
    return Config.read(bytes);
  }

  #offerEvent(buffer: number): void {
    const { size } = FaultReport;
    this.#events.offer(buffer, [{ at: buffer * size, length: size, writes: true }]);
  }

  #interrupted(onFault: (fault: Fault) => void): void {
    const pending = this.#registers.read32(Register.InterruptStatus);
    this.#registers.write32(Register.InterruptACK, pending);
    if ((pending & Interrupt.USED) === 0) return;
    const { size } = FaultReport;
    for (let used = this.#events.used(); used; used = this.#events.used()) {
      const fault = FaultReport.read(this.#events.read(used.head * size, size));
      const whole = used.written >= size && fault.reserved.every((byte) => byte === 0);
      this.#offerEvent(used.head);
      if (whole) onFault(fault);
    }
  }
}

const ERRNOS: { readonly [status: number]: ErrnoName } = {
  [RequestStatus.UNSUPP]: "EOPNOTSUPP",
  [RequestStatus.INVAL]: "EINVAL",
  [RequestStatus.RANGE]: "ERANGE",
  [RequestStatus.NOENT]: "ENOENT",
  [RequestStatus.FAULT]: "EFAULT",
  [RequestStatus.NOMEM]: "ENOMEM",
};
const errnoOf = (status: number): ErrnoName => ERRNOS[status] ?? "EIO";
