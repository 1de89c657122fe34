/**
 * A cache of what the second stage says of guest addresses, for nested walks: guest page → host page, in one typed array
 * without probing. Addresses of tables and of data have places of their own, so that data does not push out tables.
 *
 * Entries carry the tag of their second stage. Forgetting a second stage gives it a new tag, forgetting all makes every
 * tag too old: both without touching an entry. The walker (`nested.ts`) reads and fills `words` itself.
 */

/** Words of an entry, and where they are. */
export const GuestEntry = {
  /** Guest page: bits 31:12 of the address, and above them bits 43:32; then bits 63:44. */
  KEY: 0,
  KEY_HIGH: 2,
  TAG: 1,
  PA_HI: 3,
  PA_LO: 4,
  /** `Permission` bits that may be used without walking again; and all that were not denied. */
  GRANTED: 5,
  LG2: 6,
  ALLOWED: 7,
  WORDS_LG2: 3,
} as const;

export const TABLE_ENTRIES = 512;
export const PAGE_ENTRIES = 256;
/** Index of the first word of the entries for data. */
export const PAGES_AT = TABLE_ENTRIES << GuestEntry.WORDS_LG2;
/** A range of more pages than this is forgotten with its whole second stage. */
const PAGEWISE_LIMIT = 64;
const PAGE_LG2 = 12;

/** Place of a guest page's entry in `words`; `frame` is bits 31:12 of the address. */
const placesOf = (frame: number, hi: number, tag: number): readonly number[] => {
  const mixed = frame ^ hi ^ tag;
  return [
    (mixed & (TABLE_ENTRIES - 1)) << GuestEntry.WORDS_LG2,
    PAGES_AT + ((mixed & (PAGE_ENTRIES - 1)) << GuestEntry.WORDS_LG2),
  ];
};

/** What the cache says of a guest address. */
export interface GuestTranslation {
  readonly pa: number;
  readonly lg2: number;
  readonly allowed: number;
}

export class GuestCache {
  readonly words = new Int32Array((TABLE_ENTRIES + PAGE_ENTRIES) << GuestEntry.WORDS_LG2);
  readonly #tags: Int32Array;
  readonly #tagLimit: number;
  /** The oldest tag that is still good; the next to give. */
  #floor = 1;
  #next = 1;

  /** For second stages 0 … `stages` − 1. Tags are 1 … tagLimit − 1; when they are used up everything is forgotten. */
  constructor(stages: number, tagLimit = 0x7fff_ffff) {
    this.#tags = new Int32Array(stages);
    this.#tagLimit = tagLimit;
  }

  /** The tag to walk with: of a second stage, until it is forgotten. */
  tag(stage: number): number {
    const tag = this.#tags[stage]!;
    if (tag >= this.#floor) return tag;
    if (this.#next >= this.#tagLimit) this.#clear();
    return (this.#tags[stage] = this.#next++);
  }

  /** What a walker that needs `need` would find of a guest address of a second stage, of a table or (`page`) of data. */
  find(stage: number, guest: bigint, need: number, page: boolean): GuestTranslation | undefined {
    const tag = this.#tags[stage]!;
    if (tag < this.#floor) return undefined;
    const { words } = this;
    const lo = Number(guest & 0xffff_ffffn);
    const hi = Number(guest >> 32n);
    const at = placesOf(lo >>> PAGE_LG2, hi, tag)[page ? 1 : 0]!;
    const key = (lo >>> PAGE_LG2) | (hi << 20);
    const known =
      words[at + GuestEntry.TAG] === tag &&
      words[at + GuestEntry.KEY] === key &&
      words[at + GuestEntry.KEY_HIGH] === hi >>> 12;
    if (!known || (words[at + GuestEntry.GRANTED]! & need) !== need) return undefined;
    const low = (words[at + GuestEntry.PA_LO]! | (lo & 0xfff)) >>> 0;
    return {
      pa: words[at + GuestEntry.PA_HI]! * 0x1_0000_0000 + low,
      lg2: words[at + GuestEntry.LG2]!,
      allowed: words[at + GuestEntry.ALLOWED]!,
    };
  }

  invalidateAll(): void {
    this.#floor = this.#next;
  }

  invalidateStage(stage: number): void {
    this.#tags[stage] = 0;
  }

  /** Forgets the 2^lg2 bytes of guest addresses around one; may forget more. */
  invalidateRange(stage: number, lo: number, hi: number, lg2: number): void {
    const tag = this.#tags[stage]!;
    if (tag < this.#floor) return;
    const pages = 2 ** (lg2 - PAGE_LG2);
    if (pages > PAGEWISE_LIMIT) {
      this.invalidateStage(stage);
      return;
    }
    const first = ((lo >>> 0) & (-1 << lg2)) >>> PAGE_LG2;
    for (let frame = first; frame < first + pages; frame++)
      for (const at of placesOf(frame, hi, tag))
        if (this.words[at + GuestEntry.TAG] === tag) this.words[at + GuestEntry.TAG] = 0;
  }

  #clear(): void {
    this.words.fill(0);
    this.#tags.fill(0);
    this.#floor = 1;
    this.#next = 1;
  }
}
