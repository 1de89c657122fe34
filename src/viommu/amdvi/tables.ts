/**
 * What the tables of a guest with an AMD-Vi unit say of its devices (48882, revision 3.07): device table entries (§2.2.2),
 * GCR3 tables by PASID (§2.2.6.3), and the page tables they lead to, read with the code of the unit itself. Everything read
 * here is the guest's: it may be malformed, cyclic or change meanwhile. Left out: PASID 0 of requests that have it, because
 * no host gives it out; address ranges with meanings of their own (§2.1), which a host's IOMMU decides about.
 */
import type { Capabilities } from "../../hardware/amdvi/capabilities.ts";
import {
  type Device,
  fetchDte,
  findGuestTable,
  pasidsWithTable,
  readDevice,
  type TableOptions,
} from "../../hardware/amdvi/device-table.ts";
import { describeFault, Fault } from "../../hardware/amdvi/faults.ts";
import { plainNestedWalker } from "../../hardware/amdvi/formats.ts";
import { Dte } from "../../hardware/amdvi/spec.ts";
import { pasidOf } from "../../hardware/amdvi/transactions.ts";
import { NO_PASID } from "../../hardware/unit.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { mappedEnd, type PageTableFormat, Permission } from "../../pagetable/format.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { GuestStage, Translation } from "../by-domain.ts";
import { type Find, inStage, inStages } from "../shadow/stages.ts";
import type { Found } from "../shadow/table.ts";

/** PASIDs of one device that a guest may have at once. */
const MOST_PASIDS = 4096;
/** Bits of guest physical addresses, all of which a device without tables has. */
const PHYSICAL_LG2 = 52;
const { read, write } = Permission;

/** An entry under which a device's addresses are guest physical ones. */
export const PASSING_ENTRY = Dte.make({ V: true, TV: true, IR: true, IW: true });
/** An entry under which nothing passes. */
export const BLOCKING_ENTRY = Dte.make({ V: true });
const f = Dte.fields;
/** What of an entry is the guest's to say: its translation, and that its device asks for translations and pages. */
const GUEST_BITS = [
  ...[f.V, f.TV, f.MODE, f.HOST_TRP, f.IR, f.IW, f.DOMAIN, f.I, f.PPR, f.GPRP],
  ...[f.GV, f.GIOV, f.GLX, f.GCR3_TRP_14, f.GCR3_TRP_30, f.GCR3_TRP_51, f.GUEST_PAGING_MODE],
].reduce((mask, { first, width }) => mask | (((1n << BigInt(width)) - 1n) << BigInt(first)), 0n);

const blocked = (why: string): Translation => ({ kind: "blocked", why });

export class GuestTables {
  readonly #memory: HostMemory;
  readonly #unit: Capabilities;
  readonly #fault = new Fault();
  readonly #words = new Uint32Array(Dte.words);

  constructor(memory: HostMemory, unit: Capabilities) {
    this.#memory = memory;
    this.#unit = unit;
  }

  /** What the device table says of a device, without PASID (`NO_PASID`) or with one. */
  translationOf(table: TableOptions, rid: number, tag: number): Translation {
    const device = readDevice(this.#memory, this.#unit, table, rid, this.#fault);
    if (!device) return blocked(describeFault(this.#fault.code));
    if (!device.valid)
      return tag === NO_PASID
        ? { kind: "passThrough", domain: 0, pasid: NO_PASID }
        : blocked("without an entry there are no PASIDs");
    if (!device.translates) return blocked("TV = 0");
    if (tag === 0) return blocked("no host gives out PASID 0");
    const pasid = pasidOf(device, tag);
    return pasid === NO_PASID ? this.#host(device) : this.#guest(device, pasid);
  }

  #host({ domain, host, table, denied }: Device): Translation {
    const common = { domain, pasid: NO_PASID };
    if (!host && denied === 0) return { kind: "passThrough", ...common };
    const find = host ? inStage(this.#memory, table, host, 0) : everywhere;
    const key = host ? hostKey(host.format, table) : "identity";
    const ranges = [{ start: 0, end: host ? mappedEnd(host.format) : 2 ** PHYSICAL_LG2 }];
    return { kind: "stage", ...common, stage: restricted({ key, ranges, find, plain: true }, denied) };
  }

  #guest(device: Device, pasid: number): Translation {
    const { domain, guest, host, table, denied } = device;
    if (!guest) return blocked("GV = 0");
    const root = findGuestTable(this.#memory, this.#unit, device, pasid, this.#fault);
    if (root < 0) return blocked(describeFault(this.#fault.code));
    const { stage } = guest;
    const { format } = stage;
    const walk = host && plainNestedWalker(stage, host);
    const find =
      host && walk
        ? inStages(this.#memory, [root, table], { first: format, second: host.format, walk })
        : inStage(this.#memory, root, stage, Permission.user);
    const key = `guest ${root} ${format.levels.length} above ${host ? hostKey(host.format, table) : "nothing"}`;
    const ranges = [{ start: 0, end: mappedEnd(format) }];
    return {
      kind: "stage",
      domain,
      pasid,
      stage: restricted({ key, ranges, find, plain: false }, denied),
    };
  }

  /** The device's entry for a host that nests, without what is not the guest's to say. */
  entryOf(table: TableOptions, rid: number): bigint {
    const device = readDevice(this.#memory, this.#unit, table, rid, this.#fault);
    if (!device) return BLOCKING_ENTRY;
    if (!device.valid) return PASSING_ENTRY;
    if (!device.translates) return BLOCKING_ENTRY;
    fetchDte(this.#memory, table, rid, this.#words, this.#fault);
    // Without guest translation the unit ignores what the entry says of it.
    if (!device.guest) f.GV.set(this.#words, 0);
    return Dte.fromWords(this.#words) & GUEST_BITS;
  }

  /** PASIDs of a device that have tables, but 0. Throws ENOSPC when there are more than a guest may have. */
  pasidsOf(table: TableOptions, rid: number): number[] {
    const device = readDevice(this.#memory, this.#unit, table, rid, this.#fault);
    if (!device) return [];
    const found: number[] = [];
    for (const pasid of pasidsWithTable(this.#memory, this.#unit, device, this.#fault)) {
      if (pasid !== 0) found.push(pasid);
      if (found.length > MOST_PASIDS)
        throw new LinuxError("ENOSPC", `a device of a guest may have at most ${MOST_PASIDS} PASIDs`);
    }
    return found;
  }
}

const hostKey = ({ levels }: PageTableFormat, table: number): string => `host ${table} ${levels.length}`;

const everywhere: Find = () => ({
  page: true,
  start: 0,
  length: 2 ** PHYSICAL_LG2,
  target: 0,
  readable: true,
  writable: true,
});

/** §2.2.2.1 What IR and IW of the device table entry refuse is refused on every page. */
const restricted = (stage: GuestStage, denied: number): GuestStage => {
  if (denied === 0) return stage;
  const find = (iova: number): Found => {
    const found = stage.find(iova);
    if (!found.page) return found;
    const readable = found.readable && (denied & read) === 0;
    const writable = found.writable && (denied & write) === 0;
    if (!readable && !writable) return { page: false, end: found.start + found.length };
    return { ...found, readable, writable };
  };
  return { ...stage, key: `${stage.key} without ${denied}`, find };
};
