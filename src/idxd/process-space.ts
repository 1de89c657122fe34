/**
 * A process's own addresses for an accelerator: a PASID whose domain mirrors the process's memory (`iommu/mirror.ts`), shared by all
 * files of the process. Pages that a descriptor names are there when it is submitted, as those are that a processor's own tables
 * have; others come when the device asks for them. When everything that was submitted has ended, they are given back.
 */

import { RequestPermission } from "../iommu/driver.ts";
import { Mirror } from "../iommu/mirror.ts";
import { pageRequestsOf } from "../iommu/page-requests.ts";
import type { Pasids } from "../iommu/pasids.ts";
import type { UserMemory } from "../kernel/call.ts";
import { DsaCommand } from "../pci/devices/dsa/spec.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { Accelerator } from "./accelerator.ts";
import { eachRange, type MemoryRange } from "./ranges.ts";
import type { Space } from "./space.ts";

/** Bytes of a range that are looked at when its descriptor is submitted; the rest comes when it is asked for. */
const MOST_BYTES = 16 * 2 ** 20;
const PAGE = 4096;

export class ProcessSpace implements Space {
  readonly pasid: number;
  readonly #accelerator: Accelerator;
  readonly #pasids: Pasids;
  readonly #memory: UserMemory;
  readonly #mirror: Mirror;
  readonly #gone: () => void;
  #users = 0;
  #open = true;
  /** A drain is under way, after which pages are given back. */
  #draining = false;
  #time = 0;
  readonly #end = (): void => this.#close();

  /** Throws ENOSPC without a free PASID, and what attaching throws. */
  constructor(accelerator: Accelerator, pasids: Pasids, memory: UserMemory, gone: () => void) {
    const { device } = accelerator;
    const { driver, function: requester, group } = device;
    this.#accelerator = accelerator;
    this.#pasids = pasids;
    this.#memory = memory;
    this.#gone = gone;
    this.pasid = pasids.takeForHost(device.capabilities.pasidBits);
    let mirror: Mirror | undefined;
    try {
      mirror = new Mirror(driver.allocatePaging(requester, { pasid: true, faults: true }), memory);
      group.attach(mirror.domain, this.pasid);
    } catch (error) {
      mirror?.close();
      pasids.giveBack(this.pasid);
      throw error;
    }
    this.#mirror = mirror;
    pageRequestsOf(driver).handle(requester, this.pasid, ({ requests, respond }) => {
      const there = requests.map(({ address, permissions }) =>
        this.#reach({
          address: Number(address),
          bytes: PAGE,
          write: (permissions & RequestPermission.write) !== 0,
        }),
      );
      respond(there.every(Boolean) ? "success" : "invalid");
    });
    memory.atEnd?.add(this.#end);
  }

  /** One more file uses it. */
  join(): this {
    this.#users += 1;
    return this;
  }

  prepare(descriptor: Uint8Array, memory: UserMemory): void {
    if (memory.id !== this.#memory.id || !this.#open)
      throw new LinuxError(
        "EPERM",
        "the queue was opened by another process, whose PASID this one does not have; it has to open the queue itself",
        this.#accelerator.name,
      );
    this.#time = this.#mirror.turn();
    try {
      eachRange(
        descriptor,
        (address, into) => memory.read(BigInt(address), into),
        (range) => this.#reach(range),
      );
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error; // a list that is not there: the device will say so
    }
  }

  submitted(): void {
    if (this.#draining || !this.#open) return;
    this.#draining = true;
    const time = this.#time;
    this.#accelerator.order(DsaCommand.DRAIN_PASID, this.pasid, () => {
      this.#draining = false;
      if (!this.#open) return;
      this.#mirror.forget(time);
      if (this.#time > time) this.submitted();
    });
  }

  leave(): void {
    this.#users -= 1;
    if (this.#users === 0) this.#close();
  }

  #reach({ address, bytes, write }: MemoryRange): boolean {
    return this.#mirror.reach(address, Math.min(bytes, MOST_BYTES), write);
  }

  /** Nothing is reached any more from here on; the PASID is another's when no request carries it. */
  #close(): void {
    if (!this.#open) return;
    this.#open = false;
    const { driver, function: requester, group } = this.#accelerator.device;
    this.#memory.atEnd?.delete(this.#end);
    pageRequestsOf(driver).unhandle(requester, this.pasid);
    group.detach(this.pasid);
    this.#mirror.close();
    this.#gone();
    this.#accelerator.order(DsaCommand.ABORT_PASID, this.pasid, () => this.#pasids.giveBack(this.pasid));
  }
}
