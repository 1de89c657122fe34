/** The NVM command set (§6): Flush, Write, Read, Write Zeroes. Decodes and checks; the engine moves the data. */
import type { Logs } from "./logs.ts";
import { ALL_NAMESPACES, flushAll, type Namespace } from "./namespace.ts";
import { type Command, Transfer } from "./queue.ts";
import { NlbWord, Nvm, SqeWord, StatusCode } from "./spec.ts";

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
  command.through = opcode !== Nvm.READ && (forced || !context.cached());
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
};

const tally = (logs: Logs, opcode: number, bytes: number): void => {
  if (opcode === Nvm.READ) {
    logs.readCommands += 1;
    logs.readBytes += bytes;
  } else if (opcode === Nvm.WRITE) {
    logs.writeCommands += 1;
    logs.writtenBytes += bytes;
  }
};
