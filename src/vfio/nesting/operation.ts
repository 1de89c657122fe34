/** What the operations of a nesting container share: how their data is read, and what the unit must have. */
import type { Call } from "../../kernel/call.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { Members, Struct, StructValue } from "../../uapi/struct.ts";
import { readArgument } from "../argument.ts";
import type { Nesting } from "./nesting.ts";

/** An operation that was asked for. */
export interface Operation {
  readonly nesting: Nesting;
  readonly call: Call;
  /** Its data in the caller's memory, of which the caller says it has `length` bytes. */
  readonly at: bigint;
  readonly length: number;
}

export type NestingOp = (operation: Operation) => void;

/**
 * The data of an operation. EFAULT when it cannot be read; EINVAL when argsz of the request or of the data leave no room for
 * it.
 */
export const readData = <F extends Members>(
  { nesting, call, at, length }: Operation,
  layout: Struct<F>,
): StructValue<F> => {
  if (length < layout.size)
    throw new LinuxError(
      "EINVAL",
      `argsz leaves ${Math.max(0, length)} bytes for struct ${layout.name}, which has ${layout.size}`,
      nesting.name,
    );
  return readArgument(call, at, layout, layout.size);
};

/** EINVAL for another version than 1, and for padding that is not 0. */
export const requireForm = (
  { nesting }: Operation,
  { version, padding = [] }: { readonly version: number; readonly padding?: readonly number[] },
): void => {
  if (version !== 1)
    throw new LinuxError("EINVAL", `version ${version} of the data; 1 is known`, nesting.name);
  if (padding.some((byte) => byte !== 0))
    throw new LinuxError("EINVAL", "the padding of the data must be 0", nesting.name);
};

/** EOPNOTSUPP unless the container has the feature (IOMMU_NESTING_FEAT_*). */
export const requireFeature = (nesting: Nesting, feature: number, what: string): void => {
  if (nesting.features & feature) return;
  throw new LinuxError("EOPNOTSUPP", `the unit has no ${what}; the nesting capability says so`, nesting.name);
};
