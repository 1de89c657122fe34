/**
 * What the tables of a guest with an SMMUv3 say of its devices: context descriptors by SubstreamID (IHI 0070, §5.4), read
 * with the code of the unit itself, and its stage 1, both ranges of it. Everything read here is the guest's: it may be
 * malformed, cyclic or change meanwhile. Left out: addresses whose top byte is ignored are known without it only.
 */
import type { Capabilities } from "../../hardware/smmuv3/capabilities.ts";
import { type Context, decodeCd, decodeSte, type Range, type Stream } from "../../hardware/smmuv3/config.ts";
import { Fault } from "../../hardware/smmuv3/faults.ts";
import { walkerOf } from "../../hardware/smmuv3/formats.ts";
import { Cd, Config, S1Dss, Ste } from "../../hardware/smmuv3/spec.ts";
import { contextSplit, fetchCd } from "../../hardware/smmuv3/tables.ts";
import { indexedHigh, indexedLow } from "../../hardware/smmuv3/translate.ts";
import { NO_PASID } from "../../hardware/unit.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { Permission } from "../../pagetable/format.ts";
import { WalkResult } from "../../pagetable/walker.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { type AddressRange, type Found, findPage, type GuestTable, type Walk } from "../shadow/table.ts";

/** What the requests of a device, or of one of its SubstreamIDs, go through. */
export type Translation =
  | { readonly kind: "blocked" }
  | { readonly kind: "identity" }
  | { readonly kind: "table"; readonly asid: number; readonly table: GuestTable };

const WORD = 2 ** 32;
const UPPER_END = 2 ** 64;
const CD_WORDS = Cd.words;
const BLOCKED: Translation = { kind: "blocked" };
/** SubstreamIDs of one device that a guest may have at once. */
const MOST_SUBSTREAMS = 4096;

export class GuestContexts {
  readonly #memory: HostMemory;
  readonly #unit: Capabilities;
  readonly #words = new Uint32Array(CD_WORDS);
  readonly #ste = new Uint32Array(Ste.words);
  readonly #fault = new Fault();

  constructor(memory: HostMemory, unit: Capabilities) {
    this.#memory = memory;
    this.#unit = unit;
  }

  /** `entry`: the first two words of the stream's entry. */
  translationOf(entry: bigint, ssid: number): Translation {
    const stream = this.#streamOf(entry);
    if (!stream) return BLOCKED;
    const { config, contextLg2, withoutSubstream } = stream;
    if (config === Config.bypass) return ssid === NO_PASID ? { kind: "identity" } : BLOCKED;
    if (!stream.stage1) return BLOCKED;
    const shared = contextLg2 > 0 && withoutSubstream === S1Dss.substream0;
    if (ssid !== NO_PASID)
      return ssid >= 2 ** contextLg2 || contextLg2 === 0 || (shared && ssid === 0)
        ? BLOCKED
        : this.#context(stream, ssid);
    if (contextLg2 === 0 || shared) return this.#context(stream, 0);
    return withoutSubstream === S1Dss.bypass ? { kind: "identity" } : BLOCKED;
  }

  /** SubstreamIDs that have a valid descriptor. Throws ENOSPC when there are more than a guest may have. */
  substreamsOf(entry: bigint): number[] {
    const stream = this.#streamOf(entry);
    if (!stream?.stage1 || stream.contextLg2 === 0) return [];
    const found: number[] = [];
    const part = 2 ** contextSplit(stream);
    for (let ssid = 0; ssid < 2 ** stream.contextLg2; ) {
      const there = fetchCd(this.#memory, this.#unit, stream, ssid, this.#words, this.#fault);
      if (there && Cd.fields.V.get(this.#words)) found.push(ssid);
      if (found.length > MOST_SUBSTREAMS)
        throw new LinuxError(
          "ENOSPC",
          `a device of a guest may have at most ${MOST_SUBSTREAMS} SubstreamIDs`,
        );
      // A part that is not there has none.
      ssid += there ? 1 : part - (ssid % part);
    }
    return found;
  }

  #streamOf(entry: bigint): Stream | undefined {
    Ste.toWords(entry, this.#ste);
    const stream = decodeSte(this.#ste, this.#unit);
    return typeof stream === "string" ? undefined : stream;
  }

  #context(stream: Stream, ssid: number): Translation {
    if (!fetchCd(this.#memory, this.#unit, stream, ssid, this.#words, this.#fault)) return BLOCKED;
    const context = decodeCd(this.#words, this.#unit, stream, false);
    if (typeof context === "string") return BLOCKED;
    const key = Array.from(this.#words, (word) => word.toString(16)).join(" ");
    return { kind: "table", asid: context.asid, table: tableOf(this.#memory, context, key) };
  }
}

/** A stage 1: the lower range and the upper one. */
const tableOf = (memory: HostMemory, { lower, upper }: Context, key: string): GuestTable => {
  const below = lower && { finder: finderOf(memory, lower), start: 0, end: 2 ** lower.inputBits };
  const above = upper && {
    finder: finderOf(memory, upper),
    start: UPPER_END - 2 ** upper.inputBits,
    end: UPPER_END,
  };
  const parts = [below, above].filter((part) => part !== undefined);
  const find = (iova: number): Found => {
    const part = parts.find(({ start, end }) => iova >= start && iova < end);
    return part ? findPage(part.finder, iova) : { page: false, end: nextStart(parts, iova) };
  };
  return { key, ranges: parts.map(({ start, end }) => ({ start, end })), find };
};

const nextStart = (parts: readonly AddressRange[], iova: number): number =>
  parts.find(({ start }) => start > iova)?.start ?? UPPER_END;

const finderOf = (memory: HostMemory, range: Range): Walk => {
  const { format, table } = range;
  const result = new WalkResult();
  const walker = walkerOf(format);
  return {
    walk(iova, need) {
      const low = indexedLow((iova % WORD) | 0, range);
      const high = indexedHigh(Math.floor(iova / WORD), range);
      return walker(memory, table, low, high, need | Permission.user, result);
    },
    get pa() {
      return result.pa;
    },
    get span() {
      return result.span;
    },
    get lg2() {
      return result.lg2;
    },
    get holeLg2() {
      return format.levels[Math.max(result.level, 0)]!.shift;
    },
  };
};
