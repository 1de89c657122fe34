import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync } from "node:fs";
import { afterAll, describe, expect, it } from "vitest";
import * as libc from "../base/libc.ts";
import { Maps, parseVma, type Vma } from "./maps.ts";
import { sameMapping } from "./remote-frames.ts";

const mapped = libc.must(
  "mmap",
  libc.mmap(0, 3 * 4096, libc.Prot.read, libc.MapFlag.private | libc.MapFlag.anonymous, -1, 0),
);
const fd = libc.memfdCreate("maps test", libc.MFD_CLOEXEC);
libc.ftruncate(fd, 2 ** 40);
const access = libc.Prot.read | libc.Prot.write;
const fileMapped = libc.must("mmap", libc.mmap(0, 8192, access, libc.MapFlag.shared, fd, 2 ** 39));
afterAll(() => {
  libc.munmap(mapped, 3 * 4096);
  libc.munmap(fileMapped, 8192);
  closeSync(fd);
});

describe("the mappings of a process", () => {
  it("are the same by query and by text", () => {
    const asked = new Maps(process.pid);
    const read = new Maps(process.pid, true);
    let same = 0;
    for (const vma of read.all()) {
      const query = asked.at(vma.start);
      // The heap of this process moves while it is looked at.
      if (query?.start === vma.start && query.end === vma.end && vma.name !== "[vsyscall]") {
        expect(query).toEqual({ ...vma, name: vma.name.replaceAll("\\012", "\n") });
        same += 1;
      }
    }
    expect(same).toBeGreaterThan(20);
    for (const maps of [asked, read]) {
      const vma = maps.at(fileMapped + 4096)!;
      expect(vma).toMatchObject({
        prot: access,
        shared: true,
        offset: 2 ** 39 + (vma.start === fileMapped ? 0 : Number.NaN),
      });
      expect(vma.inode).toBeGreaterThan(0);
      expect(maps.at(mapped)?.prot).toBe(libc.Prot.read);
      maps.close();
    }
  });

  it("at an address with nothing, the next one is given, and above all of them none", () => {
    const maps = new Maps(process.pid);
    expect(maps.at(4096)!.start).toBeGreaterThan(4096);
    expect(maps.at(2 ** 47)).toBeUndefined();
    maps.close();
  });

  it("are gone when the process is, even if its number is used again", async () => {
    const child = spawn("sleep", ["60"]);
    await once(child, "spawn");
    const maps = new Maps(child.pid!);
    expect(maps.all().length).toBeGreaterThan(0);
    child.kill("SIGKILL");
    await once(child, "exit");
    expect(maps.all()).toEqual([]);
    expect(maps.at(4096)).toBeUndefined();
    maps.close();
  });

  it("a line that is none is not taken for one", () => {
    expect(parseVma("")).toBeUndefined();
    expect(parseVma("7f00-8000 rw-p 00000000 00:01 1026   /memfd:a b (deleted)")).toEqual({
      start: 0x7f00,
      end: 0x8000,
      prot: 3,
      shared: false,
      offset: 0,
      major: 0,
      minor: 1,
      inode: 1026,
      name: "/memfd:a b (deleted)",
    });
  });
});

describe("whether a mapping still is the one that was pinned", () => {
  const file: Vma = {
    start: 0x10000,
    end: 0x20000,
    prot: 3,
    shared: true,
    offset: 0x5000,
    major: 0,
    minor: 1,
    inode: 7,
    name: "/memfd:x",
  };
  const anonymous: Vma = { ...file, shared: false, offset: 0, minor: 0, inode: 0, name: "" };
  const stack: Vma = { ...anonymous, name: "[stack]" };
  const same = (then: Vma, now: Vma | undefined) => sameMapping(then, now, 0x12000, 0x13000);

  it.each<[string, boolean, Vma, Vma | undefined]>([
    ["unchanged", true, file, file],
    ["gone", false, file, undefined],
    ["cut off before the page", false, file, { ...file, end: 0x12000 }],
    ["cut at both sides of the page", true, file, { ...file, start: 0x12000, end: 0x13000, offset: 0x7000 }],
    ["another place of the file", false, file, { ...file, offset: 0x6000 }],
    ["another file", false, file, { ...file, inode: 8 }],
    ["private now", false, file, { ...file, shared: false }],
    ["read-only now", false, file, { ...file, prot: 1 }],
    ["executable as well now", true, file, { ...file, prot: 7 }],
    ["anonymous memory grown downwards", true, anonymous, { ...anonymous, start: 0x8000 }],
    ["anonymous memory made anew above", false, anonymous, { ...anonymous, start: 0x11000 }],
    ["the stack, grown", true, stack, { ...stack, start: 0x1000 }],
    ["no stack any more", false, stack, anonymous],
  ])("%s: %s", (_, expected, then, now) => {
    expect(same(then, now)).toBe(expected);
  });
});
