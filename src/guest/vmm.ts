/**
 * A modelled VMM: a process that gives a guest its memory, devices of the host and a virtual IOMMU of the model that the
 * host has: a VT-d unit or an SMMUv3. It reaches the host through system calls with encoded arguments alone (`viommu/host-calls.ts`), the guest through memory, registers and
 * interrupts. Left out: virtual CPUs (a guest's code runs when it is called), devices' interrupts.
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

  constructor(options: VmmOptions) {
    const { host, name, ramBytes, devices, follow, record, broken = new Set() } = options;
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
      ({ path, rid }) => new PassedDevice(this.calls, open(this.task, host, path), rid),
    );
    const parts = {
      ...options,
      ...{ name: `${name}'s vIOMMU`, calls: this.calls, ram: this.ram, memory: this.memory },
      devices: this.devices,
      broken,
      interrupt: (address: bigint, data: number) => {
        this.memory.writeBytes(Number(address), new Uint8Array(Uint32Array.of(data).buffer));
      },
    };
    const unit = follow === "shadow" ? shadowed(parts, options.shows ?? "vtd-legacy") : nested(parts);
    this.iommu = unit.iommu;
    this.backEnd = unit.backEnd;
  }

  /** The VMM dies; what it had on the host goes with it. */
  exit(): void {
    this.task.exit();
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
