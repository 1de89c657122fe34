/**
 * A virtual IOMMU of AMD's: a nest parent that a guest has. As in Linux 7.2 nothing can be made on it. With the extension
 * `amd-nesting` it also has the guest's domain ids, each with one of the host's, its functions by the guest's device ids, and
 * takes the guest's commands with what is the host's put in (48882, revision 3.07, §2.4).
 */
import type { Capabilities } from "../../hardware/amdvi/capabilities.ts";
import { Command, InvalidateIotlb, InvalidatePages, Opcode } from "../../hardware/amdvi/queue-spec.ts";
import type {
  InvalidationOutcome,
  NestedOptions,
  Requester,
  UserArray,
  UserData,
  VirtualIommu,
} from "../../iommu/driver.ts";
import { allocate } from "../../kernel/allocations.ts";
import { LinuxError } from "../../uapi/errno.ts";
import {
  SOFTIOMMU_VIOMMU_INVALIDATE_DATA_AMD,
  SoftiommuViommuAmdInvalidate,
} from "../../uapi/vendor/extensions.ts";
import { carryOut, GuestDevices, replaced } from "../guest-commands.ts";
import { EVERYTHING } from "../range.ts";
import type { AmdDomain } from "./domain.ts";
import type { Invalidations } from "./invalidations.ts";
import { AmdNestedDomain, type Guest } from "./nested-domain.ts";

/** What a vIOMMU asks of the driver that made it. */
export interface ViommuHost {
  readonly unit: Capabilities;
  readonly invalidations: Invalidations;
  /** A domain id of the host. Throws ENOSPC. */
  takeId(): number;
  giveId(id: number): void;
  /** The function may keep translations of its own. */
  keepsTranslations(device: Requester): boolean;
  /** Takes what the unit has reported: a function may not have answered. */
  serve(): void;
  forget(viommu: AmdViommu): void;
}

export class AmdViommu implements VirtualIommu {
  readonly parent: AmdDomain;
  protected readonly host: ViommuHost;

  constructor(parent: AmdDomain, host: ViommuHost) {
    this.parent = parent;
    this.host = host;
    parent.users += 1;
  }

  /** Domain ids of the host that guests' tables above the parent have. */
  get domainIds(): Iterable<number> {
    return [];
  }

  free(): void {
    this.parent.users -= 1;
    this.host.forget(this);
  }
}

/** A domain id of the guest's. */
interface Held {
  readonly hostId: number;
  /** Nested domains that have it. */
  count: number;
}

export class AmdNestingViommu extends AmdViommu implements Guest {
  readonly #held = new Map<number, Held>();
  readonly #devices = new GuestDevices();
  readonly #words = new Uint32Array(Command.words);

  get unit(): Capabilities {
    return this.host.unit;
  }

  override get domainIds(): number[] {
    return [...this.#held.values()].map(({ hostId }) => hostId);
  }

  allocateNested(_device: Requester, data: UserData, options: NestedOptions): AmdNestedDomain {
    if (options.pasid)
      throw new LinuxError(
        "EOPNOTSUPP",
        "PASIDs are in the guest's own GCR3 table: IOMMU_HWPT_ALLOC_PASID does not go with it",
        `vIOMMU above ${this.parent.name}`,
      );
    allocate("a nested domain of the unit");
    return new AmdNestedDomain(this, data, options.faults ?? false);
  }

  hold(guestId: number): number {
    const held = this.#held.get(guestId) ?? { hostId: this.host.takeId(), count: 0 };
    held.count += 1;
    this.#held.set(guestId, held);
    return held.hostId;
  }

  /** The last one: what is remembered under the host's id goes. */
  release(guestId: number): void {
    const held = this.#held.get(guestId)!;
    held.count -= 1;
    if (held.count > 0) return;
    this.#held.delete(guestId);
    this.host.invalidations.pages(held.hostId, EVERYTHING);
    this.host.giveId(held.hostId);
  }

  addDevice(device: Requester, virtualId: bigint): void {
    allocate("a guest's number of a function");
    this.#devices.add(device, virtualId);
  }
  removeDevice(_device: Requester, virtualId: bigint): void {
    this.#devices.remove(virtualId);
  }

  /** The guest's commands, as they are in its command buffer. */
  invalidate(requests: UserArray): InvalidationOutcome {
    const { invalidations } = this.host;
    this.host.serve(); // the log has room for what functions do not answer
    return carryOut(requests, {
      type: SOFTIOMMU_VIOMMU_INVALIDATE_DATA_AMD,
      name: "AMD",
      layout: SoftiommuViommuAmdInvalidate,
      push: (command) => {
        const own = this.#hostCommand(command);
        if (own === undefined) return;
        Command.toWords(own, this.#words);
        invalidations.push(this.#words);
      },
      sync: () => {
        invalidations.sync();
        this.host.serve();
      },
    });
  }

  /**
   * The command with the host's numbers; undefined: nothing is remembered of what it is about. Throws EINVAL for one that is
   * not a guest's to give.
   */
  #hostCommand(command: bigint): bigint | undefined {
    const opcode = Number(Command.fields.OPCODE.of(command));
    switch (opcode) {
      case Opcode.INVALIDATE_IOMMU_PAGES: {
        const { DOMAIN, GN } = InvalidatePages.fields;
        requireReserved(command, InvalidatePages.reserved, opcode);
        if (GN.of(command) === 0n) throw refused(opcode, "GN = 0: the guest has no host tables");
        const held = this.#held.get(Number(DOMAIN.of(command)));
        return held && replaced(command, DOMAIN, held.hostId);
      }
      case Opcode.INVALIDATE_IOTLB_PAGES: {
        requireReserved(command, InvalidateIotlb.reserved, opcode);
        const device = this.#deviceOf(command, opcode);
        if (!this.host.keepsTranslations(device)) return undefined;
        return replaced(command, InvalidateIotlb.fields.DEVICE, device.rid);
      }
      default:
        throw refused(opcode, "INVALIDATE_IOMMU_PAGES (3) with GN and INVALIDATE_IOTLB_PAGES (4) are taken");
    }
  }

  #deviceOf(command: bigint, opcode: number): Requester {
    const virtualId = InvalidateIotlb.fields.DEVICE.of(command);
    const device = this.#devices.find(virtualId);
    if (device) return device;
    throw refused(opcode, `the guest has no device 0x${virtualId.toString(16)} here`);
  }
}

const refused = (opcode: number, why: string): LinuxError =>
  new LinuxError("EINVAL", `command 0x${opcode.toString(16)} is not carried out: ${why}`);

const requireReserved = (command: bigint, reserved: bigint, opcode: number): void => {
  if ((command & reserved) !== 0n)
    throw refused(opcode, `reserved bits are set (0x${(command & reserved).toString(16)})`);
};
