import { describe, expect, it } from "vitest";
import { answer, request } from "../unit.suite.ts";
import { Access } from "../unit.ts";
import { contextCache, iotlb, readWrite, VtdRig, wait } from "./rig.suite.ts";
import {
  DescriptorType,
  DeviceTlbInvalidate,
  EventControl,
  Fsts,
  Gcmd,
  Ics,
  InterruptEntryInvalidate,
  IqercdRegister,
  Register,
} from "./spec.ts";
import type { VtdCapabilities } from "./unit.ts";

const RID = 0x18;

const queueing = (capabilities: Partial<VtdCapabilities> = {}, lg2 = 0) => {
  const rig = new VtdRig({ capabilities });
  rig.map(RID, 0x5000, 0x40_0000, 12, readWrite);
  rig.enable();
  rig.enableQueue(lg2);
  const status = rig.memory.allocate(1);
  return { rig, status };
};
const fsts = (rig: VtdRig) => Number(rig.read(Register.FSTS));
const loaded = (rig: VtdRig, pa: number) => Number(rig.load64(pa) & 0xffff_ffffn);

describe("§6.5.2 invalidation queue", () => {
  it("carries out descriptors when the tail is written, in order, and the head follows", () => {
    const { rig, status } = queueing();
    rig.put(wait({ SW: true, STATUS: 0x1111_1111, ADDR: status }));
    rig.put(wait({ SW: true, STATUS: 0x2222_2222, ADDR: status }));
    expect(loaded(rig, status)).toBe(0);
    expect(rig.head).toBe(0);
    rig.kick();
    expect(loaded(rig, status)).toBe(0x2222_2222);
    expect(rig.head).toBe(0x20);
    expect(rig.events.of("command").map((event) => event["command"])).toEqual([
      expect.stringContaining("STATUS=0x11111111"),
      expect.stringContaining("STATUS=0x22222222"),
    ]);
  });

  it("the status write is of 32 bits, at any multiple of 4", () => {
    const { rig, status } = queueing();
    rig.store64(status, 0x1234_5678_9abc_def0n);
    rig.submit(wait({ SW: true, STATUS: 7, ADDR: status + 4 }));
    expect(rig.load64(status)).toBe(0x7_9abc_def0n);
  });

  it("wraps at its size, for every size", () => {
    for (const lg2 of [0, 1, 3]) {
      const { rig, status } = queueing({}, lg2);
      const slots = rig.queueBytes / 16;
      for (let n = 1; n <= 2 * slots + 3; n++) {
        rig.submit(wait({ SW: true, STATUS: n, ADDR: status }));
        expect(loaded(rig, status)).toBe(n);
      }
      expect(rig.head).toBe(3 * 16);
    }
  });

  it("a whole ring at once, wrapping around its end", () => {
    const { rig, status } = queueing();
    const slots = rig.queueBytes / 16;
    rig.submit(...Array.from({ length: 10 }, () => wait({ SW: true, ADDR: status })));
    for (let n = 1; n < slots; n++) rig.put(wait({ SW: true, STATUS: n, ADDR: status }));
    rig.kick();
    expect(loaded(rig, status)).toBe(slots - 1);
    expect(rig.head).toBe(rig.tail);
  });

  it("what is in it when it is enabled is carried out; while disabled nothing is", () => {
    const rig = new VtdRig();
    const status = rig.memory.allocate(1);
    rig.queue = rig.memory.allocate(1);
    rig.put(wait({ SW: true, STATUS: 5, ADDR: status }));
    rig.write(Register.IQA, rig.queue, 8);
    rig.kick();
    expect(loaded(rig, status)).toBe(0);
    rig.command(Gcmd.QIE);
    expect(loaded(rig, status)).toBe(5);
    expect(rig.head).toBe(0x10);
  });

  it("is disabled only when it is empty and ended with a wait descriptor; enabled again it begins at 0", () => {
    const { rig } = queueing();
    const enabled = () => (Number(rig.read(Register.GSTS)) & Gcmd.QIE) !== 0;
    rig.submit(iotlb({ G: 1 }));
    rig.command(0, Gcmd.QIE);
    expect(enabled()).toBe(true);
    rig.submit(wait({ FN: true }));
    rig.command(0, Gcmd.QIE);
    expect(enabled()).toBe(false);
    expect(rig.head).toBe(0);
  });

  it("does not exist without ECAP.QI", () => {
    const rig = new VtdRig({ capabilities: { queuedInvalidation: false } });
    rig.write(Register.IQA, 0x1234_5000, 8);
    rig.command(Gcmd.QIE);
    expect(rig.read(Register.IQA, 8)).toBe(0n);
    expect(Number(rig.read(Register.GSTS)) & Gcmd.QIE).toBe(0);
  });

  it("ends when it feeds itself: a status write that moves its own tail", () => {
    const { rig } = queueing();
    const tailRegister = 0xfed9_0000 + Register.IQT;
    let written = 0;
    const store32 = rig.memory.store32.bind(rig.memory);
    rig.memory.store32 = (pa, value) => {
      if (pa !== tailRegister) return store32(pa, value);
      written += 1;
      rig.unit.mmioWrite(Register.IQT, 4, BigInt(value));
      return true;
    };
    const slots = rig.queueBytes / 16;
    for (let slot = 0; slot < slots; slot++)
      rig.put(wait({ SW: true, STATUS: ((slot + 2) % slots) * 16, ADDR: tailRegister }));
    rig.write(Register.IQT, 0x10, 8);
    expect(written).toBe(0x1_0000);
  });
});

describe("§6.5.2 malformed descriptors", () => {
  const cases: [name: string, descriptor: bigint, iqei: number, capabilities?: Partial<VtdCapabilities>][] = [
    ["type 0", 0n, 3],
    ["type Fh", 0xfn, 3],
    ["a high type bit", iotlb({ G: 1 }) | (1n << 9n), 3],
    ["device-TLB without ECAP.DT", BigInt(DescriptorType.deviceTlb), 3],
    ["interrupt entry cache without ECAP.IR", BigInt(DescriptorType.interruptEntryCache), 3],
    ["PASID cache in legacy mode", BigInt(DescriptorType.pasidCache), 3],
    ["context cache, granularity 0", contextCache({ G: 0 }), 4],
    ["context cache, reserved bit 12", contextCache({ G: 1 }) | (1n << 12n), 4],
    ["context cache, upper half", contextCache({ G: 1 }) | (1n << 64n), 4],
    ["IOTLB, granularity 0", iotlb({ G: 0 }), 4],
    ["IOTLB, reserved bit 40", iotlb({ G: 1 }) | (1n << 40n), 4],
    ["IOTLB, reserved bit 71", iotlb({ G: 3 }) | (1n << 71n), 4],
    ["IOTLB, address mask beyond MAMV", iotlb({ G: 3, AM: 19 }), 4],
    ["IOTLB, page-selective without PSI", iotlb({ G: 3 }), 4, { pageSelective: false }],
    ["wait, reserved bit 31", wait({ SW: true }) | (1n << 31n), 4],
    ["wait, address bit 1", wait({ SW: true }) | (1n << 65n), 4],
    [
      "device-TLB, reserved bit 65",
      DeviceTlbInvalidate.make({ TYPE: 3 }) | (1n << 65n),
      4,
      { deviceTlb: true },
    ],
    [
      "interrupt entry cache, upper half",
      InterruptEntryInvalidate.make({ TYPE: 4 }) | (1n << 127n),
      4,
      { interruptRemapping: true },
    ],
  ];

  it.each(cases)("%s: IQE, the head stays, nothing behind is done", (_, descriptor, iqei, capabilities) => {
    const { rig, status } = queueing({ version: { major: 5, minor: 0 }, ...capabilities });
    rig.submit(
      wait({ SW: true, STATUS: 1, ADDR: status }),
      descriptor,
      wait({ SW: true, STATUS: 2, ADDR: status }),
    );
    expect(fsts(rig)).toBe(Fsts.IQE);
    expect(rig.head).toBe(0x10);
    expect(loaded(rig, status)).toBe(1);
    expect(IqercdRegister.fields.IQEI.of(rig.read(Register.IQERCD, 8))).toBe(BigInt(iqei));
    rig.kick();
    expect(loaded(rig, status)).toBe(1);
  });

  it("clearing IQE goes on at the head: with the corrected descriptor, or into the same error", () => {
    const { rig, status } = queueing();
    rig.submit(0xfn, wait({ SW: true, STATUS: 2, ADDR: status }));
    rig.write(Register.FSTS, Fsts.IQE);
    expect(fsts(rig)).toBe(Fsts.IQE);
    rig.store128(rig.queue, iotlb({ G: 1 }));
    rig.write(Register.FSTS, Fsts.IQE);
    expect(fsts(rig)).toBe(0);
    expect(loaded(rig, status)).toBe(2);
    expect(rig.read(Register.IQERCD, 8)).toBe(0n);
  });

  it("looks at address, mask and hint of an IOTLB invalidation for pages only", () => {
    const { rig } = queueing();
    rig.submit(iotlb({ G: 2, DID: 1, ADDR: 0x1000, AM: 63 }), iotlb({ G: 1, IH: true, ADDR: 0x1000 }));
    expect([fsts(rig), rig.head]).toEqual([0, 0x20]);
  });

  it("has no descriptors of 256 bits without scalable mode", () => {
    const { rig } = queueing({ version: { major: 5, minor: 0 } });
    rig.write(Register.IQA, BigInt(rig.queue) | 0x800n, 8);
    rig.submit(iotlb({ G: 1 }));
    expect([fsts(rig), rig.head]).toEqual([Fsts.IQE, 0]);
    expect(IqercdRegister.fields.IQEI.of(rig.read(Register.IQERCD, 8))).toBe(5n);
  });

  it("a queue that cannot be read, and a tail beyond it", () => {
    const version = { major: 5, minor: 0 };
    for (const [iqei, tail] of [
      [2, 0x10],
      [1, 0x1000],
    ]) {
      const { rig } = queueing({ version });
      if (iqei === 2) rig.memory.poison(rig.queue, 0x1000);
      rig.write(Register.IQT, tail!, 8);
      expect(fsts(rig)).toBe(Fsts.IQE);
      expect(rig.head).toBe(0);
      expect(rig.read(Register.IQT, 8)).toBe(BigInt(tail!));
      expect(IqercdRegister.fields.IQEI.of(rig.read(Register.IQERCD, 8))).toBe(BigInt(iqei!));
    }
  });

  it("IQE is a condition of the fault event", () => {
    const { rig } = queueing();
    rig.write(Register.FECTL, 0);
    rig.submit(0n);
    expect(rig.messages.length).toBe(1);
  });

  it("a wait descriptor with neither IF nor SW is none: it completes", () => {
    const { rig } = queueing();
    rig.submit(wait({}));
    expect(fsts(rig)).toBe(0);
    expect(rig.head).toBe(0x10);
  });
});

describe("§6.5.2.8 invalidation wait", () => {
  it("with IF sets IWC and sends the invalidation event, once until IWC is cleared", () => {
    const { rig } = queueing();
    rig.write(Register.IEDATA, 0x55);
    rig.write(Register.IEADDR, 0xfee0_2000);
    rig.write(Register.IECTL, 0);
    rig.submit(wait({ IF: true }), wait({ IF: true }));
    expect(rig.messages).toEqual([{ address: 0xfee0_2000n, data: 0x55 }]);
    expect(rig.read(Register.ICS)).toBe(BigInt(Ics.IWC));
    rig.write(Register.ICS, Ics.IWC);
    expect(rig.read(Register.ICS)).toBe(0n);
    rig.submit(wait({ IF: true }));
    expect(rig.messages.length).toBe(2);
  });

  it("masked, the event is pending until unmasked, or serviced by clearing IWC", () => {
    const { rig } = queueing();
    rig.submit(wait({ IF: true }));
    expect(rig.read(Register.IECTL)).toBe(BigInt(EventControl.IM + EventControl.IP));
    rig.write(Register.ICS, Ics.IWC);
    expect(rig.read(Register.IECTL)).toBe(BigInt(EventControl.IM));
    rig.submit(wait({ IF: true }));
    rig.write(Register.IECTL, 0);
    expect(rig.messages.length).toBe(1);
  });

  it("an interrupt that enqueues more: it is carried out after what was there", () => {
    const { rig, status } = queueing();
    rig.write(Register.IECTL, 0);
    const { messages } = rig;
    let reacted = false;
    const push = messages.push.bind(messages);
    messages.push = (...items) => {
      if (!reacted) {
        reacted = true;
        rig.submit(wait({ SW: true, STATUS: 9, ADDR: status }));
      }
      return push(...items);
    };
    rig.submit(wait({ IF: true }));
    expect(loaded(rig, status)).toBe(9);
    expect(rig.head).toBe(0x20);
  });
});

describe("§4.3, §6.5.2.5 device-TLB invalidation", () => {
  const invalidate = DeviceTlbInvalidate.make({
    TYPE: DescriptorType.deviceTlb,
    SID: 0x123,
    S: true,
    ADDR: 0x9_8765_7000n,
  });

  it("is asked of the device by its source id", () => {
    const { rig } = queueing({ deviceTlb: true });
    const asked: unknown[] = [];
    rig.unit.invalidateDeviceTlb = (...what) => {
      asked.push(what);
      return "done";
    };
    rig.submit(invalidate);
    // Bits 12 to 14 are ones and bit 15 is zero: 2^16 bytes.
    const range = { lo: 0x8765_0000, hi: 0x9, lg2: 16 };
    expect(asked).toEqual([[{ rid: 0x123, pasid: -1, global: false, ...range }]]);
    expect(fsts(rig)).toBe(0);
  });

  it("a time-out aborts the next wait and stops the queue with ITE until it is cleared", () => {
    const { rig, status } = queueing({ deviceTlb: true });
    rig.unit.invalidateDeviceTlb = () => "timeout";
    rig.submit(
      invalidate,
      iotlb({ G: 1 }),
      wait({ SW: true, STATUS: 1, ADDR: status }),
      wait({ SW: true, STATUS: 2, ADDR: status }),
    );
    expect(fsts(rig)).toBe(Fsts.ITE);
    expect(loaded(rig, status)).toBe(0);
    expect(rig.head).toBe(0x30);
    rig.write(Register.FSTS, Fsts.ITE);
    expect(loaded(rig, status)).toBe(2);
  });

  it("§11.4.9.9 the first function of a time-out, and that of an invalid completion, is recorded", () => {
    const { rig } = queueing({ deviceTlb: true, version: { major: 5, minor: 0 } });
    const other = DeviceTlbInvalidate.make({ TYPE: DescriptorType.deviceTlb, SID: 0x456 });
    rig.unit.invalidateDeviceTlb = () => "invalid";
    rig.submit(invalidate, other);
    rig.unit.invalidateDeviceTlb = () => "timeout";
    rig.submit(other, invalidate, wait({}));
    expect(fsts(rig)).toBe(Fsts.ICE | Fsts.ITE);
    expect(rig.read(Register.IQERCD, 8)).toBe(IqercdRegister.make({ ICESID: 0x123, ITESID: 0x456 }));
  });

  it("a time-out with no wait behind it is told when the queue is empty", () => {
    const { rig } = queueing({ deviceTlb: true });
    rig.unit.invalidateDeviceTlb = () => "timeout";
    rig.submit(invalidate);
    expect(fsts(rig)).toBe(Fsts.ITE);
  });

  it("an invalid completion sets ICE; the queue goes on", () => {
    const { rig, status } = queueing({ deviceTlb: true });
    rig.unit.invalidateDeviceTlb = () => "invalid";
    rig.submit(invalidate, wait({ SW: true, STATUS: 3, ADDR: status }));
    expect(fsts(rig)).toBe(Fsts.ICE);
    expect(loaded(rig, status)).toBe(3);
  });
});

describe("§6.5 what descriptors invalidate", () => {
  it("the IOTLB by page: an address mask covers its pages and no others", () => {
    const { rig } = queueing();
    const pages = [0, 1, 2, 3, 4, 5, 6, 7, 8];
    for (const page of pages) rig.map(RID, 0x10_0000 + page * 0x1000, 0x50_0000, 12, readWrite);
    rig.map(RID, 0x20_0000, 0x20_0000, 21, readWrite);
    const read = (iova: number) => answer(rig.unit, request(RID, iova, Access.read));
    for (const page of pages) read(0x10_0000 + page * 0x1000);
    read(0x20_0000);
    for (const page of pages) rig.map(RID, 0x10_0000 + page * 0x1000, 0x60_0000, 12, readWrite);
    rig.map(RID, 0x20_0000, 0x40_0000, 21, readWrite);
    rig.submit(iotlb({ G: 3, DID: 1, AM: 2, ADDR: 0x10_5000 }));
    const now = pages.map((page) => (read(0x10_0000 + page * 0x1000) as { pa: number }).pa);
    expect(now.map((pa) => pa === 0x60_0000)).toEqual([
      false,
      false,
      false,
      false,
      true,
      true,
      true,
      true,
      false,
    ]);
    expect(read(0x20_0000)).toMatchObject({ pa: 0x20_0000 });
    rig.submit(iotlb({ G: 3, DID: 1, ADDR: 0x2f_3000 }));
    expect(read(0x20_0000)).toMatchObject({ pa: 0x40_0000 });
  });

  it("the context cache by device: the function mask covers functions, another domain id nothing", () => {
    const { rig } = queueing();
    for (let fn = 0; fn < 8; fn++) {
      rig.context(0x20 | fn, { type: 2, aw: 3, domain: 7 });
      answer(rig.unit, request(0x20 | fn, 0x1000, Access.read));
      rig.context(0x20 | fn, { present: false });
    }
    const gone = () =>
      [0, 1, 2, 3, 4, 5, 6, 7].filter((fn) => !answer(rig.unit, request(0x20 | fn, 0x1000, Access.read)).ok);
    const invalidate = (domain: number, rid: number, mask: number) =>
      rig.submit(contextCache({ G: 3, DID: domain, SID: rid, FM: mask }));
    expect(gone()).toEqual([]);
    invalidate(8, 0x21, 0);
    expect(gone()).toEqual([]);
    invalidate(7, 0x21, 0);
    expect(gone()).toEqual([1]);
    invalidate(7, 0x20, 1);
    expect(gone()).toEqual([0, 1, 4]);
    invalidate(7, 0x20, 2);
    expect(gone()).toEqual([0, 1, 2, 4, 6]);
    invalidate(7, 0x20, 3);
    expect(gone()).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
  });
});
