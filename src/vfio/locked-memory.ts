/** Pages that a container keeps in memory count as locked memory of who brought them (RLIMIT_MEMLOCK, VmLck). */
import { Capability, type Task } from "../kernel/call.ts";
import { FRAME_BYTES } from "../memory/host-memory.ts";
import { LinuxError } from "../uapi/errno.ts";

/** Throws ENOMEM when the task may lock no more pages. Nothing is charged yet. */
export const requireLockable = (task: Task, more: number, object: string): void => {
  const limit = Math.floor(task.memlockLimit() / FRAME_BYTES);
  const locked = task.memory.lockedPages + task.mlockedPages();
  if (locked + more <= limit || task.capable(Capability.ipcLock)) return;
  throw new LinuxError(
    "ENOMEM",
    `${more} more pages beside ${locked} locked ones are beyond RLIMIT_MEMLOCK (${limit} pages) of ${task.name}, ` +
      "which has no CAP_IPC_LOCK; a higher limit is needed (ulimit -l)",
    object,
  );
};
