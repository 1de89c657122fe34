/**
 * A virtual SMMUv3: a VMID of the host's unit that a guest has, its functions by the guest's StreamIDs, the guest's
 * commands with what is the host's put in (IHI 0070, §4), and the events that are the guest's to know of.
 */
import {
  AtcCommand,
  EventCode,
  EventRecord,
  Opcode,
  StreamCommand,
  TlbiCommand,
} from "../../hardware/smmuv3/queue-spec.ts";
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
  IOMMU_VEVENTQ_TYPE_ARM_SMMUV3,
  IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
  IommuVeventArmSmmuv3,
  IommuViommuArmSmmuv3Invalidate,
} from "../../uapi/vendor/smmuv3.ts";
import { carryOut, GuestDevices, replaced } from "../guest-commands.ts";
import type { SmmuDomain } from "./domain.ts";
import type { Invalidations } from "./invalidations.ts";
import { type Guest, SmmuNestedDomain } from "./nested-domain.ts";

/** What a vIOMMU asks of the driver that made it. */
export interface ViommuHost {
  readonly invalidations: Invalidations;
  /** The unit takes ATC_INV. */
  readonly ats: boolean;
  forget(viommu: SmmuViommu): void;
}

/** Events that tell of the guest's own tables; what concerns memory of the host is the host's business. */
const GUEST_EVENTS: ReadonlySet<number> = new Set([
  EventCode.C_BAD_STE,
  EventCode.F_STREAM_DISABLED,
  EventCode.C_BAD_SUBSTREAMID,
  EventCode.C_BAD_CD,
  EventCode.F_TRANSLATION,
  EventCode.F_ADDR_SIZE,
  EventCode.F_ACCESS,
  EventCode.F_PERMISSION,
]);
const WORD = 0xffff_ffff_ffff_ffffn;

export class SmmuViommu implements VirtualIommu, Guest {
  readonly parent: SmmuDomain;
  readonly eventTypes = [IOMMU_VEVENTQ_TYPE_ARM_SMMUV3];
  onEvent: ((type: number, data: Uint8Array) => boolean) | undefined;
  onEventsLost: ((type: number) => void) | undefined;
  readonly #host: ViommuHost;
  /** By the guest's StreamIDs. */
  readonly #devices = new GuestDevices();
  readonly #words = new Uint32Array(4);

  constructor(parent: SmmuDomain, host: ViommuHost) {
    this.parent = parent;
    this.#host = host;
    parent.users += 1;
  }

  virtualIdOf(device: Requester): bigint | undefined {
    return this.#devices.idOf(device);
  }

  allocateNested(_device: Requester, data: UserData, options: NestedOptions): SmmuNestedDomain {
    if (options.pasid)
      throw new LinuxError(
        "EOPNOTSUPP",
        "PASIDs are in the guest's own table of context descriptors: IOMMU_HWPT_ALLOC_PASID does not go with it",
        `vIOMMU above ${this.parent.name}`,
      );
    allocate("a nested domain of the unit");
    return new SmmuNestedDomain(this, data);
  }

  addDevice(device: Requester, virtualId: bigint): void {
    allocate("a guest's number of a function");
    this.#devices.add(device, virtualId);
  }
  removeDevice(_device: Requester, virtualId: bigint): void {
    this.#devices.remove(virtualId);
  }

  /** The guest's commands, as they are in its queue. */
  invalidate(requests: UserArray): InvalidationOutcome {
    const { invalidations } = this.#host;
    return carryOut(requests, {
      type: IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
      name: "ARM_SMMUV3",
      layout: IommuViommuArmSmmuv3Invalidate,
      push: (command) => {
        StreamCommand.toWords(this.#hostCommand(command), this.#words);
        invalidations.push(this.#words);
      },
      sync: () => invalidations.sync(),
    });
  }

  report(virtualId: bigint, record: Uint32Array): boolean {
    if (!GUEST_EVENTS.has(EventRecord.fields.TYPE.get(record))) return false;
    const event = Uint32Array.from(record);
    EventRecord.fields.SID.set(event, Number(virtualId & 0xffff_ffffn));
    const value = EventRecord.fromWords(event);
    const evt = [0n, 64n, 128n, 192n].map((at) => (value >> at) & WORD);
    return this.onEvent?.(IOMMU_VEVENTQ_TYPE_ARM_SMMUV3, IommuVeventArmSmmuv3.bytes({ evt })) ?? false;
  }

  lose(): void {
    this.onEventsLost?.(IOMMU_VEVENTQ_TYPE_ARM_SMMUV3);
  }

  free(): void {
    this.onEvent = undefined;
    this.onEventsLost = undefined;
    this.parent.users -= 1;
    this.#host.forget(this);
  }

  /** The command with the host's numbers. Throws EIO for one that is not a guest's to give. */
  #hostCommand(command: bigint): bigint {
    const opcode = Number(StreamCommand.fields.OPCODE.of(command));
    const { vmid } = this.parent.tag;
    if (StreamCommand.fields.SSEC.of(command) !== 0n) throw refused(opcode, "it is for the secure state");
    switch (opcode) {
      case Opcode.TLBI_NSNH_ALL:
        return TlbiCommand.make({ OPCODE: Opcode.TLBI_NH_ALL, VMID: vmid });
      case Opcode.TLBI_NH_ALL:
      case Opcode.TLBI_NH_ASID:
      case Opcode.TLBI_NH_VA:
      case Opcode.TLBI_NH_VAA:
        return replaced(command, TlbiCommand.fields.VMID, vmid);
      case Opcode.ATC_INV:
        if (!this.#host.ats) throw refused(opcode, "the unit has no ATS");
        return replaced(command, AtcCommand.fields.SID, this.#hostStream(command));
      case Opcode.CFGI_CD:
      case Opcode.CFGI_CD_ALL:
        return replaced(command, StreamCommand.fields.SID, this.#hostStream(command));
      default:
        throw refused(
          opcode,
          "a guest's TLBI_NSNH_ALL, TLBI_NH_*, ATC_INV, CFGI_CD and CFGI_CD_ALL are taken",
        );
    }
  }

  #hostStream(command: bigint): number {
    const virtualId = StreamCommand.fields.SID.of(command);
    const device = this.#devices.find(virtualId);
    if (device) return device.rid;
    throw new LinuxError("EIO", `the guest has no function with StreamID 0x${virtualId.toString(16)} here`);
  }
}

const refused = (opcode: number, why: string): LinuxError =>
  new LinuxError("EIO", `command 0x${opcode.toString(16).padStart(2, "0")} is not carried out: ${why}`);
