/** A driver for tests of the accelerator, written from the specification: it knows registers and descriptors only. */
import type { PciFunction } from "../../function.ts";
import { type Rig, read32, write32 } from "../../rig.suite.ts";
import {
  Cmd,
  CmdSts,
  DESCRIPTOR_BYTES,
  DsaCommand,
  DsaDescriptor,
  DsaRegister,
  GroupConfig,
  PORTAL_BAR,
  QUEUE_CONFIG_BYTES,
  queuePortal,
  WqConfig,
} from "./spec.ts";

export interface Wanted {
  readonly operation: number;
  readonly flags?: number;
  readonly pasid?: number;
  readonly completion?: number;
  readonly source?: number | bigint;
  readonly destination?: number | bigint;
  readonly size?: number;
  readonly interrupt?: number;
  /** The operation's own 24 bytes, as three times 64 bits. */
  readonly own?: readonly (number | bigint)[];
}

export const descriptorOf = (wanted: Wanted): Uint8Array => {
  const { operation, flags = 0, pasid = 0, completion = 0, source = 0, destination = 0 } = wanted;
  const bytes = new Uint8Array(DESCRIPTOR_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, pasid, true);
  view.setUint32(4, flags, true);
  view.setUint8(7, operation);
  view.setBigUint64(DsaDescriptor.COMPLETION, BigInt(completion), true);
  view.setBigUint64(DsaDescriptor.SOURCE, BigInt(source), true);
  view.setBigUint64(DsaDescriptor.DESTINATION, BigInt(destination), true);
  view.setUint32(DsaDescriptor.SIZE, wanted.size ?? 0, true);
  view.setUint16(DsaDescriptor.INTERRUPT, wanted.interrupt ?? 0, true);
  (wanted.own ?? []).forEach((value, at) => {
    view.setBigUint64(DsaDescriptor.EXPECTED + 8 * at, BigInt(value), true);
  });
  return bytes;
};

type Settings = Parameters<(typeof WqConfig)["make"]>[0];
/** A dedicated queue of 16 without PASIDs. */
export const DEDICATED: Settings = {
  Size: 16,
  Dedicated: true,
  BlockOnFault: true,
  Priority: 10,
  MaxTransfer: 31,
  MaxBatch: 10,
};

export class DsaHost {
  readonly #device: PciFunction;
  readonly #rig: Rig;

  constructor(device: PciFunction, rig: Rig) {
    this.#device = device;
    this.#rig = rig;
  }

  get(register: number): number {
    return read32(this.#device, 0, register);
  }
  set(register: number, value: number): void {
    write32(this.#device, 0, register, value);
  }

  /** Begins a command. */
  order(command: number, operand = 0, interrupt = false): void {
    this.set(DsaRegister.CMD, Number(Cmd.make({ Command: command, Operand: operand, Interrupt: interrupt })));
  }
  /** Error, and result. */
  get ending(): readonly [active: number, error: number, result: number] {
    const words = [this.get(DsaRegister.CMDSTS)];
    const { Active, Error: Failed, Result } = CmdSts.fields;
    return [Active.get(words), Failed.get(words), Result.get(words)];
  }
  /** A command from begin to end: its error. */
  command(command: number, operand = 0): number {
    this.order(command, operand);
    this.#rig.settle();
    return this.ending[1];
  }

  group(index: number, queues: number, engines: number): void {
    const at = DsaRegister.GRPCFG + index * GroupConfig.BYTES;
    this.set(at + GroupConfig.QUEUES, queues);
    this.set(at + GroupConfig.ENGINES, engines);
  }

  configure(queue: number, settings: Settings): void {
    const words = new Uint32Array(WqConfig.words);
    WqConfig.toWords(WqConfig.make(settings), words);
    words.forEach((word, at) => {
      this.set(DsaRegister.WQCFG + queue * QUEUE_CONFIG_BYTES + 4 * at, word);
    });
  }

  queueState(queue: number): number {
    const at = DsaRegister.WQCFG + queue * QUEUE_CONFIG_BYTES;
    const words = Array.from({ length: WqConfig.words }, (_, word) => this.get(at + 4 * word));
    return WqConfig.fields.State.get(words);
  }

  /** Queues 0 and up with these settings, in one group with all engines, enabled. Answers the commands' errors. */
  bringUp(...queues: readonly Settings[]): number[] {
    queues.forEach((settings, queue) => {
      this.configure(queue, settings);
    });
    this.group(0, 2 ** queues.length - 1, 0xf);
    const errors = [this.command(DsaCommand.ENABLE_DEVICE)];
    queues.forEach((_, queue) => {
      errors.push(this.command(DsaCommand.ENABLE_WQ, queue));
    });
    return errors;
  }

  /** The same; throws when a command fails. */
  start(...queues: readonly Settings[]): void {
    const errors = this.bringUp(...queues);
    if (errors.some((error) => error !== 0)) throw new Error(`commands failed: ${errors.join(", ")}`);
  }

  submit(wanted: Wanted, queue = 0): void {
    this.#device.barWrite(PORTAL_BAR, queuePortal(queue), descriptorOf(wanted));
  }
  enqueue(wanted: Wanted, queue = 0, limited = true): boolean {
    return this.#device.barEnqueue!(PORTAL_BAR, queuePortal(queue, limited), descriptorOf(wanted));
  }
}
