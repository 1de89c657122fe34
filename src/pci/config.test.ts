import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ConfigSpace } from "./config.ts";

describe("config space", () => {
  it("changes what software may write, clears what is cleared by ones, and nothing else", () => {
    const register = fc.record({
      value: fc.nat(0xffff_ffff),
      writable: fc.nat(0xffff_ffff),
      clears: fc.nat(0xffff_ffff),
      written: fc.nat(0xffff_ffff),
    });
    fc.assert(
      fc.property(register, ({ value, writable, clears: asked, written }) => {
        const clears = (asked & ~writable) >>> 0;
        const config = new ConfigSpace(256);
        config.declare({ offset: 0x40, width: 4, value, writable, clears });
        expect(config.read(0x40, 4)).toBe(value);
        config.write(0x40, 4, written);
        const kept = value & ~writable & ~(clears & written);
        expect(config.read(0x40, 4)).toBe((kept | (written & writable)) >>> 0);
        config.reset();
        expect(config.read(0x40, 4)).toBe(value);
      }),
    );
  });

  it("writes of one and two bytes touch only those", () => {
    const config = new ConfigSpace(256);
    config.declare({ offset: 0, width: 4, value: 0x1122_3344, writable: 0xffff_ffff });
    config.write(1, 1, 0xab);
    expect(config.read(0, 4)).toBe(0x1122_ab44);
    config.write(2, 2, 0xcdef);
    expect(config.read(0, 4)).toBe(0xcdef_ab44);
    expect([config.read(3, 1), config.read(0, 2)]).toEqual([0xcd, 0xab44]);
  });

  it("links capabilities, standard and extended, in the order they are added", () => {
    const config = new ConfigSpace(4096);
    const first = config.add({ id: 1, bytes: 6, registers: [{ offset: 4, width: 2, value: 7 }] });
    const second = config.add({ id: 5, bytes: 8, registers: [] });
    expect([first, second]).toEqual([0x40, 0x48]);
    expect([config.read(0x34, 1), config.read(0x41, 1), config.read(0x49, 1)]).toEqual([0x40, 0x48, 0]);
    expect(config.read(0x44, 2)).toBe(7);
    const third = config.add({ id: 3, version: 1, bytes: 12, registers: [] });
    const fourth = config.add({ id: 0x1b, version: 2, bytes: 8, registers: [] });
    expect([third, fourth]).toEqual([0x100, 0x10c]);
    expect(config.read(0x100, 4)).toBe(0x10c1_0003);
    expect(config.read(0x10c, 4)).toBe(0x0002_001b);
  });

  it("has no room for more than it is long", () => {
    const config = new ConfigSpace(256);
    config.add({ id: 1, bytes: 0x80, registers: [] });
    expect(() => config.add({ id: 5, bytes: 0x80, registers: [] })).toThrow("capability 5: no room");
    expect(() => config.declare({ offset: 254, width: 4, value: 0 })).toThrow("beyond 256 bytes");
  });

  it("tells of a write after it has been done", () => {
    const config = new ConfigSpace(256);
    config.declare({ offset: 4, width: 2, value: 0, writable: 0xffff });
    const seen: number[] = [];
    config.onWrite = (offset, width) => seen.push(offset, width, config.read(4, 2));
    config.write(4, 2, 6);
    expect(seen).toEqual([4, 2, 6]);
  });
});
