import { describe, expect, it } from "vitest";
import type { KernelFile, UserMemory } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import { MemoryFault } from "./emulate/cpu.ts";
import { BusError, TrapBus, TrapWindow, type Window, windowAt } from "./trap-bus.ts";

const TABLE = 0x10_0000n;

/** Memory of a program: the window table, and ordinary bytes everywhere else below 1 MiB that count their address. */
class Program implements UserMemory {
  readonly id = 1;
  lockedPages = 0;
  pinnedPages = 0;
  readonly table: Uint8Array;
  tableReads = 0;
  readonly written: string[] = [];

  constructor(windows: readonly Window[]) {
    this.table = new Uint8Array(windows.length * TrapWindow.size);
    const view = new DataView(this.table.buffer);
    windows.forEach((window, i) => {
      const at = i * TrapWindow.size;
      view.setBigUint64(at + TrapWindow.start, window.start, true);
      view.setBigUint64(at + TrapWindow.end, window.end, true);
      view.setBigUint64(at + TrapWindow.file_offset, window.fileOffset, true);
      view.setBigUint64(at + TrapWindow.cookie, BigInt(window.cookie), true);
      view.setInt32(at + TrapWindow.fd, window.fd, true);
      view.setUint32(at + TrapWindow.protection, window.protection, true);
    });
  }
  read(va: bigint, into: Uint8Array): void {
    if (va >= TABLE) {
      this.tableReads += 1;
      const at = Number(va - TABLE);
      if (at + into.length > this.table.length) throw new LinuxError("EFAULT", "after the table");
      into.set(this.table.subarray(at, at + into.length));
    } else for (let i = 0; i < into.length; i++) into[i] = Number((va + BigInt(i)) & 0xffn);
  }
  write(va: bigint, data: Uint8Array): void {
    if (va < 0x1000n) throw new LinuxError("EFAULT", "the zero page");
    this.written.push(`${data.length}@0x${va.toString(16)}`);
  }
  pin(): never {
    throw new LinuxError("EFAULT", "nothing is pinned here");
  }
}

class Registers implements KernelFile {
  readonly kind = "registers";
  readonly name = "registers";
  readonly accesses: string[] = [];
  broken = false;
  trapRead(offset: bigint, into: Uint8Array): void {
    if (this.broken) throw new LinuxError("EIO", "memory decode is off");
    this.accesses.push(`r${into.length}@0x${offset.toString(16)}`);
    into.fill(0xdd);
  }
  trapWrite(offset: bigint, data: Uint8Array): void {
    this.accesses.push(`w${data.length}@0x${offset.toString(16)}`);
  }
  close(): void {}
}

const window = (start: bigint, pages: bigint, fileOffset: bigint, protection = 3): Window => ({
  start,
  end: start + pages * 4096n,
  fileOffset,
  cookie: 7,
  fd: 5,
  protection,
});

function bus(windows: readonly Window[], hit?: Window) {
  const program = new Program(windows);
  const file = new Registers();
  const table = { address: TABLE, slots: windows.length };
  return {
    program,
    file,
    bus: new TrapBus(program, hit, table, ({ cookie }) => (cookie === 7 ? file : undefined)),
  };
}

describe("what a trapped instruction reaches", () => {
  const hit = window(0x8000n, 2n, 0x100_0000n);
  const next = window(0xa000n, 1n, 0x200_0000n);

  it("inside the window that was hit is the file, without a look at the table", () => {
    const { program, file, bus: reach } = bus([hit, next], hit);
    reach.read(0x9ffcn, new Uint8Array(4));
    reach.write(0x8ffcn, new Uint8Array(8));
    expect(file.accesses).toEqual(["r4@0x1001ffc", "w8@0x1000ffc"]);
    expect(program.tableReads).toBe(0);
  });

  it("across the border of two windows is an access to each", () => {
    const { file, bus: reach } = bus([hit, next], hit);
    reach.write(0x9ffen, new Uint8Array(8));
    expect(file.accesses).toEqual(["w2@0x1001ffe", "w6@0x2000000"]);
  });

  it("across the border to ordinary memory is half and half, in the order of the bytes", () => {
    const { file, bus: reach } = bus([hit, next], hit);
    const into = new Uint8Array(4);
    reach.read(0x7ffen, into);
    expect([...into]).toEqual([0xfe, 0xff, 0xdd, 0xdd]);
    expect(file.accesses).toEqual(["r2@0x1000000"]);
  });

  it("may be any of thousands of windows", () => {
    const many = Array.from({ length: 3000 }, (_, i) => window(BigInt(i) * 0x10000n, 1n, BigInt(i) << 16n));
    const { file, program, bus: reach } = bus(many);
    reach.read(2999n * 0x10000n + 8n, new Uint8Array(4));
    expect(file.accesses).toEqual([`r4@0x${((2999 << 16) + 8).toString(16)}`]);
    expect(program.tableReads).toBe(3);
  });

  it("tells how much ordinary memory there is up to the end of the page", () => {
    const { bus: reach } = bus([hit], hit);
    expect([reach.ordinary(0x7ff0n), reach.ordinary(0x8000n), reach.ordinary(0xa000n)]).toEqual([
      16, 0, 4096,
    ]);
  });

  it("is a fault where the program has no memory, no file, or no permission", () => {
    const readOnly = window(0x20000n, 1n, 0n, 1);
    const orphan = { ...window(0x30000n, 1n, 0n), cookie: 8 };
    const { bus: reach, file } = bus([hit, readOnly, orphan]);
    const four = new Uint8Array(4);
    expect(() => reach.write(0x10n, four)).toThrow(MemoryFault);
    expect(() => reach.write(0x20000n, four)).toThrow(MemoryFault);
    expect(() => reach.read(0x30000n, four)).toThrow(MemoryFault);
    reach.read(0x20000n, four);
    expect(file.accesses).toEqual(["r4@0x0"]);
  });

  it("is a bus error where the device does not answer", () => {
    const { bus: reach, file } = bus([hit], hit);
    file.broken = true;
    expect(() => reach.read(0x8010n, new Uint8Array(4))).toThrow(BusError);
  });

  it("takes no enqueue command where the file has no portal, or across a border", () => {
    const { bus: reach } = bus([hit], hit);
    expect(reach.enqueue(0x8000n, new Uint8Array(64))).toBe(false);
    expect(() => reach.enqueue(0x9fe0n, new Uint8Array(64))).toThrow(MemoryFault);
    expect(() => reach.enqueue(0x4000n, new Uint8Array(64))).toThrow(MemoryFault);
  });

  it("gives a program that may not enqueue there a fault, and tells the file whose memory is meant", () => {
    const memories: UserMemory[] = [];
    const file: KernelFile = {
      kind: "queue",
      name: "queue",
      trapWrite: () => {},
      trapEnqueue: (_offset, _command, memory) => {
        memories.push(memory);
        if (memories.length === 2) throw new LinuxError("EPERM", "it has no PASID");
        if (memories.length === 3) throw new LinuxError("EIO", "memory decode is off");
        return true;
      },
      close: () => {},
    };
    const program = new Program([hit]);
    const reach = new TrapBus(program, hit, { address: TABLE, slots: 1 }, () => file);
    expect(reach.enqueue(0x8000n, new Uint8Array(64))).toBe(true);
    expect(memories).toEqual([program]);
    expect(() => reach.enqueue(0x8000n, new Uint8Array(64))).toThrow(MemoryFault);
    expect(() => reach.enqueue(0x8000n, new Uint8Array(64))).toThrow(BusError);
  });

  it("is a fault when the table is not where the program says", () => {
    const program = new Program([hit]);
    const reach = new TrapBus(program, undefined, { address: TABLE, slots: 0xffff_ffff }, () => undefined);
    expect(() => reach.read(0x8000n, new Uint8Array(4))).toThrow(MemoryFault);
  });

  it("leaves out slots that are free or being written", () => {
    const { table } = new Program([hit]);
    const view = new DataView(table.buffer);
    expect(windowAt(view, 0)).toEqual(hit);
    view.setUint32(TrapWindow.sequence, 1, true);
    expect(windowAt(view, 0)).toBeUndefined();
    view.setUint32(TrapWindow.sequence, 2, true);
    view.setBigUint64(TrapWindow.end, hit.start, true);
    expect(windowAt(view, 0)).toBeUndefined();
  });
});
