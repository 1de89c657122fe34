/**
 * The life of a guest whose memory is private, with a device: it shares memory, the device uses that, and some is taken back.
 * It is the same whatever its VMM maps for the device; what that costs, and what then works, is counted.
 */
import type { GuestDomain } from "../../guest/firmware.ts";
import { SecureGuest } from "../../guest/secure-guest.ts";
import type { MemoryMapping } from "../../guest/virtual-unit.ts";
import type { VmmProcess } from "../../guest/vmm-process.ts";
import { openNode } from "../../guest/vmm-process.ts";
import { Protection } from "../../iommu/driver.ts";
import { SnpCalls } from "../../viommu/snp-calls.ts";
import { GuestStage } from "./guest-stage.ts";
import type { Stage } from "./stage.ts";

const PAGE = 4096;
const ASID = 1;
const RW = Protection.read | Protection.write;
/** Where a guest with a virtio-iommu maps its memory for the device. */
const IOVA = 0x1_0000_0000;

/** What a VMM maps, and when. */
export interface Way {
  readonly name: string;
  readonly maps: MemoryMapping;
  /** The guest maps what it shares itself, by a virtio-iommu. */
  readonly virtio?: boolean;
}

/** Pages of the guest for its device. */
export interface Buffer {
  readonly gpa: number;
  readonly length: number;
  readonly text: string;
}

/** What a life has cost when most of its memory was shared, and what became of its device's accesses. */
export interface Cost {
  /** Pages of 4 KiB pinned for the device. */
  readonly pins: number;
  /** Of the host's page tables. */
  readonly tableBytes: number;
  /** IOMMU_IOAS_MAP and IOMMU_IOAS_UNMAP. */
  readonly calls: number;
  /** Accesses to shared memory, and how many of them failed. */
  readonly shared: number;
  readonly failed: number;
  /** Accesses to private memory, and how many of them were stopped. */
  readonly private: number;
  readonly stopped: number;
}

export class SecureLife {
  readonly way: Way;
  readonly scene: GuestStage;
  readonly secure: SecureGuest;
  /** One page, in the middle of private memory. */
  readonly ring: Buffer;
  /** Whole 2 MiB. */
  readonly pool: Buffer;
  /** 64 KiB. */
  readonly packets: Buffer;
  /** A page that is never shared. */
  readonly secret: Buffer;
  readonly counts = { shared: 0, failed: 0, private: 0, stopped: 0 };
  readonly #domain: GuestDomain | undefined;
  readonly #firstCall: number;
  #pins = 0;
  #tableBytes = 0;

  /** The guest is launched, and its driver finds its IOMMU where it has one. */
  constructor(stage: Stage, way: Way) {
    const { maps, virtio = false } = way;
    this.way = way;
    this.#firstCall = stage.calls.length;
    this.scene = new GuestStage(stage, "shadow", { shows: virtio ? "virtio" : "none", maps });
    const { vmm, requester } = this.scene;
    const fd = openNode(vmm.task, stage.machine, "/dev/softiommu-snp");
    this.secure = new SecureGuest(vmm, new SnpCalls(vmm.task, fd, ASID, (call) => stage.calls.push(call)));
    if (virtio) {
      const { driver } = this.scene.guest;
      this.#domain = driver.allocatePaging(requester);
      driver.attach(requester, this.#domain);
    }
    this.pool = this.#buffer(512, "bounce buffers");
    this.secret = this.#buffer(1, "a secret");
    this.ring = this.#buffer(1, "requests");
    this.packets = this.#buffer(16, "packets");
  }

  /** What it is for the device. */
  address({ gpa }: Buffer, offset = 0): number {
    return (this.#domain ? IOVA : 0) + gpa + offset;
  }

  /** The guest shares it, and maps it where that is its own to do. */
  share(buffer: Buffer): void {
    const { gpa, length } = buffer;
    this.secure.share(gpa, length);
    this.#domain?.map(this.address(buffer), gpa, length, RW);
  }

  /** The device does not need it any more: what the guest has mapped it unmaps. */
  unmap(buffer: Buffer): void {
    this.#domain?.unmap(this.address(buffer), buffer.length);
  }

  /** It is private again. */
  takeBack({ gpa, length }: Buffer): void {
    this.secure.takeBack(gpa, length);
  }

  /** Whether the device reads what the guest has there, and writes to its end. */
  uses(buffer: Buffer): boolean {
    const { length, text } = buffer;
    const read = this.scene.fetch(this.address(buffer), text.length) === text;
    const wrote = this.scene.store(this.address(buffer, length - 4), "done") === "done";
    const seen = this.bytes(buffer.gpa + length - 4, 4) === "done";
    this.counts.shared += 2;
    this.counts.failed += (read ? 0 : 1) + (wrote && seen ? 0 : 1);
    return read && wrote && seen;
  }

  /** Whether the device neither reads nor changes it. */
  isKeptFrom(buffer: Buffer): boolean {
    const read = this.scene.fetch(this.address(buffer), buffer.text.length);
    this.scene.store(this.address(buffer), "stray");
    const kept = this.bytes(buffer.gpa, buffer.text.length) === buffer.text;
    this.counts.private += 2;
    this.counts.stopped += (read === "fault" ? 1 : 0) + (kept ? 1 : 0);
    return read === "fault" && kept;
  }

  /** What there is of pins and tables now is what the life costs. */
  weigh(): void {
    const { vmm, stage } = this.scene;
    const live = stage.machine.live();
    this.#pins = live["pinnedPages"]!;
    this.#tableBytes = tableBytes(stage, vmm);
  }

  get cost(): Cost {
    const names = this.scene.stage.calls.slice(this.#firstCall).map(({ name }) => name);
    const calls = names.filter((name) => name === "IOMMU_IOAS_MAP" || name === "IOMMU_IOAS_UNMAP").length;
    return { pins: this.#pins, tableBytes: this.#tableBytes, calls, ...this.counts };
  }

  bytes(gpa: number, length: number): string {
    const bytes = new Uint8Array(length);
    this.scene.vmm.memory.readBytes(gpa, bytes);
    return Buffer.from(bytes).toString();
  }

  end(): void {
    this.scene.vmm.exit();
  }

  #buffer(pages: number, text: string): Buffer {
    const { memory } = this.scene.vmm;
    const gpa = memory.allocate(pages);
    memory.writeBytes(gpa, Buffer.from(text));
    return { gpa, length: pages * PAGE, text };
  }
}

/** Of page tables of the host, with this VMM alone on it: what is allocated and not the VMM's own memory. */
export const tableBytes = ({ machine }: Stage, { task }: Pick<VmmProcess, "task">): number =>
  (machine.live()["tableFrames"]! - task.memory.mappedPages) * PAGE;
