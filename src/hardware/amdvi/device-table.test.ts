import { describe, expect, it } from "vitest";
import { access, requestOf } from "../unit.suite.ts";
import { Access, NO_PASID } from "../unit.ts";
import { EVERYTHING } from "./capabilities.ts";
import { EventCode, InvalidRequest } from "./queue-spec.ts";
import {
  AmdViRig,
  type DteFields,
  invalidateDevice,
  invalidatePages,
  type RigOptions,
  readWrite,
  wait,
} from "./rig.suite.ts";
import { AddressRange, Dte, ExclusionBase, ExtendedFeature, Gcr3Entry, Register } from "./spec.ts";

const RID = 0x18;
const { read, write } = Access;
const KEPT = 0x5000;
const PA = 0x40_0000;
const GUEST_PA = 0x60_0000;

/** A device with host tables that map page 5, and with guest tables for PASIDs 0 and 3 that map page 5 too. */
const setUp = (fields: DteFields, options: RigOptions = {}) => {
  const rig = new AmdViRig({ stages: "host", ...options });
  const host = rig.identityTable();
  rig.mapHost(host, 0x8000_5000_0000, PA, 12, readWrite);
  const plain = rig.memory.allocate(1);
  rig.mapHost(plain, KEPT, PA, 12, readWrite);
  const guest = rig.memory.allocate(1);
  rig.mapGuest(guest, KEPT, GUEST_PA, 12, readWrite);
  const gcr3 = rig.gcr3({ 0: guest, 3: guest });
  rig.dte(RID, { DOMAIN: 7, ...fields });
  rig.enable({ GT_EN: true });
  return { rig, host, plain, guest, gcr3 };
};
/** Puts the device's entry anew, and makes the unit read it. */
const put = (rig: AmdViRig, fields: DteFields) => {
  rig.dte(RID, { DOMAIN: 7, ...fields });
  rig.submit(invalidateDevice(RID), invalidatePages(7, 0, 64), wait());
};
const codeOf = (rig: AmdViRig, iova: number | bigint = KEPT, what: number = read, pasid = NO_PASID) => {
  const found = access(rig, RID, iova, what, pasid);
  return found.ok ? found.pa : -found.code!;
};

describe("§2.2.2 V, TV and GV", () => {
  it("V = 0: everything passes, with PASID or without, whatever else the entry says", () => {
    const { rig } = setUp({ V: false, MODE: 7, GV: true, GLX: 3 });
    expect(codeOf(rig, 0x1_2345_6789)).toBe(0x1_2345_6789);
    expect(codeOf(rig, 0x1_2345_6789, write, 5)).toBe(0x1_2345_6789);
  });

  it("V = 1 and TV = 0: what would be translated is a page fault", () => {
    const { rig } = setUp({ TV: false });
    expect(codeOf(rig)).toBe(-EventCode.IO_PAGE_FAULT);
    expect(rig.takeEvents()).toEqual([
      { CODE: BigInt(EventCode.IO_PAGE_FAULT), DEVICE: BigInt(RID), ID: 7n, ADDRESS: BigInt(KEPT) },
    ]);
  });

  it("Mode = 0: addresses are those of memory, as IR and IW allow", () => {
    const { rig } = setUp({ MODE: 0 });
    expect(codeOf(rig)).toBe(KEPT);
    put(rig, { MODE: 0, IW: false });
    expect([codeOf(rig), codeOf(rig, KEPT, write)]).toEqual([KEPT, -EventCode.IO_PAGE_FAULT]);
    expect(rig.takeEvents()).toMatchObject([{ PR: 1n, PE: 1n, RW: 1n }]);
    put(rig, { MODE: 0, IR: false });
    expect([codeOf(rig), codeOf(rig, KEPT, write)]).toEqual([-EventCode.IO_PAGE_FAULT, KEPT]);
  });

  it("IR and IW of the entry hold for tables too, also for what the IOTLB has of another device", () => {
    const { rig, plain } = setUp({});
    rig.dte(RID + 1, { DOMAIN: 7, MODE: 4, HOST_TRP: plain });
    expect(access(rig, RID + 1, KEPT, write)).toMatchObject({ ok: true, pa: PA });
    put(rig, { MODE: 4, HOST_TRP: plain, IW: false });
    expect([codeOf(rig), codeOf(rig, KEPT, write)]).toEqual([PA, -EventCode.IO_PAGE_FAULT]);
    expect(rig.takeEvents()).toMatchObject([{ PR: 1n, PE: 1n, RW: 1n }]);
  });

  it("GV = 1: PASIDs have guest tables; requests without PASID have them with GIoV only", () => {
    const { rig, gcr3 } = setUp({});
    put(rig, rig.gcr3Fields(gcr3));
    expect([codeOf(rig, KEPT, write, 3), codeOf(rig, KEPT, write, 0), codeOf(rig)]).toEqual([
      GUEST_PA,
      GUEST_PA,
      KEPT,
    ]);
    put(rig, { ...rig.gcr3Fields(gcr3), GIOV: true });
    expect(codeOf(rig)).toBe(GUEST_PA);
    expect(codeOf(rig, 0x6000)).toBe(-EventCode.IO_PAGE_FAULT);
  });

  it("GV = 1 over host tables: guest tables and what they give are guest physical", () => {
    const { rig, host, guest } = setUp({});
    rig.mapGuest(guest, 0x9000, 0x8000_5000_0000, 12, readWrite);
    const gcr3 = rig.gcr3({ 3: guest });
    put(rig, { ...rig.gcr3Fields(gcr3), MODE: 4, HOST_TRP: host });
    expect(codeOf(rig, 0x9123, write, 3)).toBe(PA + 0x123);
    expect(codeOf(rig, 0x8000_5000_0000)).toBe(PA);
    // A fault of the host tables is about the guest physical address.
    rig.mapGuest(guest, 0xa000, 0x9000_0000_0000, 12, readWrite);
    expect(codeOf(rig, 0xa000, read, 3)).toBe(-EventCode.IO_PAGE_FAULT);
    expect(rig.takeEvents()).toEqual([{ CODE: 2n, DEVICE: BigInt(RID), ID: 7n, ADDRESS: 0x9000_0000_0000n }]);
  });

  it("CONTROL.GTEn = 0: there is no guest translation, and a PASID is not valid", () => {
    const { rig, gcr3, plain } = setUp({});
    put(rig, { ...rig.gcr3Fields(gcr3), GIOV: true, MODE: 4, HOST_TRP: plain });
    rig.control({ IOMMU_EN: true, EVENT_LOG_EN: true, CMD_BUF_EN: true });
    rig.submit(invalidateDevice(RID));
    expect(codeOf(rig)).toBe(PA);
    expect(codeOf(rig, KEPT, read, 3)).toBe(-EventCode.INVALID_DEVICE_REQUEST);
    expect(rig.takeEvents()).toMatchObject([{ GN: 1n, ID: 3n }]);
  });
});

describe("§2.2.6.3 GCR3 tables", () => {
  /** A GCR3 table of three levels with the guest's tables for one PASID; and where its entries are. */
  const three = (rig: AmdViRig, pasid: number, guest: number) => {
    const tables = [0, 1, 2].map(() => rig.memory.allocate(1));
    const at = [18, 9, 0].map((shift, level) => tables[level]! + 8 * ((pasid >>> shift) & 0x1ff));
    const next = [tables[1]!, tables[2]!, guest];
    at.forEach((place, level) => {
      rig.store64(place, Gcr3Entry.make({ V: true, ADDR: next[level]! }));
    });
    return { tables, at };
  };

  it("have one, two or three levels, each of 9 bits of the PASID", () => {
    const { rig, guest } = setUp({});
    const pasid = 0xa_bcde;
    const { tables } = three(rig, pasid, guest);
    for (const [glx, root, inside] of [
      [2, tables[0]!, pasid],
      [1, tables[1]!, pasid & 0x3_ffff],
      [0, tables[2]!, pasid & 0x1ff],
    ] as const) {
      put(rig, { ...rig.gcr3Fields(root), GLX: glx });
      expect(codeOf(rig, KEPT, read, inside), String(glx)).toBe(GUEST_PA);
      expect(codeOf(rig, KEPT, read, inside ^ 1)).toBe(-EventCode.IO_PAGE_FAULT);
      if (glx < 2) expect(codeOf(rig, KEPT, read, inside | (1 << (9 * (glx + 1))))).toBe(-2);
    }
  });

  it("an entry that is not valid is no page; one with reserved bits, or out of memory, says so", () => {
    const { rig, guest } = setUp({});
    const { tables, at } = three(rig, 0xa_bcde, guest);
    const fields = { ...rig.gcr3Fields(tables[0]!), GLX: 2 };
    for (const [level, place] of at.entries()) {
      const entry = rig.load64(place);
      rig.takeEvents();
      for (const [value, event] of [
        [entry & ~1n, { CODE: 2n, GN: 1n }],
        [entry | 2n, { CODE: 2n, PR: 1n, RZ: 1n }],
        [entry | (1n << 52n), { CODE: 2n, PR: 1n, RZ: 1n }],
      ] as const) {
        rig.store64(place, value);
        put(rig, fields);
        expect(codeOf(rig, KEPT, read, 0xa_bcde)).toBe(-2);
        expect(rig.takeEvents(), String(level)).toMatchObject([event]);
      }
      rig.store64(place, (1n << 45n) | 1n);
      put(rig, fields);
      expect(codeOf(rig, KEPT, read, 0xa_bcde)).toBe(-EventCode.PAGE_TAB_HARDWARE_ERROR);
      rig.store64(place, entry);
    }
  });

  it("lie in memory, all but the first at guest physical addresses; with GCR3TRPMode the first too", () => {
    const { rig, host, guest } = setUp({});
    const { tables } = three(rig, 0xa_bcde, guest);
    // Guest physical 2^40 + x is x, and x itself is nowhere.
    const high = 2 ** 40;
    const moved = rig.memory.allocate(1);
    for (let pa = 0; pa < 2 ** 34; pa += 2 ** 30) rig.mapHost(moved, high + pa, pa, 30, readWrite);
    for (const table of tables.slice(0, 2))
      for (let at = 0; at < 4096; at += 8) {
        const entry = rig.load64(table + at);
        if (entry) rig.store64(table + at, entry + BigInt(high));
      }
    const last = tables[2]! + 8 * 0xde;
    const pml4 = rig.memory.allocate(1);
    const tree = pml4;
    rig.mapGuest(tree, KEPT, GUEST_PA, 12, readWrite);
    const lift = (table: number, level: number): void => {
      for (let at = 0; at < 4096; at += 8) {
        const entry = rig.load64(table + at);
        if (entry === 0n) continue;
        if (level > 1) lift(Number(entry & 0xf_ffff_f000n), level - 1);
        rig.store64(table + at, entry + BigInt(high));
      }
    };
    lift(tree, 4);
    rig.store64(last, Gcr3Entry.make({ V: true, ADDR: high + tree }));
    const fields = { GLX: 2, MODE: 4, HOST_TRP: moved };
    put(rig, { ...rig.gcr3Fields(tables[0]!), ...fields });
    expect(codeOf(rig, KEPT, write, 0xa_bcde)).toBe(GUEST_PA);
    put(rig, { ...rig.gcr3Fields(tables[0]!), ...fields, HOST_TRP: host });
    expect(codeOf(rig, KEPT, write, 0xa_bcde)).toBeLessThan(0);
    rig.control({ IOMMU_EN: true, EVENT_LOG_EN: true, CMD_BUF_EN: true, GT_EN: true, GCR3_TRP_MODE: true });
    put(rig, { ...rig.gcr3Fields(tables[0]!), ...fields });
    expect(codeOf(rig, KEPT, write, 0xa_bcde)).toBeLessThan(0);
    put(rig, { ...rig.gcr3Fields(high + tables[0]!), ...fields });
    expect(codeOf(rig, KEPT, write, 0xa_bcde)).toBe(GUEST_PA);
  });
});

describe("§2.2.2.1 entries that are not valid", () => {
  const refuses = (fields: DteFields, options: RigOptions = {}, bit?: number) => {
    const { rig, plain, gcr3 } = setUp({}, options);
    rig.dte(RID, { DOMAIN: 7, MODE: 4, HOST_TRP: plain, ...(fields.GV && rig.gcr3Fields(gcr3)), ...fields });
    if (bit !== undefined) {
      const at = rig.deviceTable + RID * Dte.bytes + 8 * (bit >> 6);
      rig.store64(at, rig.load64(at) | (1n << BigInt(bit & 63)));
    }
    const code = codeOf(rig);
    if (code > 0) return false;
    expect(code).toBe(-EventCode.ILLEGAL_DEV_TABLE_ENTRY);
    expect(rig.takeEvents()).toMatchObject([{ CODE: 1n, DEVICE: BigInt(RID), RZ: 1n }]);
    return true;
  };
  const efr = (fields: Partial<Record<keyof typeof ExtendedFeature.fields, number>>) => {
    let value = EVERYTHING;
    for (const [name, set] of Object.entries(fields)) {
      const field = ExtendedFeature.fields[name as keyof typeof ExtendedFeature.fields];
      value = (value & ~field.put((1n << BigInt(field.width)) - 1n)) | field.put(BigInt(set!));
    }
    return { capabilities: { efr: value } };
  };

  it("reserved bits, reserved modes and reserved guest translations", () => {
    expect(refuses({})).toBe(false);
    for (const bit of [2, 3, 4, 5, 6, 63]) expect(refuses({}, {}, bit), String(bit)).toBe(true);
    expect(refuses({ MODE: 7 })).toBe(true);
    expect(refuses({ HAD: 2 })).toBe(true);
    expect(refuses({ IOCTL: 3 })).toBe(true);
    expect(refuses({ GV: true })).toBe(false);
    expect(refuses({ GV: true, GLX: 3 })).toBe(true);
    expect(refuses({ GLX: 3 })).toBe(false);
    expect(refuses({ GV: true, GUEST_PAGING_MODE: 1 })).toBe(false);
    expect(refuses({ GV: true, GUEST_PAGING_MODE: 2 })).toBe(true);
  });

  it("what the feature registers do not report", () => {
    expect(refuses({ MODE: 6 }, efr({ HATS: 1 }))).toBe(true);
    expect(refuses({ MODE: 5 }, efr({ HATS: 0 }))).toBe(true);
    expect(refuses({ GV: true }, efr({ GT_SUP: 0 }))).toBe(true);
    expect(refuses({ GV: true, GLX: 1 }, efr({ GLX_SUP: 0 }))).toBe(true);
    expect(refuses({ GV: true, GUEST_PAGING_MODE: 1 }, efr({ GATS: 0 }))).toBe(true);
    expect(refuses({ GV: true, GIOV: true }, efr({ GIO_SUP: 0 }))).toBe(true);
    expect(refuses({ HAD: 1 }, efr({ HA_SUP: 0 }))).toBe(true);
    expect(refuses({ HAD: 3 }, efr({ HD_SUP: 0 }))).toBe(true);
    expect(refuses({ HAD: 1 }, efr({ HD_SUP: 0 }))).toBe(false);
    expect(refuses({ HAD: 3 })).toBe(false);
  });

  it("a device beyond the table, and a table that does not answer", () => {
    const { rig } = setUp({});
    rig.write(Register.DEVTAB_BASE, rig.deviceTable);
    // 128 entries.
    expect(access(rig, 0x7f, KEPT)).toMatchObject({ code: EventCode.IO_PAGE_FAULT });
    expect(access(rig, 0x80, KEPT)).toMatchObject({ code: EventCode.ILLEGAL_DEV_TABLE_ENTRY });
    rig.write(Register.DEVTAB_BASE, 0x1000);
    rig.takeEvents();
    expect(access(rig, 0x20, KEPT)).toMatchObject({ code: EventCode.DEV_TAB_HARDWARE_ERROR });
    expect(rig.takeEvents()).toEqual([{ CODE: 3n, DEVICE: 0x20n, ADDRESS: 0x1400n }]);
  });
});

describe("§2.2.3 HAD", () => {
  const bits = (had: number, what: number) => {
    const { rig, plain } = setUp({});
    put(rig, { MODE: 4, HOST_TRP: plain, HAD: had });
    expect(codeOf(rig, KEPT, what)).toBe(PA);
    const link = () => 0n;
    return Number(rig.load64(rig.entryAddress(plain, 4, KEPT, 1, link)) & 0x60n);
  };

  it("sets accessed bits, and dirty bits of what is written", () => {
    expect([bits(0, write), bits(1, write), bits(3, read), bits(3, write)]).toEqual([0, 0x20, 0x20, 0x60]);
  });

  it("a page that was only read is marked when it is written, though it is remembered", () => {
    const { rig, plain } = setUp({});
    put(rig, { MODE: 4, HOST_TRP: plain, HAD: 3 });
    const at = rig.entryAddress(plain, 4, KEPT, 1, () => 0n);
    codeOf(rig);
    codeOf(rig);
    expect(rig.load64(at) & 0x40n).toBe(0n);
    codeOf(rig, KEPT, write);
    expect(rig.load64(at) & 0x40n).toBe(0x40n);
  });
});

describe("§2.2.6 guest tables", () => {
  it("are judged by privilege, writes and instruction fetches", () => {
    const { rig, guest, gcr3 } = setUp({});
    put(rig, rig.gcr3Fields(gcr3));
    const at = (va: number) => rig.entryAddress(guest, 4, va, 1, (below) => BigInt(below) | 7n);
    rig.store64(at(0x6000), BigInt(GUEST_PA) | 3n);
    rig.store64(at(0x7000), BigInt(GUEST_PA) | 5n);
    rig.store64(at(0x8000), BigInt(GUEST_PA) | 7n | (1n << 63n));
    const code = (va: number, what: number) => codeOf(rig, va, what, 3);
    const { privileged, execute } = Access;
    expect([code(0x6000, read), code(0x6000, read | privileged)]).toEqual([-2, GUEST_PA]);
    expect([code(0x7000, write), code(0x7000, write | privileged)]).toEqual([-2, -2]);
    expect([code(0x8000, write), code(0x8000, read | execute)]).toEqual([GUEST_PA, -2]);
    expect(rig.takeEvents()).toMatchObject([
      { PE: 1n, US: 1n },
      { PE: 1n, RW: 1n, US: 1n },
      { PE: 1n, RW: 1n },
      { PE: 1n, NX: 1n },
    ]);
    expect(code(2 ** 47, read)).toBe(-2);
  });

  it("without NXSup bit 63 is reserved, without USSup there is no privilege, and PASmax limits PASIDs", () => {
    const feature = ExtendedFeature.fields;
    const lacking = (mask: bigint) => {
      const { rig, guest, gcr3 } = setUp({}, { capabilities: { efr: EVERYTHING & ~mask } });
      put(rig, rig.gcr3Fields(gcr3));
      const link = (below: number) => BigInt(below) | 7n;
      const leaf = (va: number, bits: bigint) =>
        rig.store64(rig.entryAddress(guest, 4, va, 1, link), BigInt(GUEST_PA) | bits);
      leaf(0x6000, 3n);
      leaf(0x8000, 7n | (1n << 63n));
      return rig;
    };
    const noExecute = lacking(feature.NX_SUP.put(1n));
    expect(codeOf(noExecute, 0x8000, read, 3)).toBe(-2);
    expect(noExecute.takeEvents()).toMatchObject([{ RZ: 1n }]);
    expect(codeOf(lacking(feature.US_SUP.put(1n)), 0x6000, read | Access.privileged, 3)).toBe(-2);
    const few = lacking(feature.PAS_MAX.put(0x1en));
    expect([codeOf(few, KEPT, read, 3), codeOf(few, KEPT, read, 4)]).toEqual([GUEST_PA, -2]);
    expect(few.unit.capabilities.pasidBits).toBe(2);
  });

  it("of 5 levels translate 57 bits", () => {
    const { rig } = setUp({});
    const table = rig.memory.allocate(1);
    const link = (below: number) => BigInt(below) | 7n;
    const va = 2 ** 52;
    rig.store64(rig.entryAddress(table, 5, va, 1, link), BigInt(GUEST_PA) | 7n);
    put(rig, { ...rig.gcr3Fields(rig.gcr3({ 3: table })), GUEST_PAGING_MODE: 1 });
    expect(codeOf(rig, va, read, 3)).toBe(GUEST_PA);
  });
});

describe("§2.1 addresses with a meaning of their own", () => {
  const { interrupt, systemManagement, portIo } = AddressRange;

  it("writes to 0xfeex_xxxx are interrupts, reads are not valid; tables that map around them stop there", () => {
    const { rig } = setUp({});
    const table = rig.memory.allocate(1);
    rig.mapHost(table, 0xc000_0000, 0x1_0000_0000, 30, readWrite);
    put(rig, { MODE: 4, HOST_TRP: table });
    expect(access(rig, RID, 0xfee0_1000, write)).toEqual({ ok: true, pa: 0xfee0_1000, span: 0xf_f000 });
    expect(codeOf(rig, 0xfee0_1000, read)).toBe(-EventCode.INVALID_DEVICE_REQUEST);
    const before = access(rig, RID, 0xfedf_f000, read);
    expect(before).toEqual({ ok: true, pa: 0x1_3edf_f000, span: 0x1000 });
    expect(access(rig, RID, 0xfef0_0000, write)).toMatchObject({ ok: true, pa: 0x1_3ef0_0000 });
    expect(access(rig, RID, 0xc000_0000, write)).toMatchObject({ pa: 0x1_0000_0000, span: 0x2000_0000 });
    expect(access(rig, RID, interrupt.end - 1, write)).toMatchObject({ span: 1 });
  });

  it("system management messages and port I/O are refused, forwarded or translated as SysMgt and IoCtl say", () => {
    const { rig } = setUp({});
    const table = rig.memory.allocate(1);
    rig.mapHost(table, systemManagement.start, PA, 12, readWrite);
    rig.mapHost(table, portIo.start, PA + 0x1000, 12, readWrite);
    const tables = { MODE: 4, HOST_TRP: table };
    const of = (fields: DteFields, at: number, what: number) => {
      put(rig, { ...tables, ...fields });
      return codeOf(rig, at, what);
    };
    const { start } = systemManagement;
    const refused = -EventCode.INVALID_DEVICE_REQUEST;
    expect([0, 1, 2, 3].map((SYSMGT) => of({ SYSMGT }, start, write))).toEqual([refused, start, start, PA]);
    expect([0, 1, 2, 3].map((SYSMGT) => of({ SYSMGT }, start, read))).toEqual([
      refused,
      refused,
      refused,
      PA,
    ]);
    expect([0, 1, 2].map((IOCTL) => of({ IOCTL }, portIo.start, read))).toEqual([
      refused,
      portIo.start,
      PA + 0x1000,
    ]);
  });

  it("types of INVALID_DEVICE_REQUEST tell which", () => {
    const { rig } = setUp({ MODE: 0 });
    const typeOf = (at: number, what: number) => {
      rig.takeEvents();
      codeOf(rig, at, what);
      const [event] = rig.takeEvents();
      return Number(event?.["TYPE"] ?? 0n);
    };
    expect(typeOf(interrupt.start, read)).toBe(InvalidRequest.interruptRead);
    expect(typeOf(systemManagement.start, write)).toBe(InvalidRequest.systemManagement);
    expect(typeOf(portIo.start, write)).toBe(InvalidRequest.portIo);
  });

  it("the exclusion range passes: for devices with EX, or for all", () => {
    const { rig } = setUp({});
    const table = rig.memory.allocate(1);
    rig.mapHost(table, 0x4000_0000, 0x8000_0000, 30, readWrite);
    const exclude = (fields: { EX_EN: boolean; ALLOW?: boolean }) => {
      rig.write(Register.EXCL_BASE, ExclusionBase.make({ BASE: 0x4010_1000, ...fields }));
      rig.write(Register.EXCL_LIMIT, 0x4010_2000);
    };
    put(rig, { MODE: 4, HOST_TRP: table });
    const at = (iova: number) => access(rig, RID, iova);
    expect(at(0x4010_1000)).toMatchObject({ pa: 0x8010_1000 });
    exclude({ EX_EN: true });
    expect(at(0x4010_1000)).toMatchObject({ pa: 0x8010_1000 });
    put(rig, { MODE: 4, HOST_TRP: table, EX: true });
    expect([0x4010_0fff, 0x4010_1000, 0x4010_2fff, 0x4010_3000].map(at)).toMatchObject([
      { pa: 0x8010_0fff, span: 1 },
      { pa: 0x4010_1000, span: 0x1000 },
      { pa: 0x4010_2fff, span: 1 },
      { pa: 0x8010_3000, span: 0x1000 },
    ]);
    exclude({ EX_EN: false, ALLOW: true });
    expect(at(0x4010_1000)).toMatchObject({ pa: 0x8010_1000 });
    put(rig, { MODE: 4, HOST_TRP: table });
    exclude({ EX_EN: true, ALLOW: true });
    expect(at(0x4010_1000)).toMatchObject({ pa: 0x4010_1000 });
  });
});

describe("§2.2.2.1 SE and SA", () => {
  it("SE logs the first page fault until the entry is invalidated; SA none; other events come through", () => {
    const { rig } = setUp({});
    const faults = (fields: DteFields) => {
      put(rig, { TV: false, ...fields });
      for (let i = 0; i < 3; i++) codeOf(rig);
      codeOf(rig, AddressRange.interrupt.start, read);
      return rig.takeEvents().map(({ CODE }) => CODE);
    };
    expect(faults({})).toEqual([2n, 2n, 2n, 8n]);
    expect(faults({ SE: true })).toEqual([2n, 8n]);
    expect(faults({ SE: true })).toEqual([2n, 8n]);
    expect(faults({ SA: true })).toEqual([8n]);
  });

  it("SE holds where the entry is not remembered", () => {
    const { rig } = setUp({ TV: false, SE: true }, { cache: "none" });
    for (let i = 0; i < 3; i++) rig.unit.translate(requestOf(RID, KEPT, read));
    expect(rig.takeEvents()).toHaveLength(1);
  });
});
