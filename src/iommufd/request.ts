/**
 * What a request of /dev/iommu is: a number, a structure with its smallest size, and what it does; and the checks that
 * come before every one of them, in Linux's order (linux/iommufd.h, "General ioctl format"): number in range, `size`
 * read, whole number, size rules. An answer is cut to the caller's size.
 */
import type { Call, Suspended } from "../kernel/call.ts";
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
export type RequestTable = ReadonlyMap<number, RequestKind>;

/**
 * Declares a request. `last` is the last member that its first version had: a shorter structure is EINVAL. What the
 * handler gives back is the value of the call, 0 when nothing.
 */
export const request = <F extends Members>(
  number: number,
  layout: Struct<F>,
  last: Parameters<Struct<F>["fieldEnd"]>[0],
  handle: (request: Request<F>) => number | Suspended | undefined,
): RequestKind => ({
  number,
  name: layout.name,
  run(context, call, at, userSize) {
    const bytes = copyStruct(
      (offset, into) => call.memory.read(at + BigInt(offset), into),
      layout,
      userSize,
      layout.fieldEnd(last),
    );
    const data = new DataView(bytes.buffer);
    const argument = layout.readAt(data, 0, true);
    const respond = (members: StructWrite<F>) => {
      for (const [name, value] of Object.entries(members)) writeMember(layout, data, name, value);
      call.memory.write(at, cutToSize(bytes, userSize));
    };
    return handle({ context, call, argument, at, respond }) ?? 0;
  },
});

/** Members of an anonymous union are members of the structure. */
const codecOf = (of: Struct<Members>, name: string): Members[string] =>
  of.members[name] ?? codecOf(of.members[""] as unknown as Struct<Members>, name);

const writeMember = (of: Struct<Members>, data: DataView, name: string, value: unknown): void =>
  codecOf(of, name).writeAt(data, of.offsets[name]!, value as never, true);

export const requestTable = (kinds: readonly RequestKind[]): Map<number, RequestKind> =>
  new Map(kinds.map((kind) => [kind.number & 0xff, kind]));

/** The first number of iommufd's own requests; below are those of VFIO. */
export const FIRST_COMMAND = 0x80;

/** A request of iommufd's own. Throws ENOTTY, EFAULT, EINVAL, E2BIG and what the request throws. */
export const dispatch = (
  table: RequestTable,
  context: IommufdContext,
  call: Call,
  number: number,
  at: bigint,
): number | Suspended => {
  const command = number & 0xff;
  let highest = 0;
  for (const known of table.keys()) highest = Math.max(highest, known);
  if (command < FIRST_COMMAND || command > highest) throw unknown(number);
  const userSize = readSize((offset, into) => call.memory.read(at + BigInt(offset), into));
  const kind = table.get(command);
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
