/** Whatever programs ask of sPAPR containers, the answer is a value or an errno with a reason, and nothing stays behind. */
import { expect, it } from "vitest";
import { ModelHost } from "../../../test/support/model-host.ts";
import { powerUp } from "../../../test/support/power-rig.ts";
import { SpaprClient } from "../../../test/support/spapr-client.ts";
import { Random } from "../../base/clock.ts";
import { ModelTask } from "../../kernel/model-task.ts";
import { LinuxError } from "../../uapi/errno.ts";
import * as uapi from "../../uapi/vfio.ts";
import { VfioSubsystem } from "../subsystem.ts";

const VA = 0x1_0000_0000;
const PAGE = 4096;
const HIGH = 2 ** 59;
const CALLS = 3000;

it("3,000 random requests of two programs end in values and errnos", { timeout: 60_000 }, () => {
  const host = new ModelHost({ power: powerUp });
  const vfio = new VfioSubsystem(host);
  const frames = host.memory.allocated;
  const random = new Random(7);
  const pick = <T>(list: readonly T[]): T => list[random.below(list.length)]!;
  const clients = [0, 1].map(() => {
    const task = new ModelTask(host.memory, { memlock: 2 ** 32 });
    task.memory.map(VA, 64 * PAGE, { contiguous: true });
    return new SpaprClient(task, vfio);
  });
  const outcomes = new Map<string, number>();
  const attempt = (work: () => unknown): void => {
    let name = "done";
    try {
      work();
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      expect(error.reason.length).toBeGreaterThan(8);
      name = error.code;
    }
    outcomes.set(name, (outcomes.get(name) ?? 0) + 1);
  };
  let container = 0;
  let group = 0;
  const fresh = (): void => {
    for (const { task } of clients) for (const fd of task.descriptors) task.close(fd);
    const type = pick([
      uapi.VFIO_SPAPR_TCE_IOMMU,
      uapi.VFIO_SPAPR_TCE_v2_IOMMU,
      uapi.VFIO_SPAPR_TCE_v2_IOMMU,
    ]);
    ({ container, group } = clients[0]!.attach(0, type));
    if (type === uapi.VFIO_SPAPR_TCE_IOMMU) clients[0]!.enable(container);
    clients[0]!.task.pass(container, clients[1]!.task);
  };
  const wild = (): bigint =>
    pick([0n, 1n, 4096n, 2n ** 31n, 2n ** 59n + 1n, 2n ** 60n, 2n ** 64n - 4096n, 2n ** 64n - 1n]);
  const pages = (most: number): bigint => BigInt(random.below(most) * PAGE);
  const size = (): bigint => (random.below(12) ? pages(20) : wild());
  const vaddr = (): bigint => (random.below(12) ? BigInt(VA) + pages(66) : wild());
  const iova = (): bigint => (random.below(12) ? pick([0n, BigInt(HIGH)]) + pages(40) : wild());
  const flags = (): number => (random.below(12) ? 0 : random.next());
  for (let call = 0; call < CALLS; call += 1) {
    if (call % 250 === 0) fresh();
    const client = random.below(20) ? clients[0]! : clients[1]!;
    const fd = client === clients[0] ? container : client.task.descriptors[0]!;
    const length = random.below(8) ? 2 ** (12 + random.below(32)) : Number(wild());
    const window = { length, pageLg2: pick([12, 16, 16, 21, 24, 13, 60]), levels: random.below(7) };
    attempt(
      pick([
        () => client.map(fd, { flags: random.below(5), vaddr: vaddr(), iova: iova(), size: size() }),
        () => client.map(fd, { vaddr: VA + 16 * random.below(4) * PAGE, iova: iova(), size: 0x10000 }),
        () => client.unmap(fd, iova(), size(), flags()),
        () => client.register(fd, BigInt(VA) + pages(64), size(), flags()),
        () => client.register(fd, VA, 64 * PAGE),
        () => client.unregister(fd, vaddr(), size(), flags()),
        () => client.unregister(fd, VA, 64 * PAGE),
        () => client.createWindow(fd, window, flags()),
        () => client.removeWindow(fd, random.below(4) ? pick([0, HIGH]) : Number(wild()), flags()),
        () => client.windowInfo(fd, random.below(40)),
        () => (random.below(2) ? client.enable(fd) : client.disable(fd)),
        () => client.task.ioctl(fd, 0x3b64 + random.below(32), wild()),
        () => clients[0]!.setContainer(clients[0]!.group(1), container),
        () => random.below(8) || clients[0]!.unsetContainer(group),
      ]),
    );
  }
  for (const errno of ["done", "EINVAL", "EFAULT", "ENOTTY", "EBUSY", "EPERM", "ENXIO", "ENOENT", "ENOSPC"])
    expect(outcomes.get(errno), errno).toBeGreaterThan(0);
  for (const { task } of clients) {
    task.exit();
    expect(task.memory.lockedPages).toBe(0);
  }
  expect(vfio.live()).toEqual({ containers: 0, groups: 0, devices: 0, cdevs: 0, mappings: 0, eventfds: 0 });
  expect(host.memory.allocated).toBe(frames);
  host.memory.close();
});
