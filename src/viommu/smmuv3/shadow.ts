/**
 * The back end that copies the tables of a guest with an SMMUv3 into mappings of the host when the guest invalidates
 * (`viommu/shadow`). A SubstreamID becomes a PASID of the device with an address space of its own. The guest's commands end
 * here: those that name translations bring copies up to date, those that name descriptors have them read again. The unit
 * may remember that nothing was there, so that the guest must tell about entries that it adds, too.
 */
import type { Capabilities } from "../../hardware/smmuv3/capabilities.ts";
import { namedPages } from "../../hardware/smmuv3/command-queue.ts";
import { Opcode, StreamCommand, TlbiCommand } from "../../hardware/smmuv3/queue-spec.ts";
import { NO_PASID } from "../../hardware/unit.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { AssignedDevice } from "../assigned.ts";
import type { CommandBackEnd } from "../commands.ts";
import { forEvery } from "../every.ts";
import type { InvalidationCount } from "../host-calls.ts";
import { Copies, type CopiesOptions, type Wanted } from "../shadow/copies.ts";
import { type AddressRange, EVERYWHERE } from "../shadow/table.ts";
import type { GuestContexts } from "./tables.ts";

export interface ShadowOptions extends CopiesOptions {
  readonly devices: readonly AssignedDevice[];
  readonly unit: Capabilities;
  readonly contexts: GuestContexts;
  /** What the guest's entry of a stream asks for: of its first two words what is the guest's to say. */
  entryOf(sid: number): bigint;
}

/** The guest's id for a table. */
interface Tag {
  readonly asid: number;
}

const WORD = 2 ** 32;
const words = new Uint32Array(TlbiCommand.words);

export class ShadowBackEnd implements CommandBackEnd {
  readonly #options: ShadowOptions;
  readonly #copies: Copies<Tag>;

  /** Maps all of the guest's RAM once; devices get what the guest's entries say. */
  constructor(options: ShadowOptions) {
    this.#options = options;
    this.#copies = new Copies(options, NO_PASID);
    this.reread(0, Number.POSITIVE_INFINITY);
  }

  /** Mappings. */
  get held(): number {
    return this.#copies.mappings;
  }

  reread(first: number, end: number): void {
    const { devices } = this.#options;
    const concerned = devices.filter(({ rid }) => rid >= first && rid < end);
    forEvery(concerned, (device) => this.#rereadContexts(device));
  }

  command(commands: readonly bigint[]): InvalidationCount {
    for (const [done, command] of commands.entries())
      try {
        this.#perform(command);
      } catch (error) {
        if (!(error instanceof LinuxError)) throw error;
        return { done, error };
      }
    return { done: commands.length };
  }

  #perform(command: bigint): void {
    TlbiCommand.toWords(command, words);
    const { OPCODE, SID, SSID } = StreamCommand.fields;
    switch (OPCODE.get(words)) {
      case Opcode.CFGI_CD:
        this.#rereadContext(SID.get(words), SSID.get(words));
        return;
      case Opcode.CFGI_CD_ALL: {
        const sid = SID.get(words);
        this.reread(sid, sid + 1);
        return;
      }
      case Opcode.TLBI_NH_ALL:
      case Opcode.TLBI_NSNH_ALL:
        this.#copies.synchronize(() => EVERYWHERE);
        return;
      case Opcode.TLBI_NH_ASID: {
        const asid = TlbiCommand.fields.ASID.get(words);
        this.#copies.synchronize((tag) => (tag.asid === asid ? EVERYWHERE : undefined));
        return;
      }
      // Pages that are global are of every ASID, whichever one is named.
      case Opcode.TLBI_NH_VA:
      case Opcode.TLBI_NH_VAA: {
        const range = this.#rangeOf();
        this.#copies.synchronize(() => range);
        return;
      }
      case Opcode.ATC_INV:
        return; // the host does that when it unmaps
      default:
        throw new LinuxError("EIO", `a guest has no use for command 0x${OPCODE.get(words).toString(16)}`);
    }
  }

  /** The addresses that the command in `words` names. */
  #rangeOf(): AddressRange {
    const { lo, hi, lg2, pages } = namedPages(words, this.#options.unit);
    const start = (hi >>> 0) * WORD + (lo >>> 0);
    return { start, end: start + pages * 2 ** lg2 };
  }

  #rereadContexts(device: AssignedDevice): void {
    const { contexts, entryOf } = this.#options;
    const present = contexts.substreamsOf(entryOf(device.rid));
    const substreams = new Set([NO_PASID, ...this.#copies.pasidsOf(device), ...present]);
    forEvery(substreams, (ssid) => this.#follow(device, ssid));
  }

  /** A descriptor may be that of accesses without SubstreamID, too. */
  #rereadContext(sid: number, ssid: number): void {
    const concerned = this.#options.devices.filter(({ rid }) => rid === sid);
    if (concerned.length === 0) throw new LinuxError("EIO", `the guest has no device with StreamID ${sid}`);
    const substreams = ssid === 0 ? [NO_PASID, 0] : [ssid];
    for (const device of concerned) forEvery(substreams, (one) => this.#follow(device, one));
  }

  #follow(device: AssignedDevice, ssid: number): void {
    const { contexts, entryOf } = this.#options;
    const wanted = contexts.translationOf(entryOf(device.rid), ssid);
    this.#copies.follow(device, ssid, wantedOf(wanted));
  }
}

const wantedOf = (translation: ReturnType<GuestContexts["translationOf"]>): Wanted<Tag> =>
  translation.kind === "table"
    ? { kind: "table", table: translation.table, tag: { asid: translation.asid } }
    : translation;
