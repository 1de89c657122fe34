/**
 * A guest's driver of a work queue that is a mediated device of the host (`pci/devices/work-queue.ts`): the kernel gives the
 * queue a PASID, its user submits descriptors. Left out: completion records, interrupts.
 */
import { RequestPasid } from "../pci/devices/requests.ts";
import {
  DESCRIPTOR_BYTES,
  Descriptor,
  DescriptorStatus,
  Operation,
  QueueControl,
  QueueError,
  QueueRegister,
  QueueStatus,
} from "../pci/devices/work-queue.ts";
import type { GuestFunction } from "./guest.ts";

/** Bytes that the queue copies, with the queue's PASID or one that the descriptor names. */
export interface Copy {
  readonly source: number;
  readonly destination: number;
  readonly length: number;
  readonly pasid?: number;
}

/** How a copy ended; `stopped`: the queue takes nothing any more, because the PASID is not its user's. */
export type CopyResult = "done" | "fault" | "stopped" | "busy";

export class QueueDevice {
  readonly #device: GuestFunction;

  constructor(device: GuestFunction) {
    this.#device = device;
  }

  /** Requests carry this PASID from now on. */
  enable(pasid: number): void {
    this.#set(QueueRegister.CONTROL, QueueControl.DISABLE);
    this.#set(QueueRegister.PASID, Number(RequestPasid.make({ Value: pasid, Valid: true })));
    this.#set(QueueRegister.CONTROL, QueueControl.ENABLE);
  }

  submit({ source, destination, length, pasid }: Copy): void {
    const words = new DataView(new ArrayBuffer(DESCRIPTOR_BYTES));
    if (pasid !== undefined)
      words.setUint32(Descriptor.PASID, Number(RequestPasid.make({ Value: pasid, Valid: true })), true);
    words.setUint32(Descriptor.OPERATION, Operation.COPY, true);
    words.setBigUint64(Descriptor.SOURCE, BigInt(source), true);
    words.setBigUint64(Descriptor.DESTINATION, BigInt(destination), true);
    words.setUint32(Descriptor.LENGTH, length, true);
    this.#device.barWrite(0, QueueRegister.PORTAL, new Uint8Array(words.buffer));
  }

  /** Of the last descriptor. */
  get result(): CopyResult {
    const status = this.#get(QueueRegister.STATUS);
    if (status === QueueStatus.STOPPED && this.#get(QueueRegister.ERROR) === QueueError.PASID)
      return "stopped";
    if (status !== QueueStatus.IDLE) return "busy";
    return this.#get(QueueRegister.LAST) === DescriptorStatus.DONE ? "done" : "fault";
  }

  #set(register: number, value: number): void {
    this.#device.barWrite(0, register, new Uint8Array(Uint32Array.of(value).buffer));
  }
  #get(register: number): number {
    const bytes = new Uint8Array(4);
    this.#device.barRead(0, register, bytes);
    return new DataView(bytes.buffer).getUint32(0, true);
  }
}
