import { afterAll, describe, expect, it } from "vitest";
import { createMemory } from "../memory/banks.ts";
import { LinuxError } from "../uapi/errno.ts";
import { MSI_BASE, MsiController } from "./msi.ts";

const word = (value: number) => new Uint8Array(new Uint32Array([value]).buffer);

describe("the interrupt window", () => {
  const memory = createMemory({ ramBytes: 2 ** 20 });
  const msi = new MsiController(memory);
  afterAll(() => memory.close());

  it("a 4-byte write to a message's address calls its handler, through memory", () => {
    let calls = 0;
    const message = msi.allocate(() => calls++);
    expect(memory.writeBytes(Number(message.address), word(message.data), 0x100)).toBe(true);
    expect(calls).toBe(1);
    message.free();
    expect(memory.writeBytes(Number(message.address), word(message.data), 0x100)).toBe(true);
    expect(calls).toBe(1);
  });

  it("messages have addresses of their own within the window", () => {
    const messages = Array.from({ length: 100 }, () => msi.allocate(() => {}));
    expect(new Set(messages.map(({ address }) => address)).size).toBe(100);
    for (const { address } of messages) {
      expect(address).toBeGreaterThanOrEqual(BigInt(MSI_BASE));
      expect(address).toBeLessThan(BigInt(MSI_BASE) + 0x100000n);
    }
    for (const message of messages) message.free();
    expect(msi.allocated).toBe(0);
  });

  it("a block tells which of its data values came, and drops those beyond it", () => {
    const seen: number[] = [];
    const { address, data, free } = msi.allocate((n) => seen.push(n), { count: 4 });
    for (const n of [0, 3, 2, 4, 31]) memory.writeBytes(Number(address), word(data + n), 1);
    expect(seen).toEqual([0, 3, 2]);
    free();
  });

  it("a message of one function does not count when another sends it", () => {
    let calls = 0;
    const { address, data, free } = msi.allocate(() => calls++, { source: 0x100 });
    memory.writeBytes(Number(address), word(data), 0x108);
    memory.writeBytes(Number(address), word(data), -1);
    expect(calls).toBe(0);
    memory.writeBytes(Number(address), word(data), 0x100);
    expect(calls).toBe(1);
    free();
  });

  it("reads, other widths and unaligned writes are refused", () => {
    expect(memory.readBytes(MSI_BASE, new Uint8Array(4))).toBe(false);
    expect(memory.writeBytes(MSI_BASE, new Uint8Array(8))).toBe(false);
    expect(memory.writeBytes(MSI_BASE + 2, new Uint8Array(4))).toBe(false);
  });

  it("EINVAL for a block that is no power of two up to 32, ENOSPC when none is left", () => {
    for (const count of [0, 3, 64])
      expect(() => msi.allocate(() => {}, { count })).toThrow(expect.objectContaining({ code: "EINVAL" }));
    const all = Array.from({ length: 65536 }, () => msi.allocate(() => {}));
    expect(() => msi.allocate(() => {})).toThrow(LinuxError);
    expect(() => msi.allocate(() => {})).toThrow(expect.objectContaining({ code: "ENOSPC" }));
    all[7]!.free();
    expect(msi.allocate(() => {}).address).toBe(all[7]!.address);
  });

  it("freeing twice does not free somebody else's message", () => {
    const own = createMemory({ ramBytes: 2 ** 20 });
    const other = new MsiController(own);
    const first = other.allocate(() => {});
    first.free();
    let calls = 0;
    let second = other.allocate(() => calls++);
    while (second.address !== first.address) second = other.allocate(() => calls++);
    first.free();
    own.writeBytes(Number(second.address), word(0));
    expect(calls).toBe(1);
    other.close();
    expect(own.writeBytes(MSI_BASE, word(0))).toBe(false);
    own.close();
  });
});
