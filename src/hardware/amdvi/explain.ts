/**
 * A request to an AMD-Vi unit told step by step: every entry fetched, where it lies, its fields and what it means; then
 * what the unit remembers, where that is something else; then what the device would get now. Literal, after the
 * specification (48882, revision 3.07, §2.1 and §2.2), with no effect on the unit; `transactions.ts` must agree with it.
 */
import type { HostMemory } from "../../memory/host-memory.ts";
import { explainWalk, type WalkOutcome } from "../../pagetable/explain.ts";
import { explainNested, type NestedOutcome, type Remembered } from "../../pagetable/explain-nested.ts";
import { Permission, WalkFault } from "../../pagetable/format.ts";
import type { GuestCache } from "../../pagetable/guest-cache.ts";
import { Fetch } from "../../pagetable/nested.ts";
import type { ExplainStep } from "../../pagetable/step.ts";
import {
  type Ending,
  explainTwice,
  fromIotlb,
  hex,
  lastPage,
  loadStructure,
  type Page,
  refused,
  type Steps,
  stale,
  translated,
} from "../explained.ts";
import type { FirstStageSpaces } from "../first-stage-spaces.ts";
import type { Iotlb } from "../iotlb.ts";
import { describeRmp, describeRmpEntry, PAGE_LG2, RmpEntry, RmpVerdict } from "../rmp.ts";
import type { RmpMemory } from "../rmp-memory.ts";
import { Access, NO_PASID, type Transaction } from "../unit.ts";
import type { DeviceCache, DeviceSlot } from "./caches.ts";
import type { Capabilities } from "./capabilities.ts";
import {
  beyondGcr3,
  type Device,
  decodeDte,
  dteAddress,
  GCR3_RESERVED,
  gcr3Index,
  hasEntry,
  type TableOptions,
} from "./device-table.ts";
import { describeFault, rmpEvent } from "./faults.ts";
import { EventCode } from "./queue-spec.ts";
import { Dte, Gcr3Entry } from "./spec.ts";
import { pasidOf } from "./transactions.ts";
import {
  type Exclusion,
  isInterrupt,
  PART_LG2,
  PASSES,
  passageOf,
  TRANSLATED,
  uniformLg2,
  wantOf,
} from "./translate.ts";

/** What of a unit a translation depends on, besides memory. */
export interface Explained {
  readonly enabled: boolean;
  readonly table: TableOptions;
  readonly exclusion: Exclusion;
  readonly devices: DeviceCache;
  readonly iotlb: Iotlb;
  readonly spaces: FirstStageSpaces;
  readonly guests: GuestCache;
  readonly owned: RmpMemory | undefined;
}

/** The request ends with this code, for this reason. */
class Refusal {
  readonly code: number;
  readonly why: string;
  constructor(code: number, why: string) {
    this.code = code;
    this.why = why;
  }
}

/** What a unit goes by besides memory: what it knows of the device; and how the request ends by the tables. */
interface Known {
  readonly slot: DeviceSlot | undefined;
  readonly tables: Ending;
}

const WORD = 0x1_0000_0000;

const endOf = ({ code, why }: Refusal): Ending => refused(code, `${describeFault(code)}: ${why}`);

class Explainer {
  readonly #unit: Explained;
  readonly #memory: HostMemory;
  readonly #has: Capabilities;
  readonly #transaction: Transaction;
  readonly #address: bigint;
  readonly #want: number;
  readonly #privileged: boolean;

  constructor(unit: Explained, memory: HostMemory, has: Capabilities, transaction: Transaction) {
    const { lo, hi, access } = transaction;
    this.#unit = unit;
    this.#memory = memory;
    this.#has = has;
    this.#transaction = transaction;
    this.#address = (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);
    this.#want = wantOf(access);
    this.#privileged = (access & Access.privileged) !== 0 && has.privilege;
  }

  /** The way of the request; with `tables` as the unit goes it. */
  *way(tables: Ending | undefined): Steps<Ending> {
    const { owned } = this.#unit;
    if (owned) owned.refused = RmpVerdict.ok;
    if (!this.#unit.enabled) return yield* this.#passes("CONTROL.IommuEn = 0: nothing is translated");
    const read = yield* this.#readDevice();
    const slot = this.#unit.devices.slot(this.#transaction.rid);
    const held = tables && slot?.held ? slot.device : undefined;
    if (held && (read instanceof Refusal || describe(read) !== describe(held)))
      yield stale("device table cache", describe(held));
    const device = held ?? read;
    if (device instanceof Refusal) return endOf(device);
    if (!device.valid) return yield* this.#passes("DTE.V = 0: the device's requests pass");
    return yield* this.#translate(device, tables && { slot, tables });
  }

  /** Everything passes; with secure nested paging but to what a guest owns. */
  *#passes(note: string): Steps<Ending> {
    if (this.#unit.owned) return yield* this.#identity(note);
    return translated(this.#pa(), WORD - (this.#transaction.lo >>> 0), note);
  }
  #pa(): number {
    const { lo, hi } = this.#transaction;
    return (hi >>> 0) * WORD + (lo >>> 0);
  }

  *#readDevice(): Steps<Device | Refusal> {
    const { table } = this.#unit;
    const { rid } = this.#transaction;
    if (!hasEntry(table, rid)) {
      const why = `device id ${hex(rid)} is beyond the ${table.bytes / Dte.bytes} entries of the device table`;
      return new Refusal(EventCode.ILLEGAL_DEV_TABLE_ENTRY, why);
    }
    const at = dteAddress(table, rid);
    const value = loadStructure(this.#memory, at, Dte.bytes);
    if (value === undefined) {
      yield { what: "DTE", address: at, note: "no memory answers" };
      return this.#unreadable(EventCode.DEV_TAB_HARDWARE_ERROR, `DTE at ${hex(at)}`);
    }
    const words = new Uint32Array(Dte.words);
    Dte.toWords(value, words);
    const device = decodeDte(words, this.#has, table);
    const illegal = typeof device === "string";
    const note = illegal ? device : describe(device);
    yield { what: "DTE", address: at, value, fields: Dte.decode(value), note };
    return illegal ? new Refusal(EventCode.ILLEGAL_DEV_TABLE_ENTRY, `DTE at ${hex(at)}: ${device}`) : device;
  }

  // Translation

  *#translate(device: Device, known: Known | undefined): Steps<Ending> {
    const { pasid: asked, translated: before } = this.#transaction;
    const passage = passageOf(device, this.#unit.exclusion, this.#transaction);
    if (passage === PASSES) {
      const interrupt = isInterrupt(this.#transaction);
      const note = interrupt ? "an interrupt message (§2.1)" : "the address is one that passes (§2.1)";
      return yield* this.#identity(before ? "translated before" : note);
    }
    if (passage !== TRANSLATED) {
      const why = `type ${passage}: ${before ? "translated before, and DTE.I = 0" : "not for such an address or PASID"}`;
      return endOf(new Refusal(EventCode.INVALID_DEVICE_REQUEST, why));
    }
    if (!device.translates) return endOf(new Refusal(EventCode.IO_PAGE_FAULT, "DTE.TV = 0"));
    const pasid = pasidOf(device, asked);
    return pasid === NO_PASID ? yield* this.#host(device, known) : yield* this.#guest(device, known, pasid);
  }

  *#identity(note: string): Steps<Ending> {
    const { lo, hi } = this.#transaction;
    const pa = this.#pa();
    const kept = yield* this.#owner(pa, PAGE_LG2);
    if (kept) return endOf(kept);
    const size = 2 ** uniformLg2(this.#unit.exclusion, lo, hi, this.#checked(pa, PART_LG2));
    return translated(pa, size - (lo & (size - 1)), note);
  }

  /** Why the reverse map table keeps a page, mapped by a leaf of 2^lg2 bytes, from the device. */
  *#owner(pa: number, lg2: number): Steps<Refusal | undefined> {
    const { owned } = this.#unit;
    if (!owned) return undefined;
    const { rmp } = owned;
    const read = rmp.read(pa);
    yield {
      what: `RMP entry of host page ${hex(pa - (pa % 2 ** PAGE_LG2))}`,
      value: read.entry,
      fields: RmpEntry.decode(read.entry),
      note: describeRmpEntry(read),
    };
    const verdict = rmp.check(pa, lg2);
    return verdict === RmpVerdict.ok ? undefined : new Refusal(rmpEvent(verdict), describeRmp(rmp, pa, lg2));
  }

  /** lg2 of what one check of the reverse map table speaks for, of 2^lg2 bytes. */
  #checked(pa: number, lg2: number): number {
    const { owned } = this.#unit;
    return owned ? Math.min(lg2, owned.rmp.grain(pa)) : lg2;
  }

  /** Something of the unit's own could not be read: nothing is there, or the reverse map table keeps it from the unit. */
  #unreadable(code: number, what: string): Refusal {
    const { owned } = this.#unit;
    if (!owned || owned.refused === RmpVerdict.ok) return new Refusal(code, what);
    const why = `${what}: ${describeRmp(owned.rmp, owned.refusedAt, PAGE_LG2)}`;
    return new Refusal(rmpEvent(owned.refused), why);
  }

  #walkRefusal({ fault, reason }: WalkOutcome, before = ""): Refusal {
    const why = `${before}${reason}`;
    if (fault !== WalkFault.tableUnreadable) return new Refusal(EventCode.IO_PAGE_FAULT, why);
    return this.#unreadable(EventCode.PAGE_TAB_HARDWARE_ERROR, why);
  }

  #answer({ page, lg2 }: Page, note: string): Ending {
    const { lo, hi, pasid } = this.#transaction;
    const size = 2 ** (pasid === NO_PASID ? uniformLg2(this.#unit.exclusion, lo, hi, lg2) : lg2);
    return translated(page + (lo & (2 ** lg2 - 1)), size - (lo & (size - 1)), note);
  }

  *#host(device: Device, known: Known | undefined): Steps<Ending> {
    const { host, table, domain, denied } = device;
    const forbidden = (this.#want & denied) !== 0;
    if (!host)
      return forbidden ? endOf(this.#forbidden()) : yield* this.#identity("DTE.Mode = 0: not translated");
    const { lo, hi } = this.#transaction;
    const held = this.#held(device, known, () => this.#unit.iotlb.lookup(domain, lo, hi));
    if (held) return yield* this.#fromIotlb(held, known!.tables);
    return yield* this.#judge(
      device,
      yield* explainWalk(host.format, this.#memory, table, this.#address, this.#want),
    );
  }

  *#guest(device: Device, known: Known | undefined, pasid: number): Steps<Ending> {
    const { iotlb, spaces, guests } = this.#unit;
    const { lo, hi } = this.#transaction;
    const { domain, host, table } = device;
    const held = this.#held(device, known, () => {
      const space = spaces.find(domain, pasid, this.#privileged ? 1 : 0);
      return space ? iotlb.lookup(space.index, lo, hi) : -1;
    });
    if (held) return yield* this.#fromIotlb(held, known!.tables);
    const read = yield* this.#guestTable(device, pasid);
    const kept = known?.slot?.held ? known.slot.roots.get(pasid) : undefined;
    if (kept !== undefined && kept !== read) yield stale("GCR3 cache", `guest tables at ${hex(kept)}`);
    const root = kept ?? read;
    if (root instanceof Refusal) return endOf(root);
    const need = this.#want | (this.#privileged ? 0 : Permission.user);
    const first = device.guest!.stage.format;
    if (!host)
      return yield* this.#judge(device, yield* explainWalk(first, this.#memory, root, this.#address, need));
    const remembered: Remembered = (guest, wanted, fetch) =>
      known ? guests.find(domain, guest, wanted, fetch === Fetch.page) : undefined;
    const formats = { first, second: host.format };
    return yield* this.#judge(
      device,
      yield* explainNested(formats, this.#memory, root, table, this.#address, need, remembered),
    );
  }

  /** §2.2.6.3 Where the guest's root table is, by the GCR3 tables. */
  *#guestTable(device: Device, pasid: number): Steps<number | Refusal> {
    const guest = device.guest!;
    const levels = guest.gcr3Levels;
    if (beyondGcr3(pasid, guest, this.#has))
      return new Refusal(
        EventCode.IO_PAGE_FAULT,
        `PASID ${pasid} is beyond the GCR3 tables of ${levels} levels`,
      );
    let table = guest.gcr3;
    for (let level = levels - 1; level >= 0; level--) {
      const place = table + 8 * gcr3Index(pasid, level);
      const direct = !device.host || (level === levels - 1 && !guest.guestPhysical);
      const at = direct ? place : yield* this.#throughHost(device, place);
      if (at instanceof Refusal) return at;
      const value = loadStructure(this.#memory, at, 8);
      const what = `GCR3 entry, level ${level + 1}`;
      if (value === undefined) {
        yield { what, address: at, note: "no memory answers" };
        return this.#unreadable(EventCode.PAGE_TAB_HARDWARE_ERROR, `${what} at ${hex(at)}`);
      }
      const why = gcr3Fault(value);
      table = Number(Gcr3Entry.fields.ADDR.of(value));
      const note = why || `${level === 0 ? "guest tables" : "next GCR3 table"} at ${hex(table)}`;
      yield { what, address: at, value, fields: Gcr3Entry.decode(value), note };
      if (why) return new Refusal(EventCode.IO_PAGE_FAULT, `${what} at ${hex(at)}: ${why}`);
    }
    return table;
  }

  *#throughHost({ host, table }: Device, address: number): Steps<number | Refusal> {
    const walk = yield* explainWalk(host!.format, this.#memory, table, BigInt(address), Permission.read);
    return walk.fault === WalkFault.none
      ? walk.pa
      : this.#walkRefusal(walk, "host tables, for a GCR3 entry: ");
  }

  #forbidden(): Refusal {
    return new Refusal(EventCode.IO_PAGE_FAULT, "IR or IW of the DTE refuses it");
  }

  *#judge({ denied }: Device, walk: WalkOutcome | NestedOutcome): Steps<Ending> {
    if (walk.fault !== WalkFault.none) return endOf(this.#walkRefusal(walk));
    if ((this.#want & denied) !== 0) return endOf(this.#forbidden());
    const kept = yield* this.#owner(walk.pa, walk.lg2);
    if (kept) return endOf(kept);
    const lg2 = Math.min(this.#checked(walk.pa, walk.lg2), PART_LG2);
    return this.#answer({ page: walk.pa - (this.#transaction.lo & (2 ** lg2 - 1)), lg2 }, walk.reason);
  }

  // What is remembered

  /** The page that is remembered and grants the access: the device's last one, else the IOTLB's. */
  #held(device: Device, known: Known | undefined, lookup: () => number): Page | undefined {
    const want = this.#want;
    if (!known || (want & device.denied) !== 0) return undefined;
    const { iotlb } = this.#unit;
    const { slot } = known;
    const { pasid, access, translated: before } = this.#transaction;
    const last = lastPage(slot, iotlb.stamp, this.#transaction, want);
    const same = slot?.pasid === pasid && slot.privilege === (access & Access.privileged) && !before;
    if (last && same) return last;
    const entry = lookup();
    if (entry < 0 || (want & iotlb.denied(entry)) !== 0) return undefined;
    return { page: iotlb.page(entry), lg2: iotlb.lg2(entry) };
  }

  *#fromIotlb(held: Page, tables: Ending): Steps<Ending> {
    const note = `holds ${hex(2 ** held.lg2)} bytes at ${hex(held.page)}`;
    const end = this.#answer(held, `the IOTLB ${note}`);
    yield fromIotlb(note, end, tables);
    return end;
  }
}

const gcr3Fault = (value: bigint): string => {
  if (Gcr3Entry.fields.V.of(value) === 0n) return "V = 0: the PASID has no tables";
  return (value & GCR3_RESERVED) !== 0n ? `reserved bits are set (${hex(value & GCR3_RESERVED)})` : "";
};

const describe = (device: Device): string => {
  const { valid, translates, domain, host, table, guest, denied } = device;
  if (!valid) return "V = 0: everything passes";
  if (!translates) return `domain ${domain}, TV = 0: nothing is translated`;
  const levels = guest?.gcr3Levels;
  return [
    `domain ${domain}`,
    host ? `${host.format.name} at ${hex(table)}` : "no host tables",
    ...(guest ? [`${guest.stage.format.name} by GCR3 tables of ${levels} levels at ${hex(guest.gcr3)}`] : []),
    ...(denied & Permission.read ? ["IR = 0"] : []),
    ...(denied & Permission.write ? ["IW = 0"] : []),
    ...(device.deviceTlb ? ["ATS"] : []),
  ].join(", ");
};

export const explainRequest = (
  unit: Explained,
  memory: HostMemory,
  has: Capabilities,
  transaction: Transaction,
): Generator<ExplainStep> => {
  const explainer = new Explainer(unit, memory, has, transaction);
  return explainTwice((tables) => explainer.way(tables));
};
