/** What a program does with a mediated device that is a work queue: its registers, descriptors, and how they ended. */
import {
  DESCRIPTOR_BYTES,
  Descriptor,
  Operation,
  QueueControl,
  QueueRegister,
} from "../../src/pci/devices/work-queue.ts";
import { regionOffset } from "../../src/vfio/regions.ts";
import { NestingClient, type Setup } from "./nesting-client.ts";

export const VALID = 0x8000_0000;
export const INTERRUPT = 0x8000_0000;

export interface QueueDescriptor {
  /** Undefined: the queue's. */
  readonly pasid?: number | undefined;
  readonly operation?: number;
  readonly completion?: number;
  readonly source?: number;
  readonly destination?: number;
  readonly length?: number;
}

export class QueueClient extends NestingClient {
  get(setup: Setup, register: number): number {
    const bytes = new Uint8Array(4);
    this.task.pread(setup.device, regionOffset(0) + BigInt(register), bytes);
    return new DataView(bytes.buffer).getUint32(0, true);
  }

  set(setup: Setup, register: number, value: number): void {
    const bytes = new Uint8Array(new Uint32Array([value]).buffer);
    this.task.pwrite(setup.device, regionOffset(0) + BigInt(register), bytes);
  }

  /** A mediated device in a container of its own, its queue enabled. */
  queue(uuid: string, type?: number): Setup {
    const setup = this.setUp(uuid, type);
    this.set(setup, QueueRegister.CONTROL, QueueControl.ENABLE);
    return setup;
  }

  /** Disables the queue and enables it again. */
  restart(setup: Setup): void {
    this.set(setup, QueueRegister.CONTROL, QueueControl.DISABLE);
    this.set(setup, QueueRegister.CONTROL, QueueControl.ENABLE);
  }

  submit(setup: Setup, descriptor: QueueDescriptor): void {
    const { pasid, operation = Operation.COPY, completion = 0 } = descriptor;
    const { source = 0, destination = 0, length = 8 } = descriptor;
    const bytes = new Uint8Array(DESCRIPTOR_BYTES);
    const view = new DataView(bytes.buffer);
    view.setUint32(Descriptor.PASID, pasid === undefined ? 0 : VALID + pasid, true);
    view.setUint32(Descriptor.OPERATION, operation, true);
    view.setBigUint64(Descriptor.COMPLETION, BigInt(completion), true);
    view.setBigUint64(Descriptor.SOURCE, BigInt(source), true);
    view.setBigUint64(Descriptor.DESTINATION, BigInt(destination), true);
    view.setUint32(Descriptor.LENGTH, length, true);
    this.task.pwrite(setup.device, regionOffset(0) + BigInt(QueueRegister.PORTAL), bytes);
  }

  /** Carries a descriptor out; how it ended: a `DescriptorStatus`. */
  run(setup: Setup, descriptor: QueueDescriptor): number {
    this.submit(setup, descriptor);
    this.rig.work.run();
    return this.get(setup, QueueRegister.LAST);
  }

  /** Whether the queue is stopped, and why: a `QueueStatus` and a `QueueError`. */
  state(setup: Setup): [status: number, error: number] {
    return [this.get(setup, QueueRegister.STATUS), this.get(setup, QueueRegister.ERROR)];
  }
}
