/** What a guest's stream table and registers say of its devices' accesses, over a host that nests: no driver, only writes. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { GUEST_RIDS, GuestRig } from "../../../test/support/guest-rig.ts";
import {
  COMMAND_BYTES,
  EVENT_BYTES,
  EventCode,
  EventRecord,
  Opcode,
  StreamCommand,
  SyncCommand,
} from "../../hardware/smmuv3/queue-spec.ts";
import { Config, Cr0, Cr2, Gbpa, QUEUE_INDEX, Register, Ste } from "../../hardware/smmuv3/spec.ts";

const TEXT = "guest physical";
const AT = 0x5000;
const TABLE = 0x20_0000;
/** StreamIDs of the table have so many bits. */
const STREAM_BITS = 5;
const QUEUE_LG2 = 5;
const COMMANDS = 0x10_0000;
const EVENTS = 0x11_0000;
const ON = BigInt(Cr0.CMDQEN | Cr0.EVENTQEN | Cr0.SMMUEN);
const [FIRST, SECOND] = GUEST_RIDS;

describe("a guest's SMMUv3 over a host that nests, without a driver", () => {
  let rig: GuestRig;
  beforeEach(() => {
    rig = new GuestRig("smmuv3", "nested");
    rig.vmm.memory.writeBytes(AT, Buffer.from(TEXT));
  });
  afterEach(() => {
    expect(rig.close()).toEqual({});
  });

  const set = (register: number, value: bigint | number, width: 4 | 8 = 4): void =>
    rig.vmm.iommu.mmioWrite(register, width, BigInt(value));
  const get = (register: number): number => Number(rig.vmm.iommu.mmioRead(register, 4));

  /** What the device finds at an address. */
  const reads = (which: 0 | 1 = 0): string => {
    const device = rig.devices[which]!;
    device.fetch(AT, TEXT.length);
    return rig.settle(device) === "done" ? Buffer.from(device.read(TEXT.length)).toString() : device.result;
  };

  const switchOn = (table = TABLE, bits = STREAM_BITS): void => {
    set(Register.CR0, 0);
    set(Register.STRTAB_BASE, table, 8);
    set(Register.STRTAB_BASE_CFG, bits);
    set(Register.CMDQ_BASE, COMMANDS | QUEUE_LG2, 8);
    set(Register.EVENTQ_BASE, EVENTS | QUEUE_LG2, 8);
    set(Register.CR0, ON);
  };
  const entry = (sid: number, fields: Parameters<typeof Ste.make>[0]): void => {
    const bytes = new Uint8Array(Ste.bytes);
    Ste.write(bytes, Ste.make(fields));
    rig.vmm.memory.writeBytes(TABLE + sid * Ste.bytes, bytes);
  };
  /** Puts a command and a SYNC into the queue, which must take both. */
  const command = (value: bigint): void => {
    for (const each of [value, SyncCommand.make({ OPCODE: Opcode.SYNC })]) {
      const at = get(Register.CMDQ_PROD);
      const bytes = new Uint8Array(COMMAND_BYTES);
      StreamCommand.write(bytes, each);
      rig.vmm.memory.writeBytes(COMMANDS + (at % 2 ** QUEUE_LG2) * COMMAND_BYTES, bytes);
      set(Register.CMDQ_PROD, (at + 1) % 2 ** (QUEUE_LG2 + 1));
    }
    expect(get(Register.CMDQ_CONS)).toBe(get(Register.CMDQ_PROD));
  };
  const changed = (sid: number): void => command(StreamCommand.make({ OPCODE: Opcode.CFGI_STE, SID: sid }));

  /** Events since the last time. */
  const events = () => {
    const taken = [];
    for (let at = get(Register.EVENTQ_CONS); at !== get(Register.EVENTQ_PROD); at = (at + 1) & QUEUE_INDEX) {
      const bytes = new Uint8Array(EVENT_BYTES);
      rig.vmm.memory.readBytes(EVENTS + (at % 2 ** QUEUE_LG2) * EVENT_BYTES, bytes);
      const { TYPE, SID, FETCH } = EventRecord.view(bytes);
      taken.push({ code: Number(TYPE), sid: Number(SID), fetched: Number(FETCH) });
    }
    set(Register.EVENTQ_CONS, get(Register.EVENTQ_PROD));
    return taken;
  };

  it("§6.3.14 while the unit is off GBPA says whether accesses pass, and is taken with Update only", () => {
    expect(reads()).toBe(TEXT);
    set(Register.GBPA, Gbpa.ABORT);
    expect(reads()).toBe(TEXT);
    set(Register.GBPA, (Gbpa.ABORT | Gbpa.UPDATE) >>> 0);
    expect(get(Register.GBPA)).toBe(Gbpa.ABORT);
    expect(reads()).toBe("fault");
    expect(reads(1)).toBe("fault");
    // As one half of a 64-bit access.
    set(Register.STATUSR, BigInt(Gbpa.UPDATE) << 32n, 8);
    expect(reads()).toBe(TEXT);
    switchOn();
    expect(reads()).toBe("fault");
    set(Register.CR0, 0);
    expect(reads()).toBe(TEXT);
  });

  it("§6.3.14 what GBPA aborts is not recorded", () => {
    switchOn();
    set(Register.CR0, BigInt(Cr0.CMDQEN | Cr0.EVENTQEN));
    set(Register.GBPA, (Gbpa.ABORT | Gbpa.UPDATE) >>> 0);
    expect(reads()).toBe("fault");
    expect(events()).toEqual([]);
  });

  it("§4.3.1 CFGI_STE makes the changed entry of its stream count, and no other", () => {
    switchOn();
    for (const sid of GUEST_RIDS) entry(sid, { V: true, CONFIG: Config.bypass });
    changed(SECOND);
    expect([reads(0), reads(1)]).toEqual(["fault", TEXT]);
    changed(FIRST);
    expect([reads(0), reads(1)]).toEqual([TEXT, TEXT]);
  });

  it("§4.3.2 CFGI_STE_RANGE is about 2^(Range + 1) streams around its StreamID", () => {
    switchOn();
    for (const sid of GUEST_RIDS) entry(sid, { V: true, CONFIG: Config.bypass });
    // Of 0 to 7, neither; of 8 to 15, the first.
    command(StreamCommand.make({ OPCODE: Opcode.CFGI_STE_RANGE, SID: 7, RANGE: 2 }));
    expect([reads(0), reads(1)]).toEqual(["fault", "fault"]);
    command(StreamCommand.make({ OPCODE: Opcode.CFGI_STE_RANGE, SID: 15, RANGE: 2 }));
    expect([reads(0), reads(1)]).toEqual([TEXT, "fault"]);
  });

  it("§4.3.3 CFGI_ALL is about all", () => {
    switchOn();
    for (const sid of GUEST_RIDS) entry(sid, { V: true, CONFIG: Config.bypass });
    command(StreamCommand.make({ OPCODE: Opcode.CFGI_STE_RANGE, RANGE: 31 }));
    expect([reads(0), reads(1)]).toEqual([TEXT, TEXT]);
  });

  it.each([
    ["that is not valid", {}],
    ["with more context descriptors than there are", { V: true, CONFIG: Config.stage1, S1CDMAX: 31 }],
    ["with contexts out of reach", { V: true, CONFIG: Config.stage1, S1CONTEXTPTR: 2n ** 51n }],
    ["of stage 2, which the guest's unit has not", { V: true, CONFIG: Config.stage2 }],
    ["of both stages", { V: true, CONFIG: Config.nested }],
    ["with ATS of split stages", { V: true, CONFIG: Config.stage1, EATS: 2 }],
  ])("§7.3.5 under an entry %s each access is an event of the guest", (_, fields) => {
    switchOn();
    entry(FIRST, fields);
    changed(FIRST);
    for (let access = 0; access < 2; access++) {
      expect(reads()).toBe("fault");
      expect(events()).toEqual([{ code: EventCode.C_BAD_STE, sid: FIRST, fetched: 0 }]);
    }
    entry(FIRST, { V: true, CONFIG: Config.bypass });
    changed(FIRST);
    expect(reads()).toBe(TEXT);
    expect(events()).toEqual([]);
    expect(rig.vmm.backEnd.held).toBe(0);
  });

  it.each([0, 1, 2, 3])("§5.2 Config %i aborts, and nobody is told", (config) => {
    switchOn();
    entry(FIRST, { V: true, CONFIG: config });
    changed(FIRST);
    expect(reads()).toBe("fault");
    expect(events()).toEqual([]);
  });

  it("§7.3.3 a stream beyond the table is one without an entry, of which the guest may not want to know", () => {
    switchOn(TABLE, 3);
    expect(reads()).toBe("fault");
    expect(events()).toEqual([{ code: EventCode.C_BAD_STREAMID, sid: FIRST, fetched: 0 }]);
    set(Register.CR0, 0);
    set(Register.CR2, get(Register.CR2) & ~Cr2.RECINVSID);
    switchOn(TABLE, 3);
    expect(reads()).toBe("fault");
    expect(events()).toEqual([]);
  });

  it("§7.3.4 an entry that is not in the guest's memory cannot be read", () => {
    const beyond = 0x4000_0000;
    switchOn(beyond);
    expect(reads(1)).toBe("fault");
    expect(events()).toEqual([
      { code: EventCode.F_STE_FETCH, sid: SECOND, fetched: beyond + SECOND * Ste.bytes },
    ]);
  });
});
