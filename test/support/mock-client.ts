/** A host with one process that has a /dev/iommu file, and mock devices plugged without the test command. */
import { expect } from "vitest";
import { silent } from "../../src/base/events.ts";
import { MockBus, MockDeviceObject } from "../../src/machine/mock/mock-device.ts";
import { MOCK_APERTURE_START } from "../../src/uapi/iommufd-mock.ts";
import { MockProcess, MockRig } from "./mock-rig.ts";

export { USER, USER_PAGES } from "./mock-rig.ts";

/** Where a domain of the mock IOMMU begins. */
export const APERTURE = BigInt(MOCK_APERTURE_START);

export class MockClient extends MockProcess {
  readonly host = this.rig.host;
  readonly driver = this.rig.driver;
  readonly iommufd = this.rig.iommufd;
  readonly #bus = new MockBus(this.driver, silent);

  constructor() {
    super(new MockRig());
  }

  /** A new mock device, bound and attached to nothing. */
  plug(): MockDeviceObject {
    const device = this.#bus.plug({ noDirty: false, hasPasids: false });
    const object = this.context.add(new MockDeviceObject(this.#bus, device));
    object.bind(this.context);
    return object;
  }

  /** The process dies; nothing may be left. */
  close(): void {
    this.exit();
    this.host.scheduler.run();
    expect(Object.entries(this.rig.live()).filter(([, count]) => count !== 0)).toEqual([]);
    this.rig.close();
  }
}
