import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { array, flags, oneOf, pointer, s32, struct, tail, u8, u16, u32, u64, union } from "./struct.ts";

const Range = struct("range", { start: u64, last: u64 });
const Everything = struct("everything", {
  argsz: u32,
  kind: u8,
  id: u16,
  fd: s32,
  addr: pointer,
  words: array(u32, 3),
  range: Range,
  "": union({ in_type: u32, pair: struct("pair", { a: u16, b: u16 }), wide: u64 }),
  last: u8,
});
const Listing = struct("listing", { nr: u32, flags: u32, ranges: tail(Range, "nr") });
const Blob = struct("blob", { argsz: u32, data: tail(u8) });
const Big = struct("big", { a: u16, b: u32, inner: Range, c: u64 }, { endian: "big" });

const n32 = fc.integer({ min: 0, max: 0xffff_ffff });
const n64 = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n });
const range = fc.record({ start: n64, last: n64 });
const everything = fc.record({
  argsz: n32,
  kind: fc.integer({ min: 0, max: 255 }),
  id: fc.integer({ min: 0, max: 0xffff }),
  fd: fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
  addr: n64,
  words: fc.array(n32, { minLength: 3, maxLength: 3 }),
  range,
  wide: n64,
  last: fc.integer({ min: 0, max: 255 }),
});

describe("C structures", () => {
  it("members lie where a C compiler for x86-64 puts them", () => {
    expect(Everything.offsets).toEqual({
      argsz: 0,
      kind: 4,
      id: 6,
      fd: 8,
      addr: 16,
      words: 24,
      range: 40,
      in_type: 56,
      pair: 56,
      wide: 56,
      last: 64,
    });
    expect(Everything.size).toBe(72);
    expect(Everything.align).toBe(8);
    expect(Everything.fieldEnd("id")).toBe(8);
    expect(Everything.fieldEnd("in_type")).toBe(60);
  });

  it("what was written is read back, at any place and with nothing touched around it", () => {
    fc.assert(
      fc.property(everything, fc.nat(9), (value, at) => {
        const bytes = new Uint8Array(at + 72 + 4).fill(0xee);
        Everything.write(bytes, value, at);
        expect(Everything.read(bytes, at)).toMatchObject(value);
        expect(bytes.subarray(0, at).every((b) => b === 0xee)).toBe(true);
        expect(bytes.subarray(at + 72).every((b) => b === 0xee)).toBe(true);
      }),
    );
  });

  it("what was read writes back the same bytes, unions included", () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 24, maxLength: 24 }), (bytes) => {
        expect(Range.bytes(Range.read(bytes))).toEqual(bytes.slice(0, 16));
        const Choice = struct("choice", { t: u32, "": union({ small: u8, list: array(u32, 3) }) });
        expect(Choice.bytes(Choice.read(bytes))).toEqual(bytes.slice(0, 16));
      }),
    );
  });

  it("missing members and padding are written as zero", () => {
    const bytes = new Uint8Array(72).fill(0xff);
    Everything.write(bytes, { kind: 1 });
    expect(bytes[4]).toBe(1);
    expect(bytes.filter((b) => b !== 0)).toHaveLength(1);
  });

  it("values lose their upper bits as in C", () => {
    const bytes = Range.bytes({ start: -1n, last: 1n << 64n });
    expect(Range.read(bytes)).toEqual({ start: 0xffff_ffff_ffff_ffffn, last: 0n });
    expect(struct("w", { v: u32 }).read(Uint8Array.of(255, 255, 255, 255)).v).toBe(0xffff_ffff);
    expect(struct("w", { v: s32 }).read(Uint8Array.of(255, 255, 255, 255)).v).toBe(-1);
  });

  it("the view shows what read gives and writes through", () => {
    fc.assert(
      fc.property(everything, n32, (value, word) => {
        const bytes = new Uint8Array(80);
        Everything.write(bytes, value, 8);
        const view = Everything.view(bytes, 8);
        const read = Everything.read(bytes, 8);
        expect({ ...view, range: { ...view.range }, pair: { ...view.pair } }).toEqual(read);
        view.argsz = word;
        view.range.last = 7n;
        view.in_type = word;
        view.words = [1, 2, 3];
        expect(Everything.read(bytes, 8)).toMatchObject({
          argsz: word,
          range: { start: value.range.start, last: 7n },
          in_type: word,
          words: [1, 2, 3],
          last: value.last,
        });
      }),
    );
  });

  it("big-endian structures store the most significant byte first; structures inside follow", () => {
    const bytes = Big.bytes({ a: 0x1234, b: 0xa0b0c0d0, inner: { start: 1n, last: 2n }, c: 3n });
    expect([...bytes.subarray(0, 16)]).toEqual([
      0x12, 0x34, 0, 0, 0xa0, 0xb0, 0xc0, 0xd0, 0, 0, 0, 0, 0, 0, 0, 1,
    ]);
    expect(Big.read(bytes)).toEqual({ a: 0x1234, b: 0xa0b0c0d0, inner: { start: 1n, last: 2n }, c: 3n });
    expect(Big.view(bytes).inner.last).toBe(2n);
    const Mixed = struct("mixed", { little: u32, big: struct("b", { v: u32 }, { endian: "big" }) });
    expect([...Mixed.bytes({ little: 1, big: { v: 1 } })]).toEqual([1, 0, 0, 0, 0, 0, 0, 1]);
  });

  it("a flexible tail has as many elements as its count says, and never more than there are bytes", () => {
    expect(Listing.size).toBe(8);
    expect(Listing.sizeWith(2)).toBe(40);
    const ranges = [
      { start: 1n, last: 2n },
      { start: 3n, last: 4n },
    ];
    const bytes = Listing.bytes({ nr: 2, ranges });
    expect(bytes).toHaveLength(40);
    expect(Listing.read(bytes).ranges).toEqual(ranges);
    expect(Listing.view(bytes).ranges.map((one) => one.start)).toEqual([1n, 3n]);
    Listing.view(bytes).nr = 0xffff_ffff;
    expect(Listing.read(bytes).ranges).toHaveLength(2);
    Listing.view(bytes).nr = 1;
    expect(Listing.read(bytes).ranges).toEqual([ranges[0]]);
    expect(Blob.read(Uint8Array.of(1, 0, 0, 0, 9, 8)).data).toEqual([9, 8]);
    expect(Listing.read(bytes.subarray(0, 8)).ranges).toEqual([]);
  });

  it("refuse to reach beyond the bytes or the array", () => {
    expect(() => Range.read(new Uint8Array(15))).toThrow(RangeError);
    expect(() => Range.write(new Uint8Array(15), {})).toThrow(/struct range \(16 bytes\) at 0/);
    expect(() => Listing.write(new Uint8Array(16), { ranges: [{}] })).toThrow(RangeError);
    expect(() => Everything.bytes({ words: [1, 2, 3, 4] })).toThrow(/4 elements for u32\[3\]/);
  });

  it("printBytes shows what there is of a structure, however few or many bytes", () => {
    expect(Range.printBytes(Uint8Array.of(5))).toBe("{ start=0x5, last=0x0 }");
    expect(Range.printBytes(new Uint8Array(100))).toBe("{ start=0x0, last=0x0 }");
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        expect(Listing.printBytes(bytes)).toMatch(/^{ nr=.*, ranges=\[.*\] }$/);
      }),
    );
  });

  it("print names flags and values, shows addresses in hexadecimal, and leaves padding out", () => {
    const Request = struct("map", {
      argsz: u32,
      flags: flags(u32, { READ: 1, WRITE: 2, NONE: 0 }),
      op: oneOf(u16, { SET: 0, GET: 1 }),
      __reserved: u16,
      va: u64,
      "": union({ a: u8, b: u16 }),
      list: array(u8, 10),
    });
    expect(Request.print(Request.read(Request.bytes({ flags: 0x13, op: 1, va: 0x1000n, b: 0x102 })))).toBe(
      "{ flags=READ|WRITE|0x10, op=GET, va=0x1000, a=2 | b=258, list=[0, 0, 0, 0, 0, 0, 0, 0, … 10 in all] }",
    );
    expect(Request.print(Request.read(Request.bytes({ op: 7 })))).toContain("flags=0, op=7");
    expect(Listing.print(Listing.read(Listing.bytes({ nr: 1, ranges: [{ last: 5n }] })))).toBe(
      "{ nr=1, flags=0, ranges=[{ start=0x0, last=0x5 }] }",
    );
  });
});
