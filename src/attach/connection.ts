/**
 * What the daemon knows of the program at the other end of a control connection, as the parts of `attach/` that
 * serve operations of their own (adoption in process-memory.ts, traps in traps.ts) see it. `shim/protocol.h`
 * describes the messages; a handler is given the body only.
 */
import type { KernelFile, Task, UserMemory } from "../kernel/call.ts";

/** One program image: an address space. A forked child and an exec'ed program are others; threads share it. */
export interface ClientProcess {
  readonly pid: number;
  /** Stays valid, and names nobody else, until the process is reaped. */
  readonly pidfd: number;
  readonly memory: UserMemory;
}

/** A control connection: one thread of a client. */
export interface Connection {
  readonly process: ClientProcess;
  readonly tid: number;
  readonly task: Task;
  /**
   * The emulated file with this SO_COOKIE. `fd` is what the client says its number is: the first use of a file by a
   * process is verified with it. Undefined: no such file, or not this process's.
   */
  file(cookie: number, fd: number): KernelFile | undefined;
}

export interface Reply {
  /** Value of the request; 0 when left out. A negative value is an errno. */
  readonly value?: number;
  readonly body?: Uint8Array;
  /** Descriptors of the daemon to send along; they stay the handler's. */
  readonly fds?: readonly number[];
}

/**
 * Serves one operation. `body` is a view that is only valid during the call, `fds` are descriptors that came with the
 * request and now belong to the handler. A `LinuxError` becomes -errno. A bare Uint8Array is the payload of a reply
 * with value 0.
 */
export type OpHandler = (
  connection: Connection,
  body: Uint8Array,
  fds: readonly number[],
) => Uint8Array | Reply;

/** What process-memory.ts and traps.ts export as a function of the server's parts: op number → handler. */
export type OpHandlers = ReadonlyMap<number, OpHandler>;
