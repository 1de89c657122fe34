/**
 * The memory that a descriptor is about, as its driver can tell before it is submitted: data, completion records, and those
 * of a batch's descriptors. What makes no sense is left out: the device will say so.
 */
import {
  COMPLETION_BYTES,
  DESCRIPTOR_BYTES,
  DescriptorHead,
  DsaDescriptor,
  DsaFlag,
  DsaOperation,
  MOST_BATCH_LG2,
} from "../pci/devices/dsa/spec.ts";

export interface MemoryRange {
  readonly address: number;
  readonly bytes: number;
  readonly write: boolean;
}

/** Offsets of the addresses that an operation reads and writes, `SIZE` bytes each. */
const DATA: ReadonlyMap<number, { readonly reads: readonly number[]; readonly writes: readonly number[] }> =
  new Map([
    [DsaOperation.MEMMOVE, { reads: [DsaDescriptor.SOURCE], writes: [DsaDescriptor.DESTINATION] }],
    [DsaOperation.FILL, { reads: [], writes: [DsaDescriptor.DESTINATION] }],
    [DsaOperation.COMPARE, { reads: [DsaDescriptor.SOURCE, DsaDescriptor.DESTINATION], writes: [] }],
    [DsaOperation.COMPARE_PATTERN, { reads: [DsaDescriptor.SOURCE], writes: [] }],
    [
      DsaOperation.DUALCAST,
      {
        reads: [DsaDescriptor.SOURCE],
        writes: [DsaDescriptor.DESTINATION, DsaDescriptor.SECOND_DESTINATION],
      },
    ],
    [DsaOperation.CRC, { reads: [DsaDescriptor.SOURCE], writes: [] }],
    [DsaOperation.COPY_CRC, { reads: [DsaDescriptor.SOURCE], writes: [DsaDescriptor.DESTINATION] }],
  ]);

/** Addresses of programs have 47 bits. */
const USER_END = 2 ** 47;
const SEED_BYTES = 4;
const { Operation, Flags } = DescriptorHead.fields;

/** Calls `visit` for each range. `read` fetches a batch's list from the program, and throws what that throws. */
export const eachRange = (
  descriptor: Uint8Array,
  read: (address: number, into: Uint8Array) => void,
  visit: (range: MemoryRange) => void,
): void => {
  const view = new DataView(descriptor.buffer, descriptor.byteOffset, DESCRIPTOR_BYTES);
  const head = [view.getUint32(0, true), view.getUint32(4, true)];
  const operation = Operation.get(head);
  const flags = Flags.get(head);
  const size = view.getUint32(DsaDescriptor.SIZE, true);
  const tell = (offset: number, bytes: number, write: boolean): void => {
    const address = Number(view.getBigUint64(offset, true));
    if (bytes > 0 && address + bytes <= USER_END) visit({ address, bytes, write });
  };
  if (flags & DsaFlag.COMPLETION_VALID) tell(DsaDescriptor.COMPLETION, COMPLETION_BYTES, true);
  const data = DATA.get(operation);
  for (const offset of data?.reads ?? []) tell(offset, size, false);
  for (const offset of data?.writes ?? []) tell(offset, size, true);
  const sums = operation === DsaOperation.CRC || operation === DsaOperation.COPY_CRC;
  if (sums && flags & DsaFlag.READ_SEED) tell(DsaDescriptor.CRC_SEED_ADDRESS, SEED_BYTES, false);
  if (operation !== DsaOperation.BATCH || size > 2 ** MOST_BATCH_LG2) return;
  const list = new Uint8Array(size * DESCRIPTOR_BYTES);
  tell(DsaDescriptor.SOURCE, list.length, false);
  read(Number(view.getBigUint64(DsaDescriptor.SOURCE, true)), list);
  for (let at = 0; at < list.length; at += DESCRIPTOR_BYTES) {
    const one = list.subarray(at, at + DESCRIPTOR_BYTES);
    if (one[7] !== DsaOperation.BATCH) eachRange(one, read, visit);
  }
};
