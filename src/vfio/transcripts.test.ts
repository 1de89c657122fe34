/** Recorded programs on the container, its groups and devices: what Linux 7.2 answered, call by call. */
import { afterAll, describe, expect, it } from "vitest";
import { ModelHost } from "../../test/support/model-host.ts";
import { loadPrograms, replay } from "../../test/support/replay.ts";
import { VfioSubsystem } from "./subsystem.ts";

describe("Linux 7.2's answers on a legacy container", () => {
  const host = new ModelHost();
  const vfio = new VfioSubsystem(host);
  const ram = host.memory.allocated;
  afterAll(() => host.memory.close());

  for (const program of loadPrograms("vfio_legacy"))
    it(program.name, () => {
      const difference = replay(program, {
        memory: host.memory,
        node: (path) => vfio.node(path),
        places: { "%GROUP%": "/dev/vfio/0", "%BDF%": host.endpoint.name },
      });
      expect(difference).toBeUndefined();
      expect(vfio.live()).toEqual({ containers: 0, groups: 0, devices: 0, mappings: 0, eventfds: 0 });
      expect(host.driver.domains.size).toBe(0);
      expect(host.memory.allocated).toBe(ram);
    });
});
