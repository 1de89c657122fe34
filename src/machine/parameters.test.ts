/** Module parameters that act: who may read and write them, and what they take. */
import { afterAll, expect, it } from "vitest";
import { outcome } from "../../test/support/vfio-client.ts";
import { Pasids } from "../iommu/pasids.ts";
import { Capability } from "../kernel/call.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { createMemory } from "../memory/banks.ts";
import { moduleParameters, PASID_QUOTA } from "./parameters.ts";

const memory = createMemory({ ramBytes: 2 ** 20 });
afterAll(() => memory.close());

const [O_RDONLY, O_WRONLY, O_RDWR] = [0, 1, 2];
const pasids = new Pasids({ bits: 20 });
const node = moduleParameters(pasids).get(PASID_QUOTA)!;
const anybody = new ModelTask(memory);
const root = new ModelTask(memory, { capabilities: [Capability.sysAdmin] });

const read = (task: ModelTask): string => {
  const text = new Uint8Array(64);
  return Buffer.from(text.subarray(0, task.read(task.open(node, O_RDONLY), text))).toString();
};

it("everybody may read the quota, root alone may open it for writing", () => {
  expect(read(anybody)).toBe("1000\n");
  for (const flags of [O_WRONLY, O_RDWR]) expect(outcome(() => anybody.open(node, flags))).toBe("EACCES");
  expect(outcome(() => root.open(node, O_RDWR))).toBeTypeOf("number");
});

it("takes numbers of 32 bits, and nothing else", () => {
  const fd = root.open(node, O_WRONLY);
  expect(root.write(fd, Buffer.from("12\n"))).toBe(3);
  expect([pasids.quota, read(anybody)]).toEqual([12, "12\n"]);
  for (const [text, code] of [
    ["many", "EINVAL"],
    ["-1", "EINVAL"],
    ["4294967296", "ERANGE"],
  ] as const)
    expect(outcome(() => root.write(fd, Buffer.from(text)))).toBe(code);
  expect(pasids.quota).toBe(12);
});
