import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Access, NO_PASID } from "../../hardware/unit.ts";
import { extendedCapabilitiesOf } from "../capability-list.ts";
import { functionSuite } from "../function.suite.ts";
import type { PciFunction } from "../function.ts";
import { MSI_BASE, Rig, read32, turnOn, turnOnServices, write32 } from "../rig.suite.ts";
import { Command, ExtendedCapabilityId, Header } from "../spec.ts";
import {
  MOST_QUEUES,
  QUEUE_IDENTITY,
  QueueFunction,
  QueueFunctionRegister,
  queueOffset,
} from "./queue-function.ts";
import {
  DESCRIPTOR_BYTES,
  Descriptor,
  DescriptorStatus,
  MOST_BYTES,
  Operation,
  QUEUE_DEPTH,
  QueueControl,
  QueueError,
  QueueRegister,
  QueueStatus,
} from "./work-queue.ts";

interface Wanted {
  readonly pasid?: number;
  readonly operation: number;
  readonly completion?: number;
  readonly source?: number;
  readonly destination?: number;
  readonly length?: number;
}

const VALID = 0x8000_0000;
const INTERRUPT = 0x8000_0000;

const descriptorOf = (wanted: Wanted): Uint8Array => {
  const { pasid = 0, operation, completion = 0, source = 0, destination = 0, length = 0 } = wanted;
  const bytes = new Uint8Array(DESCRIPTOR_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(Descriptor.PASID, pasid, true);
  view.setUint32(Descriptor.OPERATION, operation, true);
  view.setBigUint64(Descriptor.COMPLETION, BigInt(completion), true);
  view.setBigUint64(Descriptor.SOURCE, BigInt(source), true);
  view.setBigUint64(Descriptor.DESTINATION, BigInt(destination), true);
  view.setUint32(Descriptor.LENGTH, length, true);
  return bytes;
};

const set = (device: PciFunction, queue: number, register: number, value: number): void =>
  write32(device, 0, queueOffset(queue) + register, value);
const get = (device: PciFunction, queue: number, register: number): number =>
  read32(device, 0, queueOffset(queue) + register);
const enable = (device: PciFunction, queue: number): void =>
  set(device, queue, QueueRegister.CONTROL, QueueControl.ENABLE);
const submit = (device: PciFunction, queue: number, wanted: Wanted): void =>
  device.barWrite(0, queueOffset(queue) + QueueRegister.PORTAL, descriptorOf(wanted));

const pattern = (length: number): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i * 7 + (i >>> 8)) & 0xff);
const FROM = 0x10_0ffe;
const TO = 0x18_0123;
const LENGTH = 20_000;
const copy = { operation: Operation.COPY, source: FROM, destination: TO, length: LENGTH };

functionSuite("the function with work queues", {
  create: (context) => new QueueFunction(context),
  begin: (device) => {
    enable(device, 1);
    submit(device, 1, copy);
  },
  work: (device, rig) => {
    rig.memory.writeBytes(FROM, pattern(LENGTH));
    for (const queue of [0, 3]) {
      enable(device, queue);
      submit(device, queue, {
        ...copy,
        destination: TO + queue * 0x8000,
        completion: 0x30_0000 + 16 * queue,
      });
    }
    rig.settle();
    const seen = new Uint8Array(LENGTH);
    const other = new Uint8Array(LENGTH);
    const records = new Uint8Array(64);
    rig.memory.readBytes(TO, seen);
    rig.memory.readBytes(TO + 3 * 0x8000, other);
    rig.memory.readBytes(0x30_0000, records);
    return [seen, other, records, get(device, 3, QueueRegister.LAST), get(device, 0, QueueRegister.ENDED)];
  },
});

describe("the function with work queues", () => {
  let rig: Rig;
  let device: QueueFunction;
  beforeEach(() => {
    rig = new Rig();
    device = new QueueFunction(rig.context);
    turnOn(device);
    turnOnServices(device);
  });
  afterEach(() => rig.close());
  const status = (queue: number) => get(device, queue, QueueRegister.STATUS);
  const last = (queue: number) => get(device, queue, QueueRegister.LAST);
  const bytesAt = (pa: number, length: number): Uint8Array => {
    const bytes = new Uint8Array(length);
    rig.memory.readBytes(pa, bytes);
    return bytes;
  };

  it("says who it is and how many queues it has, and a queue is disabled", () => {
    expect(read32(device, 0, QueueFunctionRegister.IDENTITY)).toBe(QUEUE_IDENTITY);
    expect(read32(device, 0, QueueFunctionRegister.QUEUES)).toBe(4);
    expect(status(3)).toBe(QueueStatus.DISABLED);
    submit(device, 3, copy);
    expect([status(3), get(device, 3, QueueRegister.PENDING)]).toEqual([QueueStatus.DISABLED, 0]);
  });

  it.each([0, MOST_QUEUES + 1, 1.5])("cannot have %d queues", (queues) => {
    expect(() => new QueueFunction(rig.context, queues)).toThrow(RangeError);
  });

  it("carries descriptors out one after the other, and says so in registers, in memory and by interrupt", () => {
    const msix = 0x48; // behind power management
    expect(device.configRead(msix, 1)).toBe(0x11);
    write32(device, 2, 2 * 16, MSI_BASE);
    write32(device, 2, 2 * 16 + 8, 0x4321);
    write32(device, 2, 2 * 16 + 12, 0);
    device.configWrite(msix + 2, 2, 0x8000);
    enable(device, 2);
    set(device, 2, QueueRegister.VECTOR, 2);
    rig.memory.writeBytes(FROM, pattern(LENGTH));
    submit(device, 2, copy);
    submit(device, 2, {
      operation: Operation.COPY + INTERRUPT,
      source: TO,
      destination: 0x20_0000,
      length: LENGTH,
      completion: 0x30_0000,
    });
    expect([status(2), get(device, 2, QueueRegister.PENDING)]).toEqual([QueueStatus.BUSY, 2]);
    rig.settle();
    expect(bytesAt(0x20_0000, LENGTH)).toEqual(pattern(LENGTH));
    expect([status(2), last(2), get(device, 2, QueueRegister.ENDED)]).toEqual([
      QueueStatus.IDLE,
      DescriptorStatus.DONE,
      2,
    ]);
    expect([...new Uint32Array(bytesAt(0x30_0000, 16).buffer)]).toEqual([
      DescriptorStatus.DONE,
      LENGTH,
      0,
      0,
    ]);
    expect(rig.interrupts).toEqual([0x4321]);
  });

  it("fills memory with eight bytes, again and again", () => {
    enable(device, 0);
    submit(device, 0, { operation: Operation.FILL, source: 0x0708_0506_0304, destination: TO, length: 11 });
    rig.settle();
    expect([...bytesAt(TO, 12)]).toEqual([4, 3, 6, 5, 8, 7, 0, 0, 4, 3, 6, 0]);
    submit(device, 0, { operation: Operation.NOTHING });
    rig.settle();
    expect([last(0), get(device, 0, QueueRegister.ENDED)]).toEqual([DescriptorStatus.DONE, 2]);
  });

  it("puts the queue's PASID on the requests, or that of the descriptor, the record's included", () => {
    const seen: number[][] = [];
    rig.unit.stall = ({ pasid, access }) => {
      seen.push([pasid, access]);
      return false;
    };
    const fill = { operation: Operation.FILL, destination: TO, length: 8, completion: 0x30_0000 };
    enable(device, 0);
    enable(device, 1);
    set(device, 1, QueueRegister.PASID, VALID + 77);
    submit(device, 0, fill);
    rig.settle();
    submit(device, 1, fill);
    submit(device, 1, { ...fill, pasid: VALID + 5 });
    rig.settle();
    const { write } = Access;
    const [none, queue, own] = [NO_PASID, 77, 5].map((pasid) => [pasid, write]);
    expect(seen).toEqual([none, none, queue, queue, own, own]);
  });

  it("a request that faults ends its descriptor and no other, with how far it came", () => {
    rig.unit.forbidden.add(Math.floor(TO / 4096) + 1);
    enable(device, 0);
    submit(device, 0, { ...copy, completion: 0x30_0000 });
    rig.settle();
    const came = 4096 - (TO % 4096);
    expect([status(0), last(0), get(device, 0, QueueRegister.DONE)]).toEqual([
      QueueStatus.IDLE,
      DescriptorStatus.FAULT,
      came,
    ]);
    expect([...new Uint32Array(bytesAt(0x30_0000, 8).buffer)]).toEqual([DescriptorStatus.FAULT, came]);
    submit(device, 0, { ...copy, destination: 0x20_0000 });
    rig.settle();
    expect(last(0)).toBe(DescriptorStatus.DONE);
    rig.unit.forbidden.add(0x310);
    submit(device, 0, { operation: Operation.NOTHING, completion: 0x31_0000 });
    rig.settle();
    expect(last(0)).toBe(DescriptorStatus.FAULT);
  });

  it("ends with a fault when the answer to a stall is no", () => {
    device.configWrite(Header.COMMAND, 2, Command.MEMORY_SPACE | Command.BUS_MASTER);
    rig.unit.stall = () => true;
    enable(device, 0);
    submit(device, 0, copy);
    rig.settle(false);
    expect(last(0)).toBe(DescriptorStatus.FAULT);
  });

  it.each([
    ["an operation it does not know", { operation: 9 }],
    ["reserved bits", { operation: 0x100 }],
    ["too many bytes", { ...copy, length: MOST_BYTES + 1 }],
    ["a record that is not aligned", { operation: Operation.NOTHING, completion: 0x30_0008 }],
  ])("refuses a descriptor with %s", (_what, wanted) => {
    enable(device, 0);
    submit(device, 0, wanted);
    rig.settle();
    expect([status(0), last(0), get(device, 0, QueueRegister.ENDED)]).toEqual([
      QueueStatus.IDLE,
      DescriptorStatus.REFUSED,
      1,
    ]);
    expect(rig.unit.translations).toBe(0);
  });

  it("refuses a descriptor with bytes behind its length", () => {
    enable(device, 0);
    const bytes = descriptorOf({ operation: Operation.NOTHING });
    bytes[40] = 1;
    device.barWrite(0, queueOffset(0) + QueueRegister.PORTAL, bytes);
    rig.settle();
    expect(last(0)).toBe(DescriptorStatus.REFUSED);
  });

  it("stops when it is given more than it holds, ends what it holds, and begins anew when it is enabled again", () => {
    enable(device, 0);
    for (let n = 0; n <= QUEUE_DEPTH; n++) submit(device, 0, { operation: Operation.NOTHING });
    expect([status(0), get(device, 0, QueueRegister.ERROR)]).toEqual([QueueStatus.STOPPED, QueueError.FULL]);
    rig.settle();
    expect([status(0), get(device, 0, QueueRegister.ENDED)]).toEqual([QueueStatus.STOPPED, QUEUE_DEPTH]);
    submit(device, 0, copy);
    expect(get(device, 0, QueueRegister.PENDING)).toBe(0);
    set(device, 0, QueueRegister.CONTROL, QueueControl.DISABLE);
    enable(device, 0);
    submit(device, 0, { operation: Operation.NOTHING });
    rig.settle();
    expect([status(0), get(device, 0, QueueRegister.ENDED)]).toEqual([QueueStatus.IDLE, 1]);
  });

  it("disabled, forgets what it holds and keeps its PASID; the other queues go on", () => {
    rig.unit.stall = () => true;
    for (const queue of [0, 1]) {
      set(device, queue, QueueRegister.PASID, VALID + 7 + queue);
      enable(device, queue);
      submit(device, queue, { ...copy, destination: 0x20_0000 + queue * 0x1_0000 });
    }
    rig.memory.writeBytes(FROM, pattern(LENGTH));
    rig.work.run();
    set(device, 0, QueueRegister.CONTROL, QueueControl.DISABLE);
    rig.unit.stall = () => false;
    rig.settle();
    expect([status(0), get(device, 0, QueueRegister.PENDING), get(device, 0, QueueRegister.PASID)]).toEqual([
      QueueStatus.DISABLED,
      0,
      VALID + 7,
    ]);
    expect(bytesAt(0x20_0000, 64).every((byte) => byte === 0)).toBe(true);
    expect(bytesAt(0x21_0000, LENGTH)).toEqual(pattern(LENGTH));
    expect(last(1)).toBe(DescriptorStatus.DONE);
  });

  it("gives up what carries a PASID that is taken away, whether it waits or is under way; the rest goes on", () => {
    enable(device, 0);
    set(device, 0, QueueRegister.PASID, VALID + 6);
    const fill = { operation: Operation.FILL, destination: TO, source: 0x11, length: 1 };
    rig.unit.stall = ({ pasid }) => pasid === 5;
    submit(device, 0, { ...fill, pasid: VALID + 5, completion: 0x30_0000 });
    submit(device, 0, { ...fill, destination: TO + 1 });
    submit(device, 0, { ...fill, destination: TO + 2, pasid: VALID + 5 });
    submit(device, 0, { ...fill, destination: TO + 3, pasid: VALID + 7 });
    rig.work.run();
    expect(get(device, 0, QueueRegister.PENDING)).toBe(4);
    set(device, 0, QueueRegister.ABORT, 5);
    expect([get(device, 0, QueueRegister.PENDING), last(0)]).toEqual([2, DescriptorStatus.ABORTED]);
    set(device, 0, QueueRegister.ABORT, 5);
    rig.unit.stall = () => false;
    rig.settle();
    expect([...bytesAt(TO, 4)]).toEqual([0, 0x11, 0, 0x11]);
    expect(bytesAt(0x30_0000, 4)).toEqual(new Uint8Array(4));
    expect([status(0), get(device, 0, QueueRegister.ENDED)]).toEqual([QueueStatus.IDLE, 4]);
    submit(device, 0, { ...fill, pasid: VALID + 5 });
    set(device, 0, QueueRegister.ABORT, 5);
    expect([status(0), last(0), get(device, 0, QueueRegister.PENDING)]).toEqual([
      QueueStatus.IDLE,
      DescriptorStatus.ABORTED,
      0,
    ]);
    rig.settle();
    expect([...bytesAt(TO, 1)]).toEqual([0]);
  });

  it("has the capabilities it was made with", () => {
    const { PASID, ATS, PRI } = ExtendedCapabilityId;
    const ids = (made: PciFunction) => extendedCapabilitiesOf(made).map(({ id }) => id);
    expect(ids(device)).toEqual([PASID, ATS, PRI]);
    expect(ids(new QueueFunction(rig.context, 64, { pageRequests: 0 }))).toEqual([PASID, ATS]);
  });

  it("makes no request that is not allowed by Command", () => {
    device.configWrite(Header.COMMAND, 2, Command.MEMORY_SPACE);
    enable(device, 0);
    submit(device, 0, copy);
    rig.settle();
    expect(last(0)).toBe(DescriptorStatus.FAULT);
    expect(rig.unit.translations).toBe(0);
  });
});
