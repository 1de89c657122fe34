/**
 * The explainer: one line for every call that failed and every access that was refused, with the reason. Linux says
 * EINVAL; this says why.
 */
import pc from "picocolors";
import type { EventFields } from "../base/events.ts";
import type { TraceEvent } from "./fan.ts";

/** How the parts of a line are set off; plain where the output is no terminal. */
export type Colors = Pick<ReturnType<typeof pc.createColors>, "bold" | "dim" | "red" | "green" | "cyan">;
export const plain: Colors = pc.createColors(false);

/** The line for an event; undefined for one that needs no explanation. */
export const explain = ({ kind, fields }: TraceEvent, colors: Colors = plain): string | undefined => {
  if (kind === "call" && fields["error"] !== undefined) return failedCall(fields, colors);
  if (kind === "fault") return refusedAccess(fields, colors);
  if (kind === "interrupt" && fields["dropped"] !== undefined) return droppedInterrupt(fields, colors);
  if (kind === "device" && (fields["reason"] ?? fields["status"]) !== undefined)
    return deviceTrouble(fields, colors);
  return undefined;
};

const failedCall = ({ call, file, details, error, reason, object }: EventFields, colors: Colors): string => {
  const what = [call === "ioctl" ? undefined : call, details, file ? `on ${file}` : undefined]
    .filter(Boolean)
    .join(" ");
  const about = object !== undefined && object !== file ? ` (${object})` : "";
  return `${what} → ${colors.red(String(error))}: ${reason}${about}`;
};

const ACCESS = ["read", "write", "execute", "privileged", "atomic"];

const refusedAccess = (fields: EventFields, colors: Colors): string => {
  const { unit, rid, pasid, address, access, reason, level, entryAddress, entry } = fields;
  const wanted = ACCESS.filter((_, bit) => (Number(access) >> bit) & 1).join("+") || "access";
  const who = Number(pasid) >= 0 ? `${requester(rid)} pasid ${pasid}` : requester(rid);
  const where =
    entryAddress === undefined
      ? ""
      : `; the walk ended${level === undefined ? "" : ` at level ${level}`}: entry at ${hex(entryAddress)} is ${hex(entry)}${entry === 0n ? ", so nothing is mapped" : ""}`;
  return `DMA ${wanted} by ${who} at ${hex(address)} → ${colors.red(String(unit))}: ${reason}${where}`;
};

const droppedInterrupt = ({ address, data, from, dropped }: EventFields, colors: Colors): string =>
  `interrupt ${hex(address)} data ${hex(data)} from ${requester(from)} → ${colors.red("dropped")}: ${dropped}`;

const deviceTrouble = (fields: EventFields, colors: Colors): string => {
  const { device, pid, what, status, reason, queue, command, fault } = fields;
  const which = queue === undefined ? "" : ` (queue ${queue}, command ${command})`;
  const why = [status, reason, fault].filter((part) => part !== undefined).join(": ");
  return `${device ?? `pid ${pid}`}: ${what}${which} → ${colors.red(why)}`;
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
