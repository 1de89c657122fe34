/** Whatever a program asks of VFIO's files, the answer is a value or an errno with a reason, and nothing stays behind. */
import { expect, it } from "vitest";
import { ModelHost } from "../../test/support/model-host.ts";
import { VfioClient } from "../../test/support/vfio-client.ts";
import { Random } from "../base/clock.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { LinuxError } from "../uapi/errno.ts";
import { VfioSubsystem } from "./subsystem.ts";

const VA = 0x1_0000_0000;
const PAGE = 4096;
const CALLS = 40_000;

it("40,000 random calls end in values and errnos", { timeout: 60_000 }, () => {
  const host = new ModelHost();
  const vfio = new VfioSubsystem(host);
  const frames = host.memory.allocated;
  const random = new Random(20);
  const pick = <T>(list: readonly T[]): T => list[random.below(list.length)]!;
  const task = new ModelTask(host.memory);
  task.memory.map(VA, 32 * PAGE, { private: true });
  const client = new VfioClient(task, vfio);
  const interesting = [
    0n,
    1n,
    7n,
    8n,
    24n,
    4095n,
    4096n,
    8192n,
    0xfee0_0000n,
    2n ** 47n,
    2n ** 64n - 4096n,
    2n ** 64n - 1n,
  ];
  const number = () =>
    random.below(3) ? pick(interesting) : (BigInt(random.next()) << 32n) | BigInt(random.next());
  /** Words that look like arguments: sizes, small numbers, flags, addresses. */
  const argument = (): Uint8Array => {
    const words = new BigUint64Array(8);
    const halves = new Uint32Array(words.buffer);
    for (let i = 0; i < words.length; i += 1)
      words[i] = pick([number(), BigInt(VA) + (number() % 0x2_0000n)]);
    halves[0] = pick([0, 8, 16, 20, 24, 32, 48, 64, random.next()]);
    halves[1] = pick([0, 1, 2, 3, 4, 5, 6, 7, 0x21, 0x22, 0x24, 0x11, 0x0a, random.next()]);
    if (random.below(2)) for (let i = 2; i < 6; i += 1) halves[i] = random.below(10);
    return new Uint8Array(words.buffer);
  };
  const outcomes = new Map<string, number>();
  const count = (name: string) => outcomes.set(name, (outcomes.get(name) ?? 0) + 1);
  const attempt = (work: () => unknown) => {
    try {
      work();
      count("done");
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      expect(error.reason.length).toBeGreaterThan(8);
      count(error.code);
    }
  };
  const fresh = () => {
    for (const fd of task.descriptors) task.close(fd);
    const { group } = client.attach(0, pick([1, 3]));
    client.device(group, host.endpoint.name);
    task.eventfd();
    client.container();
    client.group(1);
  };
  for (let call = 0; call < CALLS; call += 1) {
    if (call % 500 === 0) fresh();
    const fd = pick(task.descriptors);
    const file = task.file(fd);
    const region = (BigInt(random.below(10)) << 40n) + (number() % 0x1_1000n);
    const bytes = new Uint8Array(random.below(80));
    switch (random.below(9)) {
      case 0:
        attempt(() => task.pread(fd, pick([region, number()]), bytes));
        break;
      case 1:
        attempt(() => task.pwrite(fd, pick([region, number()]), bytes.fill(random.next())));
        break;
      case 2:
        attempt(() => file?.trapRead?.(region, bytes));
        attempt(() => file?.trapWrite?.(region, bytes));
        attempt(() =>
          task
            .run(fd, (target, context) => {
              target.mmap?.(context, region, random.below(0x2_0000), 3, random.below(4));
              return 0;
            })
            .result(),
        );
        break;
      case 3:
        attempt(() =>
          client.map(fd, {
            flags: random.below(4),
            vaddr: VA + random.below(34) * PAGE,
            iova: random.below(64) * PAGE,
            size: random.below(4) * PAGE,
          }),
        );
        break;
      case 4:
        attempt(() => task.ioctl(fd, pick([0x3b64 + random.below(32), random.next()]), number()));
        break;
      default:
        attempt(() => task.ioctl(fd, 0x3b64 + random.below(24), argument()));
    }
    if (task.descriptors.length > 64) fresh();
  }
  for (const errno of ["done", "EINVAL", "EFAULT", "ENOTTY", "EBADF", "EBUSY", "EEXIST", "ENOSPC", "EIO"])
    expect(outcomes.get(errno), errno).toBeGreaterThan(0);
  task.exit();
  expect(vfio.live()).toEqual({ containers: 0, groups: 0, devices: 0, cdevs: 0, mappings: 0, eventfds: 0 });
  expect(host.memory.allocated).toBe(frames);
  expect(host.msi.allocated).toBe(0);
  host.memory.close();
});
