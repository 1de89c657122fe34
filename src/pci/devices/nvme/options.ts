/** What an NVMe controller can be asked to be, and the checks that refuse the rest with a sentence. */

/** A namespace, in memory or in a sparse file. */
export interface NamespaceOptions {
  /** Backing file, made when it does not exist and grown sparse to `size`. Without: memory, all zero at first. */
  readonly file?: string;
  /** Bytes; a multiple of `blockSize`. Default: the size of the file, or 1 GiB. */
  readonly size?: number;
  /** Bytes of a logical block. Default 512. */
  readonly blockSize?: 512 | 4096;
}

/** Namespace 1, what the controller can do, and further namespaces. */
export interface NvmeOptions extends NamespaceOptions {
  /** Namespaces 2, 3, …; up to 31. */
  readonly moreNamespaces?: readonly NamespaceOptions[];
  /** Up to 20 printable ASCII characters. */
  readonly serial?: string;
  /** I/O queue pairs, 1 … 1023. Default 16. There is one more MSI-X vector. */
  readonly queues?: number;
  /** Largest transfer is 4096 · 2^mdts bytes; 1 … 12. Default 5: 128 KiB. */
  readonly mdts?: number;
  /** Doorbells are 2^(2 + dstrd) bytes apart; 0 … 10. Default 0. */
  readonly dstrd?: number;
  /** Entries a queue may have, 2 … 65536. Default 1024. */
  readonly queueEntries?: number;
}

export interface CheckedNamespace {
  readonly file: string | undefined;
  readonly size: number | undefined;
  readonly blockSize: number;
}

export interface CheckedOptions {
  /** Number 1 first. */
  readonly namespaces: readonly CheckedNamespace[];
  readonly serial: string;
  readonly queues: number;
  readonly mdts: number;
  readonly dstrd: number;
  readonly queueEntries: number;
}

const NAMESPACES = 32;

const integer = (name: string, value: number, low: number, high: number): number => {
  if (!(Number.isInteger(value) && value >= low && value <= high))
    throw new RangeError(`nvme: ${name} is ${value}; it is an integer from ${low} to ${high}`);
  return value;
};

/** Throws a RangeError with a sentence for what cannot be. */
export const checkOptions = (options: NvmeOptions): CheckedOptions => {
  const { serial = "softiommu", moreNamespaces = [] } = options;
  integer("the number of namespaces", 1 + moreNamespaces.length, 1, NAMESPACES);
  if (!/^[\x20-\x7e]{1,20}$/.test(serial))
    throw new RangeError(`nvme: serial ${JSON.stringify(serial)} is not 1 to 20 printable ASCII characters`);
  return {
    namespaces: [options, ...moreNamespaces].map(checkNamespace),
    serial,
    queues: integer("queues", options.queues ?? 16, 1, 1023),
    mdts: integer("mdts", options.mdts ?? 5, 1, 12),
    dstrd: integer("dstrd", options.dstrd ?? 0, 0, 10),
    queueEntries: integer("queueEntries", options.queueEntries ?? 1024, 2, 65536),
  };
};

const checkNamespace = ({ file, size, blockSize = 512 }: NamespaceOptions): CheckedNamespace => {
  if (blockSize !== 512 && blockSize !== 4096)
    throw new RangeError(`nvme: blockSize is ${String(blockSize)}; it is 512 or 4096`);
  if (size !== undefined) checkSize(size, blockSize);
  return { file, size, blockSize };
};

/** RangeError unless `size` bytes are a whole number of blocks. */
export const checkSize = (size: number, blockSize: number): void => {
  if (!(Number.isSafeInteger(size) && size >= blockSize && size % blockSize === 0))
    throw new RangeError(`nvme: size ${size} is not a multiple of the block size, ${blockSize} bytes`);
};
