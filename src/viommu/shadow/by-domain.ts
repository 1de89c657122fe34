/**
 * The back end that copies tables of a guest that names domains and PASIDs (VT-d, AMD-Vi) into mappings of the host when
 * the guest invalidates: second stages, first stages, and first stages above second ones. A PASID of the guest becomes a
 * PASID of the device with an address space of its own.
 */
import { NO_PASID } from "../../hardware/unit.ts";
import type { AssignedDevice } from "../assigned.ts";
import {
  affected,
  type BackEnd,
  type Forget,
  type GuestSide,
  type Reread,
  type Translation,
} from "../by-domain.ts";
import { forEvery } from "../every.ts";
import type { Told } from "../following.ts";
import { Copies, type CopiesOptions, type Wanted } from "./copies.ts";
import { type AddressRange, EVERYWHERE } from "./table.ts";

export interface ShadowOptions extends CopiesOptions {
  readonly devices: readonly AssignedDevice[];
  readonly guest: GuestSide;
}

/** The guest's ids for a table. */
interface Tag {
  readonly domain: number;
  readonly pasid: number;
  /** It is a second stage, which requests without a PASID name addresses of. */
  readonly plain: boolean;
}

export class ShadowBackEnd implements BackEnd {
  readonly #options: ShadowOptions;
  readonly #copies: Copies<Tag>;

  /** Maps all of the guest's RAM once; devices get what the guest's tables say. */
  constructor(options: ShadowOptions) {
    this.#options = options;
    this.#copies = new Copies(options, NO_PASID);
    this.reread({});
  }

  /** Mappings. */
  get held(): number {
    return this.#copies.mappings;
  }

  reread({ rid, pasid }: Reread): void {
    const { devices, guest } = this.#options;
    const concerned = devices.filter((device) => rid === undefined || rid === device.rid);
    forEvery(concerned, (device) => {
      const stands = this.#copies.tagOf(device, NO_PASID)?.pasid;
      const known = { pasids: this.#copies.pasidsOf(device), stands };
      forEvery(affected(guest, device.rid, known, pasid), (one) =>
        this.#copies.follow(device, one, wantedOf(guest.translationOf(device.rid, one))),
      );
    });
  }

  forget(list: readonly Forget[]): Told {
    for (const [done, request] of list.entries())
      try {
        this.#copies.synchronize((tag) => rangeOf(request, tag));
      } catch (error) {
        return { done, error };
      }
    return { done: list.length };
  }
}

const wantedOf = (translation: Translation): Wanted<Tag> => {
  if (translation.kind === "blocked") return { kind: "blocked" };
  if (translation.kind === "passThrough") return { kind: "identity" };
  const { domain, pasid, stage } = translation;
  const table = { ...stage, key: `${domain} ${pasid} ${stage.key}` };
  return { kind: "table", table, tag: { domain, pasid, plain: stage.plain } };
};

/** Which of a table's addresses a request is about; undefined: none. */
const rangeOf = ({ domain, pasid, range }: Forget, tag: Tag): AddressRange | undefined => {
  if (domain !== undefined && domain !== tag.domain) return undefined;
  if (pasid !== undefined && pasid !== tag.pasid) return undefined;
  // Which addresses of a first stage come of one of a second stage nobody knows.
  if (!range || (pasid === undefined && !tag.plain)) return EVERYWHERE;
  return { start: range.start, end: range.start + range.length };
};
