import { describe, expect, it } from "vitest";
import { functionSuite } from "../function.suite.ts";
import { Rig } from "../rig.suite.ts";
import { BareFunction } from "./bare.ts";

const bars = [
  { index: 0, kind: "mem32", size: 4096 },
  { index: 1, kind: "io", size: 32 },
  { index: 2, kind: "mem64", size: 2 ** 20, prefetchable: true },
] as const;

functionSuite("a bare function", { create: (context) => new BareFunction(context, bars) });

describe("a bare function", () => {
  it("remembers what is written to its BARs until it is reset", () => {
    const rig = new Rig();
    const device = new BareFunction(rig.context, bars);
    const into = new Uint8Array(3);
    device.barWrite(2, 0x1_0001, Uint8Array.of(1, 2, 3));
    device.barRead(2, 0x1_0001, into);
    expect([...into]).toEqual([1, 2, 3]);
    device.reset();
    device.barRead(2, 0x1_0001, into);
    expect([...into]).toEqual([0, 0, 0]);
    rig.close();
  });

  it("refuses BARs that cannot be, with a sentence", () => {
    const rig = new Rig();
    const make = (size: number, index = 0) => new BareFunction(rig.context, [{ index, kind: "mem64", size }]);
    expect(() => make(2 ** 30)).toThrow("bare: BAR 0 has 1073741824 bytes; up to 16777216 are possible");
    expect(() => make(4097)).toThrow("BAR 0: 4097 bytes is not a power of two");
    expect(() => make(4096, 5)).toThrow("a mem64 BAR cannot have index 5");
    rig.close();
  });
});
