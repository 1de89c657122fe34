/** What a virtio-iommu asks of its host, and what becomes of a request that the host refuses: nothing has changed. */
import { describe, expect, it } from "vitest";
import { type ErrnoName, LinuxError } from "../../uapi/errno.ts";
import { type DomainCalls, Domains, type Endpoint } from "./domains.ts";
import { RequestStatus, ReservedKind } from "./spec.ts";

const { OK, UNSUPP, RANGE, NOMEM } = RequestStatus;
const RW = { readable: true, writable: true } as const;
const at = (start: number, length = 0x1000) => ({ start, end: start + length, target: 0x8000, ...RW });

/** A host that notes what it is asked, and refuses what it is told to. */
class Host implements DomainCalls {
  readonly asked: string[] = [];
  /** Of each device. */
  readonly tables = new Map<number, number>();
  refuses: readonly (readonly [name: string, code: ErrnoName])[] = [];
  #next = 1;

  #take(name: string, ...values: readonly (number | undefined)[]): void {
    const refused = this.refuses.find(([known]) => known === name);
    if (refused) throw new LinuxError(refused[1], `${name} is refused`);
    this.asked.push([name, ...values].join(" "));
  }
  allocateIoas(): number {
    this.#take("ioas");
    return this.#next++;
  }
  allocateHwpt(_device: number, ioas: number): number {
    this.#take("hwpt", ioas);
    return this.#next++;
  }
  attach(device: number, table: number): void {
    this.#take("attach", device, table);
    this.tables.set(device, table);
  }
  detach(device: number): void {
    this.tables.delete(device);
  }
  destroy(id: number): void {
    this.#take("destroy", id);
  }
  map(ioas: number, { iova, length }: { iova: number; length: number }): void {
    this.#take("map", ioas, iova, length);
  }
  unmap(ioas: number, iova: number, length: number): void {
    this.#take("unmap", ioas, iova, length);
  }
}

const endpoint = (rid: number, reserved: Endpoint["reserved"] = []): Endpoint => ({
  rid,
  fd: rid,
  id: rid,
  reserved,
});

const begin = (endpoints: readonly Endpoint[] = [endpoint(8), endpoint(9)], mostMappings = 100) => {
  const host = new Host();
  const refusals: string[] = [];
  const domains = new Domains({
    ...{ calls: host, endpoints, mostMappings, granule: 0x1000, faults: undefined },
    ram: { va: 0x7f00_0000_0000, bytes: 2 ** 24 },
    input: { start: 0, end: 2 ** 40 },
    report: (what) => refusals.push(what),
  });
  domains.setBypass(false);
  return { host, domains, refusals };
};

describe("what the host refuses", () => {
  it("to map is out of range, or no memory; the guest can ask again", () => {
    const { host, domains, refusals } = begin();
    domains.attach(1, 8, false);
    host.refuses = [["map", "EINVAL"]];
    expect(domains.map(1, at(0x1000))).toBe(RANGE);
    host.refuses = [["map", "ENOMEM"]];
    expect(domains.map(1, at(0x1000))).toBe(NOMEM);
    expect([domains.mappings, refusals.length]).toEqual([0, 2]);
    host.refuses = [];
    expect([domains.map(1, at(0x1000)), domains.mappings]).toEqual([OK, 1]);
  });

  it("to attach leaves the endpoint where it was, and no domain behind", () => {
    const { host, domains } = begin();
    domains.attach(1, 8, false);
    const had = host.tables.get(8);
    host.refuses = [["attach", "EINVAL"]];
    expect(domains.attach(2, 8, false)).toBe(UNSUPP);
    expect([host.tables.get(8), domains.domains, host.asked.at(-1)]).toEqual([had, 1, `destroy ${had! + 1}`]);
    host.refuses = [["ioas", "ENOMEM"]];
    expect(domains.attach(2, 8, false)).toBe(NOMEM);
    host.refuses = [];
    expect(domains.map(1, at(0x1000))).toBe(OK);
  });

  it("to let an endpoint pass leaves it with nothing", () => {
    const { host, domains } = begin();
    domains.attach(1, 8, false);
    host.refuses = [["attach", "ENOMEM"]];
    domains.setBypass(true);
    expect(domains.detach(1, 8)).toBe(OK);
    expect(host.tables.size).toBe(0);
  });
});

describe("a domain", () => {
  it("is one address space of the host for as long as it has endpoints, whatever is in it", () => {
    const { host, domains } = begin();
    domains.attach(1, 8, false);
    domains.attach(1, 9, false);
    expect(host.tables.get(8)).toBe(host.tables.get(9));
    domains.map(1, at(0x1000));
    domains.detach(1, 8);
    expect(domains.mappings).toBe(1);
    const space = host.tables.get(9)!;
    domains.detach(1, 9);
    expect([domains.mappings, domains.domains, host.asked.at(-1)]).toEqual([0, 0, `destroy ${space}`]);
  });

  it("takes no endpoint that reserves what is mapped in it", () => {
    const picky = endpoint(9, [{ start: 0x5000, end: 0x6000, kind: ReservedKind.RESERVED }]);
    const { domains } = begin([endpoint(8), picky]);
    domains.attach(1, 8, false);
    domains.map(1, at(0x4000, 0x2000));
    expect(domains.attach(1, 9, false)).toBe(UNSUPP);
    domains.unmap(1, 0n, 0xffffn);
    expect(domains.attach(1, 9, false)).toBe(OK);
  });

  it("gives several mappings back by one call", () => {
    const { host, domains } = begin();
    domains.attach(1, 8, false);
    for (const start of [0x1000, 0x2000, 0x8000]) domains.map(1, at(start));
    const space = host.tables.get(8)!;
    domains.unmap(1, 0n, 0xffffn);
    expect(host.asked.at(-1)).toBe(`unmap ${space} ${0x1000} ${0x8000}`);
  });

  it("has no more mappings than all may have together", () => {
    const { domains } = begin(undefined, 2);
    domains.attach(1, 8, false);
    domains.attach(2, 9, false);
    expect([domains.map(1, at(0x1000)), domains.map(2, at(0x1000)), domains.map(2, at(0x2000))]).toEqual([
      OK,
      OK,
      NOMEM,
    ]);
    domains.detach(1, 8);
    expect(domains.map(2, at(0x2000))).toBe(OK);
  });
});
