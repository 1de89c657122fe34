import { describe, expect, it } from "vitest";
import { codeOf } from "../../../test/support/code-of.ts";
import { silent } from "../../base/events.ts";
import { Access, Transaction, TranslateStatus } from "../../hardware/unit.ts";
import { ContextEntry, Register, RootEntry } from "../../hardware/vtd/spec.ts";
import { type VtdCapabilities, VtdUnit } from "../../hardware/vtd/unit.ts";
import { type DriverBench, describeDriver } from "../../iommu/driver.suite.ts";
import { Protection } from "../../iommu/driver.ts";
import { MsiController } from "../../kernel/msi.ts";
import { Banks } from "../../memory/banks.ts";
import type { PciFunction } from "../../pci/function.ts";
import { messagesInto, rationed } from "../rig-memory.suite.ts";
import { VtdDriver, type VtdFirmware } from "./driver.ts";

/** The driver asks a function for its name and requester id only. */
const at = (bus: number, device: number): PciFunction =>
  ({ rid: (bus << 8) | (device << 3), name: `0000:0${bus}:0${device}.0` }) as PciFunction;
const DEVICES = [at(1, 0), at(2, 3)] as const;

const capabilities: VtdCapabilities = { addressWidths: [39, 48], hostAddressWidth: 46 };

interface VtdBench extends DriverBench {
  readonly driver: VtdDriver;
  readonly unit: VtdUnit;
}

const bench = (
  change: Partial<VtdCapabilities> = {},
  firmware: Partial<VtdFirmware> = {},
  cache: "normal" | "none" | "paranoid" = "normal",
): VtdBench => {
  const memory = new Banks({ ram: [{ start: 0, length: 2 ** 28 }] });
  const msi = new MsiController(memory);
  const unit = new VtdUnit({
    name: "dmar0",
    memory,
    events: silent,
    interrupt: messagesInto(memory),
    capabilities: { ...capabilities, ...change },
    cache,
  });
  const limitFrames = rationed(memory);
  const driver = new VtdDriver({
    name: "dmar0",
    unit,
    memory,
    msi,
    events: silent,
    firmware: { hostAddressWidth: 46, covers: () => true, reservedMemory: [], ...firmware },
  });
  for (const device of DEVICES) driver.probe(device);
  const transaction = new Transaction();
  return {
    driver,
    unit,
    memory,
    devices: DEVICES,
    access(device, iova, write) {
      transaction.rid = device.rid;
      transaction.lo = iova >>> 0;
      transaction.hi = Math.floor(iova / 2 ** 32);
      transaction.access = write ? Access.write : Access.read;
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

describeDriver("VT-d, legacy mode", () => bench());
describeDriver("VT-d, 3 levels, 4 KiB pages", () =>
  bench({ addressWidths: [39], largePages: { twoMegabytes: false, oneGigabyte: false } }),
);
describeDriver("VT-d, caching mode", () => bench({ cachingMode: true }));
describeDriver("VT-d, no page-selective invalidation", () => bench({ pageSelective: false }));

const SCALABLE = {
  secondStage: true,
  firstStage: true,
  nested: true,
  firstStageGigabyte: true,
  pasidBits: 20,
  ridPasid: true,
  secondStageAccessedDirty: true,
  pageRequests: true,
} as const;
describeDriver("VT-d, scalable mode", () => bench({ scalable: SCALABLE, deviceTlb: true }));
describeDriver("VT-d, scalable mode, 5 levels, remembering nothing", () =>
  bench({ addressWidths: [57], scalable: { ...SCALABLE, fiveLevels: true } }, {}, "none"),
);
describeDriver("VT-d, scalable mode without a first stage", () =>
  bench({ scalable: { secondStage: true }, cachingMode: true }),
);

describe("the VT-d driver", () => {
  it("§9.1, §9.3 writes a root entry a bus and a context entry a function", () => {
    const { driver, unit, memory, devices, close } = bench();
    const domain = driver.allocatePaging(devices[1]);
    driver.attach(devices[1], domain);
    const rootTable = Number(unit.mmioRead(Register.RTADDR, 8));
    const read = (pa: number): bigint => {
      const bytes = new Uint8Array(16);
      expect(memory.readBytes(pa, bytes)).toBe(true);
      return RootEntry.read(bytes);
    };
    const root = read(rootTable + 2 * 16);
    expect(RootEntry.fields.P.of(root)).toBe(1n);
    const context = read(Number(RootEntry.fields.CTP.of(root)) + 3 * 8 * 16);
    expect(ContextEntry.decode(context).filter(({ value }) => value !== 0n)).toEqual([
      expect.objectContaining({ name: "P", value: 1n }),
      expect.objectContaining({ name: "SSPTPTR", value: BigInt(domain.root) }),
      expect.objectContaining({ name: "AW", value: 2n }),
      expect.objectContaining({ name: "DID", value: BigInt(domain.id) }),
    ]);
    driver.attach(devices[1], driver.blocked);
    expect(read(Number(RootEntry.fields.CTP.of(root)) + 3 * 8 * 16)).toBe(0n);
    domain.free();
    close();
  });

  it("§7.3 reads faults from the recording registers when the unit interrupts, and clears them", () => {
    const { driver, unit, devices, access, close } = bench({ faultRecords: 2 });
    const domain = driver.allocatePaging(devices[0]);
    driver.attach(devices[0], domain);
    domain.map(0x5000, 0x40_0000, 4096, Protection.read);
    for (let i = 0; i < 5; i++) expect(access(devices[0], 0x5008, true)).toBe("fault");
    expect(driver.faultCount).toBe(5);
    expect(driver.faults[0]).toMatchObject({ rid: devices[0].rid, address: 0x5000n, write: true, code: 5 });
    expect(access(devices[0], 0x9000, false)).toBe("fault");
    expect(driver.faults.at(-1)).toMatchObject({ address: 0x9000n, write: false, code: 6 });
    expect(unit.mmioRead(Register.FSTS, 4)).toBe(0n);
    driver.attach(devices[0], driver.blocked);
    domain.free();
    close();
  });

  it("refuses a paging domain to a device with reserved memory (RMRR)", () => {
    const { driver, devices, close } = bench(
      {},
      { reservedMemory: [{ device: DEVICES[0].name, start: 0x7f00_0000, length: 0x1_0000 }] },
    );
    const domain = driver.allocatePaging(devices[0]);
    expect(codeOf(() => driver.attach(devices[0], domain))).toBe("EPERM");
    driver.attach(devices[1], domain);
    driver.attach(devices[1], driver.blocked);
    expect(driver.reserved(devices[0])).toEqual([
      { start: 0x7f00_0000, length: 0x1_0000, kind: "direct" },
      { start: 0xfee0_0000, length: 0x10_0000, kind: "msi" },
    ]);
    domain.free();
    close();
  });

  it("refuses identity where the unit has no pass-through, and a unit without queued invalidation", () => {
    const { driver, devices, close } = bench({ passThrough: false });
    expect(codeOf(() => driver.attach(devices[0], driver.identity))).toBe("EINVAL");
    close();
    expect(codeOf(() => bench({ queuedInvalidation: false }))).toBe("ENODEV");
  });

  it("has no domain for more than the unit's ids", () => {
    const { driver, devices, close } = bench({ domainBits: 4 });
    const domains = Array.from({ length: 14 }, () => driver.allocatePaging(devices[0]));
    expect(new Set(domains.map(({ id }) => id)).size).toBe(14);
    expect(codeOf(() => driver.allocatePaging(devices[0]))).toBe("ENOSPC");
    for (const domain of domains) domain.free();
    expect(driver.domains).toBe(0);
    close();
  });

  it("keeps to the width the unit accepts", () => {
    const { driver, devices, close } = bench({ guestAddressWidth: 42 });
    const domain = driver.allocatePaging(devices[0]);
    expect(domain.apertures).toEqual([{ start: 0, end: 2 ** 42 }]);
    expect(domain.pageSizes).toBe(0x4020_1000n);
    domain.free();
    close();
  });
});
