/**
 * The requests on an IOAS (linux/iommufd.h): ALLOC, IOVA_RANGES, ALLOW_IOVAS, MAP, MAP_FILE, COPY, UNMAP,
 * CHANGE_PROCESS, and DESTROY of any object. Checks come in the order in which Linux 7.2 makes them, as recorded in
 * test/data/transcripts.
 */
import { IntervalMap } from "../base/interval-map.ts";
import { Protection } from "../iommu/driver.ts";
import { type Call, type FileBacking, SUSPENDED, type Suspended } from "../kernel/call.ts";
import { DmaBuf } from "../kernel/dma-buf.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  IOMMU_DESTROY,
  IOMMU_IOAS_ALLOC,
  IOMMU_IOAS_ALLOW_IOVAS,
  IOMMU_IOAS_CHANGE_PROCESS,
  IOMMU_IOAS_COPY,
  IOMMU_IOAS_IOVA_RANGES,
  IOMMU_IOAS_MAP,
  IOMMU_IOAS_MAP_FILE,
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
  IOMMU_IOAS_UNMAP,
  IommuDestroy,
  IommuIoasAlloc,
  IommuIoasAllowIovas,
  IommuIoasChangeProcess,
  IommuIoasCopy,
  IommuIoasIovaRanges,
  IommuIoasMap,
  IommuIoasMapFile,
  IommuIoasUnmap,
  IommuIovaRange,
} from "../uapi/iommufd.ts";
import { type AddressRange, hex, MAX_ADDRESS, offsetOf, PAGE_BYTES, pageOf, showRange } from "./address.ts";
import type { IommufdContext } from "./context.ts";
import { DmaBufSource } from "./dma-buf-source.ts";
import { Ioas } from "./ioas.ts";
import { FileSource, type PageSource, Pages, UserSource } from "./pages.ts";
import { request, requireFlags, requireZero } from "./request.ts";
import { unmapWaiting } from "./unmap.ts";

const PAGE = BigInt(PAGE_BYTES);
const MAP_FLAGS = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE;

export const ioasOf = (context: IommufdContext, id: number): Ioas => context.objects.get(id, Ioas, "ioas_id");

const overflow = (what: string, value: bigint): LinuxError =>
  new LinuxError("EOVERFLOW", `${what} ${hex(value)} is beyond what can be addressed`);

/** Ranges in bytes that wrap, or are all of the address space, cannot be named with start and length. */
export const requireRange = (what: string, start: bigint, length: bigint): void => {
  if (start + length > MAX_ADDRESS + 1n) throw overflow(`${what} ${hex(start)} + length`, length);
};

const protectionOf = (flags: number): number => {
  const protection =
    (flags & IOMMU_IOAS_MAP_READABLE ? Protection.read : 0) |
    (flags & IOMMU_IOAS_MAP_WRITEABLE ? Protection.write : 0);
  if (protection === 0)
    throw new LinuxError(
      "EINVAL",
      "flags have neither READABLE nor WRITEABLE: a mapping must allow one of them",
    );
  return protection;
};

const ioasAlloc = request(
  IOMMU_IOAS_ALLOC,
  IommuIoasAlloc,
  "out_ioas_id",
  ({ context, argument, respond }) => {
    requireFlags(argument.flags, 0);
    const ioas = context.add(new Ioas(context));
    try {
      respond({ out_ioas_id: ioas.id });
    } catch (error) {
      context.objects.remove(ioas);
      throw error;
    }
  },
);

/** Waits for calls on the object; interrupted, it goes all the same. */
const destroy = request(IOMMU_DESTROY, IommuDestroy, "id", ({ context, call, argument }) => {
  const object = context.objects.destroy(argument.id);
  if (!object.busy) return undefined;
  context.keep();
  const waiting = call.suspend(() => {});
  object.whenIdle(() => {
    context.release();
    if (!waiting.settled) waiting.resume(0);
  });
  return SUSPENDED;
});

const iovaRanges = request(
  IOMMU_IOAS_IOVA_RANGES,
  IommuIoasIovaRanges,
  "out_iova_alignment",
  ({ context, call, argument, respond }) => {
    requireZero("__reserved", argument.__reserved);
    const { pagetable } = ioasOf(context, argument.ioas_id);
    const ranges = pagetable.space.usable;
    const fitting = ranges.slice(0, argument.num_iovas);
    fitting.forEach(({ start, last }, index) => {
      call.memory.write(
        argument.allowed_iovas + BigInt(index * IommuIovaRange.size),
        IommuIovaRange.bytes({ start, last }),
      );
    });
    respond({ num_iovas: ranges.length, out_iova_alignment: pagetable.alignment });
    if (fitting.length < ranges.length)
      throw new LinuxError(
        "EMSGSIZE",
        `there are ${ranges.length} ranges, and num_iovas has room for ${argument.num_iovas}`,
      );
  },
);

/** Most ranges that may be allowed. */
const MOST_RANGES = 2 ** 20;
/** Ranges that are fetched from the caller in one go. */
const FETCHED = 256;

/** One by one, so that EFAULT comes where Linux has it: after what is wrong with the ranges before. */
function* rangesAt(call: Call, at: bigint, count: number): Iterable<AddressRange> {
  const { size } = IommuIovaRange;
  for (let first = 0; first < count; first += FETCHED) {
    const bytes = new Uint8Array(Math.min(count - first, FETCHED) * size);
    const whole = attempt(() => call.memory.read(at + BigInt(first * size), bytes));
    for (let offset = 0; offset < bytes.length; offset += size) {
      const one = bytes.subarray(offset, offset + size);
      if (!whole) call.memory.read(at + BigInt(first * size + offset), one);
      yield IommuIovaRange.read(one);
    }
  }
}

const attempt = (access: () => void): boolean => {
  try {
    access();
    return true;
  } catch (error) {
    if (error instanceof LinuxError) return false;
    throw error;
  }
};

/**
 * Ranges as the caller lists them. Throws EFAULT; EINVAL when one ends before it starts or touches one before it; ENOMEM
 * for more than 2^20.
 */
const readRanges = (call: Call, at: bigint, count: number, context: IommufdContext): AddressRange[] => {
  const ranges: AddressRange[] = [];
  const taken = new IntervalMap<AddressRange>();
  for (const range of rangesAt(call, at, count)) {
    const { start, last } = range;
    if (start >= last)
      throw new LinuxError(
        "EINVAL",
        `allowed range ${ranges.length} ends before it begins: ${showRange(range)}`,
      );
    if (!taken.insert(pageOf(start), offsetOf(start), pageOf(last), offsetOf(last), range))
      throw new LinuxError(
        "EINVAL",
        `allowed ranges ${showRange(taken.value)} and ${showRange(range)} overlap`,
      );
    context.allocate("an allowed range");
    if (ranges.length === MOST_RANGES)
      throw new LinuxError("ENOMEM", `num_iovas ${count}: at most ${MOST_RANGES} ranges can be allowed`);
    ranges.push(range);
  }
  return ranges;
};

const allowIovas = request(
  IOMMU_IOAS_ALLOW_IOVAS,
  IommuIoasAllowIovas,
  "allowed_iovas",
  ({ context, call, argument }) => {
    requireZero("__reserved", argument.__reserved);
    const { pagetable } = ioasOf(context, argument.ioas_id);
    const ranges = readRanges(call, argument.allowed_iovas, argument.num_iovas, context);
    pagetable.space.allow(ranges);
  },
);

export interface UserMapping {
  readonly va: bigint;
  readonly length: bigint;
  /** `Protection` bits. */
  readonly protection: number;
  /** Absent: where it fits. */
  readonly iova: bigint | undefined;
}

/** Maps bytes of the caller's memory; their IOVA. Throws EINVAL, EOVERFLOW, ENOMEM and what `IoPagetable.map` throws. */
export const mapUser = (
  context: IommufdContext,
  call: Call,
  ioas: Ioas,
  { va, length, protection, iova }: UserMapping,
): bigint => {
  if (length === 0n) throw new LinuxError("EINVAL", "length is 0; at least a byte is mapped");
  if (va + length > MAX_ADDRESS - PAGE) throw overflow(`user address ${hex(va)} + length`, length);
  context.allocate("pages");
  const start = va & (PAGE - 1n);
  const source = new UserSource(call.memory, va - start, Number(start + length));
  try {
    const pages = new Pages(source, (protection & Protection.write) !== 0, context.payer(call.task));
    return ioas.pagetable.map([{ pages, start, length }], protection, iova);
  } catch (error) {
    source.close();
    throw error;
  }
};

const map = request(IOMMU_IOAS_MAP, IommuIoasMap, "iova", ({ context, call, argument, respond }) => {
  const { flags, user_va: va, length, iova } = argument;
  requireFlags(flags, MAP_FLAGS);
  requireZero("__reserved", argument.__reserved);
  if (iova === MAX_ADDRESS) throw overflow("iova", iova);
  if (length === MAX_ADDRESS) throw overflow("length", length);
  const protection = protectionOf(flags);
  const ioas = ioasOf(context, argument.ioas_id);
  const fixed = flags & IOMMU_IOAS_MAP_FIXED_IOVA ? iova : undefined;
  respond({ iova: mapUser(context, call, ioas, { va, length, protection, iova: fixed }) });
});

const mapFile = request(
  IOMMU_IOAS_MAP_FILE,
  IommuIoasMapFile,
  "iova",
  ({ context, call, argument, respond }) => {
    const { flags, start, length, iova } = argument;
    requireFlags(flags, MAP_FLAGS);
    if (iova === MAX_ADDRESS) throw overflow("iova", iova);
    if (length === MAX_ADDRESS) throw overflow("length", length);
    const protection = protectionOf(flags);
    const ioas = ioasOf(context, argument.ioas_id);
    const fixed = (flags & IOMMU_IOAS_MAP_FIXED_IOVA) !== 0;
    if (length === 0n) throw new LinuxError("EINVAL", "length is 0; at least a byte is mapped");
    requireRange("start", start, length);
    if (start + length > MAX_ADDRESS)
      throw new LinuxError("EINVAL", `start ${hex(start)} + length ${hex(length)} is beyond any file`);
    const source = fileSource(call, argument.fd, start, start + length);
    try {
      context.allocate("pages");
      const writable = (protection & Protection.write) !== 0;
      const pages = new Pages(source, writable, context.payer(call.task));
      const piece = { pages, start: start & (PAGE - 1n), length };
      argument.iova = ioas.pagetable.map([piece], protection, fixed ? iova : undefined);
    } catch (error) {
      source.close?.();
      throw error;
    }
    respond({ iova: argument.iova });
  },
);

/** Bytes [start, end) of a dma-buf or of another file. Throws EBADF, and what a `DmaBufSource` throws. */
const fileSource = (call: Call, fd: number, start: bigint, end: bigint): PageSource => {
  const file = call.file(fd);
  if (file instanceof DmaBuf) return new DmaBufSource(file, start, end);
  return new FileSource(backingOf(call, fd), start & ~(PAGE - 1n));
};

/** Any open file may be named; one without pages fails when it is pinned. Throws EBADF. */
const backingOf = (call: Call, fd: number): FileBacking | undefined => {
  try {
    return call.backing(fd);
  } catch (error) {
    if (error instanceof LinuxError && error.code === "EINVAL") return undefined;
    throw error;
  }
};

const copy = request(IOMMU_IOAS_COPY, IommuIoasCopy, "src_iova", ({ context, argument, respond }) => {
  const { flags, length, dst_iova: to, src_iova: from } = argument;
  requireFlags(flags, MAP_FLAGS);
  if (length === MAX_ADDRESS) throw overflow("length", length);
  if (to === MAX_ADDRESS) throw overflow("dst_iova", to);
  const protection = protectionOf(flags);
  const source = ioasOf(context, argument.src_ioas_id);
  if (length === 0n) throw new LinuxError("EINVAL", "length is 0; at least a byte is copied");
  requireRange("src_iova", from, length);
  const pieces = source.pagetable.pieces(from, length);
  const target = ioasOf(context, argument.dst_ioas_id);
  const fixed = (flags & IOMMU_IOAS_MAP_FIXED_IOVA) !== 0;
  respond({ dst_iova: target.pagetable.map(pieces, protection, fixed ? to : undefined) });
});

const unmap = request(
  IOMMU_IOAS_UNMAP,
  IommuIoasUnmap,
  "length",
  ({ context, call, argument, respond }): number | Suspended => {
    const { iova, length } = argument;
    const ioas = ioasOf(context, argument.ioas_id);
    const everything = iova === 0n && length === MAX_ADDRESS;
    if (!everything) {
      if (iova === MAX_ADDRESS) throw overflow("iova", iova);
      if (length === MAX_ADDRESS) throw overflow("length", length);
      if (length === 0n) throw new LinuxError("EINVAL", "length is 0; at least one area is unmapped");
      requireRange("iova", iova, length);
    }
    const range = { start: iova, last: everything ? MAX_ADDRESS : iova + length - 1n };
    return unmapWaiting(context, call, ioas, range, (bytes, error) => {
      if (error) throw error;
      respond({ length: bytes });
      return 0;
    });
  },
);

const changeProcess = request(
  IOMMU_IOAS_CHANGE_PROCESS,
  IommuIoasChangeProcess,
  "__reserved",
  ({ context, call, argument }) => {
    requireZero("__reserved", argument.__reserved);
    context.allocate("a list of address spaces");
    const all = new Set<Pages>();
    for (const object of context.objects)
      if (object instanceof Ioas)
        for (const area of object.pagetable.areas) {
          if (!(area.pages.source instanceof FileSource))
            throw new LinuxError(
              "EINVAL",
              `${object.name} maps memory of a process at ${hex(area.iova)}; only file mappings can change theirs`,
            );
          all.add(area.pages);
        }
    const done: [Pages, Pages["payer"]][] = [];
    try {
      for (const pages of all) {
        const before = pages.payer;
        pages.transfer(before.successor(call.task));
        done.push([pages, before]);
      }
    } catch (error) {
      for (const [pages, before] of done) pages.transferBack(before);
      throw error;
    }
  },
);

export const ioasRequests = [
  destroy,
  ioasAlloc,
  iovaRanges,
  allowIovas,
  map,
  mapFile,
  copy,
  unmap,
  changeProcess,
];
