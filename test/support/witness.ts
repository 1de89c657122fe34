/**
 * Sees every system call of modelled processes and every access of a machine's functions to memory, and lets the isolation
 * oracle judge each access; of a walk, each table that was read in a process's memory.
 */
import { ModelTask } from "../../src/kernel/model-task.ts";
import type { Machine } from "../../src/machine/machine.ts";
import { UnitPort } from "../../src/pci/dma.ts";
import { type AddressRange, IsolationOracle } from "./isolation.ts";

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
  /** Runs of bytes that functions moved, and tables of processes that their walks read. */
  readonly seen = { moved: 0, tables: 0 };
  readonly #machine: Machine;
  /** Path of a function's file by requester id. */
  readonly #paths = new Map<number, string>();
  readonly #owners = new Map<number, { readonly process: number; readonly va: number }>();
  readonly #undo: (() => void)[];
  #request: Request | undefined;

  constructor(machine: Machine, interrupts?: AddressRange) {
    this.#machine = machine;
    this.oracle = new IsolationOracle(interrupts);
    for (const { name, rid } of machine.functions) {
      const node = machine.vfio.deviceNodes.get(name);
      if (node) this.#paths.set(rid, node.path);
    }
    this.#undo = [...this.#watchCalls(), ...this.#watchPorts(), ...this.#watchMemory()];
  }

  stop(): void {
    for (const undo of this.#undo.reverse()) undo();
  }

  /** Memory of a process, as it is now. */
  owns({ pid, memory }: ModelTask, va: number, bytes: number): void {
    for (let at = va; at < va + bytes; at += PAGE)
      this.#owners.set(memory.physical(at) / PAGE, { process: pid, va: at });
  }

  /** Judges the tables that an access of a function would be translated by. */
  judgeWalk(name: string, iova: number, write: boolean, pasid?: number): void {
    const { rid } = this.#machine.functions.find((one) => one.name === name)!;
    for (const { address, what } of this.#machine.explain(name, BigInt(iova), write, pasid) ?? []) {
      if (address === undefined || !this.#owners.has(Math.floor(address / PAGE))) continue;
      this.seen.tables += 1;
      this.#judge(rid, address, { pasid, write: false, iova: undefined }, what);
    }
  }

  #judge(
    rid: number,
    pa: number,
    how: { readonly pasid: number | undefined; readonly write: boolean; readonly iova: number | undefined },
    what: string,
  ): void {
    const where = this.#owners.get(Math.floor(pa / PAGE));
    const why = this.oracle.objection({ device: this.#paths.get(rid) ?? `requester ${rid}`, where, ...how });
    if (why === undefined) return;
    const tag = how.pasid === undefined ? "" : ` with PASID ${how.pasid}`;
    this.objections.push(`${what} of ${this.#paths.get(rid)}${tag} at 0x${pa.toString(16)}: ${why}`);
  }

  #moved(rid: number, pa: number, length: number): void {
    const request = this.#request;
    if (!request) throw new Error("bytes were moved that no function asked for");
    this.seen.moved += 1;
    for (let at = 0; at < length; at += PAGE - ((pa + at) % PAGE)) {
      const iova = request.iova + request.moved + at;
      this.#judge(rid, pa + at, { ...request, iova }, request.write ? "write" : "read");
    }
    request.moved += length;
  }

  #watchMemory(): (() => void)[] {
    const { memory } = this.#machine;
    const moved = this.#moved.bind(this);
    return [
      replace(
        memory,
        "readBytes",
        (was) =>
          function (this: typeof memory, pa, into, from = -1) {
            if (from >= 0) moved(from, pa, into.length);
            return was.call(this, pa, into, from);
          },
      ),
      replace(
        memory,
        "writeBytes",
        (was) =>
          function (this: typeof memory, pa, data, from = -1) {
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
            const pending = was.call(this, fd, request, argument);
            const answered = argument instanceof Uint8Array ? argument.slice() : given;
            const failed = !pending.settled || pending.error !== undefined;
            oracle.take({ kind: "ioctl", process: this.pid, fd, request, given, answered, failed });
            return pending;
          },
      ),
    ];
  }
}
