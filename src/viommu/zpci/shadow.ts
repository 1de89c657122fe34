/**
 * The back end that copies a guest's tables into mappings of the host when the guest registers an anchor or refreshes a range
 * (`viommu/shadow`). Functions with the same anchor and addresses share a copy.
 */

import { NO_PASID } from "../../hardware/unit.ts";
import { translatedEnd } from "../../hardware/zpci/parameters.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import type { AssignedDevice } from "../assigned.ts";
import { Copies, type CopiesOptions, type Wanted } from "../shadow/copies.ts";
import { inStage } from "../shadow/stages.ts";
import { type AddressRange, EVERYWHERE } from "../shadow/table.ts";
import type { BackEnd, FunctionState } from "./back-end.ts";

export interface ShadowOptions extends Omit<CopiesOptions, "pasids" | "faults"> {
  readonly devices: readonly AssignedDevice[];
  /** The guest's. */
  readonly memory: HostMemory;
  readonly stateOf: (rid: number) => FunctionState;
}

export class ZpciShadow implements BackEnd {
  readonly #options: ShadowOptions;
  /** Tagged by the keys of their tables. */
  readonly #copies: Copies<string>;

  /** Maps all of the guest's RAM once; functions get what the guest has registered. */
  constructor(options: ShadowOptions) {
    this.#options = options;
    this.#copies = new Copies({ ...options, pasids: false, faults: undefined }, NO_PASID);
    for (const { rid } of options.devices) this.reread(rid);
  }

  /** Mappings. */
  get held(): number {
    return this.#copies.mappings;
  }

  /** A copy that is there already is made what the tables say now. */
  reread(rid: number): void {
    const device = this.#options.devices.find((one) => one.rid === rid);
    if (!device) return;
    const before = this.#copies.tagOf(device, NO_PASID);
    const wanted = this.#wantedOf(rid);
    this.#copies.follow(device, NO_PASID, wanted);
    if (wanted.kind === "table" && wanted.tag === before) this.#synchronize(before, EVERYWHERE);
  }

  refresh(rid: number, start: number, end: number): void {
    const wanted = this.#wantedOf(rid);
    if (wanted.kind === "table") this.#synchronize(wanted.tag, { start, end });
  }

  #synchronize(about: string, range: AddressRange): void {
    this.#copies.synchronize((tag) => (tag === about ? range : undefined));
  }

  #wantedOf(rid: number): Wanted<string> {
    const state = this.#options.stateOf(rid);
    if (state.kind !== "tables") return state;
    const { parameters } = state;
    const { iota, start, end, stage, origin } = parameters;
    const key = `${iota} ${start} ${end}`;
    const ranges = [{ start, end: translatedEnd(parameters) }];
    const find = inStage(this.#options.memory, origin, stage, 0);
    return { kind: "table", table: { key, ranges, find }, tag: key };
  }
}
