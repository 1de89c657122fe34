/**
 * What each operation does, as a generator (`access.ts`). Data moves through the engine's buffers, so that a copy may
 * overlap itself: it goes backwards then where it must. After a page fault a driver goes on where the record says.
 */
import { CHUNK, type EngineAccess, type Program } from "./access.ts";
import { Crc } from "./crc.ts";
import { Descriptor, type Outcome } from "./descriptor.ts";
import {
  DESCRIPTOR_BYTES,
  DESCRIPTOR_WORDS,
  DsaDescriptor,
  DsaFlag,
  DsaOperation,
  DsaStatus,
  STATUS_WRITE,
} from "./spec.ts";

type Operation = (descriptor: Descriptor, access: EngineAccess) => Program<Outcome>;

/** How an operation that does nothing ends. */
export const SUCCESS: Outcome = { status: DsaStatus.SUCCESS };
const PATTERN_BYTES = 8;
/** Descriptors of a batch that are fetched at once. */
const FETCH = 64;

/** The present access was refused. */
const faulted = (descriptor: Descriptor, access: EngineAccess, done: number): Outcome => {
  const status = descriptor.waitsForPages ? DsaStatus.PAGE_REQUEST_REFUSED : DsaStatus.PAGE_FAULT;
  return { status: access.kind === "write" ? status | STATUS_WRITE : status, done, fault: access.stop };
};

const { SOURCE, DESTINATION, SECOND_DESTINATION } = DsaDescriptor;

function* drain(_descriptor: Descriptor, access: EngineAccess): Program<Outcome> {
  yield access.drain();
  return SUCCESS;
}

/** To one destination or several, in chunks; `see` is shown each chunk. */
function* spread(
  descriptor: Descriptor,
  access: EngineAccess,
  destinations: readonly number[],
  see: (chunk: Uint8Array) => void = () => {},
): Program<Outcome> {
  const { size } = descriptor;
  for (let done = 0; done < size; ) {
    const chunk = access.buffer(0, Math.min(CHUNK, size - done));
    const read = yield access.read(descriptor, SOURCE, done, chunk);
    const reached = read ? chunk.length : access.done;
    const refused = read ? undefined : faulted(descriptor, access, done + reached);
    const part = chunk.subarray(0, reached);
    for (const destination of destinations)
      if (!(yield access.write(descriptor, destination, done, part)))
        return faulted(descriptor, access, destinations.length > 1 ? done : done + access.done);
    if (refused) return refused;
    see(part);
    done += reached;
  }
  return { status: DsaStatus.SUCCESS, done: size };
}

/** From the last chunk to the first; `result` 1 says so. */
function* moveBackwards(descriptor: Descriptor, access: EngineAccess): Program<Outcome> {
  const { size } = descriptor;
  for (let left = size; left > 0; ) {
    const chunk = access.buffer(0, Math.min(CHUNK, left));
    left -= chunk.length;
    const moved =
      (yield access.read(descriptor, SOURCE, left, chunk)) &&
      (yield access.write(descriptor, DESTINATION, left, chunk));
    if (!moved) return { ...faulted(descriptor, access, size - left - chunk.length), result: 1 };
  }
  return { status: DsaStatus.SUCCESS, done: size };
}

const memmove: Operation = (descriptor, access) => {
  const ahead = descriptor.address(DESTINATION) - descriptor.address(SOURCE);
  return ahead > 0n && ahead < BigInt(descriptor.size)
    ? moveBackwards(descriptor, access)
    : spread(descriptor, access, [DESTINATION]);
};

const patternOf = ({ words }: Descriptor, offset: number): Uint8Array =>
  new Uint8Array(words.buffer, words.byteOffset + offset, PATTERN_BYTES);

const fillWith = (bytes: Uint8Array, pattern: Uint8Array): void => {
  for (let at = 0; at < bytes.length; at++) bytes[at] = pattern[at % PATTERN_BYTES]!;
};

function* fill(descriptor: Descriptor, access: EngineAccess): Program<Outcome> {
  const { size } = descriptor;
  const chunk = access.buffer(0, Math.min(CHUNK, size));
  fillWith(chunk, patternOf(descriptor, SOURCE));
  for (let done = 0; done < size; ) {
    const part = chunk.subarray(0, Math.min(chunk.length, size - done));
    if (!(yield access.write(descriptor, DESTINATION, done, part)))
      return faulted(descriptor, access, done + access.done);
    done += part.length;
  }
  return { status: DsaStatus.SUCCESS, done: size };
}

/** How a comparison ends: `result` 1 when they differ, at `done`. */
const compared = (descriptor: Descriptor, result: 0 | 1, done: number): Outcome => {
  const expected = descriptor.word(DsaDescriptor.EXPECTED) & 0xff;
  const unexpected = descriptor.has(DsaFlag.CHECK_RESULT) && result !== expected;
  return { status: unexpected ? DsaStatus.UNEXPECTED_RESULT : DsaStatus.SUCCESS, result, done };
};

/** Both sources, or the one and a pattern. */
function* compareWith(descriptor: Descriptor, access: EngineAccess, pattern?: Uint8Array): Program<Outcome> {
  const { size } = descriptor;
  for (let done = 0; done < size; ) {
    const one = access.buffer(0, Math.min(CHUNK, size - done));
    const other = access.buffer(1, one.length);
    if (!(yield access.read(descriptor, SOURCE, done, one))) return faulted(descriptor, access, done);
    if (pattern) fillWith(other, pattern);
    else if (!(yield access.read(descriptor, DESTINATION, done, other)))
      return faulted(descriptor, access, done);
    if (Buffer.compare(one, other) !== 0)
      return compared(descriptor, 1, done + one.findIndex((byte, at) => byte !== other[at]));
    done += one.length;
  }
  return compared(descriptor, 0, size);
}

/** Of the source, which goes to `destinations` too. */
function* crc(
  descriptor: Descriptor,
  access: EngineAccess,
  destinations: readonly number[],
): Program<Outcome> {
  let seed = descriptor.word(DsaDescriptor.CRC_SEED);
  if (descriptor.has(DsaFlag.READ_SEED)) {
    const bytes = access.buffer(1, 4);
    if (!(yield access.read(descriptor, DsaDescriptor.CRC_SEED_ADDRESS, 0, bytes)))
      return faulted(descriptor, access, 0);
    seed = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  }
  const sum = new Crc(seed, {
    plainCrc: descriptor.has(DsaFlag.PLAIN_CRC),
    plainData: descriptor.has(DsaFlag.PLAIN_DATA),
  });
  const outcome = yield* spread(descriptor, access, destinations, (chunk) => sum.add(chunk));
  return outcome.status === DsaStatus.SUCCESS ? { ...outcome, crc: sum.value } : outcome;
}

const OPERATION: ReadonlyMap<number, Operation> = new Map<number, Operation>([
  [DsaOperation.DRAIN, drain],
  [DsaOperation.MEMMOVE, memmove],
  [DsaOperation.FILL, fill],
  [DsaOperation.COMPARE, (descriptor, access) => compareWith(descriptor, access)],
  [
    DsaOperation.COMPARE_PATTERN,
    (descriptor, access) => compareWith(descriptor, access, patternOf(descriptor, DESTINATION)),
  ],
  [DsaOperation.DUALCAST, (d, access) => spread(d, access, [DESTINATION, SECOND_DESTINATION])],
  [DsaOperation.CRC, (descriptor, access) => crc(descriptor, access, [])],
  [DsaOperation.COPY_CRC, (descriptor, access) => crc(descriptor, access, [DESTINATION])],
]);

/** One that does something and is no batch; it was checked. */
export const operate: Operation = (descriptor, access) =>
  OPERATION.get(descriptor.operation)!(descriptor, access);

/** A descriptor ended well enough for those behind a fence. */
const isFine = (status: number): boolean => status === DsaStatus.SUCCESS;

/**
 * A batch: its descriptors one after the other, each carried out by `each`, which answers its status. Behind a fence nothing
 * is done any more when one before it has failed.
 */
export function* batch(
  descriptor: Descriptor,
  access: EngineAccess,
  each: (one: Descriptor) => Program<number>,
): Program<Outcome> {
  const { size, rules } = descriptor;
  let failed = false;
  for (let first = 0; first < size; first += FETCH) {
    const count = Math.min(FETCH, size - first);
    const words = new Uint32Array(count * DESCRIPTOR_WORDS);
    const list = new Uint8Array(words.buffer);
    if (!(yield access.fetch(descriptor, SOURCE, first * DESCRIPTOR_BYTES, list)))
      return { status: DsaStatus.BATCH_PAGE_FAULT, done: first, fault: access.stop };
    for (let at = 0; at < count; at++) {
      const from = at * DESCRIPTOR_WORDS;
      const part = words.subarray(from, from + DESCRIPTOR_WORDS);
      const one = new Descriptor(part, rules, descriptor, first + at);
      if (failed && one.has(DsaFlag.FENCE)) return { status: DsaStatus.BATCH_FAILED, done: first + at };
      if (!isFine(yield* each(one))) failed = true;
    }
  }
  return { status: failed ? DsaStatus.BATCH_FAILED : DsaStatus.SUCCESS, done: size };
}
