/**
 * A million times a PASID of a device gets a page table and loses it again, by encoded system calls, behind an Intel, an Arm and
 * the mock IOMMU, and a twentieth of that behind an AMD one; a few dozen others are attached meanwhile. Nothing grows: frames, objects, numbers, nor this program's heap.
 */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { expect, it } from "vitest";
import { MockRig } from "../../test/support/mock-rig.ts";
import { ManualClock } from "../base/clock.ts";
import { silent } from "../base/events.ts";
import { WorkQueue } from "../base/scheduler.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { IOMMU_HWPT_ALLOC_PASID } from "../uapi/iommufd.ts";
import * as mock from "../uapi/iommufd-mock.ts";
import { IOMMU_TEST_PASID_RESERVED } from "../uapi/vendor/mock.ts";
import {
  VFIO_DEVICE_ATTACH_IOMMUFD_PT,
  VFIO_DEVICE_ATTACH_PASID,
  VFIO_DEVICE_DETACH_IOMMUFD_PT,
  VFIO_DEVICE_DETACH_PASID,
  VfioDeviceAttachIommufdPt,
  VfioDeviceDetachIommufdPt,
} from "../uapi/vfio.ts";
import { HostCalls } from "../viommu/host-calls.ts";
import { parseDevice, parseMachine, withDevices } from "./file.ts";
import { Machine } from "./machine.ts";
import { PRESETS } from "./presets.ts";

const COUNT = 1_000_000;
/** Where what is not the driver's has been counted a million times already. */
const PART = COUNT / 20;
/** Attached at a time; and after which part of them it is looked for the first time what there is. */
const HELD = 48;
const SETTLED = 1 / 10;
const TIME = { timeout: 600_000 };
/** What the heap may differ by, whatever else this process has in it. */
const HEAP_BYTES = 4 * 2 ** 20;
/** Where the test command's structures about PASIDs have it: at the beginning of what depends on the operation. */
const PASID_OF_TEST = mock.IommuTestCmd.fieldEnd("__reserved");
const FUNCTION = "0000:7e:00.0";

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;
const heap = (): number => {
  collect();
  return process.memoryUsage().heapUsed;
};

interface Host {
  attach(pasid: number): void;
  detach(pasid: number): void;
  /** PASIDs of the device. */
  readonly pasids: number;
  /** Everything that is counted. */
  live(): object;
}

const run = ({ attach, detach, pasids, live }: Host, times: number): void => {
  const pasidOf = (i: number): number => {
    const pasid = 1 + (i % (pasids - 1));
    return pasid === IOMMU_TEST_PASID_RESERVED ? pasids - 1 : pasid;
  };
  const before = live();
  let settled = 0;
  for (let i = 0; i < times; i++) {
    if (i >= HELD) detach(pasidOf(i - HELD));
    attach(pasidOf(i));
    if (i === times * SETTLED) settled = heap();
  }
  for (let i = times - HELD; i < times; i++) detach(pasidOf(i));
  expect(live()).toEqual(before);
  expect(heap() - settled).toBeLessThan(HEAP_BYTES);
};

/** Makes a request again and again, with another PASID at its place. */
const caller = (
  task: ModelTask,
  { fd, request, bytes, at }: { fd: number; request: number; bytes: Uint8Array<ArrayBuffer>; at: number },
) => {
  const view = new DataView(bytes.buffer);
  return (pasid: number): void => {
    view.setUint32(at, pasid, true);
    task.ioctl(fd, request, bytes);
  };
};

const machineHost = (preset: string, bits: number) => {
  const description = withDevices(parseMachine(PRESETS.get(preset)!, preset), [
    parseDevice(`test@${FUNCTION}`),
  ]);
  const machine = new Machine(description, {
    events: silent,
    clock: new ManualClock(),
    scheduler: new WorkQueue(),
  });
  const task = new ModelTask(machine.memory);
  const open = (path: string): number => task.open(machine.nodes().find((node) => node.path === path)!);
  const calls = new HostCalls(task, open("/dev/iommu"));
  const device = open(machine.vfio.deviceNodes.get(FUNCTION)!.path);
  const id = calls.bind(device);
  const hwpt = calls.allocateHwpt(id, calls.allocateIoas(), IOMMU_HWPT_ALLOC_PASID);
  calls.attach(device, hwpt);
  const attaching = VfioDeviceAttachIommufdPt.bytes({
    argsz: VfioDeviceAttachIommufdPt.size,
    flags: VFIO_DEVICE_ATTACH_PASID,
    pt_id: hwpt,
  });
  const detaching = VfioDeviceDetachIommufdPt.bytes({
    argsz: VfioDeviceDetachIommufdPt.size,
    flags: VFIO_DEVICE_DETACH_PASID,
  });
  const { pasid: attachAt } = VfioDeviceAttachIommufdPt.offsets;
  const { pasid: detachAt } = VfioDeviceDetachIommufdPt.offsets;
  return {
    machine,
    task,
    pasids: 2 ** bits,
    attach: caller(task, {
      ...{ fd: device, request: VFIO_DEVICE_ATTACH_IOMMUFD_PT },
      ...{ bytes: attaching, at: attachAt },
    }),
    detach: caller(task, {
      ...{ fd: device, request: VFIO_DEVICE_DETACH_IOMMUFD_PT },
      ...{ bytes: detaching, at: detachAt },
    }),
    live: () => machine.live(),
  };
};

it.each([
  ["vtd", 20, COUNT],
  ["smmuv3", 16, COUNT],
  ["amd", 20, PART],
] as const)("%s: PASIDs of %i bits come and go, %i times", TIME, (preset, bits, times) => {
  const host = machineHost(preset, bits);
  run(host, times);
  host.task.exit();
  expect(Object.entries(host.machine.live()).filter(([, count]) => count !== 0)).toEqual([]);
  host.machine.close();
});

it("mock: a million PASIDs come and go", TIME, () => {
  const rig = new MockRig();
  const p = rig.spawn();
  const ioas = p.ioas();
  const { out_idev_id: device, out_stdev_id: mockDevice } = p.device(ioas, mock.MOCK_FLAGS_DEVICE_PASID);
  const hwpt = p.hwpt(device, ioas, { flags: IOMMU_HWPT_ALLOC_PASID });
  const mock_domain_replace = { pt_id: hwpt };
  p.test(mock.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, mockDevice, { mock_domain_replace });
  const common = { size: mock.IommuTestCmd.size, id: mockDevice };
  const attaching = mock.IommuTestCmd.bytes({
    ...{ ...common, op: mock.IOMMU_TEST_OP_PASID_ATTACH },
    pasid_attach: { pasid: 0, pt_id: hwpt },
  });
  const detaching = mock.IommuTestCmd.bytes({
    ...{ ...common, op: mock.IOMMU_TEST_OP_PASID_DETACH },
    pasid_detach: { pasid: 0 },
  });
  const call = (bytes: Uint8Array<ArrayBuffer>) =>
    caller(p.task, { fd: p.fd, request: mock.IOMMU_TEST_CMD, bytes, at: PASID_OF_TEST });
  run(
    {
      pasids: 2 ** 20,
      attach: call(attaching),
      detach: call(detaching),
      live: () => rig.live(),
    },
    COUNT,
  );
  p.exit();
  expect(Object.entries(rig.live()).filter(([, count]) => count !== 0)).toEqual([]);
  rig.close();
});
