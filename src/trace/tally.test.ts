import { expect, it } from "vitest";
import { Tally } from "./tally.ts";

it("a run is summed up in calls, accesses and interrupts", () => {
  const tally = new Tally();
  tally.count({ at: 0, kind: "call", fields: { call: "ioctl", value: 0 } });
  tally.count({ at: 1, kind: "call", fields: { call: "ioctl", error: "EINVAL" } });
  tally.count({ at: 2, kind: "dma", fields: { bytes: 1536 } });
  tally.count({ at: 3, kind: "fault", fields: {} });
  tally.count({ at: 4, kind: "interrupt", fields: { device: "0000:01:00.0", vector: 1 } });
  tally.count({ at: 5, kind: "interrupt", fields: { unit: "dmar0", address: 0 } });
  tally.count({ at: 6, kind: "map", fields: {} });
  expect(String(tally)).toBe("2 calls, 1 failed; 1 DMA access (1.5 KiB), 1 refused; 1 interrupt");
});
