/** What a VMM finds that its host can do for a shadowed guest, or why it cannot have one. */
import { LinuxError } from "../uapi/errno.ts";
import { type HostRoom, probeHost } from "../viommu/shadow/host.ts";
import type { AddressRange } from "../viommu/shadow/table.ts";
import type { VirtualUnitParts } from "./virtual-unit.ts";

/** Throws EOPNOTSUPP when the host cannot map the guest's memory where it is, or the smallest page that the guest's tables have. */
export const roomFor = (
  { calls, devices, ram }: Pick<VirtualUnitParts, "calls" | "devices" | "ram">,
  guestPageLg2: number,
): HostRoom => {
  const room = probeHost(calls, devices);
  if (room.pageLg2 > guestPageLg2)
    throw new LinuxError(
      "EOPNOTSUPP",
      `the host maps pages of ${2 ** room.pageLg2} bytes, and the guest's tables have pages of ${2 ** guestPageLg2}`,
    );
  if (!room.ranges.some(({ start, end }) => start === 0 && ram.bytes <= end))
    throw new LinuxError(
      "EOPNOTSUPP",
      `the host has no aperture for guest memory, which is at 0x0-0x${(ram.bytes - 1).toString(16)}: it maps ${shown(room.ranges)}`,
    );
  return room;
};

/** For people. */
export const shown = (ranges: readonly AddressRange[]): string =>
  ranges.map(({ start, end }) => `0x${start.toString(16)}-0x${(BigInt(end) - 1n).toString(16)}`).join(", ");
