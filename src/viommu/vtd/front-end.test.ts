import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { silent } from "../../base/events.ts";
import {
  CapRegister,
  ContextCacheInvalidate,
  DescriptorType,
  Fsts,
  Gcmd,
  Granularity,
  InvalidationWait,
  IotlbInvalidate,
  IqaRegister,
  Register,
} from "../../hardware/vtd/spec.ts";
import { type Banks, createMemory } from "../../memory/banks.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { Declarations, Layout } from "../../uapi/layout.ts";
import type { BackEnd, Forget, Reread } from "../by-domain.ts";
import type { Told } from "../following.ts";
import { VtdFrontEnd } from "./front-end.ts";

const DONE_AT = 0x8000;

/** A host that notes what it is asked, and refuses what it is told to. */
class NotingBackEnd implements BackEnd {
  readonly asked: (Forget | Reread)[] = [];
  readonly held = 0;
  refusesAfter = Number.POSITIVE_INFINITY;
  refusesReread = false;

  reread(what: Reread): void {
    this.asked.push(what);
    if (this.refusesReread) throw new LinuxError("ENOMEM", "on purpose");
  }
  forget(list: readonly Forget[]): Told {
    const done = Math.min(list.length, this.refusesAfter);
    this.asked.push(...list.slice(0, done));
    return done === list.length ? { done } : { done, error: new LinuxError("EIO", "on purpose") };
  }
}

describe("a virtual VT-d unit", () => {
  let memory: Banks;
  let front: VtdFrontEnd;
  let host: NotingBackEnd;
  let queue: number;
  let tail: number;
  beforeEach(() => {
    memory = createMemory({ ramBytes: 2 ** 22 });
    host = new NotingBackEnd();
    front = new VtdFrontEnd({
      name: "vIOMMU",
      memory,
      events: silent,
      interrupt: () => {},
      capabilities: { addressWidths: [39, 48], hostAddressWidth: 46 },
    });
    front.connect(host);
    queue = memory.allocate(1);
    tail = 0;
    front.mmioWrite(Register.IQA, 8, IqaRegister.make({ QS: 0, IQA: queue }));
    front.mmioWrite(Register.GCMD, 4, BigInt(Gcmd.QIE));
  });
  afterEach(() => memory.close());

  const put = <F extends Declarations>(
    layout: Layout<F>,
    fields: Parameters<Layout<F>["make"]>[0],
  ): number => {
    const at = tail;
    const value = layout.make(fields);
    const word = (index: number) => Number((value >> BigInt(32 * index)) & 0xffff_ffffn);
    memory.store64(queue + at, word(0), word(1));
    memory.store64(queue + at + 8, word(2), word(3));
    tail += 16;
    return at;
  };
  const putPage = (page: number, maskLg2 = 0) =>
    put(IotlbInvalidate, {
      TYPE: DescriptorType.iotlb,
      G: Granularity.page,
      DID: 5,
      AM: maskLg2,
      IH: 1,
      ADDR: page,
    });
  const putWait = () => put(InvalidationWait, { TYPE: DescriptorType.wait, SW: 1, STATUS: 1, ADDR: DONE_AT });
  const ring = () => front.mmioWrite(Register.IQT, 8, BigInt(tail));
  const head = () => Number(front.mmioRead(Register.IQH, 8));
  const isDone = () => memory.load32(DONE_AT) && memory.lo === 1;
  const errors = () => Number(front.mmioRead(Register.FSTS, 4)) & Fsts.IQE;

  it("§6.1 reports caching mode, whatever it was asked to show", () => {
    expect(CapRegister.fields.CM.of(front.mmioRead(Register.CAP, 8))).toBe(1n);
  });

  it("hands invalidations on in order, before the wait descriptor is done", () => {
    putPage(0x5000);
    putPage(0x1_2345_6000, 3);
    put(IotlbInvalidate, { TYPE: DescriptorType.iotlb, G: Granularity.domain, DID: 7 });
    put(IotlbInvalidate, { TYPE: DescriptorType.iotlb, G: Granularity.global });
    putWait();
    ring();
    expect(host.asked).toEqual([
      { domain: 5, range: { start: 0x5000, length: 0x1000 }, leavesOnly: true },
      { domain: 5, range: { start: 0x1_2345_0000, length: 0x8000 }, leavesOnly: true },
      { domain: 7, leavesOnly: false },
      { leavesOnly: false },
    ]);
    expect(isDone()).toBe(true);
    expect(head()).toBe(tail);
  });

  it("hands on what no wait descriptor follows, too", () => {
    putPage(0x5000);
    ring();
    expect(host.asked).toHaveLength(1);
  });

  it("§6.5.2.11 stops with IQE and the head at the descriptor that the host refused; the wait is not done", () => {
    const places = [putPage(0x1000), putPage(0x2000), putPage(0x3000)];
    putWait();
    host.refusesAfter = 1;
    ring();
    expect(head()).toBe(places[1]);
    expect(errors()).toBe(Fsts.IQE);
    expect(isDone()).toBe(false);
    host.refusesAfter = Number.POSITIVE_INFINITY;
    front.mmioWrite(Register.FSTS, 4, BigInt(Fsts.IQE));
    expect(host.asked).toHaveLength(3);
    expect(isDone()).toBe(true);
    expect(errors()).toBe(0);
  });

  it("rereads the entries of one device, or of all, after what was asked before", () => {
    putPage(0x1000);
    put(ContextCacheInvalidate, { TYPE: DescriptorType.contextCache, G: Granularity.device, SID: 0x108 });
    put(ContextCacheInvalidate, {
      TYPE: DescriptorType.contextCache,
      G: Granularity.device,
      SID: 0x108,
      FM: 3,
    });
    put(ContextCacheInvalidate, { TYPE: DescriptorType.contextCache, G: Granularity.domain, DID: 3 });
    putWait();
    ring();
    expect(host.asked).toEqual([expect.objectContaining({ domain: 5 }), { rid: 0x108 }, {}, {}]);
    expect(isDone()).toBe(true);
  });

  it("stops at a context-cache descriptor whose entries the host cannot follow", () => {
    host.refusesReread = true;
    putWait();
    const at = put(ContextCacheInvalidate, { TYPE: DescriptorType.contextCache, G: Granularity.global });
    ring();
    expect(head()).toBe(at);
    expect(errors()).toBe(Fsts.IQE);
    expect(isDone()).toBe(true);
  });

  it("what comes before a malformed descriptor is handed on", () => {
    putPage(0x1000);
    const at = put(IotlbInvalidate, { TYPE: DescriptorType.iotlb, G: Granularity.reserved });
    ring();
    expect(host.asked).toHaveLength(1);
    expect(head()).toBe(at);
  });

  it("rereads everything when translation is turned on or off, and devices pass until it is on", () => {
    expect(front.translationOf(8)).toEqual({ kind: "passThrough", domain: 0, pasid: -1 });
    front.mmioWrite(Register.GCMD, 4, BigInt(Gcmd.QIE | Gcmd.TE) & 0xffff_ffffn);
    expect(host.asked).toEqual([{}]);
    expect(front.translationOf(8).kind).toBe("blocked");
  });
});
