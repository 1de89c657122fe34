/** A program that makes memory private and shared by /dev/softiommu-snp, and the story that the manual tells of it. */
import { expect, it } from "vitest";
import { client, softiommu } from "./support/run.ts";

it("a C program's memory is reached by a device where it is shared and mapped by pages that are not too large", async () => {
  const { status, stdout, stderr } = await softiommu(
    ...["run", "--machine", "snp", "--explain", "--", client("snp")],
  );
  expect({ status, stdout }).toEqual({
    status: 0,
    stdout: [
      "launched: private, in one page of 2 MiB",
      "shared: split, and too small for what maps it",
      "mapped by itself: reached while it is shared",
      "closed: nothing is private\n",
    ].join("\n"),
  });
  expect(stderr).toMatch(
    /DMA read by 01:00\.0 at 0x40005000 → ivhd0: RMP_PAGE_FAULT .*private to the guest with ASID 7/,
  );
  expect(stderr).toMatch(/size mismatch: host page 0x[0-9a-f]+ is shared, but the leaf maps 2 MiB at once/);
  expect(stderr).toMatch(/SOFTIOMMU_SNP_PAGE_STATE .*→ EBUSY: asid 7 is that of guest file 1/);
});

it("the story goes by the machine's name", async () => {
  const { status, stdout, stderr } = await softiommu("demo", "nested", "--machine", "snp", "--json");
  expect([status, stderr]).toEqual([0, ""]);
  const record = JSON.parse(stdout);
  expect(record).toMatchObject({ story: "snp", machine: "snp", ok: true });
  expect(record.faults).toContainEqual(expect.objectContaining({ code: 0xd, recorded: true }));
});
