import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type Banks, createMemory } from "../memory/banks.ts";
import { MemoryError } from "../memory/host-memory.ts";
import { Protection } from "../pagetable/format.ts";
import { Mapper } from "../pagetable/mapper.ts";
import { x86Paging } from "../pagetable/x86-64.ts";
import { GuestMemory } from "./memory.ts";

const BYTES = 64 * 4096;

describe("guest memory", () => {
  let host: Banks;
  let base: number;
  let guest: GuestMemory;
  beforeEach(() => {
    host = createMemory({ ramBytes: 2 ** 22 });
    base = host.allocate(64);
    guest = new GuestMemory(host, base, BYTES);
  });
  afterEach(() => host.close());

  it("is the host's at an offset: words, bytes, copies and fills", () => {
    expect(guest.store64(0x1008, 0x1234_5678, 0x9abc_def0)).toBe(true);
    expect(host.load64(base + 0x1008) && [host.lo, host.hi]).toEqual([0x1234_5678, 0x9abc_def0]);
    expect(guest.load64be(0x1008) && [guest.lo, guest.hi]).toEqual([0xf0de_bc9a, 0x7856_3412]);
    expect(guest.or64(0x1008, 0, 0xf) && guest.clear64(0x1008, 0xff, 0)).toBe(true);
    expect(guest.load64(0x1008) && [guest.lo, guest.hi]).toEqual([0x1234_5600, 0x9abc_deff]);
    expect(guest.copy(0x2000, 0x1008, 8) && guest.load32(0x2000) && guest.lo).toBe(0x1234_5600);
    expect(guest.fill(0x2000, 4, 7) && guest.load32(0x2000) && guest.lo).toBe(0x0707_0707);
    expect(guest.store64be(0, 1, 2) && guest.store32(8, 3)).toBe(true);
    const bytes = new Uint8Array(12);
    expect(host.readBytes(base, bytes)).toBe(true);
    expect([...bytes]).toEqual([0, 0, 0, 2, 0, 0, 0, 1, 3, 0, 0, 0]);
    expect(guest.words[0]![2]).toBe(3);
  });

  it("ends where its RAM ends: nothing of the host beyond it is read or written", () => {
    host.fill(base + BYTES, 4096, 0xee);
    for (const pa of [BYTES, -8, BYTES + 4096, 2 ** 40]) {
      for (const access of [
        () => guest.load64(pa),
        () => guest.load32(pa),
        () => guest.store64(pa, 1, 1),
        () => guest.or64(pa, 1, 1),
        () => guest.readBytes(pa, new Uint8Array(4)),
        () => guest.writeBytes(pa, new Uint8Array(4)),
        () => guest.fill(pa, 8, 1),
        () => guest.copy(pa, 0, 8),
        () => guest.copy(0, pa, 8),
      ]) {
        guest.cause = MemoryError.none;
        expect(access()).toBe(false);
        expect(guest.cause).toBe(MemoryError.absent);
      }
    }
    expect(guest.writeBytes(BYTES - 2, new Uint8Array(4))).toBe(false);
    expect(guest.load64(12)).toBe(false);
    expect(guest.cause).toBe(MemoryError.unsupported);
    expect(host.load32(base + BYTES) && host.lo).toBe(0xeeee_eeee);
  });

  it("windows answer beyond RAM, to bytes and not to words of tables", () => {
    const seen: number[] = [];
    const close = guest.addWindow(0xfee0_0000, 4096, {
      name: "window",
      read: () => false,
      write: (offset) => seen.push(offset) > 0,
    });
    expect(guest.writeBytes(0xfee0_0010, new Uint8Array(4))).toBe(true);
    expect(seen).toEqual([0x10]);
    expect(guest.readBytes(0xfee0_0010, new Uint8Array(4))).toBe(false);
    expect(guest.cause).toBe(MemoryError.unsupported);
    expect(guest.load64(0xfee0_0010)).toBe(false);
    expect(guest.writeBytes(0xfee0_0ffe, new Uint8Array(4))).toBe(false);
    close();
    expect(guest.writeBytes(0xfee0_0010, new Uint8Array(4))).toBe(false);
    expect(() => guest.addWindow(0x1000, 4096, { name: "x", read: () => true, write: () => true })).toThrow(
      "lies in the guest's RAM",
    );
  });

  it("hands out zeroed frames until none is left, never frame 0", () => {
    guest.fill(0, BYTES, 0xff);
    const frames: number[] = [];
    for (let pa = guest.allocate(1); pa >= 0; pa = guest.allocate(1)) frames.push(pa);
    expect(new Set(frames).size).toBe(63);
    expect(frames).not.toContain(0);
    expect(guest.load64(frames[0]!) && [guest.lo, guest.hi]).toEqual([0, 0]);
    for (const pa of frames) guest.free(pa, 1);
    expect(guest.allocated).toBe(0);
    expect(guest.allocate(32) % (32 * 4096)).toBe(0);
  });

  it("carries page tables that hold guest addresses", () => {
    const tables = new Mapper(guest, x86Paging(4));
    tables.map(0x7000_0000, 0x3000, 4096, Protection.read);
    expect(tables.physical(0x7000_0010)).toBe(0x3010);
    expect(tables.root).toBeLessThan(BYTES);
    tables.destroy();
    expect(guest.allocated).toBe(0);
  });

  it("is whole frames of one bank", () => {
    expect(() => new GuestMemory(host, 100, 4096)).toThrow(RangeError);
    expect(() => new GuestMemory(host, 2 ** 32 - 4096, 8192)).toThrow(RangeError);
  });
});
