import { afterEach, describe, expect, it } from "vitest";
import { codeOf } from "../../../test/support/code-of.ts";
import { PageResponse } from "../../hardware/ats.ts";
import { Config, Register } from "../../hardware/smmuv3/spec.ts";
import { TranslateStatus } from "../../hardware/unit.ts";
import { describeDriver } from "../../iommu/driver.suite.ts";
import { type PageRequest, Protection, type Requester } from "../../iommu/driver.ts";
import { MSI_BASE } from "../../kernel/msi.ts";
import { IommuHwInfoArmSmmuv3 } from "../../uapi/vendor/smmuv3.ts";
import { type BenchOptions, DEVICES, type SmmuBench, smmuBench, withPasids } from "./rig.suite.ts";

describeDriver("SMMUv3", () => smmuBench());
describeDriver("SMMUv3, linear tables, no ranges", () =>
  smmuBench({
    capabilities: { twoLevelStreams: false, streamIdBits: 10, rangeInvalidation: false },
  }),
);
describeDriver("SMMUv3, stage 2 only, concatenated root", () =>
  smmuBench({ capabilities: { stage1: false, outputBits: 40, stalls: "both" } }),
);
describeDriver("SMMUv3, forgets at random", () => smmuBench({ cache: "paranoid" }));

const RW = Protection.read | Protection.write;
const PAGE = 4096;
const [FIRST, SECOND] = DEVICES;

const benches: SmmuBench[] = [];
/** A bench whose devices were found; everything is given back after the test. */
const open = (options: BenchOptions = {}): SmmuBench => {
  const bench = smmuBench(options);
  benches.push(bench);
  for (const device of bench.devices) bench.driver.probe(device);
  return bench;
};
afterEach(() => {
  for (const bench of benches.splice(0)) {
    for (const device of bench.devices) bench.driver.release(device);
    bench.close();
    expect(bench.memory.allocated).toBe(0);
  }
});

const PASIDS: BenchOptions = {
  devices: [withPasids(FIRST), SECOND],
  capabilities: { substreamIdBits: 16 },
};

describe("the SMMUv3 driver", () => {
  it("tells the identification registers as they are", () => {
    const { driver, unit } = open();
    const { type, bytes } = driver.hardwareInfo(FIRST, 0)!;
    const read = (register: number) => Number(unit.mmioRead(register, 4));
    expect(type).toBe(2);
    expect(IommuHwInfoArmSmmuv3.read(bytes)).toEqual({
      flags: 0,
      __reserved: 0,
      idr: [0, 4, 8, 12, 16, 20].map(read),
      iidr: read(Register.IIDR),
      aidr: read(Register.AIDR),
    });
    expect(driver.hardwareInfo(FIRST, 1)).toBeUndefined();
  });

  it("needs messages, 4 KiB pages, and room for a command and a SYNC", () => {
    for (const capabilities of [{ msi: false }, { granules: [16] as const }, { commandQueueLg2: 0 }])
      expect(codeOf(() => smmuBench({ capabilities }))).toBe("ENODEV");
    const { driver } = open({ capabilities: { streamIdBits: 10, twoLevelStreams: false } });
    expect(codeOf(() => driver.probe({ rid: 0x400, name: "0000:04:00.0" }))).toBe("ENODEV");
  });

  it("makes stage 1 for functions and PASIDs, stage 2 for guests, and what is none of them EOPNOTSUPP", () => {
    const { driver } = open({ capabilities: { updates: "dirty" } });
    const stageOf = (options: object): number | string => {
      let stage = 0;
      const code = codeOf(() => {
        const domain = driver.allocatePaging(FIRST, options);
        stage = domain.stage;
        domain.free();
      });
      return code ?? stage;
    };
    expect(stageOf({})).toBe(1);
    expect(stageOf({ pasid: true, faults: true })).toBe(1);
    expect(stageOf({ dirtyTracking: true })).toBe(1);
    expect(stageOf({ nestParent: true })).toBe(2);
    expect(stageOf({ nestParent: true, pasid: true })).toBe("EOPNOTSUPP");
    expect(stageOf({ nestParent: true, dirtyTracking: true })).toBe("EOPNOTSUPP");
    expect(stageOf({ data: { type: 2, length: 16 } })).toBe("EOPNOTSUPP");
    const plain = open({ capabilities: { stage1: false } }).driver;
    for (const options of [{ nestParent: true }, { dirtyTracking: true }, { pasid: true }])
      expect(codeOf(() => plain.allocatePaging(FIRST, options))).toBe("EOPNOTSUPP");
    expect(plain.hasViommu(FIRST, 1)).toBe(false);
  });

  it("has no domain for more than the unit's ASIDs", () => {
    const { driver } = open({ capabilities: { asid16: false } });
    const domains = Array.from({ length: 255 }, () => driver.allocatePaging(FIRST));
    expect(codeOf(() => driver.allocatePaging(FIRST))).toBe("ENOSPC");
    for (const domain of domains) domain.free();
    expect(driver.domains).toBe(0);
  });

  it.each([true, false])("flushes a thousand pages at once, and one of them (ranges: %s)", (ranges) => {
    const bench = open({ capabilities: { rangeInvalidation: ranges } });
    const domain = bench.driver.allocatePaging(FIRST);
    bench.driver.attach(FIRST, domain);
    for (const pages of [1, 2, 3, 31, 32, 33, 129, 1000]) {
      domain.map(0x7f_f000, 0x40_0000, pages * PAGE, RW);
      domain.map(0x7f_f000 + pages * PAGE, 0x10_0000, PAGE, RW);
      const last = 0x7f_f000 + (pages - 1) * PAGE;
      expect(bench.access(FIRST, 0x7f_f000, true)).toBe(0x40_0000);
      expect(bench.access(FIRST, last, true)).toBe(0x40_0000 + (pages - 1) * PAGE);
      expect(domain.unmap(0x7f_f000, pages * PAGE)).toBe(pages * PAGE);
      expect(bench.access(FIRST, 0x7f_f000, true)).toBe("fault");
      expect(bench.access(FIRST, last, true)).toBe("fault");
      expect(bench.access(FIRST, last + PAGE, true)).toBe(0x10_0000);
      domain.unmap(last + PAGE, PAGE);
    }
    bench.driver.attach(FIRST, bench.driver.blocked);
    domain.free();
  });

  it("counts faults that nobody else is told of, however many: what the queue lost shows as an overflow", () => {
    const { driver, request, scheduler } = open();
    for (let i = 0; i < 1000; i++) expect(request(FIRST, 0x5000, true).status).toBe(TranslateStatus.fault);
    scheduler.run();
    expect(driver.faultCount).toBe(0); // a function without domain is aborted without an event
    const domain = driver.allocatePaging(FIRST);
    driver.attach(FIRST, domain);
    for (let i = 0; i < 1000; i++) request(FIRST, 0x5000, true);
    scheduler.run();
    expect(driver.faultCount).toBe(512);
    expect(driver.overflows).toBe(1);
    expect(driver.faults.at(-1)).toEqual({
      rid: FIRST.rid,
      pasid: -1,
      address: 0x5000n,
      write: true,
      code: 0x10,
      stage2: false,
    });
    request(FIRST, 0x6000, false);
    scheduler.run();
    expect(driver.faults.at(-1)).toMatchObject({ address: 0x6000n, write: false });
    expect([driver.faultCount, driver.overflows]).toEqual([513, 1]);
    driver.attach(FIRST, driver.blocked);
    domain.free();
  });

  it("§7.2, §7.4 tells every guest on the unit that events were lost: the queue was full, or its memory did not answer", () => {
    const { driver, request, scheduler, memory, unit } = open();
    const parent = driver.allocatePaging(FIRST, { nestParent: true });
    const lost = [0, 0];
    const data = { type: 1, length: 0, read: () => new Uint8Array(), write: () => {} };
    const guests = lost.map((_, index) => {
      const viommu = driver.allocateViommu(FIRST, parent, data);
      viommu.onEventsLost = () => {
        lost[index]! += 1;
      };
      return viommu;
    });
    const domain = driver.allocatePaging(FIRST);
    driver.attach(FIRST, domain);
    const fault = (times: number): void => {
      for (let i = 0; i < times; i++) request(FIRST, 0x5000, true);
      scheduler.run();
    };
    fault(512);
    expect(lost).toEqual([0, 0]);
    fault(513);
    expect(lost).toEqual([1, 1]);
    const queue = Number(unit.mmioRead(Register.EVENTQ_BASE, 8)) & ~0xfff;
    const store64 = memory.store64.bind(memory);
    memory.store64 = (pa, lo, hi) => (pa < queue || pa >= queue + 4 * PAGE) && store64(pa, lo, hi);
    fault(1);
    memory.store64 = store64;
    expect(lost).toEqual([2, 2]);
    fault(1);
    expect([lost, driver.overflows, driver.faultCount]).toEqual([[2, 2], 2, 512 + 512 + 1]);
    guests[0]!.free();
    fault(513);
    expect(lost).toEqual([2, 3]);
    driver.attach(FIRST, driver.blocked);
    guests[1]!.free();
    for (const each of [domain, parent]) each.free();
  });

  it("goes on after a command that the unit refuses", () => {
    const { driver, unit, memory, access } = open();
    const domain = driver.allocatePaging(FIRST);
    driver.attach(FIRST, domain);
    domain.map(0x1000, 0x40_0000, PAGE, RW);
    expect(access(FIRST, 0x1000, true)).toBe(0x40_0000);
    const write = unit.mmioWrite.bind(unit);
    const base = Number(unit.mmioRead(Register.CMDQ_BASE, 8) & ~0x1fn);
    unit.mmioWrite = (offset, width, value) => {
      if (offset === Register.CMDQ_PROD) {
        // Memory failed: the command that was to come has another opcode.
        const at = base + (Number(unit.mmioRead(Register.CMDQ_CONS, 4)) % 256) * 16;
        memory.store64(at, 0xff, 0);
        unit.mmioWrite = write;
      }
      write(offset, width, value);
    };
    expect(codeOf(() => domain.unmap(0x1000, PAGE))).toBe("EIO");
    domain.map(0x2000, 0x50_0000, PAGE, RW);
    expect(access(FIRST, 0x2000, true)).toBe(0x50_0000);
    expect(domain.unmap(0x2000, PAGE)).toBe(PAGE);
    expect(access(FIRST, 0x2000, true)).toBe("fault");
    driver.attach(FIRST, driver.blocked);
    domain.free();
  });
});

describe("a unit that remembers that nothing was there", () => {
  it.each([false, true])("is told of what is added just where firmware says so: %s", (remembersAbsent) => {
    const { driver, unit } = open({ firmware: { remembersAbsent } });
    const domain = driver.allocatePaging(FIRST);
    driver.attach(FIRST, domain);
    const done = () => unit.mmioRead(Register.CMDQ_CONS, 4);
    const before = done();
    domain.map(0x1000, 0x40_0000, PAGE, RW);
    expect(done() !== before).toBe(remembersAbsent);
    driver.attach(FIRST, driver.blocked);
    domain.unmap(0x1000, PAGE);
    domain.free();
  });
});

describe("doorbells of interrupts", () => {
  const WINDOW = 0x800_0000;
  const AT = MSI_BASE + 0x1230;

  it("are at the software window in whatever the function has, before and after", () => {
    const { driver, access } = open();
    expect(driver.reserved()).toEqual([{ start: WINDOW, length: 0x10_0000, kind: "sw-msi" }]);
    expect(driver.doorbell(FIRST, BigInt(AT))).toBe(BigInt(WINDOW + 0x1230));
    expect(access(FIRST, WINDOW + 0x1230, true)).toBe("fault");
    const [one, other] = [driver.allocatePaging(FIRST), driver.allocatePaging(FIRST, { nestParent: true })];
    for (const domain of [one, other]) {
      driver.attach(FIRST, domain);
      expect(access(FIRST, WINDOW + 0x1230, true)).toBe(AT);
      expect(access(FIRST, WINDOW + 0x2230, true)).toBe("fault");
    }
    driver.doorbell(FIRST, BigInt(AT + 0x1000));
    expect(access(FIRST, WINDOW + 0x2230, true)).toBe(AT + 0x1000);
    driver.attach(FIRST, driver.identity);
    expect(driver.doorbell(FIRST, BigInt(AT))).toBe(BigInt(AT));
    for (const domain of [one, other]) domain.free();
  });

  it("stay when everything around them is unmapped", () => {
    const { driver, access } = open();
    const domain = driver.allocatePaging(FIRST);
    driver.attach(FIRST, domain);
    driver.doorbell(FIRST, BigInt(AT));
    domain.map(WINDOW - PAGE, 0x40_0000, PAGE, RW);
    domain.map(WINDOW + 0x10_0000, 0x50_0000, PAGE, RW);
    expect(domain.unmap(0, 2 ** 48)).toBe(2 * PAGE);
    expect(access(FIRST, WINDOW - PAGE, true)).toBe("fault");
    expect(access(FIRST, WINDOW + 0x10_0000, true)).toBe("fault");
    expect(access(FIRST, WINDOW + 0x1230, true)).toBe(AT);
    expect(domain.unmap(WINDOW, 0x10_0000)).toBe(0);
    driver.attach(FIRST, driver.blocked);
    domain.free();
  });

  it("of a host beneath are reached at their own addresses, which stay, where firmware says so", () => {
    const { driver, access } = open({ firmware: { messagesPass: true } });
    const domain = driver.allocatePaging(FIRST);
    expect(access(FIRST, WINDOW + 0x1230, true)).toBe("fault");
    driver.attach(FIRST, domain);
    expect(driver.doorbell(FIRST, BigInt(AT))).toBe(BigInt(AT));
    expect(access(FIRST, WINDOW + 0x1230, true)).toBe(WINDOW + 0x1230);
    expect(access(FIRST, WINDOW + 0xf_fffc, true)).toBe(WINDOW + 0xf_fffc);
    expect(access(FIRST, WINDOW + 0x10_0000, true)).toBe("fault");
    domain.map(WINDOW - PAGE, 0x40_0000, PAGE, RW);
    expect(domain.unmap(0, 2 ** 48)).toBe(PAGE);
    expect(access(FIRST, WINDOW + 0x1230, true)).toBe(WINDOW + 0x1230);
    driver.attach(FIRST, driver.blocked);
    domain.free();
  });

  it("that cannot be mapped keep the function where it is", () => {
    const { driver, limitFrames, access } = open();
    const [one, other] = [driver.allocatePaging(FIRST), driver.allocatePaging(FIRST)];
    one.map(0x1000, 0x40_0000, PAGE, RW);
    driver.attach(FIRST, one);
    driver.doorbell(FIRST, BigInt(AT));
    limitFrames(1);
    expect(codeOf(() => driver.attach(FIRST, other))).toBe("ENOMEM");
    expect(access(FIRST, 0x1000, true)).toBe(0x40_0000);
    limitFrames(Number.POSITIVE_INFINITY);
    driver.attach(FIRST, other);
    expect(access(FIRST, WINDOW + 0x1230, true)).toBe(AT);
    driver.attach(FIRST, driver.blocked);
    for (const domain of [one, other]) domain.free();
  });
});

describe("PASIDs", () => {
  const through = (bench: SmmuBench, device: Requester, iova: number, pasid: number): number | "fault" => {
    const { status, pa } = bench.request(device, iova, true, pasid);
    bench.scheduler.run();
    return status === TranslateStatus.ok ? pa : "fault";
  };
  const mapped = (bench: SmmuBench, pa: number) => {
    const domain = bench.driver.allocatePaging(FIRST, { pasid: true });
    domain.map(0x1000, pa, PAGE, RW);
    return domain;
  };

  it("are as many as the function and the unit both have", () => {
    const bench = smmuBench(PASIDS);
    expect(bench.driver.probe(bench.devices[0])).toMatchObject({ pasidBits: 16, pasidExecute: true });
    expect(bench.driver.probe(bench.devices[1])).toMatchObject({ pasidBits: 0 });
    bench.close();
    const linear = smmuBench({
      ...PASIDS,
      capabilities: { substreamIdBits: 16, twoLevelContexts: false },
    });
    expect(linear.driver.probe(linear.devices[0])).toMatchObject({ pasidBits: 10 });
    linear.close();
  });

  it.each([true, false])(
    "have domains of their own, beside the function's (two levels: %s)",
    (twoLevelContexts) => {
      const bench = open({ ...PASIDS, capabilities: { substreamIdBits: 16, twoLevelContexts } });
      const { driver, devices } = bench;
      const [device] = devices;
      const standing = bench.memory.allocated;
      const [one, two, three] = [0x40_0000, 0x50_0000, 0x60_0000].map((pa) => mapped(bench, pa));
      driver.attach(device, one!, 1);
      driver.attach(device, two!, 1000);
      expect(through(bench, device, 0x1000, 1)).toBe(0x40_0000);
      expect(through(bench, device, 0x1000, 1000)).toBe(0x50_0000);
      expect(through(bench, device, 0x1000, 2)).toBe("fault");
      expect(bench.access(device, 0x1000, true)).toBe("fault");
      driver.attach(device, driver.identity);
      expect(bench.access(device, 0x1000, true)).toBe(0x1000);
      driver.attach(device, three!);
      expect(bench.access(device, 0x1000, true)).toBe(0x60_0000);
      expect(through(bench, device, 0x1000, 1)).toBe(0x40_0000);
      driver.attach(device, three!, 1); // replaced on the live function
      expect(through(bench, device, 0x1000, 1)).toBe(0x60_0000);
      driver.attach(device, driver.blocked, 1);
      expect(through(bench, device, 0x1000, 1)).toBe("fault");
      expect(through(bench, device, 0x1000, 1000)).toBe(0x50_0000);
      driver.attach(device, driver.blocked);
      expect(through(bench, device, 0x1000, 1000)).toBe(0x50_0000);
      driver.attach(device, driver.blocked, 1000);
      expect(through(bench, device, 0x1000, 1000)).toBe("fault");
      for (const domain of [one!, two!, three!]) domain.free();
      expect(bench.memory.allocated).toBe(standing);
    },
  );

  it("need a stage 1, a number that is the function's, and a function without guest or stage 2", () => {
    const bench = open(PASIDS);
    const { driver, devices } = bench;
    const [device, without] = devices;
    const domain = mapped(bench, 0x40_0000);
    const parent = driver.allocatePaging(device, { nestParent: true });
    const attach = (pasid: number, to: typeof domain) => codeOf(() => driver.attach(device, to, pasid));
    expect(attach(0, domain)).toBe("EINVAL");
    expect(attach(65_536, domain)).toBe("EINVAL");
    expect(codeOf(() => driver.attach(without, domain, 1))).toBe("EINVAL");
    expect(attach(1, parent)).toBe("EINVAL");
    expect(codeOf(() => driver.attach(device, driver.identity, 1))).toBe("EOPNOTSUPP");
    driver.attach(device, parent);
    expect(attach(1, domain)).toBe("EINVAL");
    driver.attach(device, driver.blocked);
    driver.attach(device, domain, 1);
    expect(codeOf(() => driver.attach(device, parent))).toBe("EBUSY");
    expect(codeOf(() => domain.free())).toBe("EBUSY");
    driver.attach(device, driver.blocked, 1);
    driver.attach(device, driver.blocked, 1);
    for (const each of [domain, parent]) each.free();
  });

  it("leave no place for a guest's table: EBUSY, which comes before that the guest must know the device", () => {
    const bench = open(PASIDS);
    const { driver, devices } = bench;
    const domain = mapped(bench, 0x40_0000);
    const parent = driver.allocatePaging(devices[0], { nestParent: true });
    const entry = new Uint8Array(16);
    entry[0] = 1 | (Config.stage1 << 1);
    const data = { type: 2, length: 16, read: () => entry, write: () => {} };
    const viommu = driver.allocateViommu(devices[0], parent, data);
    const nested = viommu.allocateNested(devices[0], data, {});
    driver.attach(devices[0], domain, 1);
    expect(codeOf(() => driver.attach(devices[0], nested))).toBe("EBUSY");
    driver.attach(devices[0], driver.blocked, 1);
    expect(codeOf(() => driver.attach(devices[0], nested))).toBe("ENOENT");
    viommu.addDevice(devices[0], 5n);
    driver.attach(devices[0], nested);
    expect(codeOf(() => driver.attach(devices[0], domain, 1))).toBe("EINVAL");
    expect([codeOf(() => nested.free()), codeOf(() => parent.free())]).toEqual(["EBUSY", "EBUSY"]);
    driver.attach(devices[0], driver.blocked);
    nested.free();
    viommu.free();
    expect([parent.users, driver.viommus]).toEqual([0, 0]);
    for (const each of [domain, parent]) each.free();
  });

  it("that no memory is there for have nothing, and leave nothing", () => {
    const bench = open(PASIDS);
    const { driver, devices } = bench;
    const domain = mapped(bench, 0x40_0000);
    const standing = bench.memory.allocated;
    bench.limitFrames(0);
    expect(codeOf(() => driver.attach(devices[0], domain, 700))).toBe("ENOMEM");
    bench.limitFrames(Number.POSITIVE_INFINITY);
    expect(bench.memory.allocated).toBe(standing);
    expect(through(bench, devices[0], 0x1000, 700)).toBe("fault");
    domain.free();
  });

  it("100,000 of them, one after the other, leave nothing", () => {
    const bench = open(PASIDS);
    const { driver, devices } = bench;
    const domain = mapped(bench, 0x40_0000);
    const standing = bench.memory.allocated;
    for (let i = 0; i < 100_000; i++) {
      const pasid = 1 + (i % 65_535);
      driver.attach(devices[0], domain, pasid);
      driver.attach(devices[0], driver.blocked, pasid);
    }
    expect(bench.memory.allocated).toBe(standing);
    expect(domain.users).toBe(0);
    domain.free();
  });
});

describe("stalls", () => {
  const STALLING: BenchOptions = {
    ...PASIDS,
    canStall: true,
    capabilities: { substreamIdBits: 16, stalls: "both" },
  };
  const listen = (bench: SmmuBench) => {
    const asked: PageRequest[] = [];
    bench.driver.onPageRequest = (_, request) => asked.push(request);
    return asked;
  };

  it("are page requests, and the answer tries the access again or ends it", () => {
    const bench = open(STALLING);
    const { driver, devices, scheduler, resumed } = bench;
    const asked = listen(bench);
    const domain = driver.allocatePaging(devices[0], { pasid: true });
    driver.attach(devices[0], domain);
    driver.attach(devices[0], domain, 9);
    const stalled = bench.request(devices[0], 0x7000, true, 9);
    const other = bench.request(devices[0], 0x8000, false);
    expect([stalled.status, other.status]).toEqual([TranslateStatus.stalled, TranslateStatus.stalled]);
    expect(asked).toEqual([]); // not before the access has ended
    scheduler.run();
    expect(asked).toEqual([
      { pasid: 9, group: expect.any(Number), last: true, address: 0x7000n, permissions: 2 },
      { group: expect.any(Number), last: true, address: 0x8000n, permissions: 1 },
    ]);
    domain.map(0x7000, 0x40_0000, PAGE, RW);
    driver.respond(devices[0], { group: asked[0]!.group, pasid: 9, code: "success" });
    driver.respond(devices[0], { group: asked[1]!.group, code: "invalid" });
    expect([...resumed]).toEqual([
      [stalled.token, true],
      [other.token, false],
    ]);
    expect(bench.request(devices[0], 0x7000, true, 9)).toMatchObject({ status: 0, pa: 0x40_0000 });
    expect(driver.faultCount).toBe(0);
    driver.attach(devices[0], driver.blocked, 9);
    driver.attach(devices[0], driver.blocked);
    domain.free();
  });

  it("are told before the domain goes, and are not for functions that may not", () => {
    const bench = open(STALLING);
    const { driver, devices } = bench;
    const asked = listen(bench);
    const domain = driver.allocatePaging(devices[0]);
    driver.attach(devices[0], domain);
    bench.request(devices[0], 0x7000, true);
    driver.attach(devices[0], driver.blocked);
    expect(asked.length).toBe(1);
    driver.respond(devices[0], { group: asked[0]!.group, code: "failure" });
    expect([...bench.resumed.values()]).toEqual([false]);
    domain.free();
    const strict = open({ ...STALLING, canStall: false });
    const plain = strict.driver.allocatePaging(FIRST);
    strict.driver.attach(strict.devices[0], plain);
    expect(strict.request(strict.devices[0], 0x7000, true).status).toBe(TranslateStatus.fault);
    strict.driver.attach(strict.devices[0], strict.driver.blocked);
    plain.free();
  });

  it("that nobody hears of are ended, and the host is told of the fault", () => {
    const bench = open({ capabilities: { stalls: "force" } });
    const domain = bench.driver.allocatePaging(FIRST);
    bench.driver.attach(FIRST, domain);
    expect(bench.request(FIRST, 0x7000, true).status).toBe(TranslateStatus.stalled);
    bench.scheduler.run();
    expect([...bench.resumed.values()]).toEqual([false]);
    expect(bench.driver.faultCount).toBe(1);
    bench.driver.attach(FIRST, bench.driver.blocked);
    domain.free();
  });
});

describe("dirty tracking", () => {
  it("tells the pages that a function wrote to, once", () => {
    const { driver, access } = open({ capabilities: { updates: "dirty" } });
    const domain = driver.allocatePaging(FIRST, { dirtyTracking: true });
    driver.attach(FIRST, domain);
    domain.map(0x1000, 0x40_0000, 8 * PAGE, RW);
    domain.map(0x20_0000, 0x80_0000, 0x20_0000, RW);
    const read = (clear: boolean): number[] => {
      const told: number[] = [];
      domain.dirty!.read(0, 0x40_0000, clear, (iova, bytes) => told.push(iova, bytes));
      return told;
    };
    domain.dirty!.set(true);
    expect(read(true)).toEqual([]);
    expect(access(FIRST, 0x3008, false)).toBe(0x40_2008);
    expect(access(FIRST, 0x4008, true)).toBe(0x40_3008);
    expect(access(FIRST, 0x2a_0000, true)).toBe(0x8a_0000);
    expect(read(false)).toEqual([0x4000, PAGE, 0x20_0000, 0x20_0000]);
    expect(read(true)).toEqual([0x4000, PAGE, 0x20_0000, 0x20_0000]);
    expect(read(true)).toEqual([]);
    expect(access(FIRST, 0x4008, true)).toBe(0x40_3008);
    expect(read(true)).toEqual([0x4000, PAGE]);
    driver.attach(FIRST, driver.blocked);
    domain.free();
  });

  it("is what the unit has, or has not", () => {
    const unable = smmuBench();
    expect(unable.driver.probe(FIRST).dirtyTracking).toBe(false);
    expect(codeOf(() => unable.driver.allocatePaging(FIRST, { dirtyTracking: true }))).toBe("EOPNOTSUPP");
    unable.close();
  });
});

it("page requests of functions are denied, group by group", () => {
  const { driver, unit, scheduler } = open({ capabilities: { pri: true, ats: true } });
  const answers: number[][] = [];
  unit.onPageResponse = (...answer) => answers.push(answer);
  const ask = (pasid: number, group: number, last: boolean) =>
    unit.requestPage({ rid: FIRST.rid, pasid, lo: 0x1000, hi: 0, access: 1, group, last });
  ask(-1, 3, false);
  ask(-1, 3, true);
  ask(5, 4, true);
  scheduler.run();
  expect(answers).toEqual([
    [FIRST.rid, -1, 3, PageResponse.failure],
    [FIRST.rid, 5, 4, PageResponse.failure],
  ]);
  expect(driver.faultCount).toBe(0);
});

it("closing forgets what the unit has still to say", () => {
  const bench = smmuBench();
  bench.driver.probe(FIRST);
  const domain = bench.driver.allocatePaging(FIRST);
  bench.driver.attach(FIRST, domain);
  bench.request(FIRST, 0x1000, true);
  bench.driver.attach(FIRST, bench.driver.blocked);
  domain.free();
  bench.request(SECOND, 0x1000, true);
  bench.close();
  expect(() => bench.scheduler.run()).not.toThrow();
});
