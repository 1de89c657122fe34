/**
 * The page request interface of a function (PCI Express base specification, §10.4 and §10.5.2): requests for pages that
 * are not there go to the unit in groups, as many at a time as software allows; the operation that needs them waits until
 * the response to its group has come. A response of failure stops the interface until software enables it again.
 *
 * An operation that is dropped leaves its group: it is answered as any other, and nobody waits for it. After a reset of
 * the function the answers that are still to come find no group (§10.5.2.3, Unexpected Page Request Group Index).
 *
 * Left out: stop markers.
 */
import { type AtsUnit, PageResponse } from "../hardware/ats.ts";

/** Numbers that groups can have. */
const GROUPS = 512;

/** A page, as two words, and what is wanted of it. */
export interface WantedPage {
  readonly lo: number;
  readonly hi: number;
  readonly access: number;
}

export type GroupEnd = "again" | "refused" | "failed";

interface Group {
  readonly pasid: number;
  /** Its requests. */
  readonly count: number;
  /** Undefined: the operation has been dropped. */
  end: ((how: GroupEnd) => void) | undefined;
}

/** What became of everything a function asked for, since power-on. */
export interface PageRequestCounts {
  /** Requests, and the groups they were in. */
  requests: number;
  groups: number;
  /** Groups by response; `ended`: forgotten by a reset, or by a failure of another. */
  success: number;
  invalid: number;
  failure: number;
  ended: number;
  /** Responses to no group. */
  unexpected: number;
}

export class PageRequests {
  /** Page Request Control.Enable. */
  enabled = false;
  /** Requests that may wait for their response: the allocation, as far as there is capacity. */
  allocation = 0;
  /** Page Request Status: Response Failure and Unexpected Page Request Group Index. */
  failed = false;
  unexpected = false;
  /** The status has changed. */
  onStatus: () => void = () => {};
  readonly counts: PageRequestCounts = {
    requests: 0,
    groups: 0,
    success: 0,
    invalid: 0,
    failure: 0,
    ended: 0,
    unexpected: 0,
  };
  readonly #rid: number;
  readonly #unit: AtsUnit;
  readonly #groups = new Map<number, Group>();
  /** Operations for which there was no room. */
  #waiting: ((how: GroupEnd) => void)[] = [];
  #outstanding = 0;
  #next = 0;

  constructor(rid: number, unit: AtsUnit) {
    this.#rid = rid;
    this.#unit = unit;
  }

  /** Page Request Status.Stopped: it asks for nothing, and nothing that it asked for waits. */
  get stopped(): boolean {
    return !this.enabled && this.#groups.size === 0;
  }

  /** Whether it asks for pages at all. */
  get asks(): boolean {
    return this.enabled && !this.failed && this.allocation > 0;
  }

  /** Requests there is room for now. */
  get room(): number {
    const groups = this.#groups.size < GROUPS;
    return groups ? Math.max(0, this.allocation - this.#outstanding) : 0;
  }

  /** Groups without a response. */
  get outstanding(): number {
    return this.#groups.size;
  }

  /**
   * Asks for pages as one group; no more than there is `room` for, and at least one. `end` is told how that ended, perhaps
   * before this returns.
   */
  ask(pasid: number, pages: readonly WantedPage[], end: (how: GroupEnd) => void): void {
    const group = this.#claim();
    this.#groups.set(group, { pasid, count: pages.length, end });
    this.#outstanding += pages.length;
    this.counts.groups += 1;
    this.counts.requests += pages.length;
    const rid = this.#rid;
    pages.forEach(({ lo, hi, access }, index) => {
      this.#unit.requestPage({ rid, pasid, lo, hi, access, group, last: index === pages.length - 1 });
    });
  }

  /** The operation is tried again when there is room. */
  wait(end: (how: GroupEnd) => void): void {
    this.#waiting.push(end);
  }

  /** §10.4.2 The response to a group. A failure is of the whole interface, and needs no PASID. */
  answer(pasid: number, number: number, response: number): void {
    const group = this.#groups.get(number);
    if (!group || (group.pasid !== pasid && response !== PageResponse.failure)) {
      // After a failure, responses are ignored until software enables the interface again.
      if (this.failed) return;
      this.counts.unexpected += 1;
      this.unexpected = true;
      this.onStatus();
      return;
    }
    this.#groups.delete(number);
    this.#outstanding -= group.count;
    if (response === PageResponse.success) this.#end(group, "success", "again");
    else if (response === PageResponse.invalid) this.#end(group, "invalid", "refused");
    else {
      this.failed = true;
      this.#end(group, "failure", "failed");
      this.#endAll();
    }
    this.onStatus();
    if (this.room > 0) for (const end of this.#waiting.splice(0)) end("again");
  }

  /** The operations are dropped; the groups wait for their responses as before. */
  drop(): void {
    for (const group of this.#groups.values()) group.end = undefined;
    this.#waiting = [];
  }

  /** §10.5.2.2 Page Request Control.Reset: what was asked for is forgotten, and operations that need it fail. */
  reset(): void {
    this.#endAll();
    this.onStatus();
  }

  #end(group: Group, counter: "success" | "invalid" | "failure" | "ended", how: GroupEnd): void {
    this.counts[counter] += 1;
    group.end?.(how);
  }

  #endAll(): void {
    const groups = [...this.#groups.values()];
    this.#groups.clear();
    this.#outstanding = 0;
    for (const group of groups) this.#end(group, "ended", "failed");
    for (const end of this.#waiting.splice(0)) end("failed");
  }

  /** A number that no group has, and that the last ones did not have either. */
  #claim(): number {
    while (this.#groups.has(this.#next)) this.#next = (this.#next + 1) % GROUPS;
    const group = this.#next;
    this.#next = (group + 1) % GROUPS;
    return group;
  }
}
