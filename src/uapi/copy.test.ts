import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { copyArgsz, copyStruct, cutToSize, type ReadArgument, readSize } from "./copy.ts";
import { LinuxError } from "./errno.ts";
import { struct, u32, u64 } from "./struct.ts";

const Command = struct("command", { size: u32, id: u32, va: u64, added: u32, reserved: u32 });
const FIRST_VERSION = Command.fieldEnd("va");

/** Memory that ends after `bytes`. */
const memory =
  (bytes: Uint8Array): ReadArgument =>
  (at, into) => {
    if (at + into.length > bytes.length) throw new LinuxError("EFAULT", "the memory ends");
    into.set(bytes.subarray(at, at + into.length));
  };

const failure = (work: () => unknown): string => {
  try {
    work();
  } catch (error) {
    if (error instanceof LinuxError) return error.code;
    throw error;
  }
  return "none";
};

describe("size negotiation of iommufd", () => {
  it("bytes that are used again keep nothing of before", () => {
    const into = new Uint8Array(Command.size).fill(0xff);
    const bytes = Command.bytes({ size: 16, id: 7, va: 1n });
    expect(copyStruct(memory(bytes.subarray(0, 16)), Command, 16, FIRST_VERSION, into)).toBe(into);
    expect(into).toEqual(bytes);
  });

  it("a short structure is filled up with zeros and its missing part is not touched", () => {
    const bytes = Command.bytes({ size: 16, id: 7, va: 1n });
    const got = copyStruct(memory(bytes.subarray(0, 16)), Command, 16, FIRST_VERSION);
    expect(Command.read(got)).toEqual({ size: 16, id: 7, va: 1n, added: 0, reserved: 0 });
  });

  it("shorter than the first version is EINVAL, whatever the memory", () => {
    expect(failure(() => copyStruct(memory(new Uint8Array(0)), Command, 15, FIRST_VERSION))).toBe("EINVAL");
  });

  it("longer is fine when the tail is zero, E2BIG when it is not", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 10_000 }), fc.nat(), (extra, where) => {
        const bytes = new Uint8Array(Command.size + extra);
        Command.write(bytes, { size: bytes.length, id: 9 });
        expect(Command.read(copyStruct(memory(bytes), Command, bytes.length)).id).toBe(9);
        bytes[Command.size + (where % extra)] = 1;
        expect(failure(() => copyStruct(memory(bytes), Command, bytes.length))).toBe("E2BIG");
      }),
    );
  });

  it("a size beyond the memory is EFAULT, or E2BIG when a non-zero byte comes first", () => {
    const bytes = new Uint8Array(5000);
    expect(failure(() => copyStruct(memory(bytes), Command, 0xffff_ffff))).toBe("EFAULT");
    bytes[4999] = 1;
    expect(failure(() => copyStruct(memory(bytes), Command, 0xffff_ffff))).toBe("E2BIG");
  });

  it("looks at a long tail in pieces, and at the edge of the memory in halves", () => {
    let largest = 0;
    copyStruct((_, into) => (largest = Math.max(largest, into.length)), Command, 1 << 20);
    expect(largest).toBe(65_536);
    let reads = 0;
    const read = memory(new Uint8Array(1 << 20));
    const counted: ReadArgument = (at, into) => {
      reads += 1;
      read(at, into);
    };
    expect(failure(() => copyStruct(counted, Command, 0xffff_ffff))).toBe("EFAULT");
    expect(reads).toBeLessThan(60);
  });

  it("the size is the first word, and the answer is cut to it", () => {
    const bytes = Command.bytes({ size: 0x8000_0010 });
    expect(readSize(memory(bytes))).toBe(0x8000_0010);
    expect(failure(() => readSize(memory(new Uint8Array(3))))).toBe("EFAULT");
    expect(cutToSize(bytes, 16)).toHaveLength(16);
    expect(cutToSize(bytes, 100)).toHaveLength(24);
  });
});

describe("argsz of VFIO", () => {
  it("reads only the members that are needed", () => {
    const bytes = Command.bytes({ size: 100, id: 5, va: 3n });
    const { bytes: got, argsz } = copyArgsz(memory(bytes.subarray(0, 16)), Command, FIRST_VERSION);
    expect(argsz).toBe(100);
    expect(Command.read(got)).toMatchObject({ id: 5, va: 3n, added: 0 });
  });

  it("memory comes before argsz: EFAULT, then EINVAL", () => {
    const bytes = Command.bytes({ size: 15 });
    expect(failure(() => copyArgsz(memory(bytes.subarray(0, 12)), Command, FIRST_VERSION))).toBe("EFAULT");
    expect(failure(() => copyArgsz(memory(bytes), Command, FIRST_VERSION))).toBe("EINVAL");
  });

  it("a longer argument is not looked at", () => {
    const bytes = new Uint8Array(200).fill(0xff);
    expect(copyArgsz(memory(bytes), Command).argsz).toBe(0xffff_ffff);
  });
});
