/** What `--json` tells besides the claims: every call of a VMM, every byte a device moved, every fault, as plain JSON. */
import type { EventFields } from "../../base/events.ts";
import type { Stage } from "./stage.ts";

const hexOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

export const recordOf = ({ calls, transfers, faults }: Stage) => ({
  calls: calls.map(({ kind, name, request, given, data, answered, error }) => ({
    kind,
    name,
    request: `0x${request.toString(16)}`,
    given: hexOf(given),
    ...(data && { data: hexOf(data) }),
    answered: hexOf(answered),
    ...(error !== undefined && { error }),
  })),
  transfers: transfers.map(({ direction, address, pasid, result, bytes }) => ({
    direction,
    address: `0x${address.toString(16)}`,
    ...(pasid !== undefined && { pasid }),
    result,
    bytes: hexOf(bytes),
  })),
  faults: faults.map(({ fields }) => plainFields(fields)),
});

/** 64-bit values as hexadecimal strings. */
const plainFields = (fields: EventFields) =>
  Object.fromEntries(
    Object.entries(fields).map(([name, value]) => [
      name,
      typeof value === "bigint" ? `0x${value.toString(16)}` : value,
    ]),
  );
