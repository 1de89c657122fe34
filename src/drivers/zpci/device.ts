/** A function behind a zPCI unit as its driver knows it. */
import type { Domain, Requester } from "../../iommu/driver.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { Instructions } from "./instructions.ts";

export class ZpciDevice {
  readonly requester: Requester;
  /** Undefined: blocked. */
  domain: Domain | undefined;
  readonly #instructions: Instructions;

  constructor(requester: Requester, instructions: Instructions) {
    this.requester = requester;
    this.#instructions = instructions;
  }

  /** Entries of [start, end) have become others, or are gone. */
  forget(start: number, end: number): void {
    try {
      this.#instructions.refresh(this.requester.rid, start, end);
    } catch (error) {
      // What could not be taken is not valid any more: that is what was asked for.
      if (!(error instanceof LinuxError)) throw error;
    }
  }

  /** Entries of [start, end) have become valid. Throws EIO when the unit could not take them. */
  learn(start: number, end: number): void {
    if (this.#instructions.refreshes) this.#instructions.refresh(this.requester.rid, start, end);
  }
}
