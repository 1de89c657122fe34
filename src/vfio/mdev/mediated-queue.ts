/**
 * What stands between the user of a mediated device and the work queue that it has: the user's registers look like the
 * queue's, but what decides where its requests go passes through here. A PASID is what the user calls it, and becomes the
 * host's; a request without one gets the device's default PASID. The hardware sees the host's PASIDs only, and in every
 * descriptor. What waits when a PASID is taken away is aborted. One that the user has not stops the queue, and the user sees why (`QueueError`).
 */
import type { EventSink } from "../../base/events.ts";
import { RequestPasid } from "../../pci/devices/requests.ts";
import {
  DESCRIPTOR_BYTES,
  Descriptor,
  QueueControl,
  QueueError,
  QueueRegister,
  QueueStatus,
} from "../../pci/devices/work-queue.ts";
import type { HostQueue } from "./host-queue.ts";
import type { MdevHooks, QueueFront } from "./mdev-function.ts";

export interface DevicePasids {
  /** Of requests that name none. */
  readonly own: number;
  /** The host's PASID that the user calls so, and that its device has a table for; undefined: there is none. */
  hostPasid(pasid: number): number | undefined;
}

export interface MediatedQueueContext {
  /** The device's name, for events. */
  readonly name: string;
  readonly queue: HostQueue;
  readonly pasids: DevicePasids;
  readonly events: EventSink;
}

const PORTAL_END = QueueRegister.PORTAL + DESCRIPTOR_BYTES;

export class MediatedQueue implements QueueFront {
  readonly #context: MediatedQueueContext;
  readonly #queue: HostQueue;
  readonly #hooks: MdevHooks;
  /** As the user wrote them. */
  #pasid = 0;
  #vector = 0;
  /** Why it is stopped; `QueueError.NONE`: not by us. */
  #error: number = QueueError.NONE;
  #mastering = false;
  /** The descriptor that the user is writing. */
  readonly #portal = new Uint32Array(DESCRIPTOR_BYTES / 4);

  constructor(context: MediatedQueueContext, hooks: MdevHooks) {
    this.#context = context;
    this.#queue = context.queue;
    this.#hooks = hooks;
    this.#queue.onInterrupt = () => hooks.signal(this.#vector);
    this.reset();
  }

  read(offset: number, into: Uint8Array): void {
    const first = offset & ~3;
    const words = new Uint32Array(Math.ceil((offset - first + into.length) / 4));
    for (let at = 0; at < words.length; at += 1) words[at] = this.#read(first + at * 4);
    into.set(new Uint8Array(words.buffer, offset - first, into.length));
  }

  write(offset: number, value: number): void {
    const { CONTROL, PASID, VECTOR, PORTAL } = QueueRegister;
    if (offset === CONTROL) this.#control(value);
    else if (offset === PASID) this.#configure(value);
    else if (offset === VECTOR) this.#vector = value;
    else if (offset >= PORTAL && offset < PORTAL_END) {
      this.#portal[(offset - PORTAL) / 4] = value;
      if (offset === PORTAL_END - 4) this.#submit();
    }
  }

  mastering(on: boolean): void {
    this.#mastering = on;
  }

  reset(): void {
    this.#queue.disable();
    this.#error = QueueError.NONE;
    this.#pasid = 0;
    this.#vector = 0;
    this.#portal.fill(0);
  }

  #read(offset: number): number {
    const { STATUS, ERROR, PASID, VECTOR, ABORT, END } = QueueRegister;
    if (offset >= END || offset === ABORT) return 0;
    if (offset === PASID) return this.#pasid;
    if (offset === VECTOR) return this.#vector;
    if (this.#error !== QueueError.NONE) {
      if (offset === STATUS) return QueueStatus.STOPPED;
      if (offset === ERROR) return this.#error;
    }
    return this.#queue.get(offset);
  }

  /** Stopped, it has to be disabled first, as a queue of the hardware. */
  #control(value: number): void {
    if (value === QueueControl.DISABLE) {
      this.#queue.disable();
      this.#error = QueueError.NONE;
    } else if (this.#error === QueueError.NONE) this.#queue.set(QueueRegister.CONTROL, value);
  }

  #configure(value: number): void {
    this.#pasid = value;
    if (this.#hostWord(value) === undefined) this.#refusePasid(value, "its PASID register");
  }

  #submit(): void {
    const descriptor = this.#portal.slice();
    this.#portal.fill(0);
    if (this.#error !== QueueError.NONE) return;
    if (!this.#mastering) {
      this.#stop(QueueError.MASTER, "a descriptor came while bus mastering is off in the command register");
      return;
    }
    const at = Descriptor.PASID / 4;
    const given = descriptor[at]!;
    const word = isValid(given) ? given : this.#pasid;
    const host = this.#hostWord(word);
    if (host === undefined) {
      this.#refusePasid(word, "a descriptor");
      return;
    }
    descriptor[at] = host;
    this.#queue.submit(descriptor);
  }

  /** What the hardware is to be told for the user's word; undefined: the user has no such PASID. */
  #hostWord(word: number): number | undefined {
    const { Value, Valid } = RequestPasid.fields;
    const { own, hostPasid } = this.#context.pasids;
    const host = isValid(word) ? hostPasid(Value.get([word])) : own;
    if (host === undefined) return undefined;
    const words = [isValid(word) ? word : 0];
    Value.set(words, host);
    Valid.set(words, 1);
    return words[0]! >>> 0;
  }

  #refusePasid(word: number, where: string): void {
    const pasid = RequestPasid.fields.Value.get([word]);
    this.#stop(QueueError.PASID, `PASID ${pasid} in ${where} has no table that its user has bound`);
  }

  /** What the hardware's queue holds is forgotten; the user is told by an interrupt. */
  #stop(error: number, reason: string): void {
    this.#queue.disable();
    this.#error = error;
    const { events, name } = this.#context;
    if (events.on) events.emit("device", { device: name, what: "work queue stopped", reason });
    this.#hooks.signal(this.#vector);
  }
}

const isValid = (word: number): boolean => RequestPasid.fields.Valid.get([word]) === 1;
