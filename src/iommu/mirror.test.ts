import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type MapDomain, MapDriver } from "../../test/support/model-host.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { createMemory } from "../memory/banks.ts";
import { Protection } from "./driver.ts";
import { Mirror } from "./mirror.ts";

const PAGE = 4096;
const VA = 0x5555_0000_0000;

const memory = createMemory({ ramBytes: 8 * 2 ** 20 });
let task: ModelTask;
let domain: MapDomain;
let mirror: Mirror;
beforeEach(() => {
  task = new ModelTask(memory);
  domain = new MapDriver("map0").allocatePaging();
  mirror = new Mirror(domain, task.memory);
});
afterEach(() => {
  mirror.close();
  expect([domain.pages.size, domain.freed, mirror.pages]).toEqual([0, true, 0]);
  task.exit();
  expect(memory.allocated).toBe(0);
});

const byteAt = (va: number): number => {
  const byte = new Uint8Array(1);
  memory.readBytes(domain.physical(va), byte);
  return byte[0]!;
};

describe("a mirror of a process's memory", () => {
  it("shows what is reached for, private memory too, and nothing else", () => {
    task.memory.map(VA, 4 * PAGE, { private: true });
    task.memory.write(BigInt(VA + PAGE), Uint8Array.of(5));
    expect(mirror.reach(VA + PAGE + 10, PAGE, true)).toBe(true);
    expect([...domain.pages.keys()]).toEqual([VA / PAGE + 1, VA / PAGE + 2]);
    expect(byteAt(VA + PAGE)).toBe(5);
  });

  it("gives no more rights than the process has, and tells when they are not enough", () => {
    task.memory.map(VA, 2 * PAGE);
    task.memory.protect(VA, PAGE, false);
    expect(mirror.reach(VA, PAGE, false)).toBe(true);
    expect(domain.pages.get(VA / PAGE)!.protection).toBe(Protection.read);
    expect(mirror.reach(VA, PAGE, true)).toBe(false);
    expect(mirror.reach(VA, 2 * PAGE, false)).toBe(true);
    expect(domain.pages.get(VA / PAGE + 1)!.protection & Protection.write).toBe(Protection.write);
    task.memory.protect(VA, PAGE, true);
    expect(mirror.reach(VA, PAGE, true)).toBe(true);
  });

  it("gives back what was not reached for in a later time, and shows then what is there", () => {
    task.memory.map(VA, 2 * PAGE);
    const first = mirror.turn();
    mirror.reach(VA, 2 * PAGE, true);
    mirror.turn();
    mirror.reach(VA, PAGE, true);
    mirror.forget(first);
    expect(mirror.pages).toBeGreaterThan(0); // both were pinned together
    mirror.forget(mirror.turn());
    expect(mirror.pages).toBe(0);
    task.memory.map(VA, PAGE);
    task.memory.write(BigInt(VA), Uint8Array.of(9));
    mirror.reach(VA, PAGE, true);
    expect(byteAt(VA)).toBe(9);
  });

  it("shows as much of a range as there is, wherever its holes are", () => {
    const pages = 16;
    fc.assert(
      fc.property(
        fc.array(fc.constantFrom("none", "read", "write"), { minLength: pages, maxLength: pages }),
        fc.integer({ min: 0, max: pages - 1 }),
        fc.integer({ min: 1, max: pages }),
        fc.boolean(),
        (kinds, from, count, write) => {
          task.memory.unmap(VA, pages * PAGE);
          for (const [page, kind] of kinds.entries())
            if (kind !== "none") task.memory.map(VA + page * PAGE, PAGE, { writable: kind === "write" });
          const wanted = kinds.slice(from, from + count);
          const whole =
            wanted.length === count &&
            wanted.every((kind) => kind === "write" || (kind === "read" && !write));
          expect(mirror.reach(VA + from * PAGE, count * PAGE, write)).toBe(whole);
          for (const [page, kind] of kinds.entries()) {
            const inside = page >= from && page < from + count;
            expect(domain.pages.has(VA / PAGE + page)).toBe(inside && kind !== "none");
          }
          mirror.forget(mirror.turn());
        },
      ),
      { numRuns: 50 },
    );
  });

  it("looks for the pages of a range with many holes so often and no more, and for a single one always", () => {
    const count = 1024;
    for (let page = 0; page < count; page += 2) task.memory.map(VA + page * PAGE, PAGE);
    mirror.turn();
    expect(mirror.reach(VA, count * PAGE, false)).toBe(false);
    const shown = mirror.pages;
    expect(shown).toBeGreaterThan(0);
    expect(shown).toBeLessThan(count / 2);
    expect(mirror.reach(VA + (count - 2) * PAGE, PAGE, true)).toBe(true);
    expect(mirror.pages).toBe(shown + 1);
    task.memory.unmap(VA, count * PAGE);
  });

  it("shows 64 MiB at most, and nothing once it is closed", () => {
    expect(mirror.reach(VA, 65 * 2 ** 20, false)).toBe(false);
    task.memory.map(VA, PAGE);
    mirror.close();
    expect(mirror.reach(VA, PAGE, false)).toBe(false);
  });
});
