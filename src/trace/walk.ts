/**
 * One translation told step by step, as JSON (64-bit values as hexadecimal strings) and as text: every entry fetched,
 * where it lies, each of its fields with what it means, and how it ended.
 */
import type { Machine } from "../machine/machine.ts";
import type { ExplainStep } from "../pagetable/step.ts";
import { type Colors, plain } from "./explain.ts";

export interface WalkQuestion {
  /** "0000:01:00.0" */
  readonly device: string;
  readonly iova: bigint;
  readonly write: boolean;
  /** Absent: the access has none. */
  readonly pasid?: number | undefined;
}

/** A step with hexadecimal strings for what has 64 bits; `outcome` stands on the last one. */
export interface WalkStep {
  readonly what: string;
  readonly level?: number;
  readonly address?: string;
  readonly value?: string;
  readonly fields?: readonly { readonly name: string; readonly value: string; readonly meaning?: string }[];
  readonly note?: string;
  /** It is about something that the unit remembers: whether that is what the tables say. */
  readonly cache?: "same" | "stale";
  readonly outcome?:
    | { readonly ok: true; readonly pa: string; readonly span: number }
    | { readonly ok: false; readonly code: number; readonly reason: string };
}

export interface Walk {
  readonly device: string;
  readonly unit: string;
  readonly iova: string;
  readonly access: "read" | "write";
  readonly pasid?: number;
  readonly steps: readonly WalkStep[];
}

const hex = (value: number | bigint): string => `0x${value.toString(16)}`;

/** Walks; throws an Error that names the devices there are when there is no such one. */
export const walk = (machine: Machine, { device, iova, write, pasid }: WalkQuestion): Walk => {
  const steps = machine.explain(device, iova, write, pasid);
  if (steps === undefined)
    throw new Error(
      `there is no device ${device}; there is ${machine.functions.map(({ name }) => name).join(", ")}`,
    );
  return {
    device,
    unit: machine.core.devices.get(device)!.driver.name,
    iova: hex(iova),
    access: write ? "write" : "read",
    ...(pasid !== undefined && { pasid }),
    steps: Array.from(steps, encode),
  };
};

const encode = ({ what, level, address, value, fields, note, cache, outcome }: ExplainStep): WalkStep => ({
  what,
  ...(level !== undefined && { level }),
  ...(address !== undefined && { address: hex(address) }),
  ...(value !== undefined && { value: hex(value) }),
  ...(fields && {
    fields: fields.map(({ name, value: bits, meaning }) => ({
      name,
      value: hex(bits),
      ...(meaning !== undefined && { meaning }),
    })),
  }),
  ...(note !== undefined && { note }),
  ...(cache && { cache }),
  ...(outcome && { outcome: outcome.ok ? { ...outcome, pa: hex(outcome.pa) } : outcome }),
});

/** Whether the access would reach memory. */
export const reached = ({ steps }: Walk): boolean => steps.at(-1)?.outcome?.ok === true;

const withPasid = ({ pasid }: Walk): string => (pasid === undefined ? "" : ` with PASID ${pasid}`);

/** The walk as lines of text. */
export const formatWalk = (told: Walk, colors: Colors = plain): string[] => {
  const { bold } = colors;
  return [
    bold(`${told.device}${withPasid(told)} ${told.access}s ${told.iova} through ${told.unit}`),
    "",
    ...told.steps.flatMap((step) => formatStep(step, colors)),
  ];
};

const formatStep = ({ what, level, address, value, fields, note, outcome }: WalkStep, colors: Colors) => {
  if (outcome) return formatOutcome(outcome, note, colors);
  const { cyan, dim } = colors;
  const which = level === undefined ? what : `${what}, level ${level}`;
  const where = [address && `at ${address}`, value && `is ${value}`].filter(Boolean).join(" ");
  const shown = (fields ?? []).filter((field) => !(field.meaning === "ignored" && field.value === "0x0"));
  const width = Math.max(0, ...shown.map(({ name }) => name.length));
  const size = Math.max(0, ...shown.map(({ value: bits }) => bits.length));
  return [
    `${cyan(which)}${where ? ` ${where}` : ""}`,
    ...shown.map((field) =>
      `    ${field.name.padEnd(width)}  ${field.value.padEnd(size)}  ${dim(field.meaning ?? "")}`.trimEnd(),
    ),
    ...(note === undefined ? [] : [`  → ${note}`]),
    "",
  ];
};

const formatOutcome = (
  outcome: NonNullable<WalkStep["outcome"]>,
  note: string | undefined,
  { green, red }: Colors,
): string[] => [
  outcome.ok
    ? `${green("reaches")} host physical ${outcome.pa}, and ${hex(outcome.span)} bytes from there on`
    : `${red("refused:")} ${outcome.reason}`,
  ...(note === undefined ? [] : [`  ${note}`]),
];
