/**
 * Who pays for pinned pages. Each address space counts what is pinned of it (VmPin). The limit, RLIMIT_MEMLOCK, is
 * held against all pages of the user (the default) or against those of the process (IOMMU_OPTION_RLIMIT_MODE 1);
 * CAP_IPC_LOCK frees from it. The compatibility container counts locked pages of the process (VmLck).
 */
import { Capability, type Task } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import { PAGE_BYTES } from "./address.ts";

export type AccountMode = "user" | "process";

/** Pages pinned by each user of the system, over all files. */
export class UserPins {
  readonly #pages = new Map<number, number>();

  of(uid: number): number {
    return this.#pages.get(uid) ?? 0;
  }
  add(uid: number, pages: number): void {
    const now = this.of(uid) + pages;
    if (now > 0) this.#pages.set(uid, now);
    else this.#pages.delete(uid);
  }
  /** All users'; 0 when nothing is pinned. */
  get total(): number {
    let sum = 0;
    for (const pages of this.#pages.values()) sum += pages;
    return sum;
  }
}

export class Payer {
  readonly task: Task;
  readonly mode: AccountMode;
  readonly #users: UserPins;
  readonly #unlimited: boolean;

  constructor(task: Task, mode: AccountMode, users: UserPins) {
    this.task = task;
    this.mode = mode;
    this.#users = users;
    this.#unlimited = task.capable(Capability.ipcLock);
  }

  /** Throws ENOMEM when the limit is reached; then nothing is charged. */
  charge(pages: number): void {
    const { task, mode } = this;
    const before = this.#held();
    const limit = Math.floor(task.memlockLimit() / PAGE_BYTES);
    if (!this.#unlimited && before + pages > limit)
      throw new LinuxError(
        "ENOMEM",
        `${pages} more pages beside ${before} are beyond RLIMIT_MEMLOCK (${limit} pages) of ${mode === "user" ? `user ${task.uid}` : task.name}, ` +
          "which has no CAP_IPC_LOCK; a higher limit is needed (ulimit -l)",
      );
    this.#add(pages);
  }

  refund(pages: number): void {
    this.#add(-pages);
  }

  #held(): number {
    const { memory, uid } = this.task;
    return this.mode === "user" ? this.#users.of(uid) : memory.pinnedPages;
  }

  #add(pages: number): void {
    const { memory, uid } = this.task;
    memory.pinnedPages += pages;
    if (this.mode === "user") this.#users.add(uid, pages);
  }
}
