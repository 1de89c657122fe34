/**
 * Who pays for pinned pages. Every address space counts what is pinned of it (VmPin). The limit, RLIMIT_MEMLOCK, is
 * held against all pages of the user (the default), or against the locked pages of the process (VmLck, the mode that
 * IOMMU_OPTION_RLIMIT_MODE 1 chooses). Whoever has CAP_IPC_LOCK when memory is mapped is charged for none of it.
 */
import type { Task } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import { PAGE_BYTES } from "./address.ts";

export type AccountMode = "user" | "process";

/** Pages charged to each user of the system, over all files. */
export class UserPins {
  readonly #pages = new Map<number, number>();
  /** All pages that are pinned, charged to a user or not; 0 when nothing is. */
  total = 0;

  of(uid: number): number {
    return this.#pages.get(uid) ?? 0;
  }
  add(uid: number, pages: number): void {
    const now = this.of(uid) + pages;
    if (now > 0) this.#pages.set(uid, now);
    else this.#pages.delete(uid);
  }
}

export class Payer {
  readonly task: Task;
  /** Against what the limit is held; undefined: nothing. */
  readonly mode: AccountMode | undefined;
  readonly #users: UserPins;

  constructor(task: Task, mode: AccountMode | undefined, users: UserPins) {
    this.task = task;
    this.mode = mode;
    this.#users = users;
  }

  /** Somebody else, who pays in the same way. */
  successor(task: Task): Payer {
    return new Payer(task, this.mode, this.#users);
  }

  /** Throws ENOMEM when the limit is reached; then nothing is charged. */
  charge(pages: number): void {
    this.#checkLimit(pages);
    this.#add(pages);
  }

  refund(pages: number): void {
    this.#add(-pages);
  }

  /** Another one pays for these pages from now on. Throws ENOMEM when its limit is reached; then nothing has changed. */
  handOver(pages: number, to: Payer): void {
    this.#add(-pages);
    try {
      to.#checkLimit(pages);
    } catch (error) {
      this.#add(pages);
      throw error;
    }
    to.#add(pages);
  }

  /** Takes back what it handed over. */
  takeBack(pages: number, from: Payer): void {
    from.#add(-pages);
    this.#add(pages);
  }

  #checkLimit(pages: number): void {
    const { task, mode } = this;
    if (mode === undefined) return;
    const ofUser = mode === "user";
    const held = ofUser ? this.#users.of(task.uid) : task.memory.lockedPages + task.mlockedPages();
    const limit = Math.floor(task.memlockLimit() / PAGE_BYTES);
    if (held + pages <= limit) return;
    throw new LinuxError(
      "ENOMEM",
      `${pages} more pages beside ${held} are beyond RLIMIT_MEMLOCK (${limit} pages) of ${ofUser ? `user ${task.uid}` : task.name}, ` +
        "which had no CAP_IPC_LOCK when they were mapped; a higher limit is needed (ulimit -l)",
    );
  }

  #add(pages: number): void {
    const { memory, uid } = this.task;
    memory.pinnedPages += pages;
    this.#users.total += pages;
    if (this.mode === "user") this.#users.add(uid, pages);
    else if (this.mode === "process") memory.lockedPages += pages;
  }
}
