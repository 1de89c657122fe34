import { describe, expect, it } from "vitest";
import { IommufdObject, ObjectTable, type ObjectType } from "./objects.ts";

class Thing extends IommufdObject {
  readonly type: ObjectType = "ioas";
  destroyed = false;
  readonly #uses: IommufdObject | undefined;
  constructor(uses?: IommufdObject) {
    super();
    this.#uses = uses;
    if (uses) uses.users += 1;
  }
  destroy(): void {
    this.destroyed = true;
    if (this.#uses) this.#uses.users -= 1;
  }
}
class Other extends Thing {
  override readonly type = "access";
}

describe("the objects of a file", () => {
  const live = { objects: 0 };
  const table = new ObjectTable(live);

  it("have the lowest free number, from 1", () => {
    const [one, two, three] = [new Thing(), new Thing(), new Thing()].map((thing) => table.add(thing));
    expect([one!.id, two!.id, three!.id]).toEqual([1, 2, 3]);
    table.destroy(1);
    expect(one!.destroyed).toBe(true);
    expect(table.add(new Thing()).id).toBe(1);
    expect(live.objects).toBe(3);
    table.clear();
    expect([live.objects, table.size]).toEqual([0, 0]);
  });

  it("are found by number and type only: ENOENT", () => {
    const other = table.add(new Other());
    expect(table.get(other.id, Other, "id")).toBe(other);
    expect(() => table.get(7, Thing, "ioas_id")).toThrow("there is no object 7; ioas_id must name one");
    class Third extends IommufdObject {
      readonly type = "fault";
      destroy(): void {}
    }
    expect(() => table.get(other.id, Third, "fault_id")).toThrow("object 1 is access");
    table.clear();
  });

  it("cannot be destroyed while they are used: EBUSY", () => {
    const used = table.add(new Thing());
    const user = table.add(new Thing(used));
    expect(() => table.destroy(used.id)).toThrow("EBUSY");
    table.destroy(user.id);
    table.destroy(used.id);
    expect(live.objects).toBe(0);
  });

  it("leave a tombstone when they are buried: the number stays taken and names nothing", () => {
    const object = table.add(new Thing());
    table.bury(object);
    expect(object.destroyed).toBe(true);
    expect(() => table.destroy(object.id)).toThrow("was destroyed when its device went");
    expect(table.add(new Thing()).id).toBe(2);
    table.forget(1);
    expect(table.add(new Thing()).id).toBe(1);
    table.forget(1);
    expect(table.size).toBe(2);
    table.clear();
  });

  it("cannot be named while they are being made", () => {
    const object = table.add(new Thing());
    object.ready = false;
    expect(table.find(object.id)).toBeUndefined();
    expect(() => table.destroy(object.id)).toThrow("is being made or destroyed");
    object.ready = true;
    expect(table.find(object.id)).toBe(object);
    table.clear();
    expect([live.objects, table.size]).toEqual([0, 0]);
  });

  it("go with the file in an order in which nobody misses what it uses, tombstones included", () => {
    const first = table.add(new Thing());
    const second = table.add(new Thing(first));
    const third = table.add(new Thing(second));
    table.bury(table.add(new Thing()));
    table.clear();
    expect([first, second, third].every((thing) => thing.destroyed)).toBe(true);
    expect(table.size).toBe(0);
  });
});
