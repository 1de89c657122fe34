import { type DriverBench, describeDriver } from "../../iommu/driver.suite.ts";
import { Banks } from "../../memory/banks.ts";
import { rationed } from "../rig-memory.suite.ts";
import { MockDevice } from "./device.ts";
import { MockDomain } from "./domain.ts";
import { MockDriver } from "./driver.ts";

const DEVICES = [new MockDevice(0), new MockDevice(1)] as const;

const bench = (): DriverBench => {
  const memory = new Banks({ ram: [{ start: 0, length: 2 ** 28 }] });
  const limitFrames = rationed(memory);
  const driver = new MockDriver(memory);
  return {
    driver,
    memory,
    devices: DEVICES,
    access(device, iova, write) {
      const domain = driver.attached(device);
      if (domain.kind === "identity") return iova;
      const pa = domain instanceof MockDomain ? domain.access(iova, write) : -1;
      return pa < 0 ? "fault" : pa;
    },
    limitFrames,
    close() {
      driver.close();
      memory.close();
    },
  };
};

describeDriver("mock", bench);
