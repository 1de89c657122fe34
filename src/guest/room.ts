/** What a VMM finds that its host can do for a shadowed guest, or why it cannot have one. */
import { LinuxError } from "../uapi/errno.ts";
import { type HostRoom, probeHost } from "../viommu/shadow/host.ts";
import type { VirtualUnitParts } from "./virtual-unit.ts";

/** Throws EOPNOTSUPP when the host cannot map the smallest page that the guest's tables have. */
export const roomFor = ({ calls, devices }: VirtualUnitParts, guestPageLg2: number): HostRoom => {
  const room = probeHost(calls, devices);
  if (room.pageLg2 > guestPageLg2)
    throw new LinuxError(
      "EOPNOTSUPP",
      `the host maps pages of ${2 ** room.pageLg2} bytes, and the guest's tables have pages of ${2 ** guestPageLg2}`,
    );
  return room;
};
