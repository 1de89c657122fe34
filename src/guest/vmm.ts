/**
 * A modelled VMM: a process that gives a guest its memory, devices of the host and a virtual IOMMU of the model that the
 * host has, or of another: a VT-d unit or an SMMUv3. It reaches the host through system calls with encoded arguments alone (`viommu/host-calls.ts`), the guest through memory, registers and
 * interrupts, those of devices and of the unit. What goes wrong in a guest that handles one is that guest's panic: it runs no
 * more, and nobody else notices. Left out: virtual CPUs (a guest's code runs when it is called).
 */
import type { EventSink } from "../base/events.ts";
import type { Scheduler } from "../base/scheduler.ts";
import type { DeviceNode } from "../kernel/call.ts";
import { ModelTask } from "../kernel/model-task.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { GuestRam } from "../viommu/assigned.ts";
import { HostCalls, type RecordedCall } from "../viommu/host-calls.ts";
import { MistakenCalls, type VmmBreak } from "./breaks.ts";
import type { GuestIommu } from "./firmware.ts";
import { GuestMemory } from "./memory.ts";
import { PassedDevice } from "./passed-device.ts";
import { nestedSmmu, shadowedSmmu } from "./virtual-smmuv3.ts";
import type { VirtualUnit, VirtualUnitParts } from "./virtual-unit.ts";
import { nestedVtd, shadowedVtd } from "./virtual-vtd.ts";

/** An IOMMU that a VMM can show whatever its host has: VT-d in scalable or legacy mode, SMMUv3. */
export type ShownUnit = "vtd" | "vtd-legacy" | "smmuv3";

/** What a program finds on its host. */
export interface HostNodes {
  readonly memory: HostMemory;
  nodes(): readonly DeviceNode[];
}

/** A host's device, and the requester id that the guest is to know it by. */
export interface Assignment {
  /** "/dev/vfio/devices/vfio0" */
  readonly path: string;
  readonly rid: number;
}

export interface VmmOptions {
  readonly host: HostNodes;
  readonly name: string;
  /** Bytes of guest memory, whole huge pages. */
  readonly ramBytes: number;
  readonly devices: readonly Assignment[];
  /** How the host is made to follow the guest's tables: by walking them, or by copies of them. */
  readonly follow: "nested" | "shadow";
  /** What a shadowed guest has, on whatever host; default `vtd-legacy`. With nesting it is the host's model. */
  readonly shows?: ShownUnit;
  /** Bits of guest physical addresses. */
  readonly addressWidth: number;
  readonly scheduler: Scheduler;
  readonly events: EventSink;
  /** Told of every call on iommufd and on devices' files that carries a structure. */
  readonly record?: (call: RecordedCall) => void;
  /** Mistakes made on purpose. */
  readonly broken?: ReadonlySet<VmmBreak>;
}

const RAM_VA = 0x7f00_0000_0000;

export class Vmm {
  readonly task: ModelTask;
  /** Where guest memory is in the VMM's. */
  readonly ram: GuestRam;
  readonly memory: GuestMemory;
  readonly calls: HostCalls;
  readonly devices: readonly PassedDevice[];
  /** The guest's IOMMU: registers. */
  readonly iommu: GuestIommu;
  readonly backEnd: VirtualUnit["backEnd"];
  /** What the guest's processors run later. */
  readonly processors: Scheduler;
  /** Why the guest runs no more. */
  panic: string | undefined;
  readonly #unit: VirtualUnit;
  readonly #name: string;
  readonly #events: EventSink;

  constructor(options: VmmOptions) {
    const { host, name, ramBytes, devices, follow, record, scheduler, broken = new Set() } = options;
    this.#name = name;
    this.#events = options.events;
    this.processors = {
      defer: (work) => scheduler.defer(() => this.#run(work)),
      deferPastPrograms: (work) => scheduler.deferPastPrograms(() => this.#run(work)),
    };
    this.task = new ModelTask(host.memory, { name });
    this.ram = { va: RAM_VA, bytes: ramBytes };
    this.task.memory.map(RAM_VA, ramBytes, { contiguous: true });
    this.memory = new GuestMemory(host.memory, this.task.memory.physical(RAM_VA), ramBytes);
    const iommufd = open(this.task, host, "/dev/iommu");
    this.calls =
      broken.size > 0
        ? new MistakenCalls(broken, this.task, iommufd, record)
        : new HostCalls(this.task, iommufd, record);
    this.devices = devices.map(
      ({ path, rid }) =>
        new PassedDevice({
          ...{ calls: this.calls, fd: open(this.task, host, path), rid, scheduler },
          send: (address, data) => this.#message(rid, Number(address), data),
        }),
    );
    const parts = {
      ...options,
      ...{ name: `${name}'s vIOMMU`, calls: this.calls, ram: this.ram, memory: this.memory },
      devices: this.devices,
      broken,
      interrupt: (address: bigint, data: number) => this.#interrupt(Number(address), data),
    };
    const unit = follow === "shadow" ? shadowed(parts, options.shows ?? "vtd-legacy") : nested(parts);
    this.iommu = unit.iommu;
    this.backEnd = unit.backEnd;
    this.#unit = unit;
  }

  /** The VMM dies; what it had on the host goes with it. */
  exit(): void {
    this.task.exit();
  }

  /** A device, which the guest calls so, has sent a message. */
  #message(rid: number, address: number, data: number): void {
    const target = this.#unit.messageTarget?.(rid, address) ?? address;
    if (target >= 0) this.#interrupt(target, data, rid);
  }

  /** A message arrives in the guest. */
  #interrupt(pa: number, data: number, from?: number): void {
    const bytes = new Uint8Array(Uint32Array.of(data).buffer);
    this.#run(() => this.memory.writeBytes(pa, bytes, from));
  }

  /** The guest runs. */
  #run(work: () => void): void {
    if (this.panic !== undefined) return;
    try {
      work();
    } catch (error) {
      this.panic = error instanceof Error ? error.message : String(error);
      if (this.#events.on)
        this.#events.emit("device", { device: this.#name, what: "the guest panicked", reason: this.panic });
    }
  }
}

const nested = (parts: VirtualUnitParts): VirtualUnit =>
  parts.devices.every(({ info }) => info.smmu !== undefined) ? nestedSmmu(parts) : nestedVtd(parts);

const shadowed = (parts: VirtualUnitParts, shows: ShownUnit): VirtualUnit =>
  shows === "smmuv3" ? shadowedSmmu(parts) : shadowedVtd(parts, shows === "vtd");

const open = (task: ModelTask, host: HostNodes, path: string): number => {
  const node = host.nodes().find((candidate) => candidate.path === path);
  if (!node) throw new LinuxError("ENOENT", `${path} is not there`);
  return task.open(node);
};
