/** A mock device as an object of an iommufd file: plugged, bound and attached in one go, and unplugged when it goes. */
import type { EventSink } from "../../base/events.ts";
import { Ids } from "../../base/ids.ts";
import { MockDevice } from "../../drivers/mock/device.ts";
import type { MockDriver } from "../../drivers/mock/driver.ts";
import { type Device, Group } from "../../iommu/core.ts";
import type { IommufdContext } from "../../iommufd/context.ts";
import { bindDevice, type DeviceObject } from "../../iommufd/device.ts";
import { IommufdObject } from "../../iommufd/objects.ts";

/** The bus of mock devices: every one has a group of its own. */
export class MockBus {
  readonly driver: MockDriver;
  readonly #events: EventSink;
  readonly #numbers = new Ids(0);

  constructor(driver: MockDriver, events: EventSink) {
    this.driver = driver;
    this.#events = events;
  }

  plug(options: { readonly noDirty: boolean; readonly hasPasids: boolean }): Device<MockDevice> {
    const requester = new MockDevice(this.#numbers.take(), options);
    const group = new Group<MockDevice>(requester.rid, this.#events);
    const { driver } = this;
    const capabilities = driver.probe(requester);
    const device = { function: requester, driver, group, capabilities, name: requester.name };
    group.admit(device);
    return device;
  }

  unplug({ function: requester }: Device<MockDevice>): void {
    this.driver.release(requester);
    this.#numbers.give(requester.rid);
  }
}

export class MockDeviceObject extends IommufdObject {
  readonly type = "selftest";
  readonly device: Device<MockDevice>;
  readonly #bus: MockBus;
  #bound: DeviceObject | undefined;

  constructor(bus: MockBus, device: Device<MockDevice>) {
    super();
    this.#bus = bus;
    this.device = device;
  }

  /** Bound to the file. Throws ENOMEM. */
  bind(context: IommufdContext): DeviceObject {
    this.#bound = bindDevice(context, this.device, { keeps: false });
    return this.#bound;
  }

  get bound(): DeviceObject {
    return this.#bound!;
  }

  destroy(): void {
    this.#bound?.unbind();
    this.#bus.unplug(this.device);
  }
}
