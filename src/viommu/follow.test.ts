/** Whatever a guest does, in whatever order: its devices reach what its tables say, and nothing else. Of every back end. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { GuestRig, RAM_BYTES } from "../../test/support/guest-rig.ts";
import type { GuestDomain } from "../guest/firmware.ts";
import type { ShownUnit } from "../guest/vmm.ts";
import { Protection } from "../iommu/driver.ts";

const PAGE = 4096;
const IOVA = 0x1_0000_0000;
const SLOTS = 6;
const RW = Protection.read | Protection.write;

/** A guest's page for a slot of a domain: which of its pages, or one beyond its memory. */
interface Mapping {
  readonly page: number;
  readonly writable: boolean;
}

const step = fc.oneof(
  fc.record({
    do: fc.constant("map" as const),
    domain: fc.nat(1),
    slot: fc.nat(SLOTS - 1),
    page: fc.nat(SLOTS),
    writable: fc.boolean(),
  }),
  fc.record({ do: fc.constant("unmap" as const), domain: fc.nat(1), slot: fc.nat(SLOTS - 1) }),
  fc.record({ do: fc.constant("attach" as const), device: fc.nat(1), domain: fc.nat(2) }),
  fc.record({
    do: fc.constant("access" as const),
    device: fc.nat(1),
    slot: fc.nat(SLOTS - 1),
    write: fc.boolean(),
  }),
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

class Model {
  readonly rig: GuestRig;
  readonly domains: readonly GuestDomain[];
  /** Guest pages, each with a byte of its own; the last stands for one beyond guest memory. */
  readonly pages: readonly number[];
  readonly mapped = [new Map<number, Mapping>(), new Map<number, Mapping>()] as const;
  /** Domain of each device; 2: none. */
  readonly attached = [2, 2];

  constructor(follow: "nested" | "shadow", host: string, shows: ShownUnit) {
    this.rig = new GuestRig(host, follow, { shows });
    const { guest, vmm } = this.rig;
    this.domains = [0, 1].map(() => guest.driver.allocatePaging(vmm.devices[0]!));
    this.pages = [...Array.from({ length: SLOTS }, () => guest.allocate(1)), RAM_BYTES];
    for (const [index, pa] of this.pages.entries()) guest.memory.fill(pa, PAGE, index + 1);
  }

  run(one: Step): void {
    const { guest, vmm } = this.rig;
    switch (one.do) {
      case "map": {
        const { slot, page, writable } = one;
        if (this.mapped[one.domain]!.has(slot)) return;
        // A virtio-iommu refuses at once what a table can name (`virtio/requests.test.ts`).
        if (page === SLOTS && vmm.iommu.model === "virtio") return;
        const protection = writable ? RW : Protection.read;
        this.domains[one.domain]!.map(IOVA + slot * PAGE, this.pages[page]!, PAGE, protection);
        this.mapped[one.domain]!.set(slot, { page, writable });
        return;
      }
      case "unmap":
        this.domains[one.domain]!.unmap(IOVA + one.slot * PAGE, PAGE);
        this.mapped[one.domain]!.delete(one.slot);
        return;
      case "attach": {
        const requester = vmm.devices[one.device]!;
        guest.driver.attach(requester, this.domains[one.domain] ?? guest.driver.blocked);
        this.attached[one.device] = one.domain;
        return;
      }
      case "access":
        this.#access(one);
    }
  }

  #access({ device: index, slot, write }: Extract<Step, { do: "access" }>): void {
    const { rig } = this;
    const found = this.mapped[this.attached[index]!]?.get(slot);
    const reached = found !== undefined && found.page < SLOTS && (found.writable || !write);
    const device = rig.devices[index]!;
    if (write) {
      device.write(Uint8Array.of((found?.page ?? 0) + 1));
      device.store(IOVA + slot * PAGE, 1);
    } else device.fetch(IOVA + slot * PAGE, 1);
    expect(rig.settle(device)).toBe(reached ? "done" : "fault");
    if (reached && !write) expect(device.read(1)[0]).toBe(found.page + 1);
  }

  /** Every page still has its own byte: nobody wrote where it should not have. */
  check(): void {
    const byte = new Uint8Array(1);
    for (const [index, pa] of this.pages.slice(0, SLOTS).entries()) {
      this.rig.guest.memory.readBytes(pa, byte);
      expect(byte[0]).toBe(index + 1);
    }
  }
}

/** A nested guest has a unit of its host's model. */
const BACK_ENDS: readonly (readonly ["nested" | "shadow", string, ShownUnit])[] = [
  ["nested", "vtd", "vtd"],
  ["nested", "smmuv3", "smmuv3"],
  ["shadow", "vtd-legacy", "vtd-legacy"],
  ["shadow", "smmuv3", "vtd-legacy"],
  ["shadow", "vtd", "vtd"],
  ["shadow", "smmuv3", "vtd"],
  ["shadow", "vtd", "smmuv3"],
  ["shadow", "vtd", "virtio"],
  ["shadow", "vtd-legacy", "virtio"],
  ["shadow", "smmuv3", "virtio"],
];

describe.each(BACK_ENDS)("a guest behind a %s back end on %s, with %s", (follow, host, shows) => {
  it("has devices that reach what its tables say at every moment", () => {
    fc.assert(
      fc.property(fc.array(step, { minLength: 10, maxLength: 60 }), (steps) => {
        const model = new Model(follow, host, shows);
        for (const one of steps) model.run(one);
        for (const device of [0, 1])
          for (let slot = 0; slot < SLOTS; slot++)
            for (const write of [false, true]) model.run({ do: "access", device, slot, write });
        model.check();
        expect(model.rig.close()).toEqual({});
      }),
      { numRuns: 5 },
    );
  });
});
