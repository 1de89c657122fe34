/**
 * PCI translation that a VMM shows to its guest on s390: the model of the silicon (`hardware/zpci`) over guest memory, whose
 * instructions go on to a back end. The guest gives instructions and writes tables, and must refresh what becomes valid. What
 * the host refuses is the status of the instruction that asked for it. Errors of functions stay with the host.
 */
import type { EventSink } from "../../base/events.ts";
import type { SendMessage } from "../../hardware/unit.ts";
import type { Parameters } from "../../hardware/zpci/parameters.ts";
import { Control, Register } from "../../hardware/zpci/spec.ts";
import { type FunctionHost, ZpciUnit } from "../../hardware/zpci/unit.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import type { AddressRange } from "../shadow/table.ts";
import type { BackEnd, FunctionState } from "./back-end.ts";

export interface FrontEndOptions {
  readonly name: string;
  /** The guest's. */
  readonly memory: HostMemory;
  readonly events: EventSink;
  /** Interrupts the guest. */
  readonly interrupt: SendMessage;
  /** Where the guest's functions write messages. */
  readonly msiAddress: number;
  /** Addresses that the guest's functions may use. */
  readonly addresses: AddressRange;
  /** The guest's names of its functions. */
  readonly rids: readonly number[];
}

export class ZpciFrontEnd implements FunctionHost {
  readonly model = "zpci";
  readonly name: string;
  readonly addresses: AddressRange;
  readonly #unit: ZpciUnit;
  readonly #events: EventSink;
  readonly #rids: readonly number[];
  #backEnd: BackEnd | undefined;

  constructor(options: FrontEndOptions) {
    this.name = options.name;
    this.addresses = options.addresses;
    this.#events = options.events;
    this.#rids = options.rids;
    this.#unit = new ZpciUnit({ ...options, refreshes: true, cache: "none", host: this });
  }

  /** Who makes the host follow; once, before the guest runs. */
  connect(backEnd: BackEnd): void {
    this.#backEnd = backEnd;
  }

  mmioRead(offset: number, width: 4 | 8): bigint {
    return this.#unit.mmioRead(offset, width);
  }

  mmioWrite(offset: number, width: 4 | 8, value: bigint): void {
    const before = this.#required;
    this.#unit.mmioWrite(offset, width, value);
    if (this.#required === before) return;
    // No register tells that the host could not follow.
    for (const rid of this.#rids)
      this.#tries("whether parameters are required", () => this.#backEnd?.reread(rid));
  }

  /** What requests of a function are to the guest now. */
  stateOf(rid: number): FunctionState {
    const parameters = this.#unit.parametersOf(rid);
    if (!parameters) return { kind: this.#required ? "blocked" : "identity" };
    const { stage } = parameters;
    return stage ? { kind: "tables", parameters: { ...parameters, stage } } : { kind: "identity" };
  }

  // What its instructions ask

  register(rid: number, _parameters: Parameters | undefined): boolean {
    return this.#tries("an anchor", () => this.#backEnd?.reread(rid));
  }

  refresh(rid: number, start: number, end: number): boolean {
    return this.#tries("a refresh", () => this.#backEnd?.refresh(rid, start, end));
  }

  get #required(): boolean {
    return (Number(this.#unit.mmioRead(Register.CONTROL, 4)) & Control.REQUIRED) !== 0;
  }

  #tries(what: string, work: () => void): boolean {
    try {
      work();
      return true;
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      if (this.#events.on) this.#events.emit("device", { device: this.name, what, reason });
      return false;
    }
  }
}
