/**
 * The driver of the mock IOMMU that iommufd's own tests use (Linux built with its iommufd test option): every feature of
 * the contract and no silicon. It is an ordinary driver; who triggers faults and events asks it directly.
 */
import { Ids } from "../../base/ids.ts";
import type {
  DeviceCapabilities,
  Domain,
  FixedDomain,
  HardwareInfo,
  IommuDriver,
  NestedOptions,
  PageRequest,
  PageResponse,
  PagingDomain,
  PagingOptions,
  Requester,
  ReservedRegion,
  UserData,
} from "../../iommu/driver.ts";
import { allocate } from "../../kernel/allocations.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { LinuxError } from "../../uapi/errno.ts";
import {
  IOMMU_HW_INFO_SELFTEST_REGVAL,
  IOMMU_HW_INFO_TYPE_SELFTEST,
  IOMMU_HWPT_DATA_SELFTEST,
  IOMMU_TEST_PASID_RESERVED,
  IOMMU_VIOMMU_TYPE_SELFTEST,
  IommuHwptSelftest,
  IommuTestHwInfo,
  MOCK_IOMMUPT_DEFAULT,
  MOCK_IOMMUPT_HUGE,
  MOCK_PASID_WIDTH,
} from "../../uapi/vendor/mock.ts";
import { MockDevice } from "./device.ts";
import { MockDomain, MockNestedDomain } from "./domain.ts";
import { MockViommu } from "./viommu.ts";

/** What a device has: one domain without PASID (key -1) and one for each PASID. */
interface Attachments {
  readonly domains: Map<number, Domain>;
  /** The next attaching of the reserved PASID fails. */
  armed: boolean;
  /** Which guest has it, and by which number that knew it when it was attached. */
  guest: { readonly viommu: MockViommu; readonly virtualId: bigint } | undefined;
}

const NO_PASID = -1;

export class MockDriver implements IommuDriver {
  readonly name: string;
  readonly identity: FixedDomain = { kind: "identity", name: "identity" };
  readonly blocked: FixedDomain = { kind: "blocked", name: "blocked" };
  onPageRequest: ((device: Requester, request: PageRequest) => void) | undefined;
  /** Answers to page requests, as they came. */
  onPageResponse: ((device: Requester, response: PageResponse) => void) | undefined;
  readonly #memory: HostMemory;
  readonly #ids = new Ids(1);
  readonly #domains = new Set<MockDomain>();
  readonly #viommus = new Set<MockViommu>();
  readonly #nestedOf = new WeakMap<MockNestedDomain, MockViommu>();
  readonly #devices = new Map<Requester, Attachments>();

  constructor(memory: HostMemory, name = "mock0") {
    this.#memory = memory;
    this.name = name;
  }

  /** Domains that were allocated and not freed. */
  get domains(): number {
    return this.#domains.size;
  }
  get viommus(): number {
    return this.#viommus.size;
  }
  get devices(): number {
    return this.#devices.size;
  }

  probe(device: Requester): DeviceCapabilities {
    const mock = this.#mock(device);
    allocate("a device of the mock IOMMU");
    this.#devices.set(mock, { domains: new Map(), armed: false, guest: undefined });
    return {
      cacheCoherent: false,
      dirtyTracking: !mock.noDirty,
      pasidBits: mock.hasPasids ? MOCK_PASID_WIDTH : 0,
      nesting: true,
    };
  }

  release(device: Requester): void {
    const attachments = this.#devices.get(device);
    for (const pasid of [...(attachments?.domains.keys() ?? [])])
      this.attach(device, this.blocked, pasid === NO_PASID ? undefined : pasid);
    this.#devices.delete(device);
  }

  reserved(): readonly ReservedRegion[] {
    return [];
  }

  hardwareInfo(_device: Requester, type: number): HardwareInfo | undefined {
    if (type !== 0 && type !== IOMMU_HW_INFO_TYPE_SELFTEST) return undefined;
    return {
      type: IOMMU_HW_INFO_TYPE_SELFTEST,
      bytes: IommuTestHwInfo.bytes({ test_reg: IOMMU_HW_INFO_SELFTEST_REGVAL }),
    };
  }

  allocatePaging(device: Requester, options: PagingOptions = {}): MockDomain {
    const { noDirty } = this.#mock(device);
    const { nestParent = false, dirtyTracking = false, data } = options;
    let format = MOCK_IOMMUPT_DEFAULT;
    if (data) {
      if (data.type !== IOMMU_HWPT_DATA_SELFTEST)
        throw new LinuxError(
          "EOPNOTSUPP",
          `data of type 0x${data.type.toString(16)} is unknown here`,
          this.name,
        );
      format = IommuHwptSelftest.read(
        data.read(IommuHwptSelftest.size, IommuHwptSelftest.fieldEnd("iotlb")),
      ).pagetable_type;
    }
    if (format !== MOCK_IOMMUPT_DEFAULT && format !== MOCK_IOMMUPT_HUGE)
      throw new LinuxError("EOPNOTSUPP", `there is no table format ${format}`, this.name);
    if (dirtyTracking && noDirty)
      throw new LinuxError("EOPNOTSUPP", "the device cannot track dirty pages", device.name);
    allocate("a mock domain");
    const id = this.#ids.take();
    try {
      const domain = new MockDomain(
        id,
        this.#memory,
        { huge: format === MOCK_IOMMUPT_HUGE, nestParent, dirtyTracking },
        (gone) => {
          this.#domains.delete(gone);
          this.#ids.give(gone.id);
        },
      );
      this.#domains.add(domain);
      return domain;
    } catch (error) {
      this.#ids.give(id);
      throw error;
    }
  }

  allocateNested(
    _device: Requester,
    parent: PagingDomain,
    data: UserData,
    options: NestedOptions,
  ): MockNestedDomain {
    return this.#nested(this.#parent(parent), data, options);
  }

  hasViommu(_device: Requester, type: number): boolean {
    return type === IOMMU_VIOMMU_TYPE_SELFTEST;
  }

  allocateViommu(
    _device: Requester,
    parent: PagingDomain,
    data: UserData,
    share: (pa: number, length: number) => bigint,
  ): MockViommu {
    const viommu = new MockViommu(this.#parent(parent), data, {
      memory: this.#memory,
      share,
      device: (requester) => this.#mock(requester),
      nested: (above, given, options, owner) => {
        const made = this.#nested(above, given, options);
        this.#nestedOf.set(made, owner);
        return made;
      },
      forget: (gone) => this.#viommus.delete(gone),
    });
    this.#viommus.add(viommu);
    return viommu;
  }

  attach(device: Requester, domain: Domain, pasid: number = NO_PASID): void {
    const mock = this.#mock(device);
    const attachments = this.#devices.get(mock);
    if (!attachments) throw new LinuxError("ENODEV", "the device was not probed", device.name);
    const before = attachments.domains.get(pasid);
    if (domain.kind === "blocked") {
      if (pasid === IOMMU_TEST_PASID_RESERVED) attachments.armed = false;
      attachments.domains.delete(pasid);
    } else {
      this.#check(mock, domain);
      if (pasid === IOMMU_TEST_PASID_RESERVED) this.#tryReserved(attachments, device);
      attachments.domains.set(pasid, domain);
      count(domain, 1);
    }
    if (before) count(before, -1);
    if (pasid === NO_PASID) attachments.guest = this.#guestOf(mock, domain);
  }

  /** What the device, or its PASID, has now. */
  attached(device: Requester, pasid: number = NO_PASID): Domain {
    return this.#devices.get(device)?.domains.get(pasid) ?? this.blocked;
  }

  /** The device asks for a page. */
  requestPage(device: Requester, request: PageRequest): void {
    this.onPageRequest?.(device, request);
  }

  /** The device has something to tell its guest. Throws ENOENT (no guest has it), EOPNOTSUPP (nobody listens). */
  reportEvent(device: MockDevice): void {
    const guest = this.#devices.get(device)?.guest;
    if (guest) {
      guest.viommu.report(guest.virtualId);
      return;
    }
    throw new LinuxError(
      "ENOENT",
      "no guest has the device: it is not attached to a nested domain of a vIOMMU",
      device.name,
    );
  }

  respond(device: Requester, response: PageResponse): void {
    this.onPageResponse?.(device, response);
  }

  close(): void {}

  #guestOf(device: MockDevice, domain: Domain): Attachments["guest"] {
    const viommu = domain instanceof MockNestedDomain ? this.#nestedOf.get(domain) : undefined;
    const virtualId = viommu?.virtualIdOf(device);
    return viommu && virtualId !== undefined ? { viommu, virtualId } : undefined;
  }

  #mock(device: Requester): MockDevice {
    if (!(device instanceof MockDevice))
      throw new LinuxError("ENODEV", "a mock IOMMU serves mock devices only", device.name);
    return device;
  }

  #parent(parent: PagingDomain): MockDomain {
    if (!(parent instanceof MockDomain) || !this.#domains.has(parent) || !parent.nestParent)
      throw new LinuxError("EINVAL", `${parent.name} is not a nest parent of ${this.name}`, this.name);
    return parent;
  }

  #nested(parent: MockDomain, data: UserData, _options: NestedOptions): MockNestedDomain {
    if (data.type !== IOMMU_HWPT_DATA_SELFTEST)
      throw new LinuxError(
        "EOPNOTSUPP",
        `data of type 0x${data.type.toString(16)} is unknown here`,
        this.name,
      );
    const { size } = IommuHwptSelftest;
    allocate("a nested mock domain");
    const { iotlb } = IommuHwptSelftest.read(data.read(size, IommuHwptSelftest.fieldEnd("iotlb")));
    return new MockNestedDomain(parent, iotlb);
  }

  #check(device: MockDevice, domain: Domain): void {
    if (domain.kind === "identity") return;
    if (domain instanceof MockNestedDomain) {
      const viommu = this.#nestedOf.get(domain);
      if (viommu && viommu.virtualIdOf(device) === undefined)
        throw new LinuxError("ENOENT", "the guest does not know the device: it has no vDEVICE", device.name);
      return;
    }
    if (!(domain instanceof MockDomain) || !this.#domains.has(domain))
      throw new LinuxError("EINVAL", `${domain.name} is not a domain of ${this.name}`, device.name);
    if (domain.dirty && device.noDirty)
      throw new LinuxError(
        "EINVAL",
        `${domain.name} tracks dirty pages, which the device cannot`,
        device.name,
      );
  }

  /** The reserved PASID fails every second time, so that recovery can be tested. */
  #tryReserved(attachments: Attachments, device: Requester): void {
    attachments.armed = !attachments.armed;
    if (!attachments.armed)
      throw new LinuxError("ENOMEM", `PASID ${IOMMU_TEST_PASID_RESERVED} fails on purpose`, device.name);
  }
}

const count = (domain: Domain, more: number): void => {
  if (domain instanceof MockDomain || domain instanceof MockNestedDomain) domain.users += more;
};
