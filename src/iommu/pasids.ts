/**
 * The machine's one allocator of PASIDs, for whoever needs numbers that mean one address space to every function: guests'
 * tables of the 2020 interface, mediated devices, and the host itself. Programs have a set for each address space (mm): threads and all
 * containers of a process share it, a forked child and what is executed next have none of it. Three limits keep numbers for
 * others: so many for a process (`quota`), for a user, and some that only the host can have.
 *
 * PASIDs that a program chooses for a device itself, as iommufd lets it, are claimed here where the device shares its table
 * with devices of others. Left out: those of whole functions. They lie in the function's own table, whose group has one
 * owner, so that they cannot meet anybody else's.
 */
import type { Task, UserMemory } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";

/** Stands for requests without a PASID in the tables of units, so nobody is given it. */
const FIRST = 1;
const WORD_BITS = 32;
const FULL = 0xffff_ffff;

/** PASIDs a process may have unless the machine says otherwise, as in the proposal. */
export const DEFAULT_QUOTA = 1000;

export interface PasidLimits {
  /** Bits of the machine's PASIDs: those that every unit takes. 0: there are none. */
  readonly bits: number;
  /** PASIDs a process may have. */
  readonly quota?: number;
  /** PASIDs that the processes of a user may have together; never more than half of what users can have. */
  readonly userLimit?: number;
  /** PASIDs that only the host can have; never more than an eighth of all. */
  readonly hostReserve?: number;
}

const DEFAULT_USER_LIMIT = 65536;
const DEFAULT_HOST_RESERVE = 1024;

/** Who has given a PASID to functions: when it is freed, they lose it first. */
export interface PasidUser {
  /** Takes it from every function. Throws what the units answer; the PASID then stays taken. */
  unbind(): void;
}

/** A PASID that a program chose: whoever holds it may attach it to several devices. */
interface Claim {
  readonly uid: number;
  readonly holder: object;
  count: number;
}

/** Who has a PASID: an address space, whoever chose it, or the host. */
export type PasidOwner = PasidSet | Claim | "host";

interface Entry {
  readonly owner: PasidOwner;
  readonly users: Set<PasidUser>;
}

export class Pasids {
  readonly bits: number;
  /** PASIDs a process may have; counts from the next allocation on. */
  quota: number;
  readonly #userLimit: number;
  readonly #mostOfUsers: number;
  /** Bit n of word n / 32: taken. */
  readonly #taken: Uint32Array;
  readonly #entries = new Map<number, Entry>();
  /** By the identity of the address space. */
  readonly #sets = new Map<number, PasidSet>();
  /** PASIDs by user, and of all users. */
  readonly #byUser = new Map<number, number>();
  #ofUsers = 0;

  constructor({ bits, quota, userLimit, hostReserve }: PasidLimits) {
    const count = bits === 0 ? 0 : 2 ** bits - FIRST;
    this.bits = bits;
    this.quota = quota ?? DEFAULT_QUOTA;
    this.#mostOfUsers = count - Math.min(hostReserve ?? DEFAULT_HOST_RESERVE, Math.floor(count / 8));
    this.#userLimit = Math.min(userLimit ?? DEFAULT_USER_LIMIT, Math.floor(this.#mostOfUsers / 2));
    this.#taken = new Uint32Array(Math.ceil(2 ** bits / WORD_BITS));
  }

  /** PASIDs that are taken, by whomever. */
  get inUse(): number {
    return this.#entries.size;
  }

  /** Those of programs. */
  get ofUsers(): number {
    return this.#ofUsers;
  }

  /** The set of the caller's address space, for as long as `holder` or another has not left it. */
  join(task: Task, holder: object): PasidSet {
    const { memory } = task;
    let set = this.#sets.get(memory.id);
    if (!set) {
      const made = new PasidSet(this, memory, task.uid, () => this.#sets.delete(memory.id));
      set = made;
      this.#sets.set(memory.id, made);
    }
    set.holders.add(holder);
    return set;
  }

  /** The set of the caller's address space, if it has one. */
  of({ memory }: Task): PasidSet | undefined {
    return this.#sets.get(memory.id);
  }

  /** The holder is no more: sets that nobody else holds go, with all their PASIDs. */
  leave(holder: object): void {
    for (const set of [...this.#sets.values()]) if (set.holders.delete(holder)) set.settle();
  }

  /** Who has it; undefined: nobody. */
  ownerOf(pasid: number): PasidOwner | undefined {
    return this.#entries.get(pasid)?.owner;
  }

  /** Whether the caller may use what the owner has: the owner's set when it is of the caller's address space. */
  grant(task: Task, owner: PasidOwner): PasidSet | undefined {
    return owner instanceof PasidSet && owner.isOf(task) ? owner : undefined;
  }

  /**
   * A PASID for the host's own use of at most `bits` bits, which no limit of users reaches. It is taken from the middle:
   * programs ask for the lowest and for the highest. Throws ENOSPC.
   */
  takeForHost(bits = this.bits): number {
    const end = 2 ** Math.min(bits, this.bits);
    const below = this.#highest(FIRST, end / 2);
    const pasid = below < 0 ? this.#highest(Math.max(FIRST, end / 2), end) : below;
    if (pasid < FIRST) throw new LinuxError("ENOSPC", `all PASIDs of ${this.bits} bits are taken`);
    this.#take(pasid, "host");
    return pasid;
  }

  /** The host gives one back; no function has it any more. */
  giveBack(pasid: number): void {
    if (this.#entries.get(pasid)?.owner === "host") this.#give(pasid);
  }

  /**
   * The holder has this PASID, until `unclaim` for each time. Throws EBUSY when it is somebody else's, ENOSPC beyond the
   * limits of users.
   */
  claim({ uid }: Task, pasid: number, holder: object): void {
    const owner = this.ownerOf(pasid);
    if (isClaim(owner) && owner.holder === holder) {
      owner.count += 1;
      return;
    }
    if (owner)
      throw new LinuxError("EBUSY", `PASID ${pasid} is somebody else's, and the device shares its table`);
    this.#requireRoom(uid);
    this.#take(pasid, { uid, holder, count: 1 });
  }

  /** One of the holder's devices has it no more. */
  unclaim(pasid: number, holder: object): void {
    const owner = this.ownerOf(pasid);
    if (!isClaim(owner) || owner.holder !== holder) return;
    owner.count -= 1;
    if (owner.count === 0) this.#give(pasid);
  }

  /** PASIDs that the user may still have, as far as the user's and everybody's limits go. */
  leftFor(uid: number): number {
    const ofUser = this.#userLimit - (this.#byUser.get(uid) ?? 0);
    return Math.max(0, Math.min(ofUser, this.#mostOfUsers - this.#ofUsers));
  }

  /** Used by sets: the lowest free one in [min, max]. Throws ENOSPC. */
  take(set: PasidSet, min: number, max: number): number {
    this.#requireRoom(set.uid);
    const pasid = this.#find(Math.max(min, FIRST), Math.min(max, 2 ** this.bits - 1));
    if (pasid < 0)
      throw new LinuxError(
        "ENOSPC",
        min >= 2 ** this.bits
          ? `PASIDs from ${min} on: the machine's have ${this.bits} bits`
          : `no PASID in [${min}, ${max}] is free${this.#holderOf(min, max)}; the machine's are ${FIRST} to ${2 ** this.bits - 1}`,
        set.name,
      );
    this.#take(pasid, set);
    return pasid;
  }

  /** Who has the one PASID that was asked for, as the end of a clause. */
  #holderOf(min: number, max: number): string {
    const owner = min === max ? this.ownerOf(min) : undefined;
    if (!owner) return "";
    if (isClaim(owner)) return " (a device has it through iommufd)";
    return ` (${owner === "host" ? "the host" : owner.name} has it)`;
  }

  /** Used by sets: takes it from every function, then makes it free. Throws what the units answer. */
  free(pasid: number): void {
    const entry = this.#entries.get(pasid)!;
    for (const user of [...entry.users]) user.unbind();
    this.#give(pasid);
  }

  /** Who has given it to functions; it is somebody's. */
  usersOf(pasid: number): Set<PasidUser> {
    return this.#entries.get(pasid)!.users;
  }

  #requireRoom(uid: number): void {
    if (this.leftFor(uid) > 0) return;
    throw new LinuxError(
      "ENOSPC",
      this.#ofUsers >= this.#mostOfUsers
        ? `users have all ${this.#mostOfUsers} PASIDs that are not kept for the host`
        : `the processes of user ${uid} have all ${this.#userLimit} PASIDs that one user may have`,
    );
  }

  #take(pasid: number, owner: PasidOwner): void {
    this.#taken[pasid >>> 5]! |= 1 << (pasid & 31);
    this.#entries.set(pasid, { owner, users: new Set() });
    if (owner !== "host") this.#charge(owner.uid, 1);
  }

  #give(pasid: number): void {
    const { owner } = this.#entries.get(pasid)!;
    this.#taken[pasid >>> 5]! &= ~(1 << (pasid & 31));
    this.#entries.delete(pasid);
    if (owner !== "host") this.#charge(owner.uid, -1);
  }

  #charge(uid: number, count: number): void {
    const now = (this.#byUser.get(uid) ?? 0) + count;
    if (now === 0) this.#byUser.delete(uid);
    else this.#byUser.set(uid, now);
    this.#ofUsers += count;
  }

  /** The highest free number in [first, end), or -1. */
  #highest(first: number, end: number): number {
    let at = end - 1;
    while (at >= first && this.#entries.has(at)) at -= 1;
    return at < first ? -1 : at;
  }

  /** The lowest free number in [first, last], or -1. */
  #find(first: number, last: number): number {
    for (let at = first; at <= last; ) {
      const word = this.#taken[at >>> 5]!;
      if (word === FULL) {
        at = (at | (WORD_BITS - 1)) + 1;
        continue;
      }
      if ((word & (1 << (at & 31))) === 0) return at;
      at += 1;
    }
    return -1;
  }
}

const isClaim = (owner: PasidOwner | undefined): owner is Claim =>
  owner !== undefined && owner !== "host" && !(owner instanceof PasidSet);

/** The PASIDs of an address space. */
export class PasidSet {
  readonly name: string;
  readonly uid: number;
  /** What keeps it: the containers it was used with. */
  readonly holders = new Set<object>();
  readonly #pasids: Pasids;
  readonly #memory: UserMemory;
  readonly #own = new Set<number>();
  readonly #gone: () => void;
  readonly #end = (): void => this.#dispose();

  constructor(pasids: Pasids, memory: UserMemory, uid: number, gone: () => void) {
    this.#pasids = pasids;
    this.#memory = memory;
    this.uid = uid;
    this.#gone = gone;
    this.name = `PASIDs of address space ${memory.id}`;
    memory.atEnd?.add(this.#end);
  }

  get size(): number {
    return this.#own.size;
  }
  /** PASIDs it may still allocate. */
  get available(): number {
    return Math.max(0, Math.min(this.#pasids.quota - this.#own.size, this.#pasids.leftFor(this.uid)));
  }
  /** The task is of its address space. */
  isOf({ memory }: Task): boolean {
    return memory.id === this.#memory.id;
  }
  has(pasid: number): boolean {
    return this.#own.has(pasid);
  }

  /** The lowest free PASID of [min, max], both included. Throws ENOSPC. */
  allocate(min: number, max: number): number {
    if (this.#own.size >= this.#pasids.quota)
      throw new LinuxError(
        "ENOSPC",
        `the process has ${this.#own.size} PASIDs, its quota is ${this.#pasids.quota}`,
        this.name,
      );
    const pasid = this.#pasids.take(this, min, max);
    this.#own.add(pasid);
    return pasid;
  }

  /**
   * Frees those of [min, max] that it has, in time proportional to them or to the range. Functions lose them first; throws
   * what that throws, and those after it are still there.
   */
  free(min: number, max: number): void {
    if (max - min < this.#own.size) {
      for (let pasid = min; pasid <= max; pasid += 1) if (this.#own.has(pasid)) this.#free(pasid);
    } else for (const pasid of [...this.#own]) if (pasid >= min && pasid <= max) this.#free(pasid);
  }

  /** From now on the user is unbound before the PASID, which it has, is freed. */
  use(pasid: number, user: PasidUser): void {
    this.#pasids.usersOf(pasid).add(user);
  }

  unuse(pasid: number, user: PasidUser): void {
    if (this.#own.has(pasid)) this.#pasids.usersOf(pasid).delete(user);
  }

  /** Goes when nobody holds it. */
  settle(): void {
    if (this.holders.size === 0) this.#dispose();
  }

  #free(pasid: number): void {
    this.#pasids.free(pasid);
    this.#own.delete(pasid);
  }

  /** What cannot be taken from a function stays taken for ever: nobody else may get it. */
  #dispose(): void {
    this.#memory.atEnd?.delete(this.#end);
    this.holders.clear();
    this.#gone();
    for (const pasid of [...this.#own])
      try {
        this.#free(pasid);
      } catch (error) {
        if (!(error instanceof LinuxError)) throw error;
      }
  }
}
