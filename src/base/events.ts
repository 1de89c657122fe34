/**
 * What happened, told to whoever listens: the trace file, `--explain`, a test. Rooms emit; only `trace/` gives
 * events a form. An emitter asks `events.on` first, so that a silent run builds no event objects.
 */
export type EventKind =
  | "open"
  | "close"
  | "call" // a system call ended; `error` and `reason` when it failed
  | "pin"
  | "unpin"
  | "adopt"
  | "map"
  | "unmap"
  | "attach"
  | "detach"
  | "command" // a command of an invalidation or command queue was executed
  | "register" // a register of an IOMMU was written
  | "fault" // a DMA was refused by an IOMMU
  | "dma" // a DMA was performed
  | "interrupt"
  | "device" // something a device model wants known: reset, command failed
  | "task"; // a client process came or went

export type EventFields = {
  readonly [field: string]: string | number | bigint | boolean | undefined | readonly (string | number)[];
};

export interface EventSink {
  /** Whether anybody listens. */
  readonly on: boolean;
  /** `at` is added by the sink from the clock it was given. */
  emit(kind: EventKind, fields: EventFields): void;
}

/** Nobody listens. */
export const silent: EventSink = { on: false, emit() {} };
