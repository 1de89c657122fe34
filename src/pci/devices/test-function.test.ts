import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Access } from "../../hardware/unit.ts";
import { extendedCapabilitiesOf } from "../capability-list.ts";
import { functionSuite } from "../function.suite.ts";
import type { PciFunction } from "../function.ts";
import { MSI_BASE, Rig, read32, turnOn, write32 } from "../rig.suite.ts";
import { Command, ExtendedCapabilityId, Header, PasidCapability } from "../spec.ts";
import type { RequestAbilities } from "./requests.ts";
import {
  TEST_BUFFER_BYTES,
  TEST_IDENTITY,
  TestCommand,
  TestFunction,
  TestRegister,
  TestStatus,
} from "./test-function.ts";

interface Wanted {
  readonly command: number;
  readonly source?: number;
  readonly destination?: number;
  readonly length?: number;
  readonly pasid?: number;
}

const start = (device: PciFunction, wanted: Wanted): void => {
  const { command, source = 0, destination = 0, length = 0, pasid = 0 } = wanted;
  write32(device, 0, TestRegister.SOURCE, source);
  write32(device, 0, TestRegister.SOURCE + 4, Math.floor(source / 2 ** 32));
  write32(device, 0, TestRegister.DESTINATION, destination);
  write32(device, 0, TestRegister.DESTINATION + 4, Math.floor(destination / 2 ** 32));
  write32(device, 0, TestRegister.LENGTH, length);
  write32(device, 0, TestRegister.PASID, pasid);
  write32(device, 0, TestRegister.COMMAND, command);
};

const enable = (device: PciFunction, capability: number, offset: number, value: number): void => {
  const found = extendedCapabilitiesOf(device).find(({ id }) => id === capability)!;
  device.configWrite(found.at + offset, 2, value);
};

const pattern = (length: number): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i * 7 + (i >>> 8)) & 0xff);
const FROM = 0x10_0ffe;
const TO = 0x18_0123;
const LENGTH = 20_000;

functionSuite("the test function", {
  create: (context) => new TestFunction(context, [{ index: 4, kind: "mem64", size: 2 ** 16 }]),
  begin: (device) =>
    start(device, { command: TestCommand.COPY, source: FROM, destination: TO, length: LENGTH }),
  work: (device, rig) => {
    rig.memory.writeBytes(FROM, pattern(LENGTH));
    start(device, { command: TestCommand.COPY, source: FROM, destination: TO, length: LENGTH });
    rig.settle();
    const copied = new Uint8Array(LENGTH);
    rig.memory.readBytes(TO, copied);
    return [read32(device, 0, TestRegister.STATUS), read32(device, 0, TestRegister.DONE), copied];
  },
});

describe("the test function", () => {
  let rig: Rig;
  let device: TestFunction;
  beforeEach(() => {
    rig = new Rig();
    device = new TestFunction(rig.context);
    turnOn(device);
  });
  afterEach(() => rig.close());
  const status = () => read32(device, 0, TestRegister.STATUS);

  it("says who it is, and is idle", () => {
    expect(read32(device, 0, TestRegister.IDENTITY)).toBe(TEST_IDENTITY);
    expect(status()).toBe(TestStatus.IDLE);
  });

  it("moves memory to its buffer and back", () => {
    rig.memory.writeBytes(FROM, pattern(5000));
    start(device, { command: TestCommand.READ, source: FROM, destination: 16, length: 5000 });
    expect(status()).toBe(TestStatus.BUSY);
    rig.settle();
    expect(status()).toBe(TestStatus.DONE);
    const inside = new Uint8Array(5000);
    device.barRead(0, TestRegister.BUFFER + 16, inside);
    expect(inside).toEqual(pattern(5000));
    start(device, { command: TestCommand.WRITE, source: 16, destination: TO, length: 5000 });
    rig.settle();
    const outside = new Uint8Array(5000);
    rig.memory.readBytes(TO, outside);
    expect(outside).toEqual(pattern(5000));
  });

  it("ends with a fault where the unit refuses, and tells how far it came", () => {
    rig.unit.forbidden.add(Math.floor(TO / 4096) + 1);
    start(device, { command: TestCommand.WRITE, destination: TO, length: 8192 });
    rig.settle();
    expect(status()).toBe(TestStatus.FAULT);
    expect(read32(device, 0, TestRegister.DONE)).toBe(4096 - (TO % 4096));
  });

  it("ends with a fault when the answer to a stall is no", () => {
    rig.unit.stall = () => true;
    start(device, { command: TestCommand.READ, source: FROM, length: 8 });
    rig.settle(false);
    expect(status()).toBe(TestStatus.FAULT);
  });

  it("puts the PASID on its requests when it is valid, and software has enabled it", () => {
    start(device, { command: TestCommand.READ, source: TO, length: 8, pasid: 0x8000_0000 + 77 });
    rig.settle();
    expect([status(), rig.unit.translations]).toEqual([TestStatus.FAULT, 0]);
    enable(device, ExtendedCapabilityId.PASID, PasidCapability.CONTROL, 1);
    start(device, { command: TestCommand.READ, source: TO, length: 8, pasid: 77 });
    rig.settle();
    expect(rig.unit.pasids).toEqual([]);
    start(device, { command: TestCommand.READ, source: TO, length: 8, pasid: 0x8000_0000 + 77 });
    rig.settle();
    expect(rig.unit.pasids).toEqual([77]);
  });

  it("makes requests for execution and privileged ones where PASID Control allows them", () => {
    const seen: number[] = [];
    rig.unit.stall = ({ access }) => {
      seen.push(access);
      return false;
    };
    const tags = [0xa000_0001, 0xc000_0001, 0xe000_0001];
    for (const control of [1, 3, 7]) {
      enable(device, ExtendedCapabilityId.PASID, PasidCapability.CONTROL, control);
      for (const tag of tags) {
        start(device, { command: TestCommand.READ, source: TO, length: 8, pasid: tag });
        rig.settle();
      }
      start(device, { command: TestCommand.WRITE, destination: TO, length: 8, pasid: 0xe000_0001 });
      rig.settle();
    }
    const { read, write, execute, privileged } = Access;
    const [executed, all] = [read | execute, read | execute | privileged];
    expect(seen).toEqual([executed, executed, read | privileged, all, write | privileged]);
  });

  it("has the capabilities it was made with", () => {
    const ids = (abilities: RequestAbilities) =>
      extendedCapabilitiesOf(new TestFunction(rig.context, [], abilities)).map(({ id }) => id);
    const { PASID, ATS, PRI } = ExtendedCapabilityId;
    expect(ids({})).toEqual([PASID, ATS, PRI]);
    expect(ids({ pageRequests: 0 })).toEqual([PASID, ATS]);
    expect(ids({ pasidBits: 0, deviceTlb: false })).toEqual([]);
    const small = new TestFunction(rig.context, [], { pasidBits: 8, execute: false });
    const at = extendedCapabilitiesOf(small)[0]!.at;
    small.configWrite(at + PasidCapability.CONTROL, 2, 0xffff);
    expect(small.configRead(at + PasidCapability.CAPABILITY, 2)).toBe(0x0804);
    expect(small.configRead(at + PasidCapability.CONTROL, 2)).toBe(0b101);
  });

  it("refuses what does not fit its buffer, and what it does not know", () => {
    start(device, { command: TestCommand.COPY, length: TEST_BUFFER_BYTES + 1 });
    expect(status()).toBe(TestStatus.REFUSED);
    start(device, { command: TestCommand.READ, destination: 2 ** 33, length: 8 });
    expect(status()).toBe(TestStatus.REFUSED);
    start(device, { command: 99 });
    expect(status()).toBe(TestStatus.REFUSED);
  });

  it("signals its vector at the end; without messages, the line until STATUS is written", () => {
    write32(device, 0, TestRegister.VECTOR, 2);
    start(device, { command: TestCommand.INTERRUPT });
    rig.settle();
    expect(device.intx).toBe(true);
    write32(device, 0, TestRegister.STATUS, 0);
    expect(device.intx).toBe(false);
    const msix = 0x60; // behind power management and MSI
    expect(device.configRead(msix, 1)).toBe(0x11);
    write32(device, 2, 2 * 16, MSI_BASE);
    write32(device, 2, 2 * 16 + 8, 0x4321);
    write32(device, 2, 2 * 16 + 12, 0);
    device.configWrite(msix + 2, 2, 0x8000);
    start(device, { command: TestCommand.INTERRUPT });
    rig.settle();
    expect(rig.interrupts).toEqual([0x4321]);
    expect(device.intx).toBe(false);
  });

  it("makes no request that is not allowed by Command", () => {
    device.configWrite(Header.COMMAND, 2, Command.MEMORY_SPACE);
    start(device, { command: TestCommand.READ, source: FROM, length: 8 });
    rig.settle();
    expect(status()).toBe(TestStatus.FAULT);
    expect(rig.unit.translations).toBe(0);
  });
});
