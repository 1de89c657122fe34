/** Recorded programs on /dev/iommu with mock devices: what Linux 7.2 answered, call by call. */
import { afterAll, describe, expect, it } from "vitest";
import { ModelHost } from "../../../test/support/model-host.ts";
import { loadPrograms, replay } from "../../../test/support/replay.ts";
import { silent } from "../../base/events.ts";
import { MockDriver } from "../../drivers/mock/driver.ts";
import { IommufdSubsystem } from "../../iommufd/file.ts";
import { Capability } from "../../kernel/call.ts";
import { ModelTask } from "../../kernel/model-task.ts";
import { testCommand } from "./test-command.ts";

const NOTHING = { files: 0, objects: 0, areas: 0, pinnedPages: 0 };

const FILES = [
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

for (const file of FILES)
  describe(`Linux 7.2's answers: ${file}`, () => {
    const host = new ModelHost();
    const driver = new MockDriver(host.memory);
    const iommufd = new IommufdSubsystem({
      ...host,
      scheduler: host.scheduler,
      memory: host.memory,
      extra: [testCommand(driver, silent)],
    });
    const ram = host.memory.allocated;
    afterAll(() => host.memory.close());

    for (const program of loadPrograms(file))
      it(program.name, () => {
        const difference = replay(program, {
          memory: host.memory,
          node: (path) => (path === iommufd.node.path ? iommufd.node : undefined),
          places: {},
          drain: () => host.scheduler.run(),
          task: (memory) => new ModelTask(memory, { uid: 0, capabilities: Object.values(Capability) }),
        });
        expect(difference).toBeUndefined();
        expect(iommufd.live()).toEqual(NOTHING);
        expect([driver.domains, driver.viommus, driver.devices]).toEqual([0, 0, 0]);
        expect(host.memory.allocated).toBe(ram);
      });
  });
