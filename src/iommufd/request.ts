/**
 * What a request of /dev/iommu is: a number, a structure with its smallest size, and what it does; and the checks that
 * come before every one of them, in Linux's order (linux/iommufd.h, "General ioctl format"): number in range, `size`
 * read, whole number, size rules. An answer is cut to the caller's size.
 */
import { type Call, SUSPENDED, type Suspended } from "../kernel/call.ts";
import { copyStruct, cutToSize, readSize } from "../uapi/copy.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { Members, Struct, StructValue, StructWrite } from "../uapi/struct.ts";
import { hex } from "./address.ts";
import type { IommufdContext } from "./context.ts";

/** One call: its argument as it came, and how it is answered. */
export interface Request<F extends Members> {
  readonly context: IommufdContext;
  readonly call: Call;
  readonly argument: StructValue<F>;
  /** Where the caller's structure lies. */
  readonly at: bigint;
  /** Changes members in the caller's structure. Throws EFAULT. */
  respond(members: StructWrite<F>): void;
}

export interface RequestKind {
  /** The whole request number. */
  readonly number: number;
  readonly name: string;
  run(context: IommufdContext, call: Call, at: bigint, userSize: number): number | Suspended;
}

/** Requests by the low byte of their number. */
export interface RequestTable {
  readonly kinds: readonly (RequestKind | undefined)[];
}

type WriteMember = (data: DataView, value: unknown) => void;

/** Writers of a structure's members, by name; members of an anonymous union are members of the structure. */
const memberWriters = (of: Struct<Members>, members = of.members, known = new Map<string, WriteMember>()) => {
  for (const [name, codec] of Object.entries(members)) {
    const at = of.offsets[name];
    if (at === undefined) memberWriters(of, (codec as unknown as Struct<Members>).members, known);
    else known.set(name, (data, value) => codec.writeAt(data, at, value as never, true));
  }
  return known;
};

/**
 * Declares a request. `last` is the last member that its first version had: a shorter structure is EINVAL. What the
 * handler gives back is the value of the call, 0 when nothing.
 */
export const request = <F extends Members>(
  number: number,
  layout: Struct<F>,
  last: Parameters<Struct<F>["fieldEnd"]>[0],
  handle: (request: Request<F>) => number | Suspended | undefined,
): RequestKind => {
  const least = layout.fieldEnd(last);
  const writers = memberWriters(layout);
  // One call at a time is handled; only one that waits needs its structure longer.
  const shared = new Uint8Array(new ArrayBuffer(layout.size));
  const sharedData = new DataView(shared.buffer);
  return {
    number,
    name: layout.name,
    run(context, call, at, userSize) {
      const read = (offset: number, into: Uint8Array): void =>
        call.memory.read(offset === 0 ? at : at + BigInt(offset), into);
      let bytes = copyStruct(read, layout, userSize, least, shared);
      let data = sharedData;
      const respond = (members: StructWrite<F>) => {
        for (const name in members) writers.get(name)!(data, members[name]);
        call.memory.write(at, cutToSize(bytes, userSize));
      };
      const value = handle({ context, call, argument: layout.readAt(data, 0, true), at, respond }) ?? 0;
      if (value === SUSPENDED) {
        bytes = shared.slice();
        data = new DataView(bytes.buffer);
      }
      return value;
    },
  };
};

export const requestTable = (declared: readonly RequestKind[]): RequestTable => {
  const kinds: (RequestKind | undefined)[] = [];
  for (const kind of declared) kinds[kind.number & 0xff] = kind;
  return { kinds };
};

/** The first number of iommufd's own requests; below are those of VFIO. */
export const FIRST_COMMAND = 0x80;

/** A request of iommufd's own. Throws ENOTTY, EFAULT, EINVAL, E2BIG and what the request throws. */
export const dispatch = (
  { kinds }: RequestTable,
  context: IommufdContext,
  call: Call,
  number: number,
  at: bigint,
): number | Suspended => {
  const command = number & 0xff;
  if (command < FIRST_COMMAND || command >= kinds.length) throw unknown(number);
  const userSize = readSize((_, into) => call.memory.read(at, into));
  const kind = kinds[command];
  if (kind?.number !== number) throw unknown(number);
  return kind.run(context, call, at, userSize);
};

export const unknown = (number: number): LinuxError =>
  new LinuxError("ENOTTY", `/dev/iommu knows no request ${hex(number)}`);

/** Reserved members must be 0: EOPNOTSUPP. */
export const requireZero = (name: string, value: number | bigint | readonly number[]): void => {
  const bad = Array.isArray(value) ? value.some((one) => one !== 0) : Number(value) !== 0;
  if (bad) throw new LinuxError("EOPNOTSUPP", `${name} is reserved and must be 0`);
};

/** Flags outside `known` are EOPNOTSUPP. */
export const requireFlags = (flags: number, known: number): void => {
  const others = (flags & ~known) >>> 0;
  if (others !== 0)
    throw new LinuxError(
      "EOPNOTSUPP",
      `flags ${hex(others)} are not known here; of ${hex(known)} any may be set`,
    );
};
