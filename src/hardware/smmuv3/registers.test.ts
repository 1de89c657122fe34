import { describe, expect, it } from "vitest";
import { capabilitiesOf, completeCapabilities } from "./capabilities.ts";
import { SmmuRig } from "./rig.suite.ts";
import { Cr0, Register } from "./spec.ts";

describe("§6.3 identification", () => {
  it("says what was chosen, and the choices can be read back from it", () => {
    const chosen = {
      stage2: false,
      outputBits: 48,
      granules: [12, 16],
      streamIdBits: 9,
      substreamIdBits: 20,
      stalls: "both",
      stallMax: 7,
      updates: "dirty",
      hyp: true,
      ats: true,
      pri: true,
      msi: true,
      vmid16: false,
      commandQueueLg2: 8,
    } as const;
    const made = completeCapabilities(chosen);
    expect(completeCapabilities(capabilitiesOf(made))).toEqual(made);
    expect(made.idr0 & 3).toBe(2);
    expect((made.idr0 >>> 6) & 3).toBe(2);
    expect(made.idr1 & 0x3f).toBe(9);
    expect(made.idr5 >>> 16).toBe(7);
  });

  it("refuses what the registers cannot say", () => {
    for (const chosen of [
      { stage1: false, stage2: false },
      { streamIdBits: 33 },
      { substreamIdBits: 21 },
      { commandQueueLg2: 20 },
      { stalls: "force", stallMax: 0 },
    ] as const)
      expect(() => completeCapabilities(chosen)).toThrow(RangeError);
  });

  it("cannot be written", () => {
    const rig = new SmmuRig();
    for (const register of [Register.IDR0, Register.IDR1, Register.IDR5, Register.AIDR, Register.GERROR]) {
      const before = rig.read(register);
      rig.write(register, 0xffff_ffffn);
      expect(rig.read(register)).toBe(before);
    }
  });
});

describe("§6.3.9 control", () => {
  it("CR0 takes effect at once and CR0ACK says so; bits of what is not implemented stay 0", () => {
    const rig = new SmmuRig();
    rig.write(Register.CR0, 0xffff_ffff);
    const expected = BigInt(Cr0.SMMUEN | Cr0.EVENTQEN | Cr0.CMDQEN);
    expect([rig.read(Register.CR0), rig.read(Register.CR0ACK)]).toEqual([expected, expected]);
    const full = new SmmuRig({ capabilities: { ats: true, pri: true, vmidWildcard: true } });
    full.write(Register.CR0, 0xffff_ffff);
    expect(full.read(Register.CR0ACK)).toBe(expected | BigInt(Cr0.PRIQEN | Cr0.ATSCHK | Cr0.VMW));
  });

  it("bases and CONS are locked while what uses them is enabled", () => {
    const rig = new SmmuRig();
    rig.enable();
    const locked = [
      Register.STRTAB_BASE,
      Register.STRTAB_BASE_CFG,
      Register.CMDQ_BASE,
      Register.CMDQ_CONS,
      Register.EVENTQ_BASE,
      Register.EVENTQ_PROD,
      Register.CR2,
    ];
    const before = locked.map((register) => rig.read(register));
    for (const register of locked) rig.write(register, 0xffff_ffffn);
    expect(locked.map((register) => rig.read(register))).toEqual(before);
    rig.write(Register.CR0, 0);
    for (const register of locked) rig.write(register, 0xffff_ffffn);
    expect(locked.map((register) => rig.read(register))).not.toEqual(before);
  });

  it("a 64-bit register is two words; what is above 52 address bits reads 0", () => {
    const rig = new SmmuRig();
    rig.write(Register.STRTAB_BASE, 0xffff_ffff_ffff_ffffn, 8);
    expect(rig.read(Register.STRTAB_BASE, 8)).toBe(0x400f_ffff_ffff_ffc0n);
    rig.write(Register.STRTAB_BASE, 0x1234_5678);
    expect(rig.read(Register.STRTAB_BASE, 8)).toBe(0x400f_ffff_1234_5640n);
    rig.write(Register.STRTAB_BASE + 4, 1);
    expect(rig.read(Register.STRTAB_BASE, 8)).toBe(0x1_1234_5640n);
  });

  it("§6.3.14 GBPA is taken with Update only, which reads 0", () => {
    const rig = new SmmuRig();
    const before = rig.read(Register.GBPA);
    rig.write(Register.GBPA, 0x0010_0000);
    expect(rig.read(Register.GBPA)).toBe(before);
    rig.write(Register.GBPA, 0x8010_1000);
    expect(rig.read(Register.GBPA)).toBe(0x0010_1000n);
  });

  it("§6.3.16 IRQ_CTRLACK follows IRQ_CTRL", () => {
    const rig = new SmmuRig();
    rig.write(Register.IRQ_CTRL, 0xff);
    expect(rig.read(Register.IRQ_CTRLACK)).toBe(5n);
    const withPages = new SmmuRig({ capabilities: { pri: true } });
    withPages.write(Register.IRQ_CTRL, 0xff);
    expect(withPages.read(Register.IRQ_CTRLACK)).toBe(7n);
  });

  it("without messages or page requests their registers are not there", () => {
    const rig = new SmmuRig();
    for (const register of [Register.GERROR_IRQ_CFG0, Register.PRIQ_BASE, Register.PRIQ_CONS]) {
      rig.write(register, 0xffff_fff0n, 8);
      expect(rig.read(register, 8)).toBe(0n);
    }
    const full = new SmmuRig({ capabilities: { msi: true, pri: true } });
    full.write(Register.GERROR_IRQ_CFG0, 0xffff_ffff_ffff_ffffn, 8);
    expect(full.read(Register.GERROR_IRQ_CFG0, 8)).toBe(0x000f_ffff_ffff_fffcn);
  });
});
