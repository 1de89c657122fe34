import { closeSync, writeSync } from "node:fs";
import { describe, expect, it } from "vitest";
import * as libc from "./libc.ts";

const { read, write } = libc.Prot;

describe("calls of the C library", () => {
  it("a call that fails gives minus errno, and `must` names it", () => {
    expect(libc.close(-1)).toBe(-9);
    expect(libc.mmap(1, 4096, read, libc.MapFlag.private | libc.MapFlag.fixed, -1, 0)).toBeLessThan(0);
    expect(() => libc.must("close", libc.close(-1))).toThrow("close: errno 9");
  });

  it("a memfd is seen through a mapping of it, holes are punched, data is sought", () => {
    const fd = libc.must("memfd_create", libc.memfdCreate("libc test", libc.MFD_CLOEXEC));
    expect(libc.ftruncate(fd, 2 ** 40)).toBe(0);
    const at = libc.must("mmap", libc.mmap(0, 8192, read | write, libc.MapFlag.shared, fd, 2 ** 39));
    const bytes = new Uint8Array(libc.viewOf(at, 8192));
    writeSync(fd, Uint8Array.of(7), 0, 1, 2 ** 39 + 4096);
    expect([bytes[4096], libc.lseek(fd, 0, 3)]).toEqual([7, 2 ** 39 + 4096]);
    const punch = libc.FallocateMode.keepSize | libc.FallocateMode.punchHole;
    expect(libc.fallocate(fd, punch, 2 ** 39, 8192)).toBe(0);
    expect(bytes[4096]).toBe(0);
    expect(libc.mprotect(at, 8192, read)).toBe(0);
    expect(libc.munmap(at, 8192)).toBe(0);
    expect(libc.fcntl(fd, libc.Fcntl.getFd, 0)).toBe(1);
    closeSync(fd);
  });

  it("another process's memory is read and written in pieces, up to the first page that is not there", () => {
    const anonymous = libc.MapFlag.private | libc.MapFlag.anonymous;
    const length = 300 * 4096; // longer than the buffer that is used
    const at = libc.must("mmap", libc.mmap(0, length, read | write, anonymous, -1, 0));
    const data = Uint8Array.from({ length }, (_, i) => (i * 7) & 255);
    expect(libc.processWrite(process.pid, at, data)).toBe(length);
    const into = new Uint8Array(length);
    expect(libc.processRead(process.pid, at, into)).toBe(length);
    expect(Buffer.compare(into, data)).toBe(0);
    libc.munmap(at + 290 * 4096, 4096);
    expect(libc.processRead(process.pid, at + 4096, into)).toBe(289 * 4096);
    libc.mprotect(at, 4096, read);
    expect(libc.processWrite(process.pid, at, data)).toBe(-14);
    libc.munmap(at, length);
  });

  it("a descriptor of a process is taken through its pidfd", () => {
    const fd = libc.memfdCreate("mine", libc.MFD_CLOEXEC);
    const pidfd = libc.must("pidfd_open", libc.pidfdOpen(process.pid));
    const copy = libc.must("pidfd_getfd", libc.pidfdGetfd(pidfd, fd));
    expect(copy).not.toBe(fd);
    expect(libc.pidfdGetfd(pidfd, 1_000_000)).toBe(-9);
    for (const one of [fd, pidfd, copy]) libc.close(one);
  });
});
