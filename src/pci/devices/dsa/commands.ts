/**
 * Commands (CMD, CMDSTS): one at a time, active until what they wait for has ended. Drains and disabling wait for
 * descriptors, aborts and resets forget them. A command written while one is active is nothing.
 */
import type { Scheduler } from "../../../base/scheduler.ts";
import type { Descriptor } from "./descriptor.ts";
import type { Engine } from "./engine.ts";
import type { DsaQueue } from "./queue.ts";
import type { DsaRegisters, RequestRights } from "./registers.ts";
import {
  Cmd,
  CmdSts,
  CommandError,
  DeviceState,
  DsaCommand,
  DsaRegister,
  HandleOperand,
  QueueMask,
  VECTORS,
  WqState,
} from "./spec.ts";

export interface CommandContext {
  readonly registers: DsaRegisters;
  readonly queues: readonly DsaQueue[];
  readonly engines: readonly Engine[];
  readonly scheduler: Scheduler;
  rights(): RequestRights & { readonly mastering: boolean };
  /** The queues may have changed. */
  show(): void;
  /** The device is about to be enabled. */
  enabled(): void;
  /** A command has ended; `interrupt`: it was to interrupt. */
  ended(interrupt: boolean): void;
}

/** A command that was begun: over when `isOver`, and then `finish` answers how and with what. */
interface Begun {
  isOver(): boolean;
  finish(): Ending;
}
interface Ending {
  readonly error: CommandError;
  readonly result?: number;
}

const at = (error: CommandError): Begun => ({ isOver: () => true, finish: () => ({ error }) });

export class Commands {
  readonly #context: CommandContext;
  #active: (Begun & { readonly interrupt: boolean }) | undefined;
  /** Counts commands: what was deferred for an earlier one is void. */
  #run = 0;

  constructor(context: CommandContext) {
    this.#context = context;
  }

  begin(value: number): void {
    if (this.#active) return;
    const words = [value];
    const { Command, Operand, Interrupt } = Cmd.fields;
    const interrupt = Interrupt.get(words) === 1;
    this.#context.registers.set(DsaRegister.CMDSTS, Number(CmdSts.make({ Active: true })));
    this.#active = { ...this.#start(Command.get(words), Operand.get(words)), interrupt };
    this.#context.show();
    this.#run += 1;
    const run = this.#run;
    this.#context.scheduler.defer(() => {
      if (run === this.#run) this.look();
    });
  }

  /** What an active command waits for may have come. */
  look(): void {
    const active = this.#active;
    if (!active?.isOver()) return;
    this.#active = undefined;
    const { registers, ended, show } = this.#context;
    const { error, result = 0 } = active.finish();
    show();
    registers.set(DsaRegister.CMDSTS, Number(CmdSts.make({ Error: error, Result: result })));
    ended(active.interrupt);
  }

  reset(): void {
    this.#active = undefined;
    this.#run += 1;
  }

  #start(command: number, operand: number): Begun {
    const { registers, queues } = this.#context;
    const enabled = registers.state === DeviceState.ENABLED;
    switch (command) {
      case DsaCommand.ENABLE_DEVICE:
        return at(this.#enableDevice());
      case DsaCommand.DISABLE_DEVICE:
        return enabled ? this.#disable(queues, true) : at(CommandError.DISABLE_NOT_ENABLED);
      case DsaCommand.DRAIN_ALL:
        return enabled ? drained(queues, () => true) : at(CommandError.WQ_NOT_ENABLED);
      case DsaCommand.ABORT_ALL:
        return enabled ? this.#abort(() => true) : at(CommandError.WQ_NOT_ENABLED);
      case DsaCommand.RESET_DEVICE:
        return this.#resetDevice();
      case DsaCommand.ENABLE_WQ:
        return at(this.#enableQueue(operand));
      case DsaCommand.DISABLE_WQ:
      case DsaCommand.DRAIN_WQ:
      case DsaCommand.ABORT_WQ:
      case DsaCommand.RESET_WQ:
        return this.#forQueues(command, operand);
      case DsaCommand.DRAIN_PASID:
        return enabled ? drained(queues, ofPasid(operand)) : at(CommandError.WQ_NOT_ENABLED);
      case DsaCommand.ABORT_PASID:
        return enabled ? this.#abort(ofPasid(operand)) : at(CommandError.WQ_NOT_ENABLED);
      case DsaCommand.REQUEST_INTERRUPT_HANDLE:
      case DsaCommand.RELEASE_INTERRUPT_HANDLE:
        return handleOf(command, operand);
      default:
        return at(CommandError.INVALID_COMMAND);
    }
  }

  #enableDevice(): CommandError {
    const { registers, rights, enabled } = this.#context;
    if (registers.state !== DeviceState.DISABLED) return CommandError.DEVICE_ENABLED;
    if (!rights().mastering) return CommandError.NOT_BUS_MASTER;
    const error = registers.checkGroups();
    if (error !== CommandError.NONE) return error;
    enabled();
    registers.state = DeviceState.ENABLED;
    return error;
  }

  #enableQueue(index: number): CommandError {
    const { registers, queues, rights } = this.#context;
    const queue = queues[index];
    if (registers.state !== DeviceState.ENABLED) return CommandError.DEVICE_NOT_ENABLED;
    if (!queue) return CommandError.INVALID_WQ;
    if (queue.state !== WqState.DISABLED) return CommandError.WQ_ENABLED;
    const error = registers.checkQueue(index, rights());
    if (error === CommandError.NONE) queue.enable(registers.settings(index));
    return error;
  }

  #forQueues(command: number, operand: number): Begun {
    const { queues, registers } = this.#context;
    const { Mask, First } = QueueMask.fields;
    const first = 16 * First.get([operand]);
    const mask = Mask.get([operand]);
    const chosen = queues.filter(({ index }) => index >= first && mask & (1 << (index - first)));
    if (first >= queues.length || mask >>> (queues.length - first) !== 0) return at(CommandError.INVALID_WQ);
    if (command === DsaCommand.RESET_WQ) {
      this.#forget((descriptor) => chosen.some(({ index }) => index === descriptor.rules.queue));
      for (const queue of chosen) {
        queue.disable();
        registers.resetQueue(queue.index);
      }
      return at(CommandError.NONE);
    }
    if (chosen.some(({ state }) => state === WqState.DISABLED)) return at(CommandError.WQ_NOT_ENABLED);
    if (command === DsaCommand.DISABLE_WQ) return this.#disable(chosen, false);
    if (command === DsaCommand.DRAIN_WQ) return drained(chosen, () => true);
    return this.#abort((descriptor) => chosen.some(({ index }) => index === descriptor.rules.queue));
  }

  /** Queues, and perhaps the device with them, end when what they took has ended. */
  #disable(queues: readonly DsaQueue[], device: boolean): Begun {
    const { registers } = this.#context;
    const chosen = queues.filter(({ state }) => state !== WqState.DISABLED);
    for (const queue of chosen) queue.close();
    return {
      isOver: () => chosen.every(({ idle }) => idle),
      finish: () => {
        for (const queue of chosen) queue.disable();
        if (device) registers.state = DeviceState.DISABLED;
        return { error: CommandError.NONE };
      },
    };
  }

  #resetDevice(): Begun {
    const { registers, queues } = this.#context;
    this.#forget(() => true);
    for (const queue of queues) queue.disable();
    registers.state = DeviceState.DISABLED;
    registers.resetSettings();
    return at(CommandError.NONE);
  }

  #abort(which: (descriptor: Descriptor) => boolean): Begun {
    this.#forget(which);
    return at(CommandError.NONE);
  }

  #forget(which: (descriptor: Descriptor) => boolean): void {
    for (const queue of this.#context.queues) queue.abort(which);
    for (const engine of this.#context.engines) engine.abort(which);
  }
}

const ofPasid =
  (pasid: number) =>
  (descriptor: Descriptor): boolean =>
    descriptor.pasid === pasid;

/** Over when such of the descriptors as are there now have ended. */
const drained = (queues: readonly DsaQueue[], which: (descriptor: Descriptor) => boolean): Begun => {
  const awaited = queues.map((queue) => ({ queue, now: [...queue.outstanding].filter(which) }));
  return {
    isOver: () => awaited.every(({ queue, now }) => !now.some((one) => queue.outstanding.has(one))),
    finish: () => ({ error: CommandError.NONE }),
  };
};

const handleOf = (command: number, operand: number): Begun => {
  const { Index, MessageStorage } = HandleOperand.fields;
  const index = Index.get([operand]);
  if (MessageStorage.get([operand]) === 1 || index >= VECTORS) return at(CommandError.INTERRUPT_INDEX);
  const result = command === DsaCommand.REQUEST_INTERRUPT_HANDLE ? index : 0;
  return { isOver: () => true, finish: () => ({ error: CommandError.NONE, result }) };
};
