/**
 * A machine that is served to programs: the machine, the loop that answers its clients, and the memory of those
 * clients. `environment()` is what a program must be started with.
 */
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { type Clock, monotonic } from "../base/clock.ts";
import { type EventSink, silent } from "../base/events.ts";
import { runsFolder } from "../base/places.ts";
import { WorkQueue } from "../base/scheduler.ts";
import { FaultInjection } from "../kernel/fault-injection.ts";
import { type LiveCounts, Machine } from "../machine/machine.ts";
import type { MachineDescription } from "../machine/schema.ts";
import { ROUTED } from "../machine/sysfs.ts";
import { ShownTree } from "../machine/tree.ts";
import { ClientFiles } from "./client-files.ts";
import { handlers as adoptHandlers, ProcessMemory } from "./process-memory.ts";
import { AttachServer } from "./server.ts";
import { trapHandlers } from "./traps.ts";

export interface HostOptions {
  readonly events?: EventSink;
  readonly clock?: Clock;
  /** Told of internal errors; the host goes on, and the call they ended was answered with EIO. */
  readonly onBug?: (where: string, reason: string) => void;
}

export class Host {
  readonly machine: Machine;
  readonly server: AttachServer;
  /** The folder of the shadow tree and the sockets; only this user can enter it. */
  readonly folder: string;

  /** Throws an Error with a sentence when the machine cannot be made. */
  constructor(description: MachineDescription, options: HostOptions = {}) {
    const { events = silent, clock = monotonic(), onBug } = options;
    const work = new WorkQueue();
    this.machine = new Machine(description, { events, clock, scheduler: work });
    const { memory } = this.machine;
    const files = new ClientFiles(memory, events);
    const faults = new FaultInjection(this.machine.allocations, ({ pid, tid }) =>
      existsSync(`/proc/${pid}/task/${tid}`),
    );
    this.folder = mkdtempSync(join(runsFolder(), "softiommu-"));
    const shadowRoot = join(this.folder, "tree");
    const tree = new ShownTree(shadowRoot, () => this.#show(tree));
    this.server = new AttachServer({
      nodes: () => this.machine.nodes(),
      attribute: (path, task) => faults.node(path, task) ?? tree.attribute(path),
      allocations: this.machine.allocations,
      events,
      clock,
      work,
      privileges: description.privileges,
      memory: (pid, pidfd) => new ProcessMemory(pid, pidfd, files),
      fileBacking: (fd) => files.backing(fd),
      backing: (pa, length) => memory.expose(pa, length),
      handlers: [adoptHandlers, trapHandlers(events)],
      socketDir: join(this.folder, "attach"),
      ...(onBug && { onBug }),
    });
    try {
      tree.show(this.machine.tree());
      this.server.addTree({ shadowRoot, routed: ROUTED });
      this.server.start();
    } catch (error) {
      this.stop();
      throw error;
    }
  }

  environment(base: NodeJS.ProcessEnv = process.env): Record<string, string> {
    return this.server.environment(base);
  }

  /** What exists because of clients; all zero when they are gone. */
  live(): LiveCounts {
    return { ...this.machine.live(), ...this.server.live };
  }

  /** Files and nodes as they are now. */
  #show(tree: ShownTree): void {
    tree.show(this.machine.tree());
    this.server.refreshNodes();
  }

  stop(): void {
    this.server.stop();
    this.machine.close();
    rmSync(this.folder, { recursive: true, force: true });
  }
}
