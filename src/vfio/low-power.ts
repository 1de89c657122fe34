/**
 * Low power as a user allows it (linux/vfio.h, VFIO_DEVICE_FEATURE_LOW_POWER_*). The modelled platform never makes use
 * of it, as the interface permits, so no wake-up is ever signalled; what a program does see is that mappings of the
 * device's regions answer nothing until it is ended.
 */
import type { Call, EventFd } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { VfioContext } from "./context.ts";
import { holdEventfd } from "./held-eventfd.ts";

export class LowPower {
  readonly #context: VfioContext;
  #allowed = false;
  #wakeup: EventFd | undefined;

  constructor(context: VfioContext) {
    this.#context = context;
  }

  /** Mapped regions are out of reach. */
  get allowed(): boolean {
    return this.#allowed;
  }

  /** With `wakeup`, the caller's eventfd. Throws EINVAL when it is allowed already, EBADF. */
  enter(call: Call, wakeup?: number): void {
    if (this.#allowed)
      throw new LinuxError("EINVAL", "low power is allowed already; LOW_POWER_EXIT ends it first");
    if (wakeup !== undefined) this.#wakeup = holdEventfd(this.#context, call, wakeup);
    this.#allowed = true;
  }

  exit(): void {
    this.#allowed = false;
    this.#wakeup?.close();
    this.#wakeup = undefined;
  }
}
