/** Config space as its user sees it, beside the physical one. */
import * as fc from "fast-check";
import { afterAll, beforeEach, describe, expect, it } from "vitest";
import { ModelHost } from "../../test/support/model-host.ts";
import { capabilitiesOf, extendedCapabilitiesOf, findCapability } from "../pci/capability-list.ts";
import { CapabilityId, Command, ExtendedCapabilityId, Header } from "../pci/spec.ts";
import { VirtualConfig } from "./config-space.ts";
import { barOf } from "./regions.ts";

const host = new ModelHost();
afterAll(() => host.memory.close());
const pci = host.endpoint;
let config: VirtualConfig;
let resets = 0;
let intxDisabled: boolean[] = [];
let msiActive = false;

beforeEach(() => {
  pci.reset();
  resets = 0;
  intxDisabled = [];
  msiActive = false;
  config = new VirtualConfig(pci, {
    reset: () => {
      resets += 1;
    },
    disableIntx: (disabled) => intxDisabled.push(disabled),
    msiActive: () => msiActive,
  });
});

const read = (at: number, width: number): number => {
  const bytes = new Uint8Array(width);
  config.read(at, bytes);
  return bytes.reduceRight((value, byte) => value * 256 + byte, 0);
};
const write = (at: number, width: number, value: number): void =>
  config.write(
    at,
    Uint8Array.from({ length: width }, (_, i) => Math.floor(value / 2 ** (8 * i))),
  );
const physical = (at: number, width: 1 | 2 | 4) => pci.configRead(at, width);
/** Whether accesses reach the BAR of memory, and that of ports. */
const decoded = (): boolean[] => [0, 4].map((bar) => config.decodes(barOf(pci, bar)!));
const at = (id: number): number => findCapability(pci, id)!;

describe("the header", () => {
  it("identity is read-only", () => {
    for (const place of [Header.VENDOR_ID, Header.REVISION_ID, Header.SUBSYSTEM_VENDOR_ID]) {
      const before = read(place, 4);
      write(place, 4, 0xffff_ffff);
      expect(read(place, 4)).toBe(before);
    }
    expect(read(0, 4)).toBe(0x5678_1234);
  });

  it("decoding and bus mastering reach the function; INTx disable does not, but is told", () => {
    write(Header.COMMAND, 2, Command.MEMORY_SPACE | Command.BUS_MASTER | Command.INTERRUPT_DISABLE);
    expect(physical(Header.COMMAND, 2)).toBe(Command.MEMORY_SPACE | Command.BUS_MASTER);
    expect(read(Header.COMMAND, 2)).toBe(
      Command.MEMORY_SPACE | Command.BUS_MASTER | Command.INTERRUPT_DISABLE,
    );
    expect(decoded()).toEqual([true, false]);
    write(Header.COMMAND, 4, Command.INTERRUPT_DISABLE);
    write(Header.COMMAND, 1, 0);
    write(Header.COMMAND + 1, 1, 0);
    expect(intxDisabled).toEqual([true, false]);
  });

  it("BARs show the host's addresses, can be sized and set, and never move the function", () => {
    const before = [0, 1, 2, 3, 4, 5].map((bar) => physical(Header.BASE_ADDRESS + 4 * bar, 4));
    expect(read(Header.BASE_ADDRESS, 4)).toBe(before[0]);
    for (let bar = 0; bar < 6; bar += 1) write(Header.BASE_ADDRESS + 4 * bar, 4, 0xffff_ffff);
    const sized = [0, 1, 2, 3, 4, 5].map((bar) => read(Header.BASE_ADDRESS + 4 * bar, 4));
    expect(sized).toEqual([0xffff_0004, 0xffff_ffff, 0, 0, 0xffff_ffe1, 0xffff_ff00]);
    write(Header.BASE_ADDRESS, 4, 0x1234_5678);
    expect(read(Header.BASE_ADDRESS, 4)).toBe(0x1234_0004);
    expect([0, 1, 2, 3, 4, 5].map((bar) => physical(Header.BASE_ADDRESS + 4 * bar, 4))).toEqual(before);
  });

  it("there is no ROM; the interrupt line is the user's own", () => {
    write(Header.EXPANSION_ROM, 4, 0xffff_f801);
    expect(read(Header.EXPANSION_ROM, 4)).toBe(0);
    write(Header.INTERRUPT_LINE, 1, 11);
    expect(read(Header.INTERRUPT_LINE, 1)).toBe(11);
    expect(physical(Header.INTERRUPT_LINE, 1)).toBe(0);
    expect(read(Header.INTERRUPT_PIN, 1)).toBe(1);
  });
});

describe("capabilities", () => {
  it("those a user can work with are in the list", () => {
    const ids: number[] = [];
    for (let place = read(Header.CAPABILITIES_POINTER, 1); place !== 0; place = read(place + 1, 1))
      ids.push(read(place, 1));
    expect(ids).toEqual([CapabilityId.PM, CapabilityId.MSI, CapabilityId.MSIX, CapabilityId.EXPRESS]);
  });

  it("the PASID capability is not, though the function has it", () => {
    expect(extendedCapabilitiesOf(pci).map(({ id }) => id)).toEqual([3, 0x1b]);
    expect(read(0x100, 2)).toBe(3);
    expect(read(0x100, 4) >>> 20).toBe(0);
    const pasid = extendedCapabilitiesOf(pci)[1]!.at;
    expect(read(pasid, 4)).toBe(0);
    write(pasid + 6, 2, 7);
    expect(physical(pasid + 6, 2)).toBe(0);
  });

  it("the PASID capability is where users have PASIDs, to be read only", () => {
    const shown = new VirtualConfig(
      pci,
      { reset: () => {}, disableIntx: () => {}, msiActive: () => false },
      { pasid: true },
    );
    const word = (place: number): number => {
      const bytes = new Uint8Array(4);
      shown.read(place, bytes);
      return new DataView(bytes.buffer).getUint32(0, true);
    };
    const pasid = extendedCapabilitiesOf(pci)[1]!.at;
    expect(word(0x100) >>> 20).toBe(pasid);
    expect(word(pasid)).toBe(physical(pasid, 4));
    expect(word(pasid) & 0xffff).toBe(ExtendedCapabilityId.PASID);
    expect(word(pasid + 4)).toBe(physical(pasid + 4, 4));
    const before = word(pasid + 4);
    shown.write(pasid, new Uint8Array(8).fill(0xff));
    expect([word(pasid + 4), physical(pasid + 4, 4)]).toEqual([before, before]);
  });

  it("MSI-X is turned on by SET_IRQS only", () => {
    const control = at(CapabilityId.MSIX) + 2;
    write(control, 2, 0xc000);
    expect(physical(control, 2)).toBe(7);
    expect(read(control, 2)).toBe(7);
  });

  it("MSI's address and data are the user's own; enabling works while SET_IRQS has set MSI up", () => {
    const place = at(CapabilityId.MSI);
    write(place + 4, 4, 0xfee0_1003);
    write(place + 8, 4, 1);
    write(place + 12, 2, 0x4041);
    write(place + 2, 2, 0x0021);
    expect([read(place + 4, 4), read(place + 8, 4), read(place + 12, 2)]).toEqual([0xfee0_1000, 1, 0x4041]);
    expect([physical(place + 4, 4), physical(place + 12, 2)]).toEqual([0, 0]);
    expect(read(place + 2, 2) & 0x71).toBe(0x20);
    msiActive = true;
    write(place + 2, 2, 0x0001);
    expect(physical(place + 2, 2) & 1).toBe(1);
    expect(read(place + 2, 2) & 0x71).toBe(1);
  });

  it("function-level reset is asked of the host and reads 0; payload sizes are the user's own", () => {
    const control = at(CapabilityId.EXPRESS) + 8;
    const before = physical(control, 2);
    write(control, 2, 0x8000 | 0x5000 | 0x0020 | 0x0008);
    expect(resets).toBe(1);
    expect(read(control, 2)).toBe(0x5028);
    expect(physical(control, 2)).toBe((before & 0x70e0) | 0x0008);
    write(control + 1, 1, 0x80);
    expect(resets).toBe(2);
  });

  it("the power state reaches the function", () => {
    const control = at(CapabilityId.PM) + 4;
    write(control, 2, 3);
    expect(physical(control, 2) & 3).toBe(3);
    expect(decoded()).toEqual([false, false]);
    write(control, 2, 0);
    expect(decoded()).toEqual([true, true]);
    expect(physical(control, 2) & 3).toBe(0);
  });

  it("a list that goes round in circles ends", () => {
    const circle = Object.create(pci) as typeof pci;
    circle.configRead = (offset, width) =>
      offset === at(CapabilityId.PM) + 1 ? at(CapabilityId.PM) : pci.configRead(offset, width);
    expect(capabilitiesOf(circle)).toHaveLength(64);
    const empty = Object.create(pci) as typeof pci;
    empty.configRead = (offset, width) => (offset === Header.STATUS ? 0 : pci.configRead(offset, width));
    expect(capabilitiesOf(empty)).toEqual([]);
    expect(findCapability(empty, 1)).toBeUndefined();
  });
});

it("an access of any size is the same as its bytes one by one", () => {
  fc.assert(
    fc.property(fc.nat(4000), fc.integer({ min: 1, max: 96 }), (offset, length) => {
      const whole = new Uint8Array(length);
      config.read(offset, whole);
      expect([...whole]).toEqual(Array.from({ length }, (_, i) => read(offset + i, 1)));
    }),
  );
});

it("whatever is written, BARs, MSI-X and PASID of the function stay as they are", () => {
  const kept = [
    ...[0, 1, 2, 3, 4, 5].map((bar) => Header.BASE_ADDRESS + 4 * bar),
    at(CapabilityId.MSIX),
    extendedCapabilitiesOf(pci)[1]!.at + 4,
  ];
  const before = kept.map((place) => physical(place, 4));
  fc.assert(
    fc.property(fc.nat(4095), fc.uint8Array({ minLength: 1, maxLength: 64 }), (offset, data) => {
      config.write(offset, data.subarray(0, Math.min(data.length, 4096 - offset)));
      expect(kept.map((place) => physical(place, 4))).toEqual(before);
    }),
    { numRuns: 500 },
  );
});
