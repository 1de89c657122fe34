/**
 * The interrupts of a PCI function and the eventfds they end in (linux/vfio.h, VFIO_DEVICE_SET_IRQS). One of INTx, MSI
 * and MSI-X is in use at a time. For MSI and MSI-X messages of the host are programmed into the function, so that an
 * interrupt really travels: device, IOMMU, interrupt window, eventfd. INTx masks itself when it fires and stays
 * masked until it is unmasked. ERR and REQ only hold eventfds. Left out: unmasking INTx by an eventfd (KVM's irqfd).
 */
import type { Call, EventFd } from "../kernel/call.ts";
import type { Message } from "../kernel/msi.ts";
import type { PciFunction } from "../pci/function.ts";
import {
  CapabilityId,
  Command,
  Header,
  MsiCapability,
  MsiControl,
  MsixCapability,
  MsixControl,
  MsixEntry,
  MsixLocation,
  VECTOR_MASKED,
} from "../pci/spec.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  VFIO_IRQ_INFO_AUTOMASKED,
  VFIO_IRQ_INFO_EVENTFD,
  VFIO_IRQ_INFO_MASKABLE,
  VFIO_IRQ_INFO_NORESIZE,
  VFIO_IRQ_SET_ACTION_MASK,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_ACTION_UNMASK,
  VFIO_PCI_ERR_IRQ_INDEX,
  VFIO_PCI_INTX_IRQ_INDEX,
  VFIO_PCI_MSI_IRQ_INDEX,
  VFIO_PCI_MSIX_IRQ_INDEX,
} from "../uapi/vfio.ts";
import { findCapability } from "./capability-list.ts";
import type { VfioContext } from "./context.ts";

/** What SET_IRQS brings, a value a vector: nothing, booleans, or descriptors of eventfds (-1: none). */
export type IrqData =
  | { readonly kind: "none" }
  | { readonly kind: "bool"; readonly values: Uint8Array }
  | { readonly kind: "eventfd"; readonly values: Int32Array };

export interface IrqRequest {
  readonly index: number;
  /** One VFIO_IRQ_SET_ACTION_*. */
  readonly action: number;
  readonly start: number;
  readonly count: number;
  readonly data: IrqData;
}

const NAMES = ["INTx", "MSI", "MSI-X", "ERR", "REQ"];

/** Where the function's vector table lies. */
export interface MsixTable {
  readonly capability: number;
  readonly bar: number;
  readonly offset: number;
  readonly vectors: number;
}

export const msixTableOf = (pci: PciFunction): MsixTable | undefined => {
  const capability = findCapability(pci, CapabilityId.MSIX);
  if (capability === undefined) return undefined;
  const location = [pci.configRead(capability + MsixCapability.TABLE, 4)];
  const control = [pci.configRead(capability + MsixCapability.MESSAGE_CONTROL, 2)];
  return {
    capability,
    bar: MsixLocation.fields.BIR.get(location),
    offset: MsixLocation.fields.Offset.get(location),
    vectors: MsixControl.fields.TableSize.get(control) + 1,
  };
};

/** A vector in use: where it ends, and for MSI-X its own message. */
interface Vector {
  readonly eventfd: EventFd;
  readonly message: Message | undefined;
}

type Mode = typeof VFIO_PCI_INTX_IRQ_INDEX | typeof VFIO_PCI_MSI_IRQ_INDEX | typeof VFIO_PCI_MSIX_IRQ_INDEX;

export class Interrupts {
  readonly #context: VfioContext;
  readonly #pci: PciFunction;
  readonly #msi: number | undefined;
  readonly msix: MsixTable | undefined;
  readonly #express: boolean;
  #mode: Mode | undefined;
  /** Vectors of the mode in use. */
  readonly #vectors = new Map<number, Vector>();
  /** MSI: the block all vectors share, and how many were asked for. */
  #block: Message | undefined;
  #enabled = 0;
  #intxMasked = false;
  #intxDisabled = false;
  /** ERR and REQ. */
  readonly #single = new Map<number, EventFd>();

  constructor(context: VfioContext, pci: PciFunction) {
    this.#context = context;
    this.#pci = pci;
    this.#msi = findCapability(pci, CapabilityId.MSI);
    this.msix = msixTableOf(pci);
    this.#express = findCapability(pci, CapabilityId.EXPRESS) !== undefined;
  }

  /** Vectors of an index; 0 when the function does not have it. */
  count(index: number): number {
    switch (index) {
      case VFIO_PCI_INTX_IRQ_INDEX:
        return this.#pci.configRead(Header.INTERRUPT_PIN, 1) ? 1 : 0;
      case VFIO_PCI_MSI_IRQ_INDEX:
        return this.#msi === undefined
          ? 0
          : 2 ** MsiControl.fields.MultipleMessageCapable.get([this.#msiControl]);
      case VFIO_PCI_MSIX_IRQ_INDEX:
        return this.msix?.vectors ?? 0;
      case VFIO_PCI_ERR_IRQ_INDEX:
        return this.#express ? 1 : 0;
      default:
        return 1;
    }
  }

  /** VFIO_IRQ_INFO_* of an index. Vectors of MSI-X can be added one by one. */
  flags(index: number): number {
    if (index === VFIO_PCI_INTX_IRQ_INDEX)
      return VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED;
    return index === VFIO_PCI_MSIX_IRQ_INDEX
      ? VFIO_IRQ_INFO_EVENTFD
      : VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE;
  }

  get msiActive(): boolean {
    return this.#mode === VFIO_PCI_MSI_IRQ_INDEX;
  }

  /** One SET_IRQS whose range is within the index. Throws EINVAL, ENOTTY, EBADF, ENOSPC. */
  set(call: Call, request: IrqRequest): void {
    switch (request.index) {
      case VFIO_PCI_INTX_IRQ_INDEX:
        this.#setIntx(call, request);
        return;
      case VFIO_PCI_MSI_IRQ_INDEX:
      case VFIO_PCI_MSIX_IRQ_INDEX:
        this.#setMessages(call, request, request.index);
        return;
      default:
        this.#setSingle(call, request);
    }
  }

  /** The function was reset: what is in use is programmed again. */
  restore(): void {
    if (this.#mode === VFIO_PCI_INTX_IRQ_INDEX) this.#lineOff(this.#intxMasked || this.#intxDisabled);
    if (this.#mode === VFIO_PCI_MSI_IRQ_INDEX) this.#programMsi();
    if (this.#mode === VFIO_PCI_MSIX_IRQ_INDEX) {
      for (const [vector, { message }] of this.#vectors) this.#programEntry(vector, message);
      this.#enableMsix(true);
    }
  }

  /** The user set or cleared the interrupt disable bit in the command register it sees. */
  disableIntx(disabled: boolean): void {
    this.#intxDisabled = disabled;
    if (this.#mode !== VFIO_PCI_INTX_IRQ_INDEX || this.#intxMasked) return;
    this.#lineOff(disabled);
    if (!disabled) this.#fireIfAsserted();
  }

  /** The last file went: nothing is in use any more. */
  close(): void {
    this.#disable();
    for (const index of [...this.#single.keys()]) this.#dropSingle(index);
  }

  // INTx

  #setIntx(call: Call, request: IrqRequest): void {
    const { action, start, count, data } = request;
    const active = this.#mode === VFIO_PCI_INTX_IRQ_INDEX;
    if (action === VFIO_IRQ_SET_ACTION_TRIGGER) {
      if (active && count === 0 && data.kind === "none") {
        this.#disable();
        return;
      }
      if (this.#mode !== undefined && !active) throw this.#otherMode(VFIO_PCI_INTX_IRQ_INDEX);
      this.#checkOnly(start, count, "INTx");
      if (data.kind === "eventfd") {
        this.#setIntxEventfd(call, data.values[0]!);
        return;
      }
      if (!active) throw this.#notSetUp(VFIO_PCI_INTX_IRQ_INDEX);
      if (data.kind === "none" || data.values[0]) this.#vectors.get(0)?.eventfd.signal();
      return;
    }
    if (action !== VFIO_IRQ_SET_ACTION_MASK && action !== VFIO_IRQ_SET_ACTION_UNMASK)
      throw this.#error("ENOTTY", "exactly one of MASK (8), UNMASK (16) and TRIGGER (32) is needed");
    if (!active) throw this.#notSetUp(VFIO_PCI_INTX_IRQ_INDEX);
    this.#checkOnly(start, count, "INTx");
    if (data.kind === "eventfd")
      throw this.#error("ENOTTY", "INTx is masked and unmasked by calls here, not by eventfds");
    if (data.kind === "bool" && !data.values[0]) return;
    if (action === VFIO_IRQ_SET_ACTION_MASK) this.#maskIntx();
    else this.#unmaskIntx();
  }

  #setIntxEventfd(call: Call, fd: number): void {
    const eventfd = fd >= 0 ? this.#hold(call, fd) : undefined;
    this.#dropVector(0);
    if (this.#mode === undefined) {
      if (!eventfd) return;
      this.#mode = VFIO_PCI_INTX_IRQ_INDEX;
      this.#intxMasked = false;
      this.#pci.onIntx = () => this.#fireIfAsserted();
    }
    if (!eventfd) {
      this.#lineOff(true);
      return;
    }
    this.#vectors.set(0, { eventfd, message: undefined });
    this.#lineOff(this.#intxMasked || this.#intxDisabled);
    this.#fireIfAsserted();
  }

  #maskIntx(): void {
    this.#intxMasked = true;
    this.#lineOff(true);
  }

  #unmaskIntx(): void {
    this.#intxMasked = false;
    if (this.#intxDisabled) return;
    this.#lineOff(false);
    this.#fireIfAsserted();
  }

  /** Level-triggered: it masks itself, or it would fire for ever. */
  #fireIfAsserted(): void {
    const vector = this.#vectors.get(0);
    if (!vector || this.#intxMasked || this.#intxDisabled || !this.#pci.intx) return;
    this.#maskIntx();
    vector.eventfd.signal();
  }

  #lineOff(off: boolean): void {
    const command = this.#pci.configRead(Header.COMMAND, 2) & ~Command.INTERRUPT_DISABLE;
    this.#pci.configWrite(Header.COMMAND, 2, command | (off ? Command.INTERRUPT_DISABLE : 0));
  }

  // MSI and MSI-X

  #setMessages(
    call: Call,
    { action, start, count, data }: IrqRequest,
    index: typeof VFIO_PCI_MSI_IRQ_INDEX | typeof VFIO_PCI_MSIX_IRQ_INDEX,
  ): void {
    if (action !== VFIO_IRQ_SET_ACTION_TRIGGER)
      throw this.#error(
        "ENOTTY",
        `vectors of ${NAMES[index]} cannot be ${action === VFIO_IRQ_SET_ACTION_UNMASK ? "unmasked" : "masked"} by SET_IRQS; only TRIGGER is known`,
      );
    const active = this.#mode === index;
    if (active && count === 0 && data.kind === "none") {
      this.#disable();
      return;
    }
    if (this.#mode !== undefined && !active) throw this.#otherMode(index);
    if (data.kind === "eventfd") {
      if (active) this.#setBlock(call, start, data.values);
      else this.#enable(call, index, start, data.values);
      return;
    }
    if (!active) throw this.#notSetUp(index);
    for (let i = 0; i < count; i += 1)
      if (data.kind === "none" || data.values[i]) this.#vectors.get(start + i)?.eventfd.signal();
  }

  #enable(
    call: Call,
    index: typeof VFIO_PCI_MSI_IRQ_INDEX | typeof VFIO_PCI_MSIX_IRQ_INDEX,
    start: number,
    fds: Int32Array,
  ): void {
    const wanted = start + fds.length;
    if (wanted === 0) throw this.#error("EINVAL", `no vector to set ${NAMES[index]} up with`);
    this.#lineOff(true);
    this.#mode = index;
    this.#enabled = wanted;
    try {
      if (index === VFIO_PCI_MSI_IRQ_INDEX) {
        const block = 2 ** Math.ceil(Math.log2(wanted));
        this.#block = this.#context.msi.allocate((n) => this.#vectors.get(n)?.eventfd.signal(), {
          count: block,
          source: this.#pci.rid,
        });
        this.#programMsi();
      } else this.#enableMsix(true);
      this.#setBlock(call, start, fds);
    } catch (error) {
      this.#disable();
      throw error;
    }
  }

  /** On a failure the vectors of this block are taken away again. */
  #setBlock(call: Call, start: number, fds: Int32Array): void {
    if (this.#mode === VFIO_PCI_MSI_IRQ_INDEX && start + fds.length > this.#enabled)
      throw this.#error(
        "EINVAL",
        `MSI was set up with ${this.#enabled} vectors and cannot grow; take it away (count 0) first`,
      );
    fds.forEach((fd, i) => {
      try {
        this.#setVector(call, start + i, fd);
      } catch (error) {
        for (let done = 0; done <= i; done += 1) this.#dropVector(start + done);
        throw error;
      }
    });
  }

  #setVector(call: Call, vector: number, fd: number): void {
    this.#dropVector(vector);
    if (fd < 0) return;
    const eventfd = this.#hold(call, fd);
    if (this.#mode === VFIO_PCI_MSI_IRQ_INDEX) {
      this.#vectors.set(vector, { eventfd, message: undefined });
      return;
    }
    let message: Message;
    try {
      message = this.#context.msi.allocate(() => eventfd.signal(), { source: this.#pci.rid });
    } catch (error) {
      this.#letGo(eventfd);
      throw error;
    }
    this.#vectors.set(vector, { eventfd, message });
    this.#programEntry(vector, message);
  }

  /** The hardware's entry is masked before the message and the eventfd go. */
  #dropVector(vector: number): void {
    const held = this.#vectors.get(vector);
    if (!held) return;
    this.#vectors.delete(vector);
    if (held.message) this.#programEntry(vector, undefined);
    held.message?.free();
    this.#letGo(held.eventfd);
  }

  #disable(): void {
    const mode = this.#mode;
    if (mode === undefined) return;
    for (const vector of [...this.#vectors.keys()]) this.#dropVector(vector);
    if (mode === VFIO_PCI_INTX_IRQ_INDEX) this.#pci.onIntx = () => {};
    if (mode === VFIO_PCI_MSIX_IRQ_INDEX) this.#enableMsix(false);
    if (mode === VFIO_PCI_MSI_IRQ_INDEX) this.#enableMsi(false);
    this.#block?.free();
    this.#block = undefined;
    this.#enabled = 0;
    this.#mode = undefined;
    this.#intxMasked = false;
    this.#lineOff(false);
  }

  get #msiControl(): number {
    return this.#pci.configRead(this.#msi! + MsiCapability.MESSAGE_CONTROL, 2);
  }

  #programMsi(): void {
    const at = this.#msi!;
    const { address, data } = this.#block!;
    const wide = (this.#msiControl & MsiControl.fields.Address64.mask) !== 0;
    this.#pci.configWrite(at + MsiCapability.ADDRESS, 4, Number(address & 0xffff_ffffn));
    if (wide) this.#pci.configWrite(at + MsiCapability.UPPER_ADDRESS, 4, Number(address >> 32n));
    this.#pci.configWrite(at + (wide ? MsiCapability.DATA : MsiCapability.UPPER_ADDRESS), 2, data);
    this.#enableMsi(true);
  }

  #enableMsi(enabled: boolean): void {
    const { Enable, MultipleMessageEnable } = MsiControl.fields;
    const control = [this.#msiControl];
    Enable.set(control, enabled ? 1 : 0);
    MultipleMessageEnable.set(control, enabled ? Math.ceil(Math.log2(this.#enabled)) : 0);
    this.#pci.configWrite(this.#msi! + MsiCapability.MESSAGE_CONTROL, 2, control[0]!);
  }

  #enableMsix(enabled: boolean): void {
    const at = this.msix!.capability + MsixCapability.MESSAGE_CONTROL;
    const control = [this.#pci.configRead(at, 2)];
    MsixControl.fields.Enable.set(control, enabled ? 1 : 0);
    MsixControl.fields.FunctionMask.set(control, 0);
    this.#pci.configWrite(at, 2, control[0]!);
  }

  /** Writes the vector's table entry: its message, or masked. Memory decoding is on meanwhile, whatever the user wants. */
  #programEntry(vector: number, message: Message | undefined): void {
    const table = this.msix!;
    const entry = new DataView(new ArrayBuffer(MsixEntry.BYTES));
    if (message) {
      entry.setBigUint64(MsixEntry.ADDRESS, message.address, true);
      entry.setUint32(MsixEntry.DATA, message.data, true);
    }
    entry.setUint32(MsixEntry.VECTOR_CONTROL, message ? 0 : VECTOR_MASKED, true);
    const at = table.offset + vector * MsixEntry.BYTES;
    const bytes = new Uint8Array(entry.buffer);
    const command = this.#pci.configRead(Header.COMMAND, 2);
    this.#pci.configWrite(Header.COMMAND, 2, command | Command.MEMORY_SPACE);
    for (let word = 0; word < MsixEntry.BYTES; word += 4)
      this.#pci.barWrite(table.bar, at + word, bytes.subarray(word, word + 4));
    this.#pci.configWrite(Header.COMMAND, 2, command);
  }

  // ERR and REQ

  #setSingle(call: Call, { index, action, start, count, data }: IrqRequest): void {
    if (action !== VFIO_IRQ_SET_ACTION_TRIGGER)
      throw this.#error("ENOTTY", `${NAMES[index]} can only be triggered`);
    if (start !== 0 || count > 1)
      throw this.#error("EINVAL", `${NAMES[index]} has one vector: start 0 and count 0 or 1 are possible`);
    const eventfd = this.#single.get(index);
    if (data.kind === "eventfd" && count === 1) {
      const fd = data.values[0]!;
      if (fd < -1) throw this.#error("EINVAL", `descriptor ${fd}: an eventfd or -1 is possible`);
      const next = fd >= 0 ? this.#hold(call, fd) : undefined;
      this.#dropSingle(index);
      if (next) this.#single.set(index, next);
      return;
    }
    if (data.kind === "eventfd") throw this.#error("EINVAL", "one eventfd, or -1, is needed");
    if (data.kind === "bool") {
      if (count === 0) throw this.#error("EINVAL", "one boolean is needed");
      if (data.values[0]) eventfd?.signal();
      return;
    }
    if (!eventfd) throw this.#notSetUp(index);
    if (count === 1) eventfd.signal();
    else this.#dropSingle(index);
  }

  #dropSingle(index: number): void {
    const eventfd = this.#single.get(index);
    this.#single.delete(index);
    if (eventfd) this.#letGo(eventfd);
  }

  #hold(call: Call, fd: number): EventFd {
    const eventfd = call.eventfd(fd);
    this.#context.live.eventfds += 1;
    return eventfd;
  }

  #letGo(eventfd: EventFd): void {
    this.#context.live.eventfds -= 1;
    eventfd.close();
  }

  #checkOnly(start: number, count: number, what: string): void {
    if (start !== 0 || count !== 1)
      throw this.#error("EINVAL", `${what} has one vector: start 0 and count 1 are needed`);
  }

  #otherMode(index: number): LinuxError {
    return this.#error(
      "EINVAL",
      `${NAMES[this.#mode!]} is in use; it must be taken away (TRIGGER, count 0) before ${NAMES[index]}`,
    );
  }

  #notSetUp(index: number): LinuxError {
    return this.#error("EINVAL", `${NAMES[index]} is not set up; give it an eventfd first`);
  }

  #error(code: "EINVAL" | "ENOTTY", reason: string): LinuxError {
    return new LinuxError(code, reason, `device ${this.#pci.name}`);
  }
}
