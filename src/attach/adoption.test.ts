import { fstatSync, writeSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type Banks, createMemory } from "../memory/banks.ts";
import { FRAME_BYTES } from "../memory/host-memory.ts";
import { Adoption } from "./adoption.ts";
import { type ClientFile, ClientFiles } from "./client-files.ts";
import type { Vma } from "./maps.ts";
import { releaseAll } from "./page-pin.ts";

let banks: Banks;
let file: ClientFile;
let files: ClientFiles;
let adoption: Adoption;
const owner = {};
beforeEach(() => {
  banks = createMemory({ ramBytes: 1 << 20 });
  files = new ClientFiles(banks);
  file = files.add("adopted", Adoption.createFile(), true);
  file.owners.add(owner);
  adoption = new Adoption(file);
});
afterEach(() => {
  files.disown(file, owner);
  banks.close();
});

const VA = 0x7f00_0012_3000;
const vma = (offset: number, pages: number): Vma => ({
  start: VA,
  end: VA + pages * FRAME_BYTES,
  prot: 3,
  shared: true,
  offset,
  major: 0,
  minor: 1,
  inode: 1,
  name: "",
});
const touch = (offset: number, pages: number) =>
  writeSync(file.fd, new Uint8Array(pages * FRAME_BYTES).fill(1), 0, pages * FRAME_BYTES, offset);
const kept = () => (fstatSync(file.fd).blocks * 512) / FRAME_BYTES;
const pin = (offset: number, count: number) =>
  file.pin({ first: offset / FRAME_BYTES, count, va: VA, before: 0, after: 0, written: true })!;

describe("adopted ranges", () => {
  it("lie congruent with their address modulo 2 MiB, far from each other", () => {
    const one = adoption.plan(VA, 4096);
    const two = adoption.plan(VA + 4096, 4096);
    const large = adoption.plan(VA, 2 ** 38);
    const next = adoption.plan(VA, 4096);
    expect([one, two].map((offset) => offset % 2 ** 21)).toEqual([VA % 2 ** 21, (VA + 4096) % 2 ** 21]);
    expect(two - one).toBeGreaterThan(2 ** 36);
    expect(next - large).toBeGreaterThan(2 ** 38 + 2 ** 36);
  });

  it("are given back when the program maps them no more and nobody pins them", () => {
    const gone = adoption.plan(VA, 8 * FRAME_BYTES);
    const mapped = adoption.plan(VA, 8 * FRAME_BYTES);
    const pinned = adoption.plan(VA, 8 * FRAME_BYTES);
    const latest = adoption.plan(VA, 8 * FRAME_BYTES);
    for (const offset of [gone, mapped, pinned, latest]) touch(offset, 8);
    const pins = pin(pinned + 2 * FRAME_BYTES, 3);
    // Of one range the program has unmapped a page, and let it grow by another.
    adoption.sweep([vma(mapped, 4), vma(mapped + 5 * FRAME_BYTES, 3)]);
    expect(kept()).toBe(7 + 3 + 8);
    expect(adoption.windows).toBe(3);
    releaseAll(pins);
    adoption.plan(VA, 4096);
    adoption.sweep([vma(mapped, 4), vma(mapped + 5 * FRAME_BYTES, 3)]);
    expect(kept()).toBe(7);
    expect(adoption.windows).toBe(2);
    expect(banks.clientRuns).toBe(0);
  });

  it("use a window again, as zeros", () => {
    const first = adoption.plan(VA, 4096);
    touch(first, 1);
    adoption.cancel(first);
    expect(adoption.windows).toBe(0);
    expect(adoption.plan(VA, 4096)).toBe(first);
    expect(kept()).toBe(0);
  });

  it("are swept when many bytes or ranges have collected, and bounded in number", () => {
    adoption.plan(VA, 64 * 2 ** 20);
    expect(adoption.due).toBe(true);
    adoption.sweep([]);
    expect(adoption.due).toBe(false);
    for (let i = 0; i < 256; i++) adoption.plan(VA, 4096);
    expect(adoption.due).toBe(true);
    while (!adoption.full && adoption.windows < 30_000) adoption.plan(VA, 4096);
    expect(adoption.windows).toBe(20_000);
  });
});

describe("runs of a file", () => {
  it("the same page has the same frame in every pin, and answers until the last is gone", () => {
    const [one] = pin(0, 2);
    const [two] = pin(FRAME_BYTES, 2);
    const frame = one!.pages.frame(one!.first + 1);
    expect(two!.pages.frame(two!.first)).toBe(frame);
    releaseAll([one!]);
    expect(banks.load64(frame * FRAME_BYTES)).toBe(true);
    expect(banks.load64((frame - 1) * FRAME_BYTES)).toBe(false);
    releaseAll([two!]);
    expect(banks.load64(frame * FRAME_BYTES)).toBe(false);
    expect(() => releaseAll([two!])).toThrow("is not pinned");
  });

  it("a file pinned page by page is mapped in pieces of 2 MiB", () => {
    const pages = 2048;
    for (let first = 0; first < pages; first++)
      file.pin({
        first,
        count: 1,
        va: 0x7f00_0000_0000 + first * 4096,
        before: first,
        after: pages - first - 1,
        written: true,
      });
    expect(banks.clientRuns).toBe(4);
  });

  it("only so many that nobody pins stay mapped", () => {
    for (let i = 0; i < 400; i++) releaseAll(pin(i * 2 ** 30, 1));
    expect(banks.clientRuns).toBe(256);
  });

  it("a file without owners stays until its last pin goes", () => {
    const pins = pin(0, 1);
    files.disown(file, owner);
    expect(files.count).toBe(1);
    releaseAll(pins);
    expect([files.count, banks.clientRuns, banks.clientSlots]).toEqual([0, 0, 0]);
  });
});
