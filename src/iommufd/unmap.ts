/**
 * Unmapping while accesses have pages pinned. They are told, and most give their pins back at once. Otherwise the call
 * waits, and they are told again between other calls; one that keeps its pins after 100 times is EDEADLOCK.
 */
import { type Call, SUSPENDED, type Suspended } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import { type AddressRange, showRange } from "./address.ts";
import type { IommufdContext } from "./context.ts";
import { UNMAP_NOTIFICATIONS } from "./io-pagetable.ts";
import type { Ioas } from "./ioas.ts";

/** Gets the bytes that were unmapped and what stopped it, if anything; gives the value of the call, or throws. */
type Finish = (bytes: bigint, error: LinuxError | undefined) => number;

/** Unmaps the range, waiting for pins to be given back, and finishes the call. */
export const unmapWaiting = (
  context: IommufdContext,
  call: Call,
  ioas: Ioas,
  { start, last }: AddressRange,
  finish: Finish,
): number | Suspended => {
  const { pagetable } = ioas;
  let { bytes, done, error } = pagetable.unmap(start, last);
  if (done) return finish(bytes, error);
  context.keep();
  ioas.enter();
  const end = () => {
    pagetable.keep(start, last);
    ioas.leave();
    context.release();
  };
  const continuation = call.suspend(end);
  let told = 1;
  const again = () => {
    if (continuation.settled) return;
    const next = pagetable.unmap(start, last);
    told += 1;
    bytes += next.bytes;
    ({ done, error } = next);
    if (!done && told < UNMAP_NOTIFICATIONS) {
      context.system.scheduler.defer(again);
      return;
    }
    if (!done) error = stubborn({ start, last }, told);
    try {
      const value = finish(bytes, error);
      end();
      continuation.resume(value);
    } catch (thrown) {
      end();
      continuation.fail(thrown);
    }
  };
  context.system.scheduler.defer(again);
  return SUSPENDED;
};

const stubborn = (range: AddressRange, told: number): LinuxError =>
  new LinuxError(
    "EDEADLK",
    `an access keeps pages of ${showRange(range)} pinned after ${told} notifications`,
  );
