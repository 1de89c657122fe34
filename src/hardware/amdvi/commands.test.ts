import { describe, expect, it } from "vitest";
import { SparseMemory } from "../../memory/sparse-memory.ts";
import type { DeviceTlbInvalidation } from "../ats.ts";
import { access, EventLog } from "../unit.suite.ts";
import { Access, NO_PASID } from "../unit.ts";
import { encodedLg2 } from "./command-buffer.ts";
import {
  CompletePpr,
  EventCode,
  InvalidateAll,
  InvalidateIotlb,
  Opcode,
  PrefetchPages,
} from "./queue-spec.ts";
import { AmdViRig, invalidateDevice, invalidatePages, running, wait } from "./rig.suite.ts";
import { ExtendedFeature, Register, RingBase, Status } from "./spec.ts";
import { AmdViUnit } from "./unit.ts";

const RID = 0x18;
const enabled = (rig = new AmdViRig()) => {
  rig.enable();
  return rig;
};
const head = (rig: AmdViRig) => rig.read(Register.CMDBUF_HEAD);
const runs = (rig: AmdViRig) => (rig.read(Register.STATUS) & Status.CMD_BUF_RUN) !== 0;

describe("§2.4.1 COMPLETION_WAIT", () => {
  it("stores its data and raises its interrupt when everything before is done", () => {
    const rig = enabled();
    const at = rig.memory.allocate(1);
    rig.submit(invalidateDevice(RID), wait({ S: true, ADDRESS: at + 8, DATA: 0x1234_5678_9abc_def0n }));
    expect(rig.load64(at + 8)).toBe(0x1234_5678_9abc_def0n);
    expect(rig.read(Register.STATUS) & Status.COM_WAIT_INT).toBe(0);
    rig.submit(wait({ I: true, ADDRESS: at, DATA: 1n }));
    expect(rig.load64(at)).toBe(0n);
    expect(rig.read(Register.STATUS) & Status.COM_WAIT_INT).toBe(Status.COM_WAIT_INT);
    rig.write(Register.STATUS, Status.COM_WAIT_INT);
    expect(rig.read(Register.STATUS) & Status.COM_WAIT_INT).toBe(0);
  });

  it("that cannot store is an event, and goes on", () => {
    const rig = enabled();
    rig.submit(wait({ S: true, ADDRESS: 0x1000 }), wait());
    expect([head(rig), runs(rig)]).toEqual([32, true]);
    expect(rig.takeEvents()).toEqual([{ CODE: 6n, ADDRESS: BigInt(rig.commands) }]);
  });

  it("sends a message once until software has cleared the status bit", () => {
    const rig = enabled();
    rig.enableMessages(0xfee0_0000, 0x41);
    rig.control({ ...running, COM_WAIT_INT_EN: true });
    rig.submit(wait({ I: true }), wait({ I: true }));
    expect(rig.messages).toEqual([{ address: 0xfee0_0000n, data: 0x41 }]);
    rig.write(Register.STATUS, Status.COM_WAIT_INT);
    rig.submit(wait({ I: true }));
    expect(rig.messages).toHaveLength(2);
    rig.write(Register.MSI_CAPABILITY, 0, 4);
    rig.write(Register.STATUS, Status.COM_WAIT_INT);
    rig.submit(wait({ I: true }));
    expect(rig.messages).toHaveLength(2);
  });
});

describe("§2.4 the command buffer", () => {
  it("is a ring", () => {
    const rig = enabled();
    for (let i = 0; i < 300; i++) rig.submit(wait());
    expect(head(rig)).toBe((300 % 256) * 16);
    expect(rig.takeEvents()).toEqual([]);
  });

  it("does nothing until it is enabled, and goes on then", () => {
    const rig = enabled();
    rig.control({ IOMMU_EN: true });
    rig.submit(wait());
    expect([head(rig), runs(rig)]).toEqual([0, false]);
    rig.control(running);
    expect([head(rig), runs(rig)]).toEqual([16, true]);
  });

  it("§2.5.6 stops at a command that is not valid, with the head at it, until it is enabled anew", () => {
    for (const bad of [
      0n,
      9n << 60n,
      15n << 60n,
      wait() | (1n << 59n),
      invalidateDevice(RID) | (1n << 64n),
      invalidatePages(1, 0, 12) | (1n << 68n),
    ]) {
      const rig = enabled();
      rig.submit(wait(), bad, wait());
      expect([head(rig), runs(rig)], bad.toString(16)).toEqual([16, false]);
      expect(rig.takeEvents()).toEqual([{ CODE: 5n, ADDRESS: BigInt(rig.commands + 16) }]);
      rig.storeBig(rig.commands + 16, wait(), 16);
      rig.submit();
      expect(head(rig)).toBe(16);
      rig.control({ IOMMU_EN: true, EVENT_LOG_EN: true });
      rig.control(running);
      expect([head(rig), runs(rig)]).toEqual([48, true]);
    }
  });

  it("§2.5.7 stops where no memory answers", () => {
    const rig = enabled();
    rig.write(Register.CMDBUF_BASE, RingBase.make({ BASE: 0x1000, LEN: 8 }));
    rig.write(Register.CMDBUF_TAIL, 16);
    expect(runs(rig)).toBe(false);
    expect(rig.takeEvents()).toEqual([{ CODE: 6n, ADDRESS: 0x1000n }]);
  });

  it("writing its base clears head and tail", () => {
    const rig = enabled();
    rig.submit(wait());
    rig.write(Register.CMDBUF_BASE, RingBase.make({ BASE: rig.commands, LEN: 8 }));
    expect([head(rig), rig.read(Register.CMDBUF_TAIL)]).toEqual([0, 0]);
  });

  it("§3.4.2 has the commands that the features say", () => {
    const without = (name: keyof typeof ExtendedFeature.fields, command: bigint) => {
      const present = enabled();
      present.submit(command);
      expect(runs(present), name).toBe(true);
      const absent = enabled(
        new AmdViRig({
          capabilities: { efr: present.unit.capabilities.efr & ~ExtendedFeature.fields[name].put(1n) },
        }),
      );
      absent.submit(command);
      expect(runs(absent), name).toBe(false);
    };
    without("PREF_SUP", PrefetchPages.make({ OPCODE: Opcode.PREFETCH_IOMMU_PAGES }));
    without("IA_SUP", InvalidateAll.make({ OPCODE: Opcode.INVALIDATE_IOMMU_ALL }));
    without("PPR_SUP", CompletePpr.make({ OPCODE: Opcode.COMPLETE_PPR_REQUEST }));
    const deaf = enabled(new AmdViRig({ capabilities: { deviceTlb: false } }));
    deaf.submit(InvalidateIotlb.make({ OPCODE: Opcode.INVALIDATE_IOTLB_PAGES }));
    expect(runs(deaf)).toBe(false);
  });

  it("does not hang on a buffer that its own stores feed", () => {
    const rig = enabled();
    // A command that writes itself again where the next one is, round and round, ends at the tail.
    for (let at = 0; at < 4096; at += 16)
      rig.storeBig(rig.commands + at, wait({ S: true, ADDRESS: rig.commands, DATA: 0n }), 16);
    rig.write(Register.CMDBUF_TAIL, 0xff0);
    expect(head(rig)).toBe(0xff0);
  });
});

describe("§2.4.3 addresses that encode a size", () => {
  it("by the lowest bit from 12 on that is zero", () => {
    expect(encodedLg2(0, 0)).toBe(13);
    expect(encodedLg2(0x1000, 0)).toBe(14);
    expect(encodedLg2(0x7fff_f000, 0)).toBe(32);
    expect(encodedLg2(0xffff_f000, 0)).toBe(33);
    expect(encodedLg2(0xffff_f000, 0x7fff_ffff)).toBe(64);
  });
});

describe("§2.4.4 INVALIDATE_IOTLB_PAGES", () => {
  it("reaches the device's own translations", () => {
    const rig = enabled();
    const asked: DeviceTlbInvalidation[] = [];
    rig.unit.invalidateDeviceTlb = (what) => {
      asked.push(what);
      return "done";
    };
    const of = (values: Parameters<typeof InvalidateIotlb.make>[0]) =>
      InvalidateIotlb.make({ OPCODE: Opcode.INVALIDATE_IOTLB_PAGES, DEVICE: RID, ...values });
    rig.submit(
      of({ ADDRESS: 0x5000 }),
      of({ ADDRESS: 0x7000, S: true, GN: true, PASID_7: 0xde, PASID_15: 0xbc, PASID_19: 0xa }),
    );
    const all = { rid: RID, global: false, hi: 0 };
    expect(asked).toEqual([
      { ...all, pasid: NO_PASID, lo: 0x5000, lg2: 12 },
      { ...all, pasid: 0xa_bcde, lo: 0x7000, lg2: 16 },
    ]);
  });

  it("§2.5.8 a device that does not answer is told, and stops nothing", () => {
    const rig = enabled();
    rig.unit.invalidateDeviceTlb = () => "timeout";
    rig.submit(InvalidateIotlb.make({ OPCODE: Opcode.INVALIDATE_IOTLB_PAGES, DEVICE: RID }), wait());
    expect([head(rig), runs(rig)]).toEqual([32, true]);
    expect(rig.takeEvents()).toEqual([
      { CODE: BigInt(EventCode.IOTLB_INV_TIMEOUT), DEVICE: BigInt(RID), ADDRESS: BigInt(rig.commands) },
    ]);
  });
});

describe("a unit that is not silicon", () => {
  it("asks whoever stands behind it, and stops at what that cannot do", () => {
    const memory = new SparseMemory([{ start: 0x10_0000, end: 0x100_0000 }]);
    const seen: number[] = [];
    let refuses = -1;
    let late = -1;
    const unit = new AmdViUnit({
      name: "amdvi0",
      memory,
      events: new EventLog(),
      interrupt: () => {},
      downstream: {
        take(_words, at) {
          seen.push(at);
          return refuses === at ? at : -1;
        },
        drain() {
          const at = late;
          late = -1;
          return at;
        },
      },
    });
    const write = (register: number, value: bigint | number) => unit.mmioWrite(register, 8, BigInt(value));
    const store = (at: number, value: bigint) => {
      for (let i = 0; i < 4; i += 2) {
        const half = value >> BigInt(32 * i);
        memory.store64(
          0x10_0000 + at + 4 * i,
          Number(half & 0xffff_ffffn),
          Number((half >> 32n) & 0xffff_ffffn),
        );
      }
    };
    for (let at = 0; at < 64; at += 16) store(at, invalidateDevice(RID));
    write(Register.CMDBUF_BASE, RingBase.make({ BASE: 0x10_0000, LEN: 8 }));
    write(Register.CONTROL, 0x1001);
    write(Register.CMDBUF_TAIL, 32);
    expect(seen).toEqual([0, 16]);
    refuses = 32;
    write(Register.CMDBUF_TAIL, 64);
    expect(unit.mmioRead(Register.CMDBUF_HEAD, 8)).toBe(32n);
    expect(Number(unit.mmioRead(Register.STATUS, 8)) & Status.CMD_BUF_RUN).toBe(0);
    refuses = -1;
    write(Register.CONTROL, 1);
    late = 48;
    write(Register.CONTROL, 0x1001);
    expect(unit.mmioRead(Register.CMDBUF_HEAD, 8)).toBe(48n);
    expect(Number(unit.mmioRead(Register.STATUS, 8)) & Status.CMD_BUF_RUN).toBe(0);
  });

  it("translates nothing by commands alone", () => {
    const rig = enabled();
    rig.map(RID, 0x5000, 0x40_0000, 12, Access.read);
    rig.submit(invalidateDevice(RID), wait());
    expect(access(rig, RID, 0x5000)).toMatchObject({ ok: true, pa: 0x40_0000 });
  });
});
