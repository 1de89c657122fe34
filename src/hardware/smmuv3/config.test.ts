import { describe, expect, it } from "vitest";
import { access } from "../unit.suite.ts";
import { Access } from "../unit.ts";
import { EventCode, Opcode } from "./queue-spec.ts";
import {
  type CdFields,
  cfgi,
  type RigOptions,
  readWrite,
  SmmuRig,
  type SteFields,
  sync,
} from "./rig.suite.ts";
import { Cd, Config, Cr0, Cr2, L1Cd, L1Std, Register, Ste } from "./spec.ts";
import type { SmmuCapabilities } from "./unit.ts";

const RID = 0x18;
const { read, write, execute, privileged } = Access;
const PA = 0x40_0000;
const {
  F_TRANSLATION,
  F_PERMISSION,
  C_BAD_STE,
  C_BAD_CD,
  C_BAD_STREAMID,
  C_BAD_SUBSTREAMID,
  F_STREAM_DISABLED,
} = EventCode;

interface Made extends RigOptions {
  readonly ste?: SteFields;
  readonly cd?: CdFields;
  readonly capabilities?: SmmuCapabilities;
}

/** A stream with page 5 mapped in both ranges; what of its entries is not as usual. */
const streamOf = ({ ste, cd, ...options }: Made = {}) => {
  const rig = new SmmuRig(options);
  const cds = rig.memory.allocate(16);
  const table = rig.table();
  rig.mapStage1(table, 0x5000, PA, 12, readWrite);
  rig.cd(cds, { ASID: 1, TTB0: table, TTB1: table, T1SZ: 22, TG1: 2, ...cd });
  rig.ste(RID, { CONFIG: Config.stage1, S1CONTEXTPTR: cds, ...ste });
  rig.enable();
  return { rig, cds, table };
};
/** 0, or the code of the fault. */
const codeOf = (made: Made, what: number = read, iova: number | bigint = 0x5000, pasid = -1): number => {
  const found = access(streamOf(made).rig, RID, iova, what, pasid);
  return found.ok ? 0 : (found as { code: number }).code;
};

describe("§5.2 stream table entries", () => {
  it.each<[string, Made, number]>([
    ["are good as they are", {}, 0],
    ["V = 0", { ste: { V: false } }, C_BAD_STE],
    ["stage 1 that is not there", { capabilities: { stage1: false } }, C_BAD_STE],
    ["more contexts than SubstreamIDs", { ste: { S1CDMAX: 9 } }, C_BAD_STE],
    ["the reserved S1Fmt is as 0", { ste: { S1CDMAX: 2, S1FMT: 3, S1DSS: 2 } }, 0],
    ["contexts beyond the output size", { ste: { S1CONTEXTPTR: 2 ** 44 } }, C_BAD_STE],
    [
      "S1Fmt of two levels, not implemented",
      { ste: { S1CDMAX: 2, S1FMT: 1 }, capabilities: { twoLevelContexts: false } },
      C_BAD_STE,
    ],
    ["S1Fmt without substreams", { ste: { S1FMT: 3 } }, 0],
    ["STRW on a unit without EL2", { ste: { STRW: 1 } }, 0],
    ["EL2", { ste: { STRW: 2 }, capabilities: { hyp: true } }, 0],
    ["EL3", { ste: { STRW: 1 }, capabilities: { hyp: true } }, C_BAD_STE],
    ["EATS, not implemented", { ste: { EATS: 3 } }, 0],
    ["the reserved EATS is as 0", { ste: { EATS: 3 }, capabilities: { ats: true } }, 0],
    ["EATS where nothing translates", { ste: { CONFIG: 4, EATS: 2 }, capabilities: { ats: true } }, 0],
    [
      "a VMID of 16 bits on a unit with 8",
      { ste: { S2VMID: 256 }, capabilities: { vmid16: false } },
      C_BAD_STE,
    ],
    [
      "a VMID on a unit without stage 2",
      { ste: { S2VMID: 256 }, capabilities: { vmid16: false, stage2: false } },
      0,
    ],
    ["split stages with one", { ste: { EATS: 2 }, capabilities: { ats: true } }, C_BAD_STE],
  ])("%s", (_, made, code) => {
    expect(codeOf(made)).toBe(code);
  });

  it.each<[string, SteFields, SmmuCapabilities]>([
    ["AArch32", { S2AA64: false }, {}],
    ["big-endian", { S2ENDI: true }, {}],
    ["a reserved granule", { S2TG: 3 }, {}],
    ["a granule that is not there", { S2TG: 1 }, { granules: [12] }],
    ["more input than IAS", { S2T0SZ: 19, S2SL0: 2 }, {}],
    ["too little input", { S2T0SZ: 40, S2SL0: 0 }, {}],
    ["a start level too high", { S2T0SZ: 25, S2SL0: 2 }, {}],
    ["a start level too low", { S2T0SZ: 25, S2SL0: 0 }, {}],
    ["a reserved start level", { S2SL0: 3 }, {}],
    ["updates that are not there", { S2HA: true }, {}],
    ["dirty updates where only access flags are", { S2HA: true, S2HD: true }, { updates: "accessed" }],
    ["a table beyond the output size", { S2TTB: 0x8_0000_0000, S2PS: 0 }, {}],
    ["stalls that are not there", { S2S: true }, {}],
    ["stalls and full ATS", { S2S: true, EATS: 1 }, { ats: true, stalls: "both" }],
    ["more input than 48 bits with 4 KiB pages", { S2T0SZ: 12, S2SL0: 2, S2PS: 6 }, { outputBits: 52 }],
    ["a table beyond 48 bits with 4 KiB pages", { S2TTB: 2 ** 48, S2PS: 6 }, { outputBits: 52 }],
  ])("stage 2 is not valid with %s", (_, ste, capabilities) => {
    const rig = new SmmuRig({ stages: "stage2", capabilities });
    rig.ste(RID, { CONFIG: Config.stage2, ...rig.stage2Fields(rig.table(), 1), ...ste });
    rig.enable();
    expect(access(rig, RID, 0)).toEqual({ ok: false, code: C_BAD_STE });
  });

  it("§3.3.1 two levels: Span says how many, 0 none; SPLIT that is reserved is 6", () => {
    const rig = new SmmuRig();
    const [first, second] = [rig.memory.allocate(1), rig.memory.allocate(1)] as const;
    rig.enable();
    rig.write(Register.CR0, 0);
    rig.write(Register.STRTAB_BASE, first, 8);
    for (const [split, span, sid, code] of [
      [6, 7, 0x7f, 0],
      [6, 6, 0x5f, 0],
      [6, 6, 0x60, C_BAD_STREAMID],
      [6, 0, 0x40, C_BAD_STREAMID],
      [6, 8, 0x40, C_BAD_STREAMID],
      [7, 7, 0x7f, 0],
      [8, 6, 0x1_1f, 0],
      [8, 6, 0x1_20, C_BAD_STREAMID],
      [10, 6, 0x4_05, 0],
    ] as const) {
      rig.store64(first + 8, L1Std.make({ SPAN: span, L2PTR: second }));
      for (let at = 0; at < 0x1000; at += 64)
        rig.storeBig(second + at, Ste.make({ V: true, CONFIG: Config.bypass }), 64);
      rig.write(Register.CR0, 0);
      rig.write(Register.STRTAB_BASE_CFG, 0x1_0000 | (split << 6) | 12);
      rig.write(Register.CR0, Cr0.SMMUEN | Cr0.CMDQEN);
      rig.submit(cfgi(Opcode.CFGI_STE_RANGE, { RANGE: 31 }), sync());
      const found = access(rig, sid, 0x5000);
      expect(found.ok ? 0 : (found as { code: number }).code, `${split} ${span} ${sid}`).toBe(code);
    }
  });
});

describe("§5.4 context descriptors", () => {
  it.each<[string, Made, number]>([
    ["V = 0", { cd: { V: false } }, C_BAD_CD],
    ["AArch32", { cd: { AA64: false } }, C_BAD_CD],
    ["big-endian", { cd: { ENDI: true } }, C_BAD_CD],
    ["big-endian, but no tables", { cd: { ENDI: true, EPD0: true } }, F_TRANSLATION],
    ["an ASID of 16 bits on a unit with 8", { cd: { ASID: 256 }, capabilities: { asid16: false } }, C_BAD_CD],
    [
      "a table beyond 48 bits with 4 KiB pages",
      { cd: { TTB0: 2 ** 48, IPS: 6 }, capabilities: { outputBits: 52 } },
      C_BAD_CD,
    ],
    ["more than 48 bits", { cd: { T0SZ: 15 } }, C_BAD_CD],
    ["fewer than 25", { cd: { T0SZ: 40 } }, C_BAD_CD],
    ["sizes that are disabled are not looked at", { cd: { T1SZ: 0, EPD1: true } }, 0],
    ["sizes of TTB1", { cd: { T1SZ: 0, EPD1: false } }, C_BAD_CD],
    ["a reserved granule", { cd: { TG0: 3 } }, C_BAD_CD],
    ["a reserved granule of TTB1", { cd: { TG1: 0, EPD1: false } }, C_BAD_CD],
    ["a table beyond the output size", { cd: { IPS: 0 } }, C_BAD_CD],
    ["an output size beyond the unit's is the unit's", { cd: { IPS: 7 } }, 0],
    ["updates that are not there", { cd: { HA: true } }, C_BAD_CD],
    [
      "dirty updates where only access flags are",
      { cd: { HA: true, HD: true }, capabilities: { updates: "accessed" } },
      C_BAD_CD,
    ],
    ["updates", { cd: { HA: true, HD: true }, capabilities: { updates: "dirty" } }, 0],
    ["A = 0, of a unit that can only abort", { cd: { A: false } }, C_BAD_CD],
    ["A = 0", { cd: { A: false }, capabilities: { abortsOnly: false } }, 0],
    ["disabled walks", { cd: { EPD0: true } }, F_TRANSLATION],
  ])("%s", (_, made, code) => {
    expect(codeOf(made)).toBe(code);
  });

  it("D8.2 TTB1 has the addresses whose upper bits are ones; TBI ignores the top byte of either range", () => {
    const upper = (0xffff_ffff_ffff_ffffn << 42n) & 0xffff_ffff_ffff_ffffn;
    const both = { cd: { EPD1: false } };
    const tagged = { cd: { EPD1: false, TBI0: true, TBI1: true } };
    expect(codeOf(both, read, upper | 0x5000n)).toBe(0);
    expect(codeOf(both, read, (upper ^ (1n << 50n)) | 0x5000n)).toBe(F_TRANSLATION);
    expect(codeOf(both, read, (0x12n << 56n) | 0x5000n)).toBe(F_TRANSLATION);
    expect(codeOf(both, read, (1n << 42n) | 0x5000n)).toBe(F_TRANSLATION);
    expect(codeOf(tagged, read, (0x12n << 56n) | 0x5000n)).toBe(0);
    expect(codeOf(tagged, read, (upper & ~(0xedn << 56n)) | 0x5000n)).toBe(0);
    expect(codeOf(tagged, read, (1n << 42n) | 0x5000n)).toBe(F_TRANSLATION);
    expect(codeOf({ cd: { EPD1: true } }, read, upper | 0x5000n)).toBe(F_TRANSLATION);
  });

  it("D8.2 a range of fewer than 32 bits", () => {
    const { rig, table } = streamOf({ cd: { T0SZ: 64 - 30, EPD1: true } });
    rig.store64(table, BigInt(rig.memory.allocate(1)) | 3n);
    expect(access(rig, RID, 0x4000_0000)).toEqual({ ok: false, code: F_TRANSLATION });
    expect(access(rig, RID, 0x8000_0000)).toEqual({ ok: false, code: F_TRANSLATION });
  });

  it("D8.4 privilege: AP[1], PAN, WXN, and what the unprivileged may write the privileged do not execute", () => {
    const leafOf = (cd: CdFields, clear: bigint, set: bigint, what: number) => {
      const { rig, table } = streamOf({ cd });
      const at = rig.entryAddress(table, 0x5000, 12);
      rig.store64(at, (rig.load64(at) & ~clear) | set);
      const found = access(rig, RID, 0x5000, what);
      return found.ok ? 0 : (found as { code: number }).code;
    };
    const AP1 = 0x40n;
    const AP2 = 0x80n;
    expect(leafOf({}, AP1, 0n, read)).toBe(F_PERMISSION);
    expect(leafOf({}, AP1, 0n, read | privileged)).toBe(0);
    expect(leafOf({ PAN: true }, 0n, 0n, read | privileged)).toBe(F_PERMISSION);
    expect(leafOf({ PAN: true }, AP1, 0n, write | privileged)).toBe(0);
    expect(leafOf({ PAN: true }, 0n, 0n, read)).toBe(0);
    expect(leafOf({}, 0n, 0n, execute)).toBe(0);
    expect(leafOf({ WXN: true }, 0n, 0n, execute)).toBe(F_PERMISSION);
    expect(leafOf({ WXN: true }, 0n, AP2, execute)).toBe(0);
    expect(leafOf({}, 0n, 0n, execute | privileged)).toBe(F_PERMISSION);
    expect(leafOf({}, 0n, AP2, execute | privileged)).toBe(0);
    expect(leafOf({}, 0n, AP2 | (1n << 53n), execute | privileged)).toBe(F_PERMISSION);
    expect(leafOf({}, 0n, 1n << 54n, execute)).toBe(F_PERMISSION);
  });

  it("EL2 has one range and no privileges; with CR2.E2H it is as EL1", () => {
    const el2: Made = { ste: { STRW: 2 }, cd: { EPD1: false, T1SZ: 0 }, capabilities: { hyp: true } };
    expect(codeOf(el2, read)).toBe(0);
    expect(codeOf(el2, read, (0xffff_ffff_ffff_ffffn << 42n) & 0xffff_ffff_ffff_ffffn)).toBe(F_TRANSLATION);
    const { rig } = streamOf(el2);
    rig.write(Register.CR0, 0);
    rig.write(Register.CR2, Cr2.E2H);
    rig.write(Register.CR0, Cr0.SMMUEN);
    expect(access(rig, RID, 0x5000)).toEqual({ ok: false, code: C_BAD_CD });
  });
});

describe("§3.9 substreams", () => {
  const many = (ste: SteFields, pasid: number): number => {
    const { rig, cds, table } = streamOf({ ste: { S1CDMAX: 4, ...ste } });
    rig.cd(cds + 5 * 64, { ASID: 5, TTB0: table });
    const found = access(rig, RID, 0x5000, read, pasid);
    return found.ok ? (found as { pa: number }).pa : -(found as { code: number }).code;
  };

  it("have a context each; without SubstreamID it is as S1DSS says", () => {
    expect(many({}, 5)).toBe(PA);
    expect(many({}, 6)).toBe(-C_BAD_CD);
    expect(many({}, 16)).toBe(-C_BAD_SUBSTREAMID);
    expect(many({}, -1)).toBe(-F_STREAM_DISABLED);
    expect(many({ S1DSS: 3 }, -1)).toBe(-F_STREAM_DISABLED);
    expect(many({ S1DSS: 1 }, -1)).toBe(0x5000);
    expect(many({ S1DSS: 2 }, -1)).toBe(PA);
    expect(many({ S1DSS: 2 }, 0)).toBe(-F_STREAM_DISABLED);
    expect(many({ S1DSS: 1 }, 0)).toBe(PA);
  });

  it("are refused where stage 1 does not translate, or has one context", () => {
    expect(many({ S1CDMAX: 0 }, 0)).toBe(-C_BAD_SUBSTREAMID);
    expect(many({ CONFIG: Config.bypass }, 5)).toBe(-C_BAD_SUBSTREAMID);
  });

  it.each([
    [1, 6],
    [2, 10],
  ])("§5.3 in two levels, S1Fmt %i: 2^%i descriptors a table", (format, split) => {
    const { rig, table } = streamOf({ capabilities: { substreamIdBits: 12 } });
    const first = rig.memory.allocate(1);
    const second = rig.memory.allocate(16);
    const ssid = 2 ** split + 3;
    rig.store64(first + 8, L1Cd.make({ V: true, L2PTR: second }));
    rig.cd(second + 3 * 64, { ASID: 9, TTB0: table });
    rig.ste(0x20, { CONFIG: Config.stage1, S1CONTEXTPTR: first, S1CDMAX: 12, S1FMT: format });
    expect(access(rig, 0x20, 0x5000, read, ssid)).toMatchObject({ pa: PA });
    expect(access(rig, 0x20, 0x5000, read, 3)).toEqual({ ok: false, code: C_BAD_SUBSTREAMID });
    rig.store64(first, 0xf_0000_0001n);
    rig.submit(cfgi(Opcode.CFGI_CD_ALL, { SID: 0x20 }));
    expect(access(rig, 0x20, 0x5000, read, 3)).toEqual({ ok: false, code: EventCode.F_CD_FETCH });
    rig.store64(first, 0x1000_0000_0001n);
    rig.submit(cfgi(Opcode.CFGI_CD_ALL, { SID: 0x20 }));
    expect(access(rig, 0x20, 0x5000, read, 3)).toEqual({ ok: false, code: C_BAD_SUBSTREAMID });
    expect(Cd.bytes).toBe(64);
  });
});

describe("§3.4 address sizes", () => {
  it("what passes untranslated must fit the output size; stage 2 alone the intermediate size", () => {
    const rig = new SmmuRig({ capabilities: { outputBits: 40 } });
    rig.ste(RID, { CONFIG: Config.bypass });
    const off = access(rig, RID, 1n << 40n);
    expect(off).toEqual({ ok: false, code: 0x100 });
    rig.enable();
    expect(access(rig, RID, (1n << 40n) - 0x1000n)).toMatchObject({ ok: true });
    expect(access(rig, RID, 1n << 40n)).toEqual({ ok: false, code: EventCode.F_ADDR_SIZE });
    const stage2 = new SmmuRig({ stages: "stage2" });
    stage2.stream(RID);
    stage2.enable();
    expect(access(stage2, RID, 1n << 43n)).toEqual({ ok: false, code: F_TRANSLATION });
    expect(access(stage2, RID, 1n << 44n)).toEqual({ ok: false, code: EventCode.F_ADDR_SIZE });
  });

  it("§3.4 with 52 bits the 64 KiB granule reaches them", () => {
    const rig = new SmmuRig({ granuleLg2: 16, capabilities: { outputBits: 52 } });
    const { stage1 } = rig.stream(RID);
    rig.enable();
    rig.store64(rig.entryAddress(stage1, 0x5_0000, 16), 0xc43n | 0x1234_5678_0000n | (0xan << 12n));
    // The context's output size of 44 bits is too small.
    expect(access(rig, RID, 0x5_0000)).toEqual({ ok: false, code: EventCode.F_ADDR_SIZE });
    const cd = Number(Ste.fields.S1CONTEXTPTR.of(rig.load64(rig.streams + RID * 64)));
    rig.cd(cd, { ASID: 1, TTB0: stage1, IPS: 6 });
    rig.submit(cfgi(Opcode.CFGI_STE, { SID: RID }));
    expect(access(rig, RID, 0x5_0000)).toMatchObject({ pa: 0xa_1234_5678_0000 });
  });
});

describe("§3.13 table updates", () => {
  it("HA sets access flags, HD makes what is written dirty, and a read page is looked at again when it is written", () => {
    const { rig, table } = streamOf({ cd: { HA: true, HD: true }, capabilities: { updates: "dirty" } });
    const at = rig.entryAddress(table, 0x5000, 12);
    const clean = (rig.load64(at) & ~0x400n) | 0x80n | (1n << 51n);
    rig.store64(at, clean);
    expect(access(rig, RID, 0x5000).ok).toBe(true);
    expect(rig.load64(at)).toBe(clean | 0x400n);
    expect(access(rig, RID, 0x5000, write).ok).toBe(true);
    expect(rig.load64(at)).toBe((clean | 0x400n) & ~0x80n);
    // What was remembered as written does not set it again.
    rig.store64(at, clean | 0x400n);
    expect(access(rig, RID, 0x5000, write).ok).toBe(true);
    expect(rig.load64(at)).toBe(clean | 0x400n);
  });
});

describe("both stages of every granule", () => {
  it.each([12, 14, 16] as const)("2^%i", (granuleLg2) => {
    const rig = new SmmuRig({ stages: "nested", granuleLg2 });
    const { stage2 } = rig.stream(RID);
    const ipa = 0x100_0000_0000;
    for (const lg2 of rig.pageLg2s.slice(0, 2)) {
      rig.mapStage2(stage2, ipa, 0x2_4000_0000, granuleLg2, readWrite);
      rig.map(RID, 2 ** lg2, ipa, lg2, readWrite);
      rig.enable();
      const found = access(rig, RID, 2 ** lg2 + 0x123);
      expect(found).toEqual({ ok: true, pa: 0x2_4000_0123, span: 2 ** granuleLg2 - 0x123 });
    }
  });
});
