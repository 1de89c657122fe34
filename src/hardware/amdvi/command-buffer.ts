/**
 * The command buffer of an AMD-Vi unit (48882, revision 3.07, §2.4): commands are fetched from memory, checked and carried
 * out one after the other when the tail is written, so that COMPLETION_WAIT always finds everything done. The first that
 * is not valid, or cannot be read, is told by an event and stops the buffer with the head at it, until software disables
 * and enables it again. A device that does not answer an invalidation is told by an event and stops nothing.
 */
import type { EventSink } from "../../base/events.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import type { Layout } from "../../uapi/layout.ts";
import type { DeviceTlbAnswer, DeviceTlbInvalidation } from "../ats.ts";
import type { Downstream } from "../downstream.ts";
import { NO_PASID } from "../unit.ts";
import type { Capabilities } from "./capabilities.ts";
import {
  Command,
  CompletePpr,
  CompletionWait,
  DeviceCommand,
  ENTRY_BYTES,
  EventCode,
  InvalidateAll,
  InvalidateIotlb,
  InvalidatePages,
  Opcode,
  PrefetchPages,
} from "./queue-spec.ts";
import type { RegisterFile } from "./registers.ts";
import { pointerOf, ringBytes } from "./rings.ts";
import { Register, Status } from "./spec.ts";

/** What commands ask for. Addresses are two words and the lg2 of the bytes around them; 64: everything. */
export interface Commands {
  invalidateDevice(rid: number): void;
  invalidatePages(domain: number, lo: number, hi: number, lg2: number): void;
  invalidateGuestPages(domain: number, pasid: number, lo: number, hi: number, lg2: number): void;
  invalidateDeviceTlb(what: DeviceTlbInvalidation): DeviceTlbAnswer;
  respond(rid: number, pasid: number, group: number, response: number): void;
  invalidateAll(): void;
  /** STATUS.ComWaitInt. */
  interrupt(): void;
  /** An event about a command, at this address, or of a device. */
  report(code: number, address: number, rid: number): void;
}

export interface CommandBufferContext {
  readonly name: string;
  readonly memory: HostMemory;
  readonly registers: RegisterFile;
  readonly unit: Capabilities;
  readonly commands: Commands;
  readonly events: EventSink;
  /** Told of bytes of the buffer; what it refuses stops the buffer as a command that is not valid. */
  readonly downstream?: Downstream | undefined;
}

/** Commands one write may set going: a buffer that is fed by its own stores ends here. */
const BUDGET = 0x10_0000;
const PAGE = 0xffff_f000;

interface Kind {
  readonly layout: Layout;
  /** The reserved bits, word by word. */
  readonly reserved: Uint32Array;
  readonly has: (unit: Capabilities) => boolean;
}
const kinds = new Map<number, Kind>();
const declare = (opcode: number, layout: Layout, has: Kind["has"] = () => true): void => {
  const reserved = new Uint32Array(layout.words);
  layout.toWords(layout.reserved, reserved);
  kinds.set(opcode, { layout, reserved, has });
};
declare(Opcode.COMPLETION_WAIT, CompletionWait);
declare(Opcode.INVALIDATE_DEVTAB_ENTRY, DeviceCommand);
declare(Opcode.INVALIDATE_IOMMU_PAGES, InvalidatePages);
declare(Opcode.INVALIDATE_IOTLB_PAGES, InvalidateIotlb, ({ deviceTlb }) => deviceTlb);
declare(Opcode.INVALIDATE_INTERRUPT_TABLE, DeviceCommand);
declare(Opcode.PREFETCH_IOMMU_PAGES, PrefetchPages, ({ prefetch }) => prefetch);
declare(Opcode.COMPLETE_PPR_REQUEST, CompletePpr, ({ pageRequests }) => pageRequests);
declare(Opcode.INVALIDATE_IOMMU_ALL, InvalidateAll, ({ invalidateAll }) => invalidateAll);

const opcodeNames = new Map<number, string>(Object.entries(Opcode).map(([name, opcode]) => [opcode, name]));

/** §2.4.3 lg2 of the bytes that an address with S set encodes: by the lowest bit that is zero, from bit 12 on. */
export const encodedLg2 = (lo: number, hi: number): number => {
  const low = ~lo & PAGE;
  if (low !== 0) return 32 - Math.clz32(low & -low);
  const high = ~hi & 0x7fff_ffff;
  return high === 0 ? 64 : 64 - Math.clz32(high & -high);
};

export class CommandBuffer {
  readonly #context: CommandBufferContext;
  readonly #words = new Uint32Array(Command.words);
  #busy = false;

  constructor(context: CommandBufferContext) {
    this.#context = context;
  }

  /** Carries out what lies between head and tail, as far as it goes. */
  run(): void {
    if (this.#busy) return;
    this.#busy = true;
    for (let budget = BUDGET; budget > 0 && this.#ready(); budget--)
      if (!this.#fetch()) this.#stop(EventCode.COMMAND_HARDWARE_ERROR);
      else if (!this.#execute()) this.#stop(EventCode.ILLEGAL_COMMAND_ERROR);
    const refused = this.#context.downstream?.drain() ?? -1;
    if (refused >= 0) this.#refuse(refused);
    this.#busy = false;
  }

  #bytes(): number {
    return ringBytes(this.#context.registers, Register.CMDBUF_BASE);
  }
  #pointer(offset: number): number {
    return pointerOf(this.#context.registers, offset, this.#bytes());
  }
  #address(): number {
    return this.#context.registers.page(Register.CMDBUF_BASE) + this.#pointer(Register.CMDBUF_HEAD);
  }

  #ready(): boolean {
    const running = (this.#context.registers.get(Register.STATUS) & Status.CMD_BUF_RUN) !== 0;
    return running && this.#pointer(Register.CMDBUF_HEAD) !== this.#pointer(Register.CMDBUF_TAIL);
  }

  #fetch(): boolean {
    const { memory } = this.#context;
    const at = this.#address();
    const words = this.#words;
    for (let i = 0; i < words.length; i += 2) {
      if (!memory.load64(at + 4 * i)) return false;
      words[i] = memory.lo;
      words[i + 1] = memory.hi;
    }
    return true;
  }

  /** §2.5.6 and §2.5.7 The command at the head stops the buffer. */
  #stop(code: number): void {
    const { registers, commands } = this.#context;
    registers.set(Register.STATUS, registers.get(Register.STATUS) & ~Status.CMD_BUF_RUN);
    commands.report(code, this.#address(), 0);
  }

  /** Whoever stands behind the unit could not carry out the command at this place. */
  #refuse(at: number): void {
    this.#context.registers.set(Register.CMDBUF_HEAD, at);
    this.#stop(EventCode.ILLEGAL_COMMAND_ERROR);
  }

  /** False: the command is not valid, and the head at it. */
  #execute(): boolean {
    const { unit, events, name, downstream, registers } = this.#context;
    const words = this.#words;
    const opcode = Command.fields.OPCODE.get(words);
    const kind = kinds.get(opcode);
    if (!kind?.has(unit) || kind.reserved.some((mask, at) => (words[at]! & mask) !== 0)) return false;
    if (events.on) {
      const command = `${opcodeNames.get(opcode)} ${kind.layout.print(kind.layout.fromWords(words))}`;
      events.emit("command", { unit: name, command });
    }
    const head = this.#pointer(Register.CMDBUF_HEAD);
    const refused = downstream?.take(words, head) ?? -1;
    if (refused >= 0) {
      registers.set(Register.CMDBUF_HEAD, refused);
      return false;
    }
    const at = this.#address();
    registers.set(Register.CMDBUF_HEAD, (head + ENTRY_BYTES) % this.#bytes());
    this.#perform(opcode, at);
    return true;
  }

  #perform(opcode: number, at: number): void {
    const { commands } = this.#context;
    const words = this.#words;
    switch (opcode) {
      case Opcode.COMPLETION_WAIT:
        this.#complete(at);
        return;
      case Opcode.INVALIDATE_DEVTAB_ENTRY:
        commands.invalidateDevice(DeviceCommand.fields.DEVICE.get(words));
        return;
      case Opcode.INVALIDATE_IOMMU_PAGES:
        this.#invalidatePages();
        return;
      case Opcode.INVALIDATE_IOTLB_PAGES:
        this.#invalidateDeviceTlb(at);
        return;
      case Opcode.COMPLETE_PPR_REQUEST: {
        const { DEVICE, PASID, GN, TAG, CODE } = CompletePpr.fields;
        const pasid = GN.get(words) ? PASID.get(words) : NO_PASID;
        commands.respond(DEVICE.get(words), pasid, TAG.get(words), CODE.get(words));
        return;
      }
      case Opcode.INVALIDATE_IOMMU_ALL:
        commands.invalidateAll();
        return;
      // INVALIDATE_INTERRUPT_TABLE: nothing is remembered of it. PREFETCH_IOMMU_PAGES is a hint.
    }
  }

  /** §2.4.1 */
  #complete(at: number): void {
    const { memory, commands } = this.#context;
    const words = this.#words;
    const { S, I, ADDRESS } = CompletionWait.fields;
    if (S.get(words) && !memory.store64(ADDRESS.get(words), words[2]!, words[3]!))
      commands.report(EventCode.COMMAND_HARDWARE_ERROR, at, 0);
    if (I.get(words)) commands.interrupt();
  }

  #lg2(): number {
    const words = this.#words;
    return InvalidatePages.fields.S.get(words) ? encodedLg2(words[2]!, words[3]!) : 12;
  }

  /** §2.4.3 */
  #invalidatePages(): void {
    const { commands } = this.#context;
    const words = this.#words;
    const { GN, PASID, DOMAIN } = InvalidatePages.fields;
    const domain = DOMAIN.get(words);
    const lo = words[2]! & PAGE;
    if (GN.get(words)) commands.invalidateGuestPages(domain, PASID.get(words), lo, words[3]!, this.#lg2());
    else commands.invalidatePages(domain, lo, words[3]!, this.#lg2());
  }

  /** §2.4.4 */
  #invalidateDeviceTlb(at: number): void {
    const { commands } = this.#context;
    const words = this.#words;
    const { DEVICE, PASID_7, PASID_15, PASID_19, GN } = InvalidateIotlb.fields;
    const rid = DEVICE.get(words);
    const pasid = PASID_7.get(words) | (PASID_15.get(words) << 8) | (PASID_19.get(words) << 16);
    const answer = commands.invalidateDeviceTlb({
      rid,
      pasid: GN.get(words) ? pasid : NO_PASID,
      global: false,
      lo: words[2]! & PAGE,
      hi: words[3]!,
      lg2: this.#lg2(),
    });
    if (answer === "timeout") commands.report(EventCode.IOTLB_INV_TIMEOUT, at, rid);
  }
}
