/**
 * What every device model must be able to stand. A model's test file calls `functionSuite` with how to make one and,
 * if it makes requests, how to have it work: the suite then also runs that work with random stalls and compares.
 */
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Random } from "../base/clock.ts";
import type { Endpoint, FunctionContext } from "./pci-function.ts";
import { Rig, turnOn, turnOnServices } from "./rig.suite.ts";
import { BAR_COUNT, BarBits, CapabilityId, Header, Status } from "./spec.ts";

export interface FunctionUnderTest {
  create(context: FunctionContext): Endpoint;
  /**
   * Puts the device to work from power-on and returns what a driver saw of it: data and statuses. Calls `rig.settle`
   * whenever it waits. It must not depend on the order in which independent requests complete.
   */
  work?(device: Endpoint, rig: Rig): readonly (number | string | Uint8Array)[];
  /** Begins work and returns without waiting. */
  begin?(device: Endpoint, rig: Rig): void;
}

/** Everything a CPU can see of the function without side effects of its own. */
const visible = (device: Endpoint) => {
  const config = new Uint8Array(device.configSize);
  for (let at = 0; at < config.length; at++) config[at] = device.configRead(at, 1);
  return comparable([
    config,
    ...device.bars.map((bar) => {
      const bytes = new Uint8Array(Math.min(bar.size, 16 * 1024));
      for (let at = 0; at < bytes.length; at += 64)
        device.barRead(bar.index, at, bytes.subarray(at, at + 64));
      return bytes;
    }),
  ]);
};

/** Bytes as text, which is compared a thousand times faster than element by element. */
const comparable = (seen: readonly (number | string | Uint8Array)[]) =>
  seen.map((one) => (one instanceof Uint8Array ? Buffer.from(one).toString("latin1") : one));

/** Offsets of the capabilities with their ids; throws when the list loops. */
const capabilitiesOf = (device: Endpoint): Map<number, number> => {
  const found = new Map<number, number>();
  let at = device.configRead(Header.CAPABILITIES_POINTER, 1);
  while (at !== 0) {
    if ([...found.values()].includes(at)) throw new Error(`the list comes back to 0x${at.toString(16)}`);
    found.set(device.configRead(at, 1), at);
    at = device.configRead(at + 1, 1);
  }
  return found;
};

export const functionSuite = (name: string, under: FunctionUnderTest): void => {
  describe(`${name} as a PCI function`, () => {
    let rig: Rig;
    let device: Endpoint;
    beforeEach(() => {
      rig = new Rig();
      device = under.create(rig.context);
    });
    afterEach(() => {
      device.close();
      rig.close();
    });

    describe("§7.5 config space", () => {
      it("has a list of capabilities that is aligned, within the first 256 bytes, and ends", () => {
        expect(device.configRead(Header.STATUS, 2) & Status.CAPABILITIES_LIST).not.toBe(0);
        const found = capabilitiesOf(device);
        for (const at of found.values()) {
          expect(at % 4).toBe(0);
          expect(at).toBeGreaterThanOrEqual(0x40);
          expect(at).toBeLessThan(0x100);
        }
        expect(found.has(CapabilityId.PM) && found.has(CapabilityId.EXPRESS)).toBe(true);
      });

      it("has a list of extended capabilities that is aligned and ends", () => {
        const seen = new Set<number>();
        let at = 0x100;
        while (at !== 0) {
          expect(seen.has(at)).toBe(false);
          seen.add(at);
          expect(at % 4).toBe(0);
          const header = device.configRead(at, 4);
          if (header === 0) expect(at).toBe(0x100); // none at all
          at = header >>> 20;
        }
      });

      it("§6.2.5.1 tells the size of each BAR when ones are written, and takes its address back", () => {
        const used = new Set<number>();
        for (const bar of device.bars) {
          const at = Header.BASE_ADDRESS + 4 * bar.index;
          const before = device.configRead(at, 4);
          const flags = bar.kind === "io" ? BarBits.IO_FLAGS : BarBits.MEMORY_FLAGS;
          device.configWrite(at, 4, 0xffff_ffff);
          let mask = BigInt((device.configRead(at, 4) & ~flags) >>> 0);
          used.add(bar.index);
          if (bar.kind === "mem64") {
            used.add(bar.index + 1);
            const high = device.configRead(at + 4, 4);
            expect(high * 2 ** 32 + ((before & ~flags) >>> 0)).toBe(bar.base);
            device.configWrite(at + 4, 4, 0xffff_ffff);
            mask |= BigInt(device.configRead(at + 4, 4)) << 32n;
            device.configWrite(at + 4, 4, high);
          } else {
            mask |= 0xffff_ffff_0000_0000n;
            expect((before & ~flags) >>> 0).toBe(bar.base);
          }
          expect(BigInt.asUintN(64, ~mask) + 1n).toBe(BigInt(bar.size));
          device.configWrite(at, 4, before);
          expect(device.configRead(at, 4)).toBe(before);
        }
        for (let index = 0; index < BAR_COUNT; index++)
          if (!used.has(index)) {
            device.configWrite(Header.BASE_ADDRESS + 4 * index, 4, 0xffff_ffff);
            expect(device.configRead(Header.BASE_ADDRESS + 4 * index, 4)).toBe(0);
          }
      });

      it("keeps identity, class and the list itself from being written", () => {
        const readOnly = [Header.VENDOR_ID, Header.REVISION_ID, Header.SUBSYSTEM_VENDOR_ID];
        const before = readOnly.map((at) => device.configRead(at, 4));
        for (const at of readOnly) device.configWrite(at, 4, 0xffff_ffff);
        expect(readOnly.map((at) => device.configRead(at, 4))).toEqual(before);
        const list = capabilitiesOf(device);
        for (const at of list.values()) device.configWrite(at, 2, 0xffff);
        device.configWrite(Header.CAPABILITIES_POINTER, 1, 0);
        expect(capabilitiesOf(device)).toEqual(list);
      });

      it("reads ones beyond its end", () => {
        expect(device.configRead(device.configSize, 4)).toBe(0xffff_ffff);
        device.configWrite(device.configSize, 4, 0);
        device.configWrite(device.configSize - 2, 4, 0);
      });
    });

    it("§7.5.1.1.3 answers no BAR access while memory decoding is off, nor outside the BAR", () => {
      const bytes = new Uint8Array(8);
      device.configWrite(Header.COMMAND, 2, 0);
      for (const bar of device.bars) {
        device.barRead(bar.index, 0, bytes);
        expect([...bytes]).toEqual(new Array(8).fill(0xff));
      }
      turnOn(device);
      for (const bar of device.bars) {
        bytes.fill(0);
        device.barRead(bar.index, bar.size - 4, bytes);
        expect([...bytes]).toEqual(new Array(8).fill(0xff));
      }
    });

    it("§6.6.2 a function-level reset gives the power-on state, from any state", () => {
      const fresh = visible(device);
      const random = new Random(7);
      turnOn(device);
      scribble(device, random, 300);
      under.begin?.(device, rig);
      rig.settle();
      const express = capabilitiesOf(device).get(CapabilityId.EXPRESS)!;
      device.configWrite(express + 8, 2, 0x8000);
      rig.settle();
      expect(visible(device)).toEqual(fresh);
      expect(device.intx).toBe(false);
    });

    it("stands random writes to config space and BARs, and its work stays bounded", () => {
      fc.assert(
        fc.property(fc.integer({ min: 0, max: 0x7fff_ffff }), (seed) => {
          const random = new Random(seed);
          for (let round = 0; round < 4; round++) {
            turnOn(device);
            scribble(device, random, 100);
            if (random.below(4) === 0) under.begin?.(device, rig);
            rig.work.run(500);
            rig.unit.resume(random.below(2) === 0);
          }
          device.reset();
          rig.settle();
        }),
        { numRuns: 30 },
      );
    });

    const { work, begin } = under;
    if (begin)
      it("drops what is parked at a reset: a late answer of the unit changes nothing", () => {
        turnOn(device);
        rig.unit.stall = () => true;
        begin(device, rig);
        rig.work.run(1000);
        expect(rig.unit.stalled).toBeGreaterThan(0);
        expect(rig.bridge.parked).toBeGreaterThan(0);
        device.reset();
        expect(rig.bridge.parked).toBe(0);
        const fresh = visible(device);
        const before = new Uint8Array(1 << 20);
        rig.memory.readBytes(0x10_0000, before);
        rig.unit.stall = () => false;
        rig.settle();
        const after = new Uint8Array(1 << 20);
        rig.memory.readBytes(0x10_0000, after);
        expect(visible(device)).toEqual(fresh);
        expect(Buffer.compare(before, after)).toBe(0);
      });

    if (work)
      it("does the same work whether its requests stall or not, with translations of its own or without", () => {
        turnOn(device);
        const expected = comparable(work(device, rig));
        fc.assert(
          fc.property(
            fc.integer({ min: 0, max: 0x7fff_ffff }),
            fc.integer({ min: 2, max: 5 }),
            fc.boolean(),
            (seed, oneIn, services) => {
              const random = new Random(seed);
              const other = new Rig();
              const stalling = under.create(other.context);
              other.unit.stall = () => random.below(oneIn) === 0;
              turnOn(stalling);
              if (services) turnOnServices(stalling);
              const seen = comparable(work(stalling, other));
              const { parked, resumed, failed, dropped } = stalling.waits;
              expect([resumed + dropped, failed, other.bridge.parked]).toEqual([parked, 0, 0]);
              stalling.close();
              other.close();
              expect(seen).toEqual(expected);
            },
          ),
          { numRuns: 12 },
        );
      });
  });
};

/** Random writes of every width, more of them near the start of each BAR; config writes only where no reset hides. */
const scribble = (device: Endpoint, random: Random, times: number): void => {
  const widths = [1, 2, 4] as const;
  for (let i = 0; i < times; i++) {
    if (random.below(4) === 0) {
      const width = widths[random.below(3)]!;
      const at = random.below(8) === 0 ? random.below(device.configSize) : random.below(0x100);
      device.configWrite(at & -width, width, random.next());
      continue;
    }
    turnOn(device);
    const bar = device.bars[random.below(device.bars.length)];
    if (!bar) continue;
    const bytes = new Uint8Array(random.below(5) === 0 ? 1 + random.below(64) : 4);
    for (let b = 0; b < bytes.length; b++) bytes[b] = random.next();
    const near = random.below(3) > 0 ? random.below(0x60) : random.below(bar.size);
    const at = random.below(8) === 0 ? near : near & ~3;
    if (random.below(3) === 0) device.barRead(bar.index, at, bytes);
    else device.barWrite(bar.index, at, bytes);
  }
};
