import { beforeEach, describe, expect, it } from "vitest";
import { msi } from "./capabilities.ts";
import { ConfigSpace } from "./config.ts";
import { Msi } from "./msi.ts";
import { Msix } from "./msix.ts";

type Sent = readonly [vector: number, lo: number, hi: number, data: number];
let sent: Sent[] = [];
const send = (...message: Sent): void => void sent.push(message);
beforeEach(() => {
  sent = [];
});

describe("§7.7.1 MSI", () => {
  let config: ConfigSpace;
  let interrupts: Msi;
  let at: number;
  beforeEach(() => {
    config = new ConfigSpace(256);
    at = config.add(msi(2));
    interrupts = new Msi(config, at, send);
    config.onWrite = () => interrupts.update();
    config.write(at + 4, 4, 0xfee0_1003);
    config.write(at + 8, 4, 1);
    config.write(at + 12, 2, 0x4047);
  });
  const enable = (vectorsLg2: number) => config.write(at + 2, 2, 1 | (vectorsLg2 << 4));

  it("wants 4 vectors, with 64-bit addresses and masks", () => {
    expect(config.read(at + 2, 2)).toBe(0x0184);
    expect(config.read(at + 4, 4)).toBe(0xfee0_1000);
    config.write(at + 16, 4, 0xffff_ffff);
    expect(config.read(at + 16, 4)).toBe(0xf);
  });

  it("sends nothing while it is off", () => {
    interrupts.signal(0);
    expect(sent).toEqual([]);
  });

  it("puts the vector in the low bits of the data, folded onto the vectors given", () => {
    enable(1);
    for (const vector of [0, 1, 3]) interrupts.signal(vector);
    expect(sent).toEqual([
      [0, 0xfee0_1000, 1, 0x4046],
      [1, 0xfee0_1000, 1, 0x4047],
      [1, 0xfee0_1000, 1, 0x4047],
    ]);
  });

  it("keeps a masked vector's event pending until it is unmasked", () => {
    enable(2);
    config.write(at + 16, 4, 0b100);
    interrupts.signal(2);
    interrupts.signal(2);
    expect([sent.length, config.read(at + 20, 4)]).toEqual([0, 0b100]);
    config.write(at + 16, 4, 0);
    expect(sent).toEqual([[2, 0xfee0_1000, 1, 0x4046]]);
    expect(config.read(at + 20, 4)).toBe(0);
  });
});

describe("§7.7.2 MSI-X", () => {
  let interrupts: Msix;
  beforeEach(() => {
    interrupts = new Msix({ vectors: 70, bar: 4, table: 0x100, pending: 0x800 }, send);
  });
  const word = (value: number) => new Uint8Array(Uint32Array.of(value).buffer);
  const entry = (vector: number, lo: number, data: number, control: number) =>
    interrupts.write(0x100 + 16 * vector, new Uint8Array(Uint32Array.of(lo, 2, data, control).buffer));
  const pending = () => {
    const bytes = new Uint8Array(16);
    interrupts.read(0x800, bytes);
    return [...new Uint32Array(bytes.buffer)];
  };

  it("begins with every vector masked", () => {
    const bytes = new Uint8Array(70 * 16);
    interrupts.read(0x100, bytes);
    expect([...new Uint32Array(bytes.buffer)].filter((_, i) => i % 4 === 3)).toEqual(new Array(70).fill(1));
  });

  it("sends a vector's own address and data", () => {
    entry(69, 0xfee0_0003, 0xabcd, 0);
    interrupts.control(true, false);
    interrupts.signal(69);
    interrupts.signal(70); // there is none
    expect(sent).toEqual([[69, 0xfee0_0000, 2, 0xabcd]]);
  });

  it("remembers one event of a masked vector, and sends it with what the table says then", () => {
    interrupts.control(true, false);
    interrupts.signal(33);
    interrupts.signal(33);
    expect(pending()).toEqual([0, 2, 0, 0]);
    entry(33, 0xfee0_0000, 1, 1);
    expect(sent).toEqual([]);
    interrupts.write(0x100 + 16 * 33 + 8, word(7));
    interrupts.write(0x100 + 16 * 33 + 12, word(0));
    expect(sent).toEqual([[33, 0xfee0_0000, 2, 7]]);
    expect(pending()).toEqual([0, 0, 0, 0]);
  });

  it("keeps all of them while the function is masked", () => {
    for (const vector of [1, 2]) entry(vector, 0xfee0_0000, vector, 0);
    interrupts.control(true, true);
    interrupts.signal(1);
    interrupts.signal(2);
    expect([sent.length, pending()[0]]).toEqual([0, 6]);
    interrupts.control(true, false);
    expect(sent.map(([vector]) => vector)).toEqual([1, 2]);
  });

  it("has pending bits that cannot be written, and reserved bits that stay zero", () => {
    interrupts.write(0x800, word(0xff));
    expect(pending()[0]).toBe(0);
    entry(0, 0, 0, 0xffff_ffff);
    const bytes = new Uint8Array(4);
    interrupts.read(0x10c, bytes);
    expect([...bytes]).toEqual([1, 0, 0, 0]);
  });

  it("takes accesses of any width that reach beyond the table", () => {
    interrupts.write(0x0fc, new Uint8Array(64).fill(0xff));
    const bytes = new Uint8Array(8);
    interrupts.read(0x0fc, bytes);
    expect([...bytes]).toEqual([0, 0, 0, 0, 0xfc, 0xff, 0xff, 0xff]);
    expect(interrupts.covers(4, 0xfc, 8)).toBe(true);
    expect(interrupts.covers(4, 0xfc, 4)).toBe(false);
    expect(interrupts.covers(0, 0x100, 4)).toBe(false);
    expect(interrupts.covers(4, 0x80f, 1)).toBe(true);
    expect(interrupts.covers(4, 0x810, 1)).toBe(false);
  });
});
