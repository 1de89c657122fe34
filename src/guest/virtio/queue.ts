/** The driver's side of a split virtqueue (virtio 1.3, §2.7): rings and buffers in the guest's memory, one page each. */
import { RegisterAccess, type RegisterFile } from "../../drivers/register-file.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import {
  AvailRing,
  Descriptor,
  DescriptorFlag,
  INDICES,
  Register,
  UsedElement,
  UsedRing,
} from "../../viommu/virtio/transport-spec.ts";

/** Descriptors. */
const SIZE = 64;
const AVAILABLE = SIZE * Descriptor.size;
const USED = 2048;

export interface DriverQueueOptions {
  readonly memory: HostMemory;
  readonly registers: RegisterFile;
  /** Of the queue in its device. */
  readonly index: number;
  /** False: the driver looks by itself. */
  readonly interrupts: boolean;
}

/** A part of a buffer, by its place in the page of buffers. */
export interface Part {
  readonly at: number;
  readonly length: number;
  /** The device writes it. */
  readonly writes: boolean;
}

export class DriverQueue {
  readonly #memory: HostMemory;
  readonly #registers: RegisterAccess;
  readonly #index: number;
  readonly #rings: number;
  readonly #buffers: number;
  #offered = 0;
  #seen = 0;

  /** Sets the queue up in the device. Throws ENOMEM, and ENODEV when the device has no such queue. */
  constructor({ memory, registers, index, interrupts }: DriverQueueOptions) {
    this.#memory = memory;
    this.#registers = new RegisterAccess(registers, "virtqueue");
    this.#index = index;
    this.#rings = pageOf(memory);
    this.#buffers = pageOf(memory);
    if (!interrupts) this.#store16(this.#rings + AVAILABLE + AvailRing.FLAGS, AvailRing.NO_INTERRUPT);
    const registersOf = this.#registers;
    registersOf.write32(Register.QueueSel, index);
    if (registersOf.read32(Register.QueueNumMax) < SIZE)
      throw new LinuxError("ENODEV", `virtqueue ${index} has fewer than ${SIZE} descriptors`);
    registersOf.write32(Register.QueueNum, SIZE);
    registersOf.write64(Register.QueueDesc, BigInt(this.#rings));
    registersOf.write64(Register.QueueDriver, BigInt(this.#rings + AVAILABLE));
    registersOf.write64(Register.QueueDevice, BigInt(this.#rings + USED));
    registersOf.write32(Register.QueueReady, 1);
  }

  /** Writes what the device is to read. */
  write(at: number, bytes: Uint8Array): void {
    this.#memory.writeBytes(this.#buffers + at, bytes);
  }
  /** What the device has written. */
  read(at: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.#memory.readBytes(this.#buffers + at, bytes);
    return bytes;
  }

  /** Offers a buffer, whose descriptors begin at `head`, to the device, which is told. */
  offer(head: number, parts: readonly Part[]): void {
    for (const [index, { at, length, writes }] of parts.entries()) {
      const more = index + 1 < parts.length;
      const descriptor = Descriptor.bytes({
        addr: BigInt(this.#buffers + at),
        len: length,
        flags: (writes ? DescriptorFlag.WRITE : 0) | (more ? DescriptorFlag.NEXT : 0),
        next: more ? head + index + 1 : 0,
      });
      this.#memory.writeBytes(this.#rings + (head + index) * Descriptor.size, descriptor);
    }
    const ring = this.#rings + AVAILABLE;
    this.#store16(ring + AvailRing.RING + 2 * (this.#offered % SIZE), head);
    this.#offered = (this.#offered + 1) % INDICES;
    this.#store16(ring + AvailRing.IDX, this.#offered);
    this.#registers.write32(Register.QueueNotify, this.#index);
  }

  /** A buffer that the device has used: its first descriptor and how many bytes were written; undefined: none. */
  used(): { readonly head: number; readonly written: number } | undefined {
    const ring = this.#rings + USED;
    const index = new Uint8Array(2);
    this.#memory.readBytes(ring + UsedRing.IDX, index);
    if ((index[0]! | (index[1]! << 8)) === this.#seen) return undefined;
    const element = new Uint8Array(UsedElement.size);
    this.#memory.readBytes(ring + UsedRing.RING + UsedElement.size * (this.#seen % SIZE), element);
    this.#seen = (this.#seen + 1) % INDICES;
    const { id, len } = UsedElement.read(element);
    return { head: id, written: len };
  }

  /** The device was reset: it does not look there any more. */
  free(): void {
    this.#memory.free(this.#rings, 1);
    this.#memory.free(this.#buffers, 1);
  }

  #store16(pa: number, value: number): void {
    this.#memory.writeBytes(pa, Uint8Array.of(value & 0xff, value >> 8));
  }
}

const pageOf = (memory: HostMemory): number => {
  const pa = memory.allocate(1);
  if (pa < 0) throw new LinuxError("ENOMEM", "there is no page for a virtqueue");
  return pa;
};
