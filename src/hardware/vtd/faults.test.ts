import { describe, expect, it } from "vitest";
import { answer, explained, outcomeOf, request } from "../unit.suite.ts";
import { Access } from "../unit.ts";
import { describeFault, FaultCode, faultReasons } from "./faults.ts";
import { type RigOptions, readWrite, VtdRig } from "./rig.suite.ts";
import { FaultRecording, Fsts, Register } from "./spec.ts";

const RID = 0x1_18;
const IOVA = 0x7f_1234_5000;

/** A rig with one page at IOVA for RID, before translation is enabled. */
const prepared = (options: RigOptions = {}) => {
  const rig = new VtdRig(options);
  const table = rig.memory.allocate(1);
  rig.context(RID, { table });
  rig.mapPage(table, 4, IOVA, 0x40_0000, 12, readWrite);
  return { rig, table };
};

interface Case {
  readonly code: number;
  readonly what: string;
  readonly access?: number;
  readonly iova?: number;
  readonly options?: RigOptions;
  spoil(rig: VtdRig, table: number): void;
}

const orInto = (rig: VtdRig, pa: number, bits: bigint) => rig.store64(pa, rig.load64(pa) | bits);
const rootAddress = (rig: VtdRig) => rig.root + (RID >>> 8) * 16;

const cases: Case[] = [
  { code: 0x01, what: "root entry not present", spoil: (rig) => rig.store64(rootAddress(rig), 0n) },
  {
    code: 0x02,
    what: "context entry not present",
    spoil: (rig, table) => rig.context(RID, { table, present: false }),
  },
  { code: 0x03, what: "AW not in SAGAW", spoil: (rig, table) => rig.context(RID, { table, aw: 4 }) },
  { code: 0x03, what: "TT reserved", spoil: (rig, table) => rig.context(RID, { table, type: 3 }) },
  {
    code: 0x03,
    what: "TT = 1 without device-TLBs",
    spoil: (rig, table) => rig.context(RID, { table, type: 1 }),
  },
  {
    code: 0x03,
    what: "pass-through with an AW that is not the largest",
    spoil: (rig) => rig.context(RID, { type: 2, aw: 2 }),
  },
  {
    code: 0x03,
    what: "pass-through without ECAP.PT",
    options: { capabilities: { passThrough: false } },
    spoil: (rig) => rig.context(RID, { type: 2, aw: 3 }),
  },
  {
    code: 0x03,
    what: "a root table that cannot be read",
    spoil: (rig) => rig.context(RID, { table: 0x9000_0000 }),
  },
  { code: 0x04, what: "address beyond AW", iova: 2 ** 48 + IOVA, spoil: () => {} },
  {
    code: 0x04,
    what: "address beyond MGAW",
    iova: 2 ** 39,
    options: { capabilities: { guestAddressWidth: 39 } },
    spoil: () => {},
  },
  {
    code: 0x04,
    what: "pass-through address beyond the width",
    iova: 2 ** 57,
    spoil: (rig) => rig.context(RID, { type: 2, aw: 3 }),
  },
  {
    code: 0x05,
    what: "write to a read-only page",
    access: Access.write,
    spoil: (rig, table) => rig.mapPage(table, 4, IOVA, 0x40_0000, 12, Access.read),
  },
  {
    code: 0x05,
    what: "write where nothing is mapped",
    access: Access.write,
    iova: IOVA + 0x1000,
    spoil: () => {},
  },
  {
    code: 0x05,
    what: "atomic operation on a read-only page",
    access: Access.atomic,
    spoil: (rig, table) => rig.mapPage(table, 4, IOVA, 0x40_0000, 12, Access.read),
  },
  {
    code: 0x06,
    what: "read of a write-only page",
    spoil: (rig, table) => rig.mapPage(table, 4, IOVA, 0x40_0000, 12, Access.write),
  },
  { code: 0x06, what: "read where nothing is mapped", iova: IOVA + 0x1000, spoil: () => {} },
  {
    code: 0x07,
    what: "a lower table that cannot be read",
    spoil: (rig, table) => rig.store64(rig.entryAddress(table, 4, IOVA, 21), 0x9000_0003n),
  },
  {
    code: 0x08,
    what: "root table that cannot be read",
    spoil: (rig) => rig.memory.poison(rig.root, 0x1000),
  },
  {
    code: 0x09,
    what: "context table that cannot be read",
    spoil: (rig) => rig.store64(rootAddress(rig), 0x9000_0001n),
  },
  { code: 0x0a, what: "root entry, bit 1", spoil: (rig) => orInto(rig, rootAddress(rig), 2n) },
  { code: 0x0a, what: "root entry, upper half", spoil: (rig) => rig.store64(rootAddress(rig) + 8, 1n) },
  {
    code: 0x0a,
    what: "root entry, beyond the host address width",
    spoil: (rig) => orInto(rig, rootAddress(rig), 1n << 40n),
  },
  { code: 0x0b, what: "context entry, bit 4", spoil: (rig) => orInto(rig, rig.contextAddress(RID), 0x10n) },
  {
    code: 0x0b,
    what: "context entry, bit 71",
    spoil: (rig) => orInto(rig, rig.contextAddress(RID) + 8, 0x80n),
  },
  {
    code: 0x0b,
    what: "domain id beyond ND",
    options: { capabilities: { domainBits: 8 } },
    spoil: (rig, table) => rig.context(RID, { table, domain: 0x100 }),
  },
  {
    code: 0x0c,
    what: "leaf, beyond the host address width",
    spoil: (rig, table) => orInto(rig, rig.entryAddress(table, 4, IOVA, 12), 1n << 45n),
  },
  {
    code: 0x0c,
    what: "page size bit where no page can be",
    spoil: (rig, table) => orInto(rig, rig.entryAddress(table, 4, IOVA, 39), 0x80n),
  },
  {
    code: 0x0c,
    what: "a 2 MiB page that the unit does not have",
    options: { capabilities: { largePages: { twoMegabytes: false, oneGigabyte: false } } },
    spoil: (rig, table) => rig.store64(rig.entryAddress(table, 4, IOVA, 21), 0x4000_0083n),
  },
  {
    code: 0x0c,
    what: "SNP without snoop control",
    options: { capabilities: { snoopControl: false } },
    spoil: (rig, table) => orInto(rig, rig.entryAddress(table, 4, IOVA, 12), 0x800n),
  },
  {
    code: 0x0e,
    what: "a page that maps to the interrupt address range",
    spoil: (rig, table) => rig.mapPage(table, 4, IOVA, 0xfee0_1000, 12, readWrite),
  },
];

/** Of the codes of legacy mode, those that FPD keeps from being recorded. */
const qualified = (code: number) => faultReasons[code]!.qualified;

describe("§7.1.3 fault reasons in legacy mode", () => {
  it.each(cases)("$code: $what", ({ code, spoil, access = Access.read, iova = IOVA, options }) => {
    for (const cache of ["normal", "none"] as const) {
      const { rig, table } = prepared({ ...options, cache });
      spoil(rig, table);
      rig.enable();
      const transaction = request(RID, iova, access);
      const outcome = outcomeOf(rig.unit.explain(transaction));
      expect(outcome).toMatchObject({ ok: false, code });
      expect(outcome.ok ? "" : outcome.reason).toContain(`reason ${code.toString(16).toUpperCase()}h`);
      expect(answer(rig.unit, transaction)).toEqual({ ok: false, code });

      const record = FaultRecording.fields;
      const value = (rig.read(0x408, 8) << 64n) | rig.read(0x400, 8);
      expect(record.F.of(value)).toBe(1n);
      expect(Number(record.FR.of(value))).toBe(code);
      expect(Number(record.FI.of(value))).toBe(iova - (iova % 0x1000));
      expect(Number(record.SID.of(value))).toBe(RID);
      expect(record.T1.of(value)).toBe(access === Access.write ? 0n : 1n);
      expect(record.T2.of(value)).toBe(access === Access.atomic ? 1n : 0n);
      expect(rig.events.of("fault")[0]).toMatchObject({ code, recorded: true, rid: RID });
    }
  });

  it.each(cases)("with FPD, $code is recorded only when it is not qualified: $what", (one) => {
    const { rig, table } = prepared(one.options ?? {});
    one.spoil(rig, table);
    const at = rig.contextAddress;
    if (![0x01, 0x08, 0x09].includes(one.code)) orInto(rig, at.call(rig, RID), 2n);
    rig.enable();
    expect(answer(rig.unit, request(RID, one.iova ?? IOVA, one.access ?? Access.read)).ok).toBe(false);
    expect(rig.read(Register.FSTS)).toBe(qualified(one.code) ? 0n : BigInt(Fsts.PPF));
  });

  it("every code that translation gives is triggered above", () => {
    const given = new Set<number>(cases.map(({ code }) => code));
    const elsewhere: number[] = [FaultCode.aborted, FaultCode.requestBlocked];
    for (const code of Object.values(FaultCode).filter((one) => one < FaultCode.tableModeInvalid))
      expect(given.has(code) || elsewhere.includes(code)).toBe(true);
  });

  it("a request with PASID is refused: the tables are legacy ones", () => {
    const { rig } = prepared();
    rig.enable();
    const transaction = request(RID, IOVA, Access.write | Access.privileged | Access.execute);
    transaction.pasid = 0x1_2345;
    expect(explained(rig.unit, transaction)).toEqual({ ok: false, code: 0x31 });
    expect(answer(rig.unit, transaction)).toEqual({ ok: false, code: 0x31 });
    const { PP, PV, PRIV, EXE } = FaultRecording.fields;
    const value = (rig.read(0x408, 8) << 64n) | rig.read(0x400, 8);
    expect([PP, PV, PRIV, EXE].map((field) => field.of(value))).toEqual([1n, 0x1_2345n, 1n, 1n]);
  });

  it("the event says where the walk ended", () => {
    const { rig, table } = prepared();
    rig.enable();
    answer(rig.unit, request(RID, IOVA + 0x1000, Access.read));
    const entryAddress = rig.entryAddress(table, 4, IOVA + 0x1000, 12);
    expect(rig.events.of("fault")[0]).toMatchObject({ level: 1, entryAddress, entry: 0n });
  });

  it("words name the condition and the section; a code that is not defined says so", () => {
    expect(describeFault(0x05)).toBe(
      "a write or atomic operation lacks write permission (LGN.2, reason 5h, §7.1.3)",
    );
    expect(describeFault(0xff)).toBe("reserved fault reason FFh");
    for (const { words, section } of Object.values(faultReasons)) {
      expect(words.length).toBeGreaterThan(10);
      expect(section).toMatch(/^7\.1\.\d$/);
    }
  });
});

describe("§3.15 the interrupt address range", () => {
  it("writes without PASID pass as they are; reads and atomic operations are aborted and not recorded", () => {
    const { rig, table } = prepared();
    rig.mapPage(table, 4, 0xfee0_1000, 0x40_0000, 12, readWrite);
    rig.enable();
    const write = request(RID, 0xfee0_1004, Access.write);
    expect(answer(rig.unit, write)).toEqual({ ok: true, pa: 0xfee0_1004, span: 0xfef0_0000 - 0xfee0_1004 });
    for (const access of [Access.read, Access.atomic, readWrite]) {
      expect(explained(rig.unit, request(RID, 0xfee0_1004, access))).toEqual({ ok: false, code: 0 });
      expect(answer(rig.unit, request(RID, 0xfee0_1004, access))).toEqual({ ok: false, code: 0 });
    }
    expect(rig.read(Register.FSTS)).toBe(0n);
    expect(rig.events.of("fault")[0]).toMatchObject({ recorded: false });
  });

  it("a large page over it is good up to it and behind it, and never through the requester's last page", () => {
    const { rig, table } = prepared();
    rig.mapPage(table, 4, 0xc000_0000, 0, 30, readWrite);
    rig.enable();
    for (let round = 0; round < 2; round++) {
      const before = request(RID, 0xfedf_f000, Access.read);
      expect(answer(rig.unit, before)).toEqual({ ok: true, pa: 0x3edf_f000, span: 0x1000 });
      expect(answer(rig.unit, request(RID, 0xfee0_0000, Access.read))).toEqual({ ok: false, code: 0 });
      const behind = request(RID, 0xfef0_0000, Access.read);
      expect(answer(rig.unit, behind)).toEqual({ ok: true, pa: 0x3ef0_0000, span: 0x110_0000 });
    }
  });

  it("a large page that maps over it: reason Eh inside, spans that end before it outside", () => {
    const { rig, table } = prepared();
    rig.mapPage(table, 4, 0x4000_0000, 0xc000_0000, 30, readWrite);
    rig.enable();
    for (let round = 0; round < 2; round++) {
      expect(answer(rig.unit, request(RID, 0x7edf_f800, Access.read))).toEqual({
        ok: true,
        pa: 0xfedf_f800,
        span: 0x800,
      });
      expect(answer(rig.unit, request(RID, 0x7eef_ffff, Access.read))).toEqual({ ok: false, code: 0xe });
      expect(answer(rig.unit, request(RID, 0x7ef0_0000, Access.read))).toMatchObject({ pa: 0xfef0_0000 });
    }
  });

  it("pass-through ends before it", () => {
    const { rig } = prepared();
    rig.context(RID, { type: 2, aw: 3 });
    rig.enable();
    expect(answer(rig.unit, request(RID, 0xfed0_0000, Access.read))).toEqual({
      ok: true,
      pa: 0xfed0_0000,
      span: 0x10_0000,
    });
  });
});
