import { describe, expect, it } from "vitest";
import { type DeviceTlbAnswer, type DeviceTlbInvalidation, PageResponse } from "../ats.ts";
import { access } from "../unit.suite.ts";
import { NO_PASID } from "../unit.ts";
import { AtcCommand, Opcode, PriCommand, SyncCommand } from "./queue-spec.ts";
import { cfgi, type RigOptions, readWrite, SmmuRig, sync, tlbi } from "./rig.suite.ts";
import { CommandError, Cr0, Gerror, Register } from "./spec.ts";

const running = (options: RigOptions = {}) => {
  const rig = new SmmuRig(options);
  rig.enable();
  return rig;
};
const raw = (opcode: number): bigint => BigInt(opcode);
const errorOf = (rig: SmmuRig, ...commands: bigint[]) => {
  rig.submit(...commands);
  return rig.consumed;
};

describe("§4 commands", () => {
  it("run up to PROD and wrap", () => {
    const rig = running();
    for (let round = 0; round < 5; round++) {
      for (let i = 0; i < 7; i++) rig.submit(tlbi(Opcode.TLBI_NSNH_ALL), sync());
      expect(rig.consumed).toEqual({ at: rig.produced, error: 0 });
    }
    expect(rig.read(Register.GERROR)).toBe(0n);
  });

  it("wait while the queue is disabled", () => {
    const rig = running();
    rig.write(Register.CR0, Cr0.SMMUEN);
    rig.submit(sync());
    expect(rig.consumed.at).toBe(0);
    rig.write(Register.CR0, Cr0.SMMUEN | Cr0.CMDQEN);
    expect(rig.consumed.at).toBe(1);
  });

  it("that the unit does not have are CERROR_ILL; which those are follows from IDR0", () => {
    const all = Object.values(Opcode);
    const legal = (options: RigOptions) =>
      all.filter((opcode) => errorOf(running(options), raw(opcode)).error === 0);
    const everywhere = [1, 2, 3, 4, 5, 6, 0x30, 0x46];
    const sorted = (opcodes: readonly number[]) => [...opcodes].sort((a, b) => a - b);
    const stage1 = [0x10, 0x11, 0x12, 0x13];
    const stage2 = [0x28, 0x2a];
    expect(sorted(legal({}))).toEqual(sorted([...everywhere, ...stage1, ...stage2]));
    expect(sorted(legal({ capabilities: { stage2: false } }))).toEqual(sorted([...everywhere, ...stage1]));
    expect(sorted(legal({ capabilities: { stage1: false } }))).toEqual(sorted([...everywhere, ...stage2]));
    const full = { hyp: true, ats: true, pri: true, stalls: "both" } as const;
    expect(legal({ capabilities: full })).toEqual(all);
    for (const opcode of [0, 0x07, 0x14, 0x18, 0x29, 0x50, 0x70, 0xff])
      expect(errorOf(running({ capabilities: full }), raw(opcode)).error).toBe(CommandError.illegal);
    expect(errorOf(running(), raw(Opcode.SYNC) | (1n << 10n)).error).toBe(CommandError.illegal);
  });

  it("§7.1 an illegal one stops the queue with CONS at it, until GERRORN acknowledges; others go on", () => {
    const rig = running();
    rig.map(0x18, 0x5000, 0x40_0000, 12, readWrite);
    rig.submit(sync(), raw(0xff), sync());
    expect(rig.consumed).toEqual({ at: 1, error: CommandError.illegal });
    expect(rig.read(Register.GERROR)).toBe(BigInt(Gerror.CMDQ_ERR));
    rig.submit(sync());
    expect(rig.consumed.at).toBe(1);
    expect(access(rig, 0x18, 0x5000).ok).toBe(true);
    // Software replaces the command before it acknowledges.
    rig.storeBig(rig.commands + 16, sync(), 16);
    rig.write(Register.GERRORN, Gerror.CMDQ_ERR);
    expect(rig.consumed.at).toBe(4);
    // The next error toggles GERROR back.
    rig.submit(raw(0xff));
    expect(rig.read(Register.GERROR)).toBe(0n);
    expect(rig.consumed.error).toBe(CommandError.illegal);
  });

  it("§7.1 a queue that cannot be read is CERROR_ABT", () => {
    const rig = running();
    rig.write(Register.CR0, 0);
    rig.write(Register.CMDQ_BASE, 0x1_0000_0000_0004n, 8);
    rig.write(Register.CR0, Cr0.CMDQEN);
    rig.submit(sync());
    expect(rig.consumed).toEqual({ at: 0, error: CommandError.abort });
  });

  it("a listener is told each command with its name", () => {
    const rig = running();
    rig.submit(cfgi(Opcode.CFGI_STE, { SID: 0x18 }), tlbi(Opcode.TLBI_NH_ASID, { ASID: 5 }));
    const told = rig.events.of("command").map(({ command }) => String(command));
    expect(told[0]).toMatch(/^CFGI_STE .*SID=0x18/);
    expect(told[1]).toMatch(/^TLBI_NH_ASID .*ASID=5/);
  });
});

describe("§4.7.3 SYNC", () => {
  const message = { CS: 1, MSIDATA: 0x1234, MSIADDRESS: 0x3000_0000n };

  it("without messages signals by wire, or not at all", () => {
    const rig = running();
    rig.submit(sync(), sync({ CS: 2 }));
    expect(rig.wires).toEqual([]);
    rig.submit(sync(message));
    expect(rig.wires).toEqual(["cmdq-sync"]);
    expect(rig.load64(0x3000_0000)).toBe(0n);
    expect(errorOf(rig, sync({ CS: 3 })).error).toBe(CommandError.illegal);
  });

  it("with messages writes data where memory is, and else sends an interrupt", () => {
    const rig = running({ capabilities: { msi: true } });
    rig.submit(sync(message));
    expect(rig.load64(0x3000_0000)).toBe(0x1234n);
    rig.submit(sync({ ...message, MSIADDRESS: 0xf_0000_0040n }));
    expect(rig.messages).toEqual([{ address: 0xf_0000_0040n, data: 0x1234 }]);
    rig.submit(sync({ CS: 1 }));
    expect(rig.wires).toEqual(["cmdq-sync"]);
    expect(SyncCommand.fields.MSIADDRESS.of(sync(message))).toBe(0x3000_0000n);
  });
});

describe("§4.5 ATS and page request commands", () => {
  const full = { capabilities: { ats: true, pri: true } };
  const atc = (values: Parameters<typeof AtcCommand.make>[0]) =>
    AtcCommand.make({ OPCODE: Opcode.ATC_INV, ...values });

  it("ATC_INV asks the function to forget a range of a substream, of all, or everything, while the unit is enabled", () => {
    const rig = running(full);
    const asked: DeviceTlbInvalidation[] = [];
    rig.unit.invalidateDeviceTlb = (what) => {
      asked.push(what);
      return "done";
    };
    rig.write(Register.CR0, Cr0.CMDQEN);
    rig.submit(atc({ SID: 0x18 }));
    expect([asked, rig.consumed.error]).toEqual([[], 0]);
    rig.write(Register.CR0, Cr0.SMMUEN | Cr0.CMDQEN);
    rig.submit(
      atc({ SID: 0x18, SSV: true, SSID: 5, SIZE: 3, ADDRESS: 0x1_2345_6000n }),
      atc({ SID: 0x19, SIZE: 52, ADDRESS: 0x1_2345_6000n }),
      atc({ SID: 0x19, SIZE: 22, ADDRESS: 0xb_2345_6000n }),
      atc({ SID: 0x19, SSV: true, G: true }),
    );
    expect(asked).toEqual([
      { rid: 0x18, pasid: 5, global: false, lo: 0x2345_0000, hi: 1, lg2: 15 },
      { rid: 0x19, pasid: NO_PASID, global: false, lo: 0, hi: 0, lg2: 64 },
      { rid: 0x19, pasid: NO_PASID, global: false, lo: 0, hi: 8, lg2: 34 },
      { rid: 0x19, pasid: 0, global: true, lo: 0, hi: 0, lg2: 12 },
    ]);
  });

  it("§7.1 a function that does not answer makes the next SYNC fail; it is done when that was acknowledged", () => {
    const rig = running(full);
    let answers: DeviceTlbAnswer = "timeout";
    rig.unit.invalidateDeviceTlb = () => answers;
    rig.submit(atc({ SID: 0x18 }), cfgi(Opcode.CFGI_STE), sync(), sync());
    expect(rig.consumed).toEqual({ at: 2, error: CommandError.atcTimeout });
    answers = "done";
    rig.write(Register.GERRORN, Gerror.CMDQ_ERR);
    expect(rig.consumed.at).toBe(4);
  });

  it("PRI_RESP answers a group of page requests, while the unit is enabled", () => {
    const rig = running(full);
    const answered: unknown[] = [];
    rig.unit.onPageResponse = (...response) => answered.push(response);
    const respond = (values: Parameters<typeof PriCommand.make>[0]) =>
      PriCommand.make({ OPCODE: Opcode.PRI_RESP, SID: 0x18, ...values });
    rig.write(Register.CR0, Cr0.CMDQEN);
    rig.submit(respond({ RESP: 2 }));
    expect([answered, rig.consumed.error]).toEqual([[], 0]);
    rig.write(Register.CR0, Cr0.SMMUEN | Cr0.CMDQEN);
    rig.submit(
      respond({ PRGINDEX: 511, RESP: 2 }),
      respond({ SSV: true, SSID: 9, RESP: 0 }),
      respond({ RESP: 1 }),
    );
    expect(answered).toEqual([
      [0x18, NO_PASID, 511, PageResponse.success],
      [0x18, 9, 0, PageResponse.failure],
      [0x18, NO_PASID, 0, PageResponse.invalid],
    ]);
    expect(errorOf(rig, respond({ RESP: 3 })).error).toBe(CommandError.illegal);
  });
});
