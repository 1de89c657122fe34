import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { functionSuite } from "../function.suite.ts";
import type { PciFunction } from "../function.ts";
import { MSI_BASE, Rig, read32, turnOn, write32 } from "../rig.suite.ts";
import { Header } from "../spec.ts";
import {
  IOAT_TRANSFER_LG2,
  Ioat,
  IoatCommand,
  IoatControl,
  IoatDescriptor,
  IoatError,
  IoatOperation,
  IoatRegister,
  IoatStatus,
} from "./ioat.ts";

const FROM = 0x10_0ffe;
const TO = 0x18_0123;
const RING = 0x20_0000;
const COMPLETION = 0x30_0000;
const LENGTH = 150_000;
const pattern = (length: number): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i * 7 + (i >>> 8)) & 0xff);

type Wanted = Parameters<(typeof IoatDescriptor)["make"]>[0];
const COPY: Wanted = { Source: FROM, Destination: TO, Size: LENGTH, Completion: true };

/** Puts descriptors one after the other into a chain, the last of which leads to the first. */
const chain = (rig: Rig, ...all: readonly Wanted[]): void =>
  all.forEach((wanted, at) => {
    const bytes = new Uint8Array(IoatDescriptor.bytes);
    const next = RING + ((at + 1) % all.length) * IoatDescriptor.bytes;
    IoatDescriptor.write(bytes, IoatDescriptor.make({ ...wanted, Next: next }));
    rig.memory.writeBytes(RING + at * IoatDescriptor.bytes, bytes);
  });
const command = (device: PciFunction, value: number): void =>
  device.barWrite(0, IoatRegister.CHANCMD, Uint8Array.of(value));
const count = (device: PciFunction, value: number): void =>
  device.barWrite(0, IoatRegister.DMACOUNT, new Uint8Array(Uint16Array.of(value).buffer));
const setUp = (device: PciFunction): void => {
  command(device, IoatCommand.RESET);
  write32(device, 0, IoatRegister.CHANERR, 0xffff_ffff);
  write32(device, 0, IoatRegister.CHANCMP, COMPLETION);
  write32(device, 0, IoatRegister.CHANCMP + 4, 0);
  device.barWrite(0, IoatRegister.CHAINADDR, new Uint8Array(BigUint64Array.of(BigInt(RING)).buffer));
};

functionSuite("an I/OAT channel", {
  create: (context) => new Ioat(context),
  begin: (device, rig) => {
    chain(rig, COPY);
    setUp(device);
    count(device, 1);
  },
  work: (device, rig) => {
    rig.memory.writeBytes(FROM, pattern(LENGTH));
    chain(rig, COPY, { ...COPY, Source: TO, Destination: TO + 0x8_0000 });
    setUp(device);
    count(device, 2);
    rig.settle();
    const copied = new Uint8Array(LENGTH);
    rig.memory.readBytes(TO + 0x8_0000, copied);
    return [copied, read32(device, 0, IoatRegister.CHANSTS), read32(device, 0, IoatRegister.CHANERR)];
  },
});

describe("an I/OAT channel", () => {
  let rig: Rig;
  let device: Ioat;
  beforeEach(() => {
    rig = new Rig();
    device = new Ioat(rig.context);
    turnOn(device);
    setUp(device);
  });
  afterEach(() => rig.close());
  const get = (register: number): number => read32(device, 0, register);
  const status = (): number => get(IoatRegister.CHANSTS) & 7;
  const bytesAt = (pa: number, length: number): Uint8Array => {
    const bytes = new Uint8Array(length);
    rig.memory.readBytes(pa, bytes);
    return bytes;
  };
  const told = (): number => new DataView(bytesAt(COMPLETION, 8).buffer).getUint32(0, true);
  const run = (descriptors: number): void => {
    count(device, descriptors);
    rig.settle();
  };

  it("says who it is and what it can do, and waits", () => {
    expect(device.configRead(0, 4)).toBe(0x2021_8086);
    expect(get(0)).toBe(1 | (IOAT_TRANSFER_LG2 << 8));
    expect(get(IoatRegister.CBVER) & 0xff).toBe(0x33);
    expect(status()).toBe(IoatStatus.ARMED);
  });

  it("follows the chain as far as there are descriptors, and goes on where it was", () => {
    rig.memory.writeBytes(FROM, pattern(100));
    const step = (from: number, to: number): Wanted => ({
      Source: from,
      Destination: to,
      Size: 100,
      Completion: true,
    });
    chain(rig, step(FROM, TO), step(TO, TO + 200), step(TO + 200, TO + 400));
    run(1);
    expect([bytesAt(TO, 100), bytesAt(TO + 200, 100)]).toEqual([pattern(100), new Uint8Array(100)]);
    expect(get(IoatRegister.CHANSTS)).toBe(RING | IoatStatus.IDLE);
    run(3);
    expect(bytesAt(TO + 400, 100)).toEqual(pattern(100));
    expect(told()).toBe((RING + 128) | IoatStatus.IDLE);
  });

  it("fills, and moves nothing by a null descriptor", () => {
    const bytes = 0x1122_3344_5566_7788n;
    chain(
      rig,
      { Operation: IoatOperation.FILL, Source: bytes, Destination: TO, Size: 20 },
      { ...COPY, Null: true, Size: 0 },
    );
    run(2);
    expect(status()).toBe(IoatStatus.IDLE);
    expect(bytesAt(TO, 20)).toEqual(
      Uint8Array.from({ length: 20 }, (_, at) => Number((bytes >> BigInt(8 * (at % 8))) & 0xffn)),
    );
  });

  it.each([
    ["a source", { ...COPY, Source: 0x700_0000 }, IoatError.SOURCE_ADDRESS],
    ["a destination", { ...COPY, Destination: 0x700_0000 }, IoatError.DESTINATION_ADDRESS],
    ["an operation that it does not know", { ...COPY, Operation: 0x87 }, IoatError.CONTROL],
    ["too many bytes", { ...COPY, Size: 2 ** IOAT_TRANSFER_LG2 + 1 }, IoatError.LENGTH],
    ["no bytes", { ...COPY, Size: 0 }, IoatError.LENGTH],
  ])("halts at %s that cannot be, until it is reset", (_what, wanted, error) => {
    rig.unit.forbidden.add(0x7000);
    chain(rig, wanted);
    run(1);
    expect([status(), told()]).toEqual([IoatStatus.HALTED, 0]);
    setUp(device);
    const tell = new Uint8Array(Uint16Array.of(IoatControl.ERROR_COMPLETION).buffer);
    device.barWrite(0, IoatRegister.CHANCTRL, tell);
    run(1);
    expect([status(), get(IoatRegister.CHANERR)]).toEqual([IoatStatus.HALTED, error]);
    expect(told() & 7).toBe(IoatStatus.HALTED);
    chain(rig, { ...COPY, Size: 4 });
    run(2);
    expect(status()).toBe(IoatStatus.HALTED);
    setUp(device);
    run(1);
    expect([status(), get(IoatRegister.CHANERR)]).toEqual([IoatStatus.IDLE, 0]);
  });

  it("halts where a descriptor or the completion address is not there", () => {
    rig.unit.forbidden.add(RING / 4096);
    run(1);
    expect(get(IoatRegister.CHANERR)).toBe(IoatError.NEXT_ADDRESS);
    rig.unit.forbidden.clear();
    rig.unit.forbidden.add(COMPLETION / 4096);
    chain(rig, { ...COPY, Size: 4 });
    setUp(device);
    run(1);
    expect([status(), get(IoatRegister.CHANERR)]).toEqual([IoatStatus.HALTED, IoatError.COMPLETION_ADDRESS]);
  });

  it("is suspended, and begins the present descriptor anew when there are more", () => {
    rig.memory.writeBytes(FROM, pattern(LENGTH));
    chain(rig, COPY, { ...COPY, Null: true });
    count(device, 1);
    command(device, IoatCommand.SUSPEND);
    rig.settle();
    expect([status(), bytesAt(TO, 1)]).toEqual([IoatStatus.SUSPENDED, new Uint8Array(1)]);
    run(2);
    expect(status()).toBe(IoatStatus.IDLE);
    expect(Buffer.compare(bytesAt(TO, LENGTH), pattern(LENGTH))).toBe(0);
  });

  it("sends one interrupt, and the next when it has been armed again", () => {
    const entry = new DataView(new ArrayBuffer(16));
    entry.setUint32(0, MSI_BASE, true);
    entry.setUint32(8, 0x51, true);
    device.barWrite(0, 0x2000, new Uint8Array(entry.buffer));
    let at = device.configRead(Header.CAPABILITIES_POINTER, 1);
    while (device.configRead(at, 1) !== 0x11) at = device.configRead(at + 1, 1);
    device.configWrite(at + 2, 2, 0x8000);
    const noop: Wanted = { Null: true, Interrupt: true };
    chain(rig, noop, noop, noop, { ...noop, Operation: 0x87 });
    run(1);
    expect(rig.interrupts).toEqual([]); // INTRCTRL
    device.barWrite(0, IoatRegister.INTRCTRL, Uint8Array.of(1));
    run(2);
    run(3);
    expect([rig.interrupts, get(IoatRegister.ATTNSTATUS)]).toEqual([[0x51], 1]);
    const { INTERRUPT_DISABLE, ERROR_INTERRUPT } = IoatControl;
    const arm = new Uint8Array(Uint16Array.of(INTERRUPT_DISABLE | ERROR_INTERRUPT).buffer);
    device.barWrite(0, IoatRegister.CHANCTRL, arm);
    expect(get(IoatRegister.ATTNSTATUS)).toBe(0);
    run(4);
    expect(rig.interrupts).toEqual([0x51, 0x51]);
  });
});
