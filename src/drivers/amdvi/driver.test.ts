import { afterEach, describe, expect, it } from "vitest";
import { codeOf } from "../../../test/support/code-of.ts";
import { EVERYTHING, EVERYTHING_2 } from "../../hardware/amdvi/capabilities.ts";
import { EventCode } from "../../hardware/amdvi/queue-spec.ts";
import { Dte, ExtendedFeature, Gcr3Entry, Register, Status } from "../../hardware/amdvi/spec.ts";
import { NO_PASID } from "../../hardware/unit.ts";
import { describeDriver } from "../../iommu/driver.suite.ts";
import { type PagingDomain, Protection, type UnrecoverableFault } from "../../iommu/driver.ts";
import { IommuHwInfoAmd } from "../../uapi/vendor/amd.ts";
import { dataOf } from "../user-data.suite.ts";
import { AmdBench, type AmdBenchOptions } from "./rig.suite.ts";

/** A unit that lacks these of its features. */
const without = (...names: (keyof typeof ExtendedFeature.fields)[]): AmdBenchOptions => ({
  capabilities: {
    efr: names.reduce((efr, name) => {
      const field = ExtendedFeature.fields[name];
      return efr & ~field.put((1n << BigInt(field.width)) - 1n);
    }, EVERYTHING),
  },
});

describeDriver("AMD-Vi", () => new AmdBench());
describeDriver("AMD-Vi, host tables of 4 levels", () => new AmdBench(without("HATS")));
describeDriver("AMD-Vi, remembering nothing", () => new AmdBench({ cache: "none" }));
describeDriver("AMD-Vi, forgetting at random", () => new AmdBench({ cache: "paranoid" }));
describeDriver(
  "AMD-Vi, functions and unit without device-TLBs",
  () => new AmdBench({ ats: false, pri: false, firmware: { deviceTlb: false } }),
);

const RW = Protection.read | Protection.write;
const PAGE = 4096;

let bench: AmdBench;
let opened = false;
const domains: PagingDomain[] = [];
/** A bench whose functions were found; everything is given back after the test. */
const open = (options: AmdBenchOptions = {}): AmdBench => {
  bench = new AmdBench(options);
  opened = true;
  for (const device of bench.devices) bench.driver.probe(device);
  return bench;
};
const domain = (options: object = {}): ReturnType<AmdBench["driver"]["allocatePaging"]> => {
  const made = bench.driver.allocatePaging(bench.devices[0], options);
  domains.push(made);
  return made;
};
afterEach(() => {
  if (!opened) return; // a test of the contract
  opened = false;
  for (const device of bench.devices) bench.driver.release(device);
  for (const each of domains.splice(0)) each.free();
  expect([bench.driver.domains, bench.driver.viommus]).toEqual([0, 0]);
  bench.close();
  expect(bench.memory.allocated).toBe(0);
});

/** The function's device table entry. */
const entryOf = (rid: number): bigint => {
  const table = Number(bench.unit.mmioRead(Register.DEVTAB_BASE, 8) & ~0xfffn);
  const bytes = new Uint8Array(Dte.bytes);
  expect(bench.memory.readBytes(table + rid * Dte.bytes, bytes)).toBe(true);
  return Dte.read(bytes);
};
/** Its fields that are not zero. */
const fieldsOf = (rid: number): { readonly [name: string]: bigint } =>
  Object.fromEntries(
    Dte.decode(entryOf(rid))
      .filter(({ value }) => value !== 0n)
      .map(({ name, value }) => [name, value]),
  );

describe("the AMD-Vi driver", () => {
  it("tells the feature registers as they are", () => {
    const { driver, devices } = open();
    const { type, bytes } = driver.hardwareInfo(devices[0], 0)!;
    expect(type).toBe(4);
    expect(IommuHwInfoAmd.read(bytes)).toEqual({ efr: EVERYTHING, efr2: EVERYTHING_2 });
    expect(driver.hardwareInfo(devices[0], 4)!.bytes).toEqual(bytes);
    expect(driver.hardwareInfo(undefined, 1)).toBeUndefined();
  });

  it("§2.2.2.1 stops every requester from the start: an entry that is all zero would let it pass", () => {
    open();
    for (const rid of [0, 0x100, 0x108, 0x2ff]) {
      expect(fieldsOf(rid)).toEqual({ V: 1n });
      expect(bench.access({ rid, name: "any" }, 0x5000, false)).toBe("fault");
    }
  });

  it("§2.2.2.1 says a version 1 table, identity and nothing in the device table entry", () => {
    const { driver, devices } = open();
    const [device] = devices;
    const host = domain();
    driver.attach(device, host);
    expect(fieldsOf(device.rid)).toEqual({
      ...{ V: 1n, TV: 1n, IR: 1n, IW: 1n, I: 1n, PPR: 1n, GPRP: 1n },
      ...{ MODE: 6n, HOST_TRP: BigInt(host.root), DOMAIN: BigInt(host.id) },
    });
    driver.attach(device, driver.identity);
    expect(fieldsOf(device.rid)).toEqual({ V: 1n, TV: 1n, IR: 1n, IW: 1n, PPR: 1n, GPRP: 1n, DOMAIN: 1n });
    driver.attach(device, driver.blocked);
    expect(fieldsOf(device.rid)).toEqual({ V: 1n });
  });

  it("§2.2.6.3 gives tables of processors by the GCR3 table, without a second stage", () => {
    const { driver, devices, memory } = open();
    const [device] = devices;
    const guest = domain({ pasid: true });
    driver.attach(device, guest);
    const fields = fieldsOf(device.rid);
    expect(fields).toMatchObject({ V: 1n, TV: 1n, GV: 1n, GLX: 2n, GIOV: 1n });
    expect(fields).not.toHaveProperty("MODE");
    const place =
      (fields["GCR3_TRP_14"] ?? 0n) | (fields["GCR3_TRP_30"] ?? 0n) | (fields["GCR3_TRP_51"] ?? 0n);
    let at = Number(place);
    for (let level = 0; level < 3; level++) {
      expect(memory.load64(at)).toBe(true);
      const entry = (BigInt(memory.hi) << 32n) | BigInt(memory.lo);
      expect(Gcr3Entry.fields.V.of(entry)).toBe(1n);
      at = Number(Gcr3Entry.fields.ADDR.of(entry));
    }
    expect(at).toBe(guest.root);
  });

  it("makes version 1 tables, tables of processors for PASIDs, and what is neither EOPNOTSUPP", () => {
    open();
    const tableOf = (options: object): string => {
      let table = "";
      const code = codeOf(() => {
        const made = bench.driver.allocatePaging(bench.devices[0], options);
        table = made.table;
        made.free();
      });
      return code ?? table;
    };
    expect(tableOf({})).toBe("host");
    expect(tableOf({ faults: true })).toBe("host");
    expect(tableOf({ nestParent: true })).toBe("host");
    expect(tableOf({ dirtyTracking: true })).toBe("host");
    expect(tableOf({ nestParent: true, dirtyTracking: true, faults: true })).toBe("host");
    expect(tableOf({ pasid: true, faults: true })).toBe("guest");
    expect(tableOf({ pasid: true, nestParent: true })).toBe("EOPNOTSUPP");
    expect(tableOf({ pasid: true, dirtyTracking: true })).toBe("EOPNOTSUPP");
    expect(tableOf({ data: dataOf(new Uint8Array(4), 3) })).toBe("EOPNOTSUPP");
  });

  it.each([
    ["GT_SUP", { pasid: true }],
    ["GT_SUP", { nestParent: true }],
    ["GIO_SUP", { pasid: true }],
    ["HD_SUP", { dirtyTracking: true }],
    ["PPR_SUP", { faults: true }],
  ] as const)("has no domains that need %s on a unit without it: %o", (feature, options) => {
    const { driver, devices } = open(without(feature));
    expect(codeOf(() => driver.allocatePaging(devices[0], options))).toBe("EOPNOTSUPP");
  });

  it("has addresses as wide as the unit's host tables, and every page size of theirs", () => {
    open();
    expect(domain().apertures).toEqual([{ start: 0, end: 2 ** 64 }]);
    expect(domain().pageSizes).toBe(2n ** 52n - 4096n);
    expect(domain({ pasid: true }).apertures).toEqual([{ start: 0, end: 2 ** 47 }]);
    expect(domain({ pasid: true }).pageSizes).toBe(0x4020_1000n);
  });

  it("needs registers for messages, and an entry for each function", () => {
    const { driver } = open();
    expect(codeOf(() => driver.probe({ rid: 0x300, name: "0000:03:00.0" }))).toBe("ENODEV");
    expect(codeOf(() => new AmdBench(without("MSI_CAP_MMIO_SUP")))).toBe("ENODEV");
  });

  it("has no domain for more than its ids", () => {
    const { driver, devices } = open({ domainIds: 16 });
    const taken: PagingDomain[] = [];
    expect(
      codeOf(() => {
        for (;;) taken.push(driver.allocatePaging(devices[0]));
      }),
    ).toBe("ENOSPC");
    // 0 is of entries that translate nothing, one of identity, and each function has one for its PASIDs.
    expect(taken).toHaveLength(12);
    for (const each of taken) each.free();
  });

  it("keeps what a domain had apart from what the next one with its id has", () => {
    const { driver, devices } = open();
    for (const pa of [0x40_0000, 0x50_0000]) {
      const made = driver.allocatePaging(devices[0]);
      made.map(0x5000, pa, PAGE, RW);
      driver.attach(devices[0], made);
      expect(bench.access(devices[0], 0x5000, true)).toBe(pa);
      driver.attach(devices[0], driver.blocked);
      made.unmap(0x5000, PAGE);
      made.free();
    }
  });

  it.each([1, 2, 3, 31, 32, 33, 129, 1000])("flushes %i pages at once", (pages) => {
    const { driver, devices } = open();
    const [device] = devices;
    for (const options of [{}, { pasid: true }]) {
      const made = domain(options);
      driver.attach(device, made);
      made.map(0x7f_f000, 0x40_0000, pages * PAGE, RW);
      made.map(0x7f_f000 + pages * PAGE, 0x10_0000, PAGE, RW);
      const last = 0x7f_f000 + (pages - 1) * PAGE;
      expect(bench.access(device, 0x7f_f000, true)).toBe(0x40_0000);
      expect(bench.access(device, last, true)).toBe(0x40_0000 + (pages - 1) * PAGE);
      bench.flushed.length = 0;
      expect(made.unmap(0x7f_f000, pages * PAGE)).toBe(pages * PAGE);
      expect(bench.flushed).toMatchObject([{ rid: device.rid, pasid: NO_PASID }]);
      expect(bench.access(device, 0x7f_f000, true)).toBe("fault");
      expect(bench.access(device, last, true)).toBe("fault");
      expect(bench.access(device, last + PAGE, true)).toBe(0x10_0000);
    }
  });
});

describe("faults", () => {
  it("§2.5 are read from the event log, however many: what it lost shows as an overflow", () => {
    const { driver, devices, scheduler, unit } = open({ logFramesLg2: 0 });
    const [device] = devices;
    const told: UnrecoverableFault[] = [];
    driver.onFault = (_device, fault) => told.push(fault);
    driver.attach(device, domain());
    for (let i = 0; i < 1000; i++) bench.request(device, 0x5008, true);
    scheduler.run();
    expect([driver.faultCount, driver.overflows]).toEqual([255, 1]);
    expect(driver.faults.at(-1)).toEqual({
      ...{ rid: device.rid, address: 0x5008n, write: true, code: EventCode.IO_PAGE_FAULT },
    });
    expect(Number(unit.mmioRead(Register.STATUS, 4))).toBe(
      Status.EVENT_LOG_RUN | Status.CMD_BUF_RUN | Status.PPR_RUN,
    );
    bench.access(device, 0x6000, false);
    expect([driver.faultCount, driver.overflows]).toEqual([256, 1]);
    expect(told).toHaveLength(256);
    expect(told.at(-1)).toEqual({ address: 0x6000n, permissions: 1, reason: "unknown" });
  });

  it("say why, where the table is one that PASIDs can have", () => {
    const { driver, devices } = open();
    const [device] = devices;
    const told: UnrecoverableFault[] = [];
    driver.onFault = (_device, fault) => told.push(fault);
    const guest = domain({ pasid: true });
    guest.map(0x5000, 0x40_0000, PAGE, Protection.read);
    driver.attach(device, guest);
    driver.attach(device, guest, 0x12345);
    bench.access(device, 0x5000, true, 0x12345);
    bench.access(device, 0x9000, false, 0x12345);
    bench.access(device, 0x9000, false);
    bench.access(device, 0x5000, false, 7);
    expect(told).toEqual([
      { pasid: 0x12345, address: 0x5000n, permissions: 2, reason: "permission" },
      { pasid: 0x12345, address: 0x9000n, permissions: 1, reason: "entry" },
      { address: 0x9000n, permissions: 1, reason: "entry" },
      { pasid: 7, address: 0x5000n, permissions: 1, reason: "entry" },
    ]);
  });

  it("of the command buffer are its own: it goes on after a command that the unit refuses", () => {
    const { driver, devices, unit, memory } = open();
    const [device] = devices;
    const made = domain();
    driver.attach(device, made);
    made.map(0x1000, 0x40_0000, PAGE, RW);
    expect(bench.access(device, 0x1000, true)).toBe(0x40_0000);
    const write = unit.mmioWrite.bind(unit);
    const base = Number(unit.mmioRead(Register.CMDBUF_BASE, 8) & 0xf_ffff_ffff_f000n);
    unit.mmioWrite = (offset, width, value) => {
      unit.mmioWrite = write;
      // Memory failed: the command that was to come has another opcode.
      memory.store64(base + Number(unit.mmioRead(Register.CMDBUF_HEAD, 4)), 0, 0xf000_0000);
      write(offset, width, value);
    };
    expect(codeOf(() => made.unmap(0x1000, PAGE))).toBe("EIO");
    bench.scheduler.run();
    expect(driver.faultCount).toBe(0);
    made.map(0x2000, 0x41_0000, PAGE, RW);
    made.unmap(0x2000, PAGE);
    expect(bench.access(device, 0x2000, true)).toBe("fault");
  });

  it("§2.5.8 of a function that does not answer: it has no translations any more", () => {
    const { driver, devices } = open({ logFramesLg2: 0 });
    const [device] = devices;
    const made = domain();
    made.map(0x5000, 0x40_0000, 2 * PAGE, RW);
    driver.attach(device, made);
    expect(fieldsOf(device.rid)).toHaveProperty("I");
    for (let i = 0; i < 300; i++) bench.request(device, 0x9000, true); // no room in the log
    bench.answer = "timeout";
    bench.flushed.length = 0;
    made.unmap(0x5000, 2 * PAGE);
    expect(bench.flushed).toHaveLength(1);
    expect(fieldsOf(device.rid)).not.toHaveProperty("I");
    made.map(0x5000, 0x40_0000, PAGE, RW);
    made.unmap(0x5000, PAGE);
    expect(bench.flushed).toHaveLength(1);
    expect(driver.faultCount).toBe(255);
  });
});

describe("what the driver refuses", () => {
  it("is a device that it has not found, or that is not behind its unit, and domains of others", () => {
    const { driver, devices } = open();
    const elsewhere = new AmdBench({ firmware: { covers: () => false } });
    expect(codeOf(() => elsewhere.driver.probe(devices[0]))).toBe("ENODEV");
    expect(codeOf(() => elsewhere.driver.attach(devices[0], driver.blocked))).toBe("ENODEV");
    elsewhere.close();
    const parent = domain({ nestParent: true });
    const data = dataOf(new Uint8Array(), 0);
    expect(codeOf(() => driver.allocateViommu(devices[0], domain(), data))).toBe("EINVAL");
    const viommu = driver.allocateViommu(devices[0], parent, data);
    expect(codeOf(() => parent.free())).toBe("EBUSY");
    viommu.free();
  });

  it("is a domain that reports page faults, where the device asks for no pages", () => {
    const { driver, devices } = open({ pri: false });
    const [device] = devices;
    const faulting = domain({ pasid: true, faults: true });
    for (const pasid of [undefined, 5])
      expect(codeOf(() => driver.attach(device, faulting, pasid))).toBe("ENODEV");
    expect(bench.access(device, 0x5000, false)).toBe("fault");
  });

  it("is a unit, a device or a domain that there is no memory for, wherever it ends", () => {
    // Device table, command buffer, both logs.
    for (const frames of [0, 512, 514, 518])
      expect(codeOf(() => new AmdBench({ frames, firmware: { lastDevice: 0xffff } }))).toBe("ENOMEM");
    bench = new AmdBench();
    opened = true;
    const standing = bench.memory.allocated;
    for (let frames = 0; frames < 3; frames++) {
      bench.limitFrames(frames);
      expect(codeOf(() => bench.driver.probe(bench.devices[0]))).toBe("ENOMEM");
      expect(bench.memory.allocated).toBe(standing);
    }
    bench.limitFrames(0);
    expect(codeOf(() => bench.driver.allocatePaging(bench.devices[0]))).toBe("ENOMEM");
    bench.limitFrames(Number.POSITIVE_INFINITY);
    expect(bench.driver.domains).toBe(0);
  });

  it("is to go on where the unit cannot read its commands", () => {
    const { driver, devices, unit, memory } = open();
    const made = domain();
    made.map(0x5000, 0x40_0000, PAGE, RW);
    driver.attach(devices[0], made);
    const buffer = Number(unit.mmioRead(Register.CMDBUF_BASE, 8) & 0xf_ffff_ffff_f000n);
    const load64 = memory.load64.bind(memory);
    memory.load64 = (pa) => (pa < buffer || pa >= buffer + PAGE) && load64(pa);
    expect(codeOf(() => made.unmap(0x5000, PAGE))).toBe("EIO");
    memory.load64 = load64;
    unit.mmioWrite(Register.CONTROL, 8, unit.mmioRead(Register.CONTROL, 8) & ~(1n << 12n));
    unit.mmioWrite(Register.CONTROL, 8, unit.mmioRead(Register.CONTROL, 8) | (1n << 12n));
    made.unmap(0x5000, PAGE);
    expect(bench.access(devices[0], 0x5000, false)).toBe("fault");
  });
});

describe("PASIDs", () => {
  it("have tables of their own beside those of the function, or beside none, or beside identity", () => {
    const { driver, devices } = open();
    const [device, other] = devices;
    const [one, two, three] = [domain({ pasid: true }), domain({ pasid: true }), domain({ pasid: true })];
    one.map(0x5000, 0x40_0000, PAGE, RW);
    two.map(0x5000, 0x50_0000, PAGE, RW);
    three.map(0x5000, 0x60_0000, PAGE, RW);
    driver.attach(device, one, 1);
    driver.attach(device, two, 0xf_ffff);
    driver.attach(other, two, 1);
    expect(bench.access(device, 0x5000, true, 1)).toBe(0x40_0000);
    expect(bench.access(device, 0x5000, true, 0xf_ffff)).toBe(0x50_0000);
    expect(bench.access(other, 0x5000, true, 1)).toBe(0x50_0000);
    expect(bench.access(device, 0x5000, true)).toBe("fault");
    expect(bench.access(device, 0x5000, true, 2)).toBe("fault");
    driver.attach(device, driver.identity);
    expect(bench.access(device, 0x5000, true)).toBe(0x5000);
    expect(bench.access(device, 0x5000, true, 1)).toBe(0x40_0000);
    driver.attach(device, three);
    expect(bench.access(device, 0x5000, true)).toBe(0x60_0000);
    driver.attach(device, driver.blocked);
    expect(bench.access(device, 0x5000, true)).toBe("fault");
    driver.attach(device, two, 1);
    expect(bench.access(device, 0x5000, true, 1)).toBe(0x50_0000);
    driver.attach(device, driver.blocked, 1);
    expect(bench.access(device, 0x5000, true, 1)).toBe("fault");
    expect(bench.access(device, 0x5000, true, 0xf_ffff)).toBe(0x50_0000);
    expect(codeOf(() => two.free())).toBe("EBUSY");
  });

  it("forget what was unmapped, and function-side translations of it", () => {
    const { driver, devices } = open();
    const [device] = devices;
    const guest = domain({ pasid: true });
    driver.attach(device, guest, 5);
    driver.attach(device, guest);
    guest.map(0x20_0000, 0x80_0000, 0x20_0000, RW);
    expect(bench.access(device, 0x20_1000, true, 5)).toBe(0x80_1000);
    expect(bench.access(device, 0x20_1000, true)).toBe(0x80_1000);
    bench.flushed.length = 0;
    guest.unmap(0x20_0000, 0x20_0000);
    expect(bench.flushed.map(({ pasid, lg2 }) => [pasid, lg2])).toEqual([
      [NO_PASID, 21],
      [5, 21],
    ]);
    expect(bench.access(device, 0x20_1000, true, 5)).toBe("fault");
    expect(bench.access(device, 0x20_1000, true)).toBe("fault");
  });

  it("take no version 1 table, and no place beside one", () => {
    const { driver, devices } = open();
    const [device] = devices;
    const [host, guest] = [domain(), domain({ pasid: true })];
    expect(codeOf(() => driver.attach(device, host, 1))).toBe("EINVAL");
    expect(codeOf(() => driver.attach(device, driver.identity, 1))).toBe("EOPNOTSUPP");
    for (const pasid of [0, 2 ** 20])
      expect(codeOf(() => driver.attach(device, guest, pasid))).toBe("EINVAL");
    driver.attach(device, host);
    expect(codeOf(() => driver.attach(device, guest, 1))).toBe("EINVAL");
    driver.attach(device, driver.blocked);
    driver.attach(device, guest, 1);
    expect(codeOf(() => driver.attach(device, host))).toBe("EBUSY");
    expect(bench.access(device, 0x5000, false, 1)).toBe("fault");
  });

  it("have no tables on a unit where requests without one could not be stopped (GIoSup)", () => {
    const { driver, devices } = open(without("GIO_SUP"));
    expect(driver.probe(devices[0]).pasidBits).toBe(0);
  });

  it("give back tables that are not needed any more, wherever memory ends", () => {
    const { driver, devices, memory } = open();
    const [device] = devices;
    const guest = domain({ pasid: true });
    const standing = memory.allocated;
    for (let frames = 0; frames < 2; frames++) {
      bench.limitFrames(frames);
      expect(codeOf(() => driver.attach(device, guest, 0x4_0000))).toBe("ENOMEM");
      expect(memory.allocated).toBe(standing);
    }
    bench.limitFrames(Number.POSITIVE_INFINITY);
    driver.attach(device, guest, 0x4_0000);
    driver.attach(device, guest, 0x4_0001);
    driver.attach(device, guest, 0x8_0000);
    expect(memory.allocated).toBe(standing + 4);
    driver.attach(device, driver.blocked, 0x4_0000);
    expect(memory.allocated).toBe(standing + 4);
    driver.attach(device, driver.blocked, 0x4_0001);
    expect(memory.allocated).toBe(standing + 2);
    driver.attach(device, driver.blocked, 0x8_0000);
    expect(memory.allocated).toBe(standing);
  });
});

describe("dirty tracking", () => {
  it("§2.2.2.1 tells what was written to since it was switched on, and clears it", () => {
    const { driver, devices } = open();
    const [device] = devices;
    const made = domain({ dirtyTracking: true });
    made.map(0, 0x40_0000, 16 * PAGE, RW);
    driver.attach(device, made);
    const read = (clear: boolean): number[] => {
      const pages: number[] = [];
      made.dirty!.read(0, 16 * PAGE, clear, (iova) => pages.push(iova / PAGE));
      return pages;
    };
    bench.access(device, 0, true);
    expect(read(false)).toEqual([]);
    made.dirty!.set(true);
    expect(fieldsOf(device.rid)["HAD"]).toBe(3n);
    expect(read(false)).toEqual([]);
    bench.access(device, 0, true);
    bench.access(device, PAGE, false);
    expect(read(true)).toHaveLength(1);
    expect(read(false)).toEqual([]);
    bench.access(device, 5, true);
    expect(read(true)).toHaveLength(1);
    made.dirty!.set(false);
    bench.access(device, 0, true);
    expect(read(false)).toEqual([]);
    expect(fieldsOf(device.rid)).not.toHaveProperty("HAD");
  });
});
