/**
 * A work queue: what its portals take, and in which order engines get it. A dedicated queue has one submitter, whose posted
 * writes are lost when it is full; a shared one takes non-posted writes, which it can turn away.
 */
import { NO_PASID } from "../../../hardware/unit.ts";
import { Descriptor, type QueueRules } from "./descriptor.ts";
import type { QueueSettings } from "./registers.ts";
import { PortalError, WqState } from "./spec.ts";

export class DsaQueue {
  readonly index: number;
  #settings: QueueSettings | undefined;
  #rules: QueueRules | undefined;
  /** It takes no more and ends when it is empty. */
  #closing = false;
  #waiting: Descriptor[] = [];
  /** What was taken and has not ended, in order. */
  readonly #outstanding = new Set<Descriptor>();

  constructor(index: number) {
    this.index = index;
  }

  get state(): number {
    if (!this.#settings) return WqState.DISABLED;
    return this.#closing ? WqState.BUSY : WqState.ENABLED;
  }
  get priority(): number {
    return this.#settings?.priority ?? 0;
  }
  /** Entries in use. */
  get occupancy(): number {
    return this.#waiting.length;
  }
  /** Everything it took has ended. */
  get idle(): boolean {
    return this.#outstanding.size === 0;
  }
  get outstanding(): ReadonlySet<Descriptor> {
    return this.#outstanding;
  }

  enable(settings: QueueSettings): void {
    const { dedicated, pasidEnable, pasid, privileged } = settings;
    this.#settings = settings;
    this.#closing = false;
    this.#rules = {
      queue: this.index,
      blockOnFault: settings.blockOnFault,
      maxTransferLg2: settings.maxTransferLg2,
      maxBatchLg2: settings.maxBatchLg2,
      ...(dedicated && { identity: pasidEnable ? { pasid, privileged } : WITHOUT_PASID }),
    };
  }

  /** It takes nothing more; `disable` when it is idle. */
  close(): void {
    this.#closing = true;
  }

  disable(): void {
    this.#settings = undefined;
    this.#rules = undefined;
    this.abort(() => true);
  }

  /** A posted write of a descriptor. Answers why it is lost, or 0. */
  submit(bytes: Uint8Array): number {
    const settings = this.#settings;
    if (!settings || this.#closing) return PortalError.NOT_ENABLED;
    if (!settings.dedicated) return PortalError.MODE;
    if (this.#waiting.length >= settings.size) return PortalError.FULL;
    this.#take(bytes);
    return 0;
  }

  /** A non-posted one; false: to be tried again. */
  enqueue(bytes: Uint8Array, limited: boolean): boolean {
    const settings = this.#settings;
    if (!settings || this.#closing || settings.dedicated) return false;
    if (this.#waiting.length >= (limited ? settings.threshold : settings.size)) return false;
    this.#take(bytes);
    return true;
  }

  /** The next descriptor, for an engine. */
  next(): Descriptor | undefined {
    return this.#waiting.shift();
  }

  isOldest(descriptor: Descriptor): boolean {
    const [oldest] = this.#outstanding;
    return oldest === descriptor;
  }

  ended(descriptor: Descriptor): void {
    this.#outstanding.delete(descriptor);
  }

  /** Forgets such of them as no engine has. */
  abort(which: (descriptor: Descriptor) => boolean): void {
    for (const descriptor of this.#waiting) if (which(descriptor)) this.#outstanding.delete(descriptor);
    this.#waiting = this.#waiting.filter((descriptor) => !which(descriptor));
  }

  #take(bytes: Uint8Array): void {
    const descriptor = Descriptor.of(bytes, this.#rules!);
    this.#waiting.push(descriptor);
    this.#outstanding.add(descriptor);
  }
}

const WITHOUT_PASID = { pasid: NO_PASID, privileged: false } as const;
