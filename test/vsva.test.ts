/** The interface of 2020 for virtual SVA by C programs: nesting containers on the machine vtd-vsva. */
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Host } from "../src/attach/host.ts";
import { PRESETS } from "../src/machine/presets.ts";
import { hostOf, leftOver, runOn as runOnHost, start } from "./support/host.ts";
import { client, scratch, softiommu } from "./support/run.ts";

let folder: string;
beforeAll(() => {
  folder = scratch();
});
afterAll(() => rmSync(folder, { recursive: true }));

const runOn = (machine: string, name: string, ...args: string[]) =>
  softiommu("run", "--machine", machine, "--", client(name), ...args);

/** A machine like `vtd-vsva`, of which one line is another. */
const variant = (name: string, line: string, instead: string): string => {
  const file = join(folder, `${name}.yaml`);
  const text = PRESETS.get("vtd-vsva")!;
  expect(text).toContain(line);
  writeFileSync(file, text.replace(line, instead));
  return file;
};

describe("a nesting container", () => {
  it.each(["vsva", "vsva-errnos", "vsva-faults"])("%s", async (name) => {
    const { status, stdout, stderr } = await runOn("vtd-vsva", name);
    expect(stderr).toBe("");
    expect(stdout).toBe(`${name}\n`);
    expect(status).toBe(0);
  });

  it("the same on a unit that remembers nothing, and on one that forgets at random", async () => {
    for (const cache of ["none", "paranoid"]) {
      const machine = variant(cache, "name: dmar0", `name: dmar0\n    cache: ${cache}`);
      const { status, stderr } = await runOn(machine, "vsva");
      expect(stderr).toBe("");
      expect(status).toBe(0);
    }
  });

  it("PASIDs are of a process: threads, forks, execve, ends, and 64 children that want all they can get", async () => {
    const plain = await runOn("vtd-vsva", "vsva-processes");
    expect(plain.stderr).toBe("");
    expect(plain.stdout).toBe("64000 for 64 children, 999 left\nvsva-processes\n");
    const machine = variant("limited", "quota: 1000", "quota: 1000\n  user-limit: 1500");
    const { status, stdout, stderr } = await runOn(machine, "vsva-processes");
    expect(stderr).toBe("");
    expect(stdout).toContain("1499 for 64 children, 0 left\n");
    expect(status).toBe(0);
  });

  it("a program killed while its device waits for a page leaves nothing, and the next one works", async () => {
    const host = hostOf("vtd-vsva");
    try {
      const child = start(host, client("vsva-faults"), "abandon");
      const closed = new Promise((resolve) => child.once("close", resolve));
      await new Promise((resolve) => child.stdout.once("data", resolve));
      expect(host.live()).toMatchObject({ parked: 1, pasids: 1 });
      child.kill("SIGKILL");
      await closed;
      expect(await leftOver(host)).toEqual({});
      const { status, stdout } = await runOnHost(host, client("vsva-faults"));
      expect(stdout).toBe("vsva-faults\n");
      expect(status).toBe(0);
    } finally {
      await host.stop();
    }
  });

  it("on SMMUv3 a guest owns its whole table of PASIDs", async () => {
    const file = join(folder, "arm.yaml");
    const text = `${PRESETS.get("smmuv3")!}extensions: [vsva2020]\n`;
    writeFileSync(file, text);
    const { status, stdout, stderr } = await runOn(file, "vsva-arm");
    expect(stderr).toBe("");
    expect(stdout).toBe("vsva-arm\n");
    expect(status).toBe(0);
    const silent = text.replace("stages: [1, 2]", "stages: [1, 2]\n    nesting-information: empty");
    writeFileSync(file, silent);
    const refused = await runOn(file, "vsva-arm");
    expect(refused.status).toBe(1);
    expect(refused.stderr).toContain("No such file or directory");
  });

  it("is not there on the faithful machines", async () => {
    for (const machine of ["vtd", "vtd-legacy", "smmuv3"]) {
      const { status, stderr } = await runOn(
        machine,
        "vsva",
        machine === "smmuv3" ? "0000:03:00.0" : "0000:05:00.0",
      );
      expect(status).toBe(1);
      expect(stderr).toContain("VFIO_CHECK_EXTENSION, NESTING) == 1");
    }
  });

  it("--explain names request, operation and reason of what is refused", async () => {
    const { stderr } = await softiommu(
      ...["run", "--explain", "--machine", "vtd-vsva", "--", client("vsva-errnos")],
    );
    for (const line of [
      /VFIO_IOMMU_PASID_REQUEST .*ENOSPC.*quota is 1000/,
      /VFIO_IOMMU_PASID_REQUEST .*EINVAL.*min 2 is above max 1/,
      /VFIO_IOMMU_NESTING_OP .*BIND_PGTBL.*EBUSY.*must be unbound before another is bound/,
      /VFIO_IOMMU_NESTING_OP .*BIND_PGTBL.*EOPNOTSUPP.*memory types \(ECAP\.MTS\)/,
      /VFIO_IOMMU_NESTING_OP .*CACHE_INVLD.*EINVAL.*the DEV_IOTLB cache is not invalidated by DOMAIN/,
      /VFIO_GROUP_SET_CONTAINER .*EINVAL.*one group/,
    ])
      expect(stderr.replaceAll(/\n\s+/g, " ")).toMatch(line);
  });
});

describe("by iommufd, where PASIDs are of files", () => {
  let host: Host;
  beforeAll(() => {
    host = hostOf("vtd-vsva");
  });
  afterAll(() => host.stop());

  it.each([
    ["one table for a PASID of two functions, their files closed in every order", "orders"],
    ["a file that is passed carries its PASIDs to who gets it, and nothing else does", "passed"],
    ["a container that is passed carries none: there they are the process's", "containers"],
  ])("%s", async (_, what) => {
    const { status, stdout, stderr } = await runOnHost(host, client("vsva-files"), what);
    expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: "vsva-files\n", stderr: "" });
    expect(await leftOver(host)).toEqual({});
  });
});

describe("the quota of PASIDs", () => {
  it("is a module parameter that root may write, and holds from then on", async () => {
    const file = "/sys/module/vfio_pasid/parameters/pasid_quota";
    const machine = variant("root", "extensions:", "privileges: root\nextensions:");
    const script = `cat ${file}; echo 7 > ${file} && cat ${file}; echo many > ${file} || echo refused`;
    const { stdout } = await softiommu("run", "--machine", machine, "--", "/bin/sh", "-c", script);
    expect(stdout).toBe("1000\n7\nrefused\n");
    const without = await softiommu("run", "--", "/bin/sh", "-c", `cat ${file} || echo none`);
    expect(without.stdout).toBe("none\n");
  });
});

describe("the machine vtd-vsva", () => {
  it("is a preset that can be shown and checked, and an extension that is not known is refused by name", async () => {
    const { stdout } = await softiommu("machine", "show", "vtd-vsva");
    expect(stdout).toContain("extensions: [vsva2020]");
    expect((await softiommu("machine", "check", variant("good", "quota: 1000", "quota: 10"))).status).toBe(0);
    const wrong = variant("wrong", "extensions: [vsva2020]", "extensions: [vsva2021]");
    const { status, stderr } = await softiommu("machine", "check", wrong);
    expect(status).not.toBe(0);
    expect(stderr).toMatch(/extensions\.0.*vsva2021.*one of vsva2020/);
  });
});
