/**
 * Why an AMD-Vi unit refuses a request (48882, revision 3.07, §2.5): the events with their words, and what an entry of the
 * event log says besides.
 */
import { WalkFault } from "../../pagetable/format.ts";
import { PAGE_LG2, RmpVerdict } from "../rmp.ts";
import { EventCode } from "./queue-spec.ts";

const words: { readonly [code: number]: readonly [section: string, words: string] } = {
  [EventCode.ILLEGAL_DEV_TABLE_ENTRY]: ["§2.5.2", "the device table entry is not valid"],
  [EventCode.IO_PAGE_FAULT]: ["§2.5.3", "page fault"],
  [EventCode.DEV_TAB_HARDWARE_ERROR]: ["§2.5.4", "the device table entry cannot be read"],
  [EventCode.PAGE_TAB_HARDWARE_ERROR]: ["§2.5.5", "a table cannot be read"],
  [EventCode.ILLEGAL_COMMAND_ERROR]: ["§2.5.6", "the command is not valid"],
  [EventCode.COMMAND_HARDWARE_ERROR]: ["§2.5.7", "the command cannot be read"],
  [EventCode.IOTLB_INV_TIMEOUT]: ["§2.5.8", "a device did not answer an invalidation"],
  [EventCode.INVALID_DEVICE_REQUEST]: ["§2.5.9", "a request that the device may not make"],
  [EventCode.INVALID_PPR_REQUEST]: ["§2.5.10", "a page request that the device may not make"],
  [EventCode.RMP_PAGE_FAULT]: ["§2.5", "the reverse map table keeps the page from devices"],
  [EventCode.RMP_HARDWARE_ERROR]: ["§2.5", "an entry of the reverse map table cannot be read"],
};
const names = new Map<number, string>(Object.entries(EventCode).map(([name, code]) => [code, name]));

export const describeFault = (code: number): string => {
  const [section, text] = words[code]!;
  return `${names.get(code)} (${section}): ${text}`;
};

/** The event of what the reverse map table refuses. */
export const rmpEvent = (verdict: RmpVerdict): number =>
  verdict === RmpVerdict.unreadable ? EventCode.RMP_HARDWARE_ERROR : EventCode.RMP_PAGE_FAULT;

/** A fault as far as an event tells it. One is kept and used again. */
export class Fault {
  code = 0;
  /** Of a page fault: PR, PE and RZ. */
  present = false;
  permission = false;
  reserved = false;
  /** Of an invalid request. */
  type = 0;
  /** Of a guest translation: the event names the PASID and the guest's address. */
  guest = false;
  /** -1: the address of the request; else the one that was fetched, or the guest physical one that host tables refuse. */
  address = -1;
  /** Of a fault of the reverse map table: the host page that was not to be reached, and lg2 of what maps it. */
  page = -1;
  pageLg2 = 0;

  set(code: number, guest = false, address = -1): number {
    this.code = code;
    this.present = false;
    this.permission = false;
    this.reserved = false;
    this.type = 0;
    this.guest = guest;
    this.address = address;
    this.page = -1;
    return code;
  }

  /** The reverse map table keeps a page from the device, or a table's from the unit. */
  kept(verdict: RmpVerdict, guest: boolean, page: number, pageLg2 = PAGE_LG2): number {
    this.set(rmpEvent(verdict), guest);
    this.page = page;
    this.pageLg2 = pageLg2;
    return this.code;
  }

  /** A table could not be read. */
  get unreadable(): boolean {
    const { code } = this;
    return code === EventCode.DEV_TAB_HARDWARE_ERROR || code === EventCode.PAGE_TAB_HARDWARE_ERROR;
  }

  /** A walk that ended so (`WalkFault`), with the entry's address where it could not be read. */
  walked(fault: number, entryAddress: number, guest: boolean, address = -1): number {
    if (fault === WalkFault.tableUnreadable)
      return this.set(EventCode.PAGE_TAB_HARDWARE_ERROR, guest, entryAddress);
    this.set(EventCode.IO_PAGE_FAULT, guest, address);
    this.reserved = fault === WalkFault.reserved;
    this.permission =
      fault !== WalkFault.notPresent && fault !== WalkFault.inputWidth && fault !== WalkFault.reserved;
    this.present = this.reserved || this.permission;
    return this.code;
  }

  /** The page is there, but not for this. */
  forbidden(guest: boolean): number {
    return this.walked(WalkFault.read, 0, guest);
  }

  invalid(type: number, guest: boolean): number {
    this.set(EventCode.INVALID_DEVICE_REQUEST, guest);
    this.type = type;
    return this.code;
  }
}
