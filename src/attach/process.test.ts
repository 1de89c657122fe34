import { describe, expect, it } from "vitest";
import { MapFlag, mmap, munmap, must, Prot } from "../base/libc.ts";
import type { UserMemory } from "../kernel/call.ts";
import { Capability } from "../kernel/call.ts";
import { AttachedProcess, Caller, PrefetchedMemory } from "./process.ts";
import { PlainMemory } from "./testing/harness.ts";

/** Sixteen bytes at address 1000 that count how often they are read. */
class Counted implements UserMemory {
  readonly id = 77;
  lockedPages = 1;
  pinnedPages = 2;
  reads = 0;
  readonly bytes = Uint8Array.from({ length: 16 }, (_, i) => i);
  read(va: bigint, into: Uint8Array): void {
    this.reads += 1;
    into.set(this.bytes.subarray(Number(va) - 1000, Number(va) - 1000 + into.length));
  }
  write(va: bigint, data: Uint8Array): void {
    this.bytes.set(data, Number(va) - 1000);
  }
  pin(): never {
    throw new Error("not used");
  }
}

const read = (memory: UserMemory, va: bigint, length: number): number[] => {
  const into = new Uint8Array(length);
  memory.read(va, into);
  return [...into];
};

describe("memory that came along with the request", () => {
  it("answers reads inside it, and no others", () => {
    const counted = new Counted();
    const memory = new PrefetchedMemory(counted);
    memory.open(1004n, counted.bytes.slice(4, 12));
    expect(read(memory, 1004n, 8)).toEqual([4, 5, 6, 7, 8, 9, 10, 11]);
    expect(read(memory, 1006n, 2)).toEqual([6, 7]);
    expect(counted.reads).toBe(0);
    expect(read(memory, 1003n, 2)).toEqual([3, 4]);
    expect(read(memory, 1011n, 2)).toEqual([11, 12]);
    expect(counted.reads).toBe(2);
  });

  it("is not used after a write or after the call", () => {
    const counted = new Counted();
    const memory = new PrefetchedMemory(counted);
    memory.open(1000n, counted.bytes.slice());
    memory.write(1000n, Uint8Array.of(99));
    expect(read(memory, 1000n, 1)).toEqual([99]);
    memory.open(1000n, counted.bytes.slice());
    memory.close();
    counted.bytes[0] = 55;
    expect(read(memory, 1000n, 1)).toEqual([55]);
  });

  it("is the same address space with the same counters", () => {
    const counted = new Counted();
    const memory = new PrefetchedMemory(counted);
    memory.lockedPages += 10;
    memory.pinnedPages += 20;
    expect([memory.id, counted.lockedPages, counted.pinnedPages]).toEqual([77, 11, 22]);
    expect([memory.lockedPages, memory.pinnedPages]).toEqual([11, 22]);
  });
});

describe("a caller", () => {
  const caller = (pid: number): Caller =>
    new Caller(new AttachedProcess(pid, -1, "", new PlainMemory(pid)), 1000, "own");

  it("has the name, limits and capabilities that the kernel says", () => {
    const self = caller(process.pid);
    expect(self.name.length).toBeGreaterThan(0);
    expect(self.memlockLimit()).toBeGreaterThan(0);
    expect(self.mlockedPages()).toBe(0);
    expect(typeof self.capable(Capability.sysAdmin)).toBe("boolean");
  });

  it("has the pages that it has locked now", () => {
    const { process: self } = caller(process.pid);
    const MAP_LOCKED = 0x2000;
    const flags = MapFlag.private | MapFlag.anonymous | MAP_LOCKED;
    expect(self.mlockedPages()).toBe(0);
    const at = must("mmap", mmap(0, 3 * 4096, Prot.read | Prot.write, flags, -1, 0));
    expect(self.mlockedPages()).toBe(3);
    munmap(at, 3 * 4096);
    expect(self.mlockedPages()).toBe(0);
  });

  it("has room for descriptors as far as numbers below its limit are free", () => {
    const { process: self } = caller(process.pid);
    expect(self.hasRoomFor(1)).toBe(true);
    expect(self.hasRoomFor(2 ** 31)).toBe(false);
  });

  it("that is gone has none", () => {
    const gone = caller(0x3fff_ffff);
    expect(gone.name).toBe("?");
    expect(gone.memlockLimit()).toBe(0);
    expect(gone.mlockedPages()).toBe(0);
    expect(gone.capable(Capability.ipcLock)).toBe(false);
  });
});
