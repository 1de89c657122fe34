import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { address, bit, bits, layout, rsvd } from "./layout.ts";

const PasidEntry = layout("PASID entry", 64, {
  P: bit(0, "present"),
  PGTT: bits(6, 8, "translation type", { 1: "first", 2: "second", 3: "nested", 4: "pass-through" }),
  SLPTPTR: address(12, 63, "second-level table"),
  DID: bits(64, 79, "domain id"),
  WIDE: bits(100, 140, "a number over three words"),
  R: rsvd(141, 143),
  FLPTPTR: address(204, 255, "first-level table"),
});

const word = fc.bigInt({ min: 0n, max: (1n << 512n) - 1n });
const toWords = (value: bigint, count: number): Uint32Array =>
  Uint32Array.from({ length: count }, (_, i) => Number((value >> BigInt(32 * i)) & 0xffff_ffffn));
const numbers = [
  PasidEntry.fields.P,
  PasidEntry.fields.PGTT,
  PasidEntry.fields.SLPTPTR,
  PasidEntry.fields.DID,
  PasidEntry.fields.WIDE,
  PasidEntry.fields.FLPTPTR,
];

describe("bit layouts", () => {
  it("say where a field lies within its 32-bit word", () => {
    expect(PasidEntry.fields.PGTT).toMatchObject({
      name: "PGTT",
      first: 6,
      last: 8,
      word: 0,
      shift: 6,
      mask: 0x1c0,
    });
    expect(PasidEntry.fields.DID).toMatchObject({ word: 2, shift: 0, mask: 0xffff });
    expect(layout("x", 4, { TOP: bit(31, "top") }).fields.TOP.mask).toBe(0x8000_0000);
  });

  it("get and of agree with the shifted and masked integer", () => {
    fc.assert(
      fc.property(word, fc.integer({ min: 0, max: 5 }), (value, at) => {
        const words = new Uint32Array(16 + at);
        words.set(toWords(value, 16), at);
        for (const field of numbers) {
          const raw = (value >> BigInt(field.first)) & ((1n << BigInt(field.width)) - 1n);
          const expected = field.kind === "address" ? raw << BigInt(field.lg2) : raw;
          expect(field.of(value)).toBe(expected);
          expect(BigInt(field.get(words, at))).toBe(expected);
        }
      }),
    );
  });

  it("set and put change their own bits and no other", () => {
    fc.assert(
      fc.property(word, word, (before, source) => {
        for (const field of numbers) {
          const wanted = field.of(source);
          const words = toWords(before, 16);
          field.set(words, Number(wanted));
          const mask = ((1n << BigInt(field.width)) - 1n) << BigInt(field.first);
          const expected = (before & ~mask) | (source & mask);
          expect(PasidEntry.fromWords(words)).toBe(expected);
          expect((before & ~mask) | field.put(wanted)).toBe(expected);
        }
      }),
    );
  });

  it("bytes, words and the view are the same structure", () => {
    fc.assert(
      fc.property(word, word, (value, other) => {
        const bytes = new Uint8Array(70);
        PasidEntry.write(bytes, value, 3);
        expect(PasidEntry.read(bytes, 3)).toBe(value);
        const words = new Uint32Array(16);
        PasidEntry.toWords(value, words);
        expect(new Uint8Array(words.buffer)).toEqual(bytes.subarray(3, 67));
        const view = PasidEntry.view(bytes, 3);
        expect(view.DID).toBe(PasidEntry.fields.DID.of(value));
        view.SLPTPTR = PasidEntry.fields.SLPTPTR.of(other);
        expect(view.SLPTPTR).toBe(PasidEntry.fields.SLPTPTR.of(other));
        expect(view.FLPTPTR).toBe(PasidEntry.fields.FLPTPTR.of(value));
        expect(bytes[2]).toBe(0);
        expect(bytes[67]).toBe(0);
      }),
    );
  });

  it("refuse a value that does not fit, or an address that is not aligned", () => {
    const words = new Uint32Array(16);
    expect(() => PasidEntry.fields.PGTT.set(words, 8)).toThrow(RangeError);
    expect(() => PasidEntry.fields.PGTT.put(-1n)).toThrow(RangeError);
    expect(() => PasidEntry.fields.SLPTPTR.set(words, 0x1800)).toThrow(/multiple of 4096/);
    expect(() => PasidEntry.fields.SLPTPTR.put(0x1800n)).toThrow(RangeError);
    expect(words.every((one) => one === 0)).toBe(true);
  });

  it("refuse a number that a double cannot hold exactly", () => {
    const Wide = layout("wide", 8, { ALL: bits(0, 63, "all") });
    expect(() => Wide.fields.ALL.get([1, 2])).toThrow(/of\(\)/);
    expect(() => Wide.fields.ALL.set([1, 2], 1)).toThrow(RangeError);
    expect(Wide.fields.ALL.of(0xffff_ffff_ffff_ffffn)).toBe(0xffff_ffff_ffff_ffffn);
  });

  it("an address may be stored away from its own bit positions", () => {
    const Dte = layout("DTE part", 8, { GCR3_14_12: address(58, 60, "table root", 12) });
    expect(Dte.fields.GCR3_14_12.get([0, 0x0400_0000])).toBe(0x1000);
    expect(Dte.fields.GCR3_14_12.put(0x7000n)).toBe(7n << 58n);
  });

  it("know the bits that no field names", () => {
    const Small = layout("small", 4, { A: bit(0, "a"), R: rsvd(1, 7), B: bits(8, 30, "b") });
    expect(Small.reserved).toBe(0x8000_00fen);
    const named = numbers.reduce((m, f) => m | (((1n << BigInt(f.width)) - 1n) << BigInt(f.first)), 0n);
    expect(PasidEntry.reserved).toBe(((1n << 512n) - 1n) ^ named);
  });

  it("a declaration that overlaps or leaves the structure is refused", () => {
    expect(() => layout("x", 4, { A: bits(0, 4, "a"), B: bit(4, "b") })).toThrow(/x\.B overlaps/);
    expect(() => layout("x", 4, { A: bits(30, 32, "a") })).toThrow(/not within 0 to 31/);
  });

  it("decode gives the meaning of enumerated values and shows reserved bits", () => {
    const value = PasidEntry.make({ P: true, PGTT: 3, SLPTPTR: 0x1234_5000n }) | (1n << 141n);
    expect(PasidEntry.decode(value)).toEqual([
      { name: "P", value: 1n, meaning: "present" },
      { name: "PGTT", value: 3n, meaning: "nested" },
      { name: "SLPTPTR", value: 0x1234_5000n, meaning: "second-level table" },
      { name: "DID", value: 0n, meaning: "domain id" },
      { name: "WIDE", value: 0n, meaning: "a number over three words" },
      { name: "FLPTPTR", value: 0n, meaning: "first-level table" },
      { name: "reserved", value: 1n << 141n, meaning: "reserved bits are set" },
    ]);
    expect(PasidEntry.decode(7n << 6n)[1]).toEqual({ name: "PGTT", value: 7n, meaning: "reserved" });
  });

  it("print shows what is set and what is enumerated", () => {
    expect(PasidEntry.print(PasidEntry.make({ P: 1, PGTT: 4, DID: 17 }))).toBe(
      "PASID entry { P=1, PGTT=4 (pass-through), DID=0x11 }",
    );
    expect(layout("x", 4, { A: bit(0, "a") }).print(0n)).toBe("x { all zero }");
  });

  it("make refuses names it does not know", () => {
    const wrong: Record<string, number> = { Q: 1 };
    expect(() => PasidEntry.make(wrong)).toThrow(/no field Q/);
  });

  describe("in big-endian structures with the most significant bit numbered 0", () => {
    const Tce = layout(
      "TCE pair",
      16,
      {
        RPN: address(0, 51, "real page", 12),
        R: bit(63, "read"),
        W: bit(62, "write"),
        LOW: bits(120, 127, "low"),
      },
      { bigEndian: true, msb0: true },
    );

    it("the first byte is the most significant one, and so is word 0", () => {
      const bytes = Uint8Array.of(0, 0, 0, 1, 0x23, 0x45, 0x60, 3, 0, 0, 0, 0, 0, 0, 0, 0xab);
      const value = Tce.read(bytes);
      expect(Tce.fields.RPN.of(value)).toBe(0x1_2345_6000n);
      expect(Tce.fields.LOW.of(value)).toBe(0xabn);
      const words = [1, 0x2345_6003, 0, 0xab];
      expect(Tce.fromWords(words)).toBe(value);
      expect(Tce.fields.RPN.get(words)).toBe(0x1_2345_6000);
      expect(Tce.fields.R.get(words)).toBe(1);
      expect(Tce.fields.LOW.get(words)).toBe(0xab);
      expect(Tce.fields.R).toMatchObject({ first: 64, word: 1, shift: 0, mask: 1 });
    });

    it("words, bytes and integer agree", () => {
      fc.assert(
        fc.property(fc.bigInt({ min: 0n, max: (1n << 128n) - 1n }), (value) => {
          const bytes = new Uint8Array(16);
          Tce.write(bytes, value);
          const data = new DataView(bytes.buffer);
          const words = [0, 4, 8, 12].map((at) => data.getUint32(at));
          expect(Tce.fromWords(words)).toBe(value);
          expect(BigInt(Tce.fields.RPN.get(words))).toBe(Tce.fields.RPN.of(value));
          const back = [0, 0, 0, 0];
          Tce.toWords(value, back);
          expect(back).toEqual(words);
        }),
      );
    });
  });
});
