import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { IommuDriver, PageRequest, PageResponse, Requester } from "./driver.ts";
import { type PageRequestGroup, PageRequests, pageRequestsOf } from "./page-requests.ts";

const DEVICES: readonly Requester[] = [
  { name: "one", rid: 1 },
  { name: "two", rid: 2 },
];

interface Answer extends PageResponse {
  readonly device: string;
}

/** The part of a driver that page requests pass through. */
const stub = () => {
  const answers: Answer[] = [];
  const driver = {
    respond: (device: Requester, response: PageResponse) =>
      answers.push({ device: device.name, ...response }),
  } as unknown as IommuDriver;
  const router = new PageRequests(driver);
  const send = (device: Requester, request: PageRequest) => driver.onPageRequest?.(device, request);
  return { driver, router, send, answers };
};
const page = (group: number, last: boolean, pasid?: number, address = 0x1000n): PageRequest => ({
  group,
  last,
  address,
  permissions: 1,
  ...(pasid !== undefined && { pasid }),
});

describe("page requests", () => {
  const [one, two] = DEVICES as [Requester, Requester];

  it("of a group go to the handler together, in order, when the last has come", () => {
    const { router, send, answers } = stub();
    const groups: PageRequestGroup[] = [];
    router.handle(one, undefined, (group) => groups.push(group));
    send(one, page(7, false, undefined, 0x1000n));
    send(one, page(8, true, undefined, 0x9000n));
    send(one, page(7, false, undefined, 0x2000n));
    expect(groups.map(({ number }) => number)).toEqual([8]);
    send(one, page(7, true, undefined, 0x3000n));
    expect(groups[1]).toMatchObject({ device: one, number: 7, pasid: undefined });
    expect(groups[1]!.requests.map(({ address }) => address)).toEqual([0x1000n, 0x2000n, 0x3000n]);
    expect(answers).toEqual([]);
    groups[1]!.respond("success");
    expect(answers).toEqual([{ device: "one", group: 7, code: "success" }]);
  });

  it("of a PASID without a handler go to that of the device, and without any are answered invalid", () => {
    const { router, send, answers } = stub();
    const seen: string[] = [];
    router.handle(one, undefined, () => seen.push("device"));
    router.handle(one, 5, () => seen.push("pasid 5"));
    send(one, page(1, true, 5));
    send(one, page(2, true, 6));
    router.unhandle(one, 5);
    send(one, page(3, true, 5));
    router.unhandle(one, undefined);
    send(one, page(4, true, 5));
    send(two, page(5, false));
    send(two, page(5, true));
    expect(seen).toEqual(["pasid 5", "device", "device"]);
    expect(answers).toEqual([
      { device: "one", group: 4, code: "invalid", pasid: 5 },
      { device: "two", group: 5, code: "invalid" },
    ]);
  });

  it("that never end are kept to a number, and a later group still arrives", () => {
    const { router, send } = stub();
    let count = 0;
    router.handle(one, undefined, ({ requests }) => {
      count = requests.length;
    });
    for (let group = 0; group < 5000; group += 1) send(one, page(group, false));
    send(one, page(4000, true));
    expect(count).toBe(1);
    send(one, page(3, true));
    expect(count).toBe(2);
  });

  it("of a group of which there are too many are answered invalid: none is left out in silence", () => {
    const { router, send, answers } = stub();
    let heard = 0;
    router.handle(one, undefined, () => {
      heard += 1;
    });
    for (let i = 0; i < 1025; i += 1) send(one, page(7, false));
    send(one, page(7, true));
    expect([heard, answers]).toEqual([0, [{ device: "one", group: 7, code: "invalid" }]]);
    send(one, page(7, false));
    send(one, page(7, true));
    expect(heard).toBe(1);
  });

  it("of a PASID that is not handled any more are no part of a later group with their number", () => {
    const { router, send } = stub();
    const seen: number[] = [];
    const handler = ({ requests }: PageRequestGroup): void => void seen.push(requests.length);
    router.handle(one, 5, handler);
    router.handle(one, 6, handler);
    send(one, page(3, false, 5));
    send(one, page(4, false, 6));
    router.unhandle(one, 5);
    send(one, page(3, true, 6));
    send(one, page(4, true, 6));
    expect(seen).toEqual([1, 2]);
  });

  it("have one router a driver", () => {
    const { driver } = stub();
    expect(pageRequestsOf(driver)).toBe(pageRequestsOf(driver));
  });

  it("reach exactly who a list of handlers says, over random lives", () => {
    const step = fc.record({
      what: fc.constantFrom("handle", "unhandle", "send", "send", "send"),
      device: fc.constantFrom(0, 1),
      pasid: fc.constantFrom(undefined, 1, 2),
      group: fc.nat(2),
      last: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const { router, send, answers } = stub();
        const handlers = new Map<string, string>();
        const partial = new Map<string, { readonly key: string; readonly count: number }>();
        const got: string[] = [];
        const expected: string[] = [];
        let refused = 0;
        steps.forEach(({ what, device, pasid, group, last }, at) => {
          const requester = DEVICES[device]!;
          const key = `${device} ${pasid ?? "-"}`;
          if (what === "handle") {
            const name = `handler ${at}`;
            handlers.set(key, name);
            router.handle(requester, pasid, ({ number, requests }) =>
              got.push(`${name}: ${number} of ${requests.length}`),
            );
          } else if (what === "unhandle") {
            handlers.delete(key);
            router.unhandle(requester, pasid);
            for (const [number, { key: first }] of [...partial])
              if (number.startsWith(`${device} `) && !handlers.has(first) && !handlers.has(`${device} -`))
                partial.delete(number);
          } else {
            send(requester, page(group, last, pasid));
            const any = [...handlers.keys()].some((one) => one.startsWith(`${device} `));
            const collected = partial.get(`${device} ${group}`) ?? { key, count: 0 };
            const handler = handlers.get(key) ?? handlers.get(`${device} -`);
            if (!last && any)
              partial.set(`${device} ${group}`, { key: collected.key, count: collected.count + 1 });
            if (!last) return;
            partial.delete(`${device} ${group}`);
            if (handler) expected.push(`${handler}: ${group} of ${collected.count + 1}`);
            else refused += 1;
          }
        });
        expect(got).toEqual(expected);
        expect(answers.length).toBe(refused);
        expect(answers.every(({ code }) => code === "invalid")).toBe(true);
      }),
      { numRuns: 300 },
    );
  });
});
