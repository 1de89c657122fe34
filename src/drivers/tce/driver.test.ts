import { describe, expect, it } from "vitest";
import { codeOf } from "../../../test/support/code-of.ts";
import { silent } from "../../base/events.ts";
import { TceFault } from "../../hardware/tce/faults.ts";
import { Register } from "../../hardware/tce/spec.ts";
import { TCE_PAGE_LG2S, TceUnit } from "../../hardware/tce/unit.ts";
import { Access, NO_PASID, Transaction, TranslateStatus } from "../../hardware/unit.ts";
import { type DriverBench, describeDriver } from "../../iommu/driver.suite.ts";
import {
  type DmaWindow,
  Protection,
  type Requester,
  type UnrecoverableFault,
  type UserData,
} from "../../iommu/driver.ts";
import { MSI_BASE, MSI_BYTES, MsiController } from "../../kernel/msi.ts";
import { Banks } from "../../memory/banks.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { SOFTIOMMU_HWPT_DATA_TCE, SoftiommuHwptTce } from "../../uapi/vendor/extensions.ts";
import { messagesInto, rationed } from "../rig-memory.suite.ts";
import { dataOf } from "../user-data.suite.ts";
import { TceDriver } from "./driver.ts";
import { HIGH_START } from "./windows.ts";

const DEVICES: readonly [Requester, Requester] = [
  { name: "0000:01:00.0", rid: 0x100 },
  { name: "0000:02:03.0", rid: 0x218 },
];
const PAGE = 4096;
const RW = Protection.read | Protection.write;
const GIB = 2 ** 30;

interface Bench extends DriverBench {
  readonly driver: TceDriver;
  readonly unit: TceUnit;
  readonly msi: MsiController;
  readonly memory: Banks;
}

const bench = (
  options: { apertures?: boolean; cache?: "none"; pageLg2s?: readonly number[] } = {},
): Bench => {
  const { apertures = true, cache = "normal", pageLg2s = TCE_PAGE_LG2S } = options;
  const memory = new Banks({ ram: [{ start: 0, length: 2 ** 28 }] });
  const msi = new MsiController(memory);
  const unit = new TceUnit({
    name: "phb0",
    memory,
    events: silent,
    interrupt: messagesInto(memory),
    messages: { start: MSI_BASE, length: MSI_BYTES },
    pageLg2s,
    cache,
  });
  const limitFrames = rationed(memory);
  const firmware = { pageLg2s, covers: ({ name }: Requester) => name.startsWith("0000:") };
  const driver = new TceDriver({ name: "phb0", unit, memory, msi, events: silent, firmware, apertures });
  const transaction = new Transaction();
  for (const device of DEVICES) driver.probe(device);
  return {
    driver,
    unit,
    memory,
    msi,
    devices: DEVICES,
    access(device, iova, write) {
      Object.assign(transaction, {
        rid: device.rid,
        pasid: NO_PASID,
        access: write ? Access.write : Access.read,
      });
      transaction.lo = iova >>> 0;
      transaction.hi = Math.floor(iova / 2 ** 32);
      return unit.translate(transaction) === TranslateStatus.ok ? transaction.pa : "fault";
    },
    limitFrames,
    close() {
      driver.close();
      msi.close();
      memory.close();
    },
  };
};

/** A caller's data. */
const data = (...windows: readonly Partial<DmaWindow>[]): UserData => {
  const window = [0, 1].map((slot) => {
    const { start = 0, length = 0, pageLg2 = 12, levels = 1 } = windows[slot] ?? {};
    return { start: BigInt(start), length: BigInt(length), page_shift: pageLg2, levels };
  });
  return dataOf(SoftiommuHwptTce.bytes({ window }), SOFTIOMMU_HWPT_DATA_TCE);
};

describeDriver("TCE", () => bench());
describeDriver("TCE without caches", () => bench({ cache: "none" }));

describe("windows of a TCE domain", () => {
  const reasonOf = (action: () => unknown): string => {
    try {
      action();
      return "nothing thrown";
    } catch (error) {
      if (error instanceof LinuxError) return `${error.code}: ${error.reason}`;
      throw error;
    }
  };

  it("are two from the start: 2 GiB at 0, and one high up", () => {
    const { driver, close } = bench();
    const domain = driver.allocatePaging(DEVICES[0]);
    expect(domain.windows).toEqual([
      { start: 0, length: 2 * GIB, pageLg2: 12, levels: 2 },
      { start: 2 ** 59, length: 2 ** 40, pageLg2: 12, levels: 4 },
    ]);
    expect(domain.apertures).toEqual([
      { start: 0, end: 2 * GIB, pageSizes: 0x1000n },
      { start: 2 ** 59, end: 2 ** 59 + 2 ** 40, pageSizes: 0x1000n },
    ]);
    domain.free();
    close();
  });

  it("map each for itself, and one unmap empties what it touches of both", () => {
    const { driver, access, close } = bench();
    const [device] = DEVICES;
    const domain = driver.allocatePaging(device);
    driver.attach(device, domain);
    domain.map(2 * GIB - PAGE, 0x40_0000, PAGE, RW);
    domain.map(HIGH_START, 0x50_0000, 2 * PAGE, RW);
    expect(access(device, 2 * GIB - 5 * 16, true)).toBe(0x40_0fb0);
    expect(access(device, HIGH_START + PAGE, true)).toBe(0x50_1000);
    expect(domain.physical(HIGH_START + PAGE)).toBe(0x50_1000);
    expect(codeOf(() => domain.map(2 * GIB - PAGE, 0, 2 * PAGE, RW))).toBe("EFAULT");
    expect(domain.physical(4 * GIB)).toBe(-1);
    expect(domain.unmap(0, 2 ** 64)).toBe(3 * PAGE);
    expect(access(device, 2 * GIB - PAGE, true)).toBe("fault");
    expect(access(device, HIGH_START, true)).toBe("fault");
    driver.attach(device, driver.blocked);
    domain.free();
    close();
  });

  it("come with larger pages, under devices that have the domain, and go with all that they map", () => {
    const { driver, access, memory, close } = bench();
    const [device] = DEVICES;
    const domain = driver.allocatePaging(device);
    driver.attach(device, domain);
    domain.map(0x5000, 0x40_0000, PAGE, RW);
    domain.removeWindow(HIGH_START);
    expect(codeOf(() => domain.removeWindow(HIGH_START))).toBe("EINVAL");
    const standing = memory.allocated;
    const made = domain.createWindow({ length: 2 ** 36, pageLg2: 24, levels: 1 });
    expect(made).toEqual({ start: HIGH_START, length: 2 ** 36, pageLg2: 24, levels: 1 });
    expect(domain.pageSizes).toBe(0x100_1000n);
    domain.map(HIGH_START + 2 ** 24, 2 ** 24, 2 ** 25, RW);
    expect(access(device, HIGH_START + 2 ** 25, true)).toBe(2 ** 25);
    expect(access(device, 0x5008, true)).toBe(0x40_0008);
    expect(reasonOf(() => domain.map(HIGH_START, 0x1000, 2 ** 24, RW))).toMatch(/^EINVAL.*0x1000000$/);
    expect(codeOf(() => domain.createWindow({ length: 2 ** 31, pageLg2: 12, levels: 2 }))).toBe("ENOSPC");
    domain.removeWindow(HIGH_START);
    expect(access(device, HIGH_START + 2 ** 25, true)).toBe("fault");
    expect(memory.allocated).toBe(standing);
    expect(access(device, 0x5008, true)).toBe(0x40_0008);
    domain.removeWindow(0);
    expect(access(device, 0x5008, true)).toBe("fault");
    expect([domain.apertures, domain.pageSizes]).toEqual([[], 0n]);
    expect(reasonOf(() => domain.map(0x5000, 0, PAGE, RW))).toMatch(/there are none/);
    expect(domain.createWindow({ length: GIB, pageLg2: 16, levels: 2 }).start).toBe(0);
    driver.attach(device, driver.blocked);
    domain.free();
    close();
  });

  it("are those that a caller's data names", () => {
    const { driver, close } = bench();
    const low = { start: GIB, length: GIB, pageLg2: 16, levels: 2 };
    const high = { start: HIGH_START + 2 ** 40, length: 2 ** 40, pageLg2: 24, levels: 5 };
    for (const [windows, list] of [
      [
        [low, high],
        [low, high],
      ],
      [[low], [low]],
      [[{}, high], [high]],
    ] as const) {
      const domain = driver.allocatePaging(DEVICES[0], { data: data(...windows) });
      expect(domain.windows).toEqual(list);
      for (const { start, end } of domain.apertures) {
        domain.map(start, 0, 2 ** 24, RW);
        domain.map(end - 2 ** 24, 0x100_0000, 2 ** 24, RW);
        expect(domain.physical(end - 2 ** 12)).toBe(0x1ff_f000);
      }
      domain.free();
    }
    expect(driver.domains).toBe(0);
    close();
  });

  it("that cannot be are refused, with the reason", () => {
    const { driver, memory, close } = bench({ pageLg2s: [12, 16] });
    const before = memory.allocated;
    const ask = (...windows: Partial<DmaWindow>[]) =>
      reasonOf(() => driver.allocatePaging(DEVICES[0], { data: data(...windows) }));
    const low = { start: 0, length: GIB };
    expect(ask()).toMatch(/^EINVAL.*absent/);
    expect(ask({ ...low, pageLg2: 24 })).toMatch(/^EINVAL.*page_shift 24.*12, 16/);
    expect(ask({ ...low, levels: 0 })).toMatch(/^EINVAL.*1 to 5/);
    expect(ask({ ...low, levels: 6 })).toMatch(/^EINVAL.*1 to 5/);
    expect(ask({ ...low, start: 0x1800 })).toMatch(/^EINVAL.*whole pages of 0x1000/);
    // Numbers between doubles, too.
    const high = { start: BigInt(HIGH_START), length: 2n ** 30n, page_shift: 12, levels: 3 };
    for (const odd of [{ start: high.start + 1n }, { length: 2n ** 58n + 1n, levels: 5 }]) {
      const bytes = SoftiommuHwptTce.bytes({ window: [{}, { ...high, ...odd }] });
      const asked = dataOf(bytes, SOFTIOMMU_HWPT_DATA_TCE);
      expect(reasonOf(() => driver.allocatePaging(DEVICES[0], { data: asked }))).toMatch(
        /^EINVAL.*window 1, .*1[ ,].*is not made of whole pages of 0x1000/,
      );
    }
    expect(ask({ ...low, pageLg2: 16, length: 0x1_1000 })).toMatch(/^EINVAL.*whole pages of 0x10000/);
    expect(ask({ start: 2 ** 31, length: 2 ** 32 })).toMatch(/^EINVAL.*beyond 0x100000000/);
    expect(ask({ start: HIGH_START, length: GIB })).toMatch(/^EINVAL.*window 0 at/);
    expect(ask({}, { ...low })).toMatch(/^EINVAL.*window 1 at/);
    expect(ask(low, { start: HIGH_START, length: 2 ** 40, levels: 1 })).toMatch(
      /^EINVAL.*more levels or larger/,
    );
    expect(memory.allocated).toBe(before);
    const other = { ...data(low), type: 1 };
    expect(codeOf(() => driver.allocatePaging(DEVICES[0], { data: other }))).toBe("EOPNOTSUPP");
    close();
  });

  it("are chosen by nobody without the extension", () => {
    const { driver, close } = bench({ apertures: false });
    const windows = data({ start: 0, length: GIB });
    expect(reasonOf(() => driver.allocatePaging(DEVICES[0], { data: windows }))).toMatch(
      /^EOPNOTSUPP.*apertures/,
    );
    close();
  });

  it("whose tables cannot be had leave nothing", () => {
    const { driver, memory, limitFrames, close } = bench();
    const before = memory.allocated;
    for (const frames of [0, 1, 2]) {
      limitFrames(frames);
      expect(codeOf(() => driver.allocatePaging(DEVICES[0]))).toBe("ENOMEM");
      expect(memory.allocated).toBe(before);
    }
    limitFrames(Number.POSITIVE_INFINITY);
    expect(driver.allocatePaging(DEVICES[0]).id).toBe(1);
    close();
  });
});

describe("the driver of a POWER host bridge", () => {
  it("flushes many pages and few", () => {
    const { driver, access, close } = bench();
    const [one, other] = DEVICES;
    const domain = driver.allocatePaging(one);
    for (const device of DEVICES) driver.attach(device, domain);
    for (const pages of [3, 300]) {
      domain.map(0, 0x40_0000, pages * PAGE, RW);
      for (const device of [one, other])
        for (const page of [0, pages - 1])
          expect(access(device, page * PAGE, true)).toBe(0x40_0000 + page * PAGE);
      domain.unmap(0, pages * PAGE);
      for (const device of [one, other])
        for (const page of [0, pages - 1]) expect(access(device, page * PAGE, true)).toBe("fault");
    }
    for (const device of DEVICES) driver.attach(device, driver.blocked);
    domain.free();
    close();
  });

  it("takes every fault, and tells whose it was", () => {
    const { driver, access, close } = bench();
    const told: [string, UnrecoverableFault][] = [];
    driver.onFault = (device, fault) => told.push([device.name, fault]);
    const [one, other] = DEVICES;
    const domain = driver.allocatePaging(one);
    driver.attach(one, domain);
    domain.map(0x5000, 0x40_0000, PAGE, Protection.read);
    access(one, 0x5010, true);
    access(one, 0x6000, false);
    access(one, HIGH_START + 2 ** 50, false);
    access(other, 0x5000, false);
    expect(told).toEqual([
      [one.name, { address: 0x5010n, permissions: 2, reason: "permission" }],
      [one.name, { address: 0x6000n, permissions: 1, reason: "entry" }],
      [one.name, { address: (1n << 59n) + (1n << 50n), permissions: 1, reason: "address-range" }],
      [other.name, { address: 0x5000n, permissions: 1, reason: "address-range" }],
    ]);
    expect(driver.faults.map(({ code }) => code)).toEqual([
      TceFault.accessFault,
      TceFault.pageFault,
      TceFault.ioda,
      TceFault.ioda,
    ]);
    for (let i = 0; i < 300; i++) access(other, 0x5000, false);
    expect([driver.faultCount, driver.faults.length]).toEqual([304, 256]);
    driver.attach(one, driver.blocked);
    domain.free();
    close();
  });

  it("says where the doorbells of interrupts are, in the space of messages", () => {
    const { driver, close, msi, unit } = bench();
    let rung = 0;
    const message = msi.allocate(() => {
      rung += 1;
    });
    const address = driver.doorbell(DEVICES[0], message.address);
    expect(address >> 60n).toBe(1n);
    const transaction = new Transaction();
    Object.assign(transaction, { rid: DEVICES[0].rid, access: Access.write });
    transaction.lo = Number(address & 0xffff_ffffn);
    transaction.hi = Number(address >> 32n);
    expect(unit.translate(transaction)).toBe(TranslateStatus.ok);
    expect(transaction.pa).toBe(Number(message.address));
    expect(rung).toBe(0);
    expect(codeOf(() => driver.doorbell(DEVICES[0], 0x1000n))).toBe("EINVAL");
    expect(driver.reserved()).toEqual([]);
    message.free();
    close();
  });

  it("has plain domains: no PASIDs, no nest parents, no dirty tracking, and no domains of others", () => {
    const { driver, close } = bench();
    const [device] = DEVICES;
    for (const option of [{ nestParent: true }, { dirtyTracking: true }, { pasid: true }, { faults: true }])
      expect(codeOf(() => driver.allocatePaging(device, option))).toBe("EOPNOTSUPP");
    expect(codeOf(() => driver.attach(device, driver.identity, 1))).toBe("EINVAL");
    expect(codeOf(() => driver.probe({ name: "elsewhere", rid: 1 }))).toBe("ENODEV");
    const second = bench();
    const foreign = second.driver.allocatePaging(device);
    expect(codeOf(() => driver.attach(device, foreign))).toBe("EINVAL");
    foreign.free();
    second.close();
    close();
  });

  it("has a PE for each of 510 functions, and takes them back", () => {
    const { driver, close } = bench();
    const more = Array.from({ length: 508 }, (_, index) => ({ name: `0000:${index}`, rid: 0x1000 + index }));
    for (const device of more) driver.probe(device);
    const last = { name: "0000:last", rid: 0x2000 };
    expect(codeOf(() => driver.probe(last))).toBe("ENOSPC");
    driver.release(more[7]!);
    driver.release(more[7]!);
    driver.probe(last);
    close();
  });

  it("lets everything pass when it is closed", () => {
    const { driver, unit, memory, msi } = bench();
    driver.close();
    expect(unit.mmioRead(Register.RTT_BAR, 8)).toBe(0n);
    expect(memory.allocated).toBe(0);
    msi.close();
    memory.close();
  });
});
