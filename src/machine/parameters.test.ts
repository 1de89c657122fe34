/** Module parameters that act, as the tree shows them: who may read and write them, and what they take. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { outcome } from "../../test/support/vfio-client.ts";
import { Pasids } from "../iommu/pasids.ts";
import { Capability } from "../kernel/call.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { createMemory } from "../memory/banks.ts";
import { pasidQuota } from "./parameters.ts";
import { ShownTree } from "./tree.ts";

const memory = createMemory({ ramBytes: 2 ** 20 });
const folder = mkdtempSync(join(tmpdir(), "softiommu-test-"));
afterAll(() => {
  memory.close();
  rmSync(folder, { recursive: true });
});

const QUOTA = "/sys/module/vfio_pasid/parameters/pasid_quota";
const [O_RDONLY, O_WRONLY, O_RDWR] = [0, 1, 2];
const pasids = new Pasids({ bits: 20 });
const tree: ShownTree = new ShownTree(folder, () => tree.show([pasidQuota(pasids)]));
tree.show([pasidQuota(pasids)]);
const anybody = new ModelTask(memory);
const root = new ModelTask(memory, { capabilities: [Capability.sysAdmin] });
const open = (task: ModelTask, flags: number): number => task.open(tree.attribute(QUOTA)!, flags);
const shown = (): string => readFileSync(folder + QUOTA, "utf8");

it("everybody may read the quota, root alone may open it for writing", () => {
  const text = new Uint8Array(64);
  expect(anybody.read(open(anybody, O_RDONLY), text)).toBe(5);
  expect(Buffer.from(text.subarray(0, 5)).toString()).toBe("1000\n");
  expect(shown()).toBe("1000\n");
  for (const flags of [O_WRONLY, O_RDWR]) expect(outcome(() => open(anybody, flags))).toBe("EACCES");
  expect(outcome(() => open(root, O_RDWR))).toBeTypeOf("number");
});

it("takes numbers of 32 bits, and nothing else", () => {
  const fd = open(root, O_WRONLY);
  expect(root.write(fd, Buffer.from("12\n"))).toBe(3);
  expect([pasids.quota, shown()]).toEqual([12, "12\n"]);
  for (const [text, code] of [
    ["many", "EINVAL"],
    ["-1", "EINVAL"],
    ["4294967296", "ERANGE"],
  ] as const)
    expect(outcome(() => root.write(fd, Buffer.from(text)))).toBe(code);
  expect([pasids.quota, shown()]).toEqual([12, "12\n"]);
});
