/**
 * The mechanism of shadowing, for every front end: a guest's tables are copied into address spaces of the host, which
 * devices and their PASIDs are attached to. A front end says what each of them is to have, and which of the tables an
 * invalidation is about (its `Tag`: the ids by which the guest calls them); it walks the guest's tables itself.
 *
 * For hosts without nesting, and for guests with another IOMMU than their host: nothing here knows the model of either.
 */
import type { AssignedDevice, GuestRam } from "../assigned.ts";
import { forEvery } from "../every.ts";
import { Budget, Copy, type ShadowCalls } from "./copy.ts";
import { allocateSpace, attachSpace, type Space } from "./space.ts";
import type { AddressRange, GuestTable } from "./table.ts";

/** What a device, or a PASID of it, is to have. */
export type Wanted<Tag> =
  | { readonly kind: "blocked" }
  /** Guest physical addresses. */
  | { readonly kind: "identity" }
  | { readonly kind: "table"; readonly table: GuestTable; readonly tag: Tag };

export interface CopiesOptions {
  readonly calls: ShadowCalls;
  readonly ram: GuestRam;
  /** Devices have PASIDs: page tables are made so that any of them can have any. */
  readonly pasids: boolean;
  /** Fault queue for accesses that wait where a copy has nothing; undefined: they are refused. */
  readonly faults: number | undefined;
  /** Mappings of all copies together, and pages and holes looked at for one request. */
  readonly mostMappings?: number;
  readonly mostSteps?: number;
}

interface Shadow<Tag> extends Space {
  readonly copy: Copy;
  readonly tag: Tag;
  /** Devices, and PASIDs of them, that have it. */
  users: number;
}

const MOST_MAPPINGS = 2 ** 16;
const MOST_STEPS = 2 ** 20;
const IDENTITY = "identity";

export class Copies<Tag> {
  readonly #options: CopiesOptions;
  readonly #budget: Budget;
  readonly #identity: Space;
  readonly #shadows = new Map<string, Shadow<Tag>>();
  /** What each device has, by PASID: the key of a shadow, or `IDENTITY`. */
  readonly #attached = new Map<AssignedDevice, Map<number, string>>();
  readonly #untagged: number;

  /** Maps all of the guest's RAM once, for what passes untranslated. `untagged` stands for requests without a PASID. */
  constructor(options: CopiesOptions, untagged: number) {
    const { calls, ram, mostMappings = MOST_MAPPINGS, mostSteps = MOST_STEPS } = options;
    this.#options = options;
    this.#untagged = untagged;
    this.#budget = new Budget(mostMappings, mostSteps);
    this.#identity = allocateSpace(calls);
    calls.map(this.#identity.ioas, { iova: 0, va: ram.va, length: ram.bytes });
  }

  /** Mappings. */
  get mappings(): number {
    return this.#budget.mapped;
  }

  /** PASIDs of the device that have something. */
  pasidsOf(device: AssignedDevice): number[] {
    return [...(this.#attached.get(device)?.keys() ?? [])].filter((pasid) => pasid !== this.#untagged);
  }

  /** The table's tag that requests of the device have; undefined: they have none. */
  tagOf(device: AssignedDevice, pasid: number): Tag | undefined {
    const key = this.#attached.get(device)?.get(pasid);
    return key === undefined ? undefined : this.#shadows.get(key)?.tag;
  }

  /** Gives the device, or its PASID, what it is to have. Throws what the host refused; then it has what it had. */
  follow(device: AssignedDevice, pasid: number, wanted: Wanted<Tag>): void {
    let had = this.#attached.get(device);
    if (!had) this.#attached.set(device, (had = new Map()));
    const key = keyOf(wanted);
    const before = had.get(pasid);
    if (before === key) return;
    const tag = pasid === this.#untagged ? undefined : pasid;
    if (key === undefined) {
      this.#options.calls.detach(device.fd, tag);
      had.delete(pasid);
    } else {
      const shadow = wanted.kind === "table" ? this.#shadowOf(key, wanted) : undefined;
      if (shadow) shadow.users += 1;
      try {
        const { calls, pasids, faults } = this.#options;
        const use = { pasids, faults: shadow ? faults : undefined };
        attachSpace(calls, shadow ?? this.#identity, device, use, tag);
      } catch (error) {
        this.#leave(key);
        throw error;
      }
      had.set(pasid, key);
    }
    if (before !== undefined) this.#leave(before);
  }

  /**
   * Makes every copy that the request is about what the guest's table is there; `about` says where, if anywhere. What has
   * gone goes from all of them first. Throws the first thing that the host refused, ENOSPC beyond the bounds.
   */
  synchronize(about: (tag: Tag) => AddressRange | undefined): void {
    this.#budget.begin();
    const changed: [Copy, AddressRange][] = [];
    forEvery(this.#shadows.values(), ({ copy, tag }) => {
      const range = about(tag);
      if (range) changed.push([copy, copy.revoke(range)]);
    });
    forEvery(changed, ([copy, range]) => copy.add(range));
  }

  #shadowOf(key: string, { table, tag }: Extract<Wanted<Tag>, { kind: "table" }>): Shadow<Tag> {
    const known = this.#shadows.get(key);
    if (known) return known;
    const { calls, ram } = this.#options;
    const copy = new Copy(table, calls, ram, this.#budget);
    this.#budget.begin();
    try {
      for (const range of table.ranges) copy.add(range);
    } catch (error) {
      copy.free();
      throw error;
    }
    const shadow = { copy, tag, ioas: copy.ioas, hwpts: [], users: 0 };
    this.#shadows.set(key, shadow);
    return shadow;
  }

  #leave(key: string): void {
    const shadow = this.#shadows.get(key);
    if (!shadow) return;
    shadow.users -= 1;
    if (shadow.users > 0) return;
    this.#shadows.delete(key);
    for (const hwpt of shadow.hwpts) this.#options.calls.destroy(hwpt);
    shadow.copy.free();
  }
}

/** Undefined: it has nothing. */
const keyOf = <Tag>(wanted: Wanted<Tag>): string | undefined => {
  if (wanted.kind === "blocked") return undefined;
  return wanted.kind === "identity" ? IDENTITY : wanted.table.key;
};
