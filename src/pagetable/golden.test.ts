import { describe, expect, it } from "vitest";
import { Permission, WalkFault } from "./format.ts";
import { type GoldenWalk, goldenWalks, told, walkGolden } from "./golden.suite.ts";
import { x86Paging } from "./x86-64.ts";

interface Params {
  readonly levels: 4 | 5;
  readonly maxphyaddr: number;
  readonly nx: boolean;
  readonly page1g: boolean;
  readonly wp: boolean;
  readonly smep: boolean;
  readonly smap: boolean;
  readonly ac?: boolean;
}

/** SDM volume 3, §4.6.1: what SMEP and SMAP make of a page that user mode may use. */
const isKept = ({ smep, smap, ac }: Params, { access }: GoldenWalk, allowed: number): boolean =>
  access.privileged && (allowed & Permission.user) !== 0 && (access.execute ? smep : smap && ac !== true);

describe("golden walks of x86-64 tables", () => {
  it.each(goldenWalks("x86-64").map((walk) => [walk.name, walk] as const))("%s", (_, walk) => {
    const params = walk.params as unknown as Params;
    const { access } = walk;
    const format = x86Paging(params.levels, {
      physicalBits: params.maxphyaddr,
      executeDisable: params.nx,
      pageLg2s: params.page1g ? [12, 21, 30] : [12, 21],
      writeProtect: params.wp || !access.privileged,
    });
    const need =
      (access.write ? Permission.write : 0) |
      (access.read ? Permission.read : 0) |
      (access.execute ? Permission.execute : 0) |
      (access.privileged ? 0 : Permission.user);
    const question = { format, root: Number(walk.root), address: BigInt(access.iova), need };
    const end = walkGolden(walk, question);
    expect(end.fetched.map((at) => `0x${at.toString(16)}`)).toEqual(walk.fetches);
    const { detail: _detail, ...expected } = walk.expect;
    const kept = end.fault === WalkFault.none && isKept(params, walk, end.allowed);
    const found = told(question, kept ? { ...end, fault: WalkFault.user } : end, {
      "input-size": "non-canonical",
    });
    // The walk judges permissions at the leaf, by all entries together: which one denied is not told.
    if (walk.expect.kind === "permission")
      expect(found).toMatchObject({ result: "fault", kind: "permission" });
    else expect(found).toEqual(expected);
  });
});
