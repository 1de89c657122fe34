import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { BareFunction } from "./devices/bare.ts";
import { TestCommand, TestFunction, TestRegister, TestStatus } from "./devices/test-function.ts";
import { Rig, read32, turnOn, write32 } from "./rig.suite.ts";
import { Command, Header } from "./spec.ts";

let rig: Rig;
beforeEach(() => {
  rig = new Rig();
});
afterEach(() => rig.close());

const PMCSR = 0x44;

describe("an endpoint function", () => {
  it("has the name and requester id of its address, and what its model says of itself", () => {
    const device = new TestFunction(rig.context);
    expect([device.name, device.rid, device.model]).toEqual(["0000:01:00.0", 0x100, "test"]);
    expect(device.configRead(Header.VENDOR_ID, 2)).toBe(0x1234);
    expect(device.configRead(Header.CLASS_CODE, 1)).toBe(0);
    expect(device.configRead(Header.REVISION_ID, 4)).toBe(0xff00_0000);
    expect(device.configRead(Header.INTERRUPT_PIN, 1)).toBe(1);
    expect(device.configSize).toBe(4096);
  });

  it("§7.5.2 in D3hot answers nothing and requests nothing; registers are kept", () => {
    const device = new TestFunction(rig.context);
    turnOn(device);
    write32(device, 0, TestRegister.LENGTH, 77);
    device.configWrite(PMCSR, 2, 3);
    expect(read32(device, 0, TestRegister.LENGTH)).toBe(0xffff_ffff);
    write32(device, 0, TestRegister.LENGTH, 1);
    device.configWrite(PMCSR, 2, 0);
    expect(read32(device, 0, TestRegister.LENGTH)).toBe(77);
    write32(device, 0, TestRegister.COMMAND, TestCommand.READ);
    device.configWrite(PMCSR, 2, 3);
    rig.settle();
    expect(rig.unit.translations).toBe(0);
    device.configWrite(PMCSR, 2, 0);
    expect(read32(device, 0, TestRegister.STATUS)).toBe(TestStatus.FAULT);
  });

  it("§7.5.2.2 has no D1 and D2: writing them changes nothing", () => {
    const device = new TestFunction(rig.context);
    turnOn(device);
    for (const state of [1, 2]) {
      device.configWrite(PMCSR, 2, state);
      expect(device.configRead(PMCSR, 2) & 3).toBe(0);
    }
    device.configWrite(PMCSR, 2, 3);
    device.configWrite(PMCSR, 2, 1);
    expect(device.configRead(PMCSR, 2) & 3).toBe(3);
  });

  it("decodes io and memory BARs by their own Command bits", () => {
    const device = new BareFunction(rig.context, [
      { index: 0, kind: "io", size: 32 },
      { index: 1, kind: "mem32", size: 4096 },
    ]);
    const answers = () => [read32(device, 0, 0), read32(device, 1, 0)];
    expect(answers()).toEqual([0, 0]);
    device.configWrite(Header.COMMAND, 2, Command.MEMORY_SPACE);
    expect(answers()).toEqual([0xffff_ffff, 0]);
    device.configWrite(Header.COMMAND, 2, Command.IO_SPACE);
    expect(answers()).toEqual([0, 0xffff_ffff]);
  });

  it("after a reset is as firmware left it: decoding, no bus master, BARs placed", () => {
    const device = new TestFunction(rig.context);
    turnOn(device);
    device.configWrite(Header.BASE_ADDRESS, 4, 0);
    device.reset();
    expect(device.configRead(Header.COMMAND, 2)).toBe(Command.MEMORY_SPACE);
    expect(device.configRead(Header.BASE_ADDRESS, 4)).toBe(device.bars[0]?.base);
  });

  it("offers mmap of its BARs as the model and the machine file allow", () => {
    const bars = [
      { index: 0, kind: "mem32", size: 4096 },
      { index: 1, kind: "mem32", size: 4096, mappable: false },
    ] as const;
    const mappable = (asked?: boolean) =>
      new BareFunction({ ...rig.context, ...(asked !== undefined && { mappable: asked }) }, bars).bars.map(
        (bar) => bar.mappable,
      );
    expect([mappable(), mappable(true), mappable(false)]).toEqual([
      [true, false],
      [true, false],
      [false, false],
    ]);
  });

  it("refuses a place that firmware cannot have meant", () => {
    const make = (base: number) =>
      new BareFunction({ ...rig.context, barBase: () => base }, [{ index: 0, kind: "mem32", size: 8192 }]);
    for (const base of [4096, -8192, 2 ** 32])
      expect(() => make(base)).toThrow("is no place for 8192 bytes of mem32");
  });
});
