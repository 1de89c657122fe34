/** Descriptors close in any order, processes die at any moment, files are passed on: nothing is left behind. */
import { describe, expect, it } from "vitest";
import { CdevClient } from "../../test/support/cdev-client.ts";
import { ModelHost, type ModelHostOptions } from "../../test/support/model-host.ts";
import { outcome, VfioClient } from "../../test/support/vfio-client.ts";
import { Random } from "../base/clock.ts";
import { IommufdSubsystem } from "../iommufd/file.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { VfioSubsystem } from "./subsystem.ts";

const VA = 0x1_0000_0000;
const PAGE = 4096;
const NONE = { containers: 0, groups: 0, devices: 0, cdevs: 0, mappings: 0, eventfds: 0 };

const world = (groups?: ModelHostOptions["groups"]) => {
  const host = new ModelHost(groups && { groups });
  const vfio = new VfioSubsystem(host);
  const iommufd = new IommufdSubsystem(host);
  const frames = host.memory.allocated;
  const newTask = () => {
    const task = new ModelTask(host.memory);
    task.memory.map(VA, 32 * PAGE, { private: true });
    return task;
  };
  const clean = () => {
    expect(vfio.live()).toEqual(NONE);
    expect(iommufd.live()).toEqual({ files: 0, objects: 0, areas: 0, pinnedPages: 0 });
    expect(host.memory.allocated).toBe(frames);
    expect(host.msi.allocated).toBe(0);
    expect(host.driver.domains.size).toBe(0);
    for (const endpoint of host.endpoints)
      expect(host.driver.attached.get(endpoint)).toBe(host.driver.blocked);
    for (const group of host.core.groups.values()) expect(group.owned).toBe(false);
  };
  return { host, vfio, iommufd, newTask, clean };
};

/** A random life: opens, binds, maps, interrupts, dup, passing, closing; then everything goes in random order. */
const live = (seed: number, { host, vfio, iommufd, newTask, clean }: ReturnType<typeof world>): void => {
  const random = new Random(seed);
  const tasks = [newTask(), newTask(), newTask()];
  const pick = <T>(list: readonly T[]): T => list[random.below(list.length)]!;
  const ofKind = (task: ModelTask, kind: string) =>
    task.descriptors.filter((fd) => task.file(fd)?.kind === kind);
  const iommu = (client: CdevClient) => pick(ofKind(client.task, "iommufd"));
  const device = (client: CdevClient) => pick(ofKind(client.task, "vfio-device"));
  const actions: ((client: CdevClient) => unknown)[] = [
    (client) => client.iommu(),
    (client) => client.cdev(random.below(2)),
    (client) => client.bind(device(client), iommu(client)),
    (client) => client.bind(device(client), iommu(client)),
    (client) => {
      const fd = client.iommu();
      const one = client.cdev(random.below(2));
      client.bind(one, fd);
      client.mapAt(fd, client.ioas(fd), 0, VA, 8 * PAGE);
      client.attachTo(one, 2);
    },
    (client) => {
      const group = client.group(random.below(2));
      client.setContainer(group, client.iommu());
      client.device(group, pick(host.endpoints).name);
    },
    (client) => client.ioas(iommu(client)),
    (client) => client.hwpt(iommu(client), 1 + random.below(5), 1 + random.below(5)),
    (client) => client.attachTo(device(client), 1 + random.below(6)),
    (client) => client.attachTo(device(client), 1 + random.below(6)),
    (client) => client.detachFrom(device(client)),
    (client) => client.destroy(iommu(client), 1 + random.below(6)),
    (client) => client.setContainer(pick(ofKind(client.task, "vfio-group")), iommu(client)),
    (client) =>
      client.mapAt(
        iommu(client),
        1 + random.below(5),
        random.below(64) * PAGE,
        VA + random.below(40) * PAGE,
        (1 + random.below(8)) * PAGE,
      ),
    (client) => client.container(),
    (client) => client.group(random.below(2)),
    (client) =>
      client.setContainer(
        pick(ofKind(client.task, "vfio-group")),
        pick(ofKind(client.task, "vfio-container")),
      ),
    (client) => client.setIommu(pick(ofKind(client.task, "vfio-container")), pick([1, 3])),
    (client) => client.unsetContainer(pick(ofKind(client.task, "vfio-group"))),
    (client) => client.device(pick(ofKind(client.task, "vfio-group")), pick(host.endpoints).name),
    (client) =>
      client.map(pick(ofKind(client.task, "vfio-container")), {
        vaddr: VA + random.below(24) * PAGE,
        iova: random.below(64) * PAGE,
        size: (1 + random.below(8)) * PAGE,
      }),
    (client) => client.unmapAll(pick(ofKind(client.task, "vfio-container"))),
    (client) => client.unmap(pick(ofKind(client.task, "vfio-container")), 0, 32 * PAGE),
    (client) =>
      client.trigger(pick(ofKind(client.task, "vfio-device")), pick([0, 1, 2, 3, 4]), [
        client.task.eventfd(),
      ]),
    (client) => client.task.dup(pick(client.task.descriptors)),
    (client) => client.task.pass(pick(client.task.descriptors), pick(tasks)),
    (client) => client.task.close(pick(client.task.descriptors)),
  ];
  for (let step = 0; step < 120; step += 1) {
    const task = pick(tasks);
    outcome(() => pick(actions)(new CdevClient(task, { vfio, iommufd })));
    if (random.below(60) === 0) {
      task.exit();
      tasks[tasks.indexOf(task)] = newTask();
    }
  }
  const all = tasks.flatMap((task) => task.descriptors.map((fd) => ({ task, fd })));
  while (all.length > 0) {
    const [{ task, fd }] = all.splice(random.below(all.length), 1) as [(typeof all)[number]];
    task.close(fd);
  }
  for (const task of tasks) task.exit();
  clean();
};

describe("nothing is left behind", () => {
  it("by 150 random lives of three processes that end in random order", { timeout: 60_000 }, () => {
    const shared = world();
    for (let seed = 0; seed < 150; seed += 1) live(seed, shared);
    shared.host.memory.close();
  });

  it("by any order of closing container, group, devices and eventfds", () => {
    const orders = permutations([0, 1, 2, 3, 4]);
    const { host, vfio, newTask, clean } = world();
    for (const order of orders) {
      const client = new VfioClient(newTask(), vfio);
      const { container, group } = client.attach(0);
      const devices = [client.device(group, host.endpoint.name), client.device(group, host.endpoint.name)];
      const eventfd = client.task.eventfd();
      client.map(container, { vaddr: VA, iova: 0, size: 4 * PAGE });
      client.trigger(devices[0]!, 2, [eventfd]);
      const fds = [container, group, ...devices, eventfd];
      for (const index of order) client.task.close(fds[index]!);
      expect(vfio.live()).toEqual(NONE);
      client.task.exit();
      clean();
    }
    host.memory.close();
  });

  it("by any order of closing iommufd, two devices of a group, and a file of neither", () => {
    const { host, vfio, iommufd, newTask, clean } = world([["01:00", "01:01"]]);
    for (const order of permutations([0, 1, 2, 3])) {
      const client = new CdevClient(newTask(), { vfio, iommufd });
      const fd = client.iommu();
      const devices = [client.cdev(0), client.cdev(1)];
      const ioas = client.ioas(fd);
      client.mapAt(fd, ioas, 0, VA, 4 * PAGE);
      for (const device of devices) client.bind(device, fd);
      for (const device of devices) client.attachTo(device, ioas);
      const fds = [fd, ...devices, client.cdev(0)];
      for (const index of order) client.task.close(fds[index]!);
      expect({ ...vfio.live(), ...iommufd.live() }).toMatchObject({ devices: 0, cdevs: 0, files: 0 });
      client.task.exit();
      clean();
    }
    host.memory.close();
  });

  it("a device's file alone keeps group, container, mappings and DMA alive; killed, all goes", () => {
    const { host, vfio, newTask, clean } = world();
    const client = new VfioClient(newTask(), vfio);
    const { container, group } = client.attach(0);
    const device = client.device(group, host.endpoint.name);
    client.map(container, { vaddr: VA, iova: 0x1000, size: PAGE });
    const pa = client.task.memory.physical(VA);
    client.task.close(container);
    client.task.close(group);
    const heir = new VfioClient(newTask(), vfio);
    client.task.pass(device, heir.task);
    client.task.exit();
    expect(vfio.live()).toMatchObject({ containers: 1, groups: 1, devices: 1, mappings: 1 });
    expect(host.driver.domainOf(host.endpoint).physical(0x1000)).toBe(pa);
    heir.task.exit();
    clean();
    host.memory.close();
  });
});

const permutations = (items: readonly number[]): number[][] =>
  items.length <= 1
    ? [[...items]]
    : items.flatMap((item) =>
        permutations(items.filter((other) => other !== item)).map((rest) => [item, ...rest]),
      );
