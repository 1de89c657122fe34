/**
 * A guest on the machine smmuv3 that is nothing but tables (`nested-guest.ts`): stage 1 of VMSAv8-64 with 4 KiB pages from level
 * 1 on, and one context descriptor a PASID.
 */
import { type EventSink, silent } from "../../src/base/events.ts";
import { Cd, Config, S1Dss, Ste } from "../../src/hardware/smmuv3/spec.ts";
import { PRESETS } from "../../src/machine/presets.ts";
import * as uapi from "../../src/uapi/iommufd.ts";
import * as arm from "../../src/uapi/vendor/smmuv3.ts";
import { type Beside, NestedGuest, type NestedOptions, PAGE } from "./nested-guest.ts";

export { MEMORY, PAGE } from "./nested-guest.ts";
export const TEST_FUNCTION = "0000:03:00.0";
const DEVICE = 2;

export type SteFields = Parameters<typeof Ste.make>[0];
const WORD = 0xffff_ffff_ffff_ffffn;

export class ArmGuest extends NestedGuest {
  /** On a machine of its own, or, with another function, on one that there is. */
  constructor(text: string = PRESETS.get("smmuv3")!, events: EventSink = silent, beside?: Beside) {
    super({ machine: "smmuv3", text, device: DEVICE, functionName: TEST_FUNCTION, events, beside });
  }

  override viommu(parent: number, type: number = arm.IOMMU_VIOMMU_TYPE_ARM_SMMUV3, device = this.id): number {
    return super.viommu(parent, type, device);
  }

  /** A page table of the guest for its stream table entry. */
  nested(viommu: number, ste: SteFields, options: NestedOptions = {}): number {
    return this.nestedOf(viommu, Ste.make(ste), options);
  }

  /** The same for an entry of any bits: its first two words. */
  nestedOf(viommu: number, value: bigint, options: NestedOptions = {}): number {
    const data = arm.IommuHwptArmSmmuv3.bytes({ ste: [value & WORD, (value >> 64n) & WORD] });
    return this.allocateNested(viommu, data, arm.IOMMU_HWPT_DATA_ARM_SMMUV3, options);
  }

  /** The guest's commands; how many were carried out, and the errno. */
  invalidate(
    object: number,
    commands: readonly bigint[],
    { type = arm.IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3, at }: { type?: number; at?: number } = {},
  ) {
    return this.sendCommands(object, commands, { type, at });
  }

  eventQueue(viommu: number, depth = 64): { readonly id: number; readonly fd: number } {
    const members = { viommu_id: viommu, type: arm.IOMMU_VEVENTQ_TYPE_ARM_SMMUV3, veventq_depth: depth };
    const answer = this.call(uapi.IOMMU_VEVENTQ_ALLOC, uapi.IommuVeventqAlloc, members);
    return { id: answer.out_veventq_id, fd: answer.out_veventq_fd };
  }

  /** Events as four 64-bit words; undefined: some were lost. */
  takeEvents(fd: number): (readonly bigint[] | undefined)[] {
    const header = uapi.IommufdVeventHeader.size;
    const bytes = this.readFile(fd);
    const events: (readonly bigint[] | undefined)[] = [];
    for (let at = 0; at < bytes.length; ) {
      const { flags } = uapi.IommufdVeventHeader.read(bytes.subarray(at));
      at += header;
      if (flags & uapi.IOMMU_VEVENTQ_FLAG_LOST_EVENTS) events.push(undefined);
      else {
        events.push(arm.IommuVeventArmSmmuv3.read(bytes.subarray(at)).evt);
        at += arm.IommuVeventArmSmmuv3.size;
      }
    }
    return events;
  }

  /** A table of stage 1: 39 bits of addresses. */
  table(): number {
    return this.page();
  }

  /** Maps a page of guest memory in a table; 0: nothing is there any more. */
  map(table: number, address: number, ipa: number): void {
    let at = table;
    for (const shift of [30, 21]) {
      const slot = at + (Math.floor(address / 2 ** shift) % 512) * 8;
      const entry = this.load64(slot);
      if (entry & 1n) at = Number(entry & 0xffff_ffff_f000n);
      else {
        at = this.page();
        this.store64(slot, BigInt(at) | 3n);
      }
    }
    // A page, for unprivileged reading and writing, not global, accessed.
    this.store64(at + (Math.floor(address / PAGE) % 512) * 8, ipa === 0 ? 0n : BigInt(ipa) | 0xc43n);
  }

  /** Context descriptors, one for each table: of PASID 0, 1, 2…; where they are. */
  contexts(tables: readonly number[], more: Parameters<typeof Cd.make>[0] = {}): number {
    const at = this.page();
    tables.forEach((table, index) => {
      this.context(at, index, table, more);
    });
    return at;
  }

  context(contexts: number, index: number, table: number, more: Parameters<typeof Cd.make>[0] = {}): void {
    const descriptor = Cd.make({
      ...{ V: table !== 0, AA64: true, T0SZ: 25, EPD1: true, IPS: 4, R: true, A: true },
      ...{ ASID: index + 1, TTB0: table },
      ...more,
    });
    const bytes = new Uint8Array(64);
    Cd.write(bytes, descriptor);
    this.write(contexts + 64 * index, bytes);
  }

  /** The guest's stream table entry for these contexts. */
  stage1(contexts: number, lg2 = 0): SteFields {
    return {
      ...{ V: true, CONFIG: Config.stage1, S1CONTEXTPTR: contexts, S1CDMAX: lg2 },
      S1DSS: lg2 > 0 ? S1Dss.substream0 : 0,
    };
  }
}
