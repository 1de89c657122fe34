/** SET_IRQS: every kind of data and action, and interrupts that travel from the function to an eventfd. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ModelHost, MSIX_TABLE, MSIX_VECTORS, Recorder } from "../../test/support/model-host.ts";
import { outcome, reasonOf, VfioClient } from "../../test/support/vfio-client.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { findCapability } from "../pci/capability-list.ts";
import { CapabilityId, Command, Header } from "../pci/spec.ts";
import {
  VFIO_IRQ_SET_DATA_BOOL as BOOL,
  VFIO_IRQ_SET_DATA_EVENTFD as EVENTFD,
  VFIO_IRQ_SET_ACTION_MASK as MASK,
  VFIO_IRQ_SET_DATA_NONE as NONE,
  VFIO_IRQ_SET_ACTION_TRIGGER as TRIGGER,
  VFIO_IRQ_SET_ACTION_UNMASK as UNMASK,
  VFIO_DEVICE_RESET,
  VFIO_DEVICE_SET_IRQS,
  VfioIrqSet,
} from "../uapi/vfio.ts";
import { regionOffset } from "./regions.ts";
import { VfioSubsystem } from "./subsystem.ts";

const [INTX, MSI, MSIX, ERR, REQ] = [0, 1, 2, 3, 4] as const;

let host: ModelHost;
let vfio: VfioSubsystem;
let client: VfioClient;
let device: number;

const start = (options: ConstructorParameters<typeof ModelHost>[0] = {}): void => {
  host = new ModelHost(options);
  vfio = new VfioSubsystem(host);
  client = new VfioClient(new ModelTask(host.memory), vfio);
  device = client.device(client.attach(0).group, host.endpoint.name);
  // Interrupt messages are writes of a bus master.
  client.task.pwrite(device, regionOffset(7) + BigInt(Header.COMMAND), Uint8Array.of(7, 0));
};
const eventfds = (count: number): number[] => Array.from({ length: count }, () => client.task.eventfd());
const taken = (fds: readonly number[]): number[] => fds.map((fd) => client.task.counter(fd).take());
const set = (request: Parameters<VfioClient["setIrqs"]>[1], data?: Uint8Array, argsz?: number): unknown =>
  outcome(() => client.setIrqs(device, request, data, argsz));
const trigger = (index: number, fds: readonly number[], from = 0): unknown =>
  outcome(() => client.trigger(device, index, fds, from));
const disable = (index: number): unknown => outcome(() => client.disableIrqs(device, index));
const entry = (vector: number): Uint8Array => {
  const bytes = new Uint8Array(16);
  host.endpoint.barRead(0, MSIX_TABLE + 16 * vector, bytes);
  return bytes;
};
const masked = (vector: number): boolean => (entry(vector)[12]! & 1) === 1;
const control = (id: number): number => host.endpoint.configRead(findCapability(host.endpoint, id)! + 2, 2);
const intxOff = (): boolean =>
  (host.endpoint.configRead(Header.COMMAND, 2) & Command.INTERRUPT_DISABLE) !== 0;

beforeEach(() => start());
afterEach(() => {
  client.task.exit();
  expect(vfio.live()).toEqual({ containers: 0, groups: 0, devices: 0, cdevs: 0, mappings: 0, eventfds: 0 });
  expect(host.msi.allocated).toBe(0);
  host.memory.close();
});

describe("the request", () => {
  it.each<[string, Parameters<VfioClient["setIrqs"]>[1], number, number | undefined]>([
    ["argsz below the structure", { index: MSIX, flags: NONE | TRIGGER }, 0, 19],
    ["an index that is not there", { index: 5, flags: NONE | TRIGGER }, 0, undefined],
    [
      "a range beyond 32 bits",
      { index: MSIX, flags: NONE | TRIGGER, start: 2, count: 0xffff_fffd },
      0,
      undefined,
    ],
    ["unknown flags", { index: MSIX, flags: NONE | TRIGGER | 64, count: 1 }, 0, undefined],
    ["a start beyond the vectors", { index: MSIX, flags: NONE | TRIGGER, start: 8 }, 0, undefined],
    ["an end beyond the vectors", { index: MSIX, flags: NONE | TRIGGER, start: 7, count: 2 }, 0, undefined],
    ["no DATA flag", { index: MSIX, flags: TRIGGER, count: 1 }, 0, undefined],
    ["two DATA flags", { index: MSIX, flags: NONE | BOOL | TRIGGER, count: 1 }, 1, undefined],
    ["too little data", { index: MSIX, flags: EVENTFD | TRIGGER, count: 2 }, 7, undefined],
  ])("%s is EINVAL", (_what, request, bytes, argsz) => {
    expect(set(request, new Uint8Array(bytes), argsz)).toBe("EINVAL");
  });

  it("EFAULT where it or its data cannot be read", () => {
    const ioctl = (at: bigint) => outcome(() => client.task.ioctl(device, VFIO_DEVICE_SET_IRQS, at));
    expect(ioctl(0n)).toBe("EFAULT");
    client.task.memory.map(0x1000_0000, 4096);
    const bytes = VfioIrqSet.bytes({ argsz: 24, flags: EVENTFD | TRIGGER, index: MSIX, start: 0, count: 1 });
    client.task.memory.poke(0x1000_1000 - bytes.length, bytes);
    expect(ioctl(BigInt(0x1000_1000 - bytes.length))).toBe("EFAULT");
  });

  it("an action that an index does not know, or none, is ENOTTY", () => {
    for (const index of [MSI, MSIX, ERR, REQ])
      for (const action of [MASK, UNMASK, 0, MASK | TRIGGER])
        expect(set({ index, flags: NONE | action, count: 1 })).toBe("ENOTTY");
    for (const action of [0, MASK | TRIGGER, MASK | UNMASK])
      expect(set({ index: INTX, flags: NONE | action, count: 1 })).toBe("ENOTTY");
  });
});

describe("MSI-X", () => {
  it("a vector's interrupt ends in its eventfd, by a message of the host in the function's table", () => {
    const fds = eventfds(3);
    expect(trigger(MSIX, fds)).toBe(0);
    expect(control(CapabilityId.MSIX) & 0x8000).toBe(0x8000);
    host.endpoint.fire(0);
    host.endpoint.fire(2);
    host.endpoint.fire(2);
    host.endpoint.fire(5);
    expect(taken(fds)).toEqual([1, 0, 2]);
    expect(vfio.live().eventfds).toBe(3);
    expect(Buffer.from(entry(0)).readUInt32LE(0)).toBeGreaterThanOrEqual(0xfee0_0000);
    expect([masked(0), masked(3)]).toEqual([false, true]);
  });

  it("vectors can be added, exchanged and taken away one by one", () => {
    const [a, b, c] = eventfds(3);
    trigger(MSIX, [a!]);
    expect(trigger(MSIX, [b!], 6)).toBe(0);
    expect(trigger(MSIX, [c!], 0)).toBe(0);
    host.endpoint.fire(0);
    host.endpoint.fire(6);
    expect(taken([a!, b!, c!])).toEqual([0, 1, 1]);
    expect(trigger(MSIX, [-1], 0)).toBe(0);
    expect(masked(0)).toBe(true);
    host.endpoint.fire(0);
    host.endpoint.fire(6);
    expect(taken([b!, c!])).toEqual([1, 0]);
    expect(vfio.live().eventfds).toBe(1);
  });

  it("an interrupt that came while its vector was masked is delivered when it gets an eventfd", () => {
    const [a, b] = eventfds(2);
    trigger(MSIX, [a!]);
    host.endpoint.fire(4);
    expect(trigger(MSIX, [b!], 4)).toBe(0);
    expect(taken([b!])).toEqual([1]);
  });

  it("-1 for all vectors sets it up without any", () => {
    expect(trigger(MSIX, [-1, -1])).toBe(0);
    expect(control(CapabilityId.MSIX) & 0x8000).toBe(0x8000);
    const [fd] = eventfds(1);
    expect(trigger(MSIX, [fd!], 1)).toBe(0);
    host.endpoint.fire(1);
    expect(taken([fd!])).toEqual([1]);
  });

  it("count 0 takes it away; without being set up that is EINVAL", () => {
    expect(disable(MSIX)).toBe("EINVAL");
    const fds = eventfds(2);
    trigger(MSIX, fds);
    expect(disable(MSIX)).toBe(0);
    expect(control(CapabilityId.MSIX) & 0x8000).toBe(0);
    expect([masked(0), masked(1)]).toEqual([true, true]);
    expect(host.msi.allocated).toBe(0);
    expect(fds.map((fd) => client.task.counter(fd).held)).toEqual([0, 0]);
    expect(disable(MSIX)).toBe("EINVAL");
  });

  it("a descriptor that is no eventfd takes the whole block away: EBADF, EINVAL", () => {
    const [a] = eventfds(1);
    expect(trigger(MSIX, [a!, 99])).toBe("EBADF");
    expect(control(CapabilityId.MSIX) & 0x8000).toBe(0);
    expect(trigger(MSIX, [a!, device])).toBe("EINVAL");
    trigger(MSIX, [a!]);
    expect(trigger(MSIX, [a!, 99], 1)).toBe("EBADF");
    host.endpoint.fire(0);
    expect(taken([a!])).toEqual([1]);
    expect(vfio.live().eventfds).toBe(1);
  });

  it("loopback: NONE signals all of the range, BOOL those that are not 0, unset ones are passed over", () => {
    const fds = eventfds(3);
    expect(set({ index: MSIX, flags: NONE | TRIGGER, count: 1 })).toBe("EINVAL");
    trigger(MSIX, [fds[0]!, -1, fds[2]!]);
    expect(set({ index: MSIX, flags: NONE | TRIGGER, count: 3 })).toBe(0);
    expect(taken(fds)).toEqual([1, 0, 1]);
    expect(set({ index: MSIX, flags: BOOL | TRIGGER, count: 3 }, Uint8Array.of(0, 1, 7))).toBe(0);
    expect(taken(fds)).toEqual([0, 0, 1]);
    expect(set({ index: MSIX, flags: BOOL | TRIGGER, start: 2, count: 1 }, Uint8Array.of(1))).toBe(0);
    expect(taken(fds)).toEqual([0, 0, 1]);
  });

  it("the other kinds are refused while it is in use; the reason says what to do", () => {
    const [fd] = eventfds(1);
    trigger(MSIX, [fd!]);
    for (const index of [MSI, INTX]) {
      expect(trigger(index, [fd!])).toBe("EINVAL");
      expect(disable(index)).toBe("EINVAL");
    }
    expect(reasonOf(() => client.trigger(device, MSI, [fd!]))).toContain("MSI-X is in use");
    disable(MSIX);
    expect(trigger(MSI, [fd!])).toBe(0);
  });

  it("works after a reset, and is programmed although memory decoding is off", () => {
    const [fd] = eventfds(1);
    const command = regionOffset(7) + BigInt(Header.COMMAND);
    client.task.pwrite(device, command, Uint8Array.of(4, 0));
    trigger(MSIX, [fd!]);
    expect(host.endpoint.configRead(Header.COMMAND, 2) & 7).toBe(4);
    client.task.pwrite(device, command, Uint8Array.of(6, 0));
    client.task.ioctl(device, VFIO_DEVICE_RESET);
    host.endpoint.fire(0);
    expect(taken([fd!])).toEqual([1]);
  });

  it("what a user writes into the mapped table reaches nobody else", () => {
    const events = new Recorder();
    client.task.exit();
    start({ events });
    const [mine] = eventfds(1);
    trigger(MSIX, [mine!]);
    const other = new VfioClient(new ModelTask(host.memory), vfio);
    const theirs = other.device(other.attach(1).group, host.endpoints[1]!.name);
    other.task.pwrite(theirs, regionOffset(7) + BigInt(Header.COMMAND), Uint8Array.of(6, 0));
    other.trigger(theirs, MSIX, [other.task.eventfd()]);
    other.task.kernelFile(theirs).trapWrite!(BigInt(MSIX_TABLE), entry(0).subarray(0, 12));
    host.endpoints[1]!.fire(0);
    expect(taken([mine!])).toEqual([0]);
    expect(events.seen.some(({ fields }) => String(fields["dropped"]).includes("requester"))).toBe(true);
    other.task.exit();
  });

  it("ENOSPC when the host has no message left; what was set up before stays", () => {
    const fds = eventfds(2);
    trigger(MSIX, [fds[0]!]);
    const rest = Array.from({ length: 65536 - host.msi.allocated }, () => host.msi.allocate(() => {}));
    expect(trigger(MSIX, [fds[1]!], 1)).toBe("ENOSPC");
    expect(vfio.live().eventfds).toBe(1);
    host.endpoint.fire(0);
    expect(taken(fds)).toEqual([1, 0]);
    for (const message of rest) message.free();
  });
});

describe("MSI", () => {
  it("vectors share an address and end in their own eventfds", () => {
    const fds = eventfds(4);
    expect(trigger(MSI, fds)).toBe(0);
    expect(control(CapabilityId.MSI) & 0x71).toBe(0x21);
    for (const vector of [0, 1, 3, 3]) host.endpoint.fire(vector);
    expect(taken(fds)).toEqual([1, 1, 0, 2]);
    expect(disable(MSI)).toBe(0);
    expect(control(CapabilityId.MSI) & 0x71).toBe(0);
  });

  it("three vectors are given as four to the function, and the fourth goes nowhere", () => {
    const fds = eventfds(3);
    trigger(MSI, fds);
    for (const vector of [0, 1, 2, 3]) host.endpoint.fire(vector);
    expect(taken(fds)).toEqual([1, 1, 1]);
  });

  it("cannot grow while it is in use", () => {
    const fds = eventfds(3);
    trigger(MSI, fds.slice(0, 2));
    expect(trigger(MSI, [fds[2]!], 2)).toBe("EINVAL");
    expect(trigger(MSI, [fds[2]!], 1)).toBe(0);
    host.endpoint.fire(1);
    expect(taken(fds)).toEqual([0, 0, 1]);
  });

  it("EVENTFD with count 0 has nothing to set up", () => {
    expect(trigger(MSI, [])).toBe("EINVAL");
    expect(trigger(MSIX, [])).toBe("EINVAL");
  });

  it("works after a reset", () => {
    const fds = eventfds(2);
    trigger(MSI, fds);
    client.task.pwrite(device, regionOffset(7) + BigInt(Header.COMMAND), Uint8Array.of(6, 0));
    client.task.ioctl(device, VFIO_DEVICE_RESET);
    host.endpoint.fire(1);
    expect(taken(fds)).toEqual([0, 1]);
  });
});

describe("INTx", () => {
  it("fires, masks itself, and fires again when it is unmasked while the line is still asserted", () => {
    const [fd] = eventfds(1);
    expect(trigger(INTX, [fd!])).toBe(0);
    host.endpoint.line(true);
    expect(taken([fd!])).toEqual([1]);
    expect(intxOff()).toBe(true);
    expect(set({ index: INTX, flags: NONE | UNMASK, count: 1 })).toBe(0);
    expect(taken([fd!])).toEqual([1]);
    host.endpoint.line(false);
    expect(set({ index: INTX, flags: NONE | UNMASK, count: 1 })).toBe(0);
    expect(taken([fd!])).toEqual([0]);
    expect(intxOff()).toBe(false);
  });

  it("an asserted line fires as soon as there is an eventfd", () => {
    host.endpoint.line(true);
    const [fd] = eventfds(1);
    trigger(INTX, [fd!]);
    expect(taken([fd!])).toEqual([1]);
  });

  it("can be masked, by NONE and by BOOL", () => {
    const [fd] = eventfds(1);
    trigger(INTX, [fd!]);
    expect(set({ index: INTX, flags: BOOL | MASK, count: 1 }, Uint8Array.of(0))).toBe(0);
    expect(intxOff()).toBe(false);
    expect(set({ index: INTX, flags: BOOL | MASK, count: 1 }, Uint8Array.of(1))).toBe(0);
    host.endpoint.line(true);
    expect(taken([fd!])).toEqual([0]);
    expect(set({ index: INTX, flags: BOOL | UNMASK, count: 1 }, Uint8Array.of(1))).toBe(0);
    expect(taken([fd!])).toEqual([1]);
    expect(set({ index: INTX, flags: NONE | MASK, count: 1 })).toBe(0);
  });

  it("the user's interrupt disable bit holds it back, and clearing it lets it through", () => {
    const [fd] = eventfds(1);
    trigger(INTX, [fd!]);
    const command = regionOffset(7) + BigInt(Header.COMMAND);
    client.task.pwrite(device, command, Uint8Array.of(7, 4));
    host.endpoint.line(true);
    expect(taken([fd!])).toEqual([0]);
    client.task.pwrite(device, command, Uint8Array.of(7, 0));
    expect(taken([fd!])).toEqual([1]);
  });

  const unmaskedBy = (fd: number): unknown =>
    set({ index: INTX, flags: EVENTFD | UNMASK, count: 1 }, new Uint8Array(Int32Array.of(fd).buffer));

  it("is unmasked by an eventfd too, from then on, until that is taken away", () => {
    const [fd, unmask] = eventfds(2);
    expect(unmaskedBy(unmask!)).toBe("EINVAL");
    trigger(INTX, [fd!]);
    host.endpoint.line(true);
    expect(unmaskedBy(unmask!)).toBe(0);
    expect(taken([fd!])).toEqual([1]);
    for (let i = 0; i < 3; i += 1) {
      client.task.counter(unmask!).add();
      expect(taken([fd!, unmask!])).toEqual([1, 0]);
    }
    expect(unmaskedBy(unmask!)).toBe("EBUSY");
    expect(unmaskedBy(99)).toBe("EBUSY");
    expect(unmaskedBy(-1)).toBe(0);
    client.task.counter(unmask!).add();
    expect(taken([fd!, unmask!])).toEqual([0, 1]);
    expect(unmaskedBy(99)).toBe("EBADF");
    expect(vfio.live().eventfds).toBe(1);
  });

  it("is unmasked at once by an eventfd that was counted up before, and by none once INTx is taken away", () => {
    const [fd, unmask] = eventfds(2);
    trigger(INTX, [fd!]);
    host.endpoint.line(true);
    client.task.counter(unmask!).add();
    expect(unmaskedBy(unmask!)).toBe(0);
    expect(taken([fd!, unmask!])).toEqual([2, 0]);
    expect(disable(INTX)).toBe(0);
    expect(vfio.live().eventfds).toBe(0);
    client.task.counter(unmask!).add();
    expect(taken([fd!, unmask!])).toEqual([0, 1]);
  });

  it("its eventfd can be exchanged, or taken while it stays set up", () => {
    const [a, b] = eventfds(2);
    trigger(INTX, [a!]);
    expect(trigger(INTX, [-1])).toBe(0);
    host.endpoint.line(true);
    expect(set({ index: INTX, flags: NONE | UNMASK, count: 1 })).toBe(0);
    expect(trigger(INTX, [b!])).toBe(0);
    expect(taken([a!, b!])).toEqual([0, 1]);
  });

  it("loopback signals, and needs it to be set up", () => {
    const [fd] = eventfds(1);
    const fire = () => set({ index: INTX, flags: NONE | TRIGGER, count: 1 });
    expect(fire()).toBe("EINVAL");
    trigger(INTX, [fd!]);
    expect(fire()).toBe(0);
    expect(set({ index: INTX, flags: BOOL | TRIGGER, count: 1 }, Uint8Array.of(0))).toBe(0);
    expect(set({ index: INTX, flags: BOOL | TRIGGER, count: 1 }, Uint8Array.of(1))).toBe(0);
    expect(taken([fd!])).toEqual([2]);
  });

  it("refusals: not set up, no vector, -1 that sets nothing up, an eventfd to mask with", () => {
    for (const action of [MASK, UNMASK])
      expect(set({ index: INTX, flags: NONE | action, count: 1 })).toBe("EINVAL");
    expect(disable(INTX)).toBe("EINVAL");
    expect(trigger(INTX, [-1])).toBe(0);
    expect(trigger(INTX, [99])).toBe("EBADF");
    expect(trigger(INTX, [])).toBe("EINVAL");
    const [fd] = eventfds(1);
    trigger(INTX, [fd!]);
    expect(set({ index: INTX, flags: NONE | MASK, count: 0 })).toBe("EINVAL");
    const eventfd = new Uint8Array(Int32Array.of(fd!).buffer);
    expect(set({ index: INTX, flags: EVENTFD | MASK, count: 1 }, eventfd)).toBe("ENOTTY");
    expect(disable(INTX)).toBe(0);
    host.endpoint.line(true);
    expect(taken([fd!])).toEqual([0]);
  });

  it("keeps its mask over a reset", () => {
    const [fd] = eventfds(1);
    trigger(INTX, [fd!]);
    set({ index: INTX, flags: NONE | MASK, count: 1 });
    client.task.ioctl(device, VFIO_DEVICE_RESET);
    expect(intxOff()).toBe(true);
  });
});

describe.each([
  ["ERR", ERR],
  ["REQ", REQ],
])("%s", (_name, index) => {
  it("holds one eventfd: set, provoked, exchanged, taken away", () => {
    const [a, b] = eventfds(2);
    const fire = () => set({ index, flags: NONE | TRIGGER, count: 1 });
    expect(fire()).toBe("EINVAL");
    expect(trigger(index, [a!])).toBe(0);
    expect(fire()).toBe(0);
    expect(trigger(index, [b!])).toBe(0);
    expect(set({ index, flags: BOOL | TRIGGER, count: 1 }, Uint8Array.of(1))).toBe(0);
    expect(set({ index, flags: BOOL | TRIGGER, count: 1 }, Uint8Array.of(0))).toBe(0);
    expect(taken([a!, b!])).toEqual([1, 1]);
    expect(trigger(index, [-1])).toBe(0);
    expect(disable(index)).toBe("EINVAL");
    trigger(index, [a!]);
    expect(disable(index)).toBe(0);
    expect(vfio.live().eventfds).toBe(0);
  });

  it("refuses descriptors that are none, and data that is not there", () => {
    expect(trigger(index, [99])).toBe("EBADF");
    expect(trigger(index, [-2])).toBe("EINVAL");
    expect(trigger(index, [])).toBe("EINVAL");
    expect(set({ index, flags: BOOL | TRIGGER, count: 0 })).toBe("EINVAL");
  });
});

it("closing the device lets every eventfd and message go", () => {
  trigger(MSIX, eventfds(MSIX_VECTORS));
  trigger(ERR, eventfds(1));
  trigger(REQ, eventfds(1));
  expect(vfio.live().eventfds).toBe(MSIX_VECTORS + 2);
  client.task.close(device);
  expect(vfio.live().eventfds).toBe(0);
  expect(host.msi.allocated).toBe(0);
  expect(control(CapabilityId.MSIX) & 0x8000).toBe(0);
});
