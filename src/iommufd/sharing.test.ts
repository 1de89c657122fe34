/** An iommufd that two processes have: each maps its own private memory, and one call pins that of both. */
import { expect, it } from "vitest";
import { ModelHost } from "../../test/support/model-host.ts";
import { ModelTask } from "../kernel/model-task.ts";
import * as uapi from "../uapi/iommufd.ts";
import { bindDevice } from "./device.ts";
import { contextOf, IommufdSubsystem } from "./file.ts";

const USER = 0x10_0000;
const LENGTH = 0x4000;

it("memory is adopted by whose it is, and expected only as long as it is mapped", () => {
  const host = new ModelHost();
  const iommufd = new IommufdSubsystem(host);
  const [one, two] = [new ModelTask(host.memory), new ModelTask(host.memory)];
  const fd = one.open(iommufd.node);
  const theirs = one.pass(fd, two);
  const context = contextOf(one.file(fd))!;
  const bytes = uapi.IommuIoasAlloc.bytes({ size: uapi.IommuIoasAlloc.size });
  one.ioctl(fd, uapi.IOMMU_IOAS_ALLOC, bytes);
  const ioas = uapi.IommuIoasAlloc.read(bytes).out_ioas_id;
  const map = (task: ModelTask, number: number, iova: number): void => {
    task.memory.map(USER, LENGTH, { private: true });
    const argument = { size: uapi.IommuIoasMap.size, flags: 7, ioas_id: ioas, iova: BigInt(iova) };
    const whole = { ...argument, user_va: BigInt(USER), length: BigInt(LENGTH) };
    task.ioctl(number, uapi.IOMMU_IOAS_MAP, uapi.IommuIoasMap.bytes(whole));
  };
  const expected = () =>
    [one, two].map(({ memory }) => [...memory.expected].map(({ va, length }) => [va, length]));
  map(one, fd, 0x1_0000);
  map(two, theirs, 0x2_0000);
  expect(expected()).toEqual([[[USER, LENGTH]], [[USER, LENGTH]]]);
  expect([one, two].map(({ memory }) => [memory.adoptions, memory.pinnedPages])).toEqual([
    [0, 0],
    [0, 0],
  ]);

  const device = bindDevice(context, host.core.devices.get(host.endpoint.name)!);
  const attaching = two.place({
    kind: "attaching",
    name: "attaching",
    ioctl: () => {
      device.attach(ioas);
      return 0;
    },
    close() {},
  });
  two.ioctl(attaching, 0);
  expect([one, two].map(({ memory }) => [memory.adoptions, memory.pinnedPages])).toEqual([
    [1, 4],
    [1, 4],
  ]);
  const [domain] = host.driver.domains;
  expect(domain!.pages.get(0x10)!.pa).toBe(one.memory.physical(USER));
  expect(domain!.pages.get(0x20)!.pa).toBe(two.memory.physical(USER));

  device.unbind();
  two.exit();
  one.exit();
  expect(expected()).toEqual([[], []]);
  expect(iommufd.live()).toEqual({ files: 0, objects: 0, areas: 0, pinnedPages: 0 });
  host.memory.close();
});
