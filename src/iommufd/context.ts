/** What the files and objects of iommufd share: the machine's memory, who is told, what is alive, injected failures. */
import type { EventSink } from "../base/events.ts";
import type { Scheduler } from "../base/scheduler.ts";
import { allocate } from "../kernel/allocations.ts";
import { Capability, type Task } from "../kernel/call.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import { type AccountMode, Payer, type UserPins } from "./accounting.ts";
import { type IommufdObject, ObjectTable } from "./objects.ts";
import { SharedPages } from "./shared-pages.ts";

/** Counts of what exists now; all zero when every client is gone. */
export interface IommufdLive {
  /** Open /dev/iommu files, and those that bound devices keep. */
  files: number;
  objects: number;
  areas: number;
}

/** The system's side, one for all files. */
export interface IommufdSystem {
  readonly memory: HostMemory;
  readonly scheduler: Scheduler;
  readonly events: EventSink;
  readonly users: UserPins;
  readonly live: IommufdLive;
  /** Files that have objects. */
  readonly contexts: Set<IommufdContext>;
  /** What mapping may take for a list of runs of pages; when it is full, another is taken. */
  readonly batch: { bytes: number };
}

/** One /dev/iommu file: its objects, and what is set for all of them. Bound devices keep it when the file is closed. */
export class IommufdContext {
  readonly system: IommufdSystem;
  readonly name: string;
  readonly objects: ObjectTable;
  /** How pins of memory mapped from now on are paid for. */
  accountMode: AccountMode = "user";
  /** The IOAS of the VFIO compatibility requests; see `compatIoasOf`. */
  compatIoas: IommufdObject | undefined;
  #references = 1;

  constructor(system: IommufdSystem, name: string) {
    this.system = system;
    this.name = name;
    this.objects = new ObjectTable(system.live);
    system.live.files += 1;
    system.contexts.add(this);
  }

  /** A point where memory is asked for. Throws ENOMEM. */
  allocate(what: string): void {
    allocate(what);
  }

  /** Puts a new object in the table. Throws ENOMEM. */
  add<T extends IommufdObject>(object: T): T {
    this.allocate(object.type);
    this.allocate(`the number of a ${object.type}`);
    return this.objects.add(object);
  }

  /** Who pays for what the task maps now. */
  payer(task: Task): Payer {
    const mode = task.capable(Capability.ipcLock) ? undefined : this.accountMode;
    return new Payer(task, mode, this.system.users);
  }

  /** What the caller may map, by its offset. */
  readonly #shared = new Map<bigint, SharedPages>();

  /** Offers physical memory to the caller's mmap, at an offset that is its address, as on Linux. */
  share(pa: number, length: number): SharedPages {
    const pages = new SharedPages(this, pa, length);
    this.#shared.set(pages.offset, pages);
    return pages;
  }

  unshare(pages: SharedPages): void {
    this.#shared.delete(pages.offset);
  }

  /** What is offered at the offset. */
  shared(offset: bigint): SharedPages | undefined {
    return this.#shared.get(offset);
  }

  /** Somebody keeps the file: a bound device, a mapping. */
  keep(): void {
    this.#references += 1;
  }

  /** The file is closed, or a keeper lets go; with the last one everything goes. */
  release(): void {
    this.#references -= 1;
    if (this.#references > 0) return;
    this.compatIoas = undefined;
    this.objects.clear();
    this.system.live.files -= 1;
    this.system.contexts.delete(this);
  }
}
