/**
 * A guest on the machine s390, with its anchor above the host's page table, that is nothing but tables (`nested-guest.ts`):
 * region-third, segment and page tables, big-endian.
 */
import { Iota } from "../../src/hardware/zpci/spec.ts";
import { PRESETS } from "../../src/machine/presets.ts";
import * as uapi from "../../src/uapi/iommufd.ts";
import * as s390 from "../../src/uapi/vendor/extensions.ts";
import { NestedGuest, PAGE, SCRATCH } from "./nested-guest.ts";

const DEVICE = 3;
const TEST_FUNCTION = "0000:05:00.0";
/** With the extension; and without it. */
export const NESTING = PRESETS.get("s390")!;
export const PLAIN = NESTING.replace("extensions: [s390-nesting]", "extensions: []");
const EMPTY = 0x420n;
const TABLE_PAGES = 4;

export class S390Guest extends NestedGuest {
  constructor(text: string = NESTING) {
    super({ machine: "s390", text, device: DEVICE, functionName: TEST_FUNCTION });
  }

  override store64(ipa: number, value: bigint): void {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, value);
    this.write(ipa, bytes);
  }
  override load64(ipa: number): bigint {
    return new DataView(this.read(ipa, 8).buffer).getBigUint64(0);
  }

  /** An empty region-third or segment table. */
  table(pages = TABLE_PAGES): number {
    const table = this.page();
    for (let more = 1; more < pages; more++) this.page();
    for (let at = table; at < table + pages * PAGE; at += 8) this.store64(at, EMPTY);
    return table;
  }

  /** Where the page-table entry of an address is; tables on the way are made. */
  place(root: number, address: number): number {
    const region = root + 8 * Math.floor(address / 2 ** 31);
    if (this.load64(region) === EMPTY) this.store64(region, BigInt(this.table()) | 7n);
    const segment = Number(this.load64(region) & ~0xfffn) + 8 * (Math.floor(address / 2 ** 20) % 2048);
    if (this.load64(segment) === EMPTY) this.store64(segment, BigInt(this.table(1)));
    return Number(this.load64(segment)) + 8 * (Math.floor(address / PAGE) % 256);
  }

  /** 0: nothing is there any more. */
  map(root: number, address: number, ipa: number): void {
    this.store64(this.place(root, address), ipa === 0 ? EMPTY : BigInt(ipa));
  }

  anchor(root: number): bigint {
    return Iota.make({ ORIGIN: BigInt(root), T: true, DT: 1 });
  }

  nested(
    parent: number,
    iota: bigint,
    options: { readonly type?: number; readonly flags?: number } = {},
  ): number {
    const data = s390.SoftiommuHwptS390Iota.bytes({ iota });
    return this.allocateNested(parent, data, s390.SOFTIOMMU_HWPT_DATA_S390_IOTA, options);
  }

  /** What the guest refreshes: how many ranges were taken, and the errno. */
  refresh(hwpt: number, ...ranges: readonly (readonly [address: number, bytes: number])[]) {
    const entry = s390.SoftiommuHwptS390Refresh;
    ranges.forEach(([iova, length], index) => {
      const bytes = entry.bytes({ iova: BigInt(iova), length: BigInt(length) });
      this.task.memory.write(BigInt(SCRATCH + index * entry.size), bytes);
    });
    const bytes = uapi.IommuHwptInvalidate.bytes({
      size: uapi.IommuHwptInvalidate.size,
      hwpt_id: hwpt,
      data_uptr: BigInt(SCRATCH),
      data_type: s390.SOFTIOMMU_HWPT_INVALIDATE_DATA_S390_REFRESH,
      entry_len: entry.size,
      entry_num: ranges.length,
    });
    let error: string | undefined;
    try {
      this.task.ioctl(this.fd, uapi.IOMMU_HWPT_INVALIDATE, bytes);
    } catch (thrown) {
      error = (thrown as { readonly code: string }).code;
    }
    return { done: uapi.IommuHwptInvalidate.read(bytes).entry_num, error };
  }

  unmap(ipa: number, bytes: number): void {
    this.call(uapi.IOMMU_IOAS_UNMAP, uapi.IommuIoasUnmap, {
      ioas_id: this.ioas,
      iova: BigInt(ipa),
      length: BigInt(bytes),
    });
  }
}
