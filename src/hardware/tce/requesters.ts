/** To which PE a requester belongs: the requester translation table in memory, and what is remembered of it. */
import type { HostMemory } from "../../memory/host-memory.ts";
import { TceFault } from "./faults.ts";
import { PES, REQUESTERS, RTE_BYTES } from "./spec.ts";

const UNKNOWN = -1;
/** Entries of a doubleword, the first one in its most significant bits. */
const RTES = 4;

export class Requesters {
  /** Address of the RTT. */
  table = 0;
  /** Why the last requester has no PE. */
  fault: number = TceFault.ioda;
  readonly #memory: HostMemory;
  readonly #known = new Int16Array(REQUESTERS).fill(UNKNOWN);
  #any = false;

  constructor(memory: HostMemory) {
    this.#memory = memory;
  }

  /** The PE, or -1: `fault` says why. */
  pe(rid: number, remember: boolean): number {
    const known = this.#known[rid]!;
    if (known !== UNKNOWN) return known;
    const entry = this.read(rid);
    if (entry === undefined || entry >= PES) {
      this.fault = entry === undefined ? TceFault.memory : TceFault.ioda;
      return -1;
    }
    if (remember) {
      this.#known[rid] = entry;
      this.#any = true;
    }
    return entry;
  }

  /** What is remembered of a requester. */
  known(rid: number): number | undefined {
    const known = this.#known[rid]!;
    return known === UNKNOWN ? undefined : known;
  }

  /** The entry in memory; undefined: no memory answers. */
  read(rid: number): number | undefined {
    const memory = this.#memory;
    const within = rid % RTES;
    if (!memory.load64be(this.table + (rid - within) * RTE_BYTES)) return undefined;
    const word = within < RTES / 2 ? memory.hi : memory.lo;
    return (within % 2 === 0 ? word >>> 16 : word) & 0xffff;
  }

  /** Where a requester's entry lies. */
  address(rid: number): number {
    return this.table + rid * RTE_BYTES;
  }

  /** Forgets one, or all. */
  forget(rid?: number): void {
    if (rid !== undefined) this.#known[rid] = UNKNOWN;
    else if (this.#any) {
      this.#known.fill(UNKNOWN);
      this.#any = false;
    }
  }
}
