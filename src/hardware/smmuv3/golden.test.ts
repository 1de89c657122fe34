import { describe, expect, it } from "vitest";
import { WalkFault } from "../../pagetable/format.ts";
import {
  type GoldenWalk,
  goldenWalks,
  type Question,
  told,
  type WalkEnd,
  walkGolden,
} from "../../pagetable/golden.suite.ts";
import { type Granule, vmsaStage1, vmsaStage2 } from "../../pagetable/vmsa.ts";
import { Access } from "../unit.ts";
import { completeCapabilities } from "./capabilities.ts";
import { type Context, decodeCd, type Range, type Stream } from "./config.ts";
import { walkFaultCode } from "./faults.ts";
import { EventCode } from "./queue-spec.ts";
import { needOf, rightsOf, wantOf } from "./rights.ts";
import { Cd, StreamWorld } from "./spec.ts";
import { canonicalHigh, indexedHigh, indexedLow, isInside, isUpper, rangeOf } from "./translate.ts";

const lg2 = { "4k": 12, "16k": 14, "64k": 16 } as const;
type Size = keyof typeof lg2;

const accessOf = ({ read, write, execute, privileged }: GoldenWalk["access"]): number =>
  (read ? Access.read : 0) |
  (write ? Access.write : 0) |
  (execute ? Access.execute : 0) |
  (privileged ? Access.privileged : 0);

const stream = { world: StreamWorld.el1, privilege: 0, instruction: 0 } as Stream;
const NOWHERE = { fault: WalkFault.inputWidth, level: -1, pa: 0, lg2: 0, allowed: 0, fetched: [] };

const updatesOf = (ha: boolean, hd: boolean) =>
  ha ? { updates: hd ? ("dirty" as const) : ("accessed" as const) } : {};

/** What is said of a walk: Arm calls what is no entry of its level a translation fault, as it does an address out of range. */
const judge = (
  walk: GoldenWalk,
  question: Question,
  end: WalkEnd & { readonly fetched: readonly number[] },
  want: number,
  context?: Context,
) => {
  const {
    detail,
    contiguous_page: _hint,
    ...expected
  } = walk.expect as GoldenWalk["expect"] & {
    contiguous_page?: number;
  };
  const refused = end.fault === WalkFault.none && (want & ~rightsOf(end.allowed, context)) !== 0;
  const found = refused ? { ...end, fault: WalkFault.read } : end;
  const said = told(question, found, { reserved: "not-present" });
  expect({ ...said, ...(said.level === null && { level: 0 }) }).toEqual(expected);
  expect(end.fetched.map((at) => `0x${at.toString(16)}`)).toEqual(walk.fetches);
  const code = refused ? EventCode.F_PERMISSION : walkFaultCode(end.fault);
  if (detail !== undefined) expect(code).toBe(EventCode[detail.split(" ")[0] as keyof typeof EventCode]);
};

interface Stage1 {
  readonly granule: Size;
  readonly t0sz: number;
  readonly granule1: Size;
  readonly t1sz: number;
  readonly ttb1: string | null;
  readonly epd0: boolean;
  readonly epd1: boolean;
  readonly tbi0: boolean;
  readonly tbi1: boolean;
  readonly ips: number;
  readonly ha: boolean;
  readonly hd: boolean;
  readonly affd: boolean;
  readonly hpd0: boolean;
  readonly hpd1: boolean;
  readonly lpa: boolean;
}

const rangeMade = (p: Stage1, table: number, size: Size, tsz: number, flat: boolean, tbi: boolean): Range => {
  const wide = size === "64k" && p.lpa;
  return {
    table,
    inputBits: 64 - tsz,
    topByteIgnored: tbi,
    format: vmsaStage1({
      granuleLg2: lg2[size] as Granule,
      inputBits: 64 - tsz,
      outputBits: wide ? p.ips : Math.min(p.ips, 48),
      wide,
      ...updatesOf(p.ha, p.hd),
      accessFlag: !p.affd,
      hierarchical: !flat,
    }),
  };
};

const contextMade = (p: Stage1, root: number): Context => ({
  asid: 0,
  lower: p.epd0 ? undefined : rangeMade(p, root, p.granule, p.t0sz, p.hpd0, p.tbi0),
  upper: p.epd1 ? undefined : rangeMade(p, Number(p.ttb1), p.granule1, p.t1sz, p.hpd1, p.tbi1),
  twoRanges: true,
  privileges: true,
  writeNeverExecutes: false,
  privilegedAccessNever: false,
  stalls: false,
  recorded: true,
});

describe("golden walks of stage 1", () => {
  const all = goldenWalks("vmsa-stage1");
  const walks = all.filter(({ expect: { kind } }) => kind !== "configuration");
  it.each(walks.map((walk) => [walk.name, walk] as const))("%s", (_, walk) => {
    const params = walk.params as unknown as Stage1;
    const context = contextMade(params, Number(walk.root));
    const iova = BigInt(walk.access.iova);
    const [lo, hi] = [Number(iova & 0xffff_ffffn) | 0, Number(iova >> 32n) | 0];
    const want = wantOf(accessOf(walk.access), stream, true);
    const range = rangeOf(hi, context);
    const high = range ? canonicalHigh(hi, range) : hi;
    const inside = range !== undefined && isInside(lo, high, range, isUpper(context, range));
    // Without a range nothing is walked: any format will do.
    const format = (range ?? contextMade({ ...params, epd0: false }, 0).lower!).format;
    const address = inside
      ? (BigInt(indexedHigh(high, range) >>> 0) << 32n) | BigInt(indexedLow(lo, range) >>> 0)
      : iova;
    const question = { format, root: range?.table ?? 0, address, need: needOf(want) };
    const disabled = range ? NOWHERE : { ...NOWHERE, fault: WalkFault.notPresent };
    judge(walk, question, inside ? walkGolden(walk, question) : disabled, want, context);
  });

  it.each(all.filter((walk) => !walks.includes(walk)).map((walk) => [walk.name, walk] as const))(
    "%s: the context descriptor is not valid",
    (_, walk) => {
      const p = walk.params as unknown as Stage1;
      const words = new Uint32Array(Cd.words);
      const IPS = [32, 36, 40, 42, 44, 48, 52].indexOf(p.ips);
      const TTB0 = Number(walk.root);
      Cd.toWords(Cd.make({ V: true, AA64: true, A: true, IPS, T0SZ: p.t0sz, TTB0, EPD1: true }), words);
      expect(decodeCd(words, completeCapabilities({ outputBits: 48 }), stream, false)).toMatch(
        /^TTB0: the table is beyond 40 bits/,
      );
    },
  );
});

interface Stage2 {
  readonly granule: Size;
  readonly s2t0sz: number;
  readonly start_level: number;
  readonly s2ps: number;
  readonly oas: number;
  readonly ha: boolean;
  readonly hd: boolean;
  readonly affd: boolean;
  readonly lpa: boolean;
}

describe("golden walks of stage 2", () => {
  it.each(goldenWalks("vmsa-stage2").map((walk) => [walk.name, walk] as const))("%s", (_, walk) => {
    const p = walk.params as unknown as Stage2;
    const wide = p.granule === "64k" && p.lpa;
    const outputBits = Math.min(p.s2ps, p.oas);
    const format = vmsaStage2({
      granuleLg2: lg2[p.granule],
      inputBits: 64 - p.s2t0sz,
      startLevel: p.start_level,
      outputBits: wide ? outputBits : Math.min(outputBits, 48),
      wide,
      ...updatesOf(p.ha, p.hd),
      accessFlag: !p.affd,
    });
    const want = wantOf(accessOf(walk.access), stream, true);
    const address = BigInt(walk.access.iova);
    const question = { format, root: Number(walk.root), address, need: needOf(want) };
    judge(walk, question, walkGolden(walk, question), want);
  });
});
