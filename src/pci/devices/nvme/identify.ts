/**
 * The data structures of Identify (§5.15.2): controller, namespace, active namespaces, namespace identification
 * descriptors. Namespaces have no metadata.
 */
import { store64 } from "./bytes.ts";
import { COMPOSITE_TEMPERATURE_LIMITS, ERROR_LOG_ENTRIES } from "./logs.ts";
import type { Namespace } from "./namespace.ts";
import { CQE_LG2, IDENTIFY_BYTES, PCI_IDS, SQE_LG2, VERSION_1_4 } from "./spec.ts";

/** ACL and AERL, less one as in the structure. */
export const ABORT_LIMIT = 3;
export const ASYNC_EVENT_LIMIT = 3;

export interface Identity {
  readonly serial: string;
  readonly mdts: number;
  /** Controller id within the subsystem. */
  readonly controllerId: number;
  /** How many there are; they are numbered from 1. */
  readonly namespaces: number;
}

const MODEL = "softiommu NVMe controller";
const FIRMWARE = "1.0";
const OUI = [0x00, 0x54, 0x52];

/** §5.15.2.2, figure 247: offsets of what we fill in. */
const Controller = {
  VID: 0,
  SSVID: 2,
  SN: 4,
  MN: 24,
  FR: 64,
  IEEE: 73,
  MDTS: 77,
  CNTLID: 78,
  VER: 80,
  CTRATT: 96,
  CNTRLTYPE: 111,
  ACL: 258,
  AERL: 259,
  FRMW: 260,
  LPA: 261,
  ELPE: 262,
  WCTEMP: 266,
  CCTEMP: 268,
  SQES: 512,
  CQES: 513,
  NN: 516,
  ONCS: 520,
  VWC: 525,
  SUBNQN: 768,
  PSD0: 2048,
} as const;
const HOST_ID_128 = 1;
const IO_CONTROLLER = 1;
const ONE_READ_ONLY_SLOT = 0b0011;
const EFFECTS_AND_EXTENDED_DATA = 0b0110;
/** Optional NVM commands. */
const COMPARE = 1 << 0;
const DATASET_MANAGEMENT = 1 << 2;
const WRITE_ZEROES = 1 << 3;
const SAVE_AND_SELECT = 1 << 4;
/** A cache is present; Flush takes the broadcast namespace. */
const VWC_PRESENT = 0b111;
const CENTIWATTS = 2500;

/** §5.15.2.1, figure 245. */
const Field = { NSZE: 0, NCAP: 8, NUSE: 16, DLFEAT: 33, NGUID: 104, EUI64: 120, LBAF0: 128 } as const;
const READS_ZERO = 1;
const LBADS_SHIFT = 16;

const Descriptor = { EUI64: 1, NGUID: 2, HEADER: 4 } as const;

const text = (bytes: Uint8Array, at: number, length: number, value: string): void => {
  for (let i = 0; i < length; i++) bytes[at + i] = i < value.length ? value.charCodeAt(i) : 0x20;
};

export const identifyController = ({ serial, mdts, controllerId, namespaces }: Identity): Uint8Array => {
  const bytes = new Uint8Array(IDENTIFY_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint16(Controller.VID, PCI_IDS.vendor, true);
  view.setUint16(Controller.SSVID, PCI_IDS.vendor, true);
  text(bytes, Controller.SN, 20, serial);
  text(bytes, Controller.MN, 40, MODEL);
  text(bytes, Controller.FR, 8, FIRMWARE);
  bytes.set(OUI, Controller.IEEE);
  bytes[Controller.MDTS] = mdts;
  view.setUint16(Controller.CNTLID, controllerId, true);
  view.setUint32(Controller.VER, VERSION_1_4, true);
  view.setUint32(Controller.CTRATT, HOST_ID_128, true);
  bytes[Controller.CNTRLTYPE] = IO_CONTROLLER;
  bytes[Controller.ACL] = ABORT_LIMIT;
  bytes[Controller.AERL] = ASYNC_EVENT_LIMIT;
  bytes[Controller.FRMW] = ONE_READ_ONLY_SLOT;
  bytes[Controller.LPA] = EFFECTS_AND_EXTENDED_DATA;
  bytes[Controller.ELPE] = ERROR_LOG_ENTRIES - 1;
  view.setUint16(Controller.WCTEMP, COMPOSITE_TEMPERATURE_LIMITS.warning, true);
  view.setUint16(Controller.CCTEMP, COMPOSITE_TEMPERATURE_LIMITS.critical, true);
  bytes[Controller.SQES] = (SQE_LG2 << 4) | SQE_LG2;
  bytes[Controller.CQES] = (CQE_LG2 << 4) | CQE_LG2;
  view.setUint32(Controller.NN, namespaces, true);
  view.setUint16(Controller.ONCS, COMPARE | DATASET_MANAGEMENT | WRITE_ZEROES | SAVE_AND_SELECT, true);
  bytes[Controller.VWC] = VWC_PRESENT;
  // A subsystem of its own, whatever other controllers have for their serial number.
  const subsystem = `softiommu:${serial.trim()}:${controllerId.toString(16)}`;
  bytes.set(Buffer.from(`nqn.2014-08.org.nvmexpress:${subsystem}`), Controller.SUBNQN);
  view.setUint16(Controller.PSD0, CENTIWATTS, true);
  return bytes;
};

export const identifyNamespace = (
  identity: Identity,
  { id, blocks, blockSize, media }: Namespace,
): Uint8Array => {
  const bytes = new Uint8Array(IDENTIFY_BYTES);
  store64(bytes, Field.NSZE, blocks);
  store64(bytes, Field.NCAP, blocks);
  store64(bytes, Field.NUSE, Math.min(blocks, Math.ceil(media.used() / blockSize)));
  bytes[Field.DLFEAT] = READS_ZERO;
  bytes.set(nguid(identity, id), Field.NGUID);
  bytes.set(eui64(identity, id), Field.EUI64);
  new DataView(bytes.buffer).setUint32(Field.LBAF0, Math.log2(blockSize) << LBADS_SHIFT, true);
  return bytes;
};

/** Active namespaces with a number above `above`. */
export const identifyActive = ({ namespaces }: Identity, above: number): Uint8Array => {
  const bytes = new Uint8Array(IDENTIFY_BYTES);
  const view = new DataView(bytes.buffer);
  for (let id = above + 1; id <= namespaces; id++) view.setUint32(4 * (id - above - 1), id, true);
  return bytes;
};

export const identifyDescriptors = (identity: Identity, id: number): Uint8Array => {
  const bytes = new Uint8Array(IDENTIFY_BYTES);
  let at = 0;
  const append = (type: number, value: Uint8Array): void => {
    bytes[at] = type;
    bytes[at + 1] = value.length;
    bytes.set(value, at + Descriptor.HEADER);
    at += Descriptor.HEADER + value.length;
  };
  append(Descriptor.EUI64, eui64(identity, id));
  append(Descriptor.NGUID, nguid(identity, id));
  return bytes;
};

/** FNV-1a of the serial number and the controller's id: the part of an identifier that tells controllers apart. */
export const extension = ({ serial, controllerId }: Pick<Identity, "serial" | "controllerId">): number => {
  let hash = 0x811c9dc5;
  for (const byte of Buffer.from(`${serial}/${controllerId}`)) hash = Math.imul(hash ^ byte, 0x0100_0193);
  return hash >>> 0;
};

/** The OUI, the namespace's number less one, the controller's part. */
const eui64 = (identity: Identity, id: number): Uint8Array => {
  const bytes = new Uint8Array(8);
  bytes.set([...OUI].reverse());
  bytes[3] = id - 1;
  new DataView(bytes.buffer).setUint32(4, extension(identity));
  return bytes;
};

/** The vendor's extension, then the OUI and the EUI-64's own extension. */
const nguid = (identity: Identity, id: number): Uint8Array => {
  const bytes = new Uint8Array(16);
  new DataView(bytes.buffer).setUint32(4, extension(identity));
  bytes.set(eui64(identity, id), 8);
  return bytes;
};
