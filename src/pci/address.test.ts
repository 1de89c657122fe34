import { describe, expect, it } from "vitest";
import { formatAddress, parseAddress, requesterId } from "./address.ts";

describe("the address of a function", () => {
  it("is written and read back", () => {
    const address = { segment: 0x12, bus: 0xab, device: 0x1f, function: 7 };
    expect(formatAddress(address)).toBe("0012:ab:1f.7");
    expect(parseAddress("0012:AB:1f.7")).toEqual(address);
    expect(parseAddress("01:00.0")).toEqual({ segment: 0, bus: 1, device: 0, function: 0 });
  });

  it.each(["", "1:0.0", "0000:01:20.0", "0000:01:00.8", "0000:01:00", "0000:01:00.0 "])(
    "is not %j",
    (text) => {
      expect(parseAddress(text)).toBeUndefined();
    },
  );

  it("is the requester id without its segment", () => {
    expect(requesterId({ segment: 3, bus: 1, device: 2, function: 3 })).toBe(0x113);
  });
});
