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
import { Fetch } from "../../pagetable/nested.ts";
import { Access } from "../unit.ts";
import { completeCapabilities } from "./capabilities.ts";
import { faultOf, needOfRequest } from "./scalable.ts";
import { everything } from "./scalable-rig.suite.ts";
import { Pgtt } from "./scalable-spec.ts";
import { PasidContext } from "./scalable-tables.ts";
import { type Stage, Stages } from "./stages.ts";
import { configure, needOf, walkFaultCode } from "./translate.ts";

const accessOf = ({ read, write, execute }: GoldenWalk["access"]): number =>
  (read ? Access.read : 0) | (write ? Access.write : 0) | (execute ? Access.execute : 0);

const addressOf = ({ access }: GoldenWalk) => {
  const address = BigInt(access.iova);
  return { address, hi: Number(address >> 32n) };
};
const large = (twoMegabytes: boolean, oneGigabyte: boolean) => ({ twoMegabytes, oneGigabyte });

/** The fault reasons that the walk may end with: "79h or 86h (…)". */
const reasonsOf = ({ detail = "" }: GoldenWalk["expect"]): number[] =>
  [...detail.matchAll(/([0-9A-F]{2})h/g)].map(([, code]) => Number.parseInt(code!, 16));

/** What is expected of a walk that may stop at the entry that denies, and of what it was asked. */
const judge = (walk: GoldenWalk, question: Question, end: WalkEnd & { fetched: number[] }, code: number) => {
  const { detail: _detail, ...expected } = walk.expect;
  const fetched = end.fetched.map((at) => `0x${at.toString(16)}`);
  const names: Record<string, string> = question.format.canonical ? { "input-size": "non-canonical" } : {};
  expect({ ...told(question, end, names), fetched }).toEqual({
    ...expected,
    fetched: expected.kind === "permission" ? walk.fetches.slice(0, fetched.length) : walk.fetches,
  });
  if (expected.result === "fault") expect(reasonsOf(walk.expect)).toContain(code);
};

interface FirstStage {
  readonly levels: 4 | 5;
  readonly haw: number;
  readonly page1g: boolean;
  readonly nxe: boolean;
  readonly wpe: boolean;
  readonly eafe: boolean;
}

describe("golden walks of the first stage", () => {
  it.each(goldenWalks("vtd-first-level").map((walk) => [walk.name, walk] as const))("%s", (_, walk) => {
    const { levels, haw, page1g, nxe, wpe, eafe } = walk.params as unknown as FirstStage;
    const { privileged } = walk.access;
    const stages = new Stages(
      completeCapabilities({
        addressWidths: [48],
        hostAddressWidth: haw,
        scalable: { ...everything, firstStageGigabyte: page1g },
      }),
    );
    const context = new PasidContext();
    Object.assign(context, { pgtt: Pgtt.first, levels, executeDisable: nxe, extendedAccessed: eafe });
    const stage: Stage = stages.first(context, !privileged || wpe);
    const need = needOfRequest(accessOf(walk.access), privileged, Pgtt.first);
    const question = {
      format: stage.format,
      root: Number(walk.root),
      address: addressOf(walk).address,
      need,
    };
    const end = walkGolden(walk, question);
    const code = faultOf(
      { nested: undefined, stage },
      { ...end, stage: 1, fetch: Fetch.page, guestLevel: -1 },
    );
    judge(walk, question, end, code);
  });
});

interface SecondStage {
  readonly mode: "legacy" | "scalable";
  readonly levels: 3 | 4 | 5;
  readonly mgaw: number;
  readonly haw: number;
  readonly page2m: boolean;
  readonly page1g: boolean;
  readonly sc: boolean;
  readonly dt: boolean;
  readonly ssade: boolean;
}
const NOWHERE = { level: -1, pa: 0, lg2: 0, allowed: 0, fetched: [] };

describe("golden walks of the second stage", () => {
  it.each(goldenWalks("vtd-second-level").map((walk) => [walk.name, walk] as const))("%s", (_, walk) => {
    const params = walk.params as unknown as SecondStage;
    const { mode, levels } = params;
    const capabilities = completeCapabilities({
      addressWidths: [({ 3: 39, 4: 48, 5: 57 } as const)[levels]],
      guestAddressWidth: params.mgaw,
      hostAddressWidth: params.haw,
      largePages: large(params.page2m, params.page1g),
      snoopControl: params.sc,
      deviceTlb: params.dt,
      ...(mode === "scalable" && { scalable: everything }),
    });
    const access = accessOf(walk.access);
    const aw = levels - 2;
    const { address, hi } = addressOf(walk);
    const root = Number(walk.root);
    if (mode === "legacy") {
      const config = configure(capabilities);
      const question = { format: config.formats[aw]!, root, address, need: needOf(access) };
      const beyond = hi >>> (config.widths[aw]! - 32) !== 0;
      const end = beyond ? { ...NOWHERE, fault: WalkFault.inputWidth } : walkGolden(walk, question);
      judge(walk, question, end, walkFaultCode(config, { aw }, end.fault, end.level, access));
    } else {
      const context = new PasidContext();
      Object.assign(context, { pgtt: Pgtt.second, aw, secondAccessedDirty: params.ssade });
      const stage = new Stages(capabilities).second(context);
      const need = needOfRequest(access, false, Pgtt.second);
      const question = { format: stage.format, root, address, need };
      const end = walkGolden(walk, question);
      const top = { ...end, stage: 2, fetch: Fetch.page, guestLevel: -1 };
      judge(walk, question, end, faultOf({ nested: undefined, stage }, top));
    }
  });
});
