/**
 * Where kernel memory is asked for. Every object, table and list that the kernel side makes for a caller is taken
 * here first, so that the n-th allocation of a task can be made to fail (`/proc/self/task/TID/fail-nth` of Linux's
 * fault injection): one that fails throws ENOMEM before anything was made. Nothing is counted otherwise.
 */
import { LinuxError } from "../uapi/errno.ts";

/** Takes memory for `what`; throws ENOMEM when that was asked to fail. */
export type Allocate = (what: string) => void;

export class Allocations {
  /** By task: how many allocations until one fails; 0: it has failed. */
  readonly #armed = new Map<number, number>();
  #task: number | undefined;
  #failing = false;

  /** The `nth` allocation of the task fails, once; 0 disarms. */
  arm(tid: number, nth: number): void {
    if (nth > 0) this.#armed.set(tid, nth);
    else this.#armed.delete(tid);
    this.#refresh();
  }

  /** What reading fail-nth answers: 0 once the failure has happened, or when none was asked for. */
  remaining(tid: number): number {
    return this.#armed.get(tid) ?? 0;
  }

  /** Runs a call of a task: what it allocates counts for that task. */
  run<T>(tid: number, call: () => T): T {
    const before = this.#task;
    this.#task = tid;
    this.#refresh();
    try {
      return call();
    } finally {
      this.#task = before;
      this.#refresh();
    }
  }

  readonly take: Allocate = (what) => {
    if (!this.#failing) return;
    const left = this.#armed.get(this.#task!)! - 1;
    this.#armed.set(this.#task!, left);
    if (left > 0) return;
    this.#armed.delete(this.#task!);
    this.#failing = false;
    throw new LinuxError("ENOMEM", `no kernel memory for ${what}: this allocation was asked to fail`);
  };

  #refresh(): void {
    this.#failing = this.#task !== undefined && this.#armed.has(this.#task);
  }
}
