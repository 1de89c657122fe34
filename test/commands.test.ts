/** The commands other than `run` and `walk`, as a user types them. */
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { exec, ROOT, SOFTIOMMU, softiommu } from "./support/run.ts";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "softiommu-test-"));
});
afterAll(() => rmSync(folder, { recursive: true }));
const file = (name: string, text: string): string => {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
};

interface Story {
  readonly ok: boolean;
  readonly claims: readonly { readonly claim: string; readonly holds: boolean }[];
}

describe("softiommu demo", () => {
  it("tells a story whose claims all hold", async () => {
    const { status, stdout, stderr } = await softiommu("demo");
    expect(stderr).toBe("");
    expect(stdout).toMatch(/(\d+) of \1 claims hold/);
    expect(stdout).not.toContain("✗");
    expect(status).toBe(0);
  });

  it("fails when invalidations are lost, and says which claims do not hold", async () => {
    const { status, stdout } = await softiommu("demo", "basics", "--break=skip-flush", "--json");
    const { ok, claims } = JSON.parse(stdout) as Story;
    expect(ok).toBe(false);
    expect(claims.filter(({ holds }) => !holds).map(({ claim }) => claim)).toContain(
      "the device cannot reach the page any more",
    );
    expect(status).toBe(1);
  });

  it("tells what was asked of the host and what the device moved, with the seed", async () => {
    const { status, stdout } = await softiommu("demo", "fallback", "--json");
    const told = JSON.parse(stdout) as object;
    expect(told).toMatchObject({ story: "fallback", machine: "vtd", seed: 1, ok: true });
    expect(Object.keys(told)).toEqual(expect.arrayContaining(["claims", "calls", "transfers", "faults"]));
    expect(status).toBe(0);
  });

  it("tells of a guest's virtio-iommu when the machine is called so", async () => {
    const { status, stdout } = await softiommu("demo", "nested", "--machine=virtio", "--json");
    expect(JSON.parse(stdout)).toMatchObject({ story: "virtio", machine: "vtd", ok: true });
    expect(status).toBe(0);
  });

  it("knows no other story and no other fault", async () => {
    expect(await softiommu("demo", "nothing")).toMatchObject({
      status: 2,
      stderr: expect.stringContaining(
        "there is basics, nested, vsva, windows, anchors, snp, virtio, fallback",
      ),
    });
    expect(await softiommu("demo", "--break=nothing")).toMatchObject({
      status: 2,
      stderr: expect.stringContaining("one of skip-flush"),
    });
  });
});

describe("softiommu machine", () => {
  it("lists presets; a preset shown is a file that checks", async () => {
    const { stdout: list } = await softiommu("machine", "show");
    expect(list).toMatch(/^vtd {9}An Intel host.* scalable mode/m);
    expect(list).toMatch(/^mock {8}A kernel built for testing iommufd/m);
    const { stdout } = await softiommu("machine", "show", "vtd");
    const copy = file("copy.yaml", stdout);
    expect(await softiommu("machine", "check", copy)).toMatchObject({
      status: 0,
      stdout: `${copy}: ok: machine vtd, 1 unit(s), 5 device(s)\n`,
    });
  });

  it("spells out what a file comes to", async () => {
    const { stdout: full } = await softiommu("machine", "show", "vtd", "--full");
    const { stdout: json } = await softiommu("machine", "show", "vtd", "--json");
    expect(full).toContain("fault-records: 8");
    expect(
      JSON.parse((await softiommu("machine", "show", file("full.yaml", full), "--json")).stdout),
    ).toEqual(JSON.parse(json));
  });

  it("complains with file and line, and exit code 2", async () => {
    const wrong = file("wrong.yaml", "name: x\nunits:\n  - model: vtd\n    wings: 2\ndevices: []\n");
    expect(await softiommu("machine", "check", wrong)).toMatchObject({
      status: 2,
      stdout: "",
      stderr: `softiommu: ${wrong}:4: units.0.wings: no such setting\n`,
    });
    expect((await softiommu("machine", "check", join(folder, "none.yaml"))).status).toBe(2);
  });
});

describe("softiommu tour", () => {
  /** A PATH with these programs and no other. */
  const pathOf = (name: string, programs: readonly string[]): string => {
    const only = join(folder, name);
    mkdirSync(only);
    for (const program of programs) {
      const found = spawnSync("which", [program], { encoding: "utf8" }).stdout.trim();
      if (found) symlinkSync(found, join(only, program));
    }
    return only;
  };
  const tour = (path: string) => exec(process.execPath, [SOFTIOMMU, "tour"], { ...process.env, PATH: path });

  it("runs a real program, then the demo", async () => {
    const { status, stdout, stderr } = await tour(process.env["PATH"]!);
    expect(stdout).toMatch(/ended with status 0[\s\S]*(\d+) of \1 claims hold/);
    expect(stderr).toMatch(/^softiommu: \d+ calls, 0 failed;/m);
    expect(status).toBe(0);
  });

  it("takes the C example where qemu-io is not installed", async () => {
    const { status, stdout } = await tour(pathOf("compiler", ["cc", "as", "ld"]));
    expect(stdout).toContain("wrote a block, read it back");
    expect(status).toBe(0);
  });

  it("says so when there is no program to run", async () => {
    const { status, stdout } = await tour(pathOf("nothing", []));
    expect(stdout).toMatch(/^No program to run:[\s\S]*claims hold/);
    expect(status).toBe(0);
  });
});

describe("softiommu doctor", () => {
  it("finds this computer fit to run the tests", async () => {
    const { status, stdout } = await softiommu("doctor", "--json");
    const { ok, findings } = JSON.parse(stdout) as {
      readonly ok: boolean;
      readonly findings: readonly { readonly what: string; readonly state: string }[];
    };
    expect(findings.filter(({ state }) => state === "missing")).toEqual([]);
    expect({ ok, status }).toEqual({ ok: true, status: 0 });
  });
});

describe("softiommu run", () => {
  it("runs the example driver, and sums the run up with --explain", async () => {
    const program = join(folder, "vfio-nvme");
    const flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror"];
    const source = join(ROOT, "examples/vfio-nvme.c");
    expect(spawnSync("cc", [...flags, "-o", program, source], { encoding: "utf8" }).stderr).toBe("");
    const { status, stdout, stderr } = await softiommu("run", "--explain", "--", program, "0000:02:00.0");
    expect(stdout).toContain("wrote a block, read it back: the same 512 bytes");
    expect(stderr).toMatch(/^softiommu: \d+ calls, 0 failed; \d+ DMA accesses \([\d.]+ KiB\), 0 refused;/);
    expect(status).toBe(0);
  });

  it("says of a failed call what was asked, decoded, and why it was refused; nothing with --quiet", async () => {
    const program = join(folder, "early-map");
    const source = file(
      "early-map.c",
      `#include <fcntl.h>
       #include <linux/vfio.h>
       #include <sys/ioctl.h>
       int main(void)
       {
           struct vfio_iommu_type1_dma_map map = {.argsz = sizeof(map), .flags = 3, .iova = 0x1800, .size = 0x1000};
           return ioctl(open("/dev/vfio/vfio", O_RDWR), VFIO_IOMMU_MAP_DMA, &map) ? 7 : 0;
       }`,
    );
    expect(spawnSync("cc", ["-o", program, source], { encoding: "utf8" }).stderr).toBe("");
    const { status, stderr } = await softiommu("run", "--explain", "--", program);
    expect(stderr).toMatch(
      /^softiommu: VFIO_IOMMU_MAP_DMA \{ .*iova=0x1800, size=0x1000 \} on container \d+ → EINVAL: .+$/m,
    );
    expect(status).toBe(7);
    expect(await softiommu("run", "--explain", "--quiet", "--", program)).toMatchObject({
      status: 7,
      stderr: "",
    });
  });

  it("writes a trace of the same program", async () => {
    const trace = join(folder, "t.json");
    expect((await softiommu("run", "--trace", trace, "--", join(folder, "early-map"))).status).toBe(7);
    const { traceEvents } = JSON.parse(spawnSync("cat", [trace], { encoding: "utf8" }).stdout) as {
      readonly traceEvents: readonly { readonly name: string; readonly args: { readonly error?: string } }[];
    };
    const call = traceEvents.find(({ name }) => name.startsWith("ioctl VFIO_IOMMU_MAP_DMA"));
    expect(call?.args.error).toBe("EINVAL");
  });
});

describe("softiommu", () => {
  it.each([[["--help"]], [["run", "--help"]], [["machine", "check", "--help"]], [["--version"]]])(
    "answers %j with exit code 0",
    async (args) => expect((await softiommu(...args)).status).toBe(0),
  );

  it.each([
    [["fly"]],
    [["run"]],
    [["run", "--wings", "--", "true"]],
    [["run", "--machine", "none", "--", "true"]],
  ])("ends %j with exit code 2 and a sentence", async (args) => {
    const { status, stderr } = await softiommu(...args);
    expect(status).toBe(2);
    expect(stderr).not.toBe("");
  });

  it("ends with 127 for a program that is not there", async () => {
    expect(await softiommu("run", "--", "no-such-program")).toMatchObject({
      status: 127,
      stderr: "softiommu: no-such-program: no such program\n",
    });
  });
});
