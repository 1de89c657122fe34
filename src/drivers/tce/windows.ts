/**
 * Windows of a POWER domain as they are asked for, before there are any: where they may lie, what the unit has, and what a
 * caller's `softiommu_hwpt_tce` says.
 */
import { WINDOW_LG2, WINDOWS } from "../../hardware/tce/spec.ts";
import type { DmaWindow, UserData } from "../../iommu/driver.ts";
import { TCE_LEVELS_MAX, type TceGeometry, tceGeometry, tceUnfit } from "../../pagetable/tce.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { SOFTIOMMU_HWPT_DATA_TCE, SoftiommuHwptTce } from "../../uapi/vendor/extensions.ts";

/** Bus addresses of the second window begin here: address bit 59 chooses it. */
export const HIGH_START = 2 ** WINDOW_LG2;
/** The first window is for functions of 32-bit addresses. */
export const LOW_END = 2 ** 32;
/** Tables larger than this are not made: such a window needs more levels. */
const TABLE_LG2_MAX = 24;

/** Of windows, the smallest. */
const PAGE = 4096n;

const hex = (value: number): string => `0x${value.toString(16)}`;

/** What every domain has that nobody asked for anything else: 2 GiB from 0 on, and 1 TiB high up. */
export const DEFAULT_WINDOWS: readonly [low: DmaWindow, high: DmaWindow] = [
  { start: 0, length: 2 ** 31, pageLg2: 12, levels: 2 },
  { start: HIGH_START, length: 2 ** 40, pageLg2: 12, levels: 4 },
];

/** Number of the window that an address belongs to, 0 or 1. */
export const slotOf = (address: number): number => (address < HIGH_START ? 0 : 1);

/** Where the windows of a number begin, and the first address that is none of theirs. */
export const bounds = (slot: number): { readonly start: number; readonly end: number } =>
  slot === 0 ? { start: 0, end: LOW_END } : { start: HIGH_START, end: 2 * HIGH_START };

/** The tables of a window: they index from where windows of its number begin. Throws EINVAL for what the unit has not. */
export const geometryOf = (window: DmaWindow, pageLg2s: readonly number[], unit: string): TceGeometry => {
  const { start, length, pageLg2, levels } = window;
  const refuse = (reason: string): never => {
    throw new LinuxError("EINVAL", reason, unit);
  };
  if (!pageLg2s.includes(pageLg2))
    refuse(`page_shift ${pageLg2}: the unit has pages of 2^n bytes for n = ${pageLg2s.join(", ")}`);
  if (!(levels >= 1 && levels <= TCE_LEVELS_MAX))
    refuse(`${levels} levels: a table has 1 to ${TCE_LEVELS_MAX}`);
  const page = 2 ** pageLg2;
  if (!(length > 0) || start % page !== 0 || length % page !== 0)
    refuse(`the window ${hex(start)} + ${hex(length)} is not made of whole pages of ${hex(page)}`);
  const { start: from, end } = bounds(slotOf(start));
  if (start + length > end)
    refuse(
      `the window ${hex(start)} + ${hex(length)} goes beyond ${hex(end)}, where windows that begin at ${hex(from)} or above end`,
    );
  const geometry = tceGeometry(Math.ceil(Math.log2(start - from + length)), pageLg2, levels);
  const unfit = tceUnfit(geometry);
  if (unfit) refuse(unfit);
  if (geometry.tableLg2 > TABLE_LG2_MAX)
    refuse(
      `${levels} levels for ${hex(length)} bytes in pages of ${hex(page)} take tables of 2^${geometry.tableLg2} bytes; ` +
        `2^${TABLE_LG2_MAX} are possible, so take more levels or larger pages`,
    );
  return geometry;
};

/** The windows that a caller's data asks for. Throws EOPNOTSUPP for other data, EINVAL, EFAULT. */
export const readWindows = (data: UserData, unit: string): DmaWindow[] => {
  if (data.type !== SOFTIOMMU_HWPT_DATA_TCE)
    throw new LinuxError(
      "EOPNOTSUPP",
      `data type 0x${data.type.toString(16)}: a domain of TCE tables is described by SOFTIOMMU_HWPT_DATA_TCE`,
      unit,
    );
  const { window } = SoftiommuHwptTce.read(data.read(SoftiommuHwptTce.size));
  // A double is not every 64-bit number, but every address of a page.
  for (const [slot, { start, length }] of window.entries())
    if (length > 0n && (start % PAGE !== 0n || length % PAGE !== 0n))
      throw new LinuxError(
        "EINVAL",
        `window ${slot}, 0x${start.toString(16)} + 0x${length.toString(16)}, is not made of whole pages of ${hex(Number(PAGE))}`,
        unit,
      );
  const windows = window.map(({ start, length, page_shift, levels }) => ({
    start: Number(start),
    length: Number(length),
    pageLg2: page_shift,
    levels,
  }));
  windows.forEach(({ start, length }, slot) => {
    const { start: from, end } = bounds(slot);
    if (length > 0 && (start < from || start >= end))
      throw new LinuxError(
        "EINVAL",
        `window ${slot} at ${hex(start)}: it lies in ${hex(from)} to ${hex(end - 1)}`,
        unit,
      );
  });
  const present = windows.filter(({ length }) => length > 0);
  if (present.length === 0)
    throw new LinuxError("EINVAL", `all ${WINDOWS} windows are absent; a domain has one at least`, unit);
  return present;
};
