/**
 * A modelled VMM: a process that gives a guest its memory, devices of the host and a virtual VT-d unit. It reaches the
 * host through system calls with encoded arguments alone (`viommu/host-calls.ts`), the guest through memory, registers and
 * interrupts. Left out: virtual CPUs (a guest's code runs when it is called), devices' interrupts.
 */
import type { EventSink } from "../base/events.ts";
import type { Scheduler } from "../base/scheduler.ts";
import { EcapRegister } from "../hardware/vtd/spec.ts";
import type { VtdCapabilities } from "../hardware/vtd/unit.ts";
import type { DeviceNode } from "../kernel/call.ts";
import { ModelTask } from "../kernel/model-task.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import { LinuxError } from "../uapi/errno.ts";
import { type DeviceInfo, HostCalls, type RecordedCall } from "../viommu/host-calls.ts";
import type { BackEnd, GuestRam } from "../viommu/vtd/back-end.ts";
import { VtdFrontEnd } from "../viommu/vtd/front-end.ts";
import { NestedBackEnd } from "../viommu/vtd/nested.ts";
import { PageFaults } from "../viommu/vtd/page-faults.ts";
import { ShadowBackEnd } from "../viommu/vtd/shadow.ts";
import { MistakenCalls, remembering, type VmmBreak } from "./breaks.ts";
import { GuestMemory } from "./memory.ts";
import { PassedDevice } from "./passed-device.ts";

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
  /** How the host is made to follow the guest's tables. */
  readonly follow: "nested" | "shadow";
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
  readonly iommu: VtdFrontEnd;
  readonly backEnd: BackEnd;

  constructor(options: VmmOptions) {
    const { host, name, ramBytes, devices, events, follow, record, broken = new Set() } = options;
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
    const infos = this.devices.map(({ info }) => info);
    this.iommu = new VtdFrontEnd({
      name: `${name}'s vIOMMU`,
      memory: this.memory,
      events,
      interrupt: (address, data) => {
        this.memory.writeBytes(Number(address), new Uint8Array(Uint32Array.of(data).buffer));
      },
      capabilities: follow === "nested" ? nestable(infos, options.addressWidth) : plain(options.addressWidth),
    });
    this.backEnd = follow === "nested" ? this.#nest(infos, options) : this.#shadow();
    this.iommu.connect(broken.has("stale-iotlb") ? remembering(this.backEnd) : this.backEnd);
  }

  /** The VMM dies; what it had on the host goes with it. */
  exit(): void {
    this.task.exit();
  }

  #nest(infos: readonly DeviceInfo[], { scheduler }: VmmOptions): NestedBackEnd {
    const { iommu, calls, ram, devices } = this;
    const asking = infos.every(asksForPages)
      ? new PageFaults({ calls, iommu, devices, scheduler })
      : undefined;
    return new NestedBackEnd({
      calls,
      ram,
      devices,
      translationOf: (rid, pasid) => iommu.translationOf(rid, pasid),
      pasidsOf: (rid) => iommu.pasidsOf(rid),
      pasids: infos.every(({ pasidBits }) => pasidBits > 0),
      faults: asking?.id,
    });
  }

  #shadow(): ShadowBackEnd {
    const { iommu, calls, ram, devices } = this;
    const { tables } = iommu;
    return new ShadowBackEnd({
      ...{ calls, ram, devices, tables },
      translationOf: (rid) => iommu.translationOf(rid),
    });
  }
}

const open = (task: ModelTask, host: HostNodes, path: string): number => {
  const node = host.nodes().find((candidate) => candidate.path === path);
  if (!node) throw new LinuxError("ENOENT", `${path} is not there`);
  return task.open(node);
};

/** A unit in legacy mode: second stages, which a VMM can copy. */
const plain = (hostAddressWidth: number): VtdCapabilities => ({ addressWidths: [39, 48], hostAddressWidth });

/** A unit in scalable mode with what all devices' units have for guests: first stages, and PASIDs. */
const nestable = (infos: readonly DeviceInfo[], hostAddressWidth: number): VtdCapabilities => {
  const all = (test: (info: DeviceInfo) => boolean): boolean => infos.every(test);
  const hostHas = (name: keyof typeof EcapRegister.fields) =>
    all(({ vtd }) => vtd !== undefined && EcapRegister.fields[name].of(vtd.ecap) !== 0n);
  if (!hostHas("NEST"))
    throw new LinuxError("EOPNOTSUPP", "the host's IOMMU does not nest (ECAP.NEST): shadow instead");
  const pasidBits = Math.min(...infos.map((info) => info.pasidBits));
  const pageRequests = all(asksForPages);
  return {
    ...plain(hostAddressWidth),
    deviceTlb: all(({ ats }) => ats),
    scalable: {
      firstStage: true,
      supervisorRequests: hostHas("SRS"),
      extendedAccessed: hostHas("EAFS"),
      pageRequests,
      ...(pasidBits > 0 && { pasidBits }),
    },
  };
};

/** Whether page requests of the device can reach a fault queue. */
const asksForPages = ({ vtd, ats }: DeviceInfo): boolean =>
  ats && vtd !== undefined && EcapRegister.fields.PRS.of(vtd.ecap) !== 0n;
