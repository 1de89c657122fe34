/**
 * Machine files and `--device` options, from text to a checked description. Every complaint names the place (file and
 * line, or the option), what was found there and what is allowed; all complaints are told at once.
 */
import * as v from "valibot";
import { type Document, isMap, isNode, isSeq, LineCounter, type Node, parseDocument } from "yaml";
import {
  type DeviceDescription,
  deviceSchema,
  type Extension,
  type MachineDescription,
  machineSchema,
  NO_UNIT,
} from "./schema.ts";

/** Text that is no machine; `message` has one line a complaint. */
export class MachineFileError extends Error {
  override readonly name = "MachineFileError";
}

/** The checked description in a machine file. Throws MachineFileError. */
export const parseMachine = (text: string, file: string): MachineDescription => {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  if (document.errors.length > 0)
    throw new MachineFileError(
      document.errors
        .map((error) => `${file}:${lines.linePos(error.pos[0]).line}: ${error.message.split("\n")[0]}`)
        .join("\n"),
    );
  const result = v.safeParse(machineSchema, plainValue(document, file));
  const complaints = result.success
    ? crossChecks(result.output)
    : result.issues.flatMap((issue) => flatten(issue)).map(describe);
  if (complaints.length === 0 && result.success) return result.output;
  throw new MachineFileError(
    complaints
      .map(({ path, text }) => `${file}:${lineOf(document, lines, path)}: ${pathText(path)}${text}`)
      .join("\n"),
  );
};

/** What the text says, without the text. Aliases that multiply without end are refused by the parser. */
const plainValue = (document: Document, file: string): unknown => {
  try {
    return document.toJS() ?? {};
  } catch (error) {
    throw new MachineFileError(`${file}:1: ${error instanceof Error ? error.message : String(error)}`);
  }
};

/** Settings whose value is text even when it looks like a number. */
const TEXTUAL = new Set(["serial", "file", "group", "unit", "rom"]);

const scalar = (text: string): string | number | boolean => {
  if (text === "true" || text === "false") return text === "true";
  return /^\d+$/.test(text) ? Number(text) : text;
};

/** `nvme@0000:01:00.0,file=disk.img,size=1G` as a device of a machine. Throws MachineFileError. */
export const parseDevice = (option: string): DeviceDescription => {
  const [head = "", ...settings] = option.split(",");
  const at = head.indexOf("@");
  if (at <= 0)
    throw new MachineFileError(
      `--device ${option}: a device is MODEL@BUS:DEVICE.FUNCTION[,key=value…], such as nvme@0000:01:00.0,size=1G`,
    );
  const given: Record<string, string | number | boolean> = {
    model: head.slice(0, at),
    at: head.slice(at + 1),
  };
  for (const setting of settings) {
    const equals = setting.indexOf("=");
    if (equals <= 0) throw new MachineFileError(`--device ${option}: "${setting}" is not key=value`);
    const key = setting.slice(0, equals);
    given[key] = TEXTUAL.has(key) ? setting.slice(equals + 1) : scalar(setting.slice(equals + 1));
  }
  const result = v.safeParse(deviceSchema, given);
  if (result.success) return result.output;
  throw new MachineFileError(
    result.issues
      .flatMap((issue) => flatten(issue))
      .map(describe)
      .map(({ path, text }) => `--device ${option}: ${pathText(path)}${text}`)
      .join("\n"),
  );
};

/** The machine with these devices: one at an address that is taken replaces what was there, the last one stays. */
export const withDevices = (
  machine: MachineDescription,
  devices: readonly DeviceDescription[],
): MachineDescription => {
  const result = { ...machine, devices: devices.reduce(plugged, machine.devices) };
  const complaints = crossChecks(result);
  if (complaints.length > 0)
    throw new MachineFileError(
      complaints.map(({ path, text }) => `--device: ${pathText(path)}${text}`).join("\n"),
    );
  return result;
};

const plugged = (before: readonly DeviceDescription[], device: DeviceDescription): DeviceDescription[] => [
  ...before.filter((old) => old.at !== device.at),
  device,
];

type Path = readonly (string | number)[];
interface Complaint {
  readonly path: Path;
  readonly text: string;
}
type Issue = v.BaseIssue<unknown>;

/** A union's own complaint says less than that of the branch it would have been. */
const flatten = (issue: Issue): Issue[] =>
  issue.type === "variant" && issue.issues ? issue.issues.flatMap((inner) => flatten(inner)) : [issue];

const describe = (issue: Issue): Complaint => {
  const path = (issue.path ?? []).map((item) => item.key as string | number);
  const found = issue.received === "undefined" ? "it is missing" : `${issue.received} is not allowed here`;
  if (issue.type === "strict_object" && issue.expected === "never") return { path, text: "no such setting" };
  return { path, text: issue.type === "strict_object" ? found : `${found}: ${readable(issue)}` };
};
const readable = (issue: Issue): string =>
  issue.message.startsWith("Invalid") ? `expected ${issue.expected ?? "something else"}` : issue.message;

/** Nested tables need both kinds below and above. */
const isWhole = (stages: readonly string[]): boolean =>
  !stages.includes("nested") || (stages.includes("first") && stages.includes("second"));

const crossChecks = (machine: MachineDescription): Complaint[] => {
  const complaints: Complaint[] = [];
  const units = new Set<string>();
  machine.units.forEach((unit, index) => {
    if (units.has(unit.name))
      complaints.push({ path: ["units", index, "name"], text: `there is another unit named ${unit.name}` });
    units.add(unit.name);
    if (unit.name === NO_UNIT)
      complaints.push({ path: ["units", index, "name"], text: `${NO_UNIT} stands for no unit at all` });
    if (unit.model === "vtd" && unit.mode === "scalable" && !isWhole(unit.stages))
      complaints.push({ path: ["units", index, "stages"], text: "nested needs first and second as well" });
  });
  const taken = new Set<string>();
  machine.devices.forEach((device, index) => {
    if (taken.has(device.at))
      complaints.push({ path: ["devices", index, "at"], text: `there is another device at ${device.at}` });
    taken.add(device.at);
    if (device.model === "bare") complaints.push(...checkBars(device.bars, ["devices", index, "bars"]));
    if (device.unit === NO_UNIT) {
      if (!machine["no-iommu"])
        complaints.push({
          path: ["devices", index, "unit"],
          text: "no IOMMU would keep the device from anything; a machine that wants that has no-iommu: true",
        });
      if (isHosts(device))
        complaints.push({
          path: ["devices", index, "unit"],
          text: "a function with work queues for programs needs an IOMMU, which keeps them apart",
        });
    } else if (units.size === 0)
      complaints.push({
        path: ["devices", index],
        text: "the machine has no unit; a device needs one in front of it",
      });
    else if (device.unit !== undefined && !units.has(device.unit))
      complaints.push({
        path: ["devices", index, "unit"],
        text: `no unit is named ${device.unit}; there is ${[...units].join(", ")}`,
      });
  });
  return [
    ...complaints,
    ...checkGroups(machine),
    ...checkMdevs(machine),
    ...checkExtensions(machine),
    ...checkSecureNested(machine),
  ];
};

/** Extensions that are one unit model's, by the model. */
const UNIT_OF = new Map<Extension, MachineDescription["units"][number]["model"]>([
  ["amd-nesting", "amdvi"],
  ["snp-rmp", "amdvi"],
  ["s390-nesting", "zpci"],
  ["apertures", "tce"],
]);

/** What an extension adds to a unit of a kind would be looked for in vain where no unit is of that kind. */
const checkExtensions = ({ units, extensions }: MachineDescription): Complaint[] =>
  extensions.flatMap((extension, index) => {
    const wanted = UNIT_OF.get(extension);
    return wanted === undefined || units.some(({ model }) => model === wanted)
      ? []
      : [
          {
            path: ["extensions", index],
            text: `${extension} needs a unit of model ${wanted}; there is none`,
          },
        ];
  });

/** An IOMMU keeps all functions of a group from memory, or none does. */
const checkGroups = ({ devices }: MachineDescription): Complaint[] =>
  devices.flatMap(({ group, unit }, index) =>
    unit === NO_UNIT &&
    group !== undefined &&
    devices.some((other) => other.group === group && other.unit !== NO_UNIT)
      ? [{ path: ["devices", index, "group"], text: `others of group ${group} are behind a unit` }]
      : [],
  );

/** What guests own is kept from every device, so that each must be behind a unit which asks for that. */
const checkSecureNested = ({ units, devices, extensions }: MachineDescription): Complaint[] => {
  if (!extensions.includes("snp-rmp")) return [];
  const why = "with extensions: [snp-rmp]";
  const others = units.flatMap(({ model }, index) => (model === "amdvi" ? [] : [index]));
  const unprotected = devices.flatMap(({ unit }, index) => (unit === NO_UNIT ? [index] : []));
  return [
    ...others.map((index) => ({
      path: ["units", index, "model"],
      text: `${why} every unit is of model amdvi: others do not ask what is a guest's`,
    })),
    ...unprotected.map((index) => ({
      path: ["devices", index, "unit"],
      text: `${why} no device can be without a unit: it would reach what is a guest's`,
    })),
  ];
};

/** A driver of the host has the function, and hands its work queues to programs. */
const isHosts = (device: DeviceDescription): boolean =>
  device.model === "queues" || (device.model === "dsa" && device["user-queues"] > 0);

/** Mediated devices have a parent with work queues; its group is its driver's alone. */
const checkMdevs = ({ devices, mdevs, extensions }: MachineDescription): Complaint[] => {
  const complaints: Complaint[] = [];
  const parents = devices.filter(({ model }) => model === "queues");
  devices.forEach((device, index) => {
    const { group } = device;
    const shared = group !== undefined && devices.filter((other) => other.group === group).length > 1;
    if (isHosts(device) && shared)
      complaints.push({
        path: ["devices", index, "group"],
        text: "a function with work queues belongs to a driver of the host, and so does its group; it cannot be shared",
      });
    if (device.model === "dsa" && device["user-queues"] > 0 && !extensions.includes("wq-chardev"))
      complaints.push({
        path: ["devices", index, "user-queues"],
        text: "queues for programs with SOFTIOMMU_WQ_USE_PASID are an extension: the machine needs extensions: [wq-chardev]",
      });
  });
  const taken = new Set<string>();
  mdevs.forEach(({ uuid, parent, type }, index) => {
    if (taken.has(uuid))
      complaints.push({
        path: ["mdevs", index, "uuid"],
        text: `there is another mediated device ${uuid}`,
      });
    taken.add(uuid);
    if (!parents.some(({ at }) => at === parent))
      complaints.push({
        path: ["mdevs", index, "parent"],
        text: `there is no device of model queues at ${parent}`,
      });
    if (type === "queue" && !extensions.includes("vsva2020"))
      complaints.push({
        path: ["mdevs", index, "type"],
        text: "a mediated device that is IOMMU-backed needs extensions: [vsva2020]; one of type software does not",
      });
  });
  return complaints;
};

const BAR_PLACES = 6;

const checkBars = (
  bars: readonly { readonly kind: string; readonly size: number }[],
  path: Path,
): Complaint[] => {
  const places = bars.reduce((sum, { kind }) => sum + (kind === "mem64" ? 2 : 1), 0);
  const text = `they take ${places} places, a 64-bit one two; a function has ${BAR_PLACES}`;
  return [
    ...(places > BAR_PLACES ? [{ path, text }] : []),
    ...bars.flatMap(({ size }, index) =>
      size >= 16 && size <= 2 ** 24 && Number.isInteger(Math.log2(size))
        ? []
        : [
            {
              path: [...path, index, "size"],
              text: `${size} bytes: a BAR has a power of two from 16 to 16M`,
            },
          ],
    ),
  ];
};

const pathText = (path: Path): string => (path.length === 0 ? "" : `${path.join(".")}: `);

/** The line of the innermost thing on the path that the text has. */
const lineOf = (document: Document, lines: LineCounter, path: Path): number => {
  let node: unknown = document.contents;
  let best: Node | undefined = isNode(node) ? node : undefined;
  for (const key of path) {
    const inner: unknown = isMap(node) || isSeq(node) ? node.get(key, true) : undefined;
    if (!isNode(inner)) {
      const pair = isMap(node)
        ? node.items.find((item) => isNode(item.key) && String(item.key) === String(key))
        : undefined;
      if (pair && isNode(pair.key)) best = pair.key;
      break;
    }
    node = inner;
    best = inner;
  }
  return lines.linePos(best?.range?.[0] ?? 0).line;
};
