/**
 * Nesting containers on SMMUv3: the guest owns its table of PASIDs, bound by its guest address. The capability, every
 * errno, invalidations by the guest's ASIDs and PASIDs, stalls as page requests. DMA passes the silicon.
 */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type NestingClient, NestingRig, PAGE, type Setup } from "../../../test/support/nesting-client.ts";
import { outcome, reasonOf } from "../../../test/support/vfio-client.ts";
import { Random } from "../../base/clock.ts";
import { Cd } from "../../hardware/smmuv3/spec.ts";
import { PRESETS } from "../../machine/presets.ts";
import { TestCommand, TestStatus } from "../../pci/devices/test-function.ts";
import { LinuxError } from "../../uapi/errno.ts";
import * as extensions from "../../uapi/extensions.ts";
import { findCapabilities } from "../../uapi/info-chain.ts";
import { VfioIommuType1Info } from "../../uapi/vfio.ts";
import * as vsva from "../../uapi/vsva.ts";

const { READ } = TestCommand;
const { BUSY, DONE, FAULT } = TestStatus;
const { SOFTIOMMU_NESTING_OP_BIND_PASID_TABLE: BIND, SOFTIOMMU_NESTING_OP_UNBIND_PASID_TABLE: UNBIND } =
  extensions;
const { IOMMU_CACHE_INV_TYPE_IOTLB: IOTLB, IOMMU_CACHE_INV_TYPE_DEV_IOTLB: DEV_IOTLB } = vsva;
const { IOMMU_CACHE_INV_TYPE_PASID: PASID_CACHE } = vsva;
const { IOMMU_INV_GRANU_DOMAIN: BY_DOMAIN, IOMMU_INV_GRANU_PASID: BY_PASID } = vsva;
const { IOMMU_INV_GRANU_ADDR: BY_ADDR, IOMMU_PAGE_RESP_SUCCESS: SUCCESS } = vsva;
const PASID = 1;
const ARCHID = 2;
const LEAF = 4;

/** Its accesses can stall; the other's cannot, which keeps translations of its own instead. */
const STALLING = "0000:03:00.0";
const CACHING = "0000:06:00.0";
const MACHINE = `${PRESETS.get("smmuv3")!}  - model: test\n    at: ${CACHING}\nextensions: [vsva2020]\n`;

/** The guest's memory: the table of PASIDs, one page table each, data. */
const CONTEXTS = 2 * PAGE;
const tableOf = (pasid: number): number => (4 + 4 * pasid) * PAGE;
const data = (n: number): number => (50 + n) * PAGE;
/** The page that every process of the guest uses; its addresses have 39 bits. */
const VA = 0x12_3456_7000;

let rig: NestingRig;
let client: NestingClient;
let s: Setup;

const begin = (device = STALLING, edit = (text: string): string => text): void => {
  rig = new NestingRig(() => edit(MACHINE));
  client = rig.client();
  s = client.setUp(device);
  for (const n of [0, 1, 2, 3]) client.poke(data(n), Uint8Array.of(0x10 + n));
};
const end = (): void => {
  client.task.exit();
  rig.work.run();
  expect(rig.left()).toEqual([]);
  rig.machine.close();
};
const again = (...options: Parameters<typeof begin>): void => {
  end();
  begin(...options);
};
beforeEach(() => begin());
afterEach(() => end());

const word = (value: bigint): Uint8Array => new Uint8Array(new BigUint64Array([value]).buffer);
/** The process's table maps VA to this page, or not. */
const write = (pasid: number, page: number | undefined): void => {
  const table = tableOf(pasid);
  const slot = (shift: bigint): number => 8 * Number((BigInt(VA) >> shift) & 511n);
  client.poke(table + slot(30n), word(BigInt(table + PAGE) | 3n));
  client.poke(table + PAGE + slot(21n), word(BigInt(table + 2 * PAGE) | 3n));
  // A page, for unprivileged reading and writing, not global, accessed.
  client.poke(table + 2 * PAGE + slot(12n), word(page === undefined ? 0n : BigInt(page) | 0xc43n));
};
/** The descriptor of a PASID, with the ASID 100 above it. */
const describeContext = (pasid: number, more: Parameters<typeof Cd.make>[0] = {}): void => {
  const bytes = new Uint8Array(64);
  Cd.write(
    bytes,
    Cd.make({
      ...{ V: true, AA64: true, T0SZ: 25, EPD1: true, IPS: 4, R: true, A: true, ASET: true },
      ...{ ASID: 100 + pasid, TTB0: tableOf(pasid) },
      ...more,
    }),
  );
  client.poke(CONTEXTS + 64 * pasid, bytes);
};
type TableWrite = Parameters<typeof extensions.SoftiommuPasidTableSmmuv3.bytes>[0];
const tableData = (members: TableWrite = {}): Uint8Array =>
  extensions.SoftiommuPasidTableSmmuv3.bytes({
    argsz: extensions.SoftiommuPasidTableSmmuv3.size,
    version: 1,
    base_ptr: BigInt(CONTEXTS),
    pasid_bits: 3,
    s1dss: 2,
    config: 1,
    ...members,
  });
const bind = (members: TableWrite = {}, who = client, fd = s.container): unknown =>
  outcome(() => who.operate(fd, BIND, tableData(members)));
const unbind = (who = client, fd = s.container): unknown =>
  outcome(() => who.operate(fd, UNBIND, new Uint8Array(0)));
/** Processes 1 and 2 with their first page. */
const boot = (more: Parameters<typeof Cd.make>[0] = {}): void => {
  for (const pasid of [0, 1, 2]) {
    write(pasid, data(pasid));
    describeContext(pasid, more);
  }
  expect(bind()).toBe(0);
};
interface Named {
  readonly pasid?: number;
  readonly archid?: number;
  readonly addr?: number;
  readonly flags?: number;
  readonly granule?: bigint;
  readonly count?: bigint;
}
const invalidate = (cache: number, granularity: number, named: Named = {}): unknown => {
  const { pasid, archid, addr = VA, granule = BigInt(PAGE), count = 1n } = named;
  const given = (pasid === undefined ? 0 : PASID) | (archid === undefined ? 0 : ARCHID);
  const common = { flags: named.flags ?? given, pasid: BigInt(pasid ?? 0), archid: archid ?? 0 };
  const address = { addr: BigInt(addr), granule_size: granule, nb_granules: count };
  const granu = granularity === BY_ADDR ? { addr_info: { ...common, ...address } } : { pasid_info: common };
  return outcome(() => client.invalidate(s.container, { cache, granularity, granu }));
};

describe("the capability", () => {
  it("has SMMUv3's own format: a guest's whole table, no system-wide PASIDs, no single tables", () => {
    const bytes = client.rawInfo(s.container, 1024);
    const { cap_offset } = VfioIommuType1Info.read(bytes);
    const { at } = findCapabilities(bytes, cap_offset).find(({ id }) => id === 3)!;
    const { vendor, padding, header: _, ...info } = extensions.SoftiommuInfoCapNestingSmmuv3.read(bytes, at);
    expect(info).toEqual({
      argsz: 64,
      flags: 0,
      format: extensions.SOFTIOMMU_PASID_FORMAT_ARM_SMMUV3,
      features:
        vsva.IOMMU_NESTING_FEAT_CACHE_INVLD |
        extensions.IOMMU_NESTING_FEAT_PAGE_RESP |
        extensions.SOFTIOMMU_NESTING_FEAT_BIND_PASID_TABLE,
      addr_width: 48,
      pasid_bits: 16,
    });
    expect(padding).toEqual(new Array(12).fill(0));
    expect(vendor).toMatchObject({ flags: 0, asid_bits: 16, s1_formats: 7 });
    const [idr0, idr1, idr2, , idr4] = vendor.idr;
    expect([idr0! & 3, idr2, idr4]).toEqual([0, 0, 0]); // stages are not what stage 1 depends on
    expect((idr0! >> 2) & 3).toBe(2);
    expect(idr1).toBe(16 << 6);
    expect(outcome(() => client.allocate(s.container))).toBe("EOPNOTSUPP");
    expect(outcome(() => client.free(s.container, 1))).toBe("EOPNOTSUPP");
    expect(outcome(() => client.bind(s.container, 1))).toBe("EOPNOTSUPP");
    expect(outcome(() => client.unbind(s.container, 1))).toBe("EOPNOTSUPP");
  });

  it("tells of no page requests where accesses cannot stall", () => {
    again(CACHING);
    expect(client.nestingInfo(s.container).features).toBe(4 | 16);
    expect(outcome(() => client.respond(s.container, { pasid: 1, grpid: 0, code: SUCCESS }))).toBe(
      "EOPNOTSUPP",
    );
  });

  it("in the first state, of empty information, attaching fails with ENOENT, and other types work", () => {
    again(STALLING, (text) =>
      text.replace("pasid-bits: 16", "pasid-bits: 16\n    nesting-information: full"),
    );
    client.tearDown(s);
    end();
    rig = new NestingRig(() =>
      MACHINE.replace("pasid-bits: 16", "pasid-bits: 16\n    nesting-information: empty"),
    );
    client = rig.client();
    expect(outcome(() => client.setUp(STALLING))).toBe("ENOENT");
    for (const fd of client.task.descriptors) client.task.close(fd);
    s = client.setUp(STALLING, 3);
    expect(outcome(() => client.operate(s.container, BIND, tableData()))).toBe("ENOTTY");
  });

  it.each([
    ["stages: [1, 2]", "stages: [2]", "IDR0.S1P"],
    ["pasid-bits: 16", "pasid-bits: 8", "IDR1.SSIDSIZE"],
    ["stalls: both", "stalls: terminate", "IDR0.STALL_MODEL"],
    ["address-bits: 44", "address-bits: 48", "IDR5.OAS"],
  ])("nesting is off where another unit has not %s but %s", (line, instead, field) => {
    const unit = MACHINE.slice(MACHINE.indexOf("  - model: smmuv3"), MACHINE.indexOf("devices:"))
      .replace("model: smmuv3", "model: smmuv3\n    name: other")
      .replace(line, instead)
      .replace(/ {4}can-stall.*\n/, "");
    end();
    rig = new NestingRig(() => MACHINE.replace("devices:", `${unit}devices:`));
    client = rig.client();
    const container = client.container();
    expect(client.extension(container, 6)).toBe(0);
    client.setContainer(client.group(rig.groupOf(STALLING)), container);
    expect(outcome(() => client.setIommu(container, 6))).toBe("EOPNOTSUPP");
    expect(reasonOf(() => client.setIommu(container, 6))).toContain(field);
  });
});

describe("BIND_PASID_TABLE and UNBIND_PASID_TABLE", () => {
  it("the functions have the guest's PASIDs from the bind on, and the second stage alone after the unbind", () => {
    expect(client.read(s, data(3))).toBe(0x13);
    expect(client.read(s, VA, 1)).toBe("fault");
    boot();
    expect(client.read(s, VA, 1)).toBe(0x11);
    expect(client.read(s, VA, 2)).toBe(0x12);
    expect(client.read(s, VA)).toBe(0x10); // S1DSS: without PASID as with 0
    expect(client.read(s, VA, 3)).toBe("fault");
    expect(unbind()).toBe(0);
    expect(client.read(s, VA, 1)).toBe("fault");
    expect(client.read(s, data(3))).toBe(0x13);
  });

  it("bypass leaves the second stage, abort nothing", () => {
    expect(bind({ config: 2, base_ptr: 5n, s1fmt: 9 })).toBe(0);
    expect(client.read(s, data(3))).toBe(0x13);
    unbind();
    expect(bind({ config: 3 })).toBe(0);
    expect(client.read(s, data(3))).toBe("fault");
  });

  it("S1DSS 0 refuses what has no PASID, 1 lets it pass stage 1", () => {
    boot();
    unbind();
    expect(bind({ s1dss: 0 })).toBe(0);
    expect(client.read(s, VA)).toBe("fault");
    expect(client.read(s, VA, 1)).toBe(0x11);
    unbind();
    expect(bind({ s1dss: 1 })).toBe(0);
    expect(client.read(s, data(3))).toBe(0x13);
  });

  it("a table of two levels is found by the guest's addresses", () => {
    boot();
    unbind();
    client.poke(PAGE, word(BigInt(CONTEXTS) | 1n)); // L1CD of PASIDs 0 to 63
    expect(bind({ base_ptr: BigInt(PAGE), s1fmt: 1, pasid_bits: 8 })).toBe(0);
    expect(client.read(s, VA, 2)).toBe(0x12);
  });

  it.each<[string, TableWrite, string]>([
    ["argsz too small", { argsz: 47 }, "EINVAL"],
    ["another version", { version: 2 }, "EINVAL"],
    ["padding", { padding: [...new Array<number>(27).fill(0), 1] }, "EINVAL"],
    ["config 0", { config: 0 }, "EINVAL"],
    ["config 4", { config: 4 }, "EINVAL"],
    ["more PASIDs than the devices have", { pasid_bits: 17 }, "EINVAL"],
    ["an unknown s1fmt", { s1fmt: 3 }, "EINVAL"],
    ["an unknown s1dss", { s1dss: 3 }, "EINVAL"],
    ["a table that is not aligned", { base_ptr: 32n }, "EINVAL"],
    ["a table beyond 52 bits", { base_ptr: 1n << 52n }, "EINVAL"],
  ])("%s", (_what, members, code) => {
    expect(bind(members)).toBe(code);
    expect(bind()).toBe(0);
  });

  it("two levels on a unit without: EOPNOTSUPP", () => {
    again(STALLING, (text) => text.replace("pasid-bits: 16", "pasid-bits: 6\n    two-level-tables: false"));
    expect(client.nestingInfo(s.container).pasid_bits).toBe(6);
    expect(bind({ s1fmt: 1 })).toBe("EOPNOTSUPP");
    expect(bind()).toBe(0);
  });

  it("short data, memory that ends, a second table, an unbind of none", () => {
    expect(outcome(() => client.operate(s.container, BIND, tableData(), 8 + 47))).toBe("EINVAL");
    expect(unbind()).toBe("ENOENT");
    expect(bind()).toBe(0);
    expect(bind()).toBe("EBUSY");
    expect(unbind()).toBe(0);
    expect(unbind()).toBe("ENOENT");
  });

  it("is the address space's that bound it: others' unbinds, invalidations and answers are EACCES", () => {
    boot({ S: true });
    client.listen(s);
    write(1, undefined);
    client.begin(s, READ, VA, 1);
    const [fault] = client.takeFaults(s);
    const other = rig.client();
    const container = client.task.pass(s.container, other.task);
    expect(unbind(other, container)).toBe("EACCES");
    const everything = { cache: IOTLB, granularity: BY_DOMAIN };
    expect(outcome(() => other.invalidate(container, everything))).toBe("EACCES");
    const { grpid } = fault!.prm;
    expect(outcome(() => other.respond(container, { pasid: 1, grpid, code: SUCCESS }))).toBe("EACCES");
    other.task.exit();
    expect(client.transfer(s)).toBe(BUSY);
    expect(unbind()).toBe(0);
    expect(client.transfer(s)).toBe(FAULT);
  });

  it("EOPNOTSUPP on VT-d, whose PASIDs are the host's", () => {
    end();
    rig = new NestingRig();
    client = rig.client();
    s = client.setUp("0000:05:00.0");
    expect(bind()).toBe("EOPNOTSUPP");
    expect(unbind()).toBe("EOPNOTSUPP");
  });
});

describe("CACHE_INVLD", () => {
  /** What was cached stays until it is invalidated so. */
  const forgets = (work: () => unknown): void => {
    expect(client.read(s, VA, 1)).toBe(0x11);
    write(1, data(3));
    expect(client.read(s, VA, 1)).toBe(0x11);
    expect(work()).toBe(0);
    expect(client.read(s, VA, 1)).toBe(0x13);
  };
  /** What does not concern PASID 1. */
  const keeps = (work: () => unknown): void => {
    expect(client.read(s, VA, 1)).toBe(0x11);
    write(1, data(3));
    expect(work()).toBe(0);
    expect(client.read(s, VA, 1)).toBe(0x11);
  };

  it.each<[string, number, Named]>([
    ["everything", BY_DOMAIN, {}],
    ["an ASID", BY_PASID, { archid: 101 }],
    ["an ASID beside the PASID", BY_PASID, { archid: 101, pasid: 1 }],
    ["a PASID, of which the unit's TLB knows nothing: everything", BY_PASID, { pasid: 2 }],
    ["a page of an ASID", BY_ADDR, { archid: 101 }],
    ["a page's leaf of an ASID", BY_ADDR, { archid: 101, flags: ARCHID | LEAF }],
    ["a page of all", BY_ADDR, {}],
    ["a block that holds the page", BY_ADDR, { archid: 101, addr: VA - (VA % 2 ** 21), granule: 2n ** 21n }],
    ["more granules than are named one by one", BY_ADDR, { archid: 101, addr: 0, count: 2n ** 30n }],
    ["pages around it", BY_ADDR, { archid: 101, addr: VA - PAGE, count: 3n }],
  ])("IOTLB: %s", (_what, granularity, named) => {
    boot();
    forgets(() => invalidate(IOTLB, granularity, named));
  });

  it.each<[string, number, Named]>([
    ["another ASID", BY_PASID, { archid: 102 }],
    ["a page of another ASID", BY_ADDR, { archid: 102 }],
    ["another page", BY_ADDR, { archid: 101, addr: VA + PAGE }],
  ])("IOTLB: %s keeps what it does not concern", (_what, granularity, named) => {
    boot();
    keeps(() => invalidate(IOTLB, granularity, named));
  });

  it.each<[string, number, Named]>([
    ["everything", BY_DOMAIN, {}],
    ["the PASID", BY_PASID, { pasid: 1 }],
  ])("PASID cache: a descriptor that changed counts after %s", (_what, granularity, named) => {
    boot();
    expect(client.read(s, VA, 1)).toBe(0x11);
    describeContext(1, { TTB0: tableOf(2), ASID: 200 });
    expect(client.read(s, VA, 1)).toBe(0x11);
    if (granularity === BY_PASID) {
      expect(invalidate(PASID_CACHE, BY_PASID, { pasid: 2 })).toBe(0);
      expect(client.read(s, VA, 1)).toBe(0x11);
    }
    expect(invalidate(PASID_CACHE, granularity, named)).toBe(0);
    expect(client.read(s, VA, 1)).toBe(0x12);
  });

  it.each<[string, number, Named]>([
    ["a PASID", BY_PASID, { pasid: 1, archid: 101 }],
    ["a page of a PASID", BY_ADDR, { pasid: 1, archid: 101 }],
    ["pages of a PASID in an odd place", BY_ADDR, { pasid: 1, archid: 101, addr: VA - PAGE, count: 2n }],
  ])(
    "DEV_IOTLB: functions forget %s, and what the unit keeps is another cache",
    (_what, granularity, named) => {
      again(CACHING);
      boot();
      expect(client.read(s, VA, 1)).toBe(0x11);
      write(1, data(3));
      expect(invalidate(IOTLB, granularity, named)).toBe(0);
      expect(client.read(s, VA, 1)).toBe(0x11);
      expect(invalidate(DEV_IOTLB, granularity, { ...named, pasid: 2 })).toBe(0);
      expect(client.read(s, VA, 1)).toBe(0x11);
      expect(invalidate(IOTLB | DEV_IOTLB, granularity, named)).toBe(0);
      expect(client.read(s, VA, 1)).toBe(0x13);
    },
  );

  it.each<[string, number, number, Named]>([
    ["DEV_IOTLB of everything", DEV_IOTLB, BY_DOMAIN, {}],
    ["the PASID cache by address", PASID_CACHE, BY_ADDR, { pasid: 1 }],
    ["several caches, one of which does not go", IOTLB | DEV_IOTLB, BY_DOMAIN, {}],
    ["no cache", 0, BY_DOMAIN, {}],
    ["an unknown cache", 8, BY_DOMAIN, {}],
    ["an unknown granularity", IOTLB, 3, {}],
    ["neither ASID nor PASID", IOTLB, BY_PASID, {}],
    ["the PASID cache without PASID", PASID_CACHE, BY_PASID, { archid: 101 }],
    ["DEV_IOTLB of an ASID alone", DEV_IOTLB, BY_PASID, { archid: 101 }],
    ["leaves of a PASID", IOTLB, BY_PASID, { archid: 101, flags: ARCHID | LEAF }],
    ["unknown flags", IOTLB, BY_ADDR, { flags: 8 }],
    ["a PASID that is too large", PASID_CACHE, BY_PASID, { pasid: 2 ** 16 }],
    ["an ASID that is too large", IOTLB, BY_PASID, { archid: 2 ** 16 }],
    ["an odd granule", IOTLB, BY_ADDR, { granule: 0x3000n }],
    ["no granules", IOTLB, BY_ADDR, { count: 0n }],
  ])("%s: EINVAL", (_what, cache, granularity, named) => {
    boot();
    expect(invalidate(cache, granularity, named)).toBe("EINVAL");
  });

  it("without a table there is nothing to forget: ENOENT", () => {
    expect(invalidate(IOTLB, BY_DOMAIN)).toBe("ENOENT");
  });
});

describe("faults", () => {
  it("stalls are page requests, with the guest's PASID or without, and the answer resumes them", () => {
    boot({ S: true });
    client.listen(s);
    for (const pasid of [1, undefined]) {
      write(pasid ?? 0, undefined);
      invalidate(IOTLB, BY_DOMAIN);
      client.begin(s, READ, VA + 8, pasid);
      expect(client.transfer(s)).toBe(BUSY);
      const [fault, ...more] = client.takeFaults(s);
      expect(more).toEqual([]);
      const { grpid, ...asked } = fault!.prm;
      expect(asked).toMatchObject({
        flags: pasid === undefined ? 2 : 11,
        pasid: pasid ?? 0,
        perm: vsva.IOMMU_FAULT_PERM_READ,
        addr: BigInt(VA + 8),
      });
      expect(outcome(() => client.respond(s.container, { pasid: 7, grpid, code: SUCCESS }))).toBe("ENOENT");
      write(pasid ?? 0, data(3));
      const named = pasid === undefined ? {} : { pasid };
      expect(client.respond(s.container, { ...named, grpid, code: SUCCESS })).toBe(0);
      expect(client.transfer(s)).toBe(DONE);
      expect(outcome(() => client.respond(s.container, { ...named, grpid, code: SUCCESS }))).toBe("ENOENT");
    }
  });

  it("stalls end with their table, their device, and their program", () => {
    const stall = (): void => {
      boot({ S: true });
      client.listen(s);
      write(1, undefined);
      client.begin(s, READ, VA, 1);
      expect(client.transfer(s)).toBe(BUSY);
    };
    stall();
    unbind();
    expect(client.transfer(s)).toBe(FAULT);
    stall();
    client.task.close(s.device);
    rig.work.run();
    expect(rig.machine.live()["parked"]).toBe(0);
    again();
    stall();
    client.tearDown(s);
    rig.work.run();
    expect(rig.machine.live()["parked"]).toBe(0);
    again();
    stall();
  });

  it("a stall that nobody listens to is denied", () => {
    boot({ S: true });
    write(1, undefined);
    client.begin(s, READ, VA, 1);
    expect(client.transfer(s)).toBe(FAULT);
  });

  /** What is told of one access. */
  const told = (pasid: number, address = VA) => {
    client.begin(s, READ, address, pasid);
    expect(client.transfer(s)).toBe(FAULT);
    return client.takeFaults(s).map(({ type, event }) => ({ type, ...event }));
  };
  const base = { type: vsva.IOMMU_FAULT_DMA_UNRECOV, flags: 3, pasid: 1, perm: 1, addr: BigInt(VA) };

  /** The unit did not get as far as the address. */
  const NOWHERE = { flags: 1, perm: 0, addr: 0n };

  it.each<[string, () => void, number, number, object]>([
    ["no page", () => write(1, undefined), 1, vsva.IOMMU_FAULT_REASON_PTE_FETCH, {}],
    ["a descriptor that is not valid", () => describeContext(1, { V: false }), 1, 2, NOWHERE],
    ["a PASID beyond the table", () => {}, 9, vsva.IOMMU_FAULT_REASON_PASID_INVALID, NOWHERE],
    ["a descriptor of another kind", () => describeContext(1, { AA64: false }), 1, 2, NOWHERE],
  ])("an access that failed for good is told with its reason: %s", (_what, spoil, pasid, reason, where) => {
    boot();
    spoil();
    expect(told(pasid)).toMatchObject([{ ...base, ...where, pasid, reason }]);
  });

  it("where stage 2 has nothing: the guest's address of what could not be fetched", () => {
    boot();
    describeContext(1, { TTB0: 80 * PAGE });
    const [table] = told(1);
    expect(table).toMatchObject({ flags: 7, reason: vsva.IOMMU_FAULT_REASON_WALK_EABT });
    expect(table!.fetch_addr - (table!.fetch_addr % BigInt(PAGE))).toBe(BigInt(80 * PAGE));
    write(2, 80 * PAGE);
    expect(told(2)).toMatchObject([{ flags: 3, reason: vsva.IOMMU_FAULT_REASON_UNKNOWN }]);
    unbind();
    bind({ base_ptr: BigInt(80 * PAGE) });
    expect(told(1)).toMatchObject([{ flags: 7, reason: vsva.IOMMU_FAULT_REASON_PASID_FETCH }]);
  });
});

it("5,000 random requests end in values and errnos, and nothing waits at the end", {
  timeout: 60_000,
}, () => {
  const random = new Random(1);
  const pick = <T>(list: readonly T[]): T => list[random.below(list.length)]!;
  boot({ S: true });
  client.listen(s);
  const seen = new Set<string>();
  const attempt = (work: () => unknown): void => {
    try {
      work();
      seen.add("done");
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      expect(error.reason.length).toBeGreaterThan(8);
      seen.add(error.code);
    }
  };
  const odd = (): number => pick([0, 1, 2, 3, 9, random.next()]);
  for (let call = 0; call < 5000; call++)
    switch (random.below(7)) {
      case 0:
        attempt(() => {
          const members = random.below(2)
            ? {}
            : { config: random.below(5), s1fmt: random.below(4), pasid_bits: random.below(20) };
          client.operate(s.container, BIND, tableData(members));
        });
        break;
      case 1:
        attempt(() => client.operate(s.container, UNBIND, new Uint8Array(0)));
        break;
      case 2:
        attempt(() => {
          const flags = random.below(9);
          const addr_info = {
            ...{ flags, pasid: BigInt(odd()), archid: odd(), addr: pick([BigInt(VA), 0n, BigInt(odd())]) },
            ...{ granule_size: pick([4096n, 2n ** 21n, 3n]), nb_granules: pick([1n, 300n, 2n ** 60n]) },
          };
          const what = { cache: random.below(9), granularity: random.below(4), granu: { addr_info } };
          client.invalidate(s.container, what);
        });
        break;
      case 3:
        attempt(() => {
          const named = random.below(2) ? { pasid: random.below(3) } : {};
          client.respond(s.container, { ...named, grpid: random.below(4), code: random.below(4) });
        });
        break;
      case 4:
        write(random.below(3), pick([undefined, data(1)]));
        client.begin(s, READ, VA, pick([undefined, 1, 2, 9]));
        break;
      case 5:
        attempt(() => client.setConsumer(s, pick([client.faultHead(s).producer, odd()])));
        break;
      default: {
        const bytes = Uint8Array.from({ length: pick([0, 24, 48, 56]) }, () => random.below(4));
        attempt(() => client.operate(s.container, random.below(20), bytes, pick([8, 64, 8 + bytes.length])));
      }
    }
  for (const code of ["done", "EINVAL", "ENOENT", "EBUSY"]) expect(seen, code).toContain(code);
});
