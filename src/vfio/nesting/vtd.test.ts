/** What the VT-d format makes of a bind and of an invalidation: the data that iommufd carries for VT-d. */
import { expect, it } from "vitest";
import type { HardwareInfo } from "../../iommu/driver.ts";
import { InfoChain } from "../../uapi/info-chain.ts";
import {
  IOMMU_HW_INFO_TYPE_INTEL_VTD,
  IommuHwInfoVtd,
  IommuHwptVtdS1,
  IommuHwptVtdS1Invalidate,
} from "../../uapi/vendor/vtd.ts";
import { IommuGpasidBindData, VfioIommuType1InfoCapNesting } from "../../uapi/vsva.ts";
import type { ChangedRange } from "./changed-range.ts";
import { vtdFormat } from "./vtd.ts";

const tables = vtdFormat.tables!;

const ALL = 2n ** 64n - 1n;
/** A unit with every ability. */
const UNIT: HardwareInfo = {
  type: IOMMU_HW_INFO_TYPE_INTEL_VTD,
  bytes: IommuHwInfoVtd.bytes({ cap_reg: ALL, ecap_reg: ALL }),
};
const table = (flags: bigint, addr_width = 48) => {
  const bytes = IommuGpasidBindData.bytes({ gpgd: 0x5000n, addr_width, vendor: { vtd: { flags } } });
  const data = tables.tableOf(IommuGpasidBindData.read(bytes), UNIT);
  expect(data.type).toBe(1);
  return IommuHwptVtdS1.read(data.read(IommuHwptVtdS1.size));
};
const change = (range: ChangedRange | undefined) => {
  const list = tables.changeOf(range);
  expect([list.type, list.count, list.entryLength]).toEqual([0, 1, 24]);
  return IommuHwptVtdS1Invalidate.read(list.read(0, 24));
};

it("a table is its address and width; SRE and EAFE become those of the first stage, memory types do not matter", () => {
  expect(table(0n)).toEqual({ flags: 0n, pgtbl_addr: 0x5000n, addr_width: 48, __reserved: 0 });
  expect(table(1n).flags).toBe(1n);
  expect(table(2n).flags).toBe(2n);
  expect(table(0x3fn, 57)).toMatchObject({ flags: 3n, addr_width: 57 });
});

it("a range is pages of 4 KiB, with the hint that only leaves changed; everything is 2^64 - 1 of them", () => {
  const range = { start: 0x20_0000n, length: 0x40_0000n, leavesOnly: true };
  expect(change(range)).toMatchObject({ addr: 0x20_0000n, npages: 1024n, flags: 1 });
  expect(change({ ...range, leavesOnly: false }).flags).toBe(0);
  expect(change({ start: 0n, length: 2n ** 64n, leavesOnly: false }).npages).toBe(2n ** 52n);
  expect(change(undefined)).toMatchObject({ addr: 0n, npages: ALL, flags: 0 });
});

it("the capability has the bits that nesting depends on, and no others", () => {
  const chain = new InfoChain(0);
  vtdFormat.describe(chain, UNIT, { pasidBits: 20, devicePasidBits: 20, pageRequests: true });
  const { vendor } = VfioIommuType1InfoCapNesting.read(chain.capabilities[0]!.bytes).info;
  expect(vendor.vtd).toMatchObject({
    cap_reg: (1n << 56n) | (1n << 60n),
    ecap_reg: [29n, 30n, 31n, 34n, 40n].reduce((bits, bit) => bits | (1n << bit), 0n),
  });
});
