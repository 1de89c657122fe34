/** System calls of a VMM with encoded arguments, each told to whoever records them. Errors are the `LinuxError`s of the calls. */
import type { ModelTask } from "../kernel/model-task.ts";
import { LinuxError } from "../uapi/errno.ts";
import { type RequestKind, requestName } from "../uapi/requests.ts";

/** One call that was made: its argument before and after, and the data it pointed to. */
export interface RecordedCall {
  readonly kind: RequestKind;
  readonly name: string;
  readonly request: number;
  readonly given: Uint8Array;
  readonly data: Uint8Array | undefined;
  readonly answered: Uint8Array;
  /** Name of the errno when it failed. */
  readonly error: string | undefined;
}
export type Record = (call: RecordedCall) => void;

/** Where data is put, in the VMM's memory. */
export const DATA_VA = 0x7ffe_0000_0000;
export const DATA_BYTES = 64 * 1024;

export abstract class RecordedCalls {
  readonly task: ModelTask;
  readonly #record: Record;

  constructor(task: ModelTask, record: Record = () => {}) {
    this.task = task;
    this.#record = record;
  }

  /** The call's value; `bytes` has what came back. */
  protected call(
    kind: RequestKind,
    fd: number,
    request: number,
    argument: Uint8Array | number,
    data?: Uint8Array,
  ): number {
    const bytes = argument instanceof Uint8Array ? argument : new Uint8Array();
    const given = bytes.slice();
    if (data) this.task.memory.write(BigInt(DATA_VA), data);
    let error: string | undefined;
    try {
      return this.task.ioctl(fd, request, argument);
    } catch (thrown) {
      if (thrown instanceof LinuxError) error = thrown.code;
      throw thrown;
    } finally {
      this.#record({ kind, name: requestName(kind, request), request, given, data, answered: bytes, error });
    }
  }
}
