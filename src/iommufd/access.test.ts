/** Accesses that give their pins back at once, later or never, over random lives: no unmap takes a pinned page or hangs. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { codeOf } from "../../test/support/code-of.ts";
import { APERTURE, MockClient } from "../../test/support/mock-client.ts";
import type { PendingCall } from "../kernel/model-task.ts";
import * as uapi from "../uapi/iommufd.ts";
import { type Access, type AccessPin, createAccess } from "./access.ts";
import { Ioas } from "./ioas.ts";

const PAGE = 0x1000n;
/** Areas of four pages may lie here, side by side. */
const SLOTS = 6;
const AREA = 4n * PAGE;
const placeOf = (slot: number): bigint => APERTURE + BigInt(slot) * AREA;

interface Held {
  readonly pin: AccessPin;
  /** Pages of the client's memory that it covers; each slot's area maps the same four. */
  readonly slot: number;
  readonly pages: readonly number[];
  told: boolean;
}

/** When an access gives pins back: as it is told, when it comes to it, or not for as long as unmaps wait. */
const HOLDERS = ["prompt", "late", "stubborn"] as const;

class Holder {
  readonly access: Access;
  readonly when: (typeof HOLDERS)[number];
  held: Held[] = [];

  constructor(client: MockClient, ioas: number, when: (typeof HOLDERS)[number]) {
    this.when = when;
    this.access = createAccess(client.context, {
      pins: true,
      unmap: (iova, length) => this.#told(iova, length),
    });
    this.access.attach(ioas);
  }

  give(which: (one: Held) => boolean): void {
    for (const one of this.held.filter(which)) one.pin.release();
    this.held = this.held.filter((one) => !which(one));
  }

  #told(iova: bigint, length: bigint): void {
    for (const one of this.held) if (one.pin.touches(iova, length)) one.told = true;
    if (this.when === "prompt") this.give((one) => one.told);
  }
}

class Lives {
  readonly client = new MockClient();
  readonly ioas = this.client.ioas();
  readonly holders = HOLDERS.map((when) => new Holder(this.client, this.ioas, when));
  readonly unmaps: { readonly call: PendingCall; readonly from: number; readonly to: number }[] = [];
  readonly #pagetable = this.client.context.objects.get(this.ioas, Ioas, "ioas").pagetable;

  area(slot: number) {
    return this.#pagetable.areas.at(placeOf(slot));
  }
  get held(): readonly Held[] {
    return this.holders.flatMap(({ held }) => held);
  }

  map(slot: number): void {
    const taken = this.area(slot) !== undefined;
    expect(codeOf(() => this.client.map(this.ioas, Number(placeOf(slot)), 4))).toBe(
      taken ? "EEXIST" : undefined,
    );
  }

  pin(holder: Holder, slot: number, first: number, count: number): void {
    const area = this.area(slot);
    const pages = Array.from({ length: count }, (_, i) => first + i);
    const got = codeOf(() => {
      const pin = holder.access.pin(placeOf(slot) + BigInt(first) * PAGE, BigInt(count) * PAGE, true);
      holder.held.push({ pin, slot, pages, told: false });
    });
    expect(got).toBe(area && !area.leaving ? undefined : "ENOENT");
  }

  unmap(from: number, to: number): void {
    const slots = Array.from({ length: to - from + 1 }, (_, i) => from + i);
    const mapped = slots.filter((slot) => this.area(slot));
    const kept = this.held.some((one) => mapped.includes(one.slot) && !this.#isPrompt(one));
    const argument = uapi.IommuIoasUnmap.bytes({
      size: uapi.IommuIoasUnmap.size,
      ioas_id: this.ioas,
      iova: placeOf(from),
      length: BigInt(slots.length) * AREA,
    });
    const call = this.client.task.start(this.client.fd, uapi.IOMMU_IOAS_UNMAP, argument);
    expect(call.settled).toBe(!kept);
    if (!kept) {
      expect(codeOf(() => call.result())).toBe(mapped.length > 0 ? undefined : "ENOENT");
      for (const slot of slots) expect(this.area(slot)).toBeUndefined();
    }
    this.unmaps.push({ call, from, to });
  }

  #isPrompt(one: Held): boolean {
    return this.holders[0]!.held.includes(one);
  }

  check(): void {
    const pinned = new Map<unknown, Set<number>>();
    for (const one of this.held) {
      const area = this.area(one.slot);
      expect(area, "an area with pins is there").toBeDefined();
      const set = pinned.get(area) ?? new Set();
      pinned.set(area, set);
      for (const page of one.pages) set.add(page);
    }
    const pages = [...pinned.values()].reduce((sum, set) => sum + set.size, 0);
    expect(this.client.iommufd.live().pinnedPages).toBe(pages);
    for (const { call, from, to } of this.unmaps.filter((one) => !one.call.settled)) {
      const waits = this.held.find((one) => from <= one.slot && one.slot <= to && one.told);
      const goesOn = this.client.host.scheduler.pending > 0;
      expect(waits !== undefined || goesOn, "an unmap waits for a pin whose holder was told").toBe(true);
      expect(call.settled).toBe(false);
    }
  }

  /** Late ones give what they were told of; then every unmap ends, those with a stubborn pin in their way by EDEADLK. */
  end(): void {
    this.holders[1]!.give(() => true);
    const stubborn = new Set(this.held.map(({ slot }) => slot));
    const waiting = this.unmaps.filter(({ call }) => !call.settled);
    this.client.host.scheduler.run();
    expect(this.client.host.scheduler.pending).toBe(0);
    for (const { call, from, to } of waiting) {
      const code = codeOf(() => call.result());
      const blocked = [...stubborn].some((slot) => from <= slot && slot <= to);
      expect(blocked ? code === "EDEADLK" : code === undefined || code === "ENOENT", `${code}`).toBe(true);
    }
    for (let slot = 0; slot < SLOTS; slot += 1) expect(this.area(slot)?.leaving ?? false).toBe(false);
    this.check();
    for (const holder of this.holders) {
      holder.give(() => true);
      holder.access.release();
    }
    this.client.close();
  }
}

type Step = (lives: Lives) => void;
const slot = fc.nat(SLOTS - 1);
const holder = fc.constantFrom(0, 1, 1, 2);
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 3,
    arbitrary: slot.map(
      (at): Step =>
        (lives) =>
          lives.map(at),
    ),
  },
  {
    weight: 4,
    arbitrary: fc.record({ holder, slot, first: fc.nat(2), count: fc.constantFrom(1, 2) }).map(
      (given): Step =>
        (lives) => {
          lives.pin(lives.holders[given.holder]!, given.slot, given.first, given.count);
        },
    ),
  },
  {
    weight: 3,
    arbitrary: fc.tuple(slot, slot).map(
      ([a, b]): Step =>
        (lives) => {
          lives.unmap(Math.min(a, b), Math.max(a, b));
        },
    ),
  },
  fc.record({ holder, slot }).map(
    (given): Step =>
      (lives) => {
        lives.holders[given.holder]!.give((one) => one.slot === given.slot);
      },
  ),
  fc.integer({ min: 1, max: 40 }).map(
    (budget): Step =>
      (lives) => {
        lives.client.host.scheduler.run(budget);
      },
  ),
  fc.constant<Step>((lives) => {
    for (const { call } of lives.unmaps.filter((one) => !one.call.settled).slice(0, 1)) call.interrupt();
  }),
);

describe("accesses of an IOAS", () => {
  it("keep every page they have pinned, and every unmap ends, over random lives", () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const lives = new Lives();
        for (const act of steps) {
          act(lives);
          lives.check();
        }
        lives.end();
      }),
      { numRuns: 120 },
    );
  });
});
