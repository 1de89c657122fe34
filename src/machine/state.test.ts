import { describe, expect, it } from "vitest";
import { VfioClient } from "../../test/support/vfio-client.ts";
import { ManualClock } from "../base/clock.ts";
import { silent } from "../base/events.ts";
import { WorkQueue } from "../base/scheduler.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { parseMachine } from "./file.ts";
import { Machine } from "./machine.ts";
import { PRESETS } from "./presets.ts";
import { restoreState, StateFileError, saveState } from "./state.ts";

const DEVICE = "0000:01:00.0";
const VA = 0x10_0000;

const withMapping = (work: (machine: Machine) => void, preset = "vtd"): void => {
  const machine = new Machine(parseMachine(PRESETS.get(preset)!, preset), {
    events: silent,
    clock: new ManualClock(),
    scheduler: new WorkQueue(),
  });
  const task = new ModelTask(machine.memory);
  task.memory.map(VA, 0x4000);
  const client = new VfioClient(task, machine.vfio);
  const { container } = client.attach(machine.core.devices.get(DEVICE)!.group.id);
  client.map(container, { vaddr: VA, iova: 0x40_0000, size: 0x4000 });
  try {
    work(machine);
  } finally {
    task.exit();
    machine.close();
  }
};

const steps = (machine: Machine, iova: bigint) => [...machine.explain(DEVICE, iova, true)!];
const restoredFrom = (text: string, work: (machine: Machine) => void): void => {
  const restored = restoreState(text);
  work(restored);
  restored.close();
};

describe("a saved state", () => {
  it.each(["vtd", "smmuv3", "amd", "s390", "power"])(
    "explains mapped and unmapped addresses as the machine %s it was taken of, entry by entry",
    (preset) =>
      withMapping(
        (machine) =>
          restoredFrom(JSON.stringify(saveState(machine)), (restored) => {
            for (const iova of [0x40_0000n, 0x40_3fffn, 0x40_4000n, 0n, 2n ** 48n])
              expect(steps(restored, iova)).toEqual(steps(machine, iova));
            expect(steps(restored, 0x40_0000n).at(-1)?.outcome?.ok).toBe(true);
            expect(steps(restored, 0x40_4000n).at(-1)?.outcome?.ok).toBe(false);
          }),
        preset,
      ),
  );

  it("keeps that translation is off", () =>
    withMapping((machine) => {
      const state = JSON.stringify({ ...saveState(machine), registers: { dmar0: { GSTS: "0x0" } } });
      restoredFrom(state, (restored) => expect(steps(restored, 0x123n).at(-1)?.outcome?.ok).toBe(true));
    }));

  it("leaves the files of disks alone", () =>
    withMapping((machine) => {
      const state = saveState(machine);
      const devices = state.machine.devices.map((device) =>
        device.model === "nvme"
          ? {
              ...device,
              file: "/nonexistent/disk.img",
              "more-namespaces": [{ file: "/nonexistent/other.img", "block-size": 512 as const }],
            }
          : device,
      );
      restoredFrom(JSON.stringify({ ...state, machine: { ...state.machine, devices } }), (restored) =>
        expect(steps(restored, 0x40_0000n).at(-1)?.outcome?.ok).toBe(true),
      );
    }));

  it("that is none is refused with the place that is wrong", () =>
    withMapping((machine) => {
      const state = saveState(machine);
      const frame = Object.values(state.frames)[0]!;
      for (const [text, message] of [
        ["{", /no saved state/],
        ["[]", /no saved state/],
        [JSON.stringify({ ...state, version: 2 }), /version/],
        [JSON.stringify({ ...state, frames: { "0x1001": frame } }), /frame 0x1001: not a frame/],
        [
          JSON.stringify({ ...state, frames: { "0xfffffffffffff000": frame } }),
          /not a frame of this machine/,
        ],
        [JSON.stringify({ ...state, frames: { "0x1000": "????" } }), /frame 0x1000/],
        [JSON.stringify({ ...state, frames: { "0x1000": "" } }), /frame 0x1000/],
      ] as const) {
        expect(() => restoreState(text)).toThrow(StateFileError);
        expect(() => restoreState(text)).toThrow(message);
      }
    }));
});
