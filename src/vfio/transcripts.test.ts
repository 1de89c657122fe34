/** Recorded programs on containers, groups and devices: what Linux 7.2 answered, call by call. */
import { afterAll, describe, expect, it } from "vitest";
import { ModelHost } from "../../test/support/model-host.ts";
import { loadPrograms, replay } from "../../test/support/replay.ts";
import { IommufdSubsystem } from "../iommufd/file.ts";
import { VfioSubsystem } from "./subsystem.ts";

const NONE = { containers: 0, groups: 0, devices: 0, cdevs: 0, mappings: 0, eventfds: 0 };
const NOTHING = { files: 0, objects: 0, areas: 0, pinnedPages: 0 };

for (const file of ["vfio_legacy", "vfio_cdev"])
  describe(`Linux 7.2's answers: ${file}`, () => {
    const host = new ModelHost();
    const vfio = new VfioSubsystem(host);
    const iommufd = new IommufdSubsystem(host);
    const ram = host.memory.allocated;
    afterAll(() => host.memory.close());

    for (const program of loadPrograms(file))
      it(program.name, () => {
        const difference = replay(program, {
          memory: host.memory,
          node: (path) => (path === iommufd.node.path ? iommufd.node : vfio.node(path)),
          places: {
            "%GROUP%": "/dev/vfio/0",
            "%CDEV%": "/dev/vfio/devices/vfio0",
            "%BDF%": host.endpoint.name,
          },
          drain: () => host.scheduler.run(),
        });
        expect(difference).toBeUndefined();
        expect(vfio.live()).toEqual(NONE);
        expect(iommufd.live()).toEqual(NOTHING);
        expect(host.driver.domains.size).toBe(0);
        expect(host.memory.allocated).toBe(ram);
      });
  });
