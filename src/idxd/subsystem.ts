/** The work queues of all accelerators that programs can have: their nodes, `/dev/dsa/wqG.Q`, and what is open. */
import type { EventSink } from "../base/events.ts";
import type { Device } from "../iommu/core.ts";
import type { Pasids } from "../iommu/pasids.ts";
import type { DeviceNode, Task } from "../kernel/call.ts";
import type { MsiController } from "../kernel/msi.ts";
import { LinuxError } from "../uapi/errno.ts";
import { Accelerator } from "./accelerator.ts";
import { IommufdSpaces } from "./iommufd-spaces.ts";
import { ProcessSpace } from "./process-space.ts";
import { QueueFile } from "./queue-file.ts";

/** A major that the kernel gives out dynamically. */
const MAJOR = 508;
/** Queues of an accelerator at most. */
const MINORS = 8;

export interface QueueSource {
  readonly device: Device;
  readonly queues: number;
}

export interface IdxdParts {
  readonly msi: MsiController;
  readonly events: EventSink;
  readonly pasids: Pasids;
}

export class IdxdSubsystem {
  readonly nodes: readonly DeviceNode[];
  readonly #pasids: Pasids;
  #files = 0;

  constructor(sources: readonly QueueSource[], { msi, events, pasids }: IdxdParts) {
    this.#pasids = pasids;
    this.nodes = sources.flatMap(({ device, queues }, index) =>
      this.#nodesOf(new Accelerator(device, queues, msi, events), index, events),
    );
  }

  /** Files that are open. */
  get files(): number {
    return this.#files;
  }

  #nodesOf(accelerator: Accelerator, index: number, events: EventSink): DeviceNode[] {
    const spaces = new Map<number, ProcessSpace>();
    let iommufds: IommufdSpaces | undefined;
    const spaceOf = ({ memory }: Task): ProcessSpace => {
      const known = spaces.get(memory.id);
      if (known) return known.join();
      const made = new ProcessSpace(accelerator, this.#pasids, memory, () => spaces.delete(memory.id));
      spaces.set(memory.id, made);
      return made.join();
    };
    return Array.from({ length: accelerator.queues }, (_, queue) => ({
      path: `/dev/dsa/wq${index}.${queue}`,
      major: MAJOR,
      minor: index * MINORS + queue,
      mode: 0o666,
      open: (task: Task) => {
        requireServices(accelerator);
        iommufds ??= new IommufdSpaces(accelerator, this.#pasids, events);
        const name = `work queue ${index}.${queue}`;
        const closed = (): void => {
          this.#files -= 1;
        };
        const file = new QueueFile({ accelerator, iommufds, queue, name, closed }, spaceOf(task));
        this.#files += 1;
        return file;
      },
    }));
  }
}

/** Throws ENODEV where the accelerator cannot show a process's memory: without PASIDs of the whole machine, or page requests. */
const requireServices = ({ device, parts, name }: Accelerator): void => {
  const { pasidBits, pageRequests } = device.capabilities;
  if (pasidBits > 0 && parts.pasidBits > 0 && pageRequests) return;
  throw new LinuxError(
    "ENODEV",
    "processes' own addresses need PASIDs that are the whole machine's, and page requests, of the accelerator and of its unit",
    name,
  );
};
