/** Eventfds of clients, counted while VFIO holds them. */
import type { Call, EventFd } from "../kernel/call.ts";
import type { VfioContext } from "./context.ts";

/** Takes the caller's eventfd until `close`. Throws EBADF, EINVAL. */
export const holdEventfd = ({ live }: VfioContext, call: Call, fd: number): EventFd => {
  const eventfd = call.eventfd(fd);
  live.eventfds += 1;
  return {
    signal: () => eventfd.signal(),
    watch: (onSignal) => eventfd.watch(onSignal),
    close: () => {
      live.eventfds -= 1;
      eventfd.close();
    },
  };
};
