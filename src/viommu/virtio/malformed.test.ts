/** What a hostile guest writes into virtqueues and registers: its device ends, or nothing happens; nobody else notices. */
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { GUEST_RIDS, GuestRig, RAM_BYTES } from "../../../test/support/guest-rig.ts";
import { AttachRequest, Feature, RequestType } from "./spec.ts";
import { Descriptor, DescriptorFlag, DeviceStatus, Register, UsedElement } from "./transport-spec.ts";

const { NEXT, WRITE, INDIRECT } = DescriptorFlag;
const SIZE = 8;
const TABLE = 0x1000;
const AVAILABLE = 0x2000;
const USED = 0x3000;
const BUFFER = 0x4000;
const ANSWER = 0x5000;
const READY = 0xf;

let rig: GuestRig;
beforeEach(() => {
  rig = new GuestRig("vtd-legacy", "shadow", { shows: "virtio" });
  setUp();
});
afterEach(() => {
  expect(rig.close()).toEqual({});
});

const write = (register: number, value: number) => rig.vmm.iommu.mmioWrite(register, 4, BigInt(value));
const read = (register: number) => Number(rig.vmm.iommu.mmioRead(register, 4));
const broken = () => (read(Register.Status) & DeviceStatus.DEVICE_NEEDS_RESET) !== 0;

/** Both queues, of which requests are in the first. */
const setUp = (size = SIZE, table = TABLE, available = AVAILABLE, used = USED): void => {
  rig.vmm.memory.fill(TABLE, 0x4000, 0);
  for (const status of [0, 1, 3]) write(Register.Status, status);
  write(Register.DriverFeaturesSel, 0);
  write(Register.DriverFeatures, Number(Feature.MAP_UNMAP | Feature.PROBE | Feature.BYPASS_CONFIG));
  write(Register.DriverFeaturesSel, 1);
  write(Register.DriverFeatures, 1);
  write(Register.Status, 0xb);
  write(Register.QueueSel, 0);
  write(Register.QueueNum, size);
  rig.vmm.iommu.mmioWrite(Register.QueueDesc, 8, BigInt(table));
  rig.vmm.iommu.mmioWrite(Register.QueueDriver, 8, BigInt(available));
  rig.vmm.iommu.mmioWrite(Register.QueueDevice, 8, BigInt(used));
  write(Register.QueueReady, 1);
  write(Register.Status, READY);
};
const describeAt = (index: number, addr: number, len: number, flags: number, next = 0) =>
  rig.vmm.memory.writeBytes(
    TABLE + index * Descriptor.size,
    Descriptor.bytes({ addr: BigInt(addr), len, flags, next }),
  );
/** Offers the chain from descriptor 0 and tells the device. */
const offer = (head = 0, count = 1): void => {
  rig.vmm.memory.writeBytes(AVAILABLE, Uint8Array.of(0, 0, count & 0xff, count >> 8, head & 0xff, head >> 8));
  write(Register.QueueNotify, 0);
};
/** Bytes that the device says it has written, of the first buffer; -1: none was used. */
const used = (): number => {
  const ring = new Uint8Array(4 + UsedElement.size);
  rig.vmm.memory.readBytes(USED, ring);
  return ring[2] === 0 ? -1 : UsedElement.read(ring, 4).len;
};
const request = AttachRequest.bytes({ type: RequestType.ATTACH, domain: 1, endpoint: GUEST_RIDS[0] });

describe("chains of descriptors", () => {
  it("in as many parts as the driver likes are one request", () => {
    rig.vmm.memory.writeBytes(BUFFER, request);
    describeAt(0, BUFFER, 7, NEXT, 1);
    describeAt(1, BUFFER + 7, request.length - 7, NEXT, 2);
    describeAt(2, ANSWER, 1, NEXT | WRITE, 3);
    describeAt(3, ANSWER + 1, 3, WRITE);
    rig.vmm.memory.fill(ANSWER, 8, 0xff);
    offer();
    const answer = new Uint8Array(5);
    rig.vmm.memory.readBytes(ANSWER, answer);
    expect([used(), [...answer]]).toEqual([4, [0, 0, 0, 0, 0xff]]);
  });

  it("that are too short for a request, or for its status, come back unwritten", () => {
    rig.vmm.memory.writeBytes(BUFFER, request);
    describeAt(0, BUFFER, request.length - 1, NEXT, 1);
    describeAt(1, ANSWER, 4, WRITE);
    offer();
    expect([used(), broken()]).toEqual([0, false]);
    setUp();
    describeAt(0, BUFFER, request.length, NEXT, 1);
    describeAt(1, ANSWER, 3, WRITE);
    offer();
    expect([used(), broken()]).toEqual([0, false]);
  });

  it("of a type that is not known come back unwritten", () => {
    rig.vmm.memory.writeBytes(BUFFER, Uint8Array.of(77));
    describeAt(0, BUFFER, 64, NEXT, 1);
    describeAt(1, ANSWER, 64, WRITE);
    offer();
    expect([used(), broken()]).toEqual([0, false]);
  });

  const WRONG: readonly (readonly [what: string, make: () => void])[] = [
    [
      "a circle",
      () => {
        describeAt(0, BUFFER, 4, NEXT, 1);
        describeAt(1, BUFFER, 4, NEXT, 0);
        offer();
      },
    ],
    [
      "a next descriptor that is not of the queue",
      () => {
        describeAt(0, BUFFER, 4, NEXT, SIZE);
        offer();
      },
    ],
    ["a first descriptor that is not of the queue", () => offer(SIZE)],
    ["more buffers than descriptors", () => offer(0, SIZE + 1)],
    [
      "an indirect descriptor",
      () => {
        describeAt(0, BUFFER, 64, INDIRECT);
        offer();
      },
    ],
    [
      "what is to be read after what is to be written",
      () => {
        describeAt(0, ANSWER, 4, NEXT | WRITE, 1);
        describeAt(1, BUFFER, 4, 0);
        offer();
      },
    ],
    [
      "a request that is not in memory",
      () => {
        describeAt(0, RAM_BYTES, 24, NEXT, 1);
        describeAt(1, ANSWER, 4, WRITE);
        offer();
      },
    ],
    [
      "a status that is not to be put in memory",
      () => {
        rig.vmm.memory.writeBytes(BUFFER, request);
        describeAt(0, BUFFER, request.length, NEXT, 1);
        describeAt(1, RAM_BYTES, 4, WRITE);
        offer();
      },
    ],
    [
      "rings that are not in memory",
      () => {
        setUp(SIZE, TABLE, RAM_BYTES);
        write(Register.QueueNotify, 0);
      },
    ],
    ["a size that is no power of two", () => setUp(7)],
    ["a size of nothing", () => setUp(0)],
  ];
  it.each(WRONG)("%s: the device needs a reset, and works after one", (_what, make) => {
    make();
    expect(broken()).toBe(true);
    setUp();
    rig.vmm.memory.writeBytes(BUFFER, request);
    describeAt(0, BUFFER, request.length, NEXT, 1);
    describeAt(1, ANSWER, 4, WRITE);
    offer();
    expect([used(), broken()]).toEqual([4, false]);
  });
});

describe("§3.1 initialization", () => {
  it("features without VERSION_1, or that are not offered, are not settled", () => {
    for (const [low, high] of [
      [4, 0],
      [4 | 8, 1],
    ] as const) {
      for (const status of [0, 1, 3]) write(Register.Status, status);
      write(Register.DriverFeaturesSel, 0);
      write(Register.DriverFeatures, low);
      write(Register.DriverFeaturesSel, 1);
      write(Register.DriverFeatures, high);
      write(Register.Status, READY);
      expect(read(Register.Status) & (DeviceStatus.FEATURES_OK | DeviceStatus.DRIVER_OK)).toBe(0);
    }
  });
});

describe("anything at all", () => {
  it("in rings, descriptors and registers neither throws nor lets a device beyond the guest's memory", () => {
    const word = fc.oneof(
      fc.nat(8),
      fc.constantFrom(TABLE, AVAILABLE, USED, BUFFER, ANSWER, RAM_BYTES),
      fc.nat(),
    );
    const registers = [...Object.values(Register), Register.QueueDesc + 4, Register.Config + 36];
    const step = fc.oneof(
      fc.record({ register: fc.constantFrom(...registers), value: word }),
      fc.record({ pa: fc.nat(0x1400).map((index) => TABLE + 4 * index), value: word }),
    );
    fc.assert(
      fc.property(fc.array(step, { minLength: 20, maxLength: 120 }), (steps) => {
        setUp();
        for (const one of steps)
          if ("pa" in one) rig.vmm.memory.store32(one.pa, one.value);
          else write(one.register, one.value);
        write(Register.QueueNotify, 0);
        rig.work.run();
        const [device] = rig.devices;
        device!.fetch(RAM_BYTES, 4);
        expect(rig.settle(device!)).toBe("fault");
      }),
      { numRuns: 40 },
    );
  });
});
