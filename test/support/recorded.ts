/** Tests of recorded programs: each file of them on a host of its own, each program one test that leaves nothing. */
import { afterAll, describe, expect, it } from "vitest";
import type { DeviceNode } from "../../src/kernel/call.ts";
import { ModelHost } from "./model-host.ts";
import { loadPrograms, type ReplayHost, replay } from "./replay.ts";

/** What the programs of a file run on. */
export interface RecordedOn {
  node(path: string): DeviceNode | undefined;
  /** Counts of what is alive: all 0 when nothing is. */
  live(): { readonly [what: string]: number };
  readonly places?: ReplayHost["places"];
  readonly task?: ReplayHost["task"];
}

/** `build` adds to the host what the programs of a file use. */
export const testRecorded = (files: readonly string[], build: (host: ModelHost) => RecordedOn): void => {
  for (const file of files)
    describe(`Linux 7.2's answers: ${file}`, () => {
      const host = new ModelHost();
      const on = build(host);
      const ram = host.memory.allocated;
      afterAll(() => host.memory.close());

      for (const program of loadPrograms(file))
        it(program.name, () => {
          const difference = replay(program, {
            memory: host.memory,
            node: (path) => on.node(path),
            places: on.places ?? {},
            drain: () => host.scheduler.run(),
            ...(on.task && { task: on.task }),
          });
          expect(difference).toBeUndefined();
          expect(Object.entries(on.live()).filter(([, count]) => count !== 0)).toEqual([]);
          expect(host.memory.allocated).toBe(ram);
        });
    });
};
