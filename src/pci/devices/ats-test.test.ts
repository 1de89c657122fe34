import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { functionSuite } from "../function.suite.ts";
import type { PciFunction } from "../function.ts";
import { Rig, read32, turnOn, turnOnServices, write32 } from "../rig.suite.ts";
import { ATS_TEST_BYTES, AtsTestCommand, AtsTestFunction, AtsTestRegister } from "./ats-test.ts";

const FROM = 0x10_0ffc;
const TO = 0x18_0124;
const PAGE = Uint8Array.from({ length: ATS_TEST_BYTES }, (_, i) => (i * 7 + 3) & 0xff);
const { START, TO_MEMORY } = AtsTestCommand;

const move = (device: PciFunction, address: number, command: number): void => {
  write32(device, 0, AtsTestRegister.ADDRESS, address);
  write32(device, 0, AtsTestRegister.COMMAND, command);
};

functionSuite("the function to try translation services with", {
  create: (context) => new AtsTestFunction(context),
  begin: (device) => move(device, FROM, START),
  work: (device, rig) => {
    rig.memory.writeBytes(FROM, PAGE);
    move(device, FROM, START);
    rig.settle();
    move(device, TO, START | TO_MEMORY);
    rig.settle();
    const copied = new Uint8Array(ATS_TEST_BYTES);
    rig.memory.readBytes(TO, copied);
    return [copied, read32(device, 0, AtsTestRegister.COMMAND)];
  },
});

describe("the function to try translation services with", () => {
  let rig: Rig;
  let device: AtsTestFunction;
  beforeEach(() => {
    rig = new Rig();
    device = new AtsTestFunction(rig.context);
    turnOn(device);
    turnOnServices(device);
  });
  afterEach(() => rig.close());
  const command = () => read32(device, 0, AtsTestRegister.COMMAND);

  it("asks for the pages it needs, is busy until they have come, and takes nothing meanwhile", () => {
    expect(device.configRead(0, 4)).toBe(0x11e9_1234);
    rig.memory.writeBytes(FROM, PAGE);
    rig.unit.stall = () => true;
    move(device, FROM, START);
    rig.work.run();
    expect(rig.unit.asked).toHaveLength(1);
    expect(command()).toBe(START);
    move(device, TO, START | TO_MEMORY);
    expect(read32(device, 0, AtsTestRegister.ADDRESS)).toBe(FROM);
    rig.unit.stall = () => false;
    rig.settle();
    expect(command()).toBe(0);
  });

  it("is no longer busy when a page cannot be had", () => {
    rig.unit.forbidden.add(Math.floor(TO / 4096));
    move(device, TO, START | TO_MEMORY);
    rig.settle();
    expect(command()).toBe(TO_MEMORY);
  });
});
