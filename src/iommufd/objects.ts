/**
 * The objects of one iommufd file: numbers, types, life cycles (linux/iommufd.h, "struct iommu_destroy"). An object
 * has users: other objects that need it, and parts of the kernel that hold it. While it has one it cannot be
 * destroyed; calls under way on it are waited for. Left out: what each type is; a type is only a name here.
 */
import { Ids } from "../base/ids.ts";
import { LinuxError } from "../uapi/errno.ts";

export type ObjectType =
  | "ioas"
  | "hwpt-paging"
  | "hwpt-nested"
  | "device"
  | "access"
  | "fault"
  | "viommu"
  | "vdevice"
  | "veventq"
  | "hw-queue"
  | "selftest";

export abstract class IommufdObject {
  abstract readonly type: ObjectType;
  /** Its number; 0 until it is in a table. */
  id = 0;
  /** False while it is being made or destroyed: its number is taken, and nobody finds it. */
  ready = true;
  /** Who needs it: objects, and holders in the kernel. */
  users = 0;
  /** Calls under way on it that wait for something. */
  #calls = 0;
  readonly #whenIdle: (() => void)[] = [];

  /** "ioas 3" */
  get name(): string {
    return `${this.type} ${this.id}`;
  }
  /** A call on it begins to wait. */
  enter(): void {
    this.#calls += 1;
  }
  /** A call on it waits no longer. */
  leave(): void {
    this.#calls -= 1;
    if (this.#calls > 0) return;
    for (const work of this.#whenIdle.splice(0)) work();
  }
  get busy(): boolean {
    return this.#calls > 0;
  }
  /** Does it when no call is under way: at once, if none is. */
  whenIdle(work: () => void): void {
    if (this.busy) this.#whenIdle.push(work);
    else work();
  }
  /** It has left the table and nobody uses it: gives back what it has. Never throws. */
  abstract destroy(): void;
}

/** Stays behind where an object went whose number must not be given out again: no type matches it. */
const TOMBSTONE = Symbol("tombstone");

type ObjectClass<T extends IommufdObject> = abstract new (...args: never[]) => T;

export class ObjectTable {
  readonly #ids = new Ids(1);
  readonly #objects = new Map<number, IommufdObject | typeof TOMBSTONE>();
  readonly #live: { objects: number };

  /** `live.objects` follows what exists. */
  constructor(live: { objects: number }) {
    this.#live = live;
  }

  /** Objects that exist. Tombstones count: their numbers are taken. */
  get size(): number {
    return this.#objects.size;
  }

  /** Gives the object the lowest free number. Throws ENOMEM when all are taken. */
  add<T extends IommufdObject>(object: T): T {
    const id = this.#ids.take();
    if (id < 0) throw new LinuxError("ENOMEM", "all object numbers are in use");
    object.id = id;
    this.#objects.set(id, object);
    this.#live.objects += 1;
    return object;
  }

  /** The object of this number and class. Throws ENOENT: no such number, or another type. */
  get<T extends IommufdObject>(id: number, type: ObjectClass<T>, what: string): T {
    const object = this.#objects.get(id);
    if (object instanceof type && object.ready) return object;
    throw new LinuxError("ENOENT", this.#missing(id, what));
  }

  /** Any object, or undefined. */
  find(id: number): IommufdObject | undefined {
    const object = this.#objects.get(id);
    return object instanceof IommufdObject && object.ready ? object : undefined;
  }

  /**
   * What DESTROY does: nobody finds it from now on, and it goes when the calls on it have ended (`whenIdle`). Throws
   * ENOENT; EBUSY while somebody uses it.
   */
  destroy(id: number): IommufdObject {
    const object = this.find(id);
    if (!object) throw new LinuxError("ENOENT", this.#missing(id, "object"));
    if (object.users > 0)
      throw new LinuxError(
        "EBUSY",
        `${object.name} is in use by ${object.users} others; they must be destroyed or detached first`,
        object.name,
      );
    object.ready = false;
    object.whenIdle(() => this.remove(object));
    return object;
  }

  /** Takes an object out that nobody uses, and destroys it. */
  remove(object: IommufdObject): void {
    this.#objects.delete(object.id);
    this.#ids.give(object.id);
    this.#live.objects -= 1;
    object.destroy();
  }

  /** Destroys an object whose number stays taken: DESTROY of it is ENOENT until `forget`. */
  bury(object: IommufdObject): void {
    this.#objects.set(object.id, TOMBSTONE);
    this.#live.objects -= 1;
    object.destroy();
  }

  /** Gives a buried object's number back. */
  forget(id: number): void {
    if (this.#objects.get(id) !== TOMBSTONE) return;
    this.#objects.delete(id);
    this.#ids.give(id);
  }

  /** The file is gone: everything goes, users before what they use. */
  clear(): void {
    for (let progress = true; progress; ) {
      progress = false;
      for (const object of [...this.#objects.values()].reverse())
        if (
          object instanceof IommufdObject &&
          object.users === 0 &&
          this.#objects.get(object.id) === object
        ) {
          this.remove(object);
          progress = true;
        }
    }
    for (const [id, object] of [...this.#objects]) if (object === TOMBSTONE) this.forget(id);
  }

  *[Symbol.iterator](): Iterator<IommufdObject> {
    for (const object of this.#objects.values()) if (object instanceof IommufdObject) yield object;
  }

  #missing(id: number, what: string): string {
    const object = this.#objects.get(id);
    if (object === undefined) return `there is no object ${id}; ${what} must name one that exists`;
    if (object === TOMBSTONE) return `object ${id} was destroyed when its device went`;
    if (!object.ready) return `object ${id} is being made or destroyed`;
    return `object ${id} is ${object.type}, and ${what} must be of another type`;
  }
}
