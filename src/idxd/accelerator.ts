/**
 * The host's driver of a Data Streaming Accelerator whose work queues are for programs (`/dev/dsa/wqG.Q`): it owns the
 * function and its group's DMA, configures all queues as shared ones of one group, and gives orders one after the other, whose
 * ends the device tells by its first interrupt. The function itself has no use of memory, so it has no domain.
 */
import type { EventSink } from "../base/events.ts";
import { AuxiliaryDriver } from "../iommu/auxiliary.ts";
import type { Device } from "../iommu/core.ts";
import type { MsiController } from "../kernel/msi.ts";
import { enableMsix, programMsix } from "../kernel/msix.ts";
import {
  Cmd,
  CmdSts,
  DsaCommand,
  DsaRegister,
  ENGINES,
  GroupConfig,
  MOST_BATCH_LG2,
  MOST_TRANSFER_LG2,
  PORTAL_BAR,
  QUEUE_CONFIG_BYTES,
  QUEUE_ENTRIES,
  queuePortal,
  REGISTER_BAR,
  WqConfig,
} from "../pci/devices/dsa/spec.ts";
import { Command, Header } from "../pci/spec.ts";

const PRIORITY = 10;
/** Causes are cleared by writing ones. */
const ALL_CAUSES = 0xffff_ffff;

interface Order {
  readonly command: number;
  readonly operand: number;
  readonly done: () => void;
}

export class Accelerator {
  readonly device: Device;
  /** What gives queues' users domains of their own. */
  readonly parts: AuxiliaryDriver;
  readonly queues: number;
  readonly #events: EventSink;
  /** The first is under way. */
  readonly #orders: Order[] = [];

  /** Throws EBUSY when somebody has its DMA. `queues`: 1 to 8. */
  constructor(device: Device, queues: number, msi: MsiController, events: EventSink) {
    const { function: pci, group } = device;
    group.claim(this);
    this.device = device;
    this.queues = queues;
    this.#events = events;
    this.parts = new AuxiliaryDriver(device);
    const command = pci.configRead(Header.COMMAND, 2);
    pci.configWrite(Header.COMMAND, 2, command | Command.MEMORY_SPACE | Command.BUS_MASTER);
    const { address, data } = msi.allocate(() => this.#interrupted(), { source: pci.rid });
    programMsix(pci, 0, address, data);
    enableMsix(pci);
    this.#configure();
  }

  get name(): string {
    return this.device.name;
  }

  /** An order to the device; `done` is called when it has ended. */
  order(command: number, operand: number, done: () => void = () => {}): void {
    this.#orders.push({ command, operand, done });
    if (this.#orders.length === 1) this.#begin();
  }

  /** Gives a queue a descriptor; false: it is full. */
  enqueue(queue: number, descriptor: Uint8Array): boolean {
    return this.device.function.barEnqueue?.(PORTAL_BAR, queuePortal(queue, true), descriptor) ?? false;
  }

  /** What a program wrote to a portal, as it is. */
  post(queue: number, offset: number, data: Uint8Array): void {
    this.device.function.barWrite(PORTAL_BAR, queuePortal(queue, true) + offset, data);
  }

  /** All queues alike: shared, the entries in equal parts, each descriptor with the PASID it carries. */
  #configure(): void {
    const size = Math.floor(QUEUE_ENTRIES / this.queues);
    const words = new Uint32Array(WqConfig.words);
    WqConfig.toWords(
      WqConfig.make({
        Size: size,
        Threshold: size,
        BlockOnFault: true,
        Priority: PRIORITY,
        PasidEnable: true,
        MaxTransfer: MOST_TRANSFER_LG2,
        MaxBatch: MOST_BATCH_LG2,
      }),
      words,
    );
    for (let queue = 0; queue < this.queues; queue++)
      words.forEach((word, at) => {
        this.#write(DsaRegister.WQCFG + queue * QUEUE_CONFIG_BYTES + 4 * at, word);
      });
    this.#write(DsaRegister.GRPCFG + GroupConfig.QUEUES, 2 ** this.queues - 1);
    this.#write(DsaRegister.GRPCFG + GroupConfig.ENGINES, 2 ** ENGINES - 1);
    this.order(DsaCommand.ENABLE_DEVICE, 0);
    for (let queue = 0; queue < this.queues; queue++) this.order(DsaCommand.ENABLE_WQ, queue);
  }

  #begin(): void {
    const [order] = this.#orders;
    if (!order) return;
    const { command, operand } = order;
    this.#write(DsaRegister.CMD, Number(Cmd.make({ Command: command, Operand: operand, Interrupt: true })));
  }

  #interrupted(): void {
    this.#write(DsaRegister.INTCAUSE, ALL_CAUSES);
    const status = [this.#read(DsaRegister.CMDSTS)];
    if (CmdSts.fields.Active.get(status) === 1) return;
    const ended = this.#orders.shift();
    if (!ended) return;
    const error = CmdSts.fields.Error.get(status);
    if (error !== 0 && this.#events.on)
      this.#events.emit("device", {
        device: this.name,
        what: "command failed",
        command: ended.command,
        error,
      });
    this.#begin();
    ended.done();
  }

  #read(register: number): number {
    const bytes = new Uint8Array(4);
    this.device.function.barRead(REGISTER_BAR, register, bytes);
    return new DataView(bytes.buffer).getUint32(0, true);
  }

  #write(register: number, value: number): void {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, value, true);
    this.device.function.barWrite(REGISTER_BAR, register, bytes);
  }
}
