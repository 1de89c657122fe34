/**
 * TCE windows of a POWER guest in a VMM, on any host: the VMM asks for the windows' addresses with ALLOW_IOVAS and enters what
 * the guest puts by map and unmap alone. Where its windows are is the VMM's choice, as it tells the guest; a VMM that keeps to
 * what POWER hosts have can only live where the host's apertures hold that.
 */
import { LinuxError } from "../uapi/errno.ts";
import { probeHost } from "../viommu/shadow/host.ts";
import type { AddressRange } from "../viommu/shadow/table.ts";
import { TceHypervisor } from "../viommu/tce/hypervisor.ts";
import { DDW_PAGES } from "../viommu/tce/spec.ts";
import { rememberingTces } from "./breaks.ts";
import { shown } from "./room.ts";
import type { VirtualUnit, VirtualUnitParts } from "./virtual-unit.ts";

interface Place {
  readonly start: number;
  readonly length: number;
}

const GiB = 2 ** 30;
/** Windows of 32-bit addresses: as POWER has it, or what of that is above windows for messages. */
const LOW: readonly Place[] = [
  { start: 0, length: 2 * GiB },
  { start: GiB, length: GiB },
];
/** Windows of 64-bit addresses: as POWER has it, or below. */
const HIGH: readonly Place[] = [2 ** 59, 2 ** 46, 2 ** 40, 2 ** 36].map((start) => ({
  start,
  length: 64 * GiB,
}));
const PAGE_LG2 = 12;

/** `fixed`: windows are where POWER has them. Throws EOPNOTSUPP when the host cannot: which aperture or page it lacks. */
export const tceWindows = (parts: VirtualUnitParts, fixed: boolean): VirtualUnit => {
  const { name, memory, events, calls, ram, devices, broken } = parts;
  const { ranges, pageLg2 } = probeHost(calls, devices);
  const largest = Math.max(...DDW_PAGES.keys());
  if (pageLg2 > largest)
    throw new LinuxError(
      "EOPNOTSUPP",
      `the host maps pages of ${2 ** pageLg2} bytes, and windows have pages of ${2 ** largest} at most`,
    );
  const choose = (places: readonly Place[]): Place => {
    const wanted = fixed ? places.slice(0, 1) : places;
    const found = wanted.find((place) => ranges.some((range) => holds(range, place)));
    if (found) return found;
    const { start, length } = wanted[0]!;
    const last = BigInt(start) + BigInt(length) - 1n;
    throw new LinuxError(
      "EOPNOTSUPP",
      `the host has no aperture for the guest's window of ${bitsOf(start + length)}-bit addresses, ` +
        `0x${start.toString(16)}-0x${last.toString(16)}: it maps ${shown(ranges)}`,
    );
  };
  const low = { ...choose(LOW), pageLg2: Math.max(PAGE_LG2, pageLg2) };
  const high = choose(HIGH);
  const faulty = broken.has("stale-iotlb") ? rememberingTces(calls) : calls;
  const iommu = new TceHypervisor({ name, memory, events, calls: faulty, ram, devices, low, high, pageLg2 });
  return { iommu, backEnd: iommu };
};

const holds = ({ start, end }: AddressRange, place: Place): boolean =>
  start <= place.start && place.start + place.length <= end;

/** Bits of the addresses below this one. */
const bitsOf = (end: number): number => Math.ceil(Math.log2(end));
