/** Recorded programs on /dev/iommu: what Linux 7.2 answered, call by call. */
import { afterAll, describe, expect, it } from "vitest";
import { ModelHost } from "../../test/support/model-host.ts";
import { loadPrograms, replay } from "../../test/support/replay.ts";
import { Capability } from "../kernel/call.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { IommufdSubsystem } from "./file.ts";

const NOTHING = { files: 0, objects: 0, areas: 0, pinnedPages: 0 };

for (const file of ["ioas", "ioas_long"])
  describe(`Linux 7.2's answers: ${file}`, () => {
    const host = new ModelHost();
    const iommufd = new IommufdSubsystem(host);
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
        expect(host.memory.allocated).toBe(ram);
      });
  });
