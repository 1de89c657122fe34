/**
 * A VMM's part in secure nested paging: all of its guest's memory is private from the start, and the guest shares pages of it
 * with the host, and takes them back, through the VMM. That the guest is such a one is known to its VMM, and to nobody below.
 */
import type { SnpCalls } from "../viommu/snp-calls.ts";
import type { VmmProcess } from "./vmm-process.ts";

export class SecureGuest {
  readonly calls: SnpCalls;
  readonly #vmm: Pick<VmmProcess, "ram" | "sharing">;

  /** The guest is launched: its memory is its own. */
  constructor(vmm: Pick<VmmProcess, "ram" | "sharing">, calls: SnpCalls) {
    this.calls = calls;
    this.#vmm = vmm;
    calls.change({ va: vmm.ram.va, gpa: 0, length: vmm.ram.bytes, state: "private" });
  }

  share(gpa: number, length: number): void {
    const { ram, sharing } = this.#vmm;
    this.calls.change({ va: ram.va + gpa, gpa, length, state: "shared" });
    sharing?.share(gpa, length);
  }

  takeBack(gpa: number, length: number): void {
    const { ram, sharing } = this.#vmm;
    sharing?.takeBack(gpa, length);
    this.calls.change({ va: ram.va + gpa, gpa, length, state: "private" });
  }

  /** The reverse map table about a page. */
  entry(gpa: number): ReturnType<SnpCalls["entry"]> {
    return this.calls.entry(this.#vmm.ram.va + gpa);
  }
}
