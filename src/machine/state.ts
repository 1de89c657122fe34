/**
 * The state of a machine's IOMMUs as text: its description, the registers that say where tables are, and every frame
 * of RAM that is not zero. Enough to walk its tables later and elsewhere. Left out: caches of the units, what clients'
 * pages and devices hold, and the objects of the kernel side; a restored machine explains, it does not go on.
 */
import { deflateRawSync, inflateRawSync } from "node:zlib";
import * as v from "valibot";
import { ManualClock } from "../base/clock.ts";
import { silent } from "../base/events.ts";
import { lseek } from "../base/libc.ts";
import { WorkQueue } from "../base/scheduler.ts";
import type { Banks } from "../memory/banks.ts";
import { FRAME_BYTES } from "../memory/host-memory.ts";
import { Machine } from "./machine.ts";
import { type DeviceDescription, machineSchema } from "./schema.ts";

/** Text that is no state; `message` says where it is wrong. */
export class StateFileError extends Error {
  override readonly name = "StateFileError";
}

const hexadecimal = v.pipe(v.string(), v.regex(/^0x[0-9a-f]+$/, "a hexadecimal number such as 0x1000"));
const stateSchema = v.strictObject({
  softiommu: v.literal("state"),
  version: v.literal(1),
  machine: machineSchema,
  /** By unit, by name of the register. */
  registers: v.record(v.string(), v.record(v.string(), hexadecimal)),
  /** By physical address: the frame, deflated, in base64. */
  frames: v.record(hexadecimal, v.string()),
  /** With secure nested paging, by physical address: the entry of a page that is a guest's. */
  rmp: v.optional(v.record(hexadecimal, hexadecimal)),
});
export type MachineState = v.InferOutput<typeof stateSchema>;

const SEEK_DATA = 3;
const SEEK_HOLE = 4;

/** The addresses of RAM frames that were ever written. */
function* touchedFrames(memory: Banks): Generator<number> {
  const { fd } = memory.backing(0)!;
  for (let at = lseek(fd, 0, SEEK_DATA); at >= 0; at = lseek(fd, at, SEEK_DATA)) {
    const end = lseek(fd, at, SEEK_HOLE);
    for (; at < end; at += FRAME_BYTES) {
      const pa = memory.addressOf(at);
      if (pa >= 0) yield pa;
    }
  }
}

export const saveState = (machine: Machine): MachineState => {
  const registers: MachineState["registers"] = {};
  for (const [name, { saveRegisters }] of machine.units)
    registers[name] = Object.fromEntries(
      Object.entries(saveRegisters()).map(([register, value]) => [register, `0x${value.toString(16)}`]),
    );
  const frames: MachineState["frames"] = {};
  const frame = new Uint8Array(FRAME_BYTES);
  for (const pa of touchedFrames(machine.memory)) {
    if (!machine.memory.readBytes(pa, frame) || frame.every((byte) => byte === 0)) continue;
    frames[`0x${pa.toString(16)}`] = deflateRawSync(frame).toString("base64");
  }
  const state = { softiommu: "state", version: 1, machine: machine.description, registers, frames } as const;
  if (!machine.snp) return state;
  const hex = (value: number | bigint): string => `0x${value.toString(16)}`;
  const entries = Array.from(machine.snp.rmp.entries(), ({ pa, entry }) => [hex(pa), hex(entry)] as const);
  return { ...state, rmp: Object.fromEntries(entries) };
};

/** A machine with these tables and registers, to explain translations with. Throws StateFileError. */
export const restoreState = (text: string): Machine => {
  const state = parseState(text);
  const description = { ...state.machine, devices: state.machine.devices.map(withoutFile) };
  const machine = new Machine(description, {
    events: silent,
    clock: new ManualClock(),
    scheduler: new WorkQueue(),
  });
  try {
    for (const pa of [...touchedFrames(machine.memory)]) machine.memory.fill(pa, FRAME_BYTES, 0);
    for (const [pa, deflated] of Object.entries(state.frames)) restoreFrame(machine.memory, pa, deflated);
    for (const [name, { restoreRegisters }] of machine.units)
      restoreRegisters(
        Object.fromEntries(
          Object.entries(state.registers[name] ?? {}).map(([register, value]) => [register, BigInt(value)]),
        ),
      );
    for (const [pa, entry] of Object.entries(state.rmp ?? {})) restoreEntry(machine.snp, pa, entry);
    return machine;
  } catch (error) {
    machine.close();
    throw error;
  }
};

const parseState = (text: string): MachineState => {
  let given: unknown;
  try {
    given = JSON.parse(text);
  } catch (error) {
    throw new StateFileError(`no saved state: ${error instanceof Error ? error.message : String(error)}`);
  }
  const result = v.safeParse(stateSchema, given);
  if (result.success) return result.output;
  throw new StateFileError(
    result.issues.map((issue) => `no saved state: ${v.getDotPath(issue) ?? ""}: ${issue.message}`).join("\n"),
  );
};

/** A disk's files are neither needed nor to be touched. */
const withoutFile = (device: DeviceDescription): DeviceDescription => {
  if (device.model !== "nvme") return device;
  const { file: _, ...rest } = device;
  return {
    ...rest,
    "more-namespaces": device["more-namespaces"].map(({ file: _file, ...others }) => others),
  };
};

const restoreEntry = (snp: Machine["snp"], address: string, entry: string): void => {
  try {
    if (!snp) throw new RangeError("the machine has no reverse map table");
    snp.rmp.restore(Number(address), BigInt(entry));
  } catch (error) {
    throw new StateFileError(
      `RMP entry ${address}: ${error instanceof Error ? error.message : String(error)}`,
    );
  }
};

const restoreFrame = (memory: Banks, address: string, deflated: string): void => {
  const pa = Number(address);
  let frame: Uint8Array;
  try {
    frame = inflateRawSync(Buffer.from(deflated, "base64"), { maxOutputLength: FRAME_BYTES });
  } catch (error) {
    throw new StateFileError(`frame ${address}: ${error instanceof Error ? error.message : String(error)}`);
  }
  if (frame.length !== FRAME_BYTES || pa % FRAME_BYTES !== 0 || memory.backing(pa) === undefined)
    throw new StateFileError(`frame ${address}: not a frame of this machine's RAM`);
  memory.writeBytes(pa, frame);
};
