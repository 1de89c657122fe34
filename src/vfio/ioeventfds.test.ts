/** VFIO_DEVICE_IOEVENTFD: writes that eventfds make. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ModelHost, MSIX_TABLE } from "../../test/support/model-host.ts";
import { outcome, reasonOf, VfioClient } from "../../test/support/vfio-client.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { Header } from "../pci/spec.ts";
import { VFIO_DEVICE_IOEVENTFD, VfioDeviceIoeventfd } from "../uapi/vfio.ts";
import { IOEVENTFD_LIMIT } from "./ioeventfds.ts";
import { regionOffset } from "./regions.ts";
import { VfioSubsystem } from "./subsystem.ts";

let host: ModelHost;
let vfio: VfioSubsystem;
let client: VfioClient;
let device: number;
let fd: number;

beforeEach(() => {
  host = new ModelHost();
  vfio = new VfioSubsystem(host);
  client = new VfioClient(new ModelTask(host.memory), vfio);
  device = client.device(client.attach(0).group, host.endpoint.name);
  fd = client.task.eventfd();
});
afterEach(() => {
  client.task.exit();
  expect(vfio.live()).toMatchObject({ devices: 0, eventfds: 0 });
  host.memory.close();
});

const argument = (fields: Partial<Parameters<typeof VfioDeviceIoeventfd.bytes>[0]>): Uint8Array =>
  VfioDeviceIoeventfd.bytes({
    argsz: VfioDeviceIoeventfd.size,
    flags: 4,
    offset: 0n,
    data: 1n,
    fd,
    ...fields,
  });
const set = (fields: Partial<Parameters<typeof VfioDeviceIoeventfd.bytes>[0]>): unknown =>
  outcome(() => client.task.ioctl(device, VFIO_DEVICE_IOEVENTFD, argument(fields)));
const signal = (): void => client.task.counter(fd).add();
const registers = (at: number, length: number): number[] => [
  ...host.endpoint.registers.subarray(at, at + length),
];

describe("a write by an eventfd", () => {
  it.each([
    [1, [0x88]],
    [2, [0x88, 0x77]],
    [4, [0x88, 0x77, 0x66, 0x55]],
    [8, [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]],
  ])("has %i bytes, and is made each time", (width, bytes) => {
    expect(set({ flags: width, offset: regionOffset(0) + 0x40n, data: 0x1122334455667788n })).toBe(0);
    host.endpoint.widths.length = 0;
    signal();
    signal();
    expect(host.endpoint.widths).toEqual([width, width]);
    expect(registers(0x40, 9)).toEqual([...bytes, ...new Array(9 - width).fill(0)]);
    expect(client.task.counter(fd).count).toBe(0);
  });

  it("reaches ports too", () => {
    expect(set({ flags: 2, offset: regionOffset(4) + 4n, data: 0xabcdn })).toBe(0);
    signal();
    expect([...host.endpoint.ports.subarray(4, 6)]).toEqual([0xcd, 0xab]);
  });

  it("goes nowhere while the BAR is not decoded", () => {
    set({ offset: regionOffset(0), data: 5n });
    const command = regionOffset(7) + BigInt(Header.COMMAND);
    client.task.pwrite(device, command, Uint8Array.of(0, 0));
    signal();
    client.task.pwrite(device, command, Uint8Array.of(3, 0));
    expect(registers(0, 1)).toEqual([0]);
    signal();
    expect(registers(0, 1)).toEqual([5]);
  });

  it("is taken away by its place, width and value, and with the last file of the device", () => {
    set({ offset: regionOffset(0), data: 5n });
    set({ offset: regionOffset(0), data: 6n });
    expect(set({ offset: regionOffset(0), data: 7n, fd: -1 })).toBe("ENODEV");
    expect(set({ offset: regionOffset(0), data: 5n, flags: 2, fd: -1 })).toBe("ENODEV");
    expect(set({ offset: regionOffset(0), data: 6n, fd: -1 })).toBe(0);
    signal();
    expect(registers(0, 1)).toEqual([5]);
    client.task.close(device);
    expect(vfio.live().eventfds).toBe(0);
    signal();
    expect(client.task.counter(fd).count).toBe(1);
  });
});

describe("what is refused", () => {
  it.each([
    ["no width", { flags: 0 }],
    ["two widths", { flags: 3 }],
    ["an unknown flag", { flags: 0x14 }],
    ["a descriptor below -1", { fd: -2 }],
    ["config space", { offset: regionOffset(7) }],
    ["what is no region", { offset: regionOffset(20) }],
    ["beyond the BAR", { offset: regionOffset(0) + 0xfffdn }],
    ["a BAR that is not there", { offset: regionOffset(2) }],
    ["the vector table", { offset: regionOffset(0) + BigInt(MSIX_TABLE) + 8n }],
    ["into the vector table", { offset: regionOffset(0) + BigInt(MSIX_TABLE) - 2n }],
  ])("%s is EINVAL", (_what, fields) => {
    expect(set(fields)).toBe("EINVAL");
  });

  it("argsz below the structure, memory that cannot be read, a descriptor that is none", () => {
    expect(set({ argsz: VfioDeviceIoeventfd.fieldEnd("fd") - 1 })).toBe("EINVAL");
    expect(outcome(() => client.task.ioctl(device, VFIO_DEVICE_IOEVENTFD, 0n))).toBe("EFAULT");
    expect(set({ fd: 99 })).toBe("EBADF");
    expect(set({ fd: device })).toBe("EINVAL");
  });

  it("the same write twice is EEXIST, and more than the device may have ENOSPC", () => {
    for (let i = 0; i < IOEVENTFD_LIMIT; i += 1) expect(set({ data: BigInt(i) })).toBe(0);
    expect(set({ data: 3n })).toBe("EEXIST");
    expect(set({ data: 5000n })).toBe("ENOSPC");
    expect(
      reasonOf(() => client.task.ioctl(device, VFIO_DEVICE_IOEVENTFD, argument({ data: 5000n }))),
    ).toMatch(/has its 1000 writes/);
  });
});
