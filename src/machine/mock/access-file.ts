/** An access object as the file the test command makes: pins by number, and copies. */

import { type Access, type AccessPin, createAccess } from "../../iommufd/access.ts";
import type { IommufdContext } from "../../iommufd/context.ts";
import type { KernelFile } from "../../kernel/call.ts";
import { LinuxError } from "../../uapi/errno.ts";

export class AccessFile implements KernelFile {
  readonly kind = "mock-access";
  readonly access: Access;
  readonly context: IommufdContext;
  /** It may pin: it is told before pages go. */
  readonly pins: boolean;
  readonly #items = new Map<number, AccessPin>();
  #next = 0;
  #open = true;

  /** Throws ENOENT, EADDRINUSE (areas are not aligned for pins), ENOMEM. */
  constructor(context: IommufdContext, ioasId: number, pins: boolean) {
    this.context = context;
    this.pins = pins;
    this.access = createAccess(context, { pins, unmap: (iova, length) => this.#unmap(iova, length) });
    try {
      this.access.attach(ioasId);
    } catch (error) {
      this.access.release();
      throw error;
    }
  }

  get name(): string {
    return `file of ${this.access.name}`;
  }

  /** Keeps a pin; its number. */
  add(pin: AccessPin): number {
    const id = this.#next;
    this.#next += 1;
    this.#items.set(id, pin);
    return id;
  }

  /** Throws ENOENT. */
  remove(id: number): void {
    const pin = this.#items.get(id);
    if (!pin) throw new LinuxError("ENOENT", `there are no pinned pages ${id}`, this.name);
    this.#items.delete(id);
    pin.release();
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    for (const id of [...this.#items.keys()]) this.remove(id);
    this.access.release();
  }

  #unmap(iova: bigint, length: bigint): void {
    for (const [id, pin] of [...this.#items]) if (pin.touches(iova, length)) this.remove(id);
  }
}
