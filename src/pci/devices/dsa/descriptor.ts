/**
 * A descriptor as a queue took it, and what it must be before anything of it is carried out (chapter "Descriptor Checking").
 * How one ended is an `Outcome`, which becomes a completion record, or a software error where there can be none.
 */
import { Access, NO_PASID } from "../../../hardware/unit.ts";
import {
  COMPLETION_BYTES,
  Completion,
  DESCRIPTOR_BYTES,
  DESCRIPTOR_WORDS,
  DescriptorHead,
  DsaDescriptor,
  DsaFlag,
  DsaOperation,
  DsaStatus,
  VECTORS,
} from "./spec.ts";

const { Pasid, Privileged, Flags, Operation } = DescriptorHead.fields;
const RESERVED_HEAD = Number(DescriptorHead.reserved & 0xffff_ffffn);
const PAGE_MASK = 0xfff;

/** How an operation ended. */
export interface Outcome {
  /** A `DsaStatus`, perhaps with `STATUS_WRITE`. */
  readonly status: number;
  readonly result?: number;
  /** Bytes, or descriptors of a batch, that were completed. */
  readonly done?: number;
  readonly fault?: { readonly lo: number; readonly hi: number };
  readonly invalidFlags?: number;
  readonly crc?: number;
}

/** What a queue says of the descriptors in it. */
export interface QueueRules {
  readonly queue: number;
  readonly blockOnFault: boolean;
  readonly maxTransferLg2: number;
  readonly maxBatchLg2: number;
  /** Of a dedicated queue: what all requests carry. Undefined: what the descriptor says. */
  readonly identity?: { readonly pasid: number; readonly privileged: boolean };
}

export class Descriptor {
  readonly words: Uint32Array;
  readonly rules: QueueRules;
  /** Its place in a batch; -1: it is in none. */
  readonly batchIndex: number;
  readonly operation: number;
  readonly flags: number;
  readonly pasid: number;
  readonly privileged: boolean;

  /** `parent`: the batch it is of, whose PASID it has. */
  constructor(words: Uint32Array, rules: QueueRules, parent?: Descriptor, batchIndex = -1) {
    this.words = words;
    this.rules = rules;
    this.batchIndex = batchIndex;
    this.operation = Operation.get(words);
    this.flags = Flags.get(words);
    const { identity } = rules;
    this.pasid = parent?.pasid ?? identity?.pasid ?? Pasid.get(words);
    this.privileged = parent?.privileged ?? identity?.privileged ?? Privileged.get(words) === 1;
  }

  /** From the 64 bytes that came to a portal. */
  static of(bytes: Uint8Array, rules: QueueRules): Descriptor {
    const words = new Uint32Array(DESCRIPTOR_WORDS);
    new Uint8Array(words.buffer).set(bytes.subarray(0, DESCRIPTOR_BYTES));
    return new Descriptor(words, rules);
  }

  get size(): number {
    return this.word(DsaDescriptor.SIZE);
  }
  get interrupt(): number {
    return this.word(DsaDescriptor.INTERRUPT) & 0xffff;
  }
  get waitsForPages(): boolean {
    return this.has(DsaFlag.BLOCK_ON_FAULT);
  }
  /** `Access` bits of its requests, beside reading and writing. */
  get extra(): number {
    return this.privileged && this.pasid !== NO_PASID ? Access.privileged : 0;
  }

  has(flag: number): boolean {
    return (this.flags & flag) !== 0;
  }
  word(offset: number): number {
    return this.words[offset >>> 2]!;
  }
  /** A 64-bit field. */
  address(offset: number): bigint {
    return (BigInt(this.word(offset + 4)) << 32n) | BigInt(this.word(offset));
  }
}

const ALWAYS =
  DsaFlag.BLOCK_ON_FAULT |
  DsaFlag.COMPLETION_VALID |
  DsaFlag.REQUEST_COMPLETION |
  DsaFlag.REQUEST_INTERRUPT |
  DsaFlag.TRAFFIC_CLASSES;
const WRITES = DsaFlag.CACHE_CONTROL | DsaFlag.STRICT_ORDER;
const CRC_FLAGS = DsaFlag.READ_SEED | DsaFlag.PLAIN_CRC | DsaFlag.PLAIN_DATA;

/** Operations, with the flags that each may have beside those that all may have. */
export const OPERATIONS: ReadonlyMap<number, number> = new Map([
  [DsaOperation.NOOP, 0],
  [DsaOperation.BATCH, 0],
  [DsaOperation.DRAIN, 0],
  [DsaOperation.MEMMOVE, WRITES],
  [DsaOperation.FILL, WRITES],
  [DsaOperation.COMPARE, DsaFlag.CHECK_RESULT],
  [DsaOperation.COMPARE_PATTERN, DsaFlag.CHECK_RESULT],
  [DsaOperation.DUALCAST, WRITES],
  [DsaOperation.CRC, CRC_FLAGS],
  [DsaOperation.COPY_CRC, WRITES | CRC_FLAGS],
]);

const MOVES_NOTHING: ReadonlySet<number> = new Set([
  DsaOperation.NOOP,
  DsaOperation.BATCH,
  DsaOperation.DRAIN,
]);

const overlap = (a: bigint, b: bigint, size: number): boolean => a < b + BigInt(size) && b < a + BigInt(size);

/**
 * What is wrong with the descriptor; undefined: nothing. `mayInterrupt`: whether its PASID may use the interrupt handle.
 */
export const check = (
  descriptor: Descriptor,
  mayInterrupt: (handle: number, pasid: number) => boolean,
): Outcome | undefined => {
  const { operation, flags, words } = descriptor;
  const inBatch = descriptor.batchIndex >= 0;
  const own = OPERATIONS.get(operation);
  const apart = operation === DsaOperation.BATCH || operation === DsaOperation.DRAIN;
  if (own === undefined || (inBatch && apart)) return { status: DsaStatus.OPERATION };
  const fence = inBatch ? DsaFlag.FENCE : 0;
  const waits = descriptor.rules.blockOnFault ? 0 : DsaFlag.BLOCK_ON_FAULT;
  const completion = descriptor.has(DsaFlag.COMPLETION_VALID) ? 0 : DsaFlag.REQUEST_COMPLETION;
  const invalidFlags = flags & ~((ALWAYS | own | fence) & ~waits & ~completion);
  if (invalidFlags !== 0) return { status: DsaStatus.FLAGS, invalidFlags };
  if (words[0]! & RESERVED_HEAD) return { status: DsaStatus.RESERVED };
  const { interrupt, pasid } = descriptor;
  if (descriptor.has(DsaFlag.REQUEST_INTERRUPT))
    if (interrupt >= VECTORS || !mayInterrupt(interrupt, pasid))
      return { status: DsaStatus.INTERRUPT_HANDLE };
  const status = operation === DsaOperation.BATCH ? checkBatch(descriptor) : checkData(descriptor);
  return status === 0 ? undefined : { status };
};

/** The completion record cannot be there. */
export const isCompletionMisplaced = (descriptor: Descriptor): boolean =>
  descriptor.has(DsaFlag.COMPLETION_VALID) &&
  (descriptor.word(DsaDescriptor.COMPLETION) & (COMPLETION_BYTES - 1)) !== 0;

const checkBatch = ({ size, rules, words }: Descriptor): number => {
  if (size < 2 || size > 2 ** rules.maxBatchLg2) return DsaStatus.BATCH_SIZE;
  return words[DsaDescriptor.SOURCE >>> 2]! & (DESCRIPTOR_BYTES - 1) ? DsaStatus.LIST_ALIGNMENT : 0;
};

const checkData = (descriptor: Descriptor): number => {
  const { operation, size, rules } = descriptor;
  if (MOVES_NOTHING.has(operation)) return 0;
  if (size === 0 || size > 2 ** rules.maxTransferLg2) return DsaStatus.TRANSFER_SIZE;
  const source = descriptor.address(DsaDescriptor.SOURCE);
  const destination = descriptor.address(DsaDescriptor.DESTINATION);
  if (operation === DsaOperation.COPY_CRC && overlap(source, destination, size)) return DsaStatus.OVERLAP;
  if (operation !== DsaOperation.DUALCAST) return 0;
  const second = descriptor.address(DsaDescriptor.SECOND_DESTINATION);
  if (Number((destination ^ second) & BigInt(PAGE_MASK)) !== 0) return DsaStatus.DUALCAST_ADDRESSES;
  const meets =
    overlap(source, destination, size) || overlap(source, second, size) || overlap(destination, second, size);
  return meets ? DsaStatus.OVERLAP : 0;
};

/** The completion record of an outcome. */
export const recordOf = ({ status, result = 0, done = 0, fault, invalidFlags, crc }: Outcome): Uint8Array => {
  const bytes = new Uint8Array(COMPLETION_BYTES);
  const view = new DataView(bytes.buffer);
  bytes[Completion.STATUS] = status;
  bytes[Completion.RESULT] = result;
  view.setUint32(Completion.DONE, done, true);
  view.setUint32(Completion.FAULT_ADDRESS, fault?.lo ?? 0, true);
  view.setUint32(Completion.FAULT_ADDRESS + 4, fault?.hi ?? 0, true);
  view.setUint32(Completion.CRC, crc ?? invalidFlags ?? 0, true);
  return bytes;
};
