/** Page requests through the VT-d driver: from a unit's queue to the core and back, every group answered once. */
import fc from "fast-check";
import { afterEach, describe, expect, it } from "vitest";
import { PageResponse as Code, type PageRequest as DeviceRequest } from "../../hardware/ats.ts";
import { Access, NO_PASID } from "../../hardware/unit.ts";
import { PqaRegister, Prs } from "../../hardware/vtd/scalable-spec.ts";
import { EventControl, Register } from "../../hardware/vtd/spec.ts";
import type { PageRequest, PagingDomain } from "../../iommu/driver.ts";
import { type PageRequestGroup, pageRequestsOf } from "../../iommu/page-requests.ts";
import { Rig } from "./rig.suite.ts";

let rig: Rig;
let domain: PagingDomain;
/** A function with a domain for faults, without PASID and with PASID 4. */
const start = (): Rig => {
  rig = new Rig();
  domain = rig.driver.allocatePaging(rig.device, { faults: true, pasid: true });
  rig.driver.attach(rig.device, domain);
  rig.driver.attach(rig.device, domain, 4);
  return rig;
};
afterEach(() => {
  rig.release();
  domain.free();
  expect(rig.close()).toBe(0);
});

/** The unit's page request event is masked meanwhile. */
const masked = (work: () => void): void => {
  rig.unit.mmioWrite(Register.PECTL, 4, BigInt(EventControl.IM));
  work();
  rig.unit.mmioWrite(Register.PECTL, 4, 0n);
};
const capacity = (): number => {
  const { PQS } = PqaRegister.fields;
  return (4096 * 2 ** Number(PQS.of(rig.unit.mmioRead(Register.PQA, 8)))) / 32 - 1;
};

describe("a page request", () => {
  it("is told as the function made it", () => {
    const { driver, device } = start();
    const seen: PageRequest[] = [];
    driver.onPageRequest = (_device, request) => seen.push(request);
    rig.ask(device, { lo: 0x9000, hi: 0x12, access: Access.read | Access.write, group: 77, last: false });
    const access = Access.read | Access.execute | Access.privileged;
    rig.ask(device, { pasid: 4, access, group: 511 });
    expect(seen).toEqual([
      { address: 0x12_0000_9000n, permissions: 3, group: 77, last: false },
      { pasid: 4, address: 0x5000n, permissions: 13, group: 511, last: true },
    ]);
    expect(rig.responses).toEqual([]);
    driver.respond(device, { pasid: 4, group: 511, code: "success" });
    driver.respond(device, { group: 77, code: "invalid" });
    driver.respond(device, { group: 78, code: "failure" });
    expect(rig.responses).toEqual([
      { rid: device.rid, pasid: 4, group: 511, response: Code.success },
      { rid: device.rid, pasid: NO_PASID, group: 77, response: Code.invalid },
      { rid: device.rid, pasid: NO_PASID, group: 78, response: Code.failure },
    ]);
  });

  it("while nobody listens is answered at the end of its group", () => {
    const { device } = start();
    rig.ask(device, { group: 3, last: false });
    expect(rig.responses).toEqual([]);
    rig.ask(device, { group: 3, pasid: 4 });
    expect(rig.responses).toEqual([{ rid: device.rid, pasid: 4, group: 3, response: Code.invalid }]);
  });

  it("that wants nothing is a stop marker, and has no answer", () => {
    const { driver, device } = start();
    const seen: PageRequest[] = [];
    driver.onPageRequest = (_device, request) => seen.push(request);
    rig.ask(device, { access: 0 });
    expect(seen).toEqual([]);
    expect(rig.responses).toEqual([]);
  });

  it("that an answer makes a function send is told after the answer is out, and may be answered at once", () => {
    const { driver, device, unit } = start();
    const seen: number[] = [];
    driver.onPageRequest = (_device, { group }) => {
      seen.push(group);
      driver.respond(device, { group, code: "success" });
    };
    const answered = unit.onPageResponse;
    unit.onPageResponse = (rid, pasid, group, response) => {
      answered(rid, pasid, group, response);
      if (group < 5) rig.ask(device, { group: group + 1 });
    };
    driver.respond(device, { group: 1, code: "success" });
    expect(seen).toEqual([2, 3, 4, 5]);
    expect(rig.responses.map(({ group }) => group)).toEqual([1, 2, 3, 4, 5]);
  });
});

describe("a queue that is full", () => {
  it("loses no answer: the unit sends those of groups that found no room, and parts of groups are forgotten", () => {
    const { driver, device } = start();
    const groups: PageRequestGroup[] = [];
    pageRequestsOf(driver).handle(device, undefined, (group) => groups.push(group));
    const room = capacity();
    masked(() => {
      for (let i = 0; i < room; i++) rig.ask(device, { group: i % 512, last: i % 2 === 1 });
      rig.ask(device, { group: 7, last: false });
      rig.ask(device, { group: 7 });
    });
    expect(driver.pageRequests).toMatchObject({ taken: room, overflows: 1 });
    expect(rig.responses).toEqual([{ rid: device.rid, pasid: NO_PASID, group: 7, response: Code.success }]);
    expect(rig.unit.mmioRead(Register.PRS, 4) & BigInt(Prs.PRO | Prs.PPR)).toBe(0n);
    // Its first request was in the queue, and is not taken for one of a later group.
    rig.ask(device, { group: (room - 1) % 512 });
    expect(groups.at(-1)!.requests).toHaveLength(1);
  });
});

describe("a function whose domain goes", () => {
  it("has its page requests told before the domain is left, and refused afterwards", () => {
    const { driver, device } = start();
    const seen: (string | number)[] = [];
    driver.onPageRequest = (_device, { group }) => seen.push(group);
    rig.unit.mmioWrite(Register.PECTL, 4, BigInt(EventControl.IM));
    for (const group of [1, 2]) rig.ask(device, { pasid: 4, group });
    driver.attach(device, driver.blocked, 4);
    expect(seen).toEqual([1, 2]);
    rig.unit.mmioWrite(Register.PECTL, 4, 0n);
    rig.ask(device, { pasid: 4, group: 3 });
    expect(seen).toEqual([1, 2]);
    expect(driver.pageRequests).toEqual({ taken: 3, answered: 0, refused: 1, overflows: 0 });
    expect(rig.responses).toEqual([{ rid: device.rid, pasid: 4, group: 3, response: Code.invalid }]);
  });
});

it("over random requests, overflows, detaches and answers every last request has one answer", () => {
  const step = fc.record({
    what: fc.constantFrom("ask", "ask", "ask", "burst", "detach", "attach", "answer"),
    tag: fc.constantFrom(NO_PASID, 4),
    group: fc.integer({ min: 0, max: 5 }),
    last: fc.boolean(),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      start();
      const { driver, device } = rig;
      const waiting: PageRequestGroup[] = [];
      const listen = (pasid: number | undefined): void =>
        pageRequestsOf(driver).handle(device, pasid, (group) => waiting.push(group));
      const listens = (tag: number): number | undefined => (tag === NO_PASID ? undefined : tag);
      listen(undefined);
      listen(4);
      let asked = 0;
      const ask = (request: Partial<DeviceRequest>): void => {
        rig.ask(device, request);
        if (request.last !== false) asked += 1;
      };
      for (const { what, tag, group, last } of steps) {
        if (what === "ask") ask({ pasid: tag, group, last });
        else if (what === "burst")
          masked(() => {
            for (let i = capacity() + 5; i > 0; i--) ask({ pasid: tag, group, last });
          });
        else if (what === "detach") driver.attach(device, driver.blocked, listens(tag));
        else if (what === "attach") driver.attach(device, domain, listens(tag));
        else waiting.shift()?.respond("success");
      }
      for (const group of waiting) group.respond("invalid");
      expect(rig.responses).toHaveLength(asked);
      rig.release();
      domain.free();
      expect(rig.close()).toBe(0);
    }),
    { numRuns: 40 },
  );
  start();
});
