import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { MachineFileError, parseDevice, parseMachine, withDevices } from "./file.ts";
import { parseSize } from "./schema.ts";

const complaintsOf = (run: () => unknown): string => {
  try {
    run();
  } catch (error) {
    if (error instanceof MachineFileError) return error.message;
    throw error;
  }
  throw new Error("nothing was wrong");
};

const machine = `
name: mine
units:
  - model: vtd
devices:
  - model: nvme
    at: "0000:01:00.0"
    size: 64M
`;

const DSA = "  - model: dsa\n    at: 03:00.0\n";
const UUID = "0f0e0d0c-509f-382f-3c1e-e6bfe0fa1003";

describe("a machine file", () => {
  it("is read with defaults filled in", () => {
    const parsed = parseMachine(machine, "m.yaml");
    expect(parsed.units[0]).toMatchObject({ name: "dmar0", "address-widths": [39, 48], "fault-records": 8 });
    expect(parsed.devices[0]).toMatchObject({ model: "nvme", size: 64 * 2 ** 20, queues: 16 });
    expect(parsed.memory.ram).toBe(2 ** 30);
  });

  it.each([
    [
      "no IOMMU, unsaid",
      machine.replace("size: 64M", "unit: none"),
      /^m\.yaml:8: devices\.0\.unit: .*no-iommu: true$/,
    ],
    [
      "a unit named none",
      machine.replace("model: vtd", "model: vtd\n    name: none"),
      /^m\.yaml:5: units\.0\.name: none stands for no unit at all$/,
    ],
    [
      "work queues without an IOMMU",
      `${machine}    unit: none\nno-iommu: true`.replace("nvme", "queues").replace("    size: 64M\n", ""),
      /^m\.yaml:8: devices\.0\.unit: .*needs an IOMMU/,
    ],
    [
      "a group with and without an IOMMU",
      `${machine}    group: both\n  - {model: bare, at: "0000:02:00.0", group: both, unit: none}\nno-iommu: true`,
      /^m\.yaml:10: devices\.1\.group: others of group both are behind a unit$/,
    ],
    ["a misspelt key", machine.replace("size:", "sise:"), /^m\.yaml:8: devices\.0\.sise: no such setting$/m],
    [
      "a value of the wrong kind",
      machine.replace("64M", "lots"),
      /^m\.yaml:8: devices\.0\.size: .*such as "1G"/m,
    ],
    [
      "a further namespace with a setting it cannot have",
      `${machine}    more-namespaces:\n      - {size: 1M}\n      - {serial: X}\n`,
      /^m\.yaml:11: devices\.0\.more-namespaces\.1\.serial: no such setting$/m,
    ],
    [
      "an address out of range",
      machine.replace("01:00.0", "01:20.0"),
      /^m\.yaml:7: devices\.0\.at: .*00 to 1f/m,
    ],
    [
      "an unknown model",
      machine.replace("nvme", "nvm"),
      /^m\.yaml:6: devices\.0\.model: "nvm" .*one of nvme, test, queues, dsa, ioat, edu, ats-test, bare/m,
    ],
    ["a missing part", "name: mine\nunits:\n  - model: vtd\n", /^m\.yaml:1: devices: it is missing/m],
    ["text that is not YAML", "name: [", /^m\.yaml:\d+: /],
    [
      "two devices at one address",
      `${machine}  - model: test\n    at: "0000:01:00.0"\n`,
      /^m\.yaml:10: devices\.1\.at: there is another device at 0000:01:00\.0$/m,
    ],
    [
      "a BAR that cannot be",
      `${machine}  - model: bare\n    at: 05:00.0\n    bars:\n      - size: 3K\n`,
      /^m\.yaml:12: devices\.1\.bars\.0\.size: 3072 bytes: a BAR has a power of two from 16 to 16M$/m,
    ],
    [
      "guests' tables above none of the host's",
      machine.replace("model: vtd", "model: vtd\n    mode: scalable\n    stages: [first, nested]"),
      /^m\.yaml:6: units\.0\.stages: nested needs first and second as well$/m,
    ],
    [
      "more BARs than a function has places for",
      `${machine}  - model: bare\n    at: 05:00.0\n    bars:\n${"      - {kind: mem64, size: 4K}\n".repeat(4)}`,
      /^m\.yaml:12: devices\.1\.bars: they take 8 places/m,
    ],
    [
      "a device without any unit",
      machine.replace("  - model: vtd", "  []"),
      /^m\.yaml:6: devices\.0: the machine has no unit; a device needs one in front of it$/m,
    ],
    [
      "an extension of units that are not there",
      `${machine}extensions: [vsva2020, amd-nesting, s390-nesting, apertures]\n`,
      /^m\.yaml:9: extensions\.1: amd-nesting needs a unit of model amdvi; there is none$[\s\S]*s390-nesting needs a unit of model zpci[\s\S]*apertures needs a unit of model tce/m,
    ],
    [
      "a unit that is not there",
      `${machine}    unit: dmar7\n`,
      /^m\.yaml:9: devices\.0\.unit: no unit is named dmar7; there is dmar0$/m,
    ],
    [
      "a mediated device without a parent, or a UUID",
      `${machine}mdevs:\n  - uuid: 0f0e\n    parent: 01:00.0\n    type: software\n`,
      /^m\.yaml:10: mdevs\.0\.uuid: .*a UUID, such as/m,
    ],
    [
      "a mediated device of a function that has no work queues",
      `${machine}mdevs:\n  - uuid: ${UUID}\n    parent: 01:00.0\n    type: software\n`,
      /^m\.yaml:11: mdevs\.0\.parent: there is no device of model queues at 0000:01:00\.0$/m,
    ],
    [
      "a mediated device that is IOMMU-backed on a faithful machine",
      `${machine}  - model: queues\n    at: 07:00.0\nmdevs:\n  - uuid: ${UUID}\n    parent: 07:00.0\n    type: queue\n`,
      /^m\.yaml:14: mdevs\.0\.type: .*needs extensions: \[vsva2020\]/m,
    ],
    [
      "two mediated devices of one UUID",
      `${machine}  - model: queues\n    at: 07:00.0\nmdevs:\n${`  - uuid: ${UUID}\n    parent: 07:00.0\n    type: software\n`.repeat(2)}`,
      /^m\.yaml:15: mdevs\.1\.uuid: there is another mediated device/m,
    ],
    [
      "a group of a function with work queues that others are in",
      `${machine}    group: both\n  - model: queues\n    at: 07:00.0\n    group: both\n`,
      /^m\.yaml:12: devices\.1\.group: .*it cannot be shared$/m,
    ],
    [
      "work queues for programs on a faithful machine",
      `${machine}${DSA}    user-queues: 2\n`,
      /^m\.yaml:\d+: devices\.1\.user-queues: .*extensions: \[wq-chardev\]$/m,
    ],
    [
      "an accelerator with queues for programs that shares its group",
      `${machine}${DSA}    user-queues: 2\n    group: g\n  - model: bare\n    at: 0000:05:00.0\n    group: g\nextensions: [wq-chardev]\n`,
      /^m\.yaml:\d+: devices\.1\.group: .*it cannot be shared$/m,
    ],
  ])("names file, line and what is allowed for %s", (_what, text, expected) => {
    expect(complaintsOf(() => parseMachine(text, "m.yaml"))).toMatch(expected);
  });

  it("wants RAM in whole pages, below the addresses of BARs", () => {
    const withRam = (ram: string) => () => parseMachine(`${machine}memory:\n  ram: ${ram}\n`, "m.yaml");
    expect(withRam("64G")().memory.ram).toBe(2 ** 36);
    expect(complaintsOf(withRam("5000"))).toMatch(/^m\.yaml:10: memory\.ram: .*a multiple of 4K$/);
    expect(complaintsOf(withRam("65G"))).toMatch(/at most 64G$/);
  });

  it("that is anything at all is read or refused, and nothing else happens", () => {
    const value = fc.oneof(
      fc.string(),
      fc.json(),
      fc
        .object({ key: fc.constantFrom("name", "units", "devices", "model", "at", "bars", "__proto__") })
        .map((object) => JSON.stringify(object)),
      fc.string().map((text) => machine.replace("64M", text)),
    );
    fc.assert(
      fc.property(value, (text) => {
        try {
          parseMachine(text, "m.yaml");
        } catch (error) {
          expect(error).toBeInstanceOf(MachineFileError);
        }
      }),
    );
    const laughs = Array.from({ length: 9 }, (_, i) => `l${i + 1}: &l${i + 1} [${`*l${i},`.repeat(9)}]`);
    const bomb = `l0: &l0 [lol]\n${laughs.join("\n")}\n`;
    expect(complaintsOf(() => parseMachine(bomb, "m.yaml"))).toContain("m.yaml:");
  });

  it("tells all complaints at once", () => {
    const text = machine.replace("64M", "lots").replace("model: vtd", "model: vtd\n    fault-records: 0");
    expect(complaintsOf(() => parseMachine(text, "m.yaml")).split("\n")).toHaveLength(2);
  });
});

describe("--device", () => {
  it("is a device with settings", () => {
    expect(parseDevice("nvme@01:00.0,file=a=b.img,size=1G,serial=0042")).toMatchObject({
      model: "nvme",
      at: "0000:01:00.0",
      file: "a=b.img",
      size: 2 ** 30,
      serial: "0042",
    });
  });

  it.each(["nvme", "nvme@1", "disk@0000:01:00.0", "nvme@0000:01:00.0,size", "nvme@0000:01:00.0,colour=red"])(
    "repeats the option and says what is wrong: %s",
    (option) => expect(complaintsOf(() => parseDevice(option))).toContain(`--device ${option}: `),
  );

  it("given twice at one address, is what was said last", () => {
    const twice = [parseDevice("test@0000:05:00.0"), parseDevice("bare@0000:05:00.0")];
    const { devices } = withDevices(parseMachine(machine, "m.yaml"), twice);
    expect(devices.map(({ model, at }) => `${model} ${at}`)).toEqual([
      "nvme 0000:01:00.0",
      "bare 0000:05:00.0",
    ]);
  });

  it("replaces what stood at its address and is added elsewhere", () => {
    const parsed = parseMachine(machine, "m.yaml");
    const changed = withDevices(parsed, [parseDevice("test@0000:01:00.0"), parseDevice("bare@0000:05:00.0")]);
    expect(changed.devices.map(({ model, at }) => `${model} ${at}`)).toEqual([
      "test 0000:01:00.0",
      "bare 0000:05:00.0",
    ]);
    expect(parsed.devices).toHaveLength(1);
  });
});

describe("a size", () => {
  it.each([
    ["4096", 4096],
    ["64K", 65536],
    ["1GiB", 2 ** 30],
    ["1.5G", undefined],
    ["-1", undefined],
    ["", undefined],
    ["99999999999T", undefined],
  ])("%s", (text, bytes) => expect(parseSize(text)).toBe(bytes));
});
