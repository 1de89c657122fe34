/** Recorded programs on /dev/iommu, most with mock devices: what Linux 7.2 answered, call by call. */
import { testRecorded } from "../../../test/support/recorded.ts";
import { silent } from "../../base/events.ts";
import { MockDriver } from "../../drivers/mock/driver.ts";
import { IommufdSubsystem } from "../../iommufd/file.ts";
import { Capability } from "../../kernel/call.ts";
import { ModelTask } from "../../kernel/model-task.ts";
import { testCommand } from "./test-command.ts";

const FILES = [
  "ioas",
  "ioas_long",
  "ioas_reserved",
  "hwpt",
  "mixed",
  "access",
  "pasid",
  "dirty",
  "fault",
  "viommu",
  "malformed",
  "vfio_compat",
  "map_file",
];

testRecorded(FILES, ({ memory, scheduler }) => {
  const driver = new MockDriver(memory);
  const iommufd = new IommufdSubsystem({ memory, scheduler, extra: [testCommand(driver, silent)] });
  return {
    node: (path) => (path === iommufd.node.path ? iommufd.node : undefined),
    task: (of) => new ModelTask(of, { uid: 0, capabilities: Object.values(Capability) }),
    live: () => ({
      ...iommufd.live(),
      domains: driver.domains,
      viommus: driver.viommus,
      devices: driver.devices,
    }),
  };
});
