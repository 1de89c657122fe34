/**
 * `/dev/softiommu-snp`, of the extension `snp-rmp`: through it a VMM makes pages of its guest private or shared, as it would
 * through KVM, and reads the reverse map table. A file is a guest's: an ASID belongs to the first file that uses it, and what
 * is private goes back when the file is closed. Private pages are pinned; they count against RLIMIT_MEMLOCK for each file, as
 * KVM counts a guest's encrypted memory, and not together with what is pinned for devices.
 */
import { PAGE_LG2, type Rmp, type RmpRead } from "../../hardware/rmp.ts";
import { LinuxError } from "../../uapi/errno.ts";
import {
  SOFTIOMMU_SNP_PAGE_STATE,
  SOFTIOMMU_SNP_PRIVATE,
  SOFTIOMMU_SNP_RMP_READ,
  SOFTIOMMU_SNP_SHARED,
  SoftiommuSnpPageState,
  SoftiommuSnpRmpRead,
} from "../../uapi/extensions.ts";
import { allocate } from "../allocations.ts";
import { type Call, Capability, type DeviceNode, type KernelFile, type Pin, Restart } from "../call.ts";
import { GuestPages, type PageCounts } from "./guest-pages.ts";

/** MISC_MAJOR; the minor is given when the driver registers, after that of iommufd. */
const MISC_MAJOR = 10;
const DYNAMIC_MINOR = 126;
const PAGE = 4096;
const USER_END = 2n ** 47n;
/** Bits of guest addresses in an entry. */
const GUEST_END = 2n ** 51n;
const LAST_ASID = 1023;
const NOBODYS: RmpRead = { entry: 0n, lg2: PAGE_LG2 };

const hex = (value: number | bigint): string => `0x${value.toString(16)}`;

/** What exists now; all zero when every file is closed. */
export interface SnpLive {
  readonly snpFiles: number;
  /** Of 4 KiB. */
  readonly privatePages: number;
}

/** The files there are, by the ASIDs that are theirs. */
interface Guests {
  readonly files: Set<SnpFile>;
  readonly owners: Map<number, SnpFile>;
}

class SnpFile implements KernelFile {
  readonly kind = "snp";
  readonly name: string;
  readonly pages: GuestPages;
  readonly #rmp: Rmp;
  readonly #guests: Guests;

  constructor(rmp: Rmp, counts: PageCounts, guests: Guests, name: string) {
    this.name = name;
    this.pages = new GuestPages(rmp, counts);
    this.#rmp = rmp;
    this.#guests = guests;
    guests.files.add(this);
  }

  ioctl(call: Call, number: number, argument: bigint): number {
    if (number === SOFTIOMMU_SNP_PAGE_STATE) this.#pageState(call, argument);
    else if (number === SOFTIOMMU_SNP_RMP_READ) this.#readEntry(call, argument);
    else throw new LinuxError("ENOTTY", `it knows no request ${hex(number)}`, this.name);
    return 0;
  }

  close(): void {
    this.pages.close();
    this.#guests.files.delete(this);
    for (const [asid, owner] of this.#guests.owners) if (owner === this) this.#guests.owners.delete(asid);
  }

  #pageState(call: Call, at: bigint): void {
    const bytes = new Uint8Array(SoftiommuSnpPageState.size);
    call.memory.read(at, bytes);
    const { user_va: va, length, gpa, asid, state } = SoftiommuSnpPageState.read(bytes);
    this.#requirePages(va, length, gpa);
    this.#requireAsid(asid);
    const isPrivate = state === SOFTIOMMU_SNP_PRIVATE;
    if (!isPrivate && state !== SOFTIOMMU_SNP_SHARED)
      throw new LinuxError("EINVAL", `state ${state} is neither 0 (shared) nor 1 (private)`, this.name);
    if (isPrivate) this.#requireRoom(call, Number(length) / PAGE);
    allocate("a list of pages");
    const place = { asid, gpa: Number(gpa) };
    const pin = call.memory.pin(Number(va), Number(length), isPrivate);
    if (isPrivate) this.#take(pin, () => this.pages.makePrivate(pin, place));
    else this.#look(pin, () => this.pages.makeShared(pin, place));
    if (isPrivate) this.#guests.owners.set(asid, this);
  }

  #readEntry(call: Call, at: bigint): void {
    const bytes = new Uint8Array(SoftiommuSnpRmpRead.size);
    call.memory.read(at, bytes);
    const argument = SoftiommuSnpRmpRead.read(bytes);
    const { user_va: va } = argument;
    this.#requireUser(va, BigInt(PAGE));
    if (argument.__reserved !== 0) throw new LinuxError("EINVAL", "__reserved must be 0", this.name);
    const { entry, lg2 } = this.#entryOf(call, Number(va));
    const answer = { ...argument, out_entry_lo: entry, out_entry_hi: 0n, out_page_size: 2 ** lg2 };
    call.memory.write(at, SoftiommuSnpRmpRead.bytes(answer));
  }

  /** A page that would have to be adopted first was never pinned, and so is nobody's; it stays where it is. */
  #entryOf({ memory }: Call, va: number): RmpRead {
    try {
      const pin = memory.pin(va, PAGE, false);
      return this.#look(pin, () => this.#rmp.read(pin.extents[0]! * PAGE));
    } catch (error) {
      if (error instanceof Restart) return NOBODYS;
      throw error;
    }
  }

  /** The pin is for as long as the work takes. */
  #look<T>(pin: Pin, work: () => T): T {
    try {
      return work();
    } finally {
      pin.unpin(0, pin.pages);
    }
  }

  /** The pin is taken over, unless it throws. */
  #take(pin: Pin, work: () => void): void {
    try {
      work();
    } catch (error) {
      pin.unpin(0, pin.pages);
      throw error;
    }
  }

  #requireUser(va: bigint, length: bigint): void {
    if (va % BigInt(PAGE) !== 0n)
      throw new LinuxError("EINVAL", `user_va ${hex(va)} is not a multiple of ${hex(PAGE)}`, this.name);
    if (va + length > USER_END)
      throw new LinuxError("EFAULT", `user_va ${hex(va)} is beyond what a process has`, this.name);
  }

  #requirePages(va: bigint, length: bigint, gpa: bigint): void {
    if (length === 0n || length % BigInt(PAGE) !== 0n)
      throw new LinuxError(
        "EINVAL",
        `length ${hex(length)} is not a multiple of ${hex(PAGE)} above 0`,
        this.name,
      );
    if (gpa % BigInt(PAGE) !== 0n || gpa + length > GUEST_END)
      throw new LinuxError(
        "EINVAL",
        `gpa ${hex(gpa)}: guest addresses are multiples of ${hex(PAGE)} and end at ${hex(GUEST_END)}`,
        this.name,
      );
    this.#requireUser(va, length);
  }

  #requireAsid(asid: number): void {
    if (asid < 1 || asid > LAST_ASID)
      throw new LinuxError("EINVAL", `asid ${asid}: guests have 1 to ${LAST_ASID}`, this.name);
    const owner = this.#guests.owners.get(asid);
    if (owner && owner !== this)
      throw new LinuxError("EBUSY", `asid ${asid} is that of ${owner.name}`, this.name);
  }

  #requireRoom({ task }: Call, more: number): void {
    if (task.capable(Capability.ipcLock)) return;
    const limit = Math.floor(task.memlockLimit() / PAGE);
    if (this.pages.pages + more > limit)
      throw new LinuxError(
        "ENOMEM",
        `${this.pages.pages} pages are private and ${more} more are asked for; RLIMIT_MEMLOCK allows ${limit}`,
        this.name,
      );
  }
}

/** The control file of a machine, and what it has done. */
export class SnpSubsystem {
  readonly rmp: Rmp;
  /** /dev/softiommu-snp. */
  readonly node: DeviceNode;
  readonly counts: PageCounts = { split: 0, joined: 0 };
  readonly #guests: Guests = { files: new Set(), owners: new Map() };
  /** Files that were ever opened. */
  #opened = 0;

  constructor(rmp: Rmp) {
    this.rmp = rmp;
    this.node = {
      path: "/dev/softiommu-snp",
      major: MISC_MAJOR,
      minor: DYNAMIC_MINOR,
      mode: 0o600,
      open: () => {
        allocate("a file");
        this.#opened += 1;
        return new SnpFile(rmp, this.counts, this.#guests, `guest file ${this.#opened}`);
      },
    };
  }

  live(): SnpLive {
    let privatePages = 0;
    for (const { pages } of this.#guests.files) privatePages += pages.pages;
    return { snpFiles: this.#guests.files.size, privatePages };
  }
}
