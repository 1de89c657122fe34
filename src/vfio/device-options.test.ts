/** What a function may have beside BARs and interrupts, as its user sees it: ROM, vector table kept out of mappings, capabilities. */
import { afterEach, describe, expect, it } from "vitest";
import { ModelHost, MSIX_TABLE, TestEndpoint } from "../../test/support/model-host.ts";
import { outcome, VfioClient } from "../../test/support/vfio-client.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { errorReporting, serialNumber, vendorSpecific } from "../pci/capabilities.ts";
import { capabilitiesOf, extendedCapabilitiesOf } from "../pci/capability-list.ts";
import type { Capability } from "../pci/config.ts";
import { CapabilityId, Command, ErrorBits, ExtendedCapabilityId, Header } from "../pci/spec.ts";
import {
  VFIO_PCI_CONFIG_REGION_INDEX as CONFIG,
  VFIO_PCI_ROM_REGION_INDEX as ROM,
  VFIO_DEVICE_GET_REGION_INFO,
  VFIO_REGION_INFO_FLAG_CAPS,
  VFIO_REGION_INFO_FLAG_MMAP,
  VFIO_REGION_INFO_FLAG_READ,
  VFIO_REGION_INFO_FLAG_WRITE,
  VfioRegionInfo,
  VfioRegionInfoCapSparseMmap,
} from "../uapi/vfio.ts";
import { regionOffset } from "./regions.ts";
import { VfioSubsystem } from "./subsystem.ts";

const PAGE = 4096;
/** Nobody knows this one. */
const UNKNOWN: Capability = { id: 0x7e, bytes: 8, registers: [{ offset: 4, width: 4, value: 0x1234_5678 }] };

interface Shape {
  readonly rom?: Uint8Array;
  readonly sparse?: boolean;
  readonly capabilities?: readonly Capability[];
}

let host: ModelHost;
let client: VfioClient;
let device: number;

const start = ({ rom, sparse = false, capabilities = [] }: Shape): void => {
  host = new ModelHost({
    makeEndpoint: (shape, context) =>
      new TestEndpoint({ ...shape, capabilities }, { ...context, rom, sparse }),
  });
  const vfio = new VfioSubsystem(host);
  client = new VfioClient(new ModelTask(host.memory), vfio);
  device = client.device(client.attach(0).group, host.endpoint.name);
};
afterEach(() => {
  client.task.exit();
  host.memory.close();
});

const place = (region: number, at: number): bigint => regionOffset(region) + BigInt(at);
const pread = (region: number, at: number, length: number): unknown =>
  outcome(() => {
    const into = new Uint8Array(length);
    return [...into.subarray(0, client.task.pread(device, place(region, at), into))];
  });
const pwrite = (region: number, at: number, ...bytes: number[]): unknown =>
  outcome(() => client.task.pwrite(device, place(region, at), Uint8Array.from(bytes)));
const config = (at: number, width: number): number => {
  const bytes = pread(CONFIG, at, width) as number[];
  return bytes.reduceRight((value, byte) => value * 256 + byte, 0);
};
const setConfig = (at: number, value: number): unknown =>
  pwrite(CONFIG, at, ...new Uint8Array(Uint32Array.of(value).buffer));

describe("an expansion ROM", () => {
  const contents = Uint8Array.from({ length: 3000 }, (_, i) => i % 251);

  it("is a region of a power of two, to be read only, with ones after its contents", () => {
    start({ rom: contents });
    expect(client.region(device, ROM)).toMatchObject({ flags: VFIO_REGION_INFO_FLAG_READ, size: 4096n });
    expect(pread(ROM, 100, 5)).toEqual([100, 101, 102, 103, 104]);
    expect(pread(ROM, 2998, 4)).toEqual([2998 % 251, 2999 % 251, 255, 255]);
    expect(pread(ROM, 4000, 200)).toHaveLength(96);
    expect(pread(ROM, 4096, 1)).toBe("EINVAL");
    expect(pwrite(ROM, 0, 1)).toBe("EINVAL");
  });

  it("cannot be mapped, and does not answer while memory decoding is off", () => {
    start({ rom: contents });
    const map = () =>
      client.task.mmap(
        device,
        { va: 0x10_0000, length: PAGE },
        { offset: place(ROM, 0), protection: 3, flags: 1 },
      );
    expect(outcome(map)).toBe("EINVAL");
    pwrite(CONFIG, Header.COMMAND, 0, 0);
    expect(pread(ROM, 0, 4)).toBe("EIO");
    pwrite(CONFIG, Header.COMMAND, Command.MEMORY_SPACE, 0);
    expect(pread(ROM, 0, 2)).toEqual([0, 1]);
  });

  it("can be sized and turned on in config space, and stays where it is", () => {
    start({ rom: contents });
    const physical = host.endpoint.configRead(Header.EXPANSION_ROM, 4);
    expect(config(Header.EXPANSION_ROM, 4)).toBe(physical);
    setConfig(Header.EXPANSION_ROM, 0xffff_fffe);
    expect(config(Header.EXPANSION_ROM, 4)).toBe(0xffff_f000);
    setConfig(Header.EXPANSION_ROM, 0xffff_ffff);
    expect(config(Header.EXPANSION_ROM, 4)).toBe(0xffff_f001);
    expect(host.endpoint.configRead(Header.EXPANSION_ROM, 4)).toBe(physical);
  });

  it("is nothing where there is none, and no larger than 16 MiB", () => {
    start({});
    expect(client.region(device, ROM)).toMatchObject({ flags: 0, size: 0n });
    expect(pread(ROM, 0, 4)).toBe("EINVAL");
    setConfig(Header.EXPANSION_ROM, 0xffff_ffff);
    expect(config(Header.EXPANSION_ROM, 4)).toBe(0);
    const { bridge, barBase, scheduler, clock, address } = contextOf();
    const rom = new Uint8Array(2 ** 24 + 1);
    const shape = { model: "t", vendorId: 1, deviceId: 1, classCode: 0, bars: [] };
    const make = () => new TestEndpoint(shape, { bridge, barBase, scheduler, clock, address, rom });
    expect(make).toThrow("16777216 are the most");
  });
});

/** That of a function of another host. */
const contextOf = (): ConstructorParameters<typeof TestEndpoint>[1] => {
  let found: ConstructorParameters<typeof TestEndpoint>[1] | undefined;
  const other = new ModelHost({
    groups: [["03:00"]],
    makeEndpoint: (shape, context) => {
      found = context;
      return new TestEndpoint(shape, context);
    },
  });
  other.memory.close();
  return found!;
};

describe("mappings without the vector table", () => {
  const areas = (): unknown => {
    const bytes = new Uint8Array(256);
    VfioRegionInfo.write(bytes, { argsz: bytes.length, index: 0 });
    client.task.ioctl(device, VFIO_DEVICE_GET_REGION_INFO, bytes);
    const { flags, cap_offset } = VfioRegionInfo.read(bytes);
    const access = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    expect(flags).toBe(access | VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS);
    const { header, areas } = VfioRegionInfoCapSparseMmap.read(bytes, cap_offset);
    return { id: header.id, version: header.version, areas };
  };
  const map = (at: number, length: number): unknown =>
    outcome(() =>
      client.task.mmap(device, { va: 0x10_0000, length }, { offset: place(0, at), protection: 3, flags: 1 }),
    );

  it("are told as areas, and what is none of them cannot be mapped", () => {
    start({ sparse: true });
    const after = BigInt(MSIX_TABLE + PAGE);
    expect(areas()).toEqual({
      id: 1,
      version: 1,
      areas: [
        { offset: 0n, size: BigInt(MSIX_TABLE) },
        { offset: after, size: 0x1_0000n - after },
      ],
    });
    expect(map(0, MSIX_TABLE)).toBeUndefined();
    expect(map(MSIX_TABLE + PAGE, PAGE)).toBeUndefined();
    expect(map(MSIX_TABLE, PAGE)).toBe("EINVAL");
    expect(map(0, MSIX_TABLE + PAGE)).toBe("EINVAL");
    expect(map(0, 0x1_0000)).toBe("EINVAL");
  });

  it("are all of the BAR by default, and of other BARs", () => {
    start({});
    expect(client.region(device, 0).capabilities).toEqual([3]);
    expect(map(0, 0x1_0000)).toBeUndefined();
    start({ sparse: true });
    expect(client.region(device, 5)).toMatchObject({ flags: 7, capabilities: [] });
  });
});

describe("capabilities", () => {
  it("what a vendor keeps is the user's to read and write, byte by byte too", () => {
    start({ capabilities: [vendorSpecific(Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8, 9))] });
    const { at } = capabilitiesOf(host.endpoint).find(({ id }) => id === CapabilityId.VENDOR)!;
    expect(pread(CONFIG, at, 12)).toEqual([CapabilityId.VENDOR, 0, 12, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    pwrite(CONFIG, at, 1, 2, 3, 44);
    pwrite(CONFIG, at + 5, 55, 66, 77, 88);
    expect(pread(CONFIG, at, 12)).toEqual([CapabilityId.VENDOR, 0, 12, 44, 2, 55, 66, 77, 88, 7, 8, 9]);
    expect(host.endpoint.configRead(at + 3, 1)).toBe(44);
  });

  it("those that nobody knows are not in the list", () => {
    start({ capabilities: [UNKNOWN, vendorSpecific(new Uint8Array(1))] });
    const seen: number[] = [];
    for (let at = config(Header.CAPABILITIES_POINTER, 1); at; at = config(at + 1, 1))
      seen.push(config(at, 1));
    expect(seen).toContain(CapabilityId.VENDOR);
    expect(seen).not.toContain(UNKNOWN.id);
    const physical = capabilitiesOf(host.endpoint).map(({ id }) => id);
    expect(physical.filter((id) => id !== UNKNOWN.id)).toEqual(seen);
  });

  it("masks and severities of errors are the user's own copies", () => {
    start({ capabilities: [errorReporting(), serialNumber(1, 2)] });
    const { at } = extendedCapabilitiesOf(host.endpoint).find(
      ({ id }) => id === ExtendedCapabilityId.ERRORS,
    )!;
    expect(config(at + 0x0c, 4)).toBe(ErrorBits.FATAL);
    for (const register of [0x08, 0x0c, 0x14]) setConfig(at + register, 0xffff_ffff);
    expect([0x08, 0x0c, 0x14].map((register) => config(at + register, 4))).toEqual([
      ErrorBits.UNCORRECTABLE,
      ErrorBits.UNCORRECTABLE,
      ErrorBits.CORRECTABLE | ErrorBits.ADVISORY,
    ]);
    expect([0x08, 0x0c, 0x14].map((register) => host.endpoint.configRead(at + register, 4))).toEqual([
      0,
      ErrorBits.FATAL,
      ErrorBits.ADVISORY,
    ]);
  });
});
