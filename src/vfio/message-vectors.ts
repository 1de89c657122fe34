/**
 * MSI and MSI-X: messages of the host are programmed into the function, so that an interrupt really travels: device,
 * IOMMU, interrupt window, eventfd. Vectors of MSI share one block of messages and are set up together; those of
 * MSI-X have a message each and come and go one by one.
 */
import type { Call, EventFd } from "../kernel/call.ts";
import type { Message } from "../kernel/msi.ts";
import { findCapability } from "../pci/capability-list.ts";
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
import { VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX } from "../uapi/vfio.ts";
import type { VfioContext } from "./context.ts";
import { holdEventfd } from "./held-eventfd.ts";
import { disableLine } from "./intx.ts";
import type { IrqRequest } from "./irq-set.ts";

/** Where the function's vector table lies. */
export interface MsixTable {
  readonly capability: number;
  readonly bar: number;
  readonly offset: number;
  readonly vectors: number;
}

const msixTableOf = (pci: PciFunction): MsixTable | undefined => {
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

export type MessageKind = typeof VFIO_PCI_MSI_IRQ_INDEX | typeof VFIO_PCI_MSIX_IRQ_INDEX;

export class MessageVectors {
  readonly table: MsixTable | undefined;
  readonly #context: VfioContext;
  readonly #pci: PciFunction;
  readonly #msi: number | undefined;
  readonly #vectors = new Map<number, Vector>();
  #kind: MessageKind | undefined;
  /** MSI: the block all vectors share, and how many were asked for. */
  #block: Message | undefined;
  #enabled = 0;

  constructor(context: VfioContext, pci: PciFunction) {
    this.#context = context;
    this.#pci = pci;
    this.#msi = findCapability(pci, CapabilityId.MSI);
    this.table = msixTableOf(pci);
  }

  /** Which of the two is in use. */
  get kind(): MessageKind | undefined {
    return this.#kind;
  }

  /** Vectors the function has of MSI. */
  get msiVectors(): number {
    return this.#msi === undefined
      ? 0
      : 2 ** MsiControl.fields.MultipleMessageCapable.get([this.#msiControl(this.#msi)]);
  }

  /** One SET_IRQS with TRIGGER while nothing else is in use. */
  set(call: Call, { start, count, data }: IrqRequest, kind: MessageKind): void {
    const active = this.#kind === kind;
    if (active && count === 0 && data.kind === "none") {
      this.close();
      return;
    }
    if (data.kind === "eventfd") {
      if (active) this.#setBlock(call, start, data.values);
      else this.#enable(call, kind, start, data.values);
      return;
    }
    if (!active)
      throw this.#error(
        `${kind === VFIO_PCI_MSI_IRQ_INDEX ? "MSI" : "MSI-X"} is not set up; give it eventfds first`,
      );
    for (let i = 0; i < count; i += 1)
      if (data.kind === "none" || data.values[i]) this.#vectors.get(start + i)?.eventfd.signal();
  }

  /** The function was reset: what is in use is programmed again. */
  restore(): void {
    if (this.#kind === undefined) return;
    disableLine(this.#pci, true);
    if (this.#kind === VFIO_PCI_MSI_IRQ_INDEX) this.#programMsi();
    else {
      for (const [vector, { message }] of this.#vectors) this.#programEntry(vector, message);
      this.#enableMsix(true);
    }
  }

  close(): void {
    if (this.#kind === undefined) return;
    for (const vector of [...this.#vectors.keys()]) this.#drop(vector);
    if (this.#kind === VFIO_PCI_MSIX_IRQ_INDEX) this.#enableMsix(false);
    else this.#enableMsi(false);
    this.#block?.free();
    this.#block = undefined;
    this.#enabled = 0;
    this.#kind = undefined;
    disableLine(this.#pci, false);
  }

  #enable(call: Call, kind: MessageKind, start: number, fds: Int32Array): void {
    if (fds.length === 0) throw this.#error("there is no vector to set up; an eventfd, or -1, is needed");
    disableLine(this.#pci, true);
    this.#kind = kind;
    this.#enabled = start + fds.length;
    try {
      if (kind === VFIO_PCI_MSI_IRQ_INDEX) {
        this.#block = this.#context.msi.allocate((n) => this.#vectors.get(n)?.eventfd.signal(), {
          count: 2 ** this.#enabledLg2,
          source: this.#pci.rid,
        });
        this.#programMsi();
      } else this.#enableMsix(true);
      this.#setBlock(call, start, fds);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** On a failure the vectors of this block are taken away again. */
  #setBlock(call: Call, start: number, fds: Int32Array): void {
    if (this.#kind === VFIO_PCI_MSI_IRQ_INDEX && start + fds.length > this.#enabled)
      throw this.#error(
        `MSI was set up with ${this.#enabled} vectors and cannot grow; take it away (count 0) first`,
      );
    fds.forEach((fd, i) => {
      try {
        this.#setVector(call, start + i, fd);
      } catch (error) {
        for (let done = 0; done <= i; done += 1) this.#drop(start + done);
        throw error;
      }
    });
  }

  #setVector(call: Call, vector: number, fd: number): void {
    this.#drop(vector);
    if (fd < 0) return;
    const eventfd = holdEventfd(this.#context, call, fd);
    if (this.#kind === VFIO_PCI_MSI_IRQ_INDEX) {
      this.#vectors.set(vector, { eventfd, message: undefined });
      return;
    }
    let message: Message;
    try {
      message = this.#context.msi.allocate(() => eventfd.signal(), { source: this.#pci.rid });
    } catch (error) {
      eventfd.close();
      throw error;
    }
    this.#vectors.set(vector, { eventfd, message });
    this.#programEntry(vector, message);
  }

  /** The hardware's entry is masked before the message and the eventfd go. */
  #drop(vector: number): void {
    const held = this.#vectors.get(vector);
    if (!held) return;
    this.#vectors.delete(vector);
    if (held.message) this.#programEntry(vector, undefined);
    held.message?.free();
    held.eventfd.close();
  }

  get #enabledLg2(): number {
    return Math.ceil(Math.log2(this.#enabled));
  }

  #msiControl(at: number): number {
    return this.#pci.configRead(at + MsiCapability.MESSAGE_CONTROL, 2);
  }

  #programMsi(): void {
    const at = this.#msi!;
    const { data } = this.#block!;
    const address = this.#reachedAt(this.#block!);
    const wide = (this.#msiControl(at) & MsiControl.fields.Address64.mask) !== 0;
    this.#pci.configWrite(at + MsiCapability.ADDRESS, 4, Number(address & 0xffff_ffffn));
    if (wide) this.#pci.configWrite(at + MsiCapability.UPPER_ADDRESS, 4, Number(address >> 32n));
    this.#pci.configWrite(at + (wide ? MsiCapability.DATA : MsiCapability.UPPER_ADDRESS), 2, data);
    this.#enableMsi(true);
  }

  #enableMsi(enabled: boolean): void {
    const at = this.#msi!;
    const { Enable, MultipleMessageEnable } = MsiControl.fields;
    const control = [this.#msiControl(at)];
    Enable.set(control, enabled ? 1 : 0);
    MultipleMessageEnable.set(control, enabled ? this.#enabledLg2 : 0);
    this.#pci.configWrite(at + MsiCapability.MESSAGE_CONTROL, 2, control[0]!);
  }

  #enableMsix(enabled: boolean): void {
    const at = this.table!.capability + MsixCapability.MESSAGE_CONTROL;
    const control = [this.#pci.configRead(at, 2)];
    MsixControl.fields.Enable.set(control, enabled ? 1 : 0);
    MsixControl.fields.FunctionMask.set(control, 0);
    this.#pci.configWrite(at, 2, control[0]!);
  }

  /** Writes the vector's table entry: its message, or masked. Memory decoding is on meanwhile, whatever the user wants. */
  #programEntry(vector: number, message: Message | undefined): void {
    const table = this.table!;
    const entry = new DataView(new ArrayBuffer(MsixEntry.BYTES));
    if (message) {
      entry.setBigUint64(MsixEntry.ADDRESS, this.#reachedAt(message), true);
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

  /** The address of a message as the function has to write it: its IOMMU may translate messages too. Throws ENOMEM. */
  #reachedAt({ address }: Message): bigint {
    const driver = this.#context.core.devices.get(this.#pci.name)?.driver;
    return driver?.doorbell?.(this.#pci, address) ?? address;
  }

  #error(reason: string): LinuxError {
    return new LinuxError("EINVAL", reason, `device ${this.#pci.name}`);
  }
}
