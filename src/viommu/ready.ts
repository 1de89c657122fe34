/** How a VMM takes what comes in a file of the kernel: when it gets to run, not within what made the file ready. */
import type { Scheduler } from "../base/scheduler.ts";
import type { ModelTask } from "../kernel/model-task.ts";

/** `read` is called once after the file became ready, unless it was closed or the VMM died meanwhile. */
export const whenReady = (task: ModelTask, fd: number, scheduler: Scheduler, read: () => void): void => {
  let scheduled = false;
  task.kernelFile(fd).onReady = () => {
    if (scheduled) return;
    scheduled = true;
    scheduler.defer(() => {
      scheduled = false;
      if (task.file(fd)) read();
    });
  };
};
