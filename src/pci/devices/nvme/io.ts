/**
 * The NVM command set (§6): Flush, Write, Read, Compare, Write Zeroes, Dataset Management. Decodes and checks; the engine
 * moves the data. Left out, and answered as invalid opcodes: Write Uncorrectable, Verify, Copy, reservations.
 */
import type { Logs } from "./logs.ts";
import { ALL_NAMESPACES, flushAll, type Namespace } from "./namespace.ts";
import { type Command, Transfer } from "./queue.ts";
import { DatasetRange, DatasetWord, NlbWord, Nvm, SqeWord, StatusCode } from "./spec.ts";

const WORD = 0x1_0000_0000;

export interface IoContext {
  /** Number 1 first. */
  readonly namespaces: readonly Namespace[];
  readonly logs: Logs;
  /** Bytes of the largest transfer. */
  readonly maxTransfer: number;
  pageBytes(): number;
  /** Volatile write cache enabled? Otherwise every write goes through. */
  cached(): boolean;
}

/** The first block of a command, exact below 2^53. */
export const firstBlock = (command: Command): number => command.cdw(11) * WORD + command.cdw(10);

/** Sets up the transfer of an I/O command, or returns the status it fails with. */
export const decodeIo = (command: Command, context: IoContext): number => {
  const { opcode, nsid } = command;
  if (!known.has(opcode)) return StatusCode.INVALID_OPCODE;
  if (opcode === Nvm.FLUSH && nsid === ALL_NAMESPACES) {
    command.received = () => (flushAll(context.namespaces) ? StatusCode.SUCCESS : StatusCode.WRITE_FAULT);
    return StatusCode.SUCCESS;
  }
  const namespace = context.namespaces[nsid - 1];
  if (!namespace) return StatusCode.INVALID_NAMESPACE;
  command.media = namespace.media;
  if (opcode === Nvm.FLUSH) {
    command.through = true;
    return StatusCode.SUCCESS;
  }
  if (opcode === Nvm.DATASET_MANAGEMENT) return decodeDataset(command, namespace, context);
  return decodeTransfer(command, namespace, context);
};

const decodeTransfer = (command: Command, { blocks, blockSize }: Namespace, context: IoContext): number => {
  const { opcode } = command;
  const { NLB, FUA } = NlbWord.fields;
  const first = firstBlock(command);
  const count = (command.cdw(12) & NLB.mask) + 1;
  const length = count * blockSize;
  if (opcode !== Nvm.WRITE_ZEROES && length > context.maxTransfer) return StatusCode.INVALID_FIELD;
  if (first + count > blocks) return StatusCode.LBA_OUT_OF_RANGE;
  command.offset = first * blockSize;
  command.left = length;
  const forced = (command.cdw(12) & FUA.mask) !== 0;
  command.through = changes.has(opcode) && (forced || !context.cached());
  command.transfer = transfers[opcode] ?? Transfer.none;
  if (opcode !== Nvm.WRITE_ZEROES)
    command.prp.start(command.words, SqeWord.PRP1, length, context.pageBytes());
  tally(context.logs, opcode, length);
  return StatusCode.SUCCESS;
};

const known: ReadonlySet<number> = new Set(Object.values(Nvm));
const transfers: { readonly [opcode: number]: number } = {
  [Nvm.READ]: Transfer.mediaRead,
  [Nvm.WRITE]: Transfer.mediaWrite,
  [Nvm.WRITE_ZEROES]: Transfer.mediaZero,
  [Nvm.COMPARE]: Transfer.mediaCompare,
};
const changes: ReadonlySet<number> = new Set([Nvm.WRITE, Nvm.WRITE_ZEROES]);

/** §6.7: the ranges are fetched, all of them are checked, then they are deallocated: blocks that read as zeroes. */
const decodeDataset = (command: Command, namespace: Namespace, context: IoContext): number => {
  const { NR, AD } = DatasetWord.fields;
  const words = [command.cdw(10), command.cdw(11)];
  const count = NR.get(words) + 1;
  const payload = new Uint8Array(count * DatasetRange.BYTES);
  command.transfer = Transfer.fromHost;
  command.payload = payload;
  command.left = payload.length;
  command.prp.start(command.words, SqeWord.PRP1, payload.length, context.pageBytes());
  command.received = () => {
    const ranges = rangesOf(payload);
    if (ranges.some(({ first, blocks }) => first + blocks > namespace.blocks))
      return StatusCode.LBA_OUT_OF_RANGE;
    return AD.get(words) === 0
      ? StatusCode.SUCCESS
      : deallocate(command, ranges, namespace.blockSize, context);
  };
  return StatusCode.SUCCESS;
};

interface BlockRange {
  readonly first: number;
  readonly blocks: number;
}

const rangesOf = (payload: Uint8Array): BlockRange[] => {
  const view = new DataView(payload.buffer);
  return Array.from({ length: payload.length / DatasetRange.BYTES }, (_, i) => {
    const at = i * DatasetRange.BYTES;
    const start = view.getBigUint64(at + DatasetRange.START, true);
    return { first: Number(start), blocks: view.getUint32(at + DatasetRange.LENGTH, true) };
  });
};

/** One range after the other, each as the transfer of the command. */
const deallocate = (
  command: Command,
  [range, ...more]: readonly BlockRange[],
  blockSize: number,
  context: IoContext,
): number => {
  if (!range) {
    command.through = !context.cached();
    return StatusCode.SUCCESS;
  }
  command.transfer = Transfer.mediaZero;
  command.offset = range.first * blockSize;
  command.left = range.blocks * blockSize;
  command.received = () => deallocate(command, more, blockSize, context);
  return StatusCode.SUCCESS;
};

const tally = (logs: Logs, opcode: number, bytes: number): void => {
  if (opcode === Nvm.READ || opcode === Nvm.COMPARE) {
    logs.readCommands += 1;
    logs.readBytes += bytes;
  } else if (opcode === Nvm.WRITE) {
    logs.writeCommands += 1;
    logs.writtenBytes += bytes;
  }
};
