import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { functionSuite } from "../function.suite.ts";
import type { PciFunction } from "../function.ts";
import { Rig, read32, turnOn, write32 } from "../rig.suite.ts";
import { EDU_BUFFER, EDU_IDENTITY, Edu, EduCommand, EduInterrupt, EduRegister, EduStatus } from "./edu.ts";

const FROM = 0x10_0ffe;
const TO = 0x18_0123;
const pattern = (length: number): Uint8Array => Uint8Array.from({ length }, (_, i) => (i * 7 + 3) & 0xff);

const move = (device: PciFunction, source: number, destination: number, count: number, command: number) => {
  write32(device, 0, EduRegister.SOURCE, source);
  write32(device, 0, EduRegister.DESTINATION, destination);
  write32(device, 0, EduRegister.COUNT, count);
  write32(device, 0, EduRegister.COMMAND, command);
};
const TO_MEMORY = EduCommand.START | EduCommand.TO_MEMORY;

functionSuite("edu", {
  create: (context) => new Edu(context),
  begin: (device) => move(device, FROM, EDU_BUFFER, 4000, EduCommand.START),
  work: (device, rig) => {
    rig.memory.writeBytes(FROM, pattern(4000));
    move(device, FROM, EDU_BUFFER + 96, 4000, EduCommand.START);
    rig.settle();
    move(device, EDU_BUFFER + 96, TO, 4000, TO_MEMORY);
    rig.settle();
    const copied = new Uint8Array(4000);
    rig.memory.readBytes(TO, copied);
    return [copied, read32(device, 0, EduRegister.COMMAND)];
  },
});

describe("edu", () => {
  let rig: Rig;
  let device: Edu;
  beforeEach(() => {
    rig = new Rig();
    device = new Edu(rig.context);
    turnOn(device);
  });
  afterEach(() => rig.close());
  const get = (register: number): number => read32(device, 0, register);
  const set = (register: number, value: number): void => write32(device, 0, register, value);
  const bytesAt = (pa: number, length: number): Uint8Array => {
    const bytes = new Uint8Array(length);
    rig.memory.readBytes(pa, bytes);
    return bytes;
  };

  it("says who it is and inverts what shall show that it lives", () => {
    expect(device.configRead(0, 4)).toBe(0x11e8_1234);
    expect(get(EduRegister.IDENTITY)).toBe(EDU_IDENTITY);
    set(EduRegister.LIVENESS, 0x1234_5678);
    expect(get(EduRegister.LIVENESS)).toBe(~0x1234_5678 >>> 0);
  });

  it("takes dwords below 0x80, and 64 bits from there on", () => {
    device.barWrite(0, EduRegister.LIVENESS, Uint8Array.of(1, 2));
    expect(get(EduRegister.LIVENESS)).toBe(0);
    device.barWrite(0, EduRegister.SOURCE, new Uint8Array(BigUint64Array.of(0x12_3456_789an).buffer));
    expect([get(EduRegister.SOURCE), get(EduRegister.SOURCE + 4)]).toEqual([0x3456_789a, 0x12]);
  });

  it("computes factorials after the write, of any number", () => {
    for (const [value, result] of [
      [0, 1],
      [5, 120],
      [12, 479_001_600],
      [0xffff_ffff, 0],
    ] as const) {
      set(EduRegister.FACTORIAL, value);
      expect(get(EduRegister.STATUS) & EduStatus.COMPUTING).toBe(EduStatus.COMPUTING);
      rig.settle();
      expect([get(EduRegister.STATUS), get(EduRegister.FACTORIAL)]).toEqual([0, result]);
    }
  });

  it("holds its line up until every interrupt is acknowledged", () => {
    set(EduRegister.STATUS, EduStatus.INTERRUPT);
    set(EduRegister.FACTORIAL, 3);
    rig.settle();
    set(EduRegister.RAISE, 0x10);
    expect([device.intx, get(EduRegister.INTERRUPTS)]).toEqual([true, 0x10 | EduInterrupt.FACTORIAL]);
    set(EduRegister.ACKNOWLEDGE, 0x10);
    expect(device.intx).toBe(true);
    set(EduRegister.ACKNOWLEDGE, EduInterrupt.FACTORIAL);
    expect([device.intx, get(EduRegister.INTERRUPTS)]).toEqual([false, 0]);
  });

  it("moves what lies in its buffer, within 28 bits of address, and interrupts when asked to", () => {
    rig.memory.writeBytes(FROM, pattern(100));
    move(device, 0x3000_0000 + FROM, EDU_BUFFER, 100, EduCommand.START | EduCommand.INTERRUPT);
    expect(get(EduRegister.COMMAND) & EduCommand.START).toBe(EduCommand.START);
    rig.settle();
    expect(get(EduRegister.COMMAND) & EduCommand.START).toBe(0);
    expect(get(EduRegister.INTERRUPTS)).toBe(EduInterrupt.TRANSFER);
    move(device, EDU_BUFFER, TO, 100, TO_MEMORY);
    rig.settle();
    expect(bytesAt(TO, 100)).toEqual(pattern(100));
  });

  it("moves nothing that is not in its buffer", () => {
    move(device, EDU_BUFFER + 4000, TO, 100, TO_MEMORY);
    expect(get(EduRegister.COMMAND) & EduCommand.START).toBe(0);
    move(device, FROM, 0, 100, EduCommand.START);
    rig.settle();
    expect(bytesAt(TO, 100)).toEqual(new Uint8Array(100));
  });
});
