/** How a VMM takes what comes in a file of the kernel: when it gets to run, not within what made the file ready. */
import { once, type Scheduler } from "../base/scheduler.ts";
import type { ModelTask } from "../kernel/model-task.ts";

/** `read` is called once after the file became ready, unless it was closed or the VMM died meanwhile. */
export const whenReady = (task: ModelTask, fd: number, scheduler: Scheduler, read: () => void): void => {
  task.kernelFile(fd).onReady = once(scheduler, () => {
    if (task.file(fd)) read();
  });
};

/** The same of an eventfd, whose count is taken before. */
export const whenCounted = (task: ModelTask, fd: number, scheduler: Scheduler, read: () => void): void => {
  const counter = task.counter(fd);
  counter.onCount = once(scheduler, () => {
    if (counter.take() > 0) read();
  });
};
