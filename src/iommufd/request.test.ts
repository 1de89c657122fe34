/** How a request of /dev/iommu is answered when it waits. */
import { afterAll, expect, it } from "vitest";
import { ModelHost } from "../../test/support/model-host.ts";
import { SUSPENDED } from "../kernel/call.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { struct, u32 } from "../uapi/struct.ts";
import { IommufdSubsystem } from "./file.ts";
import { request } from "./request.ts";

const NUMBER = 0x3bf0;
const Echo = struct("echo", { size: u32, wait: u32, value: u32 });
const host = new ModelHost();
afterAll(() => host.memory.close());

it("a call that waits is answered with its own members, whatever calls of its kind came meanwhile", () => {
  let resume: () => void = () => {};
  const echo = request(NUMBER, Echo, "value", ({ call, argument, respond }) => {
    const answer = (): void => respond({ value: argument.value + 1 });
    if (argument.wait === 0) {
      answer();
      return 0;
    }
    const continuation = call.suspend(() => {});
    resume = () => {
      answer();
      continuation.resume(0);
    };
    return SUSPENDED;
  });
  const iommufd = new IommufdSubsystem({ ...host, scheduler: host.scheduler, extra: [echo] });
  const waiting = new ModelTask(host.memory);
  const other = new ModelTask(host.memory);
  const SCRATCH = 0x10000;
  waiting.memory.map(SCRATCH, 4096);
  waiting.memory.write(BigInt(SCRATCH), Echo.bytes({ size: Echo.size, wait: 1, value: 41 }));
  const pending = waiting.start(waiting.open(iommufd.node), NUMBER, BigInt(SCRATCH));

  const passing = Echo.bytes({ size: Echo.size, value: 7 });
  expect(other.ioctl(other.open(iommufd.node), NUMBER, passing)).toBe(0);
  expect(Echo.read(passing)).toEqual({ size: Echo.size, wait: 0, value: 8 });

  resume();
  expect(pending.result()).toBe(0);
  const answered = new Uint8Array(Echo.size);
  waiting.memory.read(BigInt(SCRATCH), answered);
  expect(Echo.read(answered)).toEqual({ size: Echo.size, wait: 1, value: 42 });
  waiting.exit();
  other.exit();
});
