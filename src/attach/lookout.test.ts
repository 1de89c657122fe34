import { describe, expect, it } from "vitest";
import { LONGEST_LOOK, Lookout, MOST_PLACES, type Place } from "./lookout.ts";

/** Microseconds between two looks at the clock. */
const STEP = 1;

/** A page, the thread that posts there, and what happens at each step of the daemon. */
class FakePlace implements Place {
  looked = false;
  waiting = false;
  rings = 0;
  served = 0;
  step: () => void = () => {};

  get posted(): boolean {
    this.step();
    return this.waiting;
  }
  announce(looking: boolean): void {
    this.step();
    this.looked = looking;
    this.step();
  }
  post(): void {
    this.waiting = true;
    if (!this.looked) this.rings += 1;
  }
  take(): void {
    if (this.waiting) this.served += 1;
    this.waiting = false;
  }
}

class Rig {
  microseconds = 0;
  /** Runs at every look at the clock. */
  tick: () => void = () => {};
  readonly lookout: Lookout<FakePlace>;

  constructor(processors = 2) {
    this.lookout = new Lookout((place: FakePlace) => place.take(), {
      processors,
      now: () => {
        this.microseconds += STEP;
        this.tick();
        return this.microseconds / 1000;
      },
    });
  }

  /** A request that came with a ring, as far as it concerns the lookout. */
  expecting(...places: FakePlace[]): void {
    for (const place of places) this.lookout.expect(place);
  }

  /** Looks until the loop may sleep; how long that took. */
  untilSleep(): number {
    const start = this.microseconds;
    while (this.lookout.look(20)) this.lookout.serve();
    return this.microseconds - start;
  }
}

describe("looking for requests before the daemon sleeps", () => {
  it("does not look where nobody asked, nor on a single processor", () => {
    expect(new Rig().lookout.look(20)).toBe(false);
    const rig = new Rig(1);
    const place = new FakePlace();
    rig.expecting(place);
    expect([rig.lookout.look(20), place.looked, rig.microseconds]).toEqual([false, false, 0]);
  });

  it("while it looks nobody rings, and what was posted is served when the kernel was asked", () => {
    const rig = new Rig();
    const place = new FakePlace();
    rig.expecting(place);
    expect([rig.lookout.look(20), place.looked]).toEqual([true, true]);
    for (let i = 1; i <= 100; i += 1) {
      place.post();
      expect([rig.lookout.look(20), place.served]).toEqual([true, i - 1]);
      rig.lookout.serve();
      expect([place.served, place.rings]).toEqual([i, 0]);
    }
  });

  it("a look of no time sees what is there, and spends nothing", () => {
    const rig = new Rig();
    const place = new FakePlace();
    rig.expecting(place);
    for (let i = 0; i < 1000; i += 1) expect(rig.lookout.look(0)).toBe(true);
    place.post();
    rig.lookout.look(0);
    rig.lookout.serve();
    expect([place.served, place.rings]).toEqual([1, 0]);
  });

  it("sleeps when nothing came for a while, and whoever posts afterwards rings", () => {
    const rig = new Rig();
    const place = new FakePlace();
    rig.expecting(place);
    const took = rig.untilSleep();
    expect(took).toBeGreaterThanOrEqual(LONGEST_LOOK);
    expect(took).toBeLessThan(LONGEST_LOOK + 30);
    place.post();
    expect([place.rings, rig.lookout.look(20)]).toEqual([1, false]);
  });

  it("loses no request, whichever steps of the daemon lie before and between the two of who posts", () => {
    const run = (postAt: number, readAt: number): number => {
      const rig = new Rig();
      const places = [new FakePlace(), new FakePlace()];
      const [, place] = places as [FakePlace, FakePlace];
      let steps = 0;
      const step = (): void => {
        if (steps === postAt) place.waiting = true;
        if (steps === readAt && !place.looked) place.rings += 1;
        steps += 1;
      };
      for (const each of places) each.step = step;
      rig.expecting(...places);
      rig.untilSleep();
      const heard = place.rings + place.served > 0;
      expect([postAt, readAt, heard]).toEqual([postAt, readAt, postAt >= 0]);
      return steps;
    };
    const steps = run(-1, -1);
    expect(steps).toBeGreaterThan(20);
    for (let post = 0; post < steps; post += 1)
      for (let read = post; read < steps; read += 1) run(post, read);
  });

  it("of requests that come too far apart few are looked for", () => {
    const rig = new Rig();
    const place = new FakePlace();
    let looked = 0;
    for (let i = 0; i < 5000; i += 1) {
      rig.expecting(place);
      looked += rig.untilSleep();
      rig.microseconds += 200;
    }
    expect(looked).toBeGreaterThan(LONGEST_LOOK);
    expect(looked).toBeLessThan(rig.microseconds / 32);
  });

  it("a run of requests pays for the look in vain at its end", () => {
    const rig = new Rig();
    const place = new FakePlace();
    let heard = 0;
    for (let run = 0; run < 100; run += 1) {
      place.post();
      place.take();
      rig.expecting(place);
      rig.lookout.look(20);
      for (let i = 0; i < 15; i += 1) {
        if (place.looked) heard += 1;
        place.post();
        if (rig.lookout.look(20)) rig.lookout.serve();
        else place.take();
      }
      rig.untilSleep();
    }
    expect(heard).toBe(1500);
  });

  it("rests when others had the processor while it looked, and serves what came meanwhile", () => {
    const rig = new Rig();
    const place = new FakePlace();
    rig.expecting(place);
    rig.lookout.look(0);
    rig.tick = () => {
      rig.tick = () => {
        rig.microseconds += 3000;
        rig.tick = () => {};
        place.post();
      };
    };
    expect([rig.lookout.look(20), place.looked]).toEqual([true, false]);
    rig.lookout.serve();
    expect(place.served).toBe(1);
    rig.expecting(place);
    expect(rig.lookout.look(20)).toBe(false);
    rig.microseconds += 100_000;
    rig.expecting(place);
    expect(rig.lookout.look(20)).toBe(false);
    rig.microseconds += 100_000;
    rig.expecting(place);
    expect(rig.lookout.look(20)).toBe(true);
  });

  it("looks at some threads at once; others ring", () => {
    const rig = new Rig();
    const places = Array.from({ length: MOST_PLACES + 2 }, () => new FakePlace());
    rig.expecting(...places.slice(0, MOST_PLACES - 1));
    rig.lookout.look(0);
    rig.expecting(...places);
    for (const place of places) place.post();
    expect(places.map(({ rings }) => rings)).toEqual([...Array(MOST_PLACES).fill(0), 1, 1]);
    rig.lookout.look(20);
    rig.lookout.serve();
    expect(places.map(({ served }) => served)).toEqual([...Array(MOST_PLACES).fill(1), 0, 0]);
  });

  it("serves what was postponed after the next look, even one that rests", () => {
    const rig = new Rig();
    const place = new FakePlace();
    place.post();
    rig.lookout.postpone(place);
    rig.lookout.serve();
    expect(place.served).toBe(0);
    expect(rig.lookout.look(20)).toBe(true);
    rig.lookout.serve();
    expect(place.served).toBe(1);
  });

  it("forgets who went, wherever it stands", () => {
    const rig = new Rig();
    const [found, later, looked] = [new FakePlace(), new FakePlace(), new FakePlace()];
    rig.expecting(found, looked);
    found.post();
    rig.lookout.look(20);
    later.post();
    rig.lookout.postpone(later);
    for (const place of [found, later, looked]) rig.lookout.forget(place);
    rig.lookout.serve();
    looked.post();
    rig.untilSleep();
    expect([found.served, later.served, looked.served]).toEqual([0, 0, 0]);
  });

  it("keeps what it had not served when serving one fails", () => {
    const served: FakePlace[] = [];
    const bad = new FakePlace();
    const lookout = new Lookout<FakePlace>(
      (place) => {
        if (place === bad) throw new Error("on purpose");
        served.push(place);
      },
      { processors: 2 },
    );
    const good = new FakePlace();
    lookout.postpone(good);
    lookout.postpone(bad);
    lookout.look(0);
    expect(() => lookout.serve()).toThrow("on purpose");
    lookout.serve();
    expect(served).toEqual([good]);
  });
});
