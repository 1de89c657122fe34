import { describe, expect, it } from "vitest";
import { placement } from "./placement.ts";

const shape = (kind: "mem32" | "mem64" | "io", size: number) => ({ index: 0, kind, size });

describe("placement of BARs", () => {
  it("aligns each to its size, and gives small ones pages of their own", () => {
    const place = placement({ mem32: { start: 0xe000_0000, end: 0xf000_0000 } });
    expect(place(shape("mem32", 16))).toBe(0xe000_0000);
    expect(place(shape("mem32", 0x10_0000))).toBe(0xe010_0000);
    expect(place(shape("mem32", 256))).toBe(0xe020_0000);
  });

  it("puts 64-bit BARs in the high range, or low when there is none; io in its own", () => {
    const low = { start: 0xe000_0000, end: 0xf000_0000 };
    expect(placement({ mem32: low })(shape("mem64", 4096))).toBe(0xe000_0000);
    const place = placement({
      mem32: low,
      mem64: { start: 2 ** 40, end: 2 ** 41 },
      io: { start: 0x1010, end: 0x2000 },
    });
    expect(place(shape("mem64", 2 ** 33))).toBe(2 ** 40);
    expect([place(shape("io", 32)), place(shape("io", 4))]).toEqual([0x1020, 0x1040]);
  });

  it("says which BAR has no room", () => {
    const place = placement({ mem32: { start: 0xe000_0000, end: 0xe000_2000 } });
    place(shape("mem32", 4096));
    expect(() => place(shape("mem32", 8192))).toThrow("BAR 0: no room for 8192 bytes in the mem32 range");
    expect(() => place(shape("io", 4))).toThrow("no room for 4 bytes in the io range");
  });
});
