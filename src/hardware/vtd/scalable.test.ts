import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Random } from "../../base/clock.ts";
import type { DeviceTlbInvalidation } from "../ats.ts";
import { answer, explained, request } from "../unit.suite.ts";
import { Access, NO_PASID, TranslateStatus } from "../unit.ts";
import { iotlb, readWrite, wait } from "./rig.suite.ts";
import { everything, ScalableRig } from "./scalable-rig.suite.ts";
import {
  PageGroupResponse,
  PageRequestDescriptor,
  PasidCacheInvalidate,
  PasidDeviceTlbInvalidate,
  PasidIotlbInvalidate,
  Pgtt,
  Prs,
} from "./scalable-spec.ts";
import {
  CcmdRegister,
  DescriptorType,
  FaultRecording,
  Fsts,
  Gcmd,
  IotlbRegister,
  Register,
  RtaddrRegister,
  Ttm,
} from "./spec.ts";
import type { CachePolicy } from "./unit.ts";

const RID = 0x18;
const IOVA = 0x5000;
const PA = 0x40_0000;

const ask = (rig: ScalableRig, access: number = Access.read, iova = IOVA, pasid: number = NO_PASID) => {
  const transaction = request(RID, iova, access);
  transaction.pasid = pasid;
  const told = explained(rig.unit, transaction);
  expect(answer(rig.unit, transaction)).toEqual(told);
  return { ...transaction, ...told };
};

const started = (pgtt: number, options: ConstructorParameters<typeof ScalableRig>[0] = {}) => {
  const rig = new ScalableRig({ pgtt, ...options });
  rig.map(RID, IOVA, PA, 12, readWrite);
  rig.enable();
  rig.enableQueue();
  return rig;
};

describe("§3.4.3 scalable mode", () => {
  it.each([
    ["first stage", Pgtt.first],
    ["second stage", Pgtt.second],
    ["nested", Pgtt.nested],
  ])("translates by %s, requests with a PASID by that PASID's entry", (_, pgtt) => {
    const rig = started(pgtt);
    expect(ask(rig, Access.write)).toMatchObject({ ok: true, pa: PA });
    rig.pasid(RID, 0x1_2345, { PGTT: Pgtt.passThrough });
    expect(ask(rig, Access.read, 0x7_7000, 0x1_2345)).toMatchObject({ ok: true, pa: 0x7_7000 });
    expect(ask(rig, Access.read, IOVA, 0x1_2344).ok).toBe(false);
  });

  it("takes RID_PASID for requests without PASID, and the upper half of a root entry from device 16 on", () => {
    const rig = new ScalableRig();
    rig.scalableContext(RID | 0x80, { RID_PASID: 0x99 });
    rig.pasid(RID | 0x80, 0x99, { PGTT: Pgtt.passThrough });
    rig.enable();
    expect(answer(rig.unit, request(RID | 0x80, IOVA, Access.read))).toMatchObject({ pa: IOVA });
    expect(answer(rig.unit, request(RID, IOVA, Access.read))).toEqual({ ok: false, code: 0x39 });
  });

  it("maps the smaller page of both stages, and 5 levels of the first", () => {
    const rig = started(Pgtt.nested);
    const { first } = rig.tablesOf(RID);
    rig.mapFirst(first, 0x4000_0000, 0x4000_0000, 30, 3);
    expect(ask(rig, Access.read, 0x4123_4567)).toMatchObject({ pa: 0x4123_4567, span: 0x3edc_ba99 });
    const top = rig.memory.allocate(1);
    rig.store64(top + 511 * 8, BigInt(first) | 7n);
    rig.pasid(RID, 7, { PGTT: Pgtt.first, FSPM: 1, FSPTPTR: top });
    const transaction = request(RID, 0, Access.read);
    Object.assign(transaction, { pasid: 7, lo: 0x4123_4567, hi: 0xffff_0000 });
    expect(answer(rig.unit, transaction)).toMatchObject({ pa: 0x4123_4567 });
  });

  it("keeps user and supervisor apart: SRE, WPE and SMEP", () => {
    const rig = started(Pgtt.first);
    const { first } = rig.tablesOf(RID);
    rig.mapFirst(first, 0x6000, PA, 12, 1, false);
    rig.pasid(RID, 1, { PGTT: Pgtt.first, FSPTPTR: first, SRE: true, WPE: true, ERE: true, SMEP: true });
    rig.pasid(RID, 2, { PGTT: Pgtt.first, FSPTPTR: first, SRE: true, DID: 2 });
    const { read, write, privileged, execute } = Access;
    for (const round of [0, 1]) {
      expect(ask(rig, read, 0x6000, 1), `${round}`).toMatchObject({ code: 0x81 });
      expect(ask(rig, read | privileged, 0x6000, 1).ok).toBe(true);
      expect(ask(rig, write | privileged, 0x6000, 1)).toMatchObject({ code: 0x85 });
      expect(ask(rig, write | privileged, 0x6000, 2).ok).toBe(true);
      expect(ask(rig, read | execute | privileged, IOVA, 1)).toMatchObject({ code: 0x82 });
      expect(ask(rig, read | execute, IOVA, 1).ok).toBe(true);
    }
  });

  it("sets accessed and dirty bits of both stages, EA when asked, also after a read was remembered", () => {
    const rig = started(Pgtt.nested);
    const { first, second } = rig.tablesOf(RID);
    rig.mapPage(second, 4, 0x2_0000_0000, PA, 12, 3);
    rig.mapFirst(first, 0x7000, 0x2_0000_0000, 12, 3);
    rig.pasid(RID, 0, { PGTT: Pgtt.nested, FSPTPTR: first, SSPTPTR: second, SSADE: true, EAFE: true });
    const leaf = () => rig.load64(rig.entryAddress(first, 4, 0x7000, 12)) & 0xfffn;
    const lower = () => rig.load64(rig.entryAddress(second, 4, 0x2_0000_0000, 12)) & 0xfffn;
    expect(ask(rig, Access.read, 0x7000).ok).toBe(true);
    expect([leaf(), lower()]).toEqual([0x427n, 0x103n]);
    expect(ask(rig, Access.write, 0x7000).ok).toBe(true);
    expect([leaf(), lower()]).toEqual([0x467n, 0x303n]);
  });
});

describe("§7.1.3 fault reasons in scalable mode", () => {
  type Break = (rig: ScalableRig) => void;
  const entryOf = (rig: ScalableRig) => rig.pasidAddress(RID, 0);
  const half = (rig: ScalableRig, iova = IOVA, lg2 = 12) =>
    rig.entryAddress(rig.tablesOf(RID).first, 4, iova, lg2);
  const or = (rig: ScalableRig, pa: number, bits: bigint) => rig.store64(pa, rig.load64(pa) | bits);
  const gone = 0x9000_0001n;
  const rootEntry = (rig: ScalableRig) => rig.root;
  /** Makes the second stage deny a guest page. */
  const deny = (rig: ScalableRig, guest: number, access: number) => {
    const { second } = rig.tablesOf(RID);
    const large = rig.entryAddress(second, 4, guest, 30);
    rig.store64(large, 0n);
    for (let at = guest - (guest % 2 ** 21); at < guest - (guest % 2 ** 21) + 2 ** 21; at += 4096)
      rig.mapPage(second, 4, at, at, 12, at === guest - (guest % 4096) ? access : 3);
    for (
      let at = Math.floor(guest / 2 ** 30) * 2 ** 30;
      at < Math.ceil((guest + 1) / 2 ** 30) * 2 ** 30;
      at += 2 ** 21
    )
      if (at !== guest - (guest % 2 ** 21)) rig.mapPage(second, 4, at, at, 21, 3);
  };
  const cases: [code: number, pgtt: number, what: Break, access?: number, iova?: number, pasid?: number][] = [
    [0x38, Pgtt.first, (rig) => rig.write(Register.RTADDR, 0x9000_0400n, 8)],
    [0x39, Pgtt.first, (rig) => rig.store64(rootEntry(rig), 0n)],
    [0x3a, Pgtt.first, (rig) => or(rig, rootEntry(rig), 2n)],
    [0x40, Pgtt.first, (rig) => rig.store64(rootEntry(rig), gone)],
    [0x41, Pgtt.first, (rig) => rig.store64(rig.contextAddress(RID), 0n)],
    [0x42, Pgtt.first, (rig) => or(rig, rig.contextAddress(RID), 0x20n)],
    [0x45, Pgtt.first, (rig) => rig.scalableContext(RID, { PASIDE: false }), Access.read, IOVA, 3],
    [0x46, Pgtt.first, (rig) => rig.scalableContext(RID, { PDTS: 0 }), Access.read, IOVA, 0x2000],
    [0x48, Pgtt.first, (rig) => rig.scalableContext(RID, { PDTS: 0, RID_PASID: 0x2000 })],
    [0x50, Pgtt.first, (rig) => rig.scalableContext(RID, { PASIDDIRPTR: 0x9000_0000 })],
    [0x51, Pgtt.first, () => {}, Access.read, IOVA, 0x1000],
    [0x58, Pgtt.first, (rig) => rig.store64(directoryOf(rig), gone)],
    [0x52, Pgtt.first, (rig) => or(rig, directoryOf(rig), 4n)],
    [0x59, Pgtt.first, (rig) => rig.store64(entryOf(rig), 0n)],
    [0x5a, Pgtt.first, (rig) => or(rig, entryOf(rig) + 24, 1n)],
    [0x5a, Pgtt.second, (rig) => or(rig, entryOf(rig), 1n << 45n)],
    [0x5b, Pgtt.first, (rig) => or(rig, entryOf(rig), 0x140n)],
    [0x5b, Pgtt.first, (rig) => or(rig, entryOf(rig) + 16, 8n)],
    [0x5b, Pgtt.second, (rig) => or(rig, entryOf(rig), 0x10n)],
    [0x5c, Pgtt.first, () => {}, Access.read | Access.execute],
    [0x5d, Pgtt.first, (rig) => rig.scalableContext(RID, { RID_PRIV: true })],
    [0x70, Pgtt.first, (rig) => rig.store64(half(rig, IOVA, 30), gone | 6n)],
    [0x71, Pgtt.first, (rig) => rig.store64(half(rig), 0n)],
    [0x72, Pgtt.first, (rig) => or(rig, half(rig), 1n << 45n)],
    [0x73, Pgtt.first, (rig) => rig.pasid(RID, 0, { PGTT: Pgtt.first, FSPTPTR: 0x9000_0000 })],
    [0x74, Pgtt.nested, (rig) => nestedOver39(rig)],
    [0x75, Pgtt.nested, (rig) => deny(rig, rig.tablesOf(RID).first, 0)],
    [0x76, Pgtt.nested, (rig) => deny(rig, half(rig), 0)],
    [0x77, Pgtt.nested, (rig) => deny(rig, half(rig), 1)],
    [
      0x78,
      Pgtt.second,
      (rig) => rig.store64(rig.entryAddress(rig.tablesOf(RID).second, 4, IOVA, 30), gone | 2n),
    ],
    [0x79, Pgtt.second, (rig) => rig.map(RID, IOVA, PA, 12, 1), Access.write],
    [0x79, Pgtt.nested, (rig) => deny(rig, PA, 0)],
    [0x7a, Pgtt.second, (rig) => or(rig, rig.entryAddress(rig.tablesOf(RID).second, 4, IOVA, 12), 1n << 45n)],
    [0x7b, Pgtt.second, (rig) => rig.pasid(RID, 0, { PGTT: Pgtt.second, SSPTPTR: 0x9000_0000 })],
    [0x80, Pgtt.first, () => {}, Access.read, 2 ** 50],
    [0x81, Pgtt.first, (rig) => rig.mapFirst(rig.tablesOf(RID).first, IOVA, PA, 12, 3, false)],
    [0x83, Pgtt.first, (rig) => rig.pasid(RID, 0, { PGTT: Pgtt.passThrough }), Access.read, 2 ** 57],
    [0x84, Pgtt.second, () => {}, Access.read, 2 ** 48],
    [0x84, Pgtt.nested, (rig) => beyond39(rig)],
    [0x85, Pgtt.first, (rig) => rig.map(RID, IOVA, PA, 12, 1), Access.write],
    [0x87, Pgtt.first, (rig) => rig.map(RID, IOVA, 0xfee0_0000, 12, 3)],
  ];
  const directoryOf = (rig: ScalableRig) => Number(rig.load64(rig.contextAddress(RID)) & ~0xfffn);
  /** A page at a guest address that a second stage of 3 levels does not translate. */
  const beyond39 = (rig: ScalableRig) => {
    const { first, second } = rig.tablesOf(RID);
    rig.mapFirst(first, IOVA, 2 ** 39, 12, 3);
    const three = Number(rig.load64(second) & ~0xfffn);
    rig.pasid(RID, 0, { PGTT: Pgtt.nested, AW: 1, SSPTPTR: three, FSPTPTR: first });
  };
  const nestedOver39 = (rig: ScalableRig) => {
    const { second } = rig.tablesOf(RID);
    rig.pasid(RID, 0, { PGTT: Pgtt.nested, AW: 1, SSPTPTR: second, FSPTPTR: 2 ** 39 });
  };

  it.each(cases)("%xh", (code, pgtt, change, access = Access.read, iova = IOVA, pasid = NO_PASID) => {
    for (const cache of ["normal", "none"] as const) {
      const rig = new ScalableRig({ pgtt, cache });
      rig.map(RID, IOVA, PA, 12, readWrite);
      rig.enable();
      change(rig);
      rig.command(1 << 30);
      expect(ask(rig, access, iova, pasid)).toMatchObject({ ok: false, code });
      const record = (rig.read(0x408, 8) << 64n) | rig.read(0x400, 8);
      expect(FaultRecording.fields.FR.of(record)).toBe(BigInt(code));
    }
  });

  it("30h and 33h: translation table modes that translate nothing", () => {
    for (const [mode, code] of [
      [2, 0x30],
      [3, 0x33],
    ] as const) {
      const rig = started(Pgtt.first);
      rig.write(Register.RTADDR, RtaddrRegister.make({ RTA: rig.root, TTM: mode }), 8);
      rig.command(1 << 30);
      expect(ask(rig)).toMatchObject({ ok: false, code });
    }
  });

  it("FPD does not keep from being recorded that an entry of PASIDs cannot be read", () => {
    for (const code of [0x50, 0x58]) {
      const rig = new ScalableRig();
      rig.scalableContext(RID, { FPD: true });
      const entry = rig.pasidAddress(RID, 0);
      const context = rig.load64(rig.contextAddress(RID));
      const directory = Number(context & 0xf_ffff_ffff_f000n);
      rig.memory.poison(code === 0x50 ? directory : entry, 8);
      rig.enable();
      expect(ask(rig)).toMatchObject({ ok: false, code });
      expect(Number(rig.read(Register.FSTS)) & Fsts.PPF).toBe(Fsts.PPF);
    }
  });

  it("FPD of any entry on the way keeps a qualified fault from being recorded", () => {
    for (const where of ["context", "pasid"] as const) {
      const rig = new ScalableRig();
      rig.scalableContext(RID, { FPD: where === "context" });
      rig.pasid(RID, 0, { P: false, FPD: where === "pasid" });
      rig.enable();
      expect(ask(rig)).toMatchObject({ ok: false, code: 0x59 });
      expect(rig.read(Register.FSTS)).toBe(0n);
    }
  });

  it("what the unit does not have is reserved", () => {
    for (const [missing, field] of [
      ["secondStageAccessedDirty", "SSADE"],
      ["pageWalkCoherency", "PWSNP"],
      ["memoryTypes", "PAT"],
      ["memoryTypes", "EMTE"],
      ["supervisorRequests", "SRE"],
      ["extendedAccessed", "EAFE"],
    ] as const) {
      const scalable = { ...everything, [missing]: false };
      const rig = new ScalableRig({ capabilities: { scalable } });
      rig.pasid(RID, 0, { PGTT: Pgtt.passThrough, [field]: 1 });
      rig.enable();
      expect(ask(rig), field).toMatchObject({ code: 0x5a });
      const full = new ScalableRig();
      full.pasid(RID, 0, { PGTT: Pgtt.passThrough, [field]: 1 });
      full.enable();
      expect(ask(full).ok, field).toBe(true);
    }
  });
});

const pasidIotlb = (values: Parameters<typeof PasidIotlbInvalidate.make>[0]) =>
  PasidIotlbInvalidate.make({ TYPE: DescriptorType.pasidIotlb, ...values });
const pasidCache = (values: Parameters<typeof PasidCacheInvalidate.make>[0]) =>
  PasidCacheInvalidate.make({ TYPE: DescriptorType.pasidCache, ...values });

// A device may see any state the tables had since the last command that invalidates what it uses.

const PAGES = 5;
const DOMAINS = 2;

/** Random changes of first stage, second stage and PASID entries, commands, and accesses; how many answers were stale. */
const history = (pgtt: number, cache: CachePolicy, seed: number): number => {
  const rig = new ScalableRig({ pgtt, cache, seed, iotlbEntries: 16 });
  const random = new Random(seed);
  const nested = pgtt === Pgtt.nested;
  const guest = (page: number) => 0x6000_0000 + page * 0x1000;
  const stages = Array.from({ length: DOMAINS }, () => {
    const [first, second] = [rig.memory.allocate(1), rig.memory.allocate(1)];
    rig.mapPage(second, 4, 0, 0, 30, 3);
    return { first, second };
  });
  const entry = (domain: number) => {
    const { first, second } = stages[domain]!;
    rig.pasid(RID, 3, {
      PGTT: pgtt,
      DID: domain + 1,
      FSPTPTR: first,
      SSPTPTR: second,
      SSADE: random.below(2),
    });
  };
  const sets = () => Array.from({ length: DOMAINS }, () => Array.from({ length: PAGES }, () => new Set([0])));
  const seen = { leaves: sets(), guests: sets(), domains: new Set([0]) };
  const now = {
    leaves: Array.from({ length: DOMAINS }, () => new Array<number>(PAGES).fill(0)),
    guests: Array.from({ length: DOMAINS }, () => new Array<number>(PAGES).fill(0)),
    domain: 0,
  };
  entry(0);
  rig.enable();
  rig.enableQueue(2);
  /** What a page may be seen as: through any leaf it had, and for guest pages any place these had. */
  const through = (domain: number, leaf: number, current: boolean): number[] => {
    if (leaf === 0 || !nested) return [leaf];
    const which = (leaf - guest(0)) / 0x1000;
    return current ? [now.guests[domain]![which]!] : [...seen.guests[domain]![which]!];
  };
  const settle = (kind: "leaves" | "guests", domain: number, page: number) => {
    seen[kind][domain]![page] = new Set([now[kind][domain]![page]!]);
  };
  const settleAll = (kind: "leaves" | "guests", domain: number) => {
    for (let page = 0; page < PAGES; page++) settle(kind, domain, page);
  };
  let stale = 0;
  for (let step = 0; step < 220; step++) {
    const domain = random.below(DOMAINS);
    const page = random.below(PAGES);
    const { first, second } = stages[domain]!;
    switch (random.below(12)) {
      case 0:
      case 1: {
        const target = nested ? guest(random.below(PAGES)) : 0x40_0000 + random.below(64) * 0x1000;
        const value = random.below(3) ? target : 0;
        if (pgtt === Pgtt.second)
          rig.mapPage(second, 4, 0x7000_0000 + page * 0x1000, value, 12, value ? 3 : 0);
        else rig.mapFirst(first, 0x7000_0000 + page * 0x1000, value, 12, value ? 3 : 0);
        now.leaves[domain]![page] = value;
        seen.leaves[domain]![page]!.add(value);
        break;
      }
      case 2: {
        if (!nested) break;
        const value = random.below(3) ? 0x80_0000 + random.below(64) * 0x1000 : 0;
        rig.mapPage(second, 4, guest(page), value, 12, value ? 3 : 0);
        now.guests[domain]![page] = value;
        seen.guests[domain]![page]!.add(value);
        break;
      }
      case 3:
        if (random.below(2)) break;
        entry(domain);
        now.domain = domain;
        seen.domains.add(domain);
        break;
      case 4: {
        const mask = random.below(3);
        const paged = random.below(2) === 0 && pgtt !== Pgtt.second;
        const ids = { DID: domain + 1, PASID: 3 };
        if (pgtt === Pgtt.second)
          rig.submit(iotlb({ G: 3, DID: domain + 1, AM: mask, ADDR: 0x7000_0000 + page * 0x1000 }));
        else
          rig.submit(
            pasidIotlb(
              paged ? { G: 3, ...ids, AM: mask, ADDR: 0x7000_0000 + page * 0x1000 } : { G: 2, ...ids },
            ),
          );
        for (let p = 0; p < PAGES; p++)
          if ((!paged && pgtt !== Pgtt.second) || p >> mask === page >> mask) settle("leaves", domain, p);
        break;
      }
      case 5: {
        if (!nested) break;
        const mask = random.below(3);
        rig.submit(iotlb({ G: 3, DID: domain + 1, AM: mask, ADDR: guest(page) }));
        for (let p = 0; p < PAGES; p++) if (p >> mask === page >> mask) settle("guests", domain, p);
        break;
      }
      case 6: {
        const global = random.below(2) === 0;
        rig.submit(iotlb(global ? { G: 1 } : { G: 2, DID: domain + 1 }));
        for (let d = 0; d < DOMAINS; d++) {
          if (!global && d !== domain) continue;
          settleAll("leaves", d);
          settleAll("guests", d);
        }
        break;
      }
      case 7: {
        const how = random.below(3);
        // An entry that may be remembered with either domain has to be forgotten with both.
        if (how === 0) rig.submit(pasidCache({ G: 3 }));
        else
          for (const DID of [1, 2])
            rig.submit(pasidCache(how === 1 ? { G: 1, DID, PASID: 3 } : { G: 0, DID }));
        seen.domains = new Set([now.domain]);
        break;
      }
      default: {
        const transaction = request(
          RID,
          0x7000_0010 + page * 0x1000,
          random.below(2) ? Access.read : Access.write,
        );
        transaction.pasid = 3;
        // A paranoid unit may forget between explaining and answering.
        if (cache !== "paranoid") ask(rig, transaction.access, 0x7000_0010 + page * 0x1000, 3);
        else answer(rig.unit, transaction);
        rig.unit.translate(transaction);
        const pa = transaction.pa === 0 ? 0 : transaction.pa - 0x10;
        const legal = new Set<number>();
        for (const d of seen.domains)
          for (const leaf of seen.leaves[d]![page]!)
            for (const place of through(d, leaf, false)) legal.add(place);
        expect([...legal]).toContain(pa);
        const [current] = through(now.domain, now.leaves[now.domain]![page]!, true);
        if (cache === "none") expect(pa).toBe(current);
        if (pa !== current) stale += 1;
      }
    }
  }
  return stale;
};

describe("§6.2, §6.5 any order of changes, commands and accesses in scalable mode", () => {
  const kinds = [
    ["first stage", Pgtt.first],
    ["second stage", Pgtt.second],
    ["nested", Pgtt.nested],
  ] as const;
  it.each(
    kinds.flatMap(([name, pgtt]) =>
      (["normal", "paranoid", "none"] as const).map((c) => [name, c, pgtt] as const),
    ),
  )(
    "%s, cache %s: only what was valid since the last sufficient invalidation is answered",
    (_, cache, pgtt) => {
      fc.assert(
        fc.property(fc.nat(), (seed) => void history(pgtt, cache, seed)),
        { numRuns: 25 },
      );
    },
  );

  it("a caching unit does answer stale translations in such histories", () => {
    for (const [, pgtt] of kinds) {
      let stale = 0;
      for (let seed = 0; seed < 12; seed++) stale += history(pgtt, "normal", seed);
      expect(stale).toBeGreaterThan(20);
    }
  });
});

describe("§6.5.2 descriptors of scalable mode", () => {
  const wide = (rig: ScalableRig, ...halves: bigint[]) => {
    rig.write(Register.IQT, 0, 8);
    rig.queue = rig.memory.allocate(1);
    rig.write(Register.IQA, BigInt(rig.queue) | 0x800n, 8);
    rig.command(1 << 26);
    for (const [at, half] of halves.entries()) rig.store128(rig.queue + at * 16, half);
    rig.write(Register.IQT, halves.length * 16, 8);
  };
  const fsts = (rig: ScalableRig) => Number(rig.read(Register.FSTS));

  it("are 256 bits wide when IQA.DW says so; their upper half is reserved, and a tail between two is an error", () => {
    const build = () => {
      const rig = new ScalableRig();
      rig.enable();
      return { rig, status: rig.memory.allocate(1) };
    };
    const good = build();
    wide(good.rig, pasidCache({ G: 3 }), 0n, wait({ SW: true, STATUS: 7, ADDR: good.status }), 0n);
    expect([fsts(good.rig), good.rig.load64(good.status)]).toEqual([0, 7n]);
    const upper = build();
    wide(upper.rig, pasidCache({ G: 3 }), 1n);
    expect([fsts(upper.rig), upper.rig.head]).toEqual([Fsts.IQE, 0]);
    const between = build();
    wide(between.rig, pasidCache({ G: 3 }));
    expect(fsts(between.rig)).toBe(Fsts.IQE);
  });

  it("with reserved granularities, address masks or response codes stop the queue", () => {
    const response = PageGroupResponse.make({ TYPE: DescriptorType.pageGroupResponse, RC: 2 });
    for (const bad of [
      pasidCache({ G: 2 }),
      pasidIotlb({ G: 0 }),
      pasidIotlb({ G: 1 }),
      pasidIotlb({ G: 3, AM: 50 }),
      response,
    ]) {
      const rig = started(Pgtt.first);
      rig.submit(bad);
      expect(fsts(rig)).toBe(Fsts.IQE);
    }
  });

  it("table 26: are of no valid width with 128 bits, whatever they are", () => {
    const rig = started(Pgtt.first, { capabilities: { version: { major: 5, minor: 0 } } });
    rig.write(Register.IQA, rig.queue, 8);
    rig.submit(iotlb({ G: 1 }));
    expect([fsts(rig), rig.head]).toEqual([Fsts.IQE, 0]);
    expect(rig.read(Register.IQERCD, 8)).toBe(5n);
  });

  it("table 26: those of PASIDs are of no valid type in legacy mode; the others are there", () => {
    const rig = new ScalableRig({ capabilities: { version: { major: 5, minor: 0 } } });
    rig.enableQueue();
    rig.submit(iotlb({ G: 1 }), pasidCache({ G: 3 }));
    expect([fsts(rig), rig.head]).toEqual([Fsts.IQE, 32]);
    expect(rig.read(Register.IQERCD, 8)).toBe(3n);
  });

  it("table 26: there are none in a mode that is reserved", () => {
    const rig = new ScalableRig({ capabilities: { version: { major: 5, minor: 0 } } });
    rig.write(Register.RTADDR, RtaddrRegister.make({ TTM: Ttm.reserved }), 8);
    rig.command(Gcmd.SRTP);
    rig.enableQueue();
    rig.submit(iotlb({ G: 1 }));
    expect([fsts(rig), rig.read(Register.IQERCD, 8)]).toEqual([Fsts.IQE, 7n]);
  });

  it("of all of a PASID look neither at addresses nor at hints", () => {
    const rig = started(Pgtt.first);
    rig.submit(pasidIotlb({ G: 2, AM: 50, IH: true, ADDR: 0x5000 }));
    expect([fsts(rig), rig.head]).toEqual([0, 32]);
  });

  it("table 24: of all of a PASID take away what a second stage alone translated", () => {
    const rig = started(Pgtt.second);
    expect(ask(rig, Access.read)).toMatchObject({ ok: true, pa: PA });
    rig.map(RID, IOVA, PA + 0x1000, 12, readWrite);
    rig.submit(pasidIotlb({ G: 3, DID: 1, ADDR: IOVA }));
    expect(ask(rig)).toMatchObject({ pa: PA });
    rig.submit(pasidIotlb({ G: 2, DID: 1 }));
    expect(ask(rig)).toMatchObject({ pa: PA + 0x1000 });
  });

  it("§11.4.7, §11.4.8 the registers for invalidations do nothing, and say so", () => {
    const rig = new ScalableRig({ pgtt: Pgtt.second });
    rig.map(RID, IOVA, PA, 12, readWrite);
    rig.enable();
    expect(ask(rig, Access.read)).toMatchObject({ pa: PA });
    rig.map(RID, IOVA, PA + 0x1000, 12, readWrite);
    rig.write(Register.CCMD, CcmdRegister.make({ ICC: true, CIRG: 1 }), 8);
    const at = rig.unit.capabilities.iotlbOffset + 8;
    rig.write(at, IotlbRegister.make({ IVT: true, IIRG: 1 }), 8);
    expect(CcmdRegister.fields.CAIG.of(rig.read(Register.CCMD, 8))).toBe(0n);
    expect(IotlbRegister.fields.IAIG.of(rig.read(at, 8))).toBe(0n);
    expect(ask(rig, Access.read)).toMatchObject({ pa: PA });
  });

  it("are of no valid type without what they are for", () => {
    const rig = new ScalableRig({ capabilities: { deviceTlb: false, scalable: { firstStage: true } } });
    rig.enable();
    rig.enableQueue();
    rig.submit(PageGroupResponse.make({ TYPE: DescriptorType.pageGroupResponse }));
    expect(fsts(rig)).toBe(Fsts.IQE);
  });

  it("PASID-based device-TLB invalidation asks the device for its PASID, or every one", () => {
    const rig = started(Pgtt.first);
    const asked: DeviceTlbInvalidation[] = [];
    rig.unit.invalidateDeviceTlb = (what) => {
      asked.push(what);
      return "done";
    };
    const common = { TYPE: DescriptorType.pasidDeviceTlb, SID: RID, PASID: 5 };
    rig.submit(
      PasidDeviceTlbInvalidate.make({ ...common, ADDR: 0x5000 }),
      PasidDeviceTlbInvalidate.make({ ...common, G: true, S: true, ADDR: 0x7fff_ffff_ffff_f000n }),
    );
    expect(asked).toEqual([
      { rid: RID, pasid: 5, global: false, lo: 0x5000, hi: 0, lg2: 12 },
      { rid: RID, pasid: 5, global: true, lo: 0, hi: 0, lg2: 64 },
    ]);
  });
});

describe("§4.2 address translation services", () => {
  const translation = (rig: ScalableRig, access: number, iova = IOVA) => {
    const transaction = request(RID, iova, access);
    const status = rig.unit.requestTranslation(transaction);
    return { ...transaction, status };
  };

  it("answers what may be done with the page; what is not there is granted nothing, without a record", () => {
    const rig = started(Pgtt.first);
    const { status, pa, span, granted } = translation(rig, readWrite);
    expect({ status, pa, span }).toEqual({ status: TranslateStatus.ok, pa: PA, span: 4096 });
    expect(granted & readWrite).toBe(readWrite);
    rig.map(RID, 0x6000, PA, 12, Access.read);
    expect(translation(rig, readWrite, 0x6000).granted & readWrite).toBe(Access.read);
    expect(translation(rig, Access.read, 0x9000)).toMatchObject({ status: TranslateStatus.ok, granted: 0 });
    expect(rig.read(Register.FSTS)).toBe(0n);
  });

  it("grants writing only when the dirty bit is set", () => {
    const rig = started(Pgtt.first);
    expect(translation(rig, Access.read).granted & readWrite).toBe(Access.read);
    expect(translation(rig, readWrite).granted & readWrite).toBe(readWrite);
    expect(translation(rig, Access.read).granted & readWrite).toBe(readWrite);
  });

  it("is for functions with DTE only; a translated request passes for these", () => {
    const rig = started(Pgtt.first);
    const transaction = request(RID, 0x1234_5000, Access.write);
    transaction.translated = true;
    expect(explained(rig.unit, transaction)).toMatchObject({ pa: 0x1234_5000 });
    expect(answer(rig.unit, transaction)).toMatchObject({ pa: 0x1234_5000 });
    rig.scalableContext(RID, { DTE: false });
    rig.command(1 << 30);
    expect(translation(rig, Access.read)).toMatchObject({ status: TranslateStatus.fault, fault: 0x44 });
    expect(explained(rig.unit, transaction)).toEqual({ ok: false, code: 0x44 });
    expect(answer(rig.unit, transaction)).toEqual({ ok: false, code: 0x44 });
  });
});

describe("§7.4 page requests", () => {
  const asking = () => {
    const rig = started(Pgtt.first);
    const responses: number[][] = [];
    rig.unit.onPageResponse = (...what) => responses.push(what);
    const queue = rig.memory.allocate(1);
    rig.write(Register.PQA, queue, 8);
    rig.write(Register.PEADDR, 0xfee0_1000);
    rig.write(Register.PEDATA, 0x77);
    rig.write(Register.PECTL, 0);
    const page = (group: number, last = true, pasid = 5) =>
      rig.unit.requestPage({ rid: RID, pasid, lo: 0x5000, hi: 1, access: readWrite, group, last });
    return { rig, responses, queue, page };
  };

  it("are written to the queue, told by one interrupt until PRS is cleared, and answered by a descriptor", () => {
    const { rig, responses, queue, page } = asking();
    page(9, false);
    page(9);
    const written = (rig.load64(queue + 40) << 64n) | rig.load64(queue + 32);
    const { TYPE, PP, RID: rid, PASID, RD, WR, LPIG, PRGI, ADDR } = PageRequestDescriptor.fields;
    expect([TYPE, PP, rid, PASID, RD, WR, LPIG, PRGI, ADDR].map((field) => field.of(written))).toEqual([
      1n,
      1n,
      BigInt(RID),
      5n,
      1n,
      1n,
      1n,
      9n,
      0x1_0000_5000n,
    ]);
    expect([rig.read(Register.PQT, 8), rig.read(Register.PRS)]).toEqual([64n, BigInt(Prs.PPR)]);
    expect(rig.messages).toEqual([{ address: 0xfee0_1000n, data: 0x77 }]);
    rig.write(Register.PRS, Prs.PPR);
    page(10);
    expect(rig.messages.length).toBe(2);
    expect(responses).toEqual([]);
    const common = { TYPE: DescriptorType.pageGroupResponse, SID: RID, PP: true, PASID: 5 };
    const response = { ...common, PRGI: 9, RC: 1, IGN: 3 };
    rig.submit(PageGroupResponse.make(response));
    expect(responses).toEqual([[RID, 5, 9, 1]]);
  });

  it("that find the queue full set PRO and are answered at the end of their group, until PRO is cleared", () => {
    const { rig, responses, page } = asking();
    for (let at = 0; at < 127; at++) page(at, false);
    expect(Number(rig.read(Register.PRS))).toBe(Prs.PPR);
    page(1, false);
    page(1);
    expect(Number(rig.read(Register.PRS))).toBe(Prs.PPR | Prs.PRO);
    expect(responses).toEqual([[RID, 5, 1, 0]]);
    rig.write(Register.PQH, 32, 8);
    page(2);
    expect(responses.length).toBe(2);
    rig.write(Register.PRS, Prs.PRO);
    page(3);
    expect(responses.length).toBe(2);
    expect(rig.read(Register.PQT, 8)).toBe(0n);
  });

  it("of a function without PRE, or in legacy mode, are faults and invalid", () => {
    const { rig, responses, page } = asking();
    rig.scalableContext(RID, { PRE: false });
    rig.command(1 << 30);
    page(4);
    rig.write(Register.RTADDR, rig.root, 8);
    rig.command(1 << 30);
    rig.write(0x40c, 0x8000_0000);
    page(5);
    expect(responses).toEqual([
      [RID, 5, 4, 1],
      [RID, 5, 5, 1],
    ]);
    const codes = [0x408, 0x418].map((at) => FaultRecording.fields.FR.of(rig.read(at, 8) << 64n));
    expect(codes).toEqual([0x47n, 0x32n]);
  });
});
