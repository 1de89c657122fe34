import {
  existsSync,
  mkdtempSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { outcome } from "../../test/support/vfio-client.ts";
import { Capability } from "../kernel/call.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { createMemory } from "../memory/banks.ts";
import { action, file, folder, link, ShownTree } from "./tree.ts";

let root: string;
let stored: number;
let tree: ShownTree;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "softiommu-test-"));
  stored = 0;
  tree = new ShownTree(root, () => {
    stored += 1;
  });
});
afterEach(() => rmSync(root, { recursive: true }));

it("shows files, folders and links, and changes what has changed alone", () => {
  tree.show([folder("/a/b"), file("/a/b/name", "one"), file("/a/kept", "same"), link("/c/to", "/a/b")]);
  expect(readFileSync(join(root, "a/b/name"), "utf8")).toBe("one\n");
  expect(readlinkSync(join(root, "c/to"))).toBe("../a/b");
  writeFileSync(join(root, "a/kept"), "by a program");
  tree.show([folder("/a/b"), file("/a/b/name", "two"), file("/a/kept", "same"), link("/c/to", "/a")]);
  expect(readFileSync(join(root, "a/b/name"), "utf8")).toBe("two\n");
  expect(readFileSync(join(root, "a/kept"), "utf8")).toBe("by a program");
  expect(readlinkSync(join(root, "c/to"))).toBe("../a");
  tree.show([file("/a/kept", "same"), link("/a/b", "/a/kept")]);
  expect(existsSync(join(root, "a/b/name"))).toBe(false);
  expect([readlinkSync(join(root, "a/b")), existsSync(join(root, "c/to"))]).toEqual(["kept", false]);
});

it("has attributes that act, by whatever path they are reached, for root alone", () => {
  const written: string[] = [];
  const memory = createMemory({ ramBytes: 2 ** 20 });
  tree.show([
    folder("/devices/one"),
    action("/devices/one/remove", (text) => written.push(text)),
    file("/devices/one/name", "one"),
    link("/bus/one", "/devices/one"),
  ]);
  expect(statSync(join(root, "devices/one/remove")).mode & 0o777).toBe(0o200);
  for (const path of ["/devices/one/name", "/devices/one", "/nowhere", "/bus/one/none"])
    expect(tree.attribute(path)).toBeUndefined();
  const administrator = new ModelTask(memory, { capabilities: [Capability.sysAdmin] });
  for (const path of ["/devices/one/remove", "/bus/one/remove"]) {
    const node = tree.attribute(path)!;
    expect(node.path).toBe("/devices/one/remove");
    expect(outcome(() => new ModelTask(memory).open(node, 1))).toBe("EACCES");
    const fd = administrator.open(node, 1);
    expect(administrator.write(fd, Buffer.from("1\n"))).toBe(2);
    administrator.close(fd);
  }
  expect([written, stored]).toEqual([["1\n", "1\n"], 2]);
  memory.close();
});
