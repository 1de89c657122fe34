import pc from "picocolors";
import { describe, expect, it } from "vitest";
import type { EventFields, EventKind } from "../base/events.ts";
import { explain } from "./explain.ts";

const line = (kind: EventKind, fields: EventFields): string | undefined => explain({ at: 0, kind, fields });

const failed = {
  pid: 7,
  call: "ioctl",
  file: "container 1",
  details: "VFIO_IOMMU_MAP_DMA { vaddr=0x7000, iova=0x1800, size=0x1000 }",
  error: "EINVAL",
  reason: "iova 0x1800 is not a multiple of 0x1000",
};

describe("a line of --explain", () => {
  it("says of a failed call what was asked on which file, the errno and the reason", () => {
    expect(line("call", failed)).toBe(
      "VFIO_IOMMU_MAP_DMA { vaddr=0x7000, iova=0x1800, size=0x1000 } on container 1 → " +
        "EINVAL: iova 0x1800 is not a multiple of 0x1000",
    );
  });

  it("names the object when it is another than the file, and the call when it is no ioctl", () => {
    expect(line("call", { ...failed, call: "mmap", details: "", object: "device 0000:01:00.0" })).toBe(
      "mmap on container 1 → EINVAL: iova 0x1800 is not a multiple of 0x1000 (device 0000:01:00.0)",
    );
    expect(line("call", { ...failed, object: "container 1" })).not.toContain("(container 1)");
  });

  it("says of a refused DMA requester, address, unit, reason, level and entry", () => {
    const fields = {
      unit: "dmar0",
      rid: 0x0108,
      pasid: -1,
      address: 0x201000n,
      access: 2,
      reason: "no write permission",
      level: 1,
      entryAddress: 0x5008,
      entry: 0n,
    };
    expect(line("fault", fields)).toBe(
      "DMA write by 01:01.0 at 0x201000 → dmar0: no write permission; the walk ended at level 1: " +
        "entry at 0x5008 is 0x0, so nothing is mapped",
    );
    expect(line("fault", { ...fields, entry: 0x7001n })).toMatch(/entry at 0x5008 is 0x7001$/);
    expect(line("fault", { ...fields, pasid: 5, entryAddress: undefined })).toBe(
      "DMA write by 01:01.0 pasid 5 at 0x201000 → dmar0: no write permission",
    );
  });

  it("says of a command that a device failed which one and why", () => {
    expect(
      line("device", {
        device: "0000:01:00.0",
        what: "command failed",
        queue: 1,
        command: 3,
        status: "Invalid Field",
      }),
    ).toBe("0000:01:00.0: command failed (queue 1, command 3) → Invalid Field");
  });

  it("says of an interrupt that went nowhere who sent it", () => {
    expect(
      line("interrupt", { address: 0xfee00000, data: 0x31, from: 0x0200, dropped: "no vector 0x31" }),
    ).toBe("interrupt 0xfee00000 data 0x31 from 02:00.0 → dropped: no vector 0x31");
  });

  it("is not there for what went well", () => {
    expect(line("call", { call: "ioctl", value: 0 })).toBeUndefined();
    expect(line("dma", { rid: 1, pa: 0, bytes: 1 })).toBeUndefined();
    expect(line("device", { device: "0000:01:00.0", what: "enabled" })).toBeUndefined();
  });

  it("is coloured only when colours are given", () => {
    expect(line("call", failed)).not.toContain("\u001b");
    expect(explain({ at: 0, kind: "call", fields: failed }, pc.createColors(true))).toContain(
      "\u001b[31mEINVAL",
    );
  });
});
