/** Copies of the tables of a guest's AMD-Vi unit: what its commands make of them, on a host that is a list of pages. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  DeviceCommand,
  InvalidateAll,
  InvalidateIotlb,
  InvalidatePages,
  Opcode,
} from "../../hardware/amdvi/queue-spec.ts";
import { ExtendedFeature } from "../../hardware/amdvi/spec.ts";
import { amdV1 } from "../../pagetable/amdv1.ts";
import { Protection } from "../../pagetable/format.ts";
import { Mapper } from "../../pagetable/mapper.ts";
import { x86Paging } from "../../pagetable/x86-64.ts";
import { LiteralHost } from "../shadow/literal-host.suite.ts";
import { FrontEndRig, gcr3At } from "./rig.suite.ts";
import { AmdShadow } from "./shadow.ts";

const PAGE = 4096;
const RAM = { va: 0x7f00_0000_0000, bytes: 2 ** 22 };
const [ONE, OTHER] = [8, 16];
const DEVICES = [ONE, OTHER].map((rid, id) => ({ rid, fd: rid, id }));
const IOVA = 0x1_2345_6000;
const GCR3 = 0x20_0000;
const RW = Protection.read | Protection.write;
const EVERYWHERE = { S: true, ADDRESS: 0x7fff_ffff_ffff_f000n };

describe("copies of the tables of a guest with an AMD-Vi unit", () => {
  let rig: FrontEndRig;
  let host: LiteralHost;
  let backEnd: AmdShadow;
  /** "device PASID" of what was attached and detached, in order. */
  let given: string[];
  beforeEach(() => {
    rig = new FrontEndRig();
    host = new LiteralHost();
    given = [];
    host.attach = (...[fd, , pasid]: readonly (number | undefined)[]) =>
      void given.push(`${fd} ${pasid ?? "-"}`);
    host.detach = (...[fd, pasid]: readonly (number | undefined)[]) =>
      void given.push(`${fd} ${pasid ?? "-"} gone`);
    // Tables of the guest are above its rings.
    rig.memory.allocate(0x28_0000 / PAGE);
    const options = { calls: host, ram: RAM, devices: DEVICES, pasids: true, faults: undefined };
    backEnd = new AmdShadow({ ...options, guest: rig.front });
    rig.front.connect(backEnd);
    rig.start();
    given.length = 0;
  });
  afterEach(() => rig.close());

  const tell = (...commands: readonly bigint[]): void => {
    rig.put(...commands);
    rig.run();
    expect(rig.done).toBe(true);
  };
  const changed = (rid: number): bigint =>
    DeviceCommand.make({ OPCODE: Opcode.INVALIDATE_DEVTAB_ENTRY, DEVICE: rid });
  const pages = (fields: Parameters<typeof InvalidatePages.make>[0]): bigint =>
    InvalidatePages.make({ OPCODE: Opcode.INVALIDATE_IOMMU_PAGES, ...fields });
  /** Pages of the newest copy, as the guest counts. */
  const copied = () =>
    [...host.content()].map(([iova, { va, writable }]) => [iova, va - RAM.va, writable] as const);
  const hostTable = (domain: number, rid = ONE, more = {}): Mapper => {
    const table = new Mapper(rig.memory, amdV1(4));
    rig.entry(rid, { MODE: 4, HOST_TRP: table.root, DOMAIN: domain, ...more });
    return table;
  };
  const guestTable = (): Mapper => new Mapper(rig.memory, x86Paging(4));

  it("§2.2.3 host tables are copied when the entry says so, and follow invalidations of their domain", () => {
    const table = hostTable(5);
    table.map(IOVA, 0x5000, PAGE, RW);
    tell(changed(ONE));
    expect(given).toEqual([`${ONE} -`]);
    expect(copied()).toEqual([[IOVA, 0x5000, true]]);
    table.map(IOVA + PAGE, 0x6000, PAGE, Protection.read);
    tell(pages({ DOMAIN: 6, ADDRESS: BigInt(IOVA + PAGE) }));
    expect(copied()).toHaveLength(1);
    tell(pages({ DOMAIN: 5, ADDRESS: BigInt(IOVA + PAGE) }));
    expect(copied()).toEqual([
      [IOVA, 0x5000, true],
      [IOVA + PAGE, 0x6000, false],
    ]);
    table.unmap(IOVA, 2 * PAGE);
    // S = 1, of two pages: bit 12 is 0, and the address's bits below the lowest 0 are 1.
    tell(pages({ DOMAIN: 5, S: true, ADDRESS: BigInt(IOVA) & ~0x1000n }));
    expect(copied()).toEqual([]);
    expect(backEnd.held).toBe(0);
  });

  it("§2.4.3 an address with S set and no bit that is 0 means everything", () => {
    const table = hostTable(5);
    table.map(IOVA, 0x5000, PAGE, RW);
    table.map(0x5000, 0x6000, PAGE, RW);
    tell(changed(ONE));
    table.unmap(IOVA, PAGE);
    table.unmap(0x5000, PAGE);
    tell(pages({ DOMAIN: 5, ...EVERYWHERE }));
    expect(copied()).toEqual([]);
  });

  it("§2.2.6 a PASID's guest table is one of the device's PASID on the host; GN invalidates by domain and PASID", () => {
    const [one, other] = [guestTable(), guestTable()];
    one.map(IOVA, 0x5000, PAGE, RW);
    rig.root(GCR3, 3, one.root);
    rig.entry(ONE, { ...gcr3At(GCR3), DOMAIN: 5 });
    tell(changed(ONE));
    expect(given).toEqual([`${ONE} -`, `${ONE} 3`]);
    expect(copied()).toEqual([[IOVA, 0x5000, true]]);
    one.unmap(IOVA, PAGE);
    for (const fields of [
      { DOMAIN: 6, PASID: 3 },
      { DOMAIN: 5, PASID: 4 },
    ])
      tell(pages({ GN: true, ...fields, ...EVERYWHERE }));
    expect(copied()).toHaveLength(1);
    tell(pages({ GN: true, DOMAIN: 5, PASID: 3, ADDRESS: BigInt(IOVA) }));
    expect(copied()).toEqual([]);
    // Another table for it, by the invalidation of the PASID alone, and then none.
    given.length = 0;
    other.map(IOVA, 0x6000, PAGE, RW);
    rig.root(GCR3, 3, other.root);
    tell(pages({ GN: true, DOMAIN: 5, PASID: 3, ...EVERYWHERE }));
    expect(copied()).toEqual([[IOVA, 0x6000, true]]);
    rig.root(GCR3, 3, 0);
    tell(pages({ GN: true, DOMAIN: 5, PASID: 3, ...EVERYWHERE }));
    expect(given).toEqual([`${ONE} 3`, `${ONE} 3 gone`]);
    expect(backEnd.held).toBe(0);
  });

  it("§2.2.2.1 with GIoV the table of PASID 0 is for requests without one, and no PASID of the host", () => {
    const table = guestTable();
    table.map(IOVA, 0x5000, PAGE, RW);
    rig.root(GCR3, 0, table.root);
    rig.entry(ONE, { ...gcr3At(GCR3), GIOV: true, DOMAIN: 5 });
    tell(changed(ONE));
    expect(given).toEqual([`${ONE} -`]);
    table.unmap(IOVA, PAGE);
    tell(pages({ GN: true, DOMAIN: 5, PASID: 0, ADDRESS: BigInt(IOVA) }));
    expect(copied()).toEqual([]);
    expect(given).toEqual([`${ONE} -`]);
  });

  it("§2.2.6.4 guest tables above host tables end where both lead, and GN = 0 means all of them", () => {
    const below = new Mapper(rig.memory, amdV1(4));
    below.map(0, 0, 2 ** 22, RW);
    const table = guestTable();
    table.map(IOVA, 0x5000, PAGE, RW);
    rig.root(GCR3, 3, table.root);
    rig.entry(ONE, { ...gcr3At(GCR3), MODE: 4, HOST_TRP: below.root, DOMAIN: 5 });
    tell(changed(ONE));
    expect(copied()).toEqual([[IOVA, 0x5000, true]]);
    table.unmap(IOVA, PAGE);
    tell(pages({ DOMAIN: 5, ADDRESS: 0x5000n }));
    expect(copied()).toEqual([]);
  });

  it("§2.2.2.1 what IR and IW refuse is refused on every page, of a device without tables too", () => {
    const table = hostTable(5, ONE, { IW: false });
    table.map(IOVA, 0x5000, PAGE, RW);
    tell(changed(ONE));
    expect(copied()).toEqual([[IOVA, 0x5000, false]]);
    rig.entry(OTHER, { IW: false });
    tell(changed(OTHER));
    expect(copied()).toHaveLength(RAM.bytes / PAGE);
    expect(copied().every(([iova, target, writable]) => iova === target && !writable)).toBe(true);
    rig.entry(OTHER, { IR: false, IW: false });
    tell(changed(OTHER));
    expect(copied()).toEqual([]);
  });

  it("devices with one table share its copy; TV = 0 takes it from one of them", () => {
    const table = hostTable(5);
    table.map(IOVA, 0x5000, PAGE, RW);
    rig.entry(OTHER, { MODE: 4, HOST_TRP: table.root, DOMAIN: 5 });
    tell(changed(ONE), changed(OTHER));
    expect(backEnd.held).toBe(1);
    rig.entry(ONE, { TV: false });
    tell(changed(ONE));
    expect([given.at(-1), backEnd.held]).toEqual([`${ONE} - gone`, 1]);
    rig.entry(OTHER, { TV: false });
    tell(changed(OTHER));
    expect(backEnd.held).toBe(0);
  });

  it("§2.4.8 INVALIDATE_IOMMU_ALL reads all entries and all tables again", () => {
    const table = hostTable(5);
    table.map(IOVA, 0x5000, PAGE, RW);
    tell(changed(ONE));
    table.unmap(IOVA, PAGE);
    rig.entry(OTHER, {});
    tell(InvalidateAll.make({ OPCODE: Opcode.INVALIDATE_IOMMU_ALL }));
    expect(copied()).toEqual([]);
    expect(given.at(-1)).toBe(`${OTHER} -`);
  });

  it("what a function remembers is the host's business", () => {
    const table = hostTable(5);
    table.map(IOVA, 0x5000, PAGE, RW);
    tell(changed(ONE));
    table.unmap(IOVA, PAGE);
    tell(InvalidateIotlb.make({ OPCODE: Opcode.INVALIDATE_IOTLB_PAGES, DEVICE: ONE, ADDRESS: BigInt(IOVA) }));
    expect(copied()).toHaveLength(1);
  });

  it("a mapping that the host refuses stops the guest's buffer at the command", () => {
    const table = hostTable(5);
    tell(changed(ONE));
    table.map(IOVA, 0x5000, PAGE, RW);
    host.refuses = () => true;
    const [, at] = rig.put(pages({ DOMAIN: 6, ADDRESS: 0n }), pages({ DOMAIN: 5, ADDRESS: BigInt(IOVA) }));
    rig.run();
    expect([rig.done, rig.head]).toEqual([false, at]);
  });

  it("a unit without host tables beyond 4 levels finds an entry with more not valid", () => {
    const small = new FrontEndRig({ efr: ExtendedFeature.make({ GT_SUP: true, IA_SUP: true }) });
    small.start();
    small.entry(ONE, { MODE: 5 });
    expect(small.front.translationOf(ONE, -1).kind).toBe("blocked");
    small.close();
  });
});
