/**
 * The device table cache of an AMD-Vi unit (48882, revision 3.07, §2.2.2): what the entry of a device and its GCR3 tables
 * said when they were read; and, in front of the IOTLB, the page a device used last. What is not valid is not remembered.
 */
import { Access, NO_PASID, type Transaction } from "../unit.ts";
import type { Device } from "./device-table.ts";

/** What is remembered of a device. */
export class DeviceSlot {
  readonly rid: number;
  device: Device | undefined;
  /** The entry is remembered; else it is that of the request at hand. */
  held = false;
  /** A page fault was logged since the entry was read (SE). */
  logged = false;
  /** Root tables of guests, by PASID. */
  readonly roots = new Map<number, number>();

  // The page used last: good while the IOTLB's stamp is `stamp`.
  stamp = -1;
  pasid = NO_PASID;
  /** `Access.privileged`, or 0. */
  privilege = 0;
  /** Lower word of the page's address, and its mask; the upper word, signed. */
  pageLo = 0;
  pageHi = 0;
  mask = 0;
  /** Physical address and size of the page, in bytes. */
  pa = 0;
  size = 0;
  /** `Permission` bits that are refused. */
  denied = 0;

  constructor(rid: number) {
    this.rid = rid;
  }

  /** The page of 2^lg2 bytes (at most 2^30) at `base` was used last. */
  keep(transaction: Transaction, stamp: number, base: number, lg2: number, denied: number): void {
    const { lo, hi, pasid, access } = transaction;
    this.stamp = stamp;
    this.pasid = pasid;
    this.privilege = access & Access.privileged;
    this.mask = -1 << lg2;
    this.pageLo = lo & this.mask;
    this.pageHi = hi | 0;
    this.pa = base;
    this.size = 1 << lg2;
    this.denied = denied;
  }

  forget(): void {
    this.device = undefined;
    this.held = false;
    this.logged = false;
    this.roots.clear();
    this.stamp = -1;
  }
}

export class DeviceCache {
  readonly #buses: (DeviceSlot | undefined)[][] = [];

  /** The device's slot, whatever it holds. */
  slot(rid: number): DeviceSlot | undefined {
    return this.#buses[rid >>> 8]?.[rid & 0xff];
  }

  /** The device's slot, made when it is its first. */
  open(rid: number): DeviceSlot {
    const bus = (this.#buses[rid >>> 8] ??= []);
    return (bus[rid & 0xff] ??= new DeviceSlot(rid));
  }

  /** Forgets root tables of a domain's guests: of one PASID. */
  forgetRoots(domain: number, pasid: number): void {
    for (const slot of this.#each()) {
      if (slot.device?.domain !== domain) continue;
      slot.roots.delete(pasid);
    }
  }

  invalidateAll(): void {
    for (const slot of this.#each()) slot.forget();
  }

  *#each(): Generator<DeviceSlot> {
    for (const bus of this.#buses) for (const slot of bus ?? []) if (slot) yield slot;
  }
}
