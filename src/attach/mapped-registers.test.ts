/** Mapped registers as physical memory: what the library's table says, believed only as far as the files say the same. */
import { describe, expect, it } from "vitest";
import type { KernelFile, UserMemory } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import { MappedRegisters } from "./mapped-registers.ts";
import { TrapWindow } from "./trap-bus.ts";

const PAGE = 4096;
const TABLE = 0x10_0000n;
const USED = 0x8000n;
const BAR = 0xc000_0000;
const BAR_BYTES = 4 * PAGE;

interface Slot {
  readonly start: number;
  readonly pages: number;
  readonly offset?: number;
  readonly protection?: number;
  readonly cookie?: number;
}

const file = {
  registersAt: (offset: bigint) => (offset < BigInt(BAR_BYTES) ? BAR + Number(offset) : undefined),
} as unknown as KernelFile;

/** A program whose table has these slots; `used` is what it says of their number. */
const registers = (slots: readonly Slot[], used = slots.length): MappedRegisters => {
  const bytes = new Uint8Array(Math.max(1, slots.length) * TrapWindow.size);
  const view = new DataView(bytes.buffer);
  slots.forEach(({ start, pages, offset = 0, protection = 3, cookie = 7 }, i) => {
    const at = i * TrapWindow.size;
    view.setBigUint64(at + TrapWindow.start, BigInt(start), true);
    view.setBigUint64(at + TrapWindow.end, BigInt(start + pages * PAGE), true);
    view.setBigUint64(at + TrapWindow.file_offset, BigInt(offset), true);
    view.setBigUint64(at + TrapWindow.cookie, BigInt(cookie), true);
    view.setUint32(at + TrapWindow.protection, protection, true);
  });
  const memory = {
    read: (va: bigint, into: Uint8Array) => {
      if (va === USED) new DataView(into.buffer).setUint32(0, used, true);
      else if (va >= TABLE && va + BigInt(into.length) <= TABLE + BigInt(bytes.length))
        into.set(bytes.subarray(Number(va - TABLE), Number(va - TABLE) + into.length));
      else throw new LinuxError("EFAULT", "cannot be read");
    },
  } as unknown as UserMemory;
  return new MappedRegisters(memory, { table: TABLE, used: USED }, ({ cookie }) =>
    cookie === 7 ? file : undefined,
  );
};
const extents = (mapped: MappedRegisters, va: number, pages: number, writable = true) => [
  ...(mapped.at(va, pages * PAGE, writable)?.extents ?? []),
];
const EFAULT = expect.objectContaining({ code: "EFAULT" });

describe("mapped registers", () => {
  it("are frames of the BAR, in as many runs as there are windows", () => {
    const mapped = registers([
      { start: 0x7000_2000, pages: 2, offset: 2 * PAGE },
      { start: 0x7000_0000, pages: 2 },
    ]);
    const frame = BAR / PAGE;
    expect(extents(mapped, 0x7000_0000, 1)).toEqual([frame, 1]);
    expect(extents(mapped, 0x7000_1000, 3)).toEqual([frame + 1, 1, frame + 2, 2]);
    expect(mapped.at(0x7000_0000, 4 * PAGE, false)).toMatchObject({
      va: 0x7000_0000,
      pages: 4,
      writable: false,
    });
  });

  it("are nothing elsewhere, and not together with what lies beside them", () => {
    const mapped = registers([{ start: 0x7000_0000, pages: 2 }]);
    expect(mapped.at(0x6000_0000, PAGE, true)).toBeUndefined();
    expect(() => extents(mapped, 0x7000_1000, 2)).toThrow(EFAULT);
    expect(() => extents(mapped, 0x6fff_f000, 2)).toThrow(EFAULT);
  });

  it("EFAULT without the permission, without the file, and beyond the BAR", () => {
    expect(() =>
      extents(registers([{ start: 0x7000_0000, pages: 1, protection: 1 }]), 0x7000_0000, 1),
    ).toThrow(EFAULT);
    expect(
      extents(registers([{ start: 0x7000_0000, pages: 1, protection: 1 }]), 0x7000_0000, 1, false),
    ).toHaveLength(2);
    expect(() => extents(registers([{ start: 0x7000_0000, pages: 1, cookie: 8 }]), 0x7000_0000, 1)).toThrow(
      EFAULT,
    );
    expect(() => extents(registers([{ start: 0x7000_0000, pages: 5 }]), 0x7000_0000, 5)).toThrow(EFAULT);
  });

  it("a table that claims to be larger than it is cannot be read, and windows over all addresses end at once", () => {
    expect(() => extents(registers([], 100_000), 0x7000_0000, 1)).toThrow(EFAULT);
    const everywhere = Array.from({ length: 50 }, () => ({ start: 0, pages: 2 ** 35 }));
    expect(() => registers(everywhere).at(0, 2 ** 46, true)).toThrow(EFAULT);
  });
});
