/**
 * Where message-signalled interrupts end: the interrupt window of an x86 host, 1 MiB at 0xfee00000 (Intel SDM vol. 3,
 * 11.11). Whoever wants an interrupt allocates a message here and programs it into a device; the device sends it as a
 * 4-byte write that passes through its IOMMU like any DMA and, when it arrives, calls the handler. As with interrupt
 * remapping, a message counts only when it comes from the function it was made for. Left out: destinations, vectors,
 * delivery modes and priorities of the real APIC.
 */
import { type EventSink, silent } from "../base/events.ts";
import type { HostMemory, MmioWindow } from "../memory/host-memory.ts";
import { LinuxError } from "../uapi/errno.ts";

export const MSI_BASE = 0xfee0_0000;
export const MSI_BYTES = 0x10_0000;
/** One block of messages has an address of its own; bits 0 to 3 of a message address are not part of the destination. */
const BLOCK_BYTES = 16;
const BLOCKS = MSI_BYTES / BLOCK_BYTES;
/** Multiple-message MSI changes the low five bits of the data at most. */
const MESSAGES = 32;

export interface Message {
  readonly address: bigint;
  /** Data of the first message; with `count` messages the next ones follow. */
  readonly data: number;
  free(): void;
}

export interface MessageOptions {
  /** A power of two up to 32: consecutive data values at one address, as multiple-message MSI needs. */
  readonly count?: number;
  /** The requester id that may send it; without it, anybody. */
  readonly source?: number;
}

interface Block {
  readonly handler: (message: number) => void;
  readonly count: number;
  readonly source: number | undefined;
}

export class MsiController implements MmioWindow {
  readonly name = "msi";
  readonly #events: EventSink;
  readonly #blocks = new Map<number, Block>();
  readonly #remove: () => void;
  #next = 0;

  constructor(memory: HostMemory, events: EventSink = silent) {
    this.#events = events;
    this.#remove = memory.addWindow(MSI_BASE, MSI_BYTES, this);
  }

  /** Blocks of messages in use. */
  get allocated(): number {
    return this.#blocks.size;
  }

  /** A message that calls the handler with its number within the block. Throws ENOSPC when all are in use. */
  allocate(handler: (message: number) => void, options: MessageOptions = {}): Message {
    const { count = 1, source } = options;
    if (count < 1 || count > MESSAGES || (count & (count - 1)) !== 0)
      throw new LinuxError(
        "EINVAL",
        `a block of ${count} messages: a power of two from 1 to 32 is possible`,
        this.name,
      );
    if (this.#blocks.size === BLOCKS)
      throw new LinuxError("ENOSPC", `all ${BLOCKS} interrupt messages of the host are in use`, this.name);
    while (this.#blocks.has(this.#next)) this.#next = (this.#next + 1) % BLOCKS;
    const index = this.#next;
    this.#next = (index + 1) % BLOCKS;
    const block = { handler, count, source };
    this.#blocks.set(index, block);
    return {
      address: BigInt(MSI_BASE + index * BLOCK_BYTES),
      data: 0,
      free: () => {
        if (this.#blocks.get(index) === block) this.#blocks.delete(index);
      },
    };
  }

  /** The window cannot be read. */
  read(): boolean {
    return false;
  }

  write(offset: number, data: Uint8Array, from: number): boolean {
    if (data.length !== 4 || offset % 4 !== 0) return false;
    const value = data[0]! | (data[1]! << 8) | (data[2]! << 16) | (data[3]! << 24);
    const block = this.#blocks.get(Math.floor(offset / BLOCK_BYTES));
    const dropped = this.#whyDropped(block, value >>> 0, from);
    if (this.#events.on)
      this.#events.emit("interrupt", {
        address: MSI_BASE + offset,
        data: value >>> 0,
        from,
        ...(dropped && { dropped }),
      });
    if (!dropped) block!.handler(value);
    return true;
  }

  /** Takes the window away. */
  close(): void {
    this.#remove();
    this.#blocks.clear();
  }

  #whyDropped(block: Block | undefined, value: number, from: number): string | undefined {
    if (!block) return "no interrupt was set up for this address";
    if (value >= block.count) return `the data must be below ${block.count} at this address`;
    if (block.source !== undefined && block.source !== from)
      return `the message belongs to requester 0x${block.source.toString(16)}`;
    return undefined;
  }
}
