/**
 * The explainer: one line for every call that failed and every access that was refused, with the reason. Linux says
 * EINVAL; this says why.
 */
import type { EventFields } from "../base/events.ts";
import type { TraceEvent } from "./fan.ts";

/** The line for an event; undefined for one that needs no explanation. */
export const explain = ({ kind, fields }: TraceEvent): string | undefined => {
  if (kind === "call" && fields["error"] !== undefined) return failedCall(fields);
  if (kind === "fault") return refusedAccess(fields);
  if (kind === "interrupt" && fields["dropped"] !== undefined)
    return `interrupt ${hex(fields["address"])} data ${hex(fields["data"])} from ${requester(fields["from"])} → dropped: ${fields["dropped"]}`;
  if (kind === "device" && fields["reason"] !== undefined)
    return `${fields["device"] ?? `pid ${fields["pid"]}`}: ${fields["what"]} → ${fields["reason"]}`;
  return undefined;
};

const failedCall = ({ call, file, details, error, reason, object }: EventFields): string => {
  const what = [call === "ioctl" ? undefined : call, details, file ? `on ${file}` : undefined]
    .filter(Boolean)
    .join(" ");
  return `${what} → ${error}: ${reason}${object !== undefined && object !== file ? ` (${object})` : ""}`;
};

const ACCESS = ["read", "write", "execute", "privileged", "atomic"];

const refusedAccess = ({
  unit,
  rid,
  pasid,
  address,
  access,
  reason,
  level,
  entryAddress,
  entry,
}: EventFields): string => {
  const wanted = ACCESS.filter((_, bit) => (Number(access) >> bit) & 1).join("+") || "access";
  const who = Number(pasid) >= 0 ? `${requester(rid)} pasid ${pasid}` : requester(rid);
  const where =
    entryAddress === undefined
      ? ""
      : `; the walk ended${level === undefined ? "" : ` at level ${level}`}: entry at ${hex(entryAddress)} is ${hex(entry)}`;
  return `DMA ${wanted} by ${who} at ${hex(address)} → ${unit}: ${reason}${where}`;
};

/** A requester id as bus:device.function. */
const requester = (rid: EventFields[string]): string => {
  const id = Number(rid);
  if (!(id >= 0)) return "the CPU";
  const two = (value: number): string => value.toString(16).padStart(2, "0");
  return `${two(id >> 8)}:${two((id >> 3) & 0x1f)}.${id & 7}`;
};

const hex = (value: EventFields[string]): string =>
  typeof value === "number" || typeof value === "bigint" ? `0x${value.toString(16)}` : String(value);
