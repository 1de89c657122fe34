/**
 * Sees every system call of modelled processes, every byte that a machine's functions move, and every word that its IOMMU
 * units read or write themselves, those of walks too; and lets the isolation oracle judge each.
 */
import { type IommuUnit, NO_PASID, type Transaction } from "../../src/hardware/unit.ts";
import { ModelTask } from "../../src/kernel/model-task.ts";
import type { Machine } from "../../src/machine/machine.ts";
import type { HostMemory } from "../../src/memory/host-memory.ts";
import { UnitPort } from "../../src/pci/dma.ts";
import { isAtsUnit } from "../../src/pci/translation-services.ts";
import { IsolationOracle, type MessageRanges, type Served } from "./isolation.ts";
import { WatchedMemory } from "./watched-memory.ts";

const PAGE = 4096;
const WORD = 2 ** 32;

/** A request that a function makes now. */
interface Request {
  readonly pasid: number | undefined;
  readonly write: boolean;
  readonly iova: number;
  /** Bytes that were moved. */
  moved: number;
}

/** Puts another method in an object's place, until the function that comes back is called. */
const replace = <T extends object, K extends keyof T>(
  target: T,
  name: K,
  make: (was: T[K]) => T[K],
): (() => void) => {
  const own = Object.getOwnPropertyDescriptor(target, name);
  target[name] = make(target[name]);
  return () => {
    if (own) Object.defineProperty(target, name, own);
    else Reflect.deleteProperty(target, name);
  };
};

export class Witness {
  readonly oracle: IsolationOracle;
  /** What the oracle objected to. */
  readonly objections: string[] = [];
  /** Runs of bytes that functions moved, and words of tables that units read or wrote: of processes, and of the host. */
  readonly seen = { moved: 0, tables: 0, hostTables: 0 };
  /** Path of a function's file by requester id. */
  readonly #paths = new Map<number, string>();
  readonly #owners = new Map<number, { readonly process: number; readonly va: number }>();
  readonly #undo: (() => void)[] = [];
  #request: Request | undefined;
  /** What a unit translates now. */
  #translated: Transaction | undefined;
  /** Calls that are being served, the innermost last. */
  readonly #serving: Served[] = [];
  /** The machine is being put together: what it takes is for itself. */
  #building = true;

  constructor(messages?: MessageRanges) {
    this.oracle = new IsolationOracle(messages);
  }

  /** For `MachineContext.unitMemory`. */
  readonly unitMemory = (memory: HostMemory): HostMemory => {
    const allocated = this.#allocated.bind(this);
    const freed = this.#freed.bind(this);
    this.#undo.push(
      replace(
        memory,
        "allocate",
        (was) =>
          function (this: HostMemory, count) {
            const pa = was.call(this, count);
            if (pa >= 0) allocated(pa / PAGE, count);
            return pa;
          },
      ),
      replace(
        memory,
        "free",
        (was) =>
          function (this: HostMemory, pa, count) {
            freed(pa / PAGE, count);
            was.call(this, pa, count);
          },
      ),
    );
    return new WatchedMemory(memory, (pa, length, write) => this.#fetched(pa, length, write));
  };

  /** From now on everything is judged that happens on the machine, which was made with `unitMemory`. */
  watch(machine: Machine): void {
    this.#building = false;
    for (const { name, rid } of machine.functions) {
      const node = machine.vfio.deviceNodes.get(name);
      if (!node) continue;
      this.#paths.set(rid, node.path);
      this.oracle.names(name, node.path);
    }
    for (const { unit } of machine.units.values()) this.#undo.push(...this.#watchUnit(unit));
    this.#undo.push(...this.#watchCalls(), ...this.#watchPorts(), ...this.#watchMemory(machine.memory));
  }

  stop(): void {
    for (const undo of this.#undo.splice(0).reverse()) undo();
  }

  /** Memory of a process, as it is now. */
  owns({ pid, memory }: ModelTask, va: number, bytes: number): void {
    for (let at = va; at < va + bytes; at += PAGE)
      this.#owners.set(memory.physical(at) / PAGE, { process: pid, va: at });
  }

  #allocated(first: number, count: number): void {
    const call = this.#serving.at(-1);
    if (!call && !this.#building) return; // of a process, or nobody's
    for (let frame = first; frame < first + count; frame++) this.oracle.took(frame, call);
  }
  #freed(first: number, count: number): void {
    for (let frame = first; frame < first + count; frame++) this.oracle.gave(frame);
  }

  #nameOf(rid: number): string {
    return this.#paths.get(rid) ?? `requester ${rid}`;
  }

  #object(what: string, rid: number | undefined, pasid: number | undefined, pa: number, why: string): void {
    const tag = pasid === undefined ? "" : ` with PASID ${pasid}`;
    const whose = rid === undefined ? "a unit of its own accord" : this.#nameOf(rid);
    this.objections.push(`${what} for ${whose}${tag} at 0x${pa.toString(16)}: ${why}`);
  }

  #judge(
    rid: number,
    pa: number,
    how: { readonly pasid: number | undefined; readonly write: boolean; readonly iova: number },
  ): void {
    const where = this.#owners.get(Math.floor(pa / PAGE));
    const why = this.oracle.objection({ device: this.#nameOf(rid), where, ...how });
    if (why !== undefined) this.#object(how.write ? "write" : "read", rid, how.pasid, pa, why);
  }

  /** A unit reads or writes memory itself. */
  #fetched(pa: number, length: number, write: boolean): void {
    if (this.#building) return;
    const { rid, pasid: tag = NO_PASID } = this.#translated ?? {};
    const pasid = tag === NO_PASID ? undefined : tag;
    for (let at = pa; at < pa + length; at += PAGE - (at % PAGE)) {
      const frame = Math.floor(at / PAGE);
      const where = this.#owners.get(frame);
      this.seen[where ? "tables" : "hostTables"] += 1;
      const device = rid === undefined ? undefined : this.#nameOf(rid);
      const why = this.oracle.fetchObjection({ device, pasid, write, frame, where });
      if (why !== undefined) this.#object(write ? "update of a table" : "fetch", rid, pasid, at, why);
    }
  }

  #moved(rid: number, pa: number, length: number): void {
    const request = this.#request;
    if (!request) throw new Error("bytes were moved that no function asked for");
    this.seen.moved += 1;
    for (let at = 0; at < length; at += PAGE - ((pa + at) % PAGE)) {
      const iova = request.iova + request.moved + at;
      this.#judge(rid, pa + at, { ...request, iova });
    }
    request.moved += length;
  }

  #watchUnit(unit: IommuUnit): (() => void)[] {
    const during = <T>(transaction: Transaction, run: () => T): T => {
      const before = this.#translated;
      this.#translated = transaction;
      try {
        return run();
      } finally {
        this.#translated = before;
      }
    };
    const undo = [
      replace(
        unit,
        "translate",
        (was) => (transaction) => during(transaction, () => was.call(unit, transaction)),
      ),
    ];
    if (isAtsUnit(unit))
      undo.push(
        replace(
          unit,
          "requestTranslation",
          (was) => (transaction) => during(transaction, () => was.call(unit, transaction)),
        ),
      );
    return undo;
  }

  #watchMemory(memory: HostMemory): (() => void)[] {
    const moved = this.#moved.bind(this);
    return [
      replace(
        memory,
        "readBytes",
        (was) =>
          function (this: HostMemory, pa, into, from = -1) {
            if (from >= 0) moved(from, pa, into.length);
            return was.call(this, pa, into, from);
          },
      ),
      replace(
        memory,
        "writeBytes",
        (was) =>
          function (this: HostMemory, pa, data, from = -1) {
            if (from >= 0) moved(from, pa, data.length);
            return was.call(this, pa, data, from);
          },
      ),
    ];
  }

  #watchPorts(): (() => void)[] {
    return (["read", "write"] as const).map((name) => {
      const during = <T>(request: Request, run: () => T): T => {
        this.#request = request;
        try {
          return run();
        } finally {
          this.#request = undefined;
        }
      };
      return replace(
        UnitPort.prototype,
        name,
        (was) =>
          function (this: UnitPort, lo, hi, bytes, pasid) {
            const tag = pasid === undefined || pasid < 0 ? undefined : pasid;
            const request = { pasid: tag, write: name === "write", iova: hi * WORD + lo, moved: 0 };
            return during(request, () => was.call(this, lo, hi, bytes, pasid));
          },
      );
    });
  }

  #watchCalls(): (() => void)[] {
    const { oracle } = this;
    const serving = this.#serving;
    const forget = (pid: number): void => {
      for (const [page, { process }] of this.#owners) if (process === pid) this.#owners.delete(page);
    };
    return [
      replace(
        ModelTask.prototype,
        "open",
        (was) =>
          function (this: ModelTask, node, flags) {
            const fd = was.call(this, node, flags);
            oracle.take({ kind: "open", process: this.pid, fd, path: node.path });
            return fd;
          },
      ),
      replace(
        ModelTask.prototype,
        "close",
        (was) =>
          function (this: ModelTask, fd) {
            was.call(this, fd);
            oracle.take({ kind: "close", process: this.pid, fd });
          },
      ),
      replace(
        ModelTask.prototype,
        "exit",
        (was) =>
          function (this: ModelTask) {
            was.call(this);
            forget(this.pid);
          },
      ),
      replace(
        ModelTask.prototype,
        "start",
        (was) =>
          function (this: ModelTask, fd, request, argument) {
            const given = argument instanceof Uint8Array ? argument.slice() : new Uint8Array();
            serving.push({ process: this.pid, fd, request, given });
            const pending = was.call(this, fd, request, argument);
            serving.pop();
            const answered = argument instanceof Uint8Array ? argument.slice() : given;
            const failed = !pending.settled || pending.error !== undefined;
            const { value } = pending;
            oracle.take({ kind: "ioctl", process: this.pid, fd, request, given, answered, value, failed });
            return pending;
          },
      ),
    ];
  }
}
