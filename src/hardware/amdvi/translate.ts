/**
 * What a request of a device is to AMD-Vi (48882, revision 3.07, §2.1 and §2.2): whether its address is one of those with a
 * meaning of their own, what it wants, and how far an answer may reach. Pure; nothing is allocated.
 */
import { type PageTableFormat, Permission } from "../../pagetable/format.ts";
import { Access, NO_PASID, type Transaction } from "../unit.ts";
import type { Device } from "./device-table.ts";
import { InvalidRequest } from "./queue-spec.ts";
import { AddressRange } from "./spec.ts";

const WORD = 0x1_0000_0000;

/** §3.4.1 The exclusion range: [start, end); empty when it is disabled. */
export interface Exclusion {
  readonly start: number;
  readonly end: number;
  /** For all devices. */
  readonly all: boolean;
}

/** What becomes of a request apart from its tables; 0 and above are types of INVALID_DEVICE_REQUEST. */
export const TRANSLATED = -1;
export const PASSES = -2;

/** `Permission` bits (read, write, execute) that an access wants. Who fetches or updates also reads. */
export const wantOf = (access: number): number =>
  (access & Access.atomic) !== 0
    ? Permission.read | Permission.write
    : ((access & Access.write) !== 0 ? Permission.write : 0) |
      ((access & Access.execute) !== 0 ? Permission.execute : 0) |
      ((access & (Access.read | Access.execute)) !== 0 || (access & Access.write) === 0
        ? Permission.read
        : 0);

/** The address as a number, exact to a page. */
export const addressOf = (lo: number, hi: number): number => (hi >>> 0) * WORD + ((lo & 0xffff_f000) >>> 0);

const within = (address: number, { start, end }: { readonly start: number; readonly end: number }): boolean =>
  address >= start && address < end;

/** Whether a request is to the interrupt address range. */
export const isInterrupt = ({ lo, hi, pasid }: Transaction): boolean =>
  pasid === NO_PASID && within(addressOf(lo, hi), AddressRange.interrupt);

/** §2.1 Whether a request of a device with a valid entry passes, is translated, or is of no valid type. */
export const passageOf = (device: Device, exclusion: Exclusion, transaction: Transaction): number => {
  const { lo, hi, pasid, access, translated } = transaction;
  if (translated) return device.deviceTlb ? PASSES : InvalidRequest.translated;
  if (pasid !== NO_PASID) return device.guest || !device.translates ? TRANSLATED : InvalidRequest.invalid;
  const address = addressOf(lo, hi);
  const { systemManagement, portIo } = AddressRange;
  const writes = access === Access.write;
  if (isInterrupt(transaction)) return writes ? PASSES : InvalidRequest.interruptRead;
  if (within(address, systemManagement)) {
    if (device.systemManagement === 3) return TRANSLATED;
    return device.systemManagement !== 0 && writes ? PASSES : InvalidRequest.systemManagement;
  }
  if (within(address, portIo)) {
    if (device.portIo === 2) return TRANSLATED;
    return device.portIo === 1 ? PASSES : InvalidRequest.portIo;
  }
  const excluded = (exclusion.all || device.excluded) && within(address, exclusion);
  return excluded ? PASSES : TRANSLATED;
};

const parts = (
  start: number,
  end: number,
  range: { readonly start: number; readonly end: number },
): boolean => start < range.end && end > range.start && !(start >= range.start && end <= range.end);

/** lg2 of the largest block around an address, of 2^lg2 bytes at most, in which all addresses pass or none does. */
export const uniformLg2 = (exclusion: Exclusion, lo: number, hi: number, most: number): number => {
  const { interrupt, systemManagement, portIo } = AddressRange;
  for (let lg2 = most; lg2 > 12; lg2--) {
    const start = (hi >>> 0) * WORD + ((lo & (-1 << lg2)) >>> 0);
    const end = start + (1 << lg2);
    if (
      !parts(start, end, interrupt) &&
      !parts(start, end, systemManagement) &&
      !parts(start, end, portIo) &&
      !parts(start, end, exclusion)
    )
      return lg2;
  }
  return 12;
};

/** What is remembered of a page is remembered in parts of 2^30 bytes at most. */
export const PART_LG2 = 30;

/** `Permission` bits (of those of `wantOf`) that a walk refuses a requester of this privilege. */
export const deniedOf = (allowed: number, user: boolean): number =>
  user && (allowed & Permission.user) === 0 ? EVERYTHING : EVERYTHING & ~allowed;
const EVERYTHING = Permission.read | Permission.write | Permission.execute;

/** The same, of a page that was walked for `want`: where writing sets a dirty bit, only what was written is written again. */
export const rememberedDenials = (denied: number, want: number, dirty: boolean): number =>
  dirty && (want & Permission.write) === 0 ? denied | Permission.write : denied;

/** Whether the unit sets dirty bits in tables of the format. */
export const setsDirty = (format: PageTableFormat | undefined): boolean =>
  format?.levels[0]?.leaves[0]?.dirty !== undefined;

/** `Access` bits of `Permission` bits: of what a page allows. */
export const grantedBy = (denied: number): number =>
  ((denied & Permission.read) !== 0 ? 0 : Access.read) |
  ((denied & Permission.write) !== 0 ? 0 : Access.write) |
  ((denied & (Permission.read | Permission.execute)) !== 0 ? 0 : Access.execute);
