import { beforeAll, describe, expect, it } from "vitest";
import { client, softiommu } from "./support/run.ts";

describe("an access outside a program's mappings", () => {
  let program: string;
  beforeAll(() => {
    program = client("dma-outside");
  });

  it("fails the command, writes nothing, and --explain tells requester, address, reason, level and entry", async () => {
    const { status, stdout, stderr } = await softiommu("run", "--explain", "--", program);
    expect(stderr).toContain("DMA write by 01:00.0 at 0x201000");
    expect(stderr).toMatch(/0x201000 → dmar0: .*; the walk ended at level 1: entry at 0x[0-9a-f]+ is 0x0/);
    expect(stdout).toMatch(/outside: status 0x[0-9a-f]+\nthe program goes on\n/);
    expect(status).toBe(0);
  });

  it("says nothing of its own without --explain", async () => {
    expect(await softiommu("run", "--", program)).toMatchObject({ status: 0, stderr: "" });
  });
});
