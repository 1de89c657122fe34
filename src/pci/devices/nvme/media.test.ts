import { mkdtempSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { FileMedia, type Media, MemoryMedia, openMedia } from "./media.ts";
import { openNamespaces } from "./namespace.ts";
import { checkOptions, type NvmeOptions } from "./options.ts";

/** The medium of namespace 1. */
const opened = (options: NvmeOptions): Media => openMedia(checkOptions(options).namespaces[0]!);

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "softiommu-nvme-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

const SIZE = 3 * 1024 * 1024;
const kinds: [string, () => Media][] = [
  ["memory", () => new MemoryMedia(SIZE)],
  ["a file", () => new FileMedia(join(folder, "disk.img"), SIZE, 512)],
];

describe.each(kinds)("a namespace in %s", (_name, make) => {
  it("is an array of bytes, zero at first", () => {
    const step = fc.record({
      kind: fc.constantFrom("read", "write", "zero"),
      at: fc.nat(SIZE - 1),
      length: fc.integer({ min: 1, max: 300_000 }),
      byte: fc.integer({ min: 1, max: 255 }),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 15 }), (steps) => {
        const media = make();
        const model = new Uint8Array(SIZE);
        media.zero(0, SIZE);
        for (const { kind, at, length: wanted, byte } of steps) {
          const length = Math.min(wanted, SIZE - at);
          if (kind === "write") {
            expect(media.write(at, new Uint8Array(length).fill(byte))).toBe(true);
            model.fill(byte, at, at + length);
          } else if (kind === "zero") {
            expect(media.zero(at, length)).toBe(true);
            model.fill(0, at, at + length);
          } else {
            const seen = new Uint8Array(length).fill(9);
            expect(media.read(at, seen)).toBe(true);
            expect(Buffer.compare(seen, model.subarray(at, at + length))).toBe(0);
          }
        }
        expect(media.flush()).toBe(true);
        media.close();
      }),
      { numRuns: 25 },
    );
  });

  it("says how much of it is in use", () => {
    const media = make();
    expect(media.used()).toBe(0);
    media.write(SIZE - 512, new Uint8Array(512).fill(1));
    expect(media.used()).toBeGreaterThan(0);
    expect(media.used()).toBeLessThanOrEqual(SIZE);
    media.close();
    media.close();
  });
});

describe("a namespace in a file", () => {
  it("is made, grown with a hole, and keeps its content", () => {
    const file = join(folder, "disk.img");
    writeFileSync(file, "hello");
    const size = 2 ** 33;
    const media = opened({ file, size });
    expect(media.size).toBe(size);
    expect(statSync(file).size).toBe(size);
    expect(statSync(file).blocks).toBeLessThan(100);
    const into = new Uint8Array(8);
    media.read(0, into);
    expect(Buffer.from(into).toString()).toBe("hello\0\0\0");
    media.write(size - 8, Uint8Array.of(1, 2, 3));
    media.close();
    const again = opened({ file }); // the size is the file's
    expect(again.size).toBe(size);
    again.read(size - 8, into);
    expect([...into.subarray(0, 4)]).toEqual([1, 2, 3, 0]);
    again.close();
  });

  it("takes no room for zeroes where there is none", () => {
    const file = join(folder, "disk.img");
    const media = opened({ file, size: 2 ** 24 });
    media.write(2 ** 20, new Uint8Array(4096).fill(7));
    expect(media.zero(0, 2 ** 24)).toBe(true);
    expect(statSync(file).blocks).toBeLessThan(1000);
    const into = new Uint8Array(4096).fill(1);
    media.read(2 ** 20, into);
    expect(into.every((byte) => byte === 0)).toBe(true);
    media.close();
  });

  it("is closed again when a later one cannot be opened", () => {
    const close = vi.spyOn(FileMedia.prototype, "close");
    const moreNamespaces = [{ file: join(folder, "no/such") }];
    const { namespaces } = checkOptions({ file: join(folder, "disk.img"), size: 512, moreNamespaces });
    expect(() => openNamespaces(namespaces)).toThrow("ENOENT");
    expect(close).toHaveBeenCalledTimes(1);
    close.mockRestore();
  });

  it("refuses a file that is no whole number of blocks, or cannot be opened", () => {
    const file = join(folder, "odd.img");
    writeFileSync(file, "hello");
    expect(() => opened({ file })).toThrow("nvme: size 5 is not a multiple of the block size");
    expect(() => opened({ file: join(folder, "no/such") })).toThrow("ENOENT");
  });

  it("reads zeroes when somebody makes the file shorter, and fails once it is closed", () => {
    const file = join(folder, "disk.img");
    const media = opened({ file, size: 8192 });
    media.write(0, new Uint8Array(8192).fill(7));
    truncateSync(file, 4096);
    const into = new Uint8Array(8192).fill(1);
    expect(media.read(0, into)).toBe(true);
    expect([into[4095], into[4096], into[8191]]).toEqual([7, 0, 0]);
    media.close();
    expect(media.read(0, into)).toBe(false);
    expect(media.write(0, into)).toBe(false);
    expect(media.zero(0, 512)).toBe(false);
    expect(media.flush()).toBe(false);
    expect(media.used()).toBe(0);
  });
});

describe("options of a controller", () => {
  it.each([
    [{ blockSize: 1024 as 512 }, "nvme: blockSize is 1024; it is 512 or 4096"],
    [{ size: 1000 }, "nvme: size 1000 is not a multiple of the block size, 512 bytes"],
    [{ size: 0 }, "nvme: size 0 is not a multiple"],
    [
      { size: 4608, blockSize: 4096 as const },
      "nvme: size 4608 is not a multiple of the block size, 4096 bytes",
    ],
    [{ moreNamespaces: [{ size: 1000 }] }, "nvme: size 1000 is not a multiple"],
    [{ moreNamespaces: Array(32).fill({}) }, "nvme: the number of namespaces is 33; it is an integer from 1"],
    [{ serial: "" }, 'nvme: serial "" is not 1 to 20 printable ASCII characters'],
    [{ serial: "x".repeat(21) }, "is not 1 to 20 printable ASCII characters"],
    [{ queues: 0 }, "nvme: queues is 0; it is an integer from 1 to 1023"],
    [{ mdts: 13 }, "nvme: mdts is 13; it is an integer from 1 to 12"],
    [{ dstrd: -1 }, "nvme: dstrd is -1; it is an integer from 0 to 10"],
    [{ queueEntries: 1.5 }, "nvme: queueEntries is 1.5; it is an integer from 2 to 65536"],
  ])("%j is refused with a sentence", (options, sentence) => {
    expect(() => checkOptions(options)).toThrow(sentence);
  });
});
