import { closeSync, openSync, readSync, writeSync } from "node:fs";
import koffi from "koffi";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { signalEventfd } from "./eventfd.ts";
import { eventfdHasRoom, writeOne } from "./syscalls.ts";

const make = koffi.load(null).func("eventfd", "int", ["uint", "int"]);
const EFD_NONBLOCK = 0o4000;
const FULL = 0xffff_ffff_ffff_fffen;

let fd: number;
beforeEach(() => {
  fd = make(0, EFD_NONBLOCK);
});
afterEach(() => {
  closeSync(fd);
});
const value = (): bigint => {
  const bytes = new BigUint64Array(1);
  readSync(fd, bytes);
  return bytes[0]!;
};

describe("signalling an eventfd", () => {
  it("adds one each time, as often as one likes", () => {
    for (let i = 0; i < 1000; i += 1) expect(signalEventfd(fd)).toBe(true);
    expect(value()).toBe(1000n);
  });

  it("saturates like a driver's signal instead of waiting for room", () => {
    const blocking = make(0, 0);
    writeSync(blocking, new BigUint64Array([FULL]));
    for (let i = 0; i < 100; i += 1) signalEventfd(blocking);
    const bytes = new BigUint64Array(1);
    readSync(blocking, bytes);
    expect(bytes[0]! >= FULL).toBe(true);
    closeSync(blocking);
  });

  it("is refused by what is no eventfd", () => {
    const file = openSync("/dev/null", "r");
    expect(signalEventfd(file)).toBe(false);
    closeSync(file);
  });

  it("without asynchronous I/O a full counter is noticed before writing", () => {
    expect(eventfdHasRoom(fd)).toBe(true);
    expect(writeOne(fd)).toBe(true);
    expect(value()).toBe(1n);
    writeSync(fd, new BigUint64Array([FULL]));
    expect(eventfdHasRoom(fd)).toBe(false);
  });
});
