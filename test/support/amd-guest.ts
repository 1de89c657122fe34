/**
 * A guest on the machine amd, with guests' tables above the host's, that is nothing but tables (`nested-guest.ts`): tables of
 * processors of 4 levels, and one entry of a GCR3 table a PASID.
 */
import { gcr3Fields } from "../../src/drivers/amdvi/gcr3-table.ts";
import { Dte } from "../../src/hardware/amdvi/spec.ts";
import { PRESETS } from "../../src/machine/presets.ts";
import * as amd from "../../src/uapi/vendor/amd.ts";
import { SOFTIOMMU_VIOMMU_INVALIDATE_DATA_AMD } from "../../src/uapi/vendor/extensions.ts";
import { NestedGuest, type NestedOptions, PAGE } from "./nested-guest.ts";

const DEVICE = 3;
const TEST_FUNCTION = "0000:05:00.0";
/** As Linux 7.2 is; and with the extension. */
export const FAITHFUL = PRESETS.get("amd")!;
export const NESTING = `${FAITHFUL}extensions: [amd-nesting]\n`;

export type DteFields = Parameters<typeof Dte.make>[0];
const WORD = 0xffff_ffff_ffff_ffffn;
/** Present, writable, for users. */
const ENTRY = 7n;
/** Guest domain id of the entries, unless they say otherwise. */
export const DOMAIN = 0x123;

export class AmdGuest extends NestedGuest {
  constructor(text: string = NESTING) {
    super({ machine: "amd", text, device: DEVICE, functionName: TEST_FUNCTION });
  }

  /** Any number is a type. */
  override viommu(parent: number, type = 1): number {
    return super.viommu(parent, type);
  }

  /** A page table of the guest for its device table entry. */
  nested(viommu: number, entry: DteFields, options: NestedOptions = {}): number {
    return this.nestedOf(viommu, Dte.make(entry), options);
  }

  /** The same for an entry of any bits. */
  nestedOf(viommu: number, entry: bigint, options: NestedOptions = {}): number {
    const dte = [0n, 64n, 128n, 192n].map((at) => (entry >> at) & WORD);
    const data = amd.IommuHwptAmdGuest.bytes({ dte });
    return this.allocateNested(viommu, data, amd.IOMMU_HWPT_DATA_AMD_GUEST, options);
  }

  /** The guest's commands; how many were carried out, and the errno. */
  invalidate(
    object: number,
    commands: readonly bigint[],
    { type = SOFTIOMMU_VIOMMU_INVALIDATE_DATA_AMD, at }: { type?: number; at?: number } = {},
  ) {
    return this.sendCommands(object, commands, { type, at });
  }

  /** Maps a page of guest memory in a table; 0: nothing is there any more. */
  map(table: number, address: number, ipa: number): void {
    let at = table;
    for (const shift of [39, 30, 21]) {
      const slot = at + (Math.floor(address / 2 ** shift) % 512) * 8;
      const entry = this.load64(slot);
      if (entry & 1n) at = Number(entry & 0xffff_ffff_f000n);
      else {
        at = this.page();
        this.store64(slot, BigInt(at) | ENTRY);
      }
    }
    this.store64(at + (Math.floor(address / PAGE) % 512) * 8, ipa === 0 ? 0n : BigInt(ipa) | ENTRY);
  }

  /** GCR3 entries, one for each table: of PASID 0, 1, 2…; where they are. */
  gcr3(tables: readonly number[]): number {
    const at = this.page();
    tables.forEach((table, pasid) => {
      this.gcr3Entry(at, pasid, table);
    });
    return at;
  }

  gcr3Entry(gcr3: number, pasid: number, table: number): void {
    this.store64(gcr3 + 8 * pasid, BigInt(table) | 1n);
  }

  /** The guest's device table entry for this GCR3 table of one level. */
  entry(gcr3: number, more: DteFields = {}): DteFields {
    return {
      ...{ V: true, TV: true, IR: true, IW: true, GV: true, GIOV: true, DOMAIN },
      ...gcr3Fields(BigInt(gcr3)),
      ...more,
    };
  }
}
