/**
 * Configuration space of a PCI Express function: offsets and bits by the names of the PCI Local Bus Specification 3.0
 * (chapter 6) and the PCI Express Base Specification 5.0 (§7.5 to §7.9). Layouts only, nothing that acts.
 *
 * Left out: type 1 (bridge) headers, Cardbus.
 */
import { address, bit, bits, layout } from "../uapi/layout.ts";

export const CONFIG_BYTES = 256;
export const EXTENDED_CONFIG_BYTES = 4096;
export const BAR_COUNT = 6;

/** Type 0 header, PCIe §7.5.1. Offsets in bytes. */
export const Header = {
  VENDOR_ID: 0x00,
  DEVICE_ID: 0x02,
  COMMAND: 0x04,
  STATUS: 0x06,
  REVISION_ID: 0x08,
  CLASS_CODE: 0x09,
  CACHE_LINE_SIZE: 0x0c,
  LATENCY_TIMER: 0x0d,
  HEADER_TYPE: 0x0e,
  BIST: 0x0f,
  BASE_ADDRESS: 0x10,
  SUBSYSTEM_VENDOR_ID: 0x2c,
  SUBSYSTEM_ID: 0x2e,
  EXPANSION_ROM: 0x30,
  CAPABILITIES_POINTER: 0x34,
  INTERRUPT_LINE: 0x3c,
  INTERRUPT_PIN: 0x3d,
} as const;
export const FIRST_CAPABILITY = 0x40;
export const FIRST_EXTENDED_CAPABILITY = 0x100;

/** Command register, PCIe §7.5.1.1.3. */
export const Command = {
  IO_SPACE: 1 << 0,
  MEMORY_SPACE: 1 << 1,
  BUS_MASTER: 1 << 2,
  PARITY_ERROR_RESPONSE: 1 << 6,
  SERR: 1 << 8,
  INTERRUPT_DISABLE: 1 << 10,
} as const;
/** Status register, PCIe §7.5.1.1.4. */
export const Status = { INTERRUPT: 1 << 3, CAPABILITIES_LIST: 1 << 4, ERRORS: 0xf900 } as const;

/** Low bits of a base address register, PCI §6.2.5.1. */
export const BarBits = { IO: 1, MEMORY_64: 4, PREFETCHABLE: 8, IO_FLAGS: 0x3, MEMORY_FLAGS: 0xf } as const;

/** Expansion ROM base address register, PCIe §7.5.1.2.4. */
export const RomBits = { ENABLE: 1, ADDRESS: 0xffff_f800 } as const;
export const ROM_MIN_BYTES = 2 ** 11;
export const ROM_MAX_BYTES = 2 ** 24;

/** Capability ids, PCI Code and ID Assignment §2 and §3. */
export const CapabilityId = { PM: 0x01, MSI: 0x05, VENDOR: 0x09, EXPRESS: 0x10, MSIX: 0x11 } as const;
export const ExtendedCapabilityId = {
  ERRORS: 0x0001,
  SERIAL_NUMBER: 0x0003,
  ATS: 0x000f,
  PRI: 0x0013,
  PASID: 0x001b,
} as const;

/** Power management, PCIe §7.5.2. */
export const PowerCapability = { PMC: 2, PMCSR: 4, BYTES: 8 } as const;
export const PowerControl = layout("PMCSR", 4, {
  PowerState: bits(0, 1, "power state", { 0: "D0", 1: "D1", 2: "D2", 3: "D3hot" }),
  NoSoftReset: bit(3, "registers are kept from D3hot to D0"),
  PmeEnable: bit(8, "may assert PME#"),
  PmeStatus: bit(15, "PME# was asserted"),
});

/** MSI, PCIe §7.7.1; the form with 64-bit addresses and per-vector masking. */
export const MsiCapability = {
  MESSAGE_CONTROL: 2,
  ADDRESS: 4,
  UPPER_ADDRESS: 8,
  DATA: 12,
  MASK: 16,
  PENDING: 20,
  BYTES: 24,
} as const;
export const MsiControl = layout("MSI Message Control", 2, {
  Enable: bit(0, "MSI is used"),
  MultipleMessageCapable: bits(1, 3, "log2 of the vectors wanted"),
  MultipleMessageEnable: bits(4, 6, "log2 of the vectors given"),
  Address64: bit(7, "64-bit addresses"),
  PerVectorMasking: bit(8, "has mask and pending bits"),
});

/** MSI-X, PCIe §7.7.2. */
export const MsixCapability = { MESSAGE_CONTROL: 2, TABLE: 4, PBA: 8, BYTES: 12 } as const;
export const MsixControl = layout("MSI-X Message Control", 2, {
  TableSize: bits(0, 10, "vectors, less one"),
  FunctionMask: bit(14, "all vectors are masked"),
  Enable: bit(15, "MSI-X is used"),
});
export const MsixLocation = layout("MSI-X Table Offset/Table BIR", 4, {
  BIR: bits(0, 2, "BAR that holds it"),
  Offset: address(3, 31, "offset within the BAR"),
});
/** MSI-X table entry, PCIe §7.7.2.5 to §7.7.2.8; offsets within the entry. */
export const MsixEntry = { ADDRESS: 0, UPPER_ADDRESS: 4, DATA: 8, VECTOR_CONTROL: 12, BYTES: 16 } as const;
export const VECTOR_MASKED = 1;

/** PCI Express capability (version 2), PCIe §7.5.3. */
export const ExpressCapability = {
  CAPABILITIES: 0x02,
  DEVICE_CAPABILITIES: 0x04,
  DEVICE_CONTROL: 0x08,
  DEVICE_STATUS: 0x0a,
  LINK_CAPABILITIES: 0x0c,
  LINK_CONTROL: 0x10,
  LINK_STATUS: 0x12,
  DEVICE_CAPABILITIES_2: 0x24,
  DEVICE_CONTROL_2: 0x28,
  LINK_CAPABILITIES_2: 0x2c,
  LINK_CONTROL_2: 0x30,
  LINK_STATUS_2: 0x32,
  BYTES: 0x3c,
} as const;
export const ExpressFlags = layout("PCI Express Capabilities", 2, {
  CapabilityVersion: bits(0, 3, "2"),
  DevicePortType: bits(4, 7, "kind of function", { 0: "endpoint", 9: "root complex integrated endpoint" }),
});
export const DeviceCapabilities = layout("Device Capabilities", 4, {
  MaxPayloadSupported: bits(0, 2, "128 · 2^n bytes"),
  ExtendedTag: bit(5, "8-bit tags"),
  RoleBasedErrors: bit(15, "role-based error reporting"),
  FunctionLevelReset: bit(28, "function-level reset"),
});
export const DeviceControl = layout("Device Control", 2, {
  CorrectableErrors: bit(0, "report correctable errors"),
  NonFatalErrors: bit(1, "report non-fatal errors"),
  FatalErrors: bit(2, "report fatal errors"),
  UnsupportedRequests: bit(3, "report unsupported requests"),
  RelaxedOrdering: bit(4, "relaxed ordering"),
  MaxPayloadSize: bits(5, 7, "128 · 2^n bytes"),
  ExtendedTag: bit(8, "8-bit tags"),
  NoSnoop: bit(11, "no snoop"),
  MaxReadRequestSize: bits(12, 14, "128 · 2^n bytes"),
  InitiateFunctionLevelReset: bit(15, "written 1: reset; reads 0"),
});
export const DeviceStatus = layout("Device Status", 2, {
  Errors: bits(0, 3, "errors seen, cleared by writing 1"),
  TransactionsPending: bit(5, "non-posted requests are under way"),
});
export const Link = layout("Link Capabilities", 4, {
  MaxSpeed: bits(0, 3, "link speed", { 1: "2.5 GT/s", 2: "5 GT/s", 3: "8 GT/s" }),
  MaxWidth: bits(4, 9, "lanes"),
});
export const LinkState = layout("Link Status", 2, {
  Speed: bits(0, 3, "link speed"),
  Width: bits(4, 9, "lanes"),
});

/** Extended capability header, PCIe §7.6.3. */
export const ExtendedHeader = layout("Extended Capability Header", 4, {
  Id: bits(0, 15, "capability"),
  Version: bits(16, 19, "version"),
  Next: bits(20, 31, "offset of the next, 0 at the end"),
});
/** Vendor-specific capability, PCIe §7.9.4: a length, then what the vendor likes. */
export const VendorCapability = { LENGTH: 2, DATA: 3 } as const;

/** Advanced error reporting, PCIe §7.8.4, of a function that is no root port. */
export const ErrorCapability = {
  UNCORRECTABLE_STATUS: 0x04,
  UNCORRECTABLE_MASK: 0x08,
  UNCORRECTABLE_SEVERITY: 0x0c,
  CORRECTABLE_STATUS: 0x10,
  CORRECTABLE_MASK: 0x14,
  CONTROL: 0x18,
  BYTES: 0x2c,
} as const;
/** Errors that a function can tell, PCIe §7.8.4.2 and §7.8.4.5, and those that are fatal from the start. */
export const ErrorBits = {
  UNCORRECTABLE: 0x01ff_f030,
  FATAL: 0x0046_2030,
  CORRECTABLE: 0xf1c1,
  ADVISORY: 0x2000,
} as const;

/** Device serial number, PCIe §7.9.3. */
export const SerialNumber = { LOW: 4, HIGH: 8, BYTES: 12 } as const;
/** PASID extended capability, PCIe §7.8.9. */
export const PasidCapability = { CAPABILITY: 4, CONTROL: 6, BYTES: 8 } as const;
export const PasidFlags = layout("PASID Capability", 2, {
  Execute: bit(1, "requests for execution"),
  Privileged: bit(2, "privileged mode"),
  MaxWidth: bits(8, 12, "bits of a PASID"),
});
export const PasidControl = layout("PASID Control", 2, {
  Enable: bit(0, "requests may carry a PASID"),
  Execute: bit(1, "requests for execution allowed"),
  Privileged: bit(2, "privileged mode allowed"),
});

/** Address translation services, PCIe §10.5.1. */
export const AtsCapability = { CAPABILITY: 4, CONTROL: 6, BYTES: 8 } as const;
export const AtsFlags = layout("ATS Capability", 2, {
  InvalidateQueueDepth: bits(0, 4, "invalidations it takes before it answers; 0: 32"),
  PageAlignedRequest: bit(5, "its translation requests are for whole pages"),
  GlobalInvalidate: bit(6, "takes invalidations of every PASID"),
});
export const AtsControl = layout("ATS Control", 2, {
  SmallestTranslationUnit: bits(0, 4, "log2 of the smallest translation, less 12"),
  Enable: bit(15, "may ask for translations and keep them"),
});
/** Page request interface, PCIe §10.5.2. */
export const PriCapability = {
  CONTROL: 4,
  STATUS: 6,
  OUTSTANDING_CAPACITY: 8,
  OUTSTANDING_ALLOCATION: 12,
  BYTES: 16,
} as const;
export const PriControl = layout("Page Request Control", 2, {
  Enable: bit(0, "may ask for pages"),
  Reset: bit(1, "written 1 while it may not: forgets what it asked for"),
});
export const PriStatus = layout("Page Request Status", 2, {
  ResponseFailure: bit(0, "a response was a failure"),
  UnexpectedGroup: bit(1, "a response was to no group of its"),
  Stopped: bit(8, "nothing it asked for waits"),
  PasidRequired: bit(15, "responses carry the PASID of the request"),
});
