import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Access, NO_PASID, TranslateStatus } from "../hardware/unit.ts";
import { BusFault, HostBridge, type UnitPort } from "./dma.ts";
import { MSI_BASE, Rig } from "./rig.suite.ts";

const { ok, fault, stalled } = TranslateStatus;

let rig: Rig;
let port: UnitPort;
beforeEach(() => {
  rig = new Rig();
  port = rig.bridge.port(0x108);
  port.mastering = true;
});
afterEach(() => rig.close());

const bytes = (length: number): Uint8Array => Uint8Array.from({ length }, (_, i) => i * 31 + (i >>> 8));

describe("a port of a host bridge", () => {
  it("moves what the unit's pages say, whatever their order", () => {
    const pages = fc.uniqueArray(fc.integer({ min: 256, max: 300 }), { minLength: 6, maxLength: 6 });
    fc.assert(
      fc.property(pages, fc.nat(4095), fc.integer({ min: 1, max: 5 * 4096 }), (targets, offset, length) => {
        rig.unit.pages = new Map(targets.map((page, i) => [0x50 + i, page]));
        const data = bytes(length);
        expect(port.write(0x50_000 + offset, 0, data)).toBe(ok);
        expect(port.done).toBe(length);
        const back = new Uint8Array(length);
        expect(port.read(0x50_000 + offset, 0, back)).toBe(ok);
        expect(Buffer.compare(back, data)).toBe(0);
        const one = new Uint8Array(1);
        const last = offset + length - 1;
        rig.memory.readBytes(targets[Math.floor(last / 4096)]! * 4096 + (last % 4096), one);
        expect(one[0]).toBe(data[length - 1]);
      }),
    );
  });

  it("moves pages that lie together in one copy", () => {
    rig.unit.pages = new Map([
      [0x50, 256],
      [0x51, 257],
      [0x52, 300],
    ]);
    port.read(0x50_000, 0, new Uint8Array(3 * 4096));
    const moved = rig.told.filter(({ kind }) => kind === "dma").map(({ fields }) => fields["bytes"]);
    expect(moved).toEqual([8192, 4096]);
  });

  it("tells the unit who asks, with which PASID, and for what", () => {
    port.pasids = { bits: 4, access: Access.privileged };
    const seen: unknown[] = [];
    rig.unit.stall = (request) => {
      seen.push([request.rid, request.pasid, request.lo, request.hi, request.access]);
      return false;
    };
    port.read(0x1000, 0, new Uint8Array(1), 9);
    port.read(0x1000, 0, new Uint8Array(1), 9, Access.privileged);
    port.write(0x2000, 0, new Uint8Array(1));
    expect(seen).toEqual([
      [0x108, 9, 0x1000, 0, 1],
      [0x108, 9, 0x1000, 0, 9],
      [0x108, NO_PASID, 0x2000, 0, 2],
    ]);
  });

  it("ends at a fault, says how far it came, and explains it when asked", () => {
    rig.unit.forbidden.add(0x102);
    expect(port.write(0x10_1f00, 0, bytes(512))).toBe(fault);
    expect(port.done).toBe(256);
    const found = new Uint8Array(256);
    rig.memory.readBytes(0x10_1f00, found);
    expect(found).toEqual(bytes(512).subarray(0, 256));
    expect(port.lastFault).toEqual({
      unit: "paper",
      rid: 0x108,
      pasid: NO_PASID,
      access: 2,
      address: 0x10_2000n,
      code: 6,
      reason: "the page is not in the table",
      level: 1,
      entryAddress: 0x1000,
      entry: 2n,
    });
  });

  it("a stall moves what came before; resumed, the same access is made again", () => {
    const answers: boolean[] = [];
    rig.unit.stall = ({ lo }) => lo === 0x10_2000;
    expect(port.write(0x10_1f00, 0, bytes(512))).toBe(stalled);
    expect(port.done).toBe(256);
    port.park((answer) => answers.push(answer));
    expect(rig.bridge.parked).toBe(1);
    rig.unit.resume(true);
    expect([answers, rig.bridge.parked]).toEqual([[true], 0]);
  });

  it("drops only its own parked operations", () => {
    const other = rig.bridge.port(0x200);
    other.mastering = true;
    rig.unit.stall = () => true;
    const answers: string[] = [];
    for (const [name, one] of [
      ["mine", port],
      ["other", other],
    ] as const) {
      one.read(0, 0, new Uint8Array(1));
      one.park(() => answers.push(name));
    }
    port.dropParked();
    rig.unit.resume();
    expect(answers).toEqual(["other"]);
  });

  it("fails where memory fails, and says why", () => {
    rig.memory.poison(0x10_1000, 4096);
    expect(port.read(0x10_0000, 0, new Uint8Array(8192))).toBe(fault);
    expect(port.lastFault).toMatchObject({ unit: "memory", code: BusFault.memory });
    expect(port.lastFault?.reason).toMatch(/^host physical 0x10[01]000: the frame is poisoned$/);
    expect(port.read(0, 0x8000, new Uint8Array(8))).toBe(fault);
    expect(port.lastFault?.reason).toBe("host physical 0x800000000000: nothing answers there");
  });

  it("does not go round the end of 64-bit addresses", () => {
    rig.unit.pages = new Map([[2 ** 52 - 1, 256]]);
    rig.unit.translate = (request) => {
      request.pa = 0x10_0000;
      request.span = 16;
      return ok;
    };
    expect(port.read(0xffff_fff0, 0xffff_ffff, new Uint8Array(32))).toBe(fault);
    expect(port.lastFault?.code).toBe(BusFault.beyond);
  });

  it("does not hang on a unit that grants no bytes", () => {
    rig.unit.translate = (request) => {
      request.span = 0;
      return ok;
    };
    expect(port.read(0, 0, new Uint8Array(32))).toBe(fault);
  });

  it("sends a message as a write of four bytes, which ends in the interrupt window", () => {
    expect(port.message(MSI_BASE, 0, 0x8765_4321)).toBe(ok);
    expect(rig.interrupts).toEqual([0x8765_4321]);
  });

  it("makes no request while the function is not a bus master", () => {
    port.mastering = false;
    expect(port.read(0, 0, new Uint8Array(4))).toBe(fault);
    expect(rig.unit.translations).toBe(0);
    expect(port.lastFault?.reason).toContain("Command bit 2");
  });

  it("§7.8.9 makes no request that PASID Control does not allow", () => {
    const { execute, privileged } = Access;
    const one = new Uint8Array(1);
    const refusedFor = () => (port.lastFault?.code === BusFault.pasid ? port.lastFault.reason : "");
    expect(port.read(0, 0, one, 1)).toBe(fault);
    expect(refusedFor()).toMatch(/carry no PASID/);
    expect(port.read(0, 0, one, NO_PASID, privileged)).toBe(fault);
    expect(refusedFor()).toMatch(/without a PASID is never privileged/);
    port.pasids = { bits: 8, access: execute };
    expect(port.read(0, 0, one, 256)).toBe(fault);
    expect(refusedFor()).toMatch(/have 8 bits; 256 has more/);
    expect(port.read(0, 0, one, 255, privileged)).toBe(fault);
    expect(refusedFor()).toMatch(/PASID Control does not allow/);
    expect(rig.unit.translations).toBe(0);
    expect(port.read(0, 0, one, 255, execute)).toBe(ok);
  });

  it("counts what became of operations that waited", () => {
    rig.unit.stall = () => true;
    const wait = () => {
      port.read(0, 0, new Uint8Array(1));
      port.park(() => {});
    };
    wait();
    rig.unit.resume(true);
    wait();
    rig.unit.resume(false);
    wait();
    wait();
    port.dropParked();
    rig.unit.resume(true);
    expect(port.counts).toEqual({ parked: 4, resumed: 1, failed: 1, dropped: 2 });
  });

  it("makes no request from within its own request", () => {
    const inner: number[] = [];
    rig.memory.addWindow(0xd000_0000, 4096, {
      name: "echo",
      read: () => false,
      write: () => {
        inner.push(port.write(0x10_0000, 0, new Uint8Array(4)));
        return true;
      },
    });
    expect(port.write(0xd000_0000, 0, new Uint8Array(4))).toBe(ok);
    expect(inner).toEqual([fault]);
    expect(port.write(0x10_0000, 0, new Uint8Array(4))).toBe(ok);
  });

  it("without a unit, an address is a host physical address", () => {
    const plain = new HostBridge({ memory: rig.memory }).port(1);
    plain.mastering = true;
    expect(plain.write(0x10_0ffe, 0, bytes(9000))).toBe(ok);
    const found = new Uint8Array(9000);
    rig.memory.readBytes(0x10_0ffe, found);
    expect(Buffer.compare(found, bytes(9000))).toBe(0);
    expect(plain.lastFault).toBeUndefined();
  });
});
