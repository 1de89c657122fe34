/**
 * Where kernel memory is asked for. Every object, list and table that the kernel side makes for a caller is taken here
 * first, so that it can be made to fail as Linux's fault injection does it: the n-th allocation of a task
 * (`/proc/self/task/TID/fail-nth`), or by chance (`failslab`, `fail_page_alloc`). One that fails throws ENOMEM before
 * anything was made. Nothing is counted otherwise.
 *
 * As with Linux's `current`, the caller is known for the time of its call only: outside of calls nothing fails.
 */
import { Random } from "../base/clock.ts";
import { LinuxError } from "../uapi/errno.ts";
import { Restart, type Task } from "./call.ts";
import { type Demand, FaultAttributes } from "./fault-attributes.ts";

/** Bytes that stand for an object: what `space` of failslab is diminished by. */
const OBJECT: Demand = { size: 64, waits: true };
const ATOMIC: Demand = { size: 64, waits: false };

/** What fault injection knows of a task. */
interface TaskState {
  readonly pid: number;
  /** Allocations until one fails; 0: it has failed, or none was asked for. */
  failNth: number;
  /** Allocations of the task may fail by chance even where a task filter is set. */
  makeItFail: boolean;
}

/** The allocations of the call that is being served, and whose call it is. */
let current: Allocations | undefined;
let caller: TaskState | undefined;

/** Takes an object or a list: `what`, as in "no kernel memory for a list of ranges". Throws ENOMEM. */
export const allocate = (what: string): void => current?.take(what, OBJECT);

/** Takes an object where nobody can wait for memory: for an event that is being reported. Throws ENOMEM. */
export const allocateAtomic = (what: string): void => current?.take(what, ATOMIC);

/** Takes a run of frames. Throws ENOMEM. */
export const allocatePages = (frames: number): void => {
  if (current) current.take("tables", { size: frames, waits: true, orderLg2: Math.ceil(Math.log2(frames)) });
};

export class Allocations {
  readonly slab: FaultAttributes;
  readonly pages: FaultAttributes;
  readonly #tasks = new Map<number, TaskState>();

  constructor(seed = 1) {
    const random = new Random(seed);
    this.slab = new FaultAttributes("slab", random);
    this.pages = new FaultAttributes("pages", random);
  }

  /** Runs a call of a task: what is allocated meanwhile counts for that task. */
  run<T>(task: Pick<Task, "pid" | "tid">, call: () => T): T {
    const outer = { current, caller };
    const state = this.#tasks.get(task.tid);
    caller = state?.pid === task.pid ? state : undefined;
    const before = caller?.failNth;
    current = caller !== undefined || this.slab.armed || this.pages.armed ? this : undefined;
    try {
      return call();
    } catch (error) {
      // The call comes again from its start, and so does its count.
      if (error instanceof Restart && caller && before !== undefined) caller.failNth = before;
      throw error;
    } finally {
      ({ current, caller } = outer);
    }
  }

  /** The `nth` allocation of the task fails, once; 0: none. */
  arm(task: Pick<Task, "pid" | "tid">, nth: number): void {
    this.#state(task).failNth = nth;
  }

  /** What reading fail-nth answers: 0 once the failure has happened, or when none was asked for. */
  remaining(task: Pick<Task, "pid" | "tid">): number {
    return this.#known(task)?.failNth ?? 0;
  }

  mark(task: Pick<Task, "pid" | "tid">, makeItFail: boolean): void {
    this.#state(task).makeItFail = makeItFail;
  }

  marked(task: Pick<Task, "pid" | "tid">): boolean {
    return this.#known(task)?.makeItFail ?? false;
  }

  /** A process has ended: its tasks are forgotten. */
  forget(pid: number): void {
    for (const [tid, state] of this.#tasks) if (state.pid === pid) this.#tasks.delete(tid);
  }

  take(what: string, demand: Demand): void {
    const attributes = demand.orderLg2 === undefined ? this.slab : this.pages;
    if (!attributes.reaches(demand)) return;
    if (caller && caller.failNth > 0) {
      caller.failNth -= 1;
      if (caller.failNth > 0) return;
    } else if (!attributes.decide(demand.size, caller?.makeItFail ?? false)) return;
    throw new LinuxError("ENOMEM", `no kernel memory for ${what}: this allocation was asked to fail`);
  }

  #known({ pid, tid }: Pick<Task, "pid" | "tid">): TaskState | undefined {
    const state = this.#tasks.get(tid);
    return state?.pid === pid ? state : undefined;
  }

  #state(task: Pick<Task, "pid" | "tid">): TaskState {
    const known = this.#known(task);
    if (known) return known;
    const state = { pid: task.pid, failNth: 0, makeItFail: false };
    this.#tasks.set(task.tid, state);
    return state;
  }
}
