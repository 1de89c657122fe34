import { describe, expect, it } from "vitest";
import { tceGeometry } from "../../pagetable/tce.ts";
import { explained, outcomeOf, request } from "../unit.suite.ts";
import { Access, Transaction } from "../unit.ts";
import { TceFault } from "./faults.ts";
import { access, readWrite, TceRig } from "./rig.suite.ts";
import { IodaAddr, PEEV_ROW, RealTve, Register, RtcInvalidate, Table, Tve } from "./spec.ts";
import { TceUnit } from "./unit.ts";

const RID = 0x18;
const HIGH = 1n << 59n;

const ready = (...options: ConstructorParameters<typeof TceRig>): TceRig => {
  const rig = new TceRig(...options);
  rig.enable();
  return rig;
};
const codeAt = (rig: TceRig, iova: number | bigint, what?: number, rid = RID) => {
  const found = access(rig, rid, iova, what);
  return found.ok ? "ok" : found.code;
};

describe("windows of a PE", () => {
  it("address bit 59 chooses between two, each with tables and pages of its own", () => {
    const rig = ready();
    rig.map(RID, 0x5000, 0x40_0000, 12, readWrite);
    const { pe } = rig.tables(RID);
    const geometry = tceGeometry(40, 24, 1);
    const root = rig.table(geometry);
    rig.tce(root + 8, 0x1_0100_0003n);
    expect(codeAt(rig, HIGH | 0x1ab_cdefn)).toBe(TceFault.ioda);
    rig.tve(pe * 2 + 1, rig.tveOf(root, geometry));
    expect(access(rig, RID, HIGH | 0x1ab_cdefn, Access.write)).toEqual({
      ok: true,
      pa: 0x1_01ab_cdef,
      span: 0x100_0000 - 0xab_cdef,
    });
    expect(access(rig, RID, 0x5004)).toMatchObject({ pa: 0x40_0004 });
    expect(codeAt(rig, HIGH | 0x5000n)).toBe(TceFault.pageFault);
  });

  it("changes of a window are there at once; what was read of its tables stays until it is killed", () => {
    const rig = ready();
    rig.map(RID, 0x5000, 0x40_0000, 12, readWrite);
    const { pe } = rig.tables(RID);
    expect(access(rig, RID, 0x5000)).toMatchObject({ pa: 0x40_0000 });
    rig.tve(pe * 2, {});
    expect(access(rig, RID, 0x5000)).toMatchObject({ pa: 0x40_0000 });
    expect(codeAt(rig, 0x6000)).toBe(TceFault.ioda);
    rig.kill({ PE: true, PENUM: pe });
    expect(codeAt(rig, 0x5000)).toBe(TceFault.ioda);
  });

  it("one that is not translated is memory itself, from its start to its end", () => {
    const rig = ready();
    const { pe } = rig.tables(RID);
    const real = (fields: Parameters<typeof RealTve.make>[0]) =>
      rig.chip(Table.TVT, pe * 2 + 1, RealTve.make(fields));
    real({ START: 0x100_0000, END: 0x300_0000 });
    expect(access(rig, RID, HIGH | 0x100_0004n)).toEqual({ ok: true, pa: 0x100_0004, span: 0x1ff_fffc });
    expect(codeAt(rig, HIGH | 0xff_ffffn)).toBe(TceFault.ioda);
    expect(codeAt(rig, HIGH | 0x300_0000n)).toBe(TceFault.ioda);
    real({ START_HIGH: 1, END_HIGH: 2 });
    expect(access(rig, RID, HIGH | (1n << 48n))).toEqual({ ok: true, pa: 2 ** 48, span: 2 ** 48 });
    real({ START: 0x300_0000, END: 0x300_0000 });
    expect(codeAt(rig, HIGH | 0x300_0000n)).toBe(TceFault.ioda);
  });

  it("one with fields that say nothing possible is none", () => {
    const rig = ready({ pageLg2s: [12, 16] });
    const geometry = tceGeometry(40, 12, 3);
    const { pe, root } = rig.tables(RID);
    const good = rig.tveOf(root, geometry);
    for (const wrong of [
      { TABLE_SIZE: 0 },
      { PSIZE: 13 },
      { LEVELS: 5 },
      { TABLE: 1n << 53n },
      { TABLE_SIZE: 31 },
    ]) {
      rig.tve(pe * 2, { ...good, ...wrong });
      expect(codeAt(rig, 0x5000), JSON.stringify(Object.keys(wrong))).toBe(TceFault.ioda);
    }
    rig.tve(pe * 2, good);
    expect(codeAt(rig, 0x5000)).toBe(TceFault.pageFault);
  });
});

describe("requesters", () => {
  it("have the PE that the RTT names, big-endian, and keep it until the requester cache is told", () => {
    const rig = ready();
    for (const rid of [0x10, 0x11, 0x12, 0x13]) rig.map(rid, 0x5000, 0x40_0000 + rid * 0x1000, 12, readWrite);
    for (const rid of [0x10, 0x11, 0x12, 0x13])
      expect(access(rig, rid, 0x5000)).toMatchObject({ pa: 0x40_0000 + rid * 0x1000 });
    rig.rte(0x10, rig.tables(0x13).pe);
    expect(access(rig, 0x10, 0x5000)).toMatchObject({ pa: 0x41_0000 });
    expect([...rig.unit.explain(request(0x10, 0x5000, Access.read))].map(({ cache }) => cache)).toContain(
      "stale",
    );
    rig.write(Register.RTC_INVALIDATE, RtcInvalidate.make({ RID: 0x11 }));
    expect(access(rig, 0x10, 0x5000)).toMatchObject({ pa: 0x41_0000 });
    rig.write(Register.RTC_INVALIDATE, RtcInvalidate.make({ RID: 0x10 }));
    expect(access(rig, 0x10, 0x5000)).toMatchObject({ pa: 0x41_3000 });
    rig.rte(0x10, rig.tables(0x12).pe);
    rig.write(Register.RTC_INVALIDATE, RtcInvalidate.make({ ALL: true }));
    expect(access(rig, 0x10, 0x5000)).toMatchObject({ pa: 0x41_2000 });
  });

  it("that the RTT gives no PE, or whose entry no memory answers for, reach nothing", () => {
    const rig = ready();
    rig.rte(RID, 512);
    expect(codeAt(rig, 0x5000)).toBe(TceFault.ioda);
    rig.memory.poison(rig.rtt, 4096);
    expect(codeAt(rig, 0x5000)).toBe(TceFault.memory);
    const outcome = outcomeOf(rig.unit.explain(request(RID, 0x5000, Access.read)));
    expect(outcome).toMatchObject({ ok: false, code: TceFault.memory });
  });

  it("have no PASIDs, and no addresses that were translated before", () => {
    const rig = ready();
    rig.map(RID, 0x5000, 0x40_0000, 12, readWrite);
    for (const change of [{ pasid: 5 }, { translated: true }]) {
      const transaction = new Transaction();
      Object.assign(transaction, { rid: RID, lo: 0x5000, access: Access.read }, change);
      const told = explained(rig.unit, transaction);
      rig.unit.translate(transaction);
      expect(transaction.fault).toBe(TceFault.ioda);
      expect(told).toEqual({ ok: false, code: TceFault.ioda });
    }
  });
});

describe("TCEs that are remembered", () => {
  it("are forgotten by page, by PE, or all", () => {
    const rig = ready();
    const other = RID + 1;
    for (const rid of [RID, other])
      for (const page of [5, 6]) rig.map(rid, page * 0x1000, 0x40_0000 + page * 0x1000, 12, readWrite);
    const { pe } = rig.tables(RID);
    const all = [RID, other].flatMap((rid) => [5, 6].map((page) => [rid, page] as const));
    const found = () => all.map(([rid, page]) => access(rig, rid, page * 0x1000).ok);
    const empty = () => {
      for (const [rid, page] of all) rig.tce(rig.place(rig.tables(rid), page * 0x1000), 0n);
    };
    const fill = () => {
      for (const [rid, page] of all) rig.map(rid, page * 0x1000, 0x40_0000, 12, readWrite);
      found();
    };
    found();
    empty();
    expect(found()).toEqual([true, true, true, true]);
    rig.kill({ ONE: true, PENUM: pe, ADDR: 0x5000 });
    expect(found()).toEqual([false, true, true, true]);
    rig.kill({ PE: true, PENUM: pe });
    expect(found()).toEqual([false, false, true, true]);
    fill();
    empty();
    rig.kill({ ALL: true });
    expect(found()).toEqual([false, false, false, false]);
  });

  it("a kill that comes in two halves is carried out with the upper one", () => {
    const rig = ready();
    rig.map(RID, 0x5000, 0x40_0000, 12, readWrite);
    const { pe } = rig.tables(RID);
    access(rig, RID, 0x5000);
    rig.tce(rig.place(rig.tables(RID), 0x5000), 0n);
    rig.write(Register.TCE_KILL, pe, 4);
    expect(access(rig, RID, 0x5000).ok).toBe(true);
    rig.write(Register.TCE_KILL + 4, 0x4000_0000, 4);
    expect(access(rig, RID, 0x5000).ok).toBe(false);
    expect(rig.read(Register.TCE_KILL)).toBe(0n);
  });

  it("one page of a window that is gone forgets the window", () => {
    const rig = ready();
    rig.map(RID, 0x5000, 0x40_0000, 12, readWrite);
    const { pe } = rig.tables(RID);
    access(rig, RID, 0x5000);
    rig.tve(pe * 2, {});
    rig.kill({ ONE: true, PENUM: pe, ADDR: 0x9000 });
    expect(access(rig, RID, 0x5000).ok).toBe(false);
  });

  it("explains that it answers from what the tables do not say any more", () => {
    const rig = ready();
    rig.map(RID, 0x5000, 0x40_0000, 12, readWrite);
    access(rig, RID, 0x5000);
    rig.tce(rig.place(rig.tables(RID), 0x5000), 0n);
    const steps = [...rig.unit.explain(request(RID, 0x5010, Access.read))];
    expect(steps.at(-1)).toMatchObject({ outcome: { ok: true, pa: 0x40_0010 } });
    expect(steps.at(-1)!.note).toMatch(/answered from its IOTLB/);
  });

  it("forgotten or not at any time, translations are those of the tables", () => {
    const rig = ready({ cache: "paranoid" });
    for (const page of [5, 6]) rig.map(RID, page * 0x1000, 0x40_0000 + page * 0x1000, 12, readWrite);
    for (let i = 0; i < 100; i++)
      expect(access(rig, RID, 0x5000 + (i % 2) * 0x1000)).toMatchObject({ pa: 0x40_5000 + (i % 2) * 0x1000 });
    const { memory, events } = rig;
    const options = { name: "phb0", memory, events, interrupt: () => {}, cache: "paranoid" } as const;
    expect(() => new TceUnit(options)).toThrow(/random/);
  });
});

describe("errors of a PE", () => {
  it("are in its PE state, its bit in PEEV, and told by a message", () => {
    const rig = ready();
    rig.map(RID, 0x5000, 0x40_0000, 12, Access.read);
    const { pe } = rig.tables(RID);
    expect(codeAt(rig, 0x5678, Access.write)).toBe(TceFault.accessFault);
    expect(rig.stateOf(pe)).toEqual({ TCE_ACCESS_FAULT: 1n, RID: BigInt(RID), FAIL_ADDR: 0x5678n });
    expect(rig.readChip(Table.PEEV, 0)).toBe(1n << BigInt(PEEV_ROW - 1 - pe));
    expect(rig.messages).toEqual([{ address: 0xfee0_0000n, data: 7 }]);
  });

  it("the first one stays until software has cleared it", () => {
    const rig = ready();
    const { pe } = rig.tables(RID);
    codeAt(rig, 0x1000);
    codeAt(rig, 0x2000);
    expect(rig.stateOf(pe)).toMatchObject({ TCE_PAGE_FAULT: 1n, TTYPE: 2n, FAIL_ADDR: 0x1000n });
    expect(rig.messages.length).toBe(1);
    expect(rig.events.of("fault").map(({ recorded }) => recorded)).toEqual([true, false]);
    rig.chip(Table.PESTB, pe, 0n);
    expect(rig.readChip(Table.PEEV, 0)).toBe(0n);
    codeAt(rig, 0x3000);
    expect(rig.stateOf(pe)).toMatchObject({ FAIL_ADDR: 0x3000n });
  });

  it("say what was wrong", () => {
    const rig = ready();
    const { pe, root } = rig.tables(RID);
    const seen = (iova: number | bigint) => {
      codeAt(rig, iova);
      const { TTYPE, RID: _, FAIL_ADDR, ...what } = rig.stateOf(pe);
      rig.chip(Table.PESTB, pe, 0n);
      return Object.keys(what);
    };
    expect(seen(0x1000)).toEqual(["TCE_PAGE_FAULT"]);
    expect(seen(1n << 58n)).toEqual(["IODA_ERROR"]);
    expect(seen(HIGH)).toEqual(["IODA_ERROR"]);
    expect(seen(3n << 62n)).toEqual(["IODA_ERROR"]);
    rig.tce(root, 3n | (1n << 60n));
    expect(seen(0x1000)).toEqual(["PARITY_UE"]);
    rig.memory.poison(root, 4096);
    expect(seen(0x1000)).toEqual(["PARITY_UE"]);
  });

  it("are not recorded where there is no table, or none that answers", () => {
    const rig = new TceRig();
    rig.tables(RID);
    rig.enable();
    rig.write(Register.PEST_BAR, 0n);
    codeAt(rig, 0x1000);
    rig.write(Register.PEST_BAR, (1n << 63n) | 0x7000n);
    codeAt(rig, 0x1000);
    expect(rig.readChip(Table.PEEV, 0)).toBe(0n);
    expect(rig.messages).toEqual([]);
  });
});

describe("messages", () => {
  it("are writes to addresses with bits 63:60 = 1, and reach the interrupt controller", () => {
    const rig = ready();
    rig.tables(RID);
    const at = (1n << 60n) | 0x120n;
    expect(access(rig, RID, at, Access.write)).toEqual({ ok: true, pa: 0xfee0_0120, span: 0xf_fee0 });
    for (const address of [at | 0x10_0000n, at | (1n << 40n)])
      expect(codeAt(rig, address, Access.write)).toBe(TceFault.ioda);
    expect(codeAt(rig, at, Access.read)).toBe(TceFault.ioda);
    rig.write(Register.PHB4_CONFIG, 0n);
    expect(codeAt(rig, at, Access.write)).toBe(TceFault.ioda);
  });

  it("are explained as they go", () => {
    const rig = ready();
    rig.tables(RID);
    for (const [iova, what] of [
      [(1n << 60n) | 0x120n, Access.write],
      [(1n << 60n) | 0x120n, Access.read],
      [(1n << 60n) | 0x20_0000n, Access.write],
      [5n << 60n, Access.write],
    ] as const) {
      const transaction = request(RID, 0, what);
      transaction.hi = Number(iova >> 32n);
      transaction.lo = Number(iova & 0xffff_ffffn);
      expect(explained(rig.unit, transaction)).toEqual(access(rig, RID, iova, what));
    }
  });
});

describe("tables on the chip", () => {
  it("are read and written through IODA_ADDR and IODA_DATA0, in halves too", () => {
    const rig = new TceRig();
    const value = Tve.make({ TABLE: 0x1234_5000, LEVELS: 1, TABLE_SIZE: 2, PSIZE: 1 });
    rig.write(Register.IODA_ADDR, IodaAddr.make({ TSEL: Table.TVT, TADR: 1023 }));
    rig.write(Register.IODA_DATA0, value & 0xffff_ffffn, 4);
    rig.write(Register.IODA_DATA0 + 4, value >> 32n, 4);
    expect(rig.read(Register.IODA_DATA0)).toBe(value);
    expect(rig.unit.mmioRead(Register.IODA_DATA0 + 4, 4)).toBe(value >> 32n);
    expect(rig.readChip(Table.TVT, 1022)).toBe(0n);
    expect(rig.readChip(31, 0)).toBe(0n);
    rig.chip(31, 0, 5n);
    expect(rig.readChip(31, 0)).toBe(0n);
  });
});
