/** Hosts that lack what a guest needs are refused by name. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { GuestRig, RAM_BYTES } from "../../test/support/guest-rig.ts";
import type { AddressRange } from "../viommu/shadow/table.ts";
import { roomFor } from "./room.ts";

describe("a host for a guest of 16 MiB", () => {
  let rig: GuestRig;
  beforeEach(() => {
    rig = new GuestRig("vtd", "shadow", { shows: "none" });
  });
  afterEach(() => {
    expect(rig.close()).toEqual({});
  });

  const room = (ranges: readonly AddressRange[], alignment: bigint) => {
    const { calls, ram } = rig.vmm;
    calls.iovaRanges = () => ({ ranges, alignment });
    return roomFor({ calls, ram, devices: [] }, 14);
  };

  it("has an aperture that holds its memory, and pages no larger than its own", () => {
    expect(room([{ start: 0, end: RAM_BYTES }], 16384n)).toMatchObject({ pageLg2: 14, addressBits: 24 });
  });

  it("is refused for larger pages, with both sizes", () => {
    expect(() => room([{ start: 0, end: 2 ** 48 }], 65536n)).toThrow(
      /EOPNOTSUPP: the host maps pages of 65536 bytes, and the guest's tables have pages of 16384/,
    );
  });

  it("is refused for an aperture that ends before, or has a hole, with what there is", () => {
    const ranges = [
      { start: 0, end: RAM_BYTES / 2 },
      { start: RAM_BYTES, end: 2 ** 48 },
    ];
    expect(() => room(ranges, 4096n)).toThrow(
      /EOPNOTSUPP: the host has no aperture for guest memory, which is at 0x0-0xffffff: it maps 0x0-0x7fffff, 0x1000000-/,
    );
  });
});
