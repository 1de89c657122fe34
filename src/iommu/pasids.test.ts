/** The machine's PASIDs: sets of address spaces, their limits, and the whole against sets of numbers. */
import * as fc from "fast-check";
import { afterAll, beforeEach, describe, expect, it } from "vitest";
import { outcome, reasonOf } from "../../test/support/vfio-client.ts";
import { ModelTask, type ModelTaskOptions } from "../kernel/model-task.ts";
import { createMemory } from "../memory/banks.ts";
import { LinuxError } from "../uapi/errno.ts";
import { DEFAULT_QUOTA, type PasidLimits, Pasids } from "./pasids.ts";

const memory = createMemory({ ramBytes: 64 * 2 ** 20 });
afterAll(() => memory.close());
const newTask = (options: ModelTaskOptions = {}): ModelTask => new ModelTask(memory, options);

let pasids: Pasids;
beforeEach(() => {
  pasids = new Pasids({ bits: 20 });
});
const give = (limits: PasidLimits): void => {
  pasids = new Pasids(limits);
};

describe("a range", () => {
  it("has both its ends: the lowest free one is given, and min = max is exactly that one", () => {
    const set = pasids.join(newTask(), {});
    expect([set.allocate(5, 7), set.allocate(5, 7), set.allocate(5, 7)]).toEqual([5, 6, 7]);
    expect(outcome(() => set.allocate(5, 7))).toBe("ENOSPC");
    expect(set.allocate(9, 9)).toBe(9);
    expect(outcome(() => set.allocate(9, 9))).toBe("ENOSPC");
    expect(set.allocate(2 ** 20 - 1, 2 ** 31 - 1)).toBe(2 ** 20 - 1);
  });

  it("PASID 0, which stands for requests without one, is nobody's", () => {
    const set = pasids.join(newTask(), {});
    expect(outcome(() => set.allocate(0, 0))).toBe("ENOSPC");
    expect(set.allocate(0, 1)).toBe(1);
  });

  it("above the machine's bits there is nothing, and the reason says how many bits there are", () => {
    give({ bits: 8 });
    const set = pasids.join(newTask(), {});
    expect(set.allocate(255, 256)).toBe(255);
    expect(outcome(() => set.allocate(255, 256))).toBe("ENOSPC");
    expect(reasonOf(() => set.allocate(256, 2 ** 31 - 1))).toContain("8 bits");
  });

  it("of one number that is taken is refused with who has it", () => {
    const [mine, other] = [pasids.join(newTask(), {}), pasids.join(newTask(), {})];
    const ofHost = pasids.takeForHost();
    other.allocate(9, 9);
    pasids.claim(newTask(), 10, {});
    expect(reasonOf(() => mine.allocate(10, 10))).toContain("through iommufd");
    expect(reasonOf(() => mine.allocate(ofHost, ofHost))).toContain("the host has it");
    expect(reasonOf(() => mine.allocate(9, 9))).toContain(`${other.name} has it`);
    expect(reasonOf(() => mine.allocate(0, 0))).not.toContain("has it");
  });

  it("free takes those of the set that are in it, and leaves everybody else's", () => {
    const [mine, other] = [pasids.join(newTask(), {}), pasids.join(newTask(), {})];
    for (let i = 0; i < 4; i++) {
      mine.allocate(1, 100);
      other.allocate(1, 100);
    }
    mine.free(3, 5);
    expect([1, 3, 5, 7].map((pasid) => mine.has(pasid))).toEqual([true, false, false, true]);
    expect([2, 4, 6, 8].map((pasid) => pasids.ownerOf(pasid))).toEqual([other, other, other, other]);
    expect([mine.allocate(1, 100), mine.allocate(1, 100)]).toEqual([3, 5]);
  });

  it("a free of everything costs as much as there is to free: thousands of them take no time", () => {
    const set = pasids.join(newTask(), {});
    for (let i = 0; i < 5000; i++) {
      set.allocate(1000, 2000);
      set.free(0, 2 ** 31 - 1);
    }
    expect(set.size).toBe(0);
  });
});

describe("a set", () => {
  it("is the address space's: threads share it, another process has another", () => {
    const task = newTask();
    const set = pasids.join(task, {});
    expect(pasids.join(newTask({ shares: task, tid: 77 }), {})).toBe(set);
    expect(pasids.join(newTask(), {})).not.toBe(set);
    expect(pasids.of(task)).toBe(set);
  });

  it("lives until its last holder leaves", () => {
    const task = newTask();
    const [one, two] = [{}, {}];
    const pasid = pasids.join(task, one).allocate(1, 10);
    pasids.join(task, two);
    pasids.leave(one);
    expect(pasids.ownerOf(pasid)).toBe(pasids.of(task));
    pasids.leave(two);
    expect(pasids.ownerOf(pasid)).toBeUndefined();
    expect(pasids.of(task)).toBeUndefined();
    expect(task.memory.atEnd.size).toBe(0);
  });

  it("goes with its address space, whoever holds it; holders find nothing left", () => {
    const task = newTask();
    const holder = {};
    const pasid = pasids.join(task, holder).allocate(1, 10);
    task.exit();
    expect(pasids.ownerOf(pasid)).toBeUndefined();
    expect(pasids.inUse).toBe(0);
    pasids.leave(holder);
    expect(pasids.inUse).toBe(0);
  });

  it("functions lose a PASID before it is free, and what a unit answers keeps it taken", () => {
    const task = newTask();
    const set = pasids.join(task, {});
    const pasid = set.allocate(1, 10);
    let refuses = true;
    const user = {
      unbind: () => {
        expect(pasids.ownerOf(pasid)).toBe(set);
        if (refuses) throw new LinuxError("EIO", "the unit does not answer");
        set.unuse(pasid, user);
      },
    };
    set.use(pasid, user);
    expect(outcome(() => set.free(1, 10))).toBe("EIO");
    expect(pasids.ownerOf(pasid)).toBe(set);
    refuses = false;
    set.free(1, 10);
    expect(pasids.ownerOf(pasid)).toBeUndefined();
    const other = set.allocate(1, 10);
    set.use(other, user);
    refuses = true;
    task.exit();
    expect(pasids.inUse).toBe(1); // nobody else may have what a function still has
  });
});

describe("limits", () => {
  it("the quota is the process's, over all its threads and containers, and may change at any time", () => {
    expect(pasids.quota).toBe(DEFAULT_QUOTA);
    pasids.quota = 2;
    const task = newTask();
    const set = pasids.join(task, {});
    set.allocate(1, 10);
    expect(set.available).toBe(1);
    pasids.join(newTask({ shares: task }), {}).allocate(1, 10);
    expect(set.available).toBe(0);
    expect(outcome(() => set.allocate(1, 10))).toBe("ENOSPC");
    expect(reasonOf(() => set.allocate(1, 10))).toContain("quota is 2");
    pasids.quota = 1;
    expect([set.available, set.size]).toEqual([0, 2]);
    pasids.quota = 3;
    expect(set.allocate(1, 10)).toBe(3);
  });

  it("64 processes of one user starve neither another user nor the host", () => {
    give({ bits: 12, quota: 4095, userLimit: 10_000 });
    const processes = Array.from({ length: 64 }, () => pasids.join(newTask({ uid: 7 }), {}));
    let taken = 0;
    for (const set of processes)
      for (;;) {
        if (outcome(() => set.allocate(1, 4095)) === "ENOSPC") break;
        taken += 1;
      }
    expect(taken).toBe(1792); // half of what is not the host's: (4095 - 511) / 2
    expect(reasonOf(() => processes[0]!.allocate(1, 4095))).toContain("user 7");
    expect(pasids.leftFor(7)).toBe(0);
    const other = pasids.join(newTask({ uid: 8 }), {});
    for (let i = 0; i < 1792; i++) other.allocate(1, 4095);
    const third = pasids.join(newTask({ uid: 9 }), {});
    expect(outcome(() => third.allocate(1, 4095))).toBe("ENOSPC");
    expect(reasonOf(() => third.allocate(1, 4095))).toContain("host");
    const host = Array.from({ length: 511 }, () => pasids.takeForHost());
    expect(new Set(host).size).toBe(511);
    expect(outcome(() => pasids.takeForHost())).toBe("ENOSPC");
    for (const pasid of host) pasids.giveBack(pasid);
    expect(pasids.ofUsers).toBe(3584);
    expect(pasids.inUse).toBe(3584);
  });

  it("what a program chooses is its file's as often as it is attached, counts for its user, and must be nobody's", () => {
    give({ bits: 4 });
    const task = newTask({ uid: 7 });
    const [file, other] = [{}, {}];
    pasids.claim(task, 3, file);
    pasids.claim(task, 3, file);
    expect(outcome(() => pasids.claim(task, 3, other))).toBe("EBUSY");
    const set = pasids.join(task, {});
    expect(set.allocate(3, 5)).toBe(4);
    for (const taken of [4, pasids.takeForHost()])
      expect(outcome(() => pasids.claim(task, taken, file))).toBe("EBUSY");
    pasids.unclaim(3, other);
    pasids.unclaim(4, file);
    pasids.unclaim(3, file);
    expect(pasids.ownerOf(3)).toBeDefined();
    expect(pasids.leftFor(7)).toBe(5); // of seven: half of fifteen less one for the host
    pasids.unclaim(3, file);
    expect(pasids.ownerOf(3)).toBeUndefined();
    for (let pasid = 8; pasid < 14; pasid++) pasids.claim(task, pasid, file);
    expect(outcome(() => pasids.claim(task, 14, file))).toBe("ENOSPC");
  });

  it("the host's are of the middle, so that programs have the lowest and the highest", () => {
    give({ bits: 8 });
    expect([pasids.takeForHost(), pasids.takeForHost(), pasids.takeForHost(4)]).toEqual([127, 126, 7]);
    const set = pasids.join(newTask(), {});
    expect([set.allocate(1, 1), set.allocate(255, 255)]).toEqual([1, 255]);
  });

  it("without PASIDs nobody gets one", () => {
    give({ bits: 0 });
    expect(outcome(() => pasids.join(newTask(), {}).allocate(1, 100))).toBe("ENOSPC");
    expect(outcome(() => pasids.takeForHost())).toBe("ENOSPC");
  });

  it("the host gives back its own only", () => {
    const pasid = pasids.join(newTask(), {}).allocate(1, 10);
    pasids.giveBack(pasid);
    expect(pasids.ownerOf(pasid)).toBeDefined();
    const own = pasids.takeForHost();
    expect(pasids.ownerOf(own)).toBe("host");
    pasids.giveBack(own);
    expect(pasids.ownerOf(own)).toBeUndefined();
  });
});

/** What a program or the host does next. */
type Step =
  | { readonly kind: "allocate" | "free"; readonly who: number; readonly min: number; readonly span: number }
  | { readonly end: "exit" | "leave"; readonly who: number }
  | { readonly host: true };

const who = fc.nat(3);
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({ kind: fc.constant("allocate" as const), who, min: fc.nat(70), span: fc.nat(70) }),
  },
  {
    weight: 3,
    arbitrary: fc.record({ kind: fc.constant("free" as const), who, min: fc.nat(70), span: fc.nat(70) }),
  },
  fc.record({ end: fc.constantFrom("exit" as const, "leave" as const), who }),
  fc.record({ host: fc.constant(true as const) }),
);

it("whatever programs do, numbers are those of literal sets", () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 120 }), (steps) => {
      const BITS = 6;
      const QUOTA = 20;
      const tested = new Pasids({ bits: BITS, quota: QUOTA, hostReserve: 4 });
      const limitOfUser = Math.floor((63 - 4) / 2);
      const tasks = [0, 1, 2, 3].map((n) => newTask({ uid: n % 2 }));
      const holders = tasks.map(() => ({}));
      const model = tasks.map(() => new Set<number>());
      const host = new Set<number>();
      const taken = (pasid: number) => host.has(pasid) || model.some((set) => set.has(pasid));
      const ofUser = (uid: number) => model.reduce((sum, set, n) => sum + (n % 2 === uid ? set.size : 0), 0);
      for (const one of steps) {
        if ("host" in one) {
          const free = Array.from({ length: 63 }, (_, i) => (i < 31 ? 31 - i : 94 - i)).find(
            (pasid) => !taken(pasid),
          );
          expect(outcome(() => tested.takeForHost())).toBe(free ?? "ENOSPC");
          if (free) host.add(free);
          continue;
        }
        const own = model[one.who]!;
        if ("end" in one) {
          if (one.end === "leave") tested.leave(holders[one.who]!);
          else {
            tasks[one.who]!.exit();
            tasks[one.who] = newTask({ uid: one.who % 2 });
          }
          own.clear();
          continue;
        }
        const max = one.min + one.span;
        const set = tested.join(tasks[one.who]!, holders[one.who]!);
        if (one.kind === "free") {
          set.free(one.min, max);
          for (const pasid of [...own]) if (pasid >= one.min && pasid <= max) own.delete(pasid);
          continue;
        }
        let found: number | undefined;
        for (let pasid = Math.max(1, one.min); pasid <= Math.min(63, max) && !found; pasid++)
          if (!taken(pasid)) found = pasid;
        const total = model.reduce((sum, each) => sum + each.size, 0);
        const allowed = own.size < QUOTA && ofUser(one.who % 2) < limitOfUser && total < 63 - 4;
        expect(outcome(() => set.allocate(one.min, max))).toBe(allowed && found ? found : "ENOSPC");
        if (allowed && found) own.add(found);
        expect(set.size).toBe(own.size);
      }
      for (let pasid = 0; pasid < 64; pasid++) {
        const owner = model.findIndex((set) => set.has(pasid));
        const expected = host.has(pasid) ? "host" : owner >= 0 ? tested.of(tasks[owner]!) : undefined;
        expect(tested.ownerOf(pasid)).toBe(expected);
      }
      for (const task of tasks) task.exit();
      expect(tested.ofUsers).toBe(0);
    }),
    { numRuns: 300 },
  );
});
