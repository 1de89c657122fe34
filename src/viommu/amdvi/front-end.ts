/**
 * An AMD-Vi unit that a VMM shows to its guest: the model of the silicon (`hardware/amdvi`) over guest memory, whose commands
 * go on to a back end. The guest reaches it by register writes, its command buffer and its logs alone.
 *
 * Invalidations are collected and handed on together, as they are, before the next COMPLETION_WAIT; what the host refuses
 * stops the buffer with the head at that command and an ILLEGAL_COMMAND_ERROR event (48882, revision 3.07, §2.5.6). A device
 * table entry that has changed (INVALIDATE_DEVTAB_ENTRY) is read, and the host is given what it says. Pages that devices ask
 * for come into the guest's PPR log, and its COMPLETE_PPR_REQUEST goes back. What a host has no way to tell a guest of, its
 * event log does not have: accesses that the guest's own tables refuse.
 */
import type { EventSink } from "../../base/events.ts";
import type { AmdViCapabilities, Capabilities } from "../../hardware/amdvi/capabilities.ts";
import type { TableOptions } from "../../hardware/amdvi/device-table.ts";
import { Command, DeviceCommand, Opcode } from "../../hardware/amdvi/queue-spec.ts";
import { ControlRegister, DeviceTableBase, Register } from "../../hardware/amdvi/spec.ts";
import { AmdViUnit } from "../../hardware/amdvi/unit.ts";
import type { PageRequest, PageResponder } from "../../hardware/ats.ts";
import type { Downstream } from "../../hardware/downstream.ts";
import { NO_PASID, type SendMessage } from "../../hardware/unit.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import type { GuestSide, Translation } from "../by-domain.ts";
import { ALL_DEVICES, type CommandBackEnd, type DeviceRange, followedBy } from "../commands.ts";
import { Following } from "../following.ts";
import { GuestTables, PASSING_ENTRY } from "./tables.ts";

export interface FrontEndOptions {
  readonly name: string;
  /** The guest's. */
  readonly memory: HostMemory;
  readonly events: EventSink;
  /** Interrupts the guest. */
  readonly interrupt: SendMessage;
  readonly capabilities: AmdViCapabilities;
  /** See the front end. */
  readonly remembersAbsent?: boolean;
  readonly guestTablesOnly?: boolean;
}

/** Registers that say which table there is, in whichever half. */
const TABLE_REGISTERS: ReadonlySet<number> = new Set([Register.DEVTAB_BASE, Register.CONTROL]);

export class AmdViFrontEnd implements Downstream, GuestSide {
  readonly model = "amdvi";
  readonly name: string;
  /** The guest must tell about entries that it adds, too (NpCache of the unit's PCI capability). */
  readonly remembersAbsent: boolean;
  /** The unit has no host tables for the guest, but guest tables alone: firmware says so (HATDis). */
  readonly guestTablesOnly: boolean;
  readonly #unit: AmdViUnit;
  readonly #tables: GuestTables;
  readonly #following: Following<bigint, DeviceRange>;

  constructor(options: FrontEndOptions) {
    this.name = options.name;
    this.remembersAbsent = options.remembersAbsent ?? false;
    this.guestTablesOnly = options.guestTablesOnly ?? false;
    this.#following = new Following(options.name, options.events);
    this.#unit = new AmdViUnit({ ...options, cache: "none", downstream: this });
    this.#tables = new GuestTables(options.memory, this.#unit.capabilities);
  }

  /** Who makes the host follow; once, before the guest runs. */
  connect(backEnd: CommandBackEnd): void {
    this.#following.connect(followedBy(backEnd));
  }

  // What the guest reaches

  /** IotlbSup of the unit's PCI capability. */
  get deviceTlb(): boolean {
    return this.#unit.capabilities.deviceTlb;
  }

  mmioRead(offset: number, width: 4 | 8): bigint {
    return this.#unit.mmioRead(offset, width);
  }

  mmioWrite(offset: number, width: 4 | 8, value: bigint): void {
    if (!TABLE_REGISTERS.has(offset - (offset % 8))) {
      this.#unit.mmioWrite(offset, width, value);
      return;
    }
    const before = keyOf(this.table);
    this.#unit.mmioWrite(offset, width, value);
    if (before !== keyOf(this.table)) this.#following.restart(ALL_DEVICES);
  }

  // What the guest wants

  get capabilities(): Capabilities {
    return this.#unit.capabilities;
  }

  /** The device table as registers say it; undefined: translation is off. */
  get table(): TableOptions | undefined {
    const control = this.#unit.mmioRead(Register.CONTROL, 8);
    const { IOMMU_EN, GT_EN, GCR3_TRP_MODE } = ControlRegister.fields;
    if (IOMMU_EN.of(control) === 0n) return undefined;
    const table = this.#unit.mmioRead(Register.DEVTAB_BASE, 8);
    const { BASE, SIZE } = DeviceTableBase.fields;
    return {
      base: Number(BASE.of(table)),
      bytes: (Number(SIZE.of(table)) + 1) * PAGE,
      guestTranslation: GT_EN.of(control) === 1n,
      gcr3Guest: GCR3_TRP_MODE.of(control) === 1n,
    };
  }

  /** Of a device now; without PASID: `NO_PASID`. */
  translationOf(rid: number, pasid: number): Translation {
    const { table } = this;
    if (table) return this.#tables.translationOf(table, rid, pasid);
    return pasid === NO_PASID
      ? { kind: "passThrough", domain: 0, pasid }
      : { kind: "blocked", why: "translation is off, and without it there are no PASIDs" };
  }

  /** PASIDs of a device that the guest's tables have something for. Throws ENOSPC when there are too many. */
  pasidsOf(rid: number): number[] {
    const { table } = this;
    return table ? this.#tables.pasidsOf(table, rid) : [];
  }

  /** What of the device's entry a host that nests is to do. */
  entryOf(rid: number): bigint {
    const { table } = this;
    return table ? this.#tables.entryOf(table, rid) : PASSING_ENTRY;
  }

  /** A page that a device of the guest asks for: it goes to the guest's PPR log. */
  requestPage(request: PageRequest): void {
    this.#unit.requestPage(request);
  }
  /** Takes the guest's answers, and those that the unit gives where the guest cannot. */
  set onPageResponse(respond: PageResponder) {
    this.#unit.onPageResponse = respond;
  }

  // What its command buffer asks

  take(words: Uint32Array, at: number): number {
    switch (Command.fields.OPCODE.get(words)) {
      case Opcode.COMPLETION_WAIT:
        return this.drain();
      case Opcode.INVALIDATE_DEVTAB_ENTRY: {
        const rid = DeviceCommand.fields.DEVICE.get(words);
        return this.#following.reread({ first: rid, end: rid + 1 }, at);
      }
      case Opcode.INVALIDATE_IOMMU_ALL:
        return this.#following.reread(ALL_DEVICES, at);
      case Opcode.INVALIDATE_IOMMU_PAGES:
      case Opcode.INVALIDATE_IOTLB_PAGES:
        this.#following.collect(Command.fromWords(words), at);
        return -1;
      default:
        return -1;
    }
  }

  drain(): number {
    return this.#following.drain();
  }
}

const PAGE = 4096;

const keyOf = (table: TableOptions | undefined): string => JSON.stringify(table ?? "off");
