/** Calls of a POWER guest against a literal table of entries; what the host then maps, page by page. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { EventLog } from "../../hardware/unit.suite.ts";
import { SparseMemory } from "../../memory/sparse-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { LiteralHost } from "../shadow/literal-host.suite.ts";
import type { AddressRange } from "../shadow/table.ts";
import { TceHypervisor } from "./hypervisor.ts";
import { BUID, Hcall, HcallStatus, LIST_TCES, Rtas, RtasStatus } from "./spec.ts";
import { MOST_TCES } from "./windows.ts";

const { H_SUCCESS, H_HARDWARE, H_FUNCTION, H_PARAMETER, H_RESOURCE } = HcallStatus;
const PAGE = 4096;
const RAM = 2 ** 22;
const VA = 0x7f00_0000_0000;
const RID = 0x08;
const LOW = { start: 0x4000_0000, length: 2 ** 24, pageLg2: 12 };
const HIGH = { start: 2 ** 59, length: 2 ** 30 };

/** A host that says what it was promised. */
class Host extends LiteralHost {
  allowed: readonly AddressRange[] = [];
  allows: (ranges: readonly AddressRange[]) => boolean = () => true;
  allowIovas(_ioas: number, ranges: readonly AddressRange[]): void {
    if (!this.allows(ranges)) throw new LinuxError("EADDRINUSE", "on purpose");
    this.allowed = ranges;
  }
}

const begin = (pageLg2 = 12) => {
  const host = new Host();
  const memory = new SparseMemory([{ start: 0, end: RAM }]);
  const events = new EventLog();
  const devices = [RID, RID + 8].map((rid) => ({ rid, fd: rid, id: rid }));
  const hypervisor = new TceHypervisor({
    ...{ name: "hypervisor", calls: host, ram: { va: VA, bytes: RAM }, memory, devices, events, pageLg2 },
    low: { ...LOW, pageLg2 },
    high: HIGH,
  });
  const liobn = BigInt(hypervisor.windowsOf(RID)[0]!.liobn);
  const call = (number: number, ioba: number | bigint, third = 0n, count = 0n, of = liobn) =>
    hypervisor.hypercall(number, of, BigInt(ioba), third, count).status;
  const create = (pageShift = 16, windowShift = 24, rid = RID) =>
    hypervisor.rtas(Rtas.create, rid << 8, BUID.high, BUID.low, pageShift, windowShift);
  const list = (at: number, tces: readonly bigint[]) =>
    tces.forEach((tce, index) => {
      memory.store64be(at + 8 * index, Number(tce & 0xffff_ffffn), Number(tce >> 32n));
    });
  return { host, memory, events, hypervisor, liobn, call, create, list };
};

describe("TCEs that a guest puts", () => {
  it("are mappings of the host, with the permission that they have", () => {
    const { host, call, hypervisor, liobn } = begin();
    expect(call(Hcall.PUT_TCE, LOW.start, 0x5003n)).toBe(H_SUCCESS);
    expect(call(Hcall.PUT_TCE, LOW.start + PAGE, 0x6001n)).toBe(H_SUCCESS);
    expect(call(Hcall.PUT_TCE, LOW.start + 2 * PAGE, 0x7002n)).toBe(H_SUCCESS);
    expect([...host.content(1)]).toEqual([
      [LOW.start, { va: VA + 0x5000, readable: true, writable: true }],
      [LOW.start + PAGE, { va: VA + 0x6000, readable: true, writable: false }],
      [LOW.start + 2 * PAGE, { va: VA + 0x7000, readable: false, writable: true }],
    ]);
    expect(hypervisor.held).toBe(3);
    expect(hypervisor.hypercall(Hcall.GET_TCE, liobn, BigInt(LOW.start))).toEqual({
      status: 0,
      value: 0x5003n,
    });
    expect(call(Hcall.PUT_TCE, LOW.start, 0x8000n)).toBe(H_SUCCESS);
    expect(host.content(1).has(LOW.start)).toBe(false);
    expect(call(Hcall.STUFF_TCE, LOW.start, 0n, 8n)).toBe(H_SUCCESS);
    expect([hypervisor.held, host.content(1).size]).toEqual([0, 0]);
  });

  it("in a list are put up to the first that cannot be", () => {
    const { host, call, list } = begin();
    list(0x3000, [0x5003n, 0x6003n, BigInt(RAM) | 3n, 0x7003n]);
    expect(call(Hcall.PUT_TCE_INDIRECT, LOW.start, 0x3000n, 4n)).toBe(H_PARAMETER);
    expect([...host.content(1).keys()]).toEqual([LOW.start, LOW.start + PAGE]);
  });

  it("that name what is not there are refused", () => {
    const { call, hypervisor, liobn, memory } = begin();
    const { start, length } = LOW;
    for (const ioba of [0, start - PAGE, start + length, start + 8, 2 ** 59])
      expect(call(Hcall.PUT_TCE, ioba, 0x5003n), String(ioba)).toBe(H_PARAMETER);
    expect(call(Hcall.PUT_TCE, start, BigInt(RAM) | 3n)).toBe(H_PARAMETER);
    expect(call(Hcall.PUT_TCE, start, (1n << 51n) | 3n)).toBe(H_PARAMETER);
    expect(call(Hcall.PUT_TCE, start, 0x5003n, 0n, 77n)).toBe(H_PARAMETER);
    expect(hypervisor.hypercall(Hcall.GET_TCE, liobn, 5n).status).toBe(H_PARAMETER);
    expect(call(0x24, start)).toBe(H_FUNCTION);
    for (const count of [0n, BigInt(length / PAGE) + 1n, 1n << 60n])
      expect(call(Hcall.STUFF_TCE, start, 0n, count)).toBe(H_PARAMETER);
    for (const [at, count] of [
      [0x3008n, 1n],
      [BigInt(RAM), 1n],
      [0x3000n, 0n],
      [0x3000n, BigInt(LIST_TCES) + 1n],
    ] as const)
      expect(call(Hcall.PUT_TCE_INDIRECT, start, at, count)).toBe(H_PARAMETER);
    memory.poison(0x3000, PAGE);
    expect(call(Hcall.PUT_TCE_INDIRECT, start, 0x3000n, 1n)).toBe(H_PARAMETER);
    expect(hypervisor.held).toBe(0);
  });

  it("that the host refuses have no entry, and why is told", () => {
    const { host, call, events, hypervisor, liobn } = begin();
    call(Hcall.PUT_TCE, LOW.start, 0x5003n);
    host.refuses = () => true;
    expect(call(Hcall.PUT_TCE, LOW.start, 0x6003n)).toBe(H_RESOURCE);
    expect(events.of("device").at(-1)!["reason"]).toMatch(/H_RESOURCE: ENOMEM: on purpose/);
    expect(hypervisor.hypercall(Hcall.GET_TCE, liobn, BigInt(LOW.start)).value).toBe(0n);
    host.refuses = () => {
      throw new LinuxError("EFAULT", "memory went");
    };
    expect(call(Hcall.PUT_TCE, LOW.start, 0x6003n)).toBe(H_HARDWARE);
    expect(hypervisor.held).toBe(0);
  });

  it("stay while the host does not take them back, and the guest is told", () => {
    const { host, call, events, hypervisor, liobn, create } = begin();
    const [, second = 0] = create(12, 30);
    call(Hcall.PUT_TCE, LOW.start, 0x5003n);
    call(Hcall.PUT_TCE, HIGH.start, 0x5003n, 0n, BigInt(second));
    const unmap = host.unmap.bind(host);
    host.unmap = () => {
      throw new LinuxError("EBUSY", "somebody pins it");
    };
    expect(call(Hcall.PUT_TCE, LOW.start, 0x6003n)).toBe(H_HARDWARE);
    expect(call(Hcall.PUT_TCE, LOW.start, 0n)).toBe(H_HARDWARE);
    expect(hypervisor.hypercall(Hcall.GET_TCE, liobn, BigInt(LOW.start)).value).toBe(0x5003n);
    expect(hypervisor.rtas(Rtas.remove, second)).toEqual([RtasStatus.hardware]);
    expect(events.of("device").at(-1)!["reason"]).toMatch(/take everything back: EBUSY: somebody pins it/);
    expect(hypervisor.held).toBe(2);
    host.unmap = unmap;
    expect(hypervisor.rtas(Rtas.remove, second)).toEqual([RtasStatus.success]);
    expect([call(Hcall.PUT_TCE, LOW.start, 0x6003n), hypervisor.held]).toEqual([H_SUCCESS, 1]);
  });

  it("are bounded in number", () => {
    const { create, call, host } = begin();
    const [, liobn = 0] = create(12, 30);
    host.map = () => {};
    expect(call(Hcall.STUFF_TCE, HIGH.start, 0x5003n, BigInt(MOST_TCES) + 1n, BigInt(liobn))).toBe(
      H_RESOURCE,
    );
  });
});

describe("windows that a guest asks for", () => {
  it("are queried, made once beside the first, and removed with what they map", () => {
    const { host, call, create, hypervisor } = begin();
    const query = () => hypervisor.rtas(Rtas.query, RID << 8, BUID.high, BUID.low);
    expect(query()).toEqual([0, 1, 2 ** 18, 0b100_0111, 0]);
    const [status, liobn = 0, high = 0, low = 0] = create();
    expect([status, high, low]).toEqual([RtasStatus.success, 2 ** 27, 0]);
    expect(host.allowed).toEqual([
      { start: LOW.start, end: LOW.start + LOW.length },
      { start: HIGH.start, end: HIGH.start + 2 ** 24 },
    ]);
    expect(query()[1]).toBe(0);
    expect(create()).toEqual([RtasStatus.hardware]);
    expect(call(Hcall.PUT_TCE, HIGH.start + 0x1_0000, 0x2_0003n, 0n, BigInt(liobn))).toBe(H_SUCCESS);
    expect(call(Hcall.PUT_TCE, HIGH.start + PAGE, 0x2_0003n, 0n, BigInt(liobn))).toBe(H_PARAMETER);
    expect(host.content(1).size).toBe(16);
    expect(hypervisor.rtas(Rtas.remove, liobn)).toEqual([RtasStatus.success]);
    expect([host.content(1).size, host.allowed.length]).toEqual([0, 1]);
    expect(hypervisor.rtas(Rtas.remove, liobn)).toEqual([RtasStatus.parameter]);
    expect(create(12, 30)[0]).toBe(RtasStatus.success);
  });

  it("that cannot be are refused, and the first stays", () => {
    const { host, create, hypervisor, liobn } = begin();
    for (const [page, window] of [
      [13, 24],
      [16, 15],
      [16, 31],
      [0, 0],
    ] as const)
      expect(create(page, window)).toEqual([RtasStatus.parameter]);
    expect(create(16, 24, 0x77)).toEqual([RtasStatus.parameter]);
    expect(hypervisor.rtas(Rtas.create, RID << 8, 1, 2, 16, 24)).toEqual([RtasStatus.parameter]);
    expect(hypervisor.rtas(Rtas.query, RID << 8)).toEqual([RtasStatus.parameter]);
    expect(hypervisor.rtas("ibm,reset-pe-dma-windows")).toEqual([RtasStatus.parameter]);
    expect(hypervisor.rtas(Rtas.remove, Number(liobn))).toEqual([RtasStatus.parameter]);
    host.allows = (ranges) => ranges.length < 2;
    expect(create()).toEqual([RtasStatus.hardware]);
    expect(hypervisor.windowsOf(RID).length).toBe(1);
    host.allows = () => true;
    expect(create()[0]).toBe(RtasStatus.success);
  });

  it("have no pages smaller than the host's", () => {
    const { create, hypervisor } = begin(16);
    expect(hypervisor.windowsOf(RID)[0]!.pageLg2).toBe(16);
    expect(hypervisor.rtas(Rtas.query, RID << 8, BUID.high, BUID.low)[3]).toBe(0b100_0110);
    expect(create(12, 24)).toEqual([RtasStatus.parameter]);
  });

  it("of a function that is not there are none, and there are no registers", () => {
    const { hypervisor } = begin();
    expect(hypervisor.windowsOf(0x99)).toEqual([]);
    hypervisor.mmioWrite();
    expect(hypervisor.mmioRead()).toBe(0n);
  });
});

describe("any calls of a guest", () => {
  it("leave on the host what a literal table says, and nothing of another function's", () => {
    const step = fc.record({
      what: fc.constantFrom("put", "put", "stuff", "list", "window"),
      high: fc.boolean(),
      page: fc.nat(12),
      target: fc.nat(RAM / PAGE + 8),
      bits: fc.nat(3),
      count: fc.integer({ min: 1, max: 6 }),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const { host, hypervisor, liobn, call, create, list } = begin();
        const model = new Map<number, bigint>();
        let second = 0;
        for (const { what, high, page, target, bits, count } of steps) {
          if (what === "window") {
            if (second) hypervisor.rtas(Rtas.remove, second);
            for (const at of [...model.keys()]) if (at >= HIGH.start) model.delete(at);
            second = second ? 0 : create(12, 20)[1]!;
            continue;
          }
          const inHigh = high && second !== 0;
          const start = (inHigh ? HIGH.start : LOW.start) + page * PAGE;
          const of = inHigh ? BigInt(second) : liobn;
          const tces = Array.from({ length: what === "put" ? 1 : count }, (_, index) => {
            const pa = BigInt((target + (what === "list" ? index : 0)) * PAGE);
            return pa | BigInt(bits);
          });
          let expected: number = H_SUCCESS;
          for (const [index, tce] of tces.entries()) {
            if (bits !== 0 && tce >= BigInt(RAM)) {
              expected = H_PARAMETER;
              break;
            }
            if (bits === 0) model.delete(start + index * PAGE);
            else model.set(start + index * PAGE, tce);
          }
          if (what === "list") list(0, tces);
          const ask = {
            put: () => call(Hcall.PUT_TCE, start, tces[0], 0n, of),
            stuff: () => call(Hcall.STUFF_TCE, start, tces[0], BigInt(count), of),
            list: () => call(Hcall.PUT_TCE_INDIRECT, start, 0n, BigInt(count), of),
          };
          const status = ask[what]();
          expect(status).toBe(expected);
        }
        const mapped = [...host.content(1)].map(([iova, { va }]) => [iova, BigInt(va - VA)] as const);
        const wanted = [...model].map(([iova, tce]) => [iova, tce & ~3n] as const);
        expect(new Map(mapped)).toEqual(new Map(wanted));
        expect(host.content(2).size).toBe(0);
      }),
      { numRuns: 60 },
    );
  });
});
