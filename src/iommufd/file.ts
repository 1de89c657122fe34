/** /dev/iommu as it is opened: one file with objects of its own, and its ioctls. */
import { type EventSink, silent } from "../base/events.ts";
import type { Scheduler } from "../base/scheduler.ts";
import { allocate } from "../kernel/allocations.ts";
import type { Call, DeviceNode, KernelFile, MapSegment, Suspended } from "../kernel/call.ts";
import { openFile } from "../kernel/open-file.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import { LinuxError } from "../uapi/errno.ts";
import { UserPins } from "./accounting.ts";
import { compatCall } from "./compat.ts";
import { IommufdContext, type IommufdLive, type IommufdSystem } from "./context.ts";
import { hwptRequests, viommuRequests } from "./hardware-calls.ts";
import { ioasRequests } from "./ioas-calls.ts";
import { optionRequests } from "./option.ts";
import { dispatch, FIRST_COMMAND, type RequestKind, type RequestTable, requestTable } from "./request.ts";

/** MISC_MAJOR; the minor is given when the driver registers. */
const MISC_MAJOR = 10;
const DYNAMIC_MINOR = 127;
const MAP_SHARED = 1;
const PROT_EXEC = 4;
const TYPE_VFIO = 0x3b;

/** As Linux has it, unless a test asks for less. */
const BATCH_BYTES = 65_536;

export interface IommufdParts {
  readonly memory: HostMemory;
  readonly scheduler: Scheduler;
  readonly events?: EventSink;
  /** Requests beyond iommufd's own: those of a test command. */
  readonly extra?: readonly RequestKind[];
}

export class IommufdFile implements KernelFile {
  readonly kind = "iommufd";
  readonly name: string;
  readonly context: IommufdContext;
  readonly #requests: RequestTable;

  /** `requests` are those of iommufd's own numbers. */
  constructor(system: IommufdSystem, requests: RequestTable, name: string) {
    this.name = name;
    this.#requests = requests;
    this.context = new IommufdContext(system, name);
  }

  /** Numbers from 0x80 on are iommufd's, those below belong to the VFIO compatibility container. */
  ioctl(call: Call, number: number, argument: bigint): number | Suspended {
    return (number & 0xff) < FIRST_COMMAND
      ? compatCall(this.context, call, number, argument)
      : dispatch(this.#requests, this.context, call, number, argument);
  }

  /** Pages of a virtual IOMMU, as it offered them. Throws EINVAL (not shared), EPERM (executable), ENXIO. */
  mmap(
    _call: Call,
    offset: bigint,
    length: number,
    protection: number,
    flags: number,
  ): readonly MapSegment[] {
    if ((flags & MAP_SHARED) === 0)
      throw new LinuxError("EINVAL", "pages of a vIOMMU are mapped shared (MAP_SHARED)", this.name);
    const offered = this.context.shared(offset);
    if (!offered || offered.length !== length)
      throw new LinuxError(
        "ENXIO",
        `no vIOMMU offers ${length} bytes at offset 0x${offset.toString(16)}`,
        this.name,
      );
    if ((protection & PROT_EXEC) !== 0)
      throw new LinuxError("EPERM", "pages of a vIOMMU cannot be executed", this.name);
    return [{ kind: "memory", offset: 0, length, pa: offered.pa, owner: offered }];
  }

  close(): void {
    this.context.release();
  }
}

export class IommufdSubsystem {
  readonly system: IommufdSystem;
  /** /dev/iommu. */
  readonly node: DeviceNode;
  /** Files that were ever opened. */
  #opened = 0;

  constructor({ memory, scheduler, events = silent, extra = [] }: IommufdParts) {
    this.system = {
      memory,
      scheduler,
      events,
      users: new UserPins(),
      live: { files: 0, objects: 0, areas: 0 },
      contexts: new Set(),
      batch: { bytes: BATCH_BYTES },
    };
    const requests = requestTable([
      ...ioasRequests,
      ...optionRequests,
      ...hwptRequests,
      ...viommuRequests,
      ...extra,
    ]);
    this.node = {
      path: "/dev/iommu",
      major: MISC_MAJOR,
      minor: DYNAMIC_MINOR,
      mode: 0o600,
      open: () => {
        allocate("a file");
        this.#opened += 1;
        return new IommufdFile(this.system, requests, `iommufd ${this.#opened}`);
      },
    };
  }

  /** What exists now; all zero when every client is gone. */
  live(): IommufdLive & { readonly pinnedPages: number } {
    return { ...this.system.live, pinnedPages: this.system.users.total };
  }
}

/** The context behind a file, when it is one of /dev/iommu. */
export const contextOf = (file: KernelFile | undefined): IommufdContext | undefined =>
  file instanceof IommufdFile ? file.context : undefined;

export { TYPE_VFIO };

/** The iommufd behind a descriptor. Throws EBADF where nothing is open, EBADFD for another file. */
export const iommufdOf = (call: Call, fd: number): IommufdContext => {
  const file = openFile(call, fd);
  const context = contextOf(file);
  if (context) return context;
  throw new LinuxError("EBADFD", `descriptor ${fd} is ${file?.name ?? "an ordinary file"}, not /dev/iommu`);
};
