/** Every feature of /dev/iommu, used by a C program of its own on the mock IOMMU: errnos, outputs, and nothing left. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Host } from "../src/attach/host.ts";
import { leftOver, mockHost, runOn } from "./support/host.ts";
import { client } from "./support/run.ts";

/** Programs and the word each ends with. */
const FEATURES = {
  ranges: "ranges",
  copy: "copy",
  access: "access",
  "compat-ioctls": "compat",
  nesting: "nesting",
  dirty: "dirty",
  "page-faults": "page faults",
  viommu: "viommu",
  pasid: "pasid",
};

describe("a feature of iommufd, used by a C program", () => {
  const bugs: string[] = [];
  let host: Host;
  beforeAll(() => {
    host = mockHost((where, reason) => bugs.push(`${where}: ${reason}`));
  });
  afterAll(() => host.stop());

  it.each(Object.entries(FEATURES))("%s", async (name, word) => {
    const { status, stdout, stderr } = await runOn(host, client(name));
    expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: `${word}\n`, stderr: "" });
    expect(await leftOver(host)).toEqual({});
    expect(bugs).toEqual([]);
  });
});
