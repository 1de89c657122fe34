/**
 * The command queue of an SMMUv3 (IHI 0070, §4): commands are fetched from memory, checked and carried out one after the
 * other when PROD is written, so that SYNC always finds everything done. The first that is illegal, or cannot be read,
 * stops the queue with CMDQ_ERR and CONS at it, until software acknowledges.
 */
import type { EventSink } from "../../base/events.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import type { Layout } from "../../uapi/layout.ts";
import type { DeviceTlbAnswer, DeviceTlbInvalidation } from "../ats.ts";
import { PageResponse } from "../ats.ts";
import type { Downstream } from "../downstream.ts";
import { NO_PASID } from "../unit.ts";
import type { Capabilities } from "./capabilities.ts";
import type { Errors } from "./errors.ts";
import {
  AtcCommand,
  Completion,
  Opcode,
  PriCommand,
  ResumeCommand,
  StreamCommand,
  SyncCommand,
  TlbiCommand,
} from "./queue-spec.ts";
import { type QueuePlace, queueAddress, queueLg2 } from "./queues.ts";
import type { RegisterFile } from "./registers.ts";
import type { AddressRange } from "./spaces.ts";
import { CMDQ_ERR_SHIFT, CommandError, Cr0, Gerror, QUEUE_INDEX, Register } from "./spec.ts";

/** What commands ask for. */
export interface Commands {
  /** The 2^lg2 streams around `sid`; 32: all. */
  invalidateStreams(sid: number, lg2: number): void;
  invalidateContext(sid: number, ssid: number): void;
  invalidateContexts(sid: number): void;
  invalidateTlb(opcode: number, vmid: number, asid: number, range: AddressRange): void;
  invalidateDeviceTlb(what: DeviceTlbInvalidation): DeviceTlbAnswer;
  respond(rid: number, pasid: number, group: number, response: number): void;
  resume(sid: number, tag: number, retry: boolean): void;
  terminate(sid: number): void;
}

export interface CommandQueueContext {
  readonly name: string;
  readonly memory: HostMemory;
  readonly registers: RegisterFile;
  readonly unit: Capabilities;
  readonly errors: Errors;
  readonly commands: Commands;
  readonly events: EventSink;
  /** Told of indices of the queue, with the wrap bit; what it refuses stops the queue with CERROR_ILL. */
  readonly downstream?: Downstream | undefined;
}

/** Commands one write may set going: a queue that is fed by its own completions ends here. */
const BUDGET = 0x10_0000;
const ENTRY_LG2 = 4;
/** PRI_RESP.Resp: failure, invalid, success; the last is reserved. */
const responses = [PageResponse.failure, PageResponse.invalid, PageResponse.success] as const;

interface Kind {
  readonly layout: Layout;
  /** Whether the unit has the command. */
  readonly has: (unit: Capabilities) => boolean;
}
const always = () => true;
const kinds = new Map<number, Kind>();
const declare = (layout: Layout, has: Kind["has"], ...opcodes: readonly number[]): void => {
  for (const opcode of opcodes) kinds.set(opcode, { layout, has });
};
declare(
  StreamCommand,
  always,
  Opcode.PREFETCH_CONFIG,
  Opcode.PREFETCH_ADDR,
  Opcode.CFGI_STE,
  Opcode.CFGI_STE_RANGE,
  Opcode.CFGI_CD,
  Opcode.CFGI_CD_ALL,
);
declare(
  TlbiCommand,
  ({ stage1 }) => stage1,
  Opcode.TLBI_NH_ALL,
  Opcode.TLBI_NH_ASID,
  Opcode.TLBI_NH_VA,
  Opcode.TLBI_NH_VAA,
);
declare(
  TlbiCommand,
  ({ hyp }) => hyp,
  Opcode.TLBI_EL2_ALL,
  Opcode.TLBI_EL2_ASID,
  Opcode.TLBI_EL2_VA,
  Opcode.TLBI_EL2_VAA,
);
declare(TlbiCommand, ({ stage2 }) => stage2, Opcode.TLBI_S12_VMALL, Opcode.TLBI_S2_IPA);
declare(TlbiCommand, always, Opcode.TLBI_NSNH_ALL);
declare(AtcCommand, ({ ats }) => ats, Opcode.ATC_INV);
declare(PriCommand, ({ pri }) => pri, Opcode.PRI_RESP);
declare(ResumeCommand, ({ stalls }) => stalls !== "terminate", Opcode.RESUME, Opcode.STALL_TERM);
declare(SyncCommand, always, Opcode.SYNC);

export class CommandQueue {
  readonly #context: CommandQueueContext;
  readonly #place: QueuePlace;
  readonly #words = new Uint32Array(4);
  #running = false;
  /** A device-TLB did not answer; the next SYNC finds out. */
  #timedOut = false;

  constructor(context: CommandQueueContext) {
    this.#context = context;
    this.#place = {
      base: Register.CMDQ_BASE,
      prod: Register.CMDQ_PROD,
      cons: Register.CMDQ_CONS,
      maximumLg2: context.unit.commandQueueLg2,
      entryLg2: ENTRY_LG2,
    };
  }

  reset(): void {
    this.#timedOut = false;
  }

  /** Carries out what lies between CONS and PROD, as far as it goes. */
  run(): void {
    if (this.#running) return;
    this.#running = true;
    for (let budget = BUDGET; budget > 0 && this.#ready(); budget--) {
      const error = this.#fetch() ? this.#execute() : CommandError.abort;
      if (error !== CommandError.none) {
        this.#stop(error);
        break;
      }
    }
    this.#refused(this.#context.downstream?.drain());
    this.#running = false;
  }

  /** Stops at the command that whoever stands behind the unit could not carry out. */
  #refused(at = -1): void {
    if (at < 0) return;
    this.#context.registers.set(Register.CMDQ_CONS, at);
    this.#stop(CommandError.illegal);
  }

  #mask(): number {
    return (2 << queueLg2(this.#context.registers, this.#place)) - 1;
  }

  #ready(): boolean {
    const { registers, errors } = this.#context;
    const left = registers.get(Register.CMDQ_PROD) ^ registers.get(Register.CMDQ_CONS);
    const enabled = (registers.get(Register.CR0) & Cr0.CMDQEN) !== 0;
    return enabled && !errors.active(Gerror.CMDQ_ERR) && (left & this.#mask()) !== 0;
  }

  #fetch(): boolean {
    const { memory, registers } = this.#context;
    const index = registers.get(Register.CMDQ_CONS) & (this.#mask() >>> 1);
    const at = queueAddress(registers, this.#place) + index * 2 ** ENTRY_LG2;
    const words = this.#words;
    for (let i = 0; i < 4; i += 2) {
      if (!memory.load64(at + 4 * i)) return false;
      words[i] = memory.lo;
      words[i + 1] = memory.hi;
    }
    return true;
  }

  #stop(error: number): void {
    const { registers, errors } = this.#context;
    const at = registers.get(Register.CMDQ_CONS) & QUEUE_INDEX;
    registers.set(Register.CMDQ_CONS, at | (error << CMDQ_ERR_SHIFT));
    errors.raise(Gerror.CMDQ_ERR);
  }

  /** CONS moves on; the code of an error before stays to be read. */
  #advance(): void {
    const { registers } = this.#context;
    const at = registers.get(Register.CMDQ_CONS);
    registers.set(Register.CMDQ_CONS, (at & ~QUEUE_INDEX) | ((at + 1) & this.#mask()));
  }

  #execute(): number {
    const { unit, events, name } = this.#context;
    const words = this.#words;
    const opcode = SyncCommand.fields.OPCODE.get(words);
    const kind = kinds.get(opcode);
    if (!kind?.has(unit) || SyncCommand.fields.SSEC.get(words)) return CommandError.illegal;
    if (events.on) {
      const command = `${opcodeNames.get(opcode)} ${kind.layout.print(kind.layout.fromWords(words))}`;
      events.emit("command", { unit: name, command });
    }
    const { downstream, registers } = this.#context;
    const refused = downstream?.take(words, registers.get(Register.CMDQ_CONS) & QUEUE_INDEX) ?? -1;
    if (refused >= 0) {
      registers.set(Register.CMDQ_CONS, refused);
      return CommandError.illegal;
    }
    const error = this.#perform(opcode);
    if (error === CommandError.none && opcode !== Opcode.SYNC) this.#advance();
    return error;
  }

  #perform(opcode: number): number {
    const { commands } = this.#context;
    const words = this.#words;
    const { SID, SSID, RANGE } = StreamCommand.fields;
    switch (opcode) {
      case Opcode.PREFETCH_CONFIG:
      case Opcode.PREFETCH_ADDR:
        return CommandError.none; // hints
      case Opcode.CFGI_STE:
        commands.invalidateStreams(SID.get(words), 0);
        return CommandError.none;
      case Opcode.CFGI_STE_RANGE:
        commands.invalidateStreams(SID.get(words), RANGE.get(words) + 1);
        return CommandError.none;
      case Opcode.CFGI_CD:
        commands.invalidateContext(SID.get(words), SSID.get(words));
        return CommandError.none;
      case Opcode.CFGI_CD_ALL:
        commands.invalidateContexts(SID.get(words));
        return CommandError.none;
      case Opcode.ATC_INV:
        return this.#invalidateDeviceTlb();
      case Opcode.PRI_RESP:
        return this.#respond();
      case Opcode.RESUME: {
        const { STAG, AC } = ResumeCommand.fields;
        commands.resume(SID.get(words), STAG.get(words), AC.get(words) === 1);
        return CommandError.none;
      }
      case Opcode.STALL_TERM:
        commands.terminate(SID.get(words));
        return CommandError.none;
      case Opcode.SYNC:
        return this.#sync();
      default:
        return this.#invalidateTlb(opcode);
    }
  }

  /** §4.4 Invalidations; with a range they name more than one page. */
  #invalidateTlb(opcode: number): number {
    const { commands, unit } = this.#context;
    const words = this.#words;
    const { VMID, ASID } = TlbiCommand.fields;
    commands.invalidateTlb(
      opcode,
      unit.stage2 ? VMID.get(words) & unit.vmidMask : 0,
      ASID.get(words) & unit.asidMask,
      namedPages(words, unit),
    );
    return CommandError.none;
  }

  /** §6.3.9 While the unit is disabled there is no way to the functions: commands to them are passed over. */
  get #reachesFunctions(): boolean {
    return (this.#context.registers.get(Register.CR0) & Cr0.SMMUEN) !== 0;
  }

  /** §4.5.1 */
  #invalidateDeviceTlb(): number {
    if (!this.#reachesFunctions) return CommandError.none;
    const words = this.#words;
    const { SID, SSV, SSID, G, SIZE } = AtcCommand.fields;
    const lg2 = Math.min(12 + SIZE.get(words), 64);
    const [low, high] = lg2 >= 64 ? [0, 0] : lg2 >= 32 ? [0, -1 << (lg2 - 32)] : [-1 << lg2, -1];
    const answer = this.#context.commands.invalidateDeviceTlb({
      rid: SID.get(words),
      pasid: SSV.get(words) ? SSID.get(words) : NO_PASID,
      global: SSV.get(words) === 1 && G.get(words) === 1,
      lo: (words[2]! & low) >>> 0,
      hi: (words[3]! & high) >>> 0,
      lg2,
    });
    if (answer === "timeout") this.#timedOut = true;
    return CommandError.none;
  }

  /** §4.5.2 */
  #respond(): number {
    const words = this.#words;
    const { SID, SSV, SSID, PRGINDEX, RESP } = PriCommand.fields;
    const response = responses[RESP.get(words)];
    if (response === undefined) return CommandError.illegal;
    if (!this.#reachesFunctions) return CommandError.none;
    const pasid = SSV.get(words) ? SSID.get(words) : NO_PASID;
    this.#context.commands.respond(SID.get(words), pasid, PRGINDEX.get(words), response);
    return CommandError.none;
  }

  /** §4.7.3 Everything before is done. A device-TLB that did not answer is told here (§7.1). */
  #sync(): number {
    const words = this.#words;
    const { CS, MSIDATA, MSIADDRESS } = SyncCommand.fields;
    const completion = CS.get(words);
    if (completion > Completion.event) return CommandError.illegal;
    if (this.#timedOut) {
      this.#timedOut = false;
      return CommandError.atcTimeout;
    }
    this.#advance();
    if (completion === Completion.interrupt)
      this.#context.errors.complete(MSIADDRESS.get(words), MSIDATA.get(words));
    return CommandError.none;
  }
}

/** §4.4.1 The pages that a TLB invalidation by address names. */
export const namedPages = (
  words: ArrayLike<number>,
  { rangeInvalidation }: Pick<Capabilities, "rangeInvalidation">,
): AddressRange => {
  const { NUM, SCALE, TG } = TlbiCommand.fields;
  const granule = rangeInvalidation ? TG.get(words) : 0;
  const lg2 = granule === 0 ? 12 : 10 + 2 * granule;
  const pages = granule === 0 ? 1 : (NUM.get(words) + 1) * 2 ** SCALE.get(words);
  return { lo: words[2]! & 0xffff_f000, hi: words[3]!, lg2, pages };
};

const opcodeNames = new Map<number, string>(Object.entries(Opcode).map(([name, opcode]) => [opcode, name]));
