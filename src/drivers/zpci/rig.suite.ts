/**
 * What tests of the zPCI driver stand on: a unit with its driver over one memory, two functions, and a guest that writes its
 * own tables. Accesses are made through the unit, so that a driver which forgets a refresh is found out.
 */
import { Random } from "../../base/clock.ts";
import { silent } from "../../base/events.ts";
import { Access, Transaction, TranslateStatus } from "../../hardware/unit.ts";
import { Iota } from "../../hardware/zpci/spec.ts";
import { type CachePolicy, type FunctionHost, ZpciUnit } from "../../hardware/zpci/unit.ts";
import type { DriverBench } from "../../iommu/driver.suite.ts";
import { Protection, type Requester } from "../../iommu/driver.ts";
import { MSI_BASE, MsiController } from "../../kernel/msi.ts";
import { Banks } from "../../memory/banks.ts";
import {
  SOFTIOMMU_HWPT_DATA_S390_IOTA,
  SOFTIOMMU_HWPT_INVALIDATE_DATA_S390_REFRESH,
  SoftiommuHwptS390Iota,
  SoftiommuHwptS390Refresh,
} from "../../uapi/vendor/extensions.ts";
import { arrayOf, dataOf } from "../user-data.suite.ts";
import type { ZpciDomain } from "./domain.ts";
import { ZpciDriver, type ZpciFirmware } from "./driver.ts";
import type { ZpciNestedDomain } from "./nested-domain.ts";

export interface ZpciBenchOptions {
  readonly cache?: CachePolicy;
  readonly firmware?: Partial<ZpciFirmware>;
  readonly nesting?: boolean;
  readonly refreshes?: boolean;
  readonly host?: FunctionHost;
}

export const END = 2 ** 42;
const RW = Protection.read | Protection.write;
export const EMPTY = 0x420;
export const INVALID_PAGE = 0x400;

export class ZpciBench implements DriverBench {
  readonly memory = new Banks({ ram: [{ start: 0, length: 2 ** 28 }] });
  readonly msi = new MsiController(this.memory);
  readonly unit: ZpciUnit;
  readonly driver: ZpciDriver;
  readonly devices: readonly [Requester, Requester] = [
    { rid: 0x100, name: "0000:01:00.0" },
    { rid: 0x218, name: "0000:02:03.0" },
  ];
  readonly #transaction = new Transaction();
  #left = Number.POSITIVE_INFINITY;

  constructor({ firmware, nesting = true, ...unit }: ZpciBenchOptions = {}) {
    const { memory } = this;
    this.unit = new ZpciUnit({
      name: "zpci0",
      memory,
      events: silent,
      interrupt: (address, data) =>
        memory.writeBytes(Number(address), new Uint8Array(Uint32Array.of(data).buffer)),
      msiAddress: MSI_BASE,
      random: new Random(1),
      ...unit,
    });
    const allocate = memory.allocate.bind(memory);
    memory.allocate = (count) => {
      if (this.#left < count) return -1;
      this.#left -= count;
      return allocate(count);
    };
    this.driver = new ZpciDriver({
      ...{ name: "zpci0", unit: this.unit, memory, msi: this.msi, events: silent, nesting },
      firmware: { covers: () => true, start: 0, end: END, ...firmware },
    });
  }

  access(device: Requester, iova: number, write: boolean): number | "fault" {
    const transaction = this.#transaction;
    transaction.rid = device.rid;
    transaction.lo = iova >>> 0;
    transaction.hi = Math.floor(iova / 2 ** 32);
    transaction.access = write ? Access.write : Access.read;
    return this.unit.translate(transaction) === TranslateStatus.ok ? transaction.pa : "fault";
  }

  limitFrames(count: number): void {
    this.#left = count;
  }

  close(): void {
    this.driver.close();
    this.msi.close();
    this.memory.close();
  }
}

/** Guest memory of a bench, and tables in it: guest address n is at host address `at(n)`. */
export class ZpciGuest {
  readonly parent: ZpciDomain;
  readonly bytes: number;
  readonly #bench: ZpciBench;
  readonly #base: number;
  #next = 0;

  /** Maps so much memory in a nest parent; the first page is left out. */
  constructor(bench: ZpciBench, pages = 256) {
    this.#bench = bench;
    this.bytes = pages * 4096;
    this.#base = bench.memory.allocate(pages);
    this.parent = bench.driver.allocatePaging(bench.devices[0], { nestParent: true });
    this.parent.map(0, this.#base, this.bytes, RW);
    this.#next = 4096 * 4;
  }

  at(guest: number): number {
    return this.#base + guest;
  }
  store(guest: number, entry: number): void {
    this.#bench.memory.store64be(this.at(guest), entry, Math.floor(entry / 2 ** 32));
  }
  load(guest: number): number {
    this.#bench.memory.load64be(this.at(guest));
    return (this.#bench.memory.hi >>> 0) * 2 ** 32 + (this.#bench.memory.lo >>> 0);
  }

  /** An empty table of so many pages. */
  table(pages: number): number {
    const table = this.#next;
    this.#next += pages * 4096;
    for (let at = table; at < this.#next; at += 8) this.store(at, EMPTY);
    return table;
  }

  /** Tables from this one on are not used any more. */
  reuse(table: number): void {
    this.#next = table;
  }

  /** Where the page-table entry of an address is; tables on the way are made. */
  place(root: number, iova: number): number {
    const region = root + 8 * Math.floor(iova / 2 ** 31);
    if (this.load(region) === EMPTY) this.store(region, this.table(4) + 7);
    const segment = this.load(region) - 7 + 8 * (Math.floor(iova / 2 ** 20) % 2048);
    if (this.load(segment) === EMPTY) this.store(segment, this.table(1));
    return this.load(segment) + 8 * (Math.floor(iova / 4096) % 256);
  }

  map(root: number, iova: number, guest: number): void {
    this.store(this.place(root, iova), guest);
  }
  unmap(root: number, iova: number): void {
    this.store(this.place(root, iova), INVALID_PAGE);
  }

  nested(iota: bigint | number): ZpciNestedDomain {
    const anchor = typeof iota === "bigint" ? iota : Iota.make({ ORIGIN: iota, T: true, DT: 1 });
    const bytes = SoftiommuHwptS390Iota.bytes({ iota: anchor });
    const data = dataOf(bytes, SOFTIOMMU_HWPT_DATA_S390_IOTA);
    return this.#bench.driver.allocateNested(this.#bench.devices[0], this.parent, data, {});
  }

  free(): void {
    this.parent.free();
    this.#bench.memory.free(this.#base, this.bytes / 4096);
  }
}

/** What the guest refreshes: how many were done, and what stopped it. */
export const refresh = (domain: ZpciNestedDomain, ...ranges: readonly (readonly [number, number])[]) => {
  const entries = ranges.map(([iova, length]) =>
    SoftiommuHwptS390Refresh.bytes({ iova: BigInt(iova), length: BigInt(length) }),
  );
  return domain.invalidate(arrayOf(entries, SOFTIOMMU_HWPT_INVALIDATE_DATA_S390_REFRESH));
};
