/**
 * The registers and tables of BAR 0: what they say after power-on, what software may write and when. Tables of queues can be
 * written while their queue is disabled, those of groups while the device is; otherwise a write changes nothing. A write is
 * of whole dwords; another changes nothing either.
 */
import { OPERATIONS } from "./descriptor.ts";
import {
  CommandError,
  DeviceState,
  DsaCommand,
  DsaRegister,
  ENGINES,
  EngCap,
  GenCap,
  GenCtrl,
  GenSts,
  GROUPS,
  GroupConfig,
  GrpCap,
  IntCause,
  MOST_BATCH_LG2,
  MOST_TRANSFER_LG2,
  MsixPermission,
  Offsets,
  QUEUE_CONFIG_BYTES,
  QUEUE_ENTRIES,
  QUEUES,
  REGISTER_BYTES,
  TABLE_UNIT,
  VECTORS,
  VERSION_1_0,
  WqCap,
  WqConfig,
} from "./spec.ts";

const ALL = 0xffff_ffff;
const allOf = (fields: { readonly [name: string]: { readonly mask: number } }): number =>
  Object.values(fields).reduce((all, { mask }) => all | mask, 0) >>> 0;

const queueAt = (queue: number): number => DsaRegister.WQCFG + queue * QUEUE_CONFIG_BYTES;
const groupAt = (group: number): number => DsaRegister.GRPCFG + group * GroupConfig.BYTES;

const { Occupancy, State, ...SETTINGS } = WqConfig.fields;
/** What software may write of each dword of a WQCFG entry. */
const QUEUE_WRITABLE = Array.from({ length: QUEUE_CONFIG_BYTES / 4 }, (_, word) =>
  Object.values(SETTINGS)
    .filter((field) => field.word === word)
    .reduce((all, { mask }) => (all | mask) >>> 0, 0),
);
const PERMISSION_WRITABLE = allOf(MsixPermission.fields);
const GROUP_WRITABLE = new Map<number, number>([
  [GroupConfig.QUEUES, 2 ** QUEUES - 1],
  [GroupConfig.ENGINES, 2 ** ENGINES - 1],
  [GroupConfig.FLAGS, 0x0ff0_ffbf],
]);

/** A queue's settings. */
export interface QueueSettings {
  readonly size: number;
  readonly threshold: number;
  readonly dedicated: boolean;
  readonly blockOnFault: boolean;
  readonly priority: number;
  readonly pasid: number;
  readonly pasidEnable: boolean;
  readonly privileged: boolean;
  readonly maxTransferLg2: number;
  readonly maxBatchLg2: number;
}

/** What the PCI function lets requests carry. */
export interface RequestRights {
  readonly pasids: boolean;
  readonly privileged: boolean;
}

export class DsaRegisters {
  readonly #words = new Uint32Array(REGISTER_BYTES / 4);
  readonly #image = new Uint8Array(this.#words.buffer);

  constructor() {
    this.reset();
  }

  read(offset: number, into: Uint8Array): void {
    into.set(this.#image.subarray(offset, offset + into.length));
  }

  get(offset: number): number {
    return this.#words[offset >>> 2]!;
  }
  set(offset: number, value: number): void {
    this.#words[offset >>> 2] = value;
  }

  /** Power-on state. */
  reset(): void {
    this.#words.fill(0);
    const { VERSION, CMDCAP, OPCAP } = DsaRegister;
    this.set(VERSION, VERSION_1_0);
    for (const [offset, value] of CAPABILITIES) this.#set64(offset, value);
    for (const command of Object.values(DsaCommand)) this.set(CMDCAP, this.get(CMDCAP) | (1 << command));
    for (const operation of OPERATIONS.keys()) {
      const at = OPCAP + 4 * (operation >>> 5);
      this.set(at, this.get(at) | (1 << (operation & 31)));
    }
    for (let queue = 0; queue < QUEUES; queue++) this.resetQueue(queue);
  }

  /** The tables and settings that a device reset takes back; causes of interrupts and errors stay. */
  resetSettings(): void {
    const { GENCFG, GENCTRL, GRPCFG, MSIXPERM } = DsaRegister;
    for (const offset of [GENCFG, GENCTRL]) this.set(offset, 0);
    this.#words.fill(0, GRPCFG >>> 2, (GRPCFG + GROUPS * GroupConfig.BYTES) >>> 2);
    this.#words.fill(0, MSIXPERM >>> 2, (MSIXPERM + VECTORS * MsixPermission.bytes) >>> 2);
    for (let queue = 0; queue < QUEUES; queue++) this.resetQueue(queue);
  }

  resetQueue(queue: number): void {
    const at = queueAt(queue) >>> 2;
    this.#words.fill(0, at, at + QUEUE_CONFIG_BYTES / 4);
    WqConfig.fields.MaxTransfer.set(this.#words, MOST_TRANSFER_LG2, at);
    WqConfig.fields.MaxBatch.set(this.#words, MOST_BATCH_LG2, at);
  }

  /** What software writes to what is nothing but a setting. */
  write(offset: number, value: number, isDisabled: (queue: number) => boolean): void {
    const mask = this.#writable(offset, isDisabled);
    if (mask !== 0) this.set(offset, ((this.get(offset) & ~mask) | (value & mask)) >>> 0);
  }

  get state(): number {
    return GenSts.fields.State.get([this.get(DsaRegister.GENSTS)]);
  }
  set state(state: number) {
    this.set(DsaRegister.GENSTS, Number(GenSts.make({ State: state })));
  }

  settings(queue: number): QueueSettings {
    const at = queueAt(queue) >>> 2;
    const { fields } = WqConfig;
    const value = (name: keyof typeof fields): number => fields[name].get(this.#words, at);
    return {
      size: value("Size"),
      threshold: value("Threshold"),
      dedicated: value("Dedicated") === 1,
      blockOnFault: value("BlockOnFault") === 1,
      priority: value("Priority"),
      pasid: value("Pasid"),
      pasidEnable: value("PasidEnable") === 1,
      privileged: value("Privileged") === 1,
      maxTransferLg2: value("MaxTransfer"),
      maxBatchLg2: value("MaxBatch"),
    };
  }

  /** What software sees of a queue's doings. */
  show(queue: number, state: number, occupancy: number): void {
    const at = queueAt(queue) >>> 2;
    State.set(this.#words, state, at);
    Occupancy.set(this.#words, occupancy, at);
  }

  /** Masks. */
  queuesOf(group: number): number {
    return this.get(groupAt(group) + GroupConfig.QUEUES);
  }
  enginesOf(group: number): number {
    return this.get(groupAt(group) + GroupConfig.ENGINES);
  }

  /** Whether a descriptor with the PASID may use the vector; a `pasid` below 0 is none. */
  allows(vector: number, pasid: number): boolean {
    const at = (DsaRegister.MSIXPERM + vector * MsixPermission.bytes) >>> 2;
    const { Ignore, PasidEnable, Pasid } = MsixPermission.fields;
    if (Ignore.get(this.#words, at) === 1) return true;
    return PasidEnable.get(this.#words, at) === 1 ? Pasid.get(this.#words, at) === pasid : pasid < 0;
  }

  /** Whether the groups are such that the device can be enabled. */
  checkGroups(): CommandError {
    const groups = Array.from({ length: GROUPS }, (_, group) => group);
    const queues = groups.map((group) => this.queuesOf(group));
    const engines = groups.map((group) => this.enginesOf(group));
    const sizes = Array.from({ length: QUEUES }, (_, queue) => this.settings(queue).size);
    if (sizes.reduce((all, size) => all + size, 0) > QUEUE_ENTRIES) return CommandError.WQ_SIZES;
    if (meet(queues)) return CommandError.WQ_IN_GROUPS;
    if (meet(engines)) return CommandError.ENGINE_IN_GROUPS;
    if (groups.some((group) => queues[group] !== 0 && engines[group] === 0))
      return CommandError.GROUP_WITHOUT_ENGINE;
    const grouped = queues.reduce((all, mask) => all | mask, 0);
    const homeless = sizes.some((size, queue) => size > 0 && (grouped & (1 << queue)) === 0);
    return homeless ? CommandError.WQ_WITHOUT_GROUP : CommandError.NONE;
  }

  /** Whether the queue's settings are such that it can be enabled. */
  checkQueue(queue: number, rights: RequestRights): CommandError {
    const given = this.settings(queue);
    const { size, threshold, dedicated, pasidEnable, privileged } = given;
    if (size === 0 || (!dedicated && (threshold === 0 || threshold > size))) return CommandError.WQ_SIZE;
    if (given.priority === 0) return CommandError.WQ_PRIORITY;
    if (pasidEnable ? !rights.pasids : !dedicated) return CommandError.WQ_PASID;
    if (dedicated && pasidEnable && privileged && !rights.privileged) return CommandError.WQ_PASID;
    if (given.maxBatchLg2 > MOST_BATCH_LG2) return CommandError.WQ_MAX_BATCH;
    return given.maxTransferLg2 > MOST_TRANSFER_LG2 ? CommandError.WQ_MAX_TRANSFER : CommandError.NONE;
  }

  #set64(offset: number, value: bigint): void {
    this.set(offset, Number(value & 0xffff_ffffn));
    this.set(offset + 4, Number((value >> 32n) & 0xffff_ffffn));
  }

  #writable(offset: number, isDisabled: (queue: number) => boolean): number {
    const { GENCFG, GENCTRL, GRPCFG, WQCFG, MSIXPERM } = DsaRegister;
    const disabled = this.state === DeviceState.DISABLED;
    if (offset === GENCTRL) return allOf(GenCtrl.fields);
    if (offset === GENCFG) return disabled ? 0xff : 0;
    const inGroup = offset - GRPCFG;
    if (inGroup >= 0 && inGroup < GROUPS * GroupConfig.BYTES)
      return disabled ? (GROUP_WRITABLE.get(inGroup % GroupConfig.BYTES) ?? 0) : 0;
    const inQueue = offset - WQCFG;
    if (inQueue >= 0 && inQueue < QUEUES * QUEUE_CONFIG_BYTES) {
      const word = (inQueue % QUEUE_CONFIG_BYTES) >>> 2;
      const settled = word === 0 && !disabled; // sizes are shared out before the device is enabled
      const free = !settled && isDisabled(Math.floor(inQueue / QUEUE_CONFIG_BYTES));
      return free ? QUEUE_WRITABLE[word]! : 0;
    }
    const inPermissions = offset - MSIXPERM;
    if (inPermissions >= 0 && inPermissions < VECTORS * MsixPermission.bytes)
      return inPermissions % MsixPermission.bytes === 0 ? PERMISSION_WRITABLE : 0;
    return 0;
  }
}

/** Some bit is in two of the masks. */
const meet = (masks: readonly number[]): boolean => {
  let seen = 0;
  for (const mask of masks) {
    if (seen & mask) return true;
    seen |= mask;
  }
  return false;
};

const CAPABILITIES: readonly (readonly [offset: number, value: bigint])[] = [
  [
    DsaRegister.GENCAP,
    GenCap.make({
      BlockOnFault: true,
      OverlappingCopy: true,
      CacheControlMemory: true,
      CommandCapabilities: true,
      MaxTransfer: MOST_TRANSFER_LG2,
      MaxBatch: MOST_BATCH_LG2,
      Configuration: true,
    }),
  ],
  [
    DsaRegister.WQCAP,
    WqCap.make({
      TotalSize: QUEUE_ENTRIES,
      Count: QUEUES,
      ConfigSize: Math.log2(QUEUE_CONFIG_BYTES) - 5,
      Shared: true,
      Dedicated: true,
      Priority: true,
      Occupancy: true,
    }),
  ],
  [DsaRegister.GRPCAP, GrpCap.make({ Count: GROUPS })],
  [DsaRegister.ENGCAP, EngCap.make({ Count: ENGINES })],
  [
    DsaRegister.OFFSETS,
    Offsets.make({
      Groups: DsaRegister.GRPCFG / TABLE_UNIT,
      Queues: DsaRegister.WQCFG / TABLE_UNIT,
      MsixPermissions: DsaRegister.MSIXPERM / TABLE_UNIT,
    }),
  ],
];

/** Causes that are cleared by writing ones. */
export const CAUSES = allOf(IntCause.fields) & ALL;
