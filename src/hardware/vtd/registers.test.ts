import { describe, expect, it } from "vitest";
import { answer, request } from "../unit.suite.ts";
import { Access } from "../unit.ts";
import { completeCapabilities, type VtdCapabilities } from "./capabilities.ts";
import { registerName } from "./registers.ts";
import { readWrite, VtdRig } from "./rig.suite.ts";
import {
  CapRegister,
  CcmdRegister,
  EcapRegister,
  EventControl,
  Fsts,
  Gcmd,
  IotlbRegister,
  Register,
} from "./spec.ts";

const RID = 0x18;
const IOTLB = 0x508;
const IVA = 0x500;
const FRCD = 0x400;

/** A unit that translates one page of RID in domain 1. */
const translating = (capabilities: Partial<VtdCapabilities> = {}) => {
  const rig = new VtdRig({ capabilities });
  rig.map(RID, 0x5000, 0x40_0000, 12, readWrite);
  rig.enable();
  return rig;
};
const fault = (rig: VtdRig, rid: number, page = 0x10) =>
  expect(answer(rig.unit, request(rid, page * 0x1000, Access.write)).ok).toBe(false);

describe("§11.4.2, §11.4.3 CAP and ECAP", () => {
  it("report what the unit was made with, and nothing else", () => {
    const { cap, ecap } = completeCapabilities({
      addressWidths: [39, 57],
      largePages: { twoMegabytes: true, oneGigabyte: false },
      domainBits: 8,
      faultRecords: 12,
      cachingMode: true,
      snoopControl: false,
      deviceTlb: true,
    });
    const c = CapRegister.fields;
    expect([c.SAGAW, c.MGAW, c.SLLPS, c.ND, c.NFR, c.CM].map((field) => field.of(cap))).toEqual([
      0b1010n,
      56n,
      1n,
      2n,
      11n,
      1n,
    ]);
    expect([c.AFL, c.PLMR, c.PHMR, c.FL1GP, c.PI, c.ECMDS].every((field) => field.of(cap) === 0n)).toBe(true);
    const e = EcapRegister.fields;
    expect([e.QI, e.DT, e.PT, e.SC, e.IRO].map((field) => field.of(ecap))).toEqual([1n, 1n, 1n, 0n, 0x50n]);
    expect([e.SMTS, e.PASID, e.PRS, e.NEST, e.IR].every((field) => field.of(ecap) === 0n)).toBe(true);
  });

  it.each([
    [{ addressWidths: [] }, /39, 48 or 57/],
    [{ domainBits: 7 }, /not even/],
    [{ domainBits: 18 }, /4 to 16/],
    [{ faultRecords: 257 }, /1 to 256/],
    [{ faultRecordOffset: 0x408 }, /multiple of 16/],
    [{ faultRecordOffset: 0x500 }, /overlap/],
    [{ hostAddressWidth: 53 }, /32 to 52/],
  ] as [Partial<VtdCapabilities>, RegExp][])("refuse a choice no unit can have: %j", (choice, message) => {
    expect(() => completeCapabilities({ addressWidths: [48], ...choice })).toThrow(message);
  });
});

describe("§11.2 register accesses", () => {
  it("a 64-bit register is its two halves", () => {
    const rig = new VtdRig();
    rig.write(Register.RTADDR, 0x1234_5000);
    rig.write(Register.RTADDR + 4, 0x9);
    expect(rig.read(Register.RTADDR, 8)).toBe(0x9_1234_5000n);
    rig.write(Register.IQA, 0xf_fffd_ef8fn, 8);
    expect(rig.read(Register.IQA)).toBe(0xfffd_e807n);
    expect(rig.read(Register.IQA + 4)).toBe(0xfn);
  });

  it("reserved and read-only bits do not change", () => {
    const rig = new VtdRig();
    const before = [Register.VER, Register.CAP, Register.ECAP, Register.GSTS, Register.IQH].map((at) =>
      rig.read(at, 8),
    );
    for (let at = 0; at < 0x400; at += 8)
      if (![Register.GCMD, Register.CCMD].includes(at as never)) rig.write(at, 0xffff_ffff_ffff_ffffn, 8);
    const after = [Register.VER, Register.CAP, Register.ECAP, Register.GSTS, Register.IQH].map((at) =>
      rig.read(at, 8),
    );
    expect(after[1]).toBe(before[1]);
    expect(after[2]).toBe(before[2]);
    expect(rig.read(Register.RTADDR, 8)).toBe(0xffff_ffff_ffff_f000n);
    expect(rig.read(Register.IQT, 8)).toBe(0x7_fff0n);
    expect(rig.read(Register.FEADDR)).toBe(0xffff_fffcn);
    expect(rig.read(Register.FECTL)).toBe(BigInt(EventControl.IM));
    expect(rig.read(Register.FSTS)).toBe(0n);
    for (const at of [Register.PMEN, Register.AFLOG, Register.PQA, Register.IRTA])
      expect(rig.read(at)).toBe(0n);
  });

  it("names its registers in events", () => {
    const rig = new VtdRig();
    rig.write(Register.IQA, 0, 8);
    rig.write(Register.FSTS, 0);
    rig.write(FRCD + 0x1c, 0);
    rig.write(IOTLB, 0, 8);
    rig.write(IVA, 0, 8);
    expect(rig.events.of("register").map((event) => event["register"])).toEqual([
      "IQA",
      "FSTS",
      "FRCD1",
      "IOTLB",
      "IVA",
    ]);
    expect(registerName(0x70c, rig.unit.capabilities)).toBe("reserved");
  });
});

describe("§11.4.4 Global Command", () => {
  it("GCMD is write-only; GSTS follows TE, SRTP and QIE", () => {
    const rig = new VtdRig();
    rig.write(Register.RTADDR, rig.root, 8);
    rig.command(Gcmd.SRTP);
    expect(rig.read(Register.GSTS)).toBe(BigInt(Gcmd.SRTP));
    rig.command(Gcmd.TE);
    expect(rig.read(Register.GSTS)).toBe(BigInt(Gcmd.SRTP + Gcmd.TE));
    expect(rig.read(Register.GCMD)).toBe(0n);
    rig.command(0, Gcmd.TE);
    expect(rig.read(Register.GSTS)).toBe(BigInt(Gcmd.SRTP));
  });

  it("commands of what is not there leave no status: WBF, EAFL, IRE, SIRTP, CFI", () => {
    const rig = new VtdRig();
    rig.write(Register.GCMD, Gcmd.WBF + Gcmd.EAFL + Gcmd.SFL + Gcmd.IRE + Gcmd.SIRTP + Gcmd.CFI);
    expect(rig.read(Register.GSTS)).toBe(0n);
    const remapping = new VtdRig({ capabilities: { interruptRemapping: true } });
    remapping.write(Register.IRTA, 0x1234_500f, 8);
    remapping.command(Gcmd.SIRTP);
    remapping.command(Gcmd.IRE);
    expect(remapping.read(Register.GSTS)).toBe(BigInt(Gcmd.SIRTP + Gcmd.IRE));
  });

  it("the root table is the one SRTP latched, not the one in RTADDR", () => {
    const rig = translating();
    rig.write(Register.RTADDR, 0x7000_0000, 8);
    expect(answer(rig.unit, request(RID, 0x5000, Access.read)).ok).toBe(true);
    rig.command(Gcmd.SRTP);
    expect(answer(rig.unit, request(RID, 0x5000, Access.read)).ok).toBe(false);
  });

  it("SRTP empties the caches with ESRTPS, and does not without", () => {
    for (const rootPointerInvalidates of [true, false]) {
      const rig = translating({ rootPointerInvalidates });
      const transaction = request(RID, 0x5000, Access.read);
      answer(rig.unit, transaction);
      rig.store128(rig.contextAddress(RID), 0n);
      rig.command(Gcmd.SRTP);
      expect(answer(rig.unit, transaction).ok).toBe(!rootPointerInvalidates);
    }
  });
});

describe("§11.4.7, §11.4.8 register-based invalidation", () => {
  const stale = () => {
    const rig = translating();
    const page = request(RID, 0x5000, Access.read);
    answer(rig.unit, page);
    return { rig, page };
  };
  const clearLeaf = (rig: VtdRig) => rig.map(RID, 0x5000, 0x80_0000, 12, readWrite);
  const iotlbCommand = (rig: VtdRig, granularity: number, domain = 1) =>
    rig.write(IOTLB, IotlbRegister.make({ IVT: true, IIRG: granularity, DID: domain }), 8);
  const performed = (rig: VtdRig) => Number(IotlbRegister.fields.IAIG.of(rig.read(IOTLB, 8)));

  it.each([
    [1, 0],
    [2, 1],
    [3, 1],
  ])("IOTLB: granularity %i makes the new page seen and says so in IAIG", (granularity, domain) => {
    const { rig, page } = stale();
    clearLeaf(rig);
    expect(answer(rig.unit, page)).toMatchObject({ pa: 0x40_0000 });
    rig.write(IVA, 0x5000, 8);
    iotlbCommand(rig, granularity, domain);
    expect(performed(rig)).toBe(granularity);
    expect(rig.read(IOTLB, 8) >> 63n).toBe(0n);
    expect(answer(rig.unit, page)).toMatchObject({ pa: 0x80_0000 });
  });

  it("IOTLB: another domain, another page, and a reserved granularity leave the entry", () => {
    const { rig, page } = stale();
    clearLeaf(rig);
    iotlbCommand(rig, 2, 2);
    rig.write(IVA, 0x6000, 8);
    iotlbCommand(rig, 3);
    iotlbCommand(rig, 0);
    expect(performed(rig)).toBe(0);
    rig.write(IVA, 0x5000 | 63, 8);
    iotlbCommand(rig, 3);
    expect(performed(rig)).toBe(0);
    expect(answer(rig.unit, page)).toMatchObject({ pa: 0x40_0000 });
  });

  it("IOTLB: without PSI a page-selective request is performed on the domain", () => {
    const rig = translating({ pageSelective: false });
    iotlbCommand(rig, 3);
    expect(performed(rig)).toBe(2);
  });

  it.each([
    [1, 1],
    [2, 1],
    [3, 3],
  ])(
    "context cache: granularity %i is performed as %i, and the SID does not read back",
    (requested, done) => {
      const { rig, page } = stale();
      rig.store128(rig.contextAddress(RID), 0n);
      expect(answer(rig.unit, page).ok).toBe(true);
      rig.write(Register.CCMD, CcmdRegister.make({ ICC: true, CIRG: requested, DID: 1, SID: RID }), 8);
      const { ICC, CAIG, SID } = CcmdRegister.fields;
      const value = rig.read(Register.CCMD, 8);
      expect([ICC, CAIG, SID].map((field) => Number(field.of(value)))).toEqual([0, done, 0]);
      expect(answer(rig.unit, page)).toEqual({ ok: false, code: 2 });
    },
  );

  it("is not done while the queue is enabled: ICC and IVT stay set", () => {
    const { rig, page } = stale();
    rig.enableQueue();
    clearLeaf(rig);
    iotlbCommand(rig, 1);
    rig.write(Register.CCMD, CcmdRegister.make({ ICC: true, CIRG: 1 }), 8);
    expect(rig.read(IOTLB, 8) >> 63n).toBe(1n);
    expect(rig.read(Register.CCMD, 8) >> 63n).toBe(1n);
    expect(answer(rig.unit, page)).toMatchObject({ pa: 0x40_0000 });
  });
});

describe("§7.2.1 primary fault logging", () => {
  const clear = (rig: VtdRig, index: number) => rig.write(FRCD + index * 16 + 12, 0x8000_0000);
  const pending = (rig: VtdRig) =>
    [0, 1, 2, 3].map((index) => Number(rig.read(FRCD + index * 16 + 12) >> 31n));

  it("records in a ring; FRI is the first of them; PPF falls with the last F", () => {
    const rig = translating();
    for (const rid of [1, 2, 3]) fault(rig, rid);
    expect(pending(rig)).toEqual([1, 1, 1, 0]);
    for (const index of [0, 1, 2]) clear(rig, index);
    expect(rig.read(Register.FSTS)).toBe(0n);
    for (const rid of [4, 5]) fault(rig, rid);
    expect(pending(rig)).toEqual([1, 0, 0, 1]);
    expect(rig.read(Register.FSTS)).toBe(BigInt(Fsts.PPF + (3 << 8)));
    clear(rig, 3);
    expect(rig.read(Register.FSTS) & BigInt(Fsts.PPF)).toBe(BigInt(Fsts.PPF));
    clear(rig, 0);
    expect(rig.read(Register.FSTS)).toBe(0n);
  });

  it("a requester with a pending record gets no second one", () => {
    const rig = translating();
    fault(rig, 1, 0x10);
    fault(rig, 1, 0x20);
    expect(pending(rig)).toEqual([1, 0, 0, 0]);
    expect(rig.read(FRCD, 8)).toBe(0x1_0000n);
    clear(rig, 0);
    fault(rig, 1, 0x20);
    expect(pending(rig)).toEqual([0, 1, 0, 0]);
  });

  it("a full ring sets PFO; nothing is recorded until it is cleared", () => {
    const rig = translating();
    for (const rid of [1, 2, 3, 4, 5]) fault(rig, rid);
    expect(rig.read(Register.FSTS)).toBe(BigInt(Fsts.PPF + Fsts.PFO));
    clear(rig, 0);
    fault(rig, 6);
    expect(pending(rig)).toEqual([0, 1, 1, 1]);
    rig.write(Register.FSTS, Fsts.PFO);
    expect(rig.read(Register.FSTS)).toBe(BigInt(Fsts.PPF));
    fault(rig, 6);
    expect(pending(rig)).toEqual([1, 1, 1, 1]);
  });

  it("PPF and FRI are not cleared by writing FSTS, and F not by writing 0", () => {
    const rig = translating();
    fault(rig, 1);
    rig.write(Register.FSTS, 0xffff_ffff);
    rig.write(FRCD + 12, 0);
    expect(rig.read(Register.FSTS)).toBe(BigInt(Fsts.PPF));
    expect(pending(rig)).toEqual([1, 0, 0, 0]);
  });

  it("the fault event: once for a new condition, with address and data, when it is not masked", () => {
    const rig = translating();
    rig.write(Register.FEDATA, 0x4041);
    rig.write(Register.FEADDR, 0xfee0_1000);
    rig.write(Register.FEUADDR, 0x7);
    rig.write(Register.FECTL, 0);
    fault(rig, 1);
    fault(rig, 2);
    expect(rig.messages).toEqual([{ address: 0x7_fee0_1000n, data: 0x4041 }]);
    expect(rig.events.of("interrupt").length).toBe(1);
    clear(rig, 0);
    clear(rig, 1);
    fault(rig, 1);
    expect(rig.messages.length).toBe(2);
  });

  it("a masked event is pending, and is sent when it is unmasked, or forgotten when it was serviced", () => {
    const rig = translating();
    fault(rig, 1);
    expect(rig.messages).toEqual([]);
    expect(rig.read(Register.FECTL)).toBe(BigInt(EventControl.IM + EventControl.IP));
    rig.write(Register.FECTL, 0);
    expect(rig.messages.length).toBe(1);
    expect(rig.read(Register.FECTL)).toBe(0n);
    clear(rig, 0);
    rig.write(Register.FECTL, EventControl.IM);
    fault(rig, 1);
    clear(rig, 1);
    expect(rig.read(Register.FECTL)).toBe(BigInt(EventControl.IM));
    rig.write(Register.FECTL, 0);
    expect(rig.messages.length).toBe(1);
  });
});
