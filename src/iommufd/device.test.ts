/** Devices that come, go and change between address spaces whose content changes, against lists of pages. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { codeOf } from "../../test/support/code-of.ts";
import { APERTURE, MockClient, USER, USER_PAGES } from "../../test/support/mock-client.ts";
import type { PagingDomain } from "../iommu/driver.ts";
import * as uapi from "../uapi/iommufd.ts";
import { HwptPaging } from "./hwpt.ts";

const PAGE = 0x1000;
const FILE = 0x40_0000;
const FILE_PAGES = 8;
/** Pages of IOVAs that are used: one below what a mock domain maps, then those it begins with. */
const LOW = 0x1000;
const PLACES = [LOW, ...Array.from({ length: 12 }, (_, i) => Number(APERTURE) + i * PAGE)];

/** A page as the model has it: where it lies, and which pin it is. */
interface ModelPage {
  readonly key: string;
  readonly pa: number;
}
type Content = Map<number, ModelPage>;

interface Space {
  readonly id: number;
  /** First IOVAs of areas, and their pages. */
  readonly areas: Map<number, readonly ModelPage[]>;
  /** HWPTs that were asked for. */
  readonly hwpts: number[];
}

interface Plugged {
  readonly object: ReturnType<MockClient["plug"]>;
  /** `hwpt` absent: one that the attach made. */
  at: { readonly space: Space; readonly hwpt: number | undefined } | undefined;
}

class Machine {
  readonly client = new MockClient();
  readonly spaces: readonly Space[] = [0, 1].map(() => ({
    id: this.client.ioas(),
    areas: new Map(),
    hwpts: [],
  }));
  readonly devices: readonly Plugged[] = [0, 1, 2].map(() => ({ object: this.client.plug(), at: undefined }));
  readonly #file: number;
  #maps = 0;

  constructor() {
    const { task } = this.client;
    task.memory.map(FILE, FILE_PAGES * PAGE);
    this.#file = task.backing({
      size: FILE_PAGES * PAGE,
      writable: true,
      pin: (offset, length, writable) => task.memory.pin(FILE + offset, length, writable),
      close: () => {},
    });
  }

  content(space: Space): Content {
    const content: Content = new Map();
    for (const [iova, pages] of space.areas)
      pages.forEach((page, i) => void content.set(iova + i * PAGE, page));
    return content;
  }

  hasDomain(space: Space): boolean {
    return space.hwpts.length > 0 || this.#automatic(space);
  }
  #automatic(space: Space): boolean {
    return this.devices.some(({ at }) => at?.space === space && at.hwpt === undefined);
  }

  map(space: Space, { kind, iova, from, count }: Mapping): void {
    const { client } = this;
    const base = kind === "file" ? FILE : USER;
    const taken = this.content(space);
    const iovas = Array.from({ length: count }, (_, i) => iova + i * PAGE);
    let expected: string | undefined;
    if (iova === LOW && this.hasDomain(space)) expected = "EINVAL";
    else if (iovas.some((at) => taken.has(at))) expected = "EEXIST";
    const got = codeOf(() => {
      const length = BigInt(count * PAGE);
      if (kind === "user") client.map(space.id, iova, count, { from });
      else
        client.call(uapi.IOMMU_IOAS_MAP_FILE, uapi.IommuIoasMapFile, {
          ...{ flags: 7, ioas_id: space.id, fd: this.#file, start: BigInt(from * PAGE) },
          ...{ length, iova: BigInt(iova) },
        });
    });
    expect(got).toBe(expected);
    if (got) return;
    this.#maps += 1;
    const pages = iovas.map((_, i) => ({
      key: `${this.#maps} ${i}`,
      pa: client.task.memory.physical(base + (from + i) * PAGE),
    }));
    space.areas.set(iova, pages);
  }

  unmap(space: Space, iova: number): void {
    const pages = space.areas.get(iova);
    const length = BigInt((pages?.length ?? 1) * PAGE);
    const got = codeOf(() => void this.client.unmap(space.id, BigInt(iova), length));
    expect(got).toBe(pages ? undefined : "ENOENT");
    space.areas.delete(iova);
  }

  /** A whole area, or a page from within one. */
  copy(from: Space, to: Space, source: number, target: number): void {
    const within = this.content(from).get(source);
    const pages = from.areas.get(source) ?? (within ? [within] : []);
    const taken = this.content(to);
    const touched = pages.some((_, i) => taken.has(target + i * PAGE));
    let expected: string | undefined;
    if (pages.length === 0) expected = "ENOENT";
    else if (target === LOW && this.hasDomain(to)) expected = "EINVAL";
    else if (touched) expected = "EEXIST";
    const length = BigInt(Math.max(pages.length, 1) * PAGE);
    const got = codeOf(() =>
      this.client.call(uapi.IOMMU_IOAS_COPY, uapi.IommuIoasCopy, {
        ...{ flags: 7, dst_ioas_id: to.id, src_ioas_id: from.id, length },
        ...{ dst_iova: BigInt(target), src_iova: BigInt(source) },
      }),
    );
    expect(got).toBe(expected);
    if (!got) to.areas.set(target, pages);
  }

  /** Attaches, or replaces; to a HWPT that was made or to the address space. */
  change(device: Plugged, how: "attach" | "replace", space: Space, which: number | undefined): void {
    const hwpt = which === undefined ? undefined : space.hwpts[which];
    const fills = hwpt === undefined && !this.#automatic(space);
    let expected: string | undefined;
    if (fills && space.areas.has(LOW)) expected = "EADDRINUSE";
    else if (how === "attach" && device.at) expected = "EBUSY";
    else if (how === "replace" && !device.at) expected = "EINVAL";
    const got = codeOf(() => device.object.bound[how](hwpt ?? space.id));
    expect(got).toBe(expected);
    if (!got) device.at = { space, hwpt };
  }

  detach(device: Plugged): void {
    device.object.bound.detach();
    device.at = undefined;
  }

  make(device: Plugged, space: Space): void {
    if (space.hwpts.length === 2) return;
    const got = codeOf(() => void space.hwpts.push(this.client.hwpt(device.object.bound.id, space.id)));
    expect(got).toBe(space.areas.has(LOW) ? "EADDRINUSE" : undefined);
  }

  destroy(space: Space): void {
    const hwpt = space.hwpts[0];
    if (hwpt === undefined) return;
    const used = this.devices.some(({ at }) => at?.hwpt === hwpt);
    expect(codeOf(() => this.client.destroy(hwpt))).toBe(used ? "EBUSY" : undefined);
    if (!used) space.hwpts.shift();
  }

  check(): void {
    const { driver, context, iommufd } = this.client;
    const pinned = new Set<string>();
    let domains = 0;
    for (const space of this.spaces) {
      const content = this.content(space);
      domains += space.hwpts.length + (this.#automatic(space) ? 1 : 0);
      if (this.hasDomain(space)) for (const { key } of content.values()) pinned.add(key);
      for (const id of space.hwpts) agree(context.objects.get(id, HwptPaging, "hwpt").domain, content);
    }
    for (const { object, at } of this.devices) {
      const domain = driver.attached(object.device.function);
      if (at) agree(domain as PagingDomain, this.content(at.space));
      else expect(domain).toBe(driver.blocked);
    }
    expect(driver.domains).toBe(domains);
    expect(iommufd.live().pinnedPages).toBe(pinned.size);
  }
}

const agree = (domain: PagingDomain, content: Content): void => {
  const got = PLACES.map((iova) => domain.physical(iova));
  expect(got).toEqual(PLACES.map((iova) => content.get(iova)?.pa ?? -1));
};

interface Mapping {
  readonly kind: "user" | "file";
  readonly iova: number;
  readonly from: number;
  readonly count: number;
}

type Step = (machine: Machine) => void;
const space = fc.constantFrom(0, 1);
const device = fc.nat(2);
const place = fc.constantFrom(...PLACES);
/** One page at the low place, which has no neighbour; elsewhere such that it stays within the places. */
const mapping = fc
  .record({
    kind: fc.constantFrom("user" as const, "file" as const),
    iova: place,
    from: fc.nat(FILE_PAGES - 4),
  })
  .chain((given) =>
    fc
      .integer({ min: 1, max: given.iova === LOW ? 1 : 3 })
      .map((count): Mapping => ({ ...given, from: Math.min(given.from, USER_PAGES - count), count })),
  );
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.tuple(space, mapping).map(
      ([at, how]): Step =>
        (machine) =>
          machine.map(machine.spaces[at]!, how),
    ),
  },
  {
    weight: 2,
    arbitrary: fc.tuple(space, place).map(
      ([at, iova]): Step =>
        (machine) =>
          machine.unmap(machine.spaces[at]!, iova),
    ),
  },
  {
    weight: 2,
    arbitrary: fc.tuple(space, space, place, place).map(
      ([from, to, source, target]): Step =>
        (machine) =>
          machine.copy(machine.spaces[from]!, machine.spaces[to]!, source, target),
    ),
  },
  {
    weight: 4,
    arbitrary: fc
      .tuple(
        device,
        fc.constantFrom("attach" as const, "replace" as const),
        space,
        fc.constantFrom(undefined, 0, 1),
      )
      .map(
        ([which, how, at, hwpt]): Step =>
          (machine) =>
            machine.change(machine.devices[which]!, how, machine.spaces[at]!, hwpt),
      ),
  },
  device.map(
    (which): Step =>
      (machine) =>
        machine.detach(machine.devices[which]!),
  ),
  fc.tuple(device, space).map(
    ([which, at]): Step =>
      (machine) =>
        machine.make(machine.devices[which]!, machine.spaces[at]!),
  ),
  space.map(
    (at): Step =>
      (machine) =>
        machine.destroy(machine.spaces[at]!),
  ),
);

describe("devices on an IOAS", () => {
  it("see exactly what is mapped there, whatever they were attached to before, and nothing once detached", () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 50 }), (steps) => {
        const machine = new Machine();
        for (const act of steps) {
          act(machine);
          machine.check();
        }
        machine.client.close();
      }),
      { numRuns: 150 },
    );
  });
});
