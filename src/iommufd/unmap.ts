/**
 * Unmapping while accesses have pages pinned. They are told, and most give their pins back at once. Otherwise the call
 * waits, and they are told again between other calls; one that keeps its pins after 100 times is EDEADLOCK.
 */
import { type Call, SUSPENDED, type Suspended } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import { type AddressRange, showRange } from "./address.ts";
import type { IommufdContext } from "./context.ts";
import { type IoPagetable, UNMAP_NOTIFICATIONS } from "./io-pagetable.ts";

/** Unmaps the range; `finish` gets the bytes and gives the value of the call. Throws what `unmap` throws. */
export const unmapWaiting = (
  context: IommufdContext,
  call: Call,
  pagetable: IoPagetable,
  { start, last }: AddressRange,
  finish: (bytes: bigint) => number,
): number | Suspended => {
  const bytes = pagetable.unmap(start, last);
  if (bytes !== undefined) return finish(bytes);
  let told = 1;
  context.keep();
  const end = () => {
    pagetable.keep(start, last);
    context.release();
  };
  const continuation = call.suspend(end);
  const again = () => {
    if (continuation.settled) return;
    try {
      const unmapped = pagetable.unmap(start, last);
      told += 1;
      if (unmapped !== undefined) {
        const value = finish(unmapped);
        context.release();
        continuation.resume(value);
        return;
      }
      if (told >= UNMAP_NOTIFICATIONS)
        throw new LinuxError(
          "EDEADLK",
          `an access keeps pages of ${showRange({ start, last })} pinned after ${told} notifications`,
        );
      context.system.scheduler.defer(again);
    } catch (error) {
      end();
      continuation.fail(error);
    }
  };
  context.system.scheduler.defer(again);
  return SUSPENDED;
};
