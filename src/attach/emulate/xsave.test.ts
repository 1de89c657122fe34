import { describe, expect, it } from "vitest";
import { XsaveArea, type XsaveLayout, xsaveSize } from "./xsave.ts";

/** Intel's offsets and AMD's: the latter has no MPX in between. */
const LAYOUTS: readonly (readonly [string, XsaveLayout])[] = [
  ["Intel", { opmask: 1088, zmmHigh: 1152, highZmm: 1664 }],
  ["AMD", { opmask: 832, zmmHigh: 896, highZmm: 1408 }],
];

function area(layout: XsaveLayout, present: number): XsaveArea {
  const bytes = new Uint8Array(xsaveSize(layout)).fill(0xee);
  const view = new DataView(bytes.buffer);
  view.setUint32(464, 0x46505853, true);
  view.setUint32(512, present, true);
  return new XsaveArea(bytes, layout);
}

const counted = (length: number): Uint8Array => Uint8Array.from({ length }, (_, i) => i + 1);

function read(from: XsaveArea, index: number, length = 64): number[] {
  const into = new Uint8Array(length);
  from.read(index, into);
  return [...into];
}

describe.each(LAYOUTS)("the XSAVE area of a signal frame (%s)", (_name, layout) => {
  it("§13.4 keeps a register in its components", () => {
    const registers = area(layout, 0xe7);
    registers.write(5, counted(64), true);
    expect([...registers.bytes.subarray(160 + 80, 160 + 96)]).toEqual([...counted(64).subarray(0, 16)]);
    expect([...registers.bytes.subarray(576 + 80, 576 + 96)]).toEqual([...counted(64).subarray(16, 32)]);
    const high = layout.zmmHigh + 5 * 32;
    expect([...registers.bytes.subarray(high, high + 32)]).toEqual([...counted(64).subarray(32)]);
    registers.write(20, counted(64), true);
    const whole = layout.highZmm + 4 * 64;
    expect([...registers.bytes.subarray(whole, whole + 64)]).toEqual([...counted(64)]);
    expect(read(registers, 5)).toEqual([...counted(64)]);
    expect(read(registers, 20)).toEqual([...counted(64)]);
    expect(registers.dirty).toBe(true);
  });

  it("reads a component that is in its initial state as zero", () => {
    const registers = area(layout, 0b11);
    expect(read(registers, 3)).toEqual([...Array(16).fill(0xee), ...Array(48).fill(0)]);
    expect(read(registers, 30)).toEqual(Array(64).fill(0));
    expect(registers.readMask(1)).toBe(0n);
    expect(registers.dirty).toBe(false);
  });

  it("makes a component present when it is written, the other registers in it zero", () => {
    const registers = area(layout, 0b11);
    registers.write(3, counted(32), true);
    expect(registers.bytes[512]).toBe(0b111);
    expect(read(registers, 4, 32)).toEqual([...Array(16).fill(0xee), ...Array(16).fill(0)]);
    registers.writeMask(2, 5n);
    expect([registers.readMask(2), registers.readMask(3)]).toEqual([5n, 0n]);
    expect(registers.bytes[512]).toBe(0b100111);
  });

  it("keeps the upper part for a legacy instruction and clears it for VEX, without making it present", () => {
    const registers = area(layout, 0xe7);
    registers.write(7, counted(16), false);
    expect(read(registers, 7).slice(16)).toEqual(Array(48).fill(0xee));
    registers.write(7, counted(16), true);
    expect(read(registers, 7).slice(16)).toEqual(Array(48).fill(0));
    const initial = area(layout, 0b11);
    initial.write(7, counted(16), true);
    expect(initial.bytes[512]).toBe(0b11);
  });
});

it("a frame with FXSAVE only has the xmm registers", () => {
  const registers = new XsaveArea(new Uint8Array(832), { opmask: 0, zmmHigh: 0, highZmm: 0 });
  registers.write(2, counted(64), true);
  expect(read(registers, 2)).toEqual([...counted(16), ...Array(48).fill(0)]);
  expect(registers.bytes.subarray(512).every((byte) => byte === 0)).toBe(true);
});
