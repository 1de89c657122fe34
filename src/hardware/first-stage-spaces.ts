/**
 * The numbers by which an IOTLB knows address spaces that have a first stage: one for each domain id and PASID in use,
 * given here. Spaces without a first stage have their domain id for a number.
 */

const PASIDS = 2 ** 20;

/** An address space with a first stage. */
export interface FirstStageSpace {
  readonly index: number;
  readonly domain: number;
  readonly pasid: number;
  /** It holds pages of the first stage in parts, as the second stage has smaller ones. */
  parted: boolean;
}

/** Address spaces with a first stage that the IOTLB can hold at a time. */
export const FIRST_STAGE_SPACES = 4096;

export class FirstStageSpaces {
  readonly #from: number;
  readonly #spaces = new Map<number, FirstStageSpace>();

  /** Their numbers are from here on. */
  constructor(from: number) {
    this.#from = from;
  }

  /** The space of a domain and PASID; undefined: there is no number left. `variant` keeps what differs by privilege apart. */
  open(domain: number, pasid: number, variant: number): FirstStageSpace | undefined {
    const key = (domain * PASIDS + pasid) * 2 + variant;
    let space = this.#spaces.get(key);
    if (space) return space;
    if (this.#spaces.size >= FIRST_STAGE_SPACES) return undefined;
    space = { index: this.#from + this.#spaces.size, domain, pasid, parted: false };
    this.#spaces.set(key, space);
    return space;
  }

  find(domain: number, pasid: number, variant: number): FirstStageSpace | undefined {
    return this.#spaces.get((domain * PASIDS + pasid) * 2 + variant);
  }

  *ofDomain(domain: number): Generator<FirstStageSpace> {
    for (const space of this.#spaces.values()) if (space.domain === domain) yield space;
  }

  *ofPasid(domain: number, pasid: number): Generator<FirstStageSpace> {
    for (const variant of [0, 1]) {
      const space = this.find(domain, pasid, variant);
      if (space) yield space;
    }
  }

  clear(): void {
    this.#spaces.clear();
  }
}
