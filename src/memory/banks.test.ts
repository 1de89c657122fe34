import { fstatSync } from "node:fs";
import * as fc from "fast-check";
import { afterEach, describe, expect, it } from "vitest";
import * as libc from "../base/libc.ts";
import { Banks, createMemory } from "./banks.ts";
import { FRAME_BYTES, MemoryError, type MmioWindow } from "./host-memory.ts";

const GIB = 2 ** 30;
const BANK = 2 ** 32;

const opened: Banks[] = [];
const files: number[] = [];
const make = (options: ConstructorParameters<typeof Banks>[0]): Banks => {
  const banks = new Banks(options);
  opened.push(banks);
  return banks;
};
const memfd = (pages: number): number => {
  const fd = libc.must("memfd_create", libc.memfdCreate("banks test", libc.MFD_CLOEXEC));
  files.push(fd);
  libc.must("ftruncate", libc.ftruncate(fd, pages * FRAME_BYTES));
  return fd;
};
afterEach(() => {
  for (const banks of opened.splice(0)) banks.close();
  for (const fd of files.splice(0)) libc.close(fd);
});

// ---- the literal model: a map from address to byte, and what each frame is -----------------------------------

type Kind = "rw" | "ro" | "window" | "poisoned";

class Literal {
  readonly bytes = new Map<number, number>();
  readonly frames = new Map<number, Kind>();

  /** Why a byte cannot be read or written. */
  #refusal(pa: number, write: boolean): MemoryError {
    const kind = this.frames.get(Math.floor(pa / FRAME_BYTES));
    if (kind === undefined) return MemoryError.absent;
    if (kind === "poisoned") return MemoryError.poisoned;
    return write && kind === "ro" ? MemoryError.protected : MemoryError.none;
  }
  read(pa: number, into: number[], length: number): MemoryError {
    for (let i = 0; i < length; i++) {
      const refusal = this.#refusal(pa + i, false);
      if (refusal !== MemoryError.none) return refusal;
      into.push(this.bytes.get(pa + i) ?? 0);
    }
    return MemoryError.none;
  }
  write(pa: number, data: readonly number[]): MemoryError {
    for (const [i, byte] of data.entries()) {
      const refusal = this.#refusal(pa + i, true);
      if (refusal !== MemoryError.none) return refusal;
      this.bytes.set(pa + i, byte);
    }
    return MemoryError.none;
  }
  /** A word must be aligned and is not fetched from a device. */
  word(pa: number, size: number): MemoryError {
    const window = this.frames.get(Math.floor(pa / FRAME_BYTES)) === "window";
    return pa % size !== 0 || window ? MemoryError.unsupported : MemoryError.none;
  }
  poison(pa: number, length: number): void {
    for (let frame = Math.floor(pa / FRAME_BYTES); frame * FRAME_BYTES < pa + length; frame++) {
      const kind = this.frames.get(frame);
      if (kind !== undefined && kind !== "window") this.frames.set(frame, "poisoned");
    }
  }
}

const LOW = { start: 0, length: 4 * FRAME_BYTES };
/** Across the border of two banks. */
const BORDER = { start: BANK - 2 * FRAME_BYTES, length: 4 * FRAME_BYTES };
const WINDOW = { start: 4 * FRAME_BYTES, length: 2 * FRAME_BYTES };

const build = (): { banks: Banks; model: Literal; places: number[] } => {
  const banks = make({ ram: [LOW, BORDER], clients: { start: 2 * BANK, length: BANK } });
  const model = new Literal();
  const set = (start: number, length: number, kind: Kind) => {
    for (let pa = start; pa < start + length; pa += FRAME_BYTES) model.frames.set(pa / FRAME_BYTES, kind);
  };
  set(LOW.start, LOW.length, "rw");
  set(BORDER.start, BORDER.length, "rw");
  set(WINDOW.start, WINDOW.length, "window");
  const registers = new Uint8Array(WINDOW.length);
  banks.addWindow(WINDOW.start, WINDOW.length, {
    name: "registers",
    read(offset, into) {
      into.set(registers.subarray(offset, offset + into.length));
      return true;
    },
    write(offset, data) {
      registers.set(data, offset);
      return true;
    },
  });
  const client = banks.mapClient(memfd(4), 0, 4, 0, true);
  banks.grant(client, 2, true);
  banks.grant(client + 2, 1, false);
  set(client * FRAME_BYTES, 2 * FRAME_BYTES, "rw");
  set((client + 2) * FRAME_BYTES, FRAME_BYTES, "ro");
  return { banks, model, places: [LOW.start, BORDER.start, WINDOW.start, client * FRAME_BYTES] };
};

describe("host memory is a map from address to byte", () => {
  const place = fc.record({ place: fc.nat(3), offset: fc.nat(5 * FRAME_BYTES), near: fc.boolean() });
  const word = fc.nat(0xffffffff);
  const operation = fc.oneof(
    fc.record({ op: fc.constantFrom("load64", "load64be", "load32"), at: place }),
    fc.record({
      op: fc.constantFrom("store64", "store64be", "store32", "or64", "clear64"),
      at: place,
      lo: word,
      hi: word,
    }),
    fc.record({ op: fc.constant("read"), at: place, length: fc.nat(9000) }),
    fc.record({ op: fc.constant("write"), at: place, length: fc.nat(9000), seed: fc.nat(255) }),
    fc.record({ op: fc.constant("fill"), at: place, length: fc.nat(9000), seed: fc.nat(255) }),
    fc.record({ op: fc.constant("copy"), at: place, from: place, length: fc.nat(9000) }),
    fc.record({ op: fc.constant("poison"), at: place, length: fc.integer({ min: 1, max: 5000 }) }),
  );

  it("every access gives the model's bytes, or its reason for failing", () => {
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 40 }), (operations) => {
        const { banks, model, places } = build();
        for (const one of operations) {
          const where = ({ place, offset, near }: { place: number; offset: number; near: boolean }) =>
            // Half of the addresses are aligned and close to the end of a frame.
            places[place]! + (near ? Math.ceil(offset / 8) * 8 : offset);
          const pa = where(one.at);
          check(banks, model, one, pa, "from" in one && one.from ? where(one.from) : 0);
        }
        for (const banksMade of opened.splice(0)) banksMade.close();
        for (const fd of files.splice(0)) libc.close(fd);
      }),
      { numRuns: 60 },
    );
  }, 60_000);
});

interface Operation {
  readonly op: string;
  readonly lo?: number;
  readonly hi?: number;
  readonly length?: number;
  readonly seed?: number;
}

const littleEndian = (lo: number, hi: number): number[] => [...new Uint8Array(Uint32Array.of(lo, hi).buffer)];

const check = (banks: Banks, model: Literal, one: Operation, pa: number, from: number): void => {
  const agree = (ok: boolean, refusal: MemoryError) => {
    expect({ ok, cause: ok ? MemoryError.none : banks.cause }).toEqual({
      ok: refusal === MemoryError.none,
      cause: refusal,
    });
  };
  const { op, lo = 0, hi = 0, length = 0, seed = 0 } = one;
  const data = Array.from({ length }, (_, i) => (op === "fill" ? seed : (seed + i) & 255));
  if (op === "poison") {
    banks.poison(pa, length);
    model.poison(pa, length);
  } else if (op === "read") {
    const into = new Uint8Array(length);
    const expected: number[] = [];
    agree(banks.readBytes(pa, into), model.read(pa, expected, length));
    expect([...into.subarray(0, expected.length)]).toEqual(expected);
  } else if (op === "write") agree(banks.writeBytes(pa, Uint8Array.from(data)), model.write(pa, data));
  else if (op === "fill") agree(banks.fill(pa, length, seed), model.write(pa, data));
  else if (op === "copy") {
    if (Math.abs(pa - from) < length) return;
    const bytes: number[] = [];
    const readable = model.read(from, bytes, length);
    const writable = model.write(pa, bytes);
    agree(banks.copy(pa, from, length), writable !== MemoryError.none ? writable : readable);
  } else if (op.startsWith("load")) {
    const size = op === "load32" ? 4 : 8;
    const bytes: number[] = [];
    const refusal = model.word(pa, size) || model.read(pa, bytes, size);
    const ok = banks[op as "load64" | "load64be" | "load32"](pa);
    agree(ok, refusal);
    if (!ok) return;
    const loaded = littleEndian(banks.lo, banks.hi).slice(0, size);
    expect(loaded).toEqual(op === "load64be" ? bytes.toReversed() : bytes);
  } else {
    const size = op === "store32" ? 4 : 8;
    let bytes = littleEndian(lo, hi).slice(0, size);
    if (op === "store64be") bytes.reverse();
    let refusal = model.word(pa, size);
    if ((op === "or64" || op === "clear64") && refusal === MemoryError.none) {
      const old: number[] = [];
      refusal = model.read(pa, old, size);
      bytes = bytes.map((byte, i) => (op === "or64" ? (old[i] ?? 0) | byte : (old[i] ?? 0) & ~byte));
    }
    refusal ||= model.write(pa, bytes);
    if (op === "store32") agree(banks.store32(pa, lo), refusal);
    else agree(banks[op as "store64" | "store64be" | "or64" | "clear64"](pa, lo, hi), refusal);
  }
};

describe("RAM", () => {
  it("allocates zeroed runs aligned to their power of two, until it is full", () => {
    const banks = make({ ram: [{ start: 0x10_0000, length: 64 * FRAME_BYTES }] });
    const run = banks.allocate(5);
    expect(run % (8 * FRAME_BYTES)).toBe(0);
    expect(banks.allocated).toBe(5);
    banks.fill(run, 5 * FRAME_BYTES, 0xff);
    banks.free(run, 5);
    expect(banks.allocated).toBe(0);
    const all = Array.from({ length: 64 }, () => banks.allocate(1));
    expect(new Set(all).size).toBe(64);
    expect(banks.allocate(1)).toBe(-1);
    for (const pa of all) {
      expect(banks.load64(pa)).toBe(true);
      expect([banks.lo, banks.hi]).toEqual([0, 0]);
    }
    for (const pa of all) banks.free(pa, 1);
    expect(banks.allocate(64)).toBe(0x10_0000);
  });

  it("never hands out address 0, nor more than there is", () => {
    const banks = make({ ram: [{ start: 0, length: 4 * FRAME_BYTES }] });
    const taken = [banks.allocate(1), banks.allocate(1), banks.allocate(1)];
    expect(taken.toSorted((a, b) => a - b)).toEqual([FRAME_BYTES, 2 * FRAME_BYTES, 3 * FRAME_BYTES]);
    expect([banks.allocate(1), banks.allocate(0), banks.allocate(2 ** 21)]).toEqual([-1, -1, -1]);
  });

  it("refuses to take back what was not given", () => {
    const banks = make({ ram: [{ start: 0, length: 64 * FRAME_BYTES }] });
    const pa = banks.allocate(2);
    expect(() => banks.free(pa, 1)).toThrow("not a run that was allocated");
    expect(() => banks.free(2 ** 40, 1)).toThrow("is not RAM");
    banks.free(pa, 2);
    expect(() => banks.free(pa, 2)).toThrow("not a run that was allocated");
  });

  it("can be mapped elsewhere through its backing", () => {
    const banks = make({ ram: [LOW, BORDER] });
    const pa = BANK + FRAME_BYTES;
    banks.writeBytes(pa, Uint8Array.of(1, 2, 3));
    const { fd, offset } = banks.backing(pa)!;
    const shared = libc.must(
      "mmap",
      libc.mmap(0, FRAME_BYTES, libc.Prot.read | libc.Prot.write, libc.MapFlag.shared, fd, offset),
    );
    const view = new Uint8Array(libc.viewOf(shared, FRAME_BYTES));
    expect([...view.subarray(0, 3)]).toEqual([1, 2, 3]);
    view[5] = 9;
    const into = new Uint8Array(6);
    banks.readBytes(pa, into);
    expect(into[5]).toBe(9);
    libc.munmap(shared, FRAME_BYTES);
    expect(banks.backing(2 ** 40)).toBeUndefined();
  });

  it("lies in a file of its own where a program may map it, and nothing else does", () => {
    const banks = make({ ram: [LOW] });
    const pa = banks.allocate(2);
    banks.writeBytes(pa, Uint8Array.of(1, 2, 3));
    const { fd, offset } = banks.expose(pa, 2 * FRAME_BYTES)!;
    expect([offset, fstatSync(fd).size, banks.expose(pa, 2 * FRAME_BYTES)?.fd]).toEqual([
      0,
      2 * FRAME_BYTES,
      fd,
    ]);
    expect(banks.expose(pa + FRAME_BYTES, FRAME_BYTES)).toEqual({ fd, offset: FRAME_BYTES });
    const access = libc.Prot.read | libc.Prot.write;
    const at = libc.must("mmap", libc.mmap(0, 2 * FRAME_BYTES, access, libc.MapFlag.shared, fd, 0));
    const view = new Uint8Array(libc.viewOf(at, 2 * FRAME_BYTES));
    expect([...view.subarray(0, 4)]).toEqual([1, 2, 3, 0]);
    view[FRAME_BYTES] = 9;
    const into = new Uint8Array(1);
    banks.readBytes(pa + FRAME_BYTES, into);
    expect(into[0]).toBe(9);
    expect(libc.ftruncate(fd, 0)).toBeLessThan(0); // sealed: the pages cannot be taken from under us

    banks.free(pa, 2);
    expect(banks.allocate(2)).toBe(pa);
    banks.writeBytes(pa, Uint8Array.of(7));
    expect([...view.subarray(0, 3)]).toEqual([1, 2, 3]); // who still maps them sees nothing of what comes next
    libc.munmap(at, 2 * FRAME_BYTES);
  });

  it("has a file of its own only in whole frames of one piece, and not without end", () => {
    const banks = make({ ram: [{ start: 0, length: 1024 * FRAME_BYTES }] });
    const pa = banks.allocate(4);
    expect(banks.expose(pa + FRAME_BYTES, FRAME_BYTES)).toBeDefined();
    for (const [start, length] of [
      [pa, 2 * FRAME_BYTES],
      [pa + 2 * FRAME_BYTES, 0],
      [pa + 2 * FRAME_BYTES + 8, FRAME_BYTES],
      [1023 * FRAME_BYTES, 2 * FRAME_BYTES],
      [2 ** 40, FRAME_BYTES],
    ])
      expect(banks.expose(start!, length!)).toBeUndefined();
    const more = Array.from({ length: 256 }, () => banks.allocate(1));
    expect(more.map((one) => banks.expose(one, FRAME_BYTES)).filter((file) => file).length).toBe(255);
    banks.free(more[0]!, 1);
    expect(banks.expose(more[255]!, FRAME_BYTES)).toBeDefined();
  });

  it("leaves a hole below 4 GiB when a PC has more than 3 GiB", () => {
    const banks = createMemory({ ramBytes: 4 * GIB });
    opened.push(banks);
    expect(banks.load64(3 * GIB)).toBe(false);
    expect(banks.load64(5 * GIB - 8)).toBe(true);
  });

  it("moves overlapping bytes as if through a buffer", () => {
    const banks = make({ ram: [LOW] });
    banks.writeBytes(100, Uint8Array.of(1, 2, 3, 4, 5));
    expect(banks.copy(102, 100, 5)).toBe(true);
    const into = new Uint8Array(7);
    banks.readBytes(100, into);
    expect([...into]).toEqual([1, 2, 1, 2, 3, 4, 5]);
  });
});

describe("addresses with nothing", () => {
  it.each([2 ** 45, 2 ** 52, -8, 3 * 2 ** 41 + 8])("%d is absent to every access", (pa) => {
    const banks = make({ ram: [LOW] });
    const accesses = [
      banks.load64(pa),
      banks.load32(pa),
      banks.store64(pa, 1, 1),
      banks.or64(pa, 1, 1),
      banks.clear64(pa, 1, 1),
      banks.readBytes(pa, new Uint8Array(4)),
      banks.writeBytes(pa, new Uint8Array(4)),
      banks.copy(pa, 0, 8),
      banks.fill(pa, 8, 1),
    ];
    expect(accesses).toEqual(accesses.map(() => false));
    expect(banks.cause).toBe(MemoryError.absent);
  });
});

describe("windows", () => {
  const window: MmioWindow = { name: "msi", read: () => false, write: (_, data) => data.length === 4 };

  it("tell the requester, and their refusal is `unsupported`", () => {
    const banks = make({ ram: [LOW] });
    const seen: [number, number][] = [];
    const remove = banks.addWindow(0xfee0_0000, 0x10_0000, {
      ...window,
      write: (offset, _, from) => {
        seen.push([offset, from]);
        return true;
      },
    });
    expect(banks.writeBytes(0xfee0_1000, new Uint8Array(4), 0x100)).toBe(true);
    expect(seen).toEqual([[0x1000, 0x100]]);
    expect(banks.readBytes(0xfee0_0000, new Uint8Array(4))).toBe(false);
    expect(banks.cause).toBe(MemoryError.unsupported);
    remove();
    expect(banks.writeBytes(0xfee0_1000, new Uint8Array(4))).toBe(false);
    expect(banks.cause).toBe(MemoryError.absent);
  });

  it("keep out of RAM, clients' pages and each other", () => {
    const banks = make({ ram: [LOW], clients: { start: BANK, length: BANK } });
    banks.addWindow(0x10_0000, FRAME_BYTES, window);
    expect(() => banks.addWindow(0, FRAME_BYTES, window)).toThrow("lies over RAM");
    expect(() => banks.addWindow(BANK, FRAME_BYTES, window)).toThrow("lies over clients' pages");
    expect(() => banks.addWindow(0xf_f000, 2 * FRAME_BYTES, window)).toThrow("overlaps msi");
    expect(() => banks.addWindow(0x20_0800, FRAME_BYTES, window)).toThrow("multiples of 4096");
  });
});

describe("clients' pages", () => {
  it("are the file's pages, and answer only while granted", () => {
    const banks = make({ ram: [LOW] });
    const fd = memfd(4);
    const frame = banks.mapClient(fd, FRAME_BYTES, 2, 0x7000, true);
    const pa = frame * FRAME_BYTES;
    expect(banks.load64(pa)).toBe(false);
    banks.grant(frame, 2, true);
    expect(banks.store64(pa + FRAME_BYTES, 7, 8)).toBe(true);
    const again = banks.mapClient(fd, 2 * FRAME_BYTES, 1, 0, false);
    banks.grant(again, 1, false);
    expect(banks.load64(again * FRAME_BYTES)).toBe(true);
    expect([banks.lo, banks.hi]).toEqual([7, 8]);
    expect(banks.store64(again * FRAME_BYTES, 1, 1)).toBe(false);
    expect(banks.cause).toBe(MemoryError.protected);
    expect([banks.clientSlots, banks.clientRuns]).toEqual([3, 2]);
    banks.unmapClient(frame, 2);
    banks.unmapClient(again, 1);
    expect(banks.load64(pa)).toBe(false);
    expect([banks.clientSlots, banks.clientRuns]).toEqual([0, 0]);
  });

  it("lie congruent with their address modulo 2 MiB when a large leaf may fit", () => {
    const banks = make({ ram: [LOW] });
    const fd = memfd(2048);
    for (const va of [0x7f00_0000_0000, 0x7f00_0012_3000, 0x7f00_001f_f000]) {
      const frame = banks.mapClient(fd, 0, 1500, va, true);
      expect(frame % 512).toBe((va / FRAME_BYTES) % 512);
    }
  });

  it("fill their banks and no more", () => {
    const banks = make({ ram: [LOW], clients: { start: BANK, length: BANK } });
    const fd = memfd(1);
    const half = banks.mapClient(fd, 0, 2 ** 19, 0, true);
    expect(banks.mapClient(fd, 0, 2 ** 19, 0, true)).toBeGreaterThan(0);
    expect(banks.mapClient(fd, 0, 1, 0, true)).toBe(-1);
    banks.unmapClient(half, 2 ** 19);
    expect(banks.mapClient(fd, 0, 1, 0, true)).toBe(half);
  });

  it.each<[string, (banks: Banks, pa: number) => boolean]>([
    ["load64", (banks, pa) => banks.load64(pa)],
    ["store64", (banks, pa) => banks.store64(pa, 1, 2)],
    ["or64", (banks, pa) => banks.or64(pa, 1, 2)],
    ["load32", (banks, pa) => banks.load32(pa)],
    ["readBytes", (banks, pa) => banks.readBytes(pa - 8, new Uint8Array(100))],
    ["writeBytes", (banks, pa) => banks.writeBytes(pa - 8, new Uint8Array(16))],
    ["copy", (banks, pa) => banks.copy(FRAME_BYTES, pa, 300)],
    ["fill", (banks, pa) => banks.fill(pa, 5000, 1)],
  ])("%s of a page whose file was cut off fails as poisoned, and nobody dies", (_, access) => {
    const banks = make({ ram: [LOW] });
    const fd = memfd(4);
    const frame = banks.mapClient(fd, 0, 4, 0, true);
    banks.grant(frame, 4, true);
    expect(banks.fill(frame * FRAME_BYTES, 4 * FRAME_BYTES, 3)).toBe(true);
    libc.must("ftruncate", libc.ftruncate(fd, FRAME_BYTES));
    const pa = (frame + 1) * FRAME_BYTES;
    expect(access(banks, pa)).toBe(false);
    expect(banks.cause).toBe(MemoryError.poisoned);
    expect(banks.load64(pa)).toBe(false);
    expect(banks.cause).toBe(MemoryError.poisoned);
    expect(banks.load64(pa - 8)).toBe(true);
    expect(banks.isPoisoned(frame + 1)).toBe(true);
    banks.revoke(frame, 4);
    expect(banks.isPoisoned(frame + 1)).toBe(false);
    expect(banks.load64(pa)).toBe(false);
    expect(banks.cause).toBe(MemoryError.absent);
  });

  it("a big-endian word is the little-endian one turned round", () => {
    const banks = make({ ram: [LOW] });
    banks.store64be(8, 0x0506_0708, 0x0102_0304);
    const into = new Uint8Array(8);
    banks.readBytes(8, into);
    expect([...into]).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  });
});
