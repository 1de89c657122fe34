import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ManualClock } from "../base/clock.ts";
import { Fan } from "./fan.ts";
import { TraceFile } from "./file.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "softiommu-trace-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

/** What is in the file after these events. */
const written = (name: string, emit: (fan: Fan, clock: ManualClock) => void): string => {
  const path = join(folder, name);
  const clock = new ManualClock();
  const fan = new Fan(clock);
  const file = new TraceFile(path);
  fan.listen((event) => file.write(event));
  emit(fan, clock);
  file.close();
  return readFileSync(path, "utf8");
};

const some = (fan: Fan, clock: ManualClock): void => {
  fan.emit("call", {
    pid: 5,
    tid: 6,
    call: "ioctl",
    details: "VFIO_GET_API_VERSION",
    value: 0,
    error: undefined,
  });
  clock.advance(1500);
  fan.emit("fault", {
    unit: "dmar0",
    address: 0xffff_ffff_ffff_f000n,
    entryAddress: 4096,
    pasid: -1,
    level: 2,
  });
};

describe("a trace in JSON Lines", () => {
  it("has one event a line with its time in nanoseconds; addresses are hexadecimal", () => {
    const lines = written("t.jsonl", some).trimEnd().split("\n");
    expect(lines.map((line) => JSON.parse(line) as unknown)).toEqual([
      { at: 0, kind: "call", pid: 5, tid: 6, call: "ioctl", details: "VFIO_GET_API_VERSION", value: "0x0" },
      {
        at: 1500,
        kind: "fault",
        unit: "dmar0",
        address: "0xfffffffffffff000",
        entryAddress: "0x1000",
        pasid: -1,
        level: 2,
      },
    ]);
  });

  it("is complete after more events than are gathered in memory", () => {
    const text = written("t.jsonl", (fan) => {
      for (let i = 0; i < 5000; i++) fan.emit("dma", { rid: 8, bytes: i });
    });
    const lines = text.trimEnd().split("\n");
    expect(lines).toHaveLength(5000);
    expect(JSON.parse(lines[4999]!)).toMatchObject({ bytes: 4999 });
  });
});

describe("a trace for Perfetto", () => {
  it("is one JSON document of instant events in microseconds on the row of their thread", () => {
    expect(JSON.parse(written("t.json", some))).toEqual({
      displayTimeUnit: "ns",
      traceEvents: [
        {
          name: "ioctl VFIO_GET_API_VERSION",
          cat: "call",
          ph: "i",
          s: "t",
          ts: 0,
          pid: 5,
          tid: 6,
          args: { call: "ioctl", details: "VFIO_GET_API_VERSION", value: "0x0" },
        },
        {
          name: "fault",
          cat: "fault",
          ph: "i",
          s: "t",
          ts: 1.5,
          pid: 0,
          tid: 0,
          args: { unit: "dmar0", address: "0xfffffffffffff000", entryAddress: "0x1000", pasid: -1, level: 2 },
        },
      ],
    });
  });

  it("is a valid document without any event", () => {
    expect(JSON.parse(written("t.json", () => {}))).toMatchObject({ traceEvents: [] });
  });
});

it("a trace that cannot be written any more ends, says why, and throws nothing", () => {
  const file = new TraceFile("/dev/full");
  for (let i = 0; i < 5000; i++) file.write({ at: i, kind: "dma", fields: { rid: 8, bytes: i } });
  file.close();
  expect(file.failure).toContain("ENOSPC");
});

it("nobody listens until somebody does, and no longer than that", () => {
  const fan = new Fan(new ManualClock());
  expect(fan.on).toBe(false);
  const stop = fan.listen(() => {});
  expect(fan.on).toBe(true);
  stop();
  expect(fan.on).toBe(false);
});
