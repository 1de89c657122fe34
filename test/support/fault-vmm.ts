/**
 * A VMM on a `FaultHost`: both functions, page tables of every kind that reports what functions did wrong in its own way,
 * and a count of every record that it read. Everything is done by encoded system calls.
 */
import type { Random } from "../../src/base/clock.ts";
import { gcr3Fields } from "../../src/drivers/amdvi/gcr3-table.ts";
import { Dte } from "../../src/hardware/amdvi/spec.ts";
import { Cd, Config, Ste } from "../../src/hardware/smmuv3/spec.ts";
import { ModelTask } from "../../src/kernel/model-task.ts";
import { Command, Header } from "../../src/pci/spec.ts";
import { LinuxError } from "../../src/uapi/errno.ts";
import * as uapi from "../../src/uapi/iommufd.ts";
import { IOMMU_VIOMMU_TYPE_ARM_SMMUV3 } from "../../src/uapi/vendor/smmuv3.ts";
import { VFIO_DEVICE_RESET } from "../../src/uapi/vfio.ts";
import { regionOffset } from "../../src/vfio/regions.ts";
import { HostCalls } from "../../src/viommu/host-calls.ts";
import type { FaultHost } from "./fault-rig.ts";

const PAGE = 4096;
/** The guest's memory: where the VMM has it, where the guest sees it. */
const GUEST = { va: 0x7000_0000, ipa: 0x4000_0000, bytes: 16 * PAGE } as const;
/** A page for whatever a function asks for, and where events are read to. */
const SPARE = 0x7100_0000;
const EVENTS = 0x7200_0000;
const EVENT_BYTES = 0x4000;
export const EVENT_DEPTH = 6;
/** The guest's tables: an empty one, and context descriptors whose faults end accesses, or stall them; or GCR3 entries. */
const TABLE = GUEST.ipa;
const ENDING = GUEST.ipa + PAGE;
const STALLING = GUEST.ipa + 2 * PAGE;
const GCR3 = GUEST.ipa + 3 * PAGE;

export interface Table {
  readonly id: number;
  /** Page requests under it are reported. */
  readonly faults: boolean;
  /** The host's own: a page that is mapped in the IOAS is there. */
  readonly mends: boolean;
}

interface Waiting {
  readonly fd: number;
  readonly cookie: number;
  readonly address: bigint;
}

/** What VMMs have read and answered; all of them count here. */
export class Books {
  /** Groups that were read; answers that were taken, by what they said. */
  read = 0;
  success = 0;
  invalid = 0;
  /** Records of events, and how many are missing between their numbers. */
  events = 0;
  missing = 0;
}

export class FaultVmm {
  readonly task: ModelTask;
  readonly calls: HostCalls;
  readonly devices: readonly { readonly fd: number; readonly id: number }[];
  readonly #host: FaultHost;
  readonly #books: Books;
  readonly #ioas: number;
  readonly #parent: number;
  readonly #viommu: number;
  #fault: { readonly id: number; readonly fd: number } | undefined;
  #events: { readonly id: number; readonly fd: number } | undefined;
  #nextEvent = 0;
  tables: Table[] = [];
  readonly #waiting: Waiting[] = [];
  readonly #mapped: bigint[] = [];

  constructor(host: FaultHost, books: Books) {
    this.#host = host;
    this.#books = books;
    this.task = new ModelTask(host.host.memory);
    this.task.memory.map(GUEST.va, GUEST.bytes);
    this.task.memory.map(SPARE, PAGE);
    this.task.memory.map(EVENTS, EVENT_BYTES);
    this.calls = new HostCalls(this.task, this.task.open(host.iommufd.node));
    this.devices = host.functions.map(({ name }) => {
      const fd = this.task.open(host.vfio.deviceNodes.get(name)!);
      return { fd, id: this.calls.bind(fd) };
    });
    this.#command();
    this.#ioas = this.calls.allocateIoas();
    this.calls.map(this.#ioas, { iova: GUEST.ipa, va: GUEST.va, length: GUEST.bytes });
    const first = this.devices[0]!;
    const arm = host.vendor === "smmuv3";
    const pasid = host.vendor === "vtd" ? uapi.IOMMU_HWPT_ALLOC_PASID : 0;
    this.#parent = this.calls.allocateHwpt(first.id, this.#ioas, uapi.IOMMU_HWPT_ALLOC_NEST_PARENT | pasid);
    // Of AMD's there is no number: any is taken.
    const type = IOMMU_VIOMMU_TYPE_ARM_SMMUV3;
    this.#viommu = host.vendor === "vtd" ? 0 : this.calls.allocateViommu(first.id, this.#parent, type);
    this.devices.forEach(({ id }, index) => {
      if (this.#viommu !== 0) this.calls.allocateVdevice(this.#viommu, id, 8 + index);
    });
    if (host.vendor === "amdvi") {
      const tables = BigUint64Array.from({ length: 8 }, () => BigInt(TABLE) | 1n);
      this.task.memory.write(BigInt(GUEST.va + GCR3 - GUEST.ipa), new Uint8Array(tables.buffer));
    }
    if (arm) {
      this.#context(ENDING, false);
      this.#context(STALLING, true);
      this.listen();
    }
    this.prepare();
  }

  /** A new fault queue, and page tables with it. The old ones stay while devices have them. */
  prepare(): void {
    const { calls } = this;
    const { id } = this.devices[0]!;
    const PASID = uapi.IOMMU_HWPT_ALLOC_PASID;
    this.#fault = calls.allocateFaults();
    const fault = this.#fault.id;
    const paging = (faults: boolean): Table => ({
      id: this.#hwpt(id, faults ? fault : undefined, PASID),
      faults,
      mends: true,
    });
    const nested = (make: () => number, faults: boolean): Table => ({ id: make(), faults, mends: false });
    this.tables = [paging(true), paging(false)];
    if (this.#host.vendor === "smmuv3") {
      const stream = (contexts: number, queue: number | undefined) => () =>
        calls.allocateStream(
          id,
          this.#viommu,
          Ste.make({ V: true, CONFIG: Config.stage1, S1CONTEXTPTR: contexts }),
          queue,
        );
      this.tables.push(
        nested(stream(ENDING, undefined), false),
        nested(stream(STALLING, fault), true),
        nested(stream(STALLING, undefined), false),
        nested(() => calls.allocateStream(id, this.#viommu, 0n, undefined), false),
      );
    } else if (this.#host.vendor === "amdvi") {
      const entry = (more: Parameters<typeof Dte.make>[0], queue: number | undefined) => () =>
        calls.allocateGuestEntry(id, this.#viommu, Dte.make({ V: true, TV: true, ...more }), queue);
      const own = { IR: true, IW: true, GV: true, GIOV: true, DOMAIN: 7, ...gcr3Fields(BigInt(GCR3)) };
      const asking = { ...own, I: true, PPR: true, GPRP: true };
      this.tables.push(
        nested(entry(asking, fault), true),
        nested(entry(asking, undefined), false),
        nested(entry({ ...own, I: true }, undefined), false),
        nested(entry({ ...own, DOMAIN: 8 }, undefined), false),
        nested(entry({ TV: false }, undefined), false),
      );
    } else {
      const table = { flags: 0n, table: TABLE, addressWidth: 48 };
      for (const faults of [fault, undefined])
        this.tables.push(
          nested(
            () => calls.allocateNested(id, this.#parent, table, { pasid: true, faults }),
            faults !== undefined,
          ),
        );
    }
  }

  /** Its open files that hold anything. */
  get files(): readonly number[] {
    const queues = [this.#fault?.fd, this.#events?.fd].filter((fd) => fd !== undefined);
    return [...this.devices.map(({ fd }) => fd), this.calls.iommufd, ...queues];
  }

  /** Ids of what can be destroyed, those that others need last. */
  get objects(): readonly number[] {
    const own = [this.#events?.id, this.#viommu, this.#parent, this.#ioas, this.#fault?.id];
    return [
      ...this.tables.map(({ id }) => id),
      ...own.filter((id): id is number => id !== undefined && id !== 0),
    ];
  }

  attach(device: number, table: Table, pasid?: number): void {
    outcome(() => this.calls.attach(this.devices[device]!.fd, table.id, pasid));
  }

  detach(device: number, pasid?: number): void {
    outcome(() => this.calls.detach(this.devices[device]!.fd, pasid));
  }

  reset(device: number): void {
    this.task.ioctl(this.devices[device]!.fd, VFIO_DEVICE_RESET);
  }

  /** The file of the present fault queue goes; tables with it stay. */
  closeFaults(): void {
    if (this.#fault) this.task.close(this.#fault.fd);
    this.#fault = undefined;
  }

  get reads(): boolean {
    return this.#fault !== undefined;
  }

  /** An event queue, where there is none. */
  listen(): void {
    if (this.#events || this.#host.vendor !== "smmuv3") return;
    const layout = uapi.IommuVeventqAlloc;
    const members = { viommu_id: this.#viommu, type: 1, veventq_depth: EVENT_DEPTH };
    const bytes = layout.bytes({ size: layout.size, ...members });
    this.task.ioctl(this.calls.iommufd, uapi.IOMMU_VEVENTQ_ALLOC, bytes);
    const { out_veventq_id: id, out_veventq_fd: fd } = layout.read(bytes);
    this.#events = { id, fd };
    this.#nextEvent = 0;
  }

  get listens(): boolean {
    return this.#events !== undefined;
  }

  deafen(): void {
    if (!this.#events) return;
    this.task.close(this.#events.fd);
    this.calls.destroy(this.#events.id);
    this.#events = undefined;
  }

  /** Reads what waits in the fault queue; false: nothing. */
  readFaults(): boolean {
    if (!this.#fault) return false;
    const { fd } = this.#fault;
    const faults = this.calls.readFaults(fd);
    for (const { cookie, addr } of faults) this.#waiting.push({ fd, cookie, address: addr });
    this.#books.read += faults.length;
    return faults.length > 0;
  }

  /** Answers some of what was read; those that wait no more were answered by the host meanwhile. */
  answer(random: Random, everything = false): boolean {
    const count = everything ? this.#waiting.length : random.below(this.#waiting.length + 1);
    for (let i = 0; i < count; i++) {
      const [{ fd, cookie, address }] = this.#waiting.splice(random.below(this.#waiting.length), 1) as [
        Waiting,
      ];
      const success = !everything && random.below(2) === 0;
      if (success && this.#mapped.length < 64) this.#mend(address);
      const taken = outcome(() => this.calls.respond(fd, cookie, success ? 0 : 1));
      if (taken) this.#books[success ? "success" : "invalid"] += 1;
    }
    return count > 0;
  }

  /** Reads what waits in the event queue. */
  readEvents(): boolean {
    if (!this.#events) return false;
    const count = this.task.readTo(this.#events.fd, BigInt(EVENTS), EVENT_BYTES);
    const bytes = new Uint8Array(count);
    this.task.memory.read(BigInt(EVENTS), bytes);
    const header = uapi.IommufdVeventHeader;
    for (let at = 0; at < count; ) {
      const { flags, sequence } = header.read(bytes, at);
      const marker = (flags & uapi.IOMMU_VEVENTQ_FLAG_LOST_EVENTS) !== 0;
      this.#books.missing += sequence - this.#nextEvent + (marker ? 1 : 0);
      this.#nextEvent = sequence + 1;
      at += header.size + (marker ? 0 : 32);
      if (!marker) this.#books.events += 1;
    }
    return count > 0;
  }

  /** Pages that were brought in go again. */
  unmend(): void {
    for (const address of this.#mapped.splice(0)) this.calls.unmap(this.#ioas, Number(address), PAGE);
  }

  #mend(address: bigint): void {
    if (outcome(() => this.calls.map(this.#ioas, { iova: Number(address), va: SPARE, length: PAGE })))
      this.#mapped.push(address);
  }

  #hwpt(device: number, fault: number | undefined, flags: number): number {
    const layout = uapi.IommuHwptAlloc;
    const bytes = layout.bytes({
      size: layout.size,
      flags: flags | (fault === undefined ? 0 : uapi.IOMMU_HWPT_FAULT_ID_VALID),
      dev_id: device,
      pt_id: this.#ioas,
      fault_id: fault ?? 0,
    });
    this.task.ioctl(this.calls.iommufd, uapi.IOMMU_HWPT_ALLOC, bytes);
    return layout.read(bytes).out_hwpt_id;
  }

  /** The functions may make requests. */
  #command(): void {
    const value = Uint8Array.of(Command.MEMORY_SPACE | Command.BUS_MASTER, 0);
    for (const { fd } of this.devices) this.task.pwrite(fd, regionOffset(7) + BigInt(Header.COMMAND), value);
  }

  /** §5.4 IHI 0070: a context descriptor above the empty table. */
  #context(at: number, stalls: boolean): void {
    const bytes = new Uint8Array(64);
    const value = Cd.make({
      ...{ V: true, AA64: true, T0SZ: 25, EPD1: true, IPS: 4, R: true, A: true, S: stalls },
      ...{ ASID: 1, TTB0: TABLE },
    });
    Cd.write(bytes, value);
    this.task.memory.write(BigInt(GUEST.va + at - GUEST.ipa), bytes);
  }
}

/** Whether the host took it. */
const outcome = (work: () => void): boolean => {
  try {
    work();
    return true;
  } catch (error) {
    if (error instanceof LinuxError) return false;
    throw error;
  }
};
