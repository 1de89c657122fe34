import { describe, expect, it } from "vitest";
import { access, requestOf } from "../unit.suite.ts";
import { Access, TranslateStatus } from "../unit.ts";
import { EventCode, Opcode, ResumeCommand } from "./queue-spec.ts";
import { type CdFields, type RigOptions, readWrite, SmmuRig, type SteFields, tlbi } from "./rig.suite.ts";
import { Config, Cr0, Cr2, Gerror, Register } from "./spec.ts";

const RID = 0x18;
const { read, write, execute, privileged } = Access;

/** A stream whose context is of these fields, enabled. */
const withContext = (cd: CdFields, ste: SteFields = {}, options: RigOptions = {}) => {
  const rig = new SmmuRig(options);
  const at = rig.memory.allocate(1);
  const table = rig.table();
  rig.cd(at, { ASID: 1, TTB0: table, ...cd });
  rig.ste(RID, { CONFIG: Config.stage1, S1CONTEXTPTR: at, ...ste });
  rig.enable();
  return { rig, table, at };
};
const event = (rig: SmmuRig, iova: number | bigint, what: number = read, pasid = -1) => {
  const { ok } = access(rig, RID, iova, what, pasid);
  return [ok, ...rig.takeEvents()] as const;
};
const told = (rig: SmmuRig, iova: number | bigint, what: number = read, pasid = -1) =>
  event(rig, iova, what, pasid)[1];

describe("§7.3 event records", () => {
  it("of stage 1: the address, read or write, privilege, instruction, the substream", () => {
    const { rig } = withContext({});
    const common = { TYPE: 0x10n, SID: BigInt(RID), CLASS: 2n };
    expect(told(rig, 0x5010)).toEqual({ ...common, RNW: 1n, ADDRESS: 0x5010n });
    expect(told(rig, 0x5010, write)).toEqual({ ...common, ADDRESS: 0x5010n });
    expect(told(rig, 0x5010, read | privileged)).toMatchObject({ PNU: 1n });
    expect(told(rig, 0x5010, execute)).toMatchObject({ IND: 1n, RNW: 1n });
    expect(told(rig, 0xff00_0000_0000_1234n, write)).toMatchObject({
      TYPE: 0x10n,
      ADDRESS: 0xff00_0000_0000_1234n,
    });
    expect(told(rig, 0x5010, read, 3)).toEqual({ TYPE: 8n, SID: BigInt(RID), SSID: 3n });
  });

  it("STE.PRIVCFG and INSTCFG override what comes in", () => {
    const { rig } = withContext({}, { PRIVCFG: 3, INSTCFG: 3 });
    expect(told(rig, 0)).toMatchObject({ PNU: 1n, IND: 1n });
    expect(told(rig, 0, write)).not.toHaveProperty("IND");
    const other = withContext({}, { PRIVCFG: 2, INSTCFG: 2 });
    expect(told(other.rig, 0, execute | privileged)).toEqual({
      TYPE: 0x10n,
      SID: BigInt(RID),
      CLASS: 2n,
      RNW: 1n,
    });
  });

  it("of each kind: access flag, permission, address size, a table that cannot be read", () => {
    const { rig, table } = withContext({});
    const leaf = (value: bigint) => rig.store64(rig.entryAddress(table, 0x5000, 12), value);
    leaf(rig.leaf1(0x40_0000, 12, 3) & ~0x400n);
    expect(told(rig, 0x5000)).toMatchObject({ TYPE: BigInt(EventCode.F_ACCESS) });
    leaf(rig.leaf1(0x40_0000, 12, 1));
    expect(told(rig, 0x5000, write)).toMatchObject({ TYPE: BigInt(EventCode.F_PERMISSION) });
    leaf(rig.leaf1(0x40_0000, 12, 3) | (1n << 45n));
    expect(told(rig, 0x5000, write)).toMatchObject({ TYPE: BigInt(EventCode.F_ADDR_SIZE), CLASS: 2n });
    rig.store64(rig.entryAddress(table, 0, 21), 0xf_0000_0003n);
    expect(told(rig, 0x5000)).toMatchObject({
      TYPE: BigInt(EventCode.F_WALK_EABT),
      CLASS: 1n,
      RNW: 1n,
      ADDRESS: 0x5000n,
      FETCH: 0xf_0000_0028n,
    });
  });

  it("of stage 2: the IPA, of the access, of a table, of a context descriptor", () => {
    const rig = new SmmuRig({ stages: "nested" });
    const { stage1, stage2 } = rig.stream(RID);
    const page = 0x40_0000_0000;
    rig.map(RID, 0x5000, page, 12, readWrite);
    rig.enable();
    const s2 = { TYPE: 0x10n, SID: BigInt(RID), S2: 1n, ADDRESS: 0x5678n };
    expect(told(rig, 0x5678, write)).toEqual({ ...s2, CLASS: 2n, FETCH: 0x40_0000_0000n });
    rig.store64(stage1, BigInt(page + 0x7000) | 3n);
    expect(told(rig, 0x5678, write)).toEqual({ ...s2, CLASS: 1n, RNW: 1n, FETCH: 0x40_0000_7000n });
    rig.ste(RID + 1, { CONFIG: Config.nested, S1CONTEXTPTR: page, ...rig.stage2Fields(stage2, 9) });
    access(rig, RID + 1, 0x5678, write);
    const [descriptor] = rig.takeEvents();
    expect(descriptor).toEqual({ ...s2, SID: BigInt(RID + 1), RNW: 1n, FETCH: 0x40_0000_0000n });
  });

  it("of configuration: no stream, no entry, entry and descriptor that cannot be read or are not valid", () => {
    const { rig, at } = withContext({});
    const typeOf = (rid: number) => {
      access(rig, rid, 0);
      return rig.takeEvents()[0];
    };
    expect(typeOf(0x1_0000)).toEqual({ TYPE: 2n, SID: 0x1_0000n });
    expect(typeOf(0x77)).toEqual({ TYPE: 4n, SID: 0x77n });
    rig.cd(at, { V: false });
    expect(typeOf(RID)).toEqual({ TYPE: 10n, SID: BigInt(RID) });
    rig.ste(0x20, { CONFIG: Config.stage1, S1CONTEXTPTR: 0xf_0000_0040n });
    expect(typeOf(0x20)).toEqual({ TYPE: 9n, SID: 0x20n, FETCH: 0xf_0000_0040n });
    rig.write(Register.CR0, 0);
    rig.write(Register.STRTAB_BASE, 0xf_0000_0000n, 8);
    rig.enable = () => rig.write(Register.CR0, Cr0.SMMUEN | Cr0.EVENTQEN);
    rig.enable();
    expect(typeOf(0x21)).toEqual({ TYPE: 3n, SID: 0x21n, FETCH: 0xf_0000_0840n });
  });

  it("streams without an entry are recorded as CR2.RECINVSID says", () => {
    const rig = new SmmuRig();
    rig.write(Register.CR2, 0);
    rig.enable();
    access(rig, 0x1_0000, 0);
    expect(rig.takeEvents()).toEqual([]);
    expect(Number(new SmmuRig().read(Register.CR2)) & Cr2.RECINVSID).toBe(Cr2.RECINVSID);
  });

  it("CD.R = 0 and STE.S2R = 0 keep faults of their stage from being recorded, and nothing else", () => {
    const { rig, table } = withContext({ R: false });
    expect(event(rig, 0x5000)).toEqual([false]);
    rig.store64(rig.entryAddress(table, 0, 21), 0xf_0000_0003n);
    expect(told(rig, 0x5000)).toMatchObject({ TYPE: BigInt(EventCode.F_WALK_EABT) });
    const other = new SmmuRig({ stages: "stage2" });
    other.ste(RID, { CONFIG: Config.stage2, ...other.stage2Fields(other.table(), 1), S2R: false });
    other.enable();
    expect(event(other, 0x5000)).toEqual([false]);
  });

  it("an aborting stream, and GBPA.ABORT, refuse without an event", () => {
    const rig = new SmmuRig();
    rig.ste(RID, { CONFIG: 1 });
    rig.enable();
    expect(event(rig, 0x5000)).toEqual([false]);
    const off = new SmmuRig();
    off.write(Register.GBPA, 0x8010_0000);
    expect(event(off, 0x5000)).toEqual([false]);
  });
});

describe("§7.4 the event queue", () => {
  it("that is full loses events, says so once, and goes on when there is room", () => {
    const { rig } = withContext({});
    for (let i = 0; i < 20; i++) access(rig, RID, i * 0x1000);
    expect(rig.read(Register.EVENTQ_PROD)).toBe(0x8000_0010n);
    expect(rig.takeEvents().map(({ ADDRESS = 0n }) => ADDRESS)).toEqual(
      Array.from({ length: 16 }, (_, i) => BigInt(i * 0x1000)),
    );
    expect(told(rig, 0x9000)).toMatchObject({ ADDRESS: 0x9000n });
    for (let i = 0; i < 20; i++) access(rig, RID, i * 0x1000);
    expect(rig.read(Register.EVENTQ_PROD) >> 31n).toBe(0n);
    expect(rig.read(Register.GERROR)).toBe(0n);
  });

  it("whose memory does not answer raises EVENTQ_ABT_ERR and is not written until that is acknowledged", () => {
    const { rig } = withContext({});
    rig.memory.poison(rig.eventQueue, 1);
    access(rig, RID, 0);
    expect(rig.read(Register.GERROR)).toBe(BigInt(Gerror.EVENTQ_ABT_ERR));
    access(rig, RID, 0);
    expect([rig.read(Register.EVENTQ_PROD), rig.read(Register.GERROR)]).toEqual([0n, 4n]);
    rig.write(Register.GERRORN, Gerror.EVENTQ_ABT_ERR);
    access(rig, RID, 0);
    expect(rig.read(Register.GERROR)).toBe(0n);
  });

  it("that is disabled records nothing", () => {
    const { rig } = withContext({});
    rig.write(Register.CR0, Cr0.SMMUEN);
    expect(event(rig, 0)).toEqual([false]);
  });

  it("§3.18 interrupts when it is no longer empty, by wire or by message, if that is enabled", () => {
    const { rig } = withContext({});
    access(rig, RID, 0);
    expect(rig.wires).toEqual([]);
    rig.takeEvents();
    rig.write(Register.IRQ_CTRL, 5);
    access(rig, RID, 0);
    access(rig, RID, 0);
    expect(rig.wires).toEqual(["eventq"]);
    rig.submit(0xffn);
    expect(rig.wires).toEqual(["eventq", "gerror"]);
    const other = withContext({}, {}, { capabilities: { msi: true } }).rig;
    other.write(Register.EVENTQ_IRQ_CFG0, 0xf_0000_0000n, 8);
    other.write(Register.EVENTQ_IRQ_CFG1, 0x77);
    other.write(Register.IRQ_CTRL, 4);
    access(other, RID, 0);
    expect(other.messages).toEqual([{ address: 0xf_0000_0000n, data: 0x77 }]);
    expect(other.events.of("interrupt")).toHaveLength(1);
  });
});

describe("§3.12.2 stalls", () => {
  const stalling = (stallMax = 4) => {
    const made = withContext({ S: true, R: false }, {}, { capabilities: { stalls: "both", stallMax } });
    const resumed: [number, boolean][] = [];
    made.rig.unit.onResume = (token, ok) => resumed.push([token, ok]);
    return { ...made, resumed };
  };
  const resume = (tag: bigint | number, values = {}) =>
    ResumeCommand.make({ OPCODE: Opcode.RESUME, SID: RID, STAG: tag, ...values });

  it("a fault stalls, with a tag in its record, until RESUME retries or ends it", () => {
    const { rig, table, resumed } = stalling();
    const transaction = requestOf(RID, 0x5000, write);
    expect(rig.unit.translate(transaction)).toBe(TranslateStatus.stalled);
    const first = transaction.token;
    expect(rig.unit.translate(transaction)).toBe(TranslateStatus.stalled);
    const events = rig.takeEvents();
    expect(events).toMatchObject([
      { TYPE: 0x10n, STALL: 1n },
      { STALL: 1n, STAG: 1n },
    ]);
    rig.submit(resume(0, { AC: true, SID: RID + 1 }), resume(3, { AC: true }));
    expect(resumed).toEqual([]);
    rig.mapStage1(table, 0x5000, 0x40_0000, 12, readWrite);
    rig.submit(resume(0, { AC: true }), resume(1, { AB: true }));
    expect(resumed).toEqual([
      [first, true],
      [transaction.token, false],
    ]);
    expect(rig.unit.translate(transaction)).toBe(TranslateStatus.ok);
  });

  it("STALL_TERM ends those of a stream, disabling the unit and reset all", () => {
    for (const end of [
      (rig: SmmuRig) => rig.submit(tlbi(Opcode.STALL_TERM) | (BigInt(RID) << 32n)),
      (rig: SmmuRig) => rig.write(Register.CR0, 0),
      (rig: SmmuRig) => rig.unit.reset(),
    ]) {
      const { rig, resumed } = stalling();
      rig.unit.translate(requestOf(RID, 0x5000, write));
      rig.unit.translate(requestOf(RID, 0x6000, write));
      rig.submit(tlbi(Opcode.STALL_TERM) | (0x99n << 32n));
      expect(resumed).toEqual([]);
      end(rig);
      expect(resumed.map(([, ok]) => ok)).toEqual([false, false]);
    }
  });

  it("none is lost: without tags they wait and are tried again, without room in the queue their records wait", () => {
    const { rig, resumed } = stalling(18);
    const tokens = new Set<number>();
    for (let i = 0; i < 20; i++) {
      const transaction = requestOf(RID, i * 0x1000, read);
      expect(rig.unit.translate(transaction)).toBe(TranslateStatus.stalled);
      tokens.add(transaction.token);
    }
    expect(tokens.size).toBe(20);
    expect(rig.read(Register.EVENTQ_PROD)).toBe(0x10n);
    expect(rig.takeEvents()).toHaveLength(16);
    expect(rig.takeEvents()).toHaveLength(2);
    rig.submit(resume(0));
    rig.submit(resume(1));
    expect(resumed.map(([, ok]) => ok)).toEqual([false, true, false, true]);
    rig.unit.reset();
    expect(resumed).toHaveLength(20);
  });

  it("whose record found no memory is recorded when that is acknowledged", () => {
    const { rig } = stalling();
    rig.memory.poison(rig.eventQueue, 1);
    expect(rig.unit.translate(requestOf(RID, 0x5000, write))).toBe(TranslateStatus.stalled);
    expect(rig.read(Register.EVENTQ_PROD)).toBe(0n);
    // Another place for the queue, and then the error is seen to.
    rig.write(Register.CR0, Cr0.SMMUEN | Cr0.CMDQEN);
    rig.write(Register.EVENTQ_BASE, rig.memory.allocate(1) + 4, 8);
    rig.write(Register.CR0, Cr0.SMMUEN | Cr0.CMDQEN | Cr0.EVENTQEN);
    expect(rig.read(Register.EVENTQ_PROD)).toBe(0n);
    rig.write(Register.GERRORN, Gerror.EVENTQ_ABT_ERR);
    expect(rig.read(Register.EVENTQ_PROD)).toBe(1n);
  });

  it("with S1STALLD or on a unit that cannot, S is illegal; on one that always does, its absence", () => {
    const code = (cd: CdFields, ste: SteFields, stalls: "both" | "terminate" | "force") =>
      Number(told(withContext(cd, ste, { capabilities: { stalls } }).rig, 0)?.["TYPE"]);
    expect(code({ S: true }, { S1STALLD: true }, "both")).toBe(EventCode.C_BAD_CD);
    expect(code({ S: true }, {}, "terminate")).toBe(EventCode.C_BAD_CD);
    expect(code({}, {}, "force")).toBe(EventCode.C_BAD_CD);
    expect(code({}, { S1STALLD: true }, "force")).toBe(EventCode.C_BAD_STE);
    expect(code({ S: true }, {}, "force")).toBe(EventCode.F_TRANSLATION);
  });

  it("stage 2 stalls by S2S", () => {
    const rig = new SmmuRig({ stages: "stage2", capabilities: { stalls: "both" } });
    rig.ste(RID, { CONFIG: Config.stage2, ...rig.stage2Fields(rig.table(), 1), S2S: true });
    rig.enable();
    expect(rig.unit.translate(requestOf(RID, 0x5000, write))).toBe(TranslateStatus.stalled);
    expect(rig.takeEvents()).toMatchObject([{ STALL: 1n, S2: 1n }]);
  });
});
