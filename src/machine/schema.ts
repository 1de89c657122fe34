/**
 * What a machine file may say (YAML; docs/machine-files.md): units, devices, memory. One schema gives the types, the
 * checks and the messages. Sizes are numbers of bytes or "64K", "2M", "1G"; addresses are hexadecimal strings.
 */
import * as v from "valibot";

const UNITS = { K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 } as const;

/** "1G", "512M", "4096" → bytes; undefined when it is not a size. */
export const parseSize = (text: string): number | undefined => {
  const match = /^(\d+)([KMGT])?(?:i?B)?$/i.exec(text.trim());
  if (!match) return undefined;
  const unit = match[2]?.toUpperCase() as keyof typeof UNITS | undefined;
  const bytes = Number(match[1]) * (unit ? UNITS[unit] : 1);
  return Number.isSafeInteger(bytes) ? bytes : undefined;
};

const size = v.pipe(
  v.union([v.number(), v.string()], 'a size: bytes, or a number with K, M, G or T, such as "1G"'),
  v.transform((given) => (typeof given === "number" ? given : parseSize(given))),
  v.number('a size: bytes, or a number with K, M, G or T, such as "1G"'),
  v.integer("a whole number of bytes"),
  v.minValue(1, "a size above 0"),
);

/** What fits below the addresses of BARs. */
const ram = v.pipe(size, v.multipleOf(4096, "a multiple of 4K"), v.maxValue(2 ** 36, "at most 64G"));

const address = v.pipe(
  v.union([v.number(), v.string()], 'an address, such as "0x7f000000"'),
  v.transform((given) => (typeof given === "number" ? given : Number(given))),
  v.number(),
  v.safeInteger('an address, such as "0x7f000000"'),
  v.minValue(0, "an address, 0 or above"),
);

const SLOT = /^([0-9a-f]{4}):([0-9a-f]{2}):([01][0-9a-f])\.([0-7])$/;
const slot = v.pipe(
  v.string('a PCI address, such as "0000:01:00.0"'),
  v.toLowerCase(),
  v.transform((text) => (/^[0-9a-f]{2}:/.test(text) ? `0000:${text}` : text)),
  v.regex(
    SLOT,
    'a PCI address: segment, bus, device (00 to 1f) and function (0 to 7), such as "0000:01:00.0"',
  ),
);

const oneOf = <const T extends readonly (string | number)[]>(allowed: T) =>
  v.picklist(allowed, `one of ${allowed.join(", ")}`);

const vtdUnit = v.strictObject({
  model: v.literal("vtd"),
  name: v.optional(v.pipe(v.string(), v.regex(/^[a-z][a-z0-9_-]*$/, 'a name such as "dmar0"')), "dmar0"),
  "address-widths": v.optional(
    v.pipe(v.array(oneOf([39, 48, 57])), v.minLength(1, "at least one width")),
    [39, 48],
  ),
  "host-address-width": v.optional(v.pipe(v.number(), v.integer(), v.minValue(36), v.maxValue(52)), 46),
  "large-pages": v.optional(v.array(oneOf(["2M", "1G"])), ["2M", "1G"]),
  "domain-bits": v.optional(oneOf([4, 6, 8, 10, 12, 14, 16]), 16),
  "fault-records": v.optional(v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(256)), 8),
  /** The settings from here to `execute-requests` are of scalable mode. */
  mode: v.optional(oneOf(["legacy", "scalable"]), "legacy"),
  stages: v.optional(
    v.pipe(v.array(oneOf(["first", "second", "nested"])), v.minLength(1, "at least one kind of table")),
    ["first", "second", "nested"],
  ),
  "pasid-bits": v.optional(v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(20)), 20),
  "device-tlb": v.optional(v.boolean(), true),
  "page-requests": v.optional(v.boolean(), true),
  "dirty-tracking": v.optional(v.boolean(), true),
  "supervisor-requests": v.optional(v.boolean(), true),
  "extended-accessed": v.optional(v.boolean(), true),
  "execute-requests": v.optional(v.boolean(), false),
  "caching-mode": v.optional(v.boolean(), false),
  "snoop-control": v.optional(v.boolean(), true),
  "pass-through": v.optional(v.boolean(), true),
  cache: v.optional(oneOf(["normal", "none", "paranoid"]), "normal"),
  "reserved-memory": v.optional(v.array(v.strictObject({ device: slot, start: address, length: size })), []),
});

const smmuUnit = v.strictObject({
  model: v.literal("smmuv3"),
  name: v.optional(
    v.pipe(v.string(), v.regex(/^[a-z][a-z0-9_.-]*$/, 'a name such as "smmu3.0x0000000009050000"')),
    "smmu3.0x0000000009050000",
  ),
  stages: v.optional(v.pipe(v.array(oneOf([1, 2])), v.minLength(1, "at least one stage")), [1, 2]),
  "address-bits": v.optional(oneOf([32, 36, 40, 42, 44, 48]), 44),
  "stream-bits": v.optional(v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(16)), 16),
  "pasid-bits": v.optional(v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(20)), 16),
  "two-level-tables": v.optional(v.boolean(), true),
  "range-invalidation": v.optional(v.boolean(), true),
  "dirty-tracking": v.optional(v.boolean(), true),
  ats: v.optional(v.boolean(), true),
  stalls: v.optional(oneOf(["both", "terminate", "force"]), "both"),
  "can-stall": v.optional(v.array(slot), []),
  /** Of `vsva2020`: what nesting containers are told of the unit. */
  "nesting-information": v.optional(oneOf(["full", "empty"]), "full"),
  cache: v.optional(oneOf(["normal", "none", "paranoid"]), "normal"),
});

const amdUnit = v.strictObject({
  model: v.literal("amdvi"),
  name: v.optional(v.pipe(v.string(), v.regex(/^[a-z][a-z0-9_-]*$/, 'a name such as "ivhd0"')), "ivhd0"),
  "host-levels": v.optional(oneOf([4, 5, 6]), 6),
  /** Of guests' tables above the host's. */
  "guest-levels": v.optional(oneOf([4, 5]), 4),
  "pasid-bits": v.optional(v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(20)), 20),
  "device-tlb": v.optional(v.boolean(), true),
  "page-requests": v.optional(v.boolean(), true),
  "dirty-tracking": v.optional(v.boolean(), true),
  /** Of the driver, as with the kernel's amd_iommu=nohugepages. */
  "huge-pages": v.optional(v.boolean(), true),
  cache: v.optional(oneOf(["normal", "none", "paranoid"]), "normal"),
});

const zpciUnit = v.strictObject({
  model: v.literal("zpci"),
  name: v.optional(v.pipe(v.string(), v.regex(/^[a-z][a-z0-9_-]*$/, 'a name such as "zpci0"')), "zpci0"),
  /** Addresses that functions may use: the first, and so many from there on. */
  "dma-start": v.optional(v.pipe(address, v.multipleOf(4096, "a multiple of 4K")), 0),
  "dma-bits": v.optional(v.pipe(v.number(), v.integer(), v.minValue(32), v.maxValue(42)), 42),
  cache: v.optional(oneOf(["normal", "none", "paranoid"]), "normal"),
});

/** Page sizes of POWER, by their names. */
export const TCE_PAGES = { "4K": 12, "64K": 16, "2M": 21, "16M": 24, "256M": 28, "1G": 30 } as const;
type TcePage = keyof typeof TCE_PAGES;
const tcePages = Object.keys(TCE_PAGES) as TcePage[];

const tceUnit = v.strictObject({
  model: v.literal("tce"),
  name: v.optional(v.pipe(v.string(), v.regex(/^[a-z][a-z0-9_-]*$/, 'a name such as "phb0"')), "phb0"),
  "page-sizes": v.optional(
    v.pipe(
      v.array(oneOf(tcePages)),
      v.check((sizes) => sizes.includes("4K"), "4K among them"),
    ),
    tcePages,
  ),
  cache: v.optional(oneOf(["normal", "none", "paranoid"]), "normal"),
});

export const unitSchema = v.variant(
  "model",
  [vtdUnit, smmuUnit, amdUnit, zpciUnit, tceUnit],
  "one of vtd, smmuv3, amdvi, zpci, tce",
);

const common = {
  at: slot,
  unit: v.optional(v.string()),
  /** Functions with the same group name share an IOMMU group; without it each has its own. */
  group: v.optional(v.string()),
  /** False: VFIO offers no mmap of the BARs; programs use pread and pwrite. Sparse: none of vector tables. */
  mmap: v.optional(v.union([v.boolean(), v.literal("sparse")], "one of true, false, sparse"), true),
  /** The contents of its expansion ROM. */
  rom: v.optional(v.pipe(v.string(), v.minLength(1, "a path"))),
};

const namespace = {
  /** Default: the size of the file, or 1 GiB. */
  size: v.optional(size),
  file: v.optional(v.pipe(v.string(), v.minLength(1, "a path"))),
  "block-size": v.optional(oneOf([512, 4096]), 512),
};

const nvme = v.strictObject({
  model: v.literal("nvme"),
  ...common,
  ...namespace,
  /** Numbers 2, 3, … */
  "more-namespaces": v.optional(
    v.pipe(v.array(v.strictObject(namespace)), v.maxLength(31, "at most 31 more namespaces")),
    [],
  ),
  queues: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(64)), 16),
  serial: v.optional(v.pipe(v.string(), v.maxLength(20, "at most 20 characters"))),
});

const pasidBits = v.optional(v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(20)), 20);
/** Beside PASIDs: what the requests of a function can be. */
const services = {
  "privileged-requests": v.optional(v.boolean(), true),
  "device-tlb": v.optional(v.boolean(), true),
  /** How many it can have asked for at a time; without `device-tlb` it asks for none. */
  "page-requests": v.optional(v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(512)), 32),
};
const requests = {
  "pasid-bits": pasidBits,
  "execute-requests": v.optional(v.boolean(), true),
  ...services,
};

const test = v.strictObject({ model: v.literal("test"), ...common, ...requests });

const queues = v.strictObject({
  model: v.literal("queues"),
  ...common,
  queues: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(64)), 4),
  ...requests,
});

const dsa = v.strictObject({
  model: v.literal("dsa"),
  ...common,
  /** Work queues that the host's driver offers to programs; 0: the function is VFIO's. */
  "user-queues": v.optional(v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(8)), 0),
  "pasid-bits": pasidBits,
  ...services,
});

const ioat = v.strictObject({ model: v.literal("ioat"), ...common });

const edu = v.strictObject({ model: v.literal("edu"), ...common });

const atsTest = v.strictObject({ model: v.literal("ats-test"), ...common });

/** Capabilities that a bare function can show. */
const BARE_CAPABILITIES = ["vendor", "errors"] as const;

const bare = v.strictObject({
  model: v.literal("bare"),
  ...common,
  capabilities: v.optional(v.array(oneOf(BARE_CAPABILITIES)), []),
  bars: v.optional(
    v.pipe(
      v.array(v.strictObject({ kind: v.optional(oneOf(["mem32", "mem64"]), "mem32"), size })),
      v.maxLength(6),
    ),
    [{ kind: "mem32", size: 4096 }],
  ),
});

export const DEVICE_MODELS = ["nvme", "test", "queues", "dsa", "ioat", "edu", "ats-test", "bare"] as const;
export const deviceSchema = v.variant(
  "model",
  [nvme, test, queues, dsa, ioat, edu, atsTest, bare],
  `one of ${DEVICE_MODELS.join(", ")}`,
);

/** In place of a unit's name: no IOMMU is in front of the device. */
export const NO_UNIT = "none";

/** What Linux lacks and a machine can have all the same. */
export const EXTENSIONS = [
  "vsva2020",
  "amd-nesting",
  "snp-rmp",
  "s390-nesting",
  "apertures",
  "wq-chardev",
] as const;
export type Extension = (typeof EXTENSIONS)[number];

const count = v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(2 ** 20));

/** How the machine's PASIDs are shared out. */
const pasids = v.strictObject({
  /** For a process, as `/sys/module/vfio_pasid/parameters/pasid_quota` says at first. */
  quota: v.optional(count, 1000),
  /** For all processes of a user. */
  "user-limit": v.optional(count, 65536),
  /** For the host alone. */
  "host-reserve": v.optional(count, 1024),
});

const mdev = v.strictObject({
  uuid: v.pipe(
    v.string('a UUID, such as "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"'),
    v.toLowerCase(),
    v.uuid('a UUID, such as "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"'),
  ),
  /** A function with work queues. */
  parent: slot,
  type: v.optional(oneOf(["queue", "software"]), "queue"),
});

export const machineSchema = v.strictObject({
  name: v.pipe(v.string(), v.minLength(1, "a name")),
  /** Seed of everything that is random. */
  seed: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0)), 1),
  memory: v.optional(v.strictObject({ ram: v.optional(ram, 2 ** 30) }), {}),
  units: v.array(unitSchema),
  devices: v.array(deviceSchema),
  /** Mediated devices that are there from the start. */
  mdevs: v.optional(v.array(mdev), []),
  /** /dev/iommu answers the test command too, which makes devices behind a mock IOMMU. */
  mock: v.optional(v.boolean(), false),
  extensions: v.optional(v.array(oneOf(EXTENSIONS)), []),
  /** Programs may have devices that no IOMMU keeps from anything. */
  "no-iommu": v.optional(v.boolean(), false),
  pasids: v.optional(pasids, {}),
  /** Who is root on the machine: `own`, who is root on this computer; `root`, every program of the run. */
  privileges: v.optional(oneOf(["own", "root"]), "own"),
});

export type MachineDescription = v.InferOutput<typeof machineSchema>;
export type UnitDescription = MachineDescription["units"][number];
export type DeviceDescription = MachineDescription["devices"][number];
/** What holds the blocks of one of an NVMe controller's namespaces. */
export type NamespaceDescription = v.InferOutput<v.StrictObjectSchema<typeof namespace, undefined>>;
/** A device whose requests can be of several kinds. */
export type RequestingDescription = Extract<DeviceDescription, { readonly "pasid-bits": number }>;
export type DeviceModel = DeviceDescription["model"];
