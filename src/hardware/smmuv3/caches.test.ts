import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Random } from "../../base/clock.ts";
import { access, requestOf } from "../unit.suite.ts";
import { Access } from "../unit.ts";
import { Opcode } from "./queue-spec.ts";
import { cfgi, readWrite, SmmuRig, type Stages, sync, tlbi } from "./rig.suite.ts";
import { Config } from "./spec.ts";
import { type CachePolicy, SmmuV3Unit } from "./unit.ts";

const RID = 0x18;
const PAGE = 0x1000;
const BLOCK = 0x20_0000;

/** A stream whose page 5, and a block behind it, have been used, and then moved in the tables. */
const moved = (stages: Stages) => {
  const rig = new SmmuRig({ stages });
  const map = (pa: number) => {
    rig.map(RID, 0x5000, pa, 12, readWrite);
    rig.map(RID, 0x6000, pa + PAGE, 12, readWrite);
    rig.map(RID, BLOCK, pa + BLOCK, 21, readWrite);
  };
  map(0x4000_0000);
  rig.enable();
  const seen = (iova: number) => {
    const found = access(rig, RID, iova);
    return found.ok && (found as { pa: number }).pa >= 0x5000_0000 ? "new" : "old";
  };
  for (const iova of [0x5000, 0x6000, BLOCK + 0x3000, BLOCK + 0x7000]) expect(seen(iova)).toBe("old");
  map(0x5000_0000);
  return { rig, seen };
};

/** What page 5, page 6 and the block are seen as after a command. */
const after = (stages: Stages, ...commands: bigint[]) => {
  const { rig, seen } = moved(stages);
  rig.submit(...commands, sync());
  expect(rig.consumed.error).toBe(0);
  return [seen(0x5000), seen(0x6000), seen(BLOCK + 0x3000), seen(BLOCK + 0x7000)].join(" ");
};

const nothing = "old old old old";
const everything = "new new new new";
const range = { TG: 1, NUM: 1, SCALE: 0 } as const;

describe("§4.4 TLB invalidation, stage 1: VMID 0, ASID 1", () => {
  const cases: [string, bigint[], string][] = [
    ["no command", [], nothing],
    ["NSNH_ALL", [tlbi(Opcode.TLBI_NSNH_ALL)], everything],
    ["NH_ALL", [tlbi(Opcode.TLBI_NH_ALL, { VMID: 0 })], everything],
    ["NH_ALL of another VMID", [tlbi(Opcode.TLBI_NH_ALL, { VMID: 7 })], nothing],
    ["NH_ASID", [tlbi(Opcode.TLBI_NH_ASID, { ASID: 1 })], everything],
    ["NH_ASID of another", [tlbi(Opcode.TLBI_NH_ASID, { ASID: 2 })], nothing],
    ["NH_VA of page 5", [tlbi(Opcode.TLBI_NH_VA, { ASID: 1, ADDRESS: 0x5000 })], "new old old old"],
    ["NH_VA, leaf", [tlbi(Opcode.TLBI_NH_VA, { ASID: 1, ADDRESS: 0x6000, LEAF: true })], "old new old old"],
    ["NH_VA of another ASID", [tlbi(Opcode.TLBI_NH_VA, { ASID: 2, ADDRESS: 0x5000 })], nothing],
    ["NH_VA in the block", [tlbi(Opcode.TLBI_NH_VA, { ASID: 1, ADDRESS: BLOCK })], "old old new new"],
    [
      "NH_VA of two pages",
      [tlbi(Opcode.TLBI_NH_VA, { ASID: 1, ADDRESS: 0x5000, ...range })],
      "new new old old",
    ],
    [
      "NH_VA of a scaled range",
      [tlbi(Opcode.TLBI_NH_VA, { ASID: 1, TG: 1, NUM: 0, SCALE: 10 })],
      "new new new new",
    ],
    ["NH_VAA", [tlbi(Opcode.TLBI_NH_VAA, { ADDRESS: 0x5000 })], "new old old old"],
    ["NH_VAA of another VMID", [tlbi(Opcode.TLBI_NH_VAA, { VMID: 3, ADDRESS: 0x5000 })], nothing],
    ["S12_VMALL", [tlbi(Opcode.TLBI_S12_VMALL)], everything],
    ["S2_IPA", [tlbi(Opcode.TLBI_S2_IPA, { ADDRESS: 0x5000 })], nothing],
    ["CFGI_STE", [cfgi(Opcode.CFGI_STE, { SID: RID })], nothing],
  ];
  // SCALE 10 is 1024 pages from 0 on: 4 MiB.
  it.each(cases)("%s", (_, commands, expected) => {
    expect(after("stage1", ...commands)).toBe(expected);
  });
});

describe("§4.4 TLB invalidation, stage 2: VMID 1", () => {
  const cases: [string, bigint[], string][] = [
    ["S12_VMALL", [tlbi(Opcode.TLBI_S12_VMALL, { VMID: 1 })], everything],
    ["S12_VMALL of another VMID", [tlbi(Opcode.TLBI_S12_VMALL, { VMID: 2 })], nothing],
    ["S2_IPA of page 5", [tlbi(Opcode.TLBI_S2_IPA, { VMID: 1, ADDRESS: 0x5000 })], "new old old old"],
    [
      "S2_IPA in the block",
      [tlbi(Opcode.TLBI_S2_IPA, { VMID: 1, ADDRESS: BLOCK + PAGE })],
      "old old new new",
    ],
    [
      "S2_IPA of a range",
      [tlbi(Opcode.TLBI_S2_IPA, { VMID: 1, ADDRESS: 0x5000, ...range })],
      "new new old old",
    ],
    ["S2_IPA of another VMID", [tlbi(Opcode.TLBI_S2_IPA, { VMID: 3, ADDRESS: 0x5000 })], nothing],
    ["NH_ALL", [tlbi(Opcode.TLBI_NH_ALL, { VMID: 1 })], nothing],
    ["NSNH_ALL", [tlbi(Opcode.TLBI_NSNH_ALL)], everything],
  ];
  it.each(cases)("%s", (_, commands, expected) => {
    expect(after("stage2", ...commands)).toBe(expected);
  });
});

describe("§4.4 TLB invalidation, both stages: VMID 1, ASID 1; stage 1 changed", () => {
  const cases: [string, bigint[], string][] = [
    ["NH_ALL", [tlbi(Opcode.TLBI_NH_ALL, { VMID: 1 })], everything],
    ["NH_ALL of another VMID", [tlbi(Opcode.TLBI_NH_ALL, { VMID: 0 })], nothing],
    ["NH_ASID", [tlbi(Opcode.TLBI_NH_ASID, { VMID: 1, ASID: 1 })], everything],
    ["NH_ASID of another VMID", [tlbi(Opcode.TLBI_NH_ASID, { VMID: 2, ASID: 1 })], nothing],
    ["NH_VA", [tlbi(Opcode.TLBI_NH_VA, { VMID: 1, ASID: 1, ADDRESS: 0x5000 })], "new old old old"],
    ["S2_IPA alone", [tlbi(Opcode.TLBI_S2_IPA, { VMID: 1, ADDRESS: 0x4000_0000 })], nothing],
    ["S12_VMALL", [tlbi(Opcode.TLBI_S12_VMALL, { VMID: 1 })], everything],
  ];
  it.each(cases)("%s", (_, commands, expected) => {
    expect(after("nested", ...commands)).toBe(expected);
  });

  it("a block of stage 1 over pages of stage 2 goes with any of its addresses", () => {
    const rig = new SmmuRig({ stages: "nested" });
    const { stage2 } = rig.stream(RID);
    // A part of the intermediate addresses in small pages.
    const ipa = 0x40_0000_0000;
    for (let page = 0; page < 512; page++)
      rig.mapStage2(stage2, ipa + page * PAGE, 0x4000_0000 + page * PAGE, 12, readWrite);
    rig.map(RID, BLOCK, ipa, 21, readWrite);
    rig.enable();
    const pages = [0x1000, 0x3000, 0x1f_f000];
    for (const page of pages)
      expect(access(rig, RID, BLOCK + page)).toEqual({ ok: true, pa: 0x4000_0000 + page, span: PAGE });
    rig.map(RID, BLOCK, 0x5000_0000, 21, readWrite);
    rig.submit(tlbi(Opcode.TLBI_NH_VA, { VMID: 1, ASID: 1, ADDRESS: BLOCK + 0x8000 }), sync());
    for (const page of pages)
      expect(access(rig, RID, BLOCK + page)).toMatchObject({ pa: 0x5000_0000 + page });
  });

  it("a page that moved in stage 2 needs S2_IPA and then NH_ALL", () => {
    const run = (...commands: bigint[]) => {
      const rig = new SmmuRig({ stages: "nested" });
      const { stage2 } = rig.stream(RID);
      const ipa = 0x40_0000_0000;
      rig.mapStage2(stage2, ipa, 0x4000_0000, 12, readWrite);
      rig.map(RID, 0x5000, ipa, 12, readWrite);
      rig.enable();
      access(rig, RID, 0x5000);
      rig.mapStage2(stage2, ipa, 0x5000_0000, 12, readWrite);
      rig.submit(...commands, sync());
      return (access(rig, RID, 0x5000) as { pa: number }).pa;
    };
    const ofStage2 = tlbi(Opcode.TLBI_S2_IPA, { VMID: 1, ADDRESS: 0x40_0000_0000 });
    const ofStage1 = tlbi(Opcode.TLBI_NH_ALL, { VMID: 1 });
    expect(run(ofStage2)).toBe(0x4000_0000);
    expect(run(ofStage1)).toBe(0x4000_0000);
    expect(run(ofStage2, ofStage1)).toBe(0x5000_0000);
  });
});

describe("§3.17 global pages", () => {
  it("are for every ASID of a VMID, stay for NH_ASID, and go with NH_VA of any ASID", () => {
    const rig = new SmmuRig();
    const { stage1 } = rig.stream(RID);
    rig.stream(RID + 1);
    const global = (pa: number) =>
      rig.store64(rig.entryAddress(stage1, 0x5000, 12), rig.leaf1(pa, 12, 3) & ~0x800n);
    global(0x4000_0000);
    rig.enable();
    access(rig, RID, 0x5000);
    expect(access(rig, RID + 1, 0x5000)).toMatchObject({ pa: 0x4000_0000 });
    global(0x5000_0000);
    rig.submit(tlbi(Opcode.TLBI_NH_ASID, { ASID: 1 }), sync());
    expect(access(rig, RID, 0x5000)).toMatchObject({ pa: 0x4000_0000 });
    rig.submit(tlbi(Opcode.TLBI_NH_VA, { ASID: 9, ADDRESS: 0x5000 }), sync());
    expect(access(rig, RID, 0x5000)).toMatchObject({ pa: 0x5000_0000 });
  });
});

describe("§4.3 configuration invalidation", () => {
  const stream = (commands: readonly bigint[]) => {
    const rig = new SmmuRig();
    rig.map(RID, 0x5000, 0x4000_0000, 12, readWrite);
    rig.enable();
    access(rig, RID, 0x5000);
    rig.ste(RID, { CONFIG: Config.abort });
    rig.submit(...commands, sync());
    return access(rig, RID, 0x5000).ok ? "old" : "new";
  };
  it.each<[string, bigint[], string]>([
    ["nothing", [], "old"],
    ["CFGI_STE", [cfgi(Opcode.CFGI_STE, { SID: RID })], "new"],
    ["CFGI_STE of another", [cfgi(Opcode.CFGI_STE, { SID: RID + 1 })], "old"],
    ["a range with it", [cfgi(Opcode.CFGI_STE_RANGE, { SID: RID - 1, RANGE: 4 })], "new"],
    ["a range without it", [cfgi(Opcode.CFGI_STE_RANGE, { SID: RID - 1, RANGE: 2 })], "old"],
    ["CFGI_ALL", [cfgi(Opcode.CFGI_STE_RANGE, { RANGE: 31 })], "new"],
    ["CFGI_CD", [cfgi(Opcode.CFGI_CD, { SID: RID })], "old"],
    ["TLBI", [tlbi(Opcode.TLBI_NSNH_ALL)], "old"],
  ])("of a stream table entry: %s", (_, commands, expected) => {
    expect(stream(commands)).toBe(expected);
  });

  const context = (commands: readonly bigint[]) => {
    const rig = new SmmuRig();
    const cds = rig.memory.allocate(4);
    const tables = [rig.table(), rig.table()] as const;
    rig.mapStage1(tables[0], 0x5000, 0x4000_0000, 12, readWrite);
    rig.mapStage1(tables[1], 0x5000, 0x5000_0000, 12, readWrite);
    rig.cd(cds + 3 * 64, { ASID: 3, TTB0: tables[0] });
    rig.ste(RID, { CONFIG: Config.stage1, S1CONTEXTPTR: cds, S1CDMAX: 6 });
    rig.enable();
    access(rig, RID, 0x5000, Access.read, 3);
    rig.cd(cds + 3 * 64, { ASID: 4, TTB0: tables[1] });
    rig.submit(...commands, sync());
    return (access(rig, RID, 0x5000, Access.read, 3) as { pa: number }).pa === 0x4000_0000 ? "old" : "new";
  };
  it.each<[string, bigint[], string]>([
    ["nothing", [], "old"],
    ["CFGI_CD", [cfgi(Opcode.CFGI_CD, { SID: RID, SSID: 3 })], "new"],
    ["CFGI_CD of another substream", [cfgi(Opcode.CFGI_CD, { SID: RID, SSID: 2 })], "old"],
    ["CFGI_CD_ALL", [cfgi(Opcode.CFGI_CD_ALL, { SID: RID })], "new"],
    ["CFGI_CD_ALL of another stream", [cfgi(Opcode.CFGI_CD_ALL, { SID: RID + 1 })], "old"],
    ["CFGI_STE", [cfgi(Opcode.CFGI_STE, { SID: RID })], "new"],
  ])("of a context descriptor: %s", (_, commands, expected) => {
    expect(context(commands)).toBe(expected);
  });
});

it("a paranoid cache needs a source of random numbers", () => {
  const { memory, events } = new SmmuRig();
  const options = { name: "smmu1", memory, events, interrupt: () => {} };
  expect(() => new SmmuV3Unit({ ...options, cache: "paranoid" })).toThrow(/smmu1: a paranoid cache needs/);
});

// A device may see what the tables said at any time since a command that invalidated what it uses.

const PAGES = 6;
/** Addresses in one block, which is there as a whole or not. */
const IN_BLOCK = [BLOCK + 0x3000, BLOCK + 0x5000, BLOCK + 0x10_0000];
const IOVAS = [...Array.from({ length: PAGES }, (_, page) => page * PAGE), ...IN_BLOCK];
const VMIDS = [1, 2];
const ASIDS = [1, 2];
const IPA = 0x40_0000_0000;
/** Intermediate pages that stage 1 uses; a block of them. */
const IPAS = 16;
const BLOCK_IPA = IPA + BLOCK;

const cells = <T>(make: () => T): T[][][] => VMIDS.map(() => ASIDS.map(() => IOVAS.map(() => make())));

/**
 * A literal account: for each VMID, ASID and address what stage 1 says now, for each VMID and intermediate page what
 * stage 2 says and said, and what combinations may be remembered.
 */
class Account {
  /** Stage 1 by ASID and address: an intermediate address, or 0. */
  readonly first = ASIDS.map(() => IOVAS.map(() => 0));
  /** Stage 2 by VMID: intermediate page → pa. */
  readonly second = VMIDS.map(() => new Map<number, number>());
  readonly secondSeen = VMIDS.map(() => new Map<number, Set<number>>());
  readonly combined = cells(() => new Set<number>());
  readonly streams: { vmids: Set<number>; asids: Set<number>; vmid: number; asid: number }[];

  constructor(streams: number) {
    this.streams = Array.from({ length: streams }, () => ({
      vmids: new Set([0]),
      asids: new Set([0]),
      vmid: 0,
      asid: 0,
    }));
  }

  /** What the tables say, and have said since stage 2 was invalidated. */
  #possible(vmid: number, asid: number, at: number): Iterable<number> {
    const ipa = this.first[asid]![at]!;
    return ipa === 0 ? [0] : (this.secondSeen[vmid]!.get(ipa) ?? [0]);
  }

  now(vmid: number, asid: number, at: number): number {
    const ipa = this.first[asid]![at]!;
    return ipa === 0 ? 0 : (this.second[vmid]!.get(ipa) ?? 0);
  }

  setSecond(vmid: number, ipa: number, pa: number): void {
    this.second[vmid]!.set(ipa, pa);
    const seen = this.secondSeen[vmid]!.get(ipa) ?? new Set([0]);
    this.secondSeen[vmid]!.set(ipa, seen.add(pa));
  }

  /** Something changed: what is possible now may be remembered from now on. */
  remember(): void {
    this.#each((vmid, asid, at, seen) => {
      for (const pa of this.#possible(vmid, asid, at)) seen.add(pa);
    });
  }

  #each(visit: (vmid: number, asid: number, at: number, seen: Set<number>) => void): void {
    for (const vmid of VMIDS.keys())
      for (const asid of ASIDS.keys())
        for (const at of IOVAS.keys()) visit(vmid, asid, at, this.combined[vmid]![asid]![at]!);
  }

  flushFirst(vmid: number | undefined, asid: number | undefined, covers: (iova: number) => boolean): void {
    this.#each((v, a, at, seen) => {
      if ((vmid === undefined || v === vmid) && (asid === undefined || a === asid) && covers(IOVAS[at]!))
        seen.clear();
    });
    this.remember();
  }

  flushSecond(vmid: number | undefined, covers: (ipa: number) => boolean): void {
    this.second.forEach((now, v) => {
      if (vmid !== undefined && v !== vmid) return;
      for (const [ipa, pa] of now) if (covers(ipa)) this.secondSeen[v]!.set(ipa, new Set([pa]));
    });
  }

  legal(stream: number, at: number): Set<number> {
    const legal = new Set<number>();
    const { vmids, asids } = this.streams[stream]!;
    for (const vmid of vmids)
      for (const asid of asids) {
        for (const pa of this.combined[vmid]![asid]![at]!) legal.add(pa);
        for (const pa of this.#possible(vmid, asid, at)) legal.add(pa);
      }
    return legal;
  }
}

const inBlock = (iova: number): boolean => iova >= BLOCK;
const samePage = (a: number) => (b: number) => (inBlock(a) ? inBlock(b) : a === b);

/** A random life of three streams under both stages; how often something stale was seen. */
const history = (cache: CachePolicy, seed: number): number => {
  const rig = new SmmuRig({ stages: "nested", cache, seed, iotlbEntries: 64 });
  const random = new Random(seed);
  const pick = <T>(from: readonly T[]): T => from[random.below(from.length)]!;
  const rids = [0x18, 0x19, 0x120];
  const account = new Account(rids.length);
  const firsts = ASIDS.map(() => rig.table());
  const seconds = VMIDS.map(() => rig.table());
  const cds = rids.map(() => rig.memory.allocate(1));
  // Structures and tables lie where they are.
  for (const table of seconds)
    for (let pa = 0; pa < 0x4_0000_0000; pa += 0x4000_0000) rig.mapStage2(table, pa, pa, 30, readWrite);
  const setSecond = (vmid: number, ipa: number, pa: number) => {
    rig.mapStage2(seconds[vmid]!, ipa, pa, 12, pa ? readWrite : 0);
    account.setSecond(vmid, ipa, pa);
  };
  VMIDS.forEach((_, vmid) => {
    for (let page = 0; page < IPAS; page++) setSecond(vmid, IPA + page * PAGE, 0x4000_0000 + page * PAGE);
    for (const iova of IN_BLOCK) setSecond(vmid, BLOCK_IPA + iova - BLOCK, 0x5000_0000 + iova - BLOCK);
    account.flushSecond(vmid, () => true);
  });
  const setContext = (index: number) =>
    rig.cd(cds[index]!, {
      ASID: ASIDS[account.streams[index]!.asid]!,
      TTB0: firsts[account.streams[index]!.asid]!,
    });
  const setStream = (index: number) => {
    const { vmid } = account.streams[index]!;
    const stage2 = rig.stage2Fields(seconds[vmid]!, VMIDS[vmid]!);
    rig.ste(rids[index]!, { CONFIG: Config.nested, S1CONTEXTPTR: cds[index]!, ...stage2 });
  };
  rids.forEach((_, index) => {
    setContext(index);
    setStream(index);
  });
  account.remember();
  rig.enable();
  let stale = 0;
  for (let step = 0; step < 200; step++) {
    const vmid = random.below(VMIDS.length);
    const asid = random.below(ASIDS.length);
    const at = random.below(IOVAS.length);
    const iova = IOVAS[at]!;
    const index = random.below(rids.length);
    const tags = { VMID: VMIDS[vmid]!, ASID: ASIDS[asid]! };
    switch (random.below(16)) {
      case 0:
      case 1: {
        const mapped = random.below(4) > 0;
        if (inBlock(iova)) {
          rig.mapStage1(firsts[asid]!, BLOCK, BLOCK_IPA, 21, mapped ? readWrite : 0);
          IN_BLOCK.forEach((one, i) => {
            account.first[asid]![PAGES + i] = mapped ? BLOCK_IPA + one - BLOCK : 0;
          });
        } else {
          const ipa = mapped ? IPA + random.below(IPAS) * PAGE : 0;
          rig.mapStage1(firsts[asid]!, iova, ipa, 12, ipa ? readWrite : 0);
          account.first[asid]![at] = ipa;
        }
        account.remember();
        break;
      }
      case 2: {
        const ipa = random.below(2) ? IPA + random.below(IPAS) * PAGE : BLOCK_IPA + pick(IN_BLOCK) - BLOCK;
        setSecond(vmid, ipa, random.below(4) ? 0x6000_0000 + random.below(64) * PAGE : 0);
        account.remember();
        break;
      }
      case 3: {
        const stream = account.streams[index]!;
        if (random.below(2)) {
          stream.asids.add((stream.asid = asid));
          setContext(index);
        } else {
          stream.vmids.add((stream.vmid = vmid));
          setStream(index);
        }
        break;
      }
      case 4: {
        const stream = account.streams[index]!;
        const whole = random.below(2) === 1;
        const opcode = whole ? Opcode.CFGI_STE : pick([Opcode.CFGI_CD, Opcode.CFGI_CD_ALL]);
        rig.submit(cfgi(opcode, { SID: rids[index]! }), sync());
        stream.asids = new Set([stream.asid]);
        if (whole) stream.vmids = new Set([stream.vmid]);
        break;
      }
      case 5:
        rig.submit(tlbi(Opcode.TLBI_NH_ALL, tags), sync());
        account.flushFirst(vmid, undefined, () => true);
        break;
      case 6:
        rig.submit(tlbi(Opcode.TLBI_NH_ASID, tags), sync());
        account.flushFirst(vmid, asid, () => true);
        break;
      case 7: {
        const every = random.below(2) === 1;
        const opcode = every ? Opcode.TLBI_NH_VAA : Opcode.TLBI_NH_VA;
        rig.submit(tlbi(opcode, { ...tags, ADDRESS: iova }), sync());
        account.flushFirst(vmid, every ? undefined : asid, samePage(iova));
        break;
      }
      case 8: {
        const pages = 1 + random.below(4);
        const values = { ...tags, ADDRESS: iova, TG: 1, NUM: pages - 1 };
        rig.submit(tlbi(Opcode.TLBI_NH_VA, values), sync());
        account.flushFirst(vmid, asid, (one) =>
          inBlock(iova) ? inBlock(one) : one >= iova && one < iova + pages * PAGE,
        );
        break;
      }
      case 9: {
        const ipa = IPA + random.below(IPAS) * PAGE;
        rig.submit(tlbi(Opcode.TLBI_S2_IPA, { VMID: tags.VMID, ADDRESS: ipa }), sync());
        account.flushSecond(vmid, (one) => one === ipa);
        break;
      }
      case 10: {
        const every = random.below(2) === 1;
        rig.submit(
          tlbi(every ? Opcode.TLBI_NSNH_ALL : Opcode.TLBI_S12_VMALL, every ? {} : { VMID: tags.VMID }),
          sync(),
        );
        account.flushSecond(every ? undefined : vmid, () => true);
        account.flushFirst(every ? undefined : vmid, undefined, () => true);
        break;
      }
      default: {
        const explained = [...rig.unit.explain(requestOf(rids[index]!, iova + 0x10, Access.read))].at(-1)!
          .outcome!;
        const found = access(rig, rids[index]!, iova + 0x10);
        if (cache !== "paranoid") expect(explained.ok).toBe(found.ok);
        const pa = found.ok ? (found as { pa: number }).pa - 0x10 : 0;
        if (cache !== "paranoid" && explained.ok) expect(explained.pa - 0x10).toBe(pa);
        expect([...account.legal(index, at)]).toContain(pa);
        const { vmid: v, asid: a } = account.streams[index]!;
        const now = account.now(v, a, at);
        if (cache === "none") expect(pa).toBe(now);
        if (pa !== now) stale += 1;
        rig.takeEvents();
      }
    }
  }
  return stale;
};

describe("§3.21 any order of changes, commands and accesses, under both stages", () => {
  it.each<[string, CachePolicy]>([
    ["cached", "normal"],
    ["paranoid", "paranoid"],
    ["without caches", "none"],
  ])(
    "a unit %s only answers what was valid since the last sufficient invalidation",
    (_, cache) => {
      fc.assert(
        fc.property(fc.nat(), (seed) => void history(cache, seed)),
        { numRuns: 20 },
      );
    },
    120_000,
  );

  it("a caching unit does answer stale translations in such histories", () => {
    let stale = 0;
    for (let seed = 0; seed < 10; seed++) stale += history("normal", seed);
    expect(stale).toBeGreaterThan(30);
  });
});
