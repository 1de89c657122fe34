/** What people run into with the legacy container (errno as on Linux), and the reason that --explain adds. */
import { describe, expect, it } from "vitest";
import { client, exec, hasQemu, softiommu } from "./support/run.ts";

/** What happens → the errno, and a part of our reason. */
const TRAPS: [string, string, RegExp?][] = [
  ["map before SET_IOMMU", "EINVAL", /SET_IOMMU first/],
  ["SET_IOMMU without a group", "EINVAL", /group/],
  ["open the group", "ok"],
  ["open the group twice", "EBUSY", /open/],
  ["device before SET_CONTAINER", "EINVAL", /container/],
  ["SET_CONTAINER of a group", "EINVAL", /container/],
  ["SET_CONTAINER", "ok"],
  ["SET_CONTAINER twice", "EINVAL", /container/],
  ["map before SET_IOMMU, with a group", "EINVAL", /SET_IOMMU first/],
  ["SET_IOMMU of the 2020 nesting type", "EINVAL", /type/],
  ["SET_IOMMU", "ok"],
  ["SET_IOMMU twice", "EINVAL"],
  ["device of another group", "ENODEV", /0000:02:00\.0/],
  ["device", "ok"],
  ["UNSET_CONTAINER with the device open", "EBUSY"],
  ["map", "ok"],
  ["map over it", "EEXIST", /0x100000/],
  ["map of no memory", "EFAULT", /0x10000/],
  ["map of an odd address", "EINVAL", /multiple|align/],
  ["map of an odd iova", "EINVAL", /multiple|align/],
  ["map of no length", "EINVAL", /size|length/],
  ["map around the end of addresses", "EOVERFLOW"],
  ["map beyond the 48 bits of the unit", "EINVAL", /0x1000000000000/],
  ["map over the interrupt window", "EINVAL", /0xfee0/],
  ["unmap of half a mapping", "EINVAL", /cut|part|half|whole|middle|bisect/],
  ["unmap", "ok"],
  ["mappings until ENOSPC", "65535"],
  ["unmap all", "ok"],
  ["open the group in another process", "EBUSY"],
  ["UNSET_CONTAINER", "ok"],
  ["map after the last group left", "EINVAL", /SET_IOMMU first/],
  ["open the group again", "ok"],
];

describe("the traps of the legacy container", () => {
  it("give Linux's errno, and --explain our reason", async () => {
    const { status, stdout, stderr } = await softiommu("run", "--explain", "--", client("container-traps"));
    const answers = new Map(stdout.split("\n").map((line) => line.split(": ") as [string, string]));
    expect(Object.fromEntries(TRAPS.map(([what]) => [what, answers.get(what)]))).toEqual(
      Object.fromEntries(TRAPS.map(([what, errno]) => [what, errno])),
    );
    expect(stdout).toContain("unmapped 65535");
    expect(status).toBe(0);
    // One reason for each failure, in order.
    const reasons = stderr.split("\n").filter((line) => / → E[A-Z]+: /.test(line));
    const failures = TRAPS.flatMap(([what, errno, reason]) => {
      const code = /E[A-Z]{3,}/.exec(errno)?.[0] ?? /until (E[A-Z]+)/.exec(what)?.[1];
      return code === undefined ? [] : [{ what, code, reason }];
    });
    expect(reasons.map((line) => /→ (E[A-Z]+)/.exec(line)?.[1])).toEqual(failures.map(({ code }) => code));
    failures.forEach(({ what, reason }, i) => {
      if (reason) expect(reasons[i], what).toMatch(reason);
    });
  });
});

describe("a program that cannot be attached", () => {
  it("is refused before it starts when it is static, with the reason", async () => {
    const { status, stdout, stderr } = await softiommu("run", "--", client("plain", "-static"));
    expect(stdout).toBe("");
    expect(stderr).toMatch(/is statically linked: without a dynamic loader \(PT_INTERP\)/);
    expect(status).toBe(126);
  });

  it("is refused when it does not exist", async () => {
    const { status, stderr } = await softiommu("run", "--", "no-such-program");
    expect(stderr).toContain("no such program");
    expect(status).toBe(127);
  });
});

describe("ordinary programs", () => {
  it.each([
    ["ls", ["-la", "/dev/null", "/etc/passwd", "/usr/bin/env"]],
    [
      "sh",
      [
        "-c",
        "for i in 1 2 3; do echo $i; done | sort -r; cat /etc/hostname; exec 9>&1; echo nine >&9; kill -TERM $$",
      ],
    ],
    ["find", ["/etc/init.d", "-type", "f"]],
    [process.execPath, ["-e", "console.log(require('fs').readdirSync('/etc').length); process.exitCode = 3"]],
  ])("behave as without us: %s", async (program, args) => {
    const plain = await exec(program, args);
    const attached = await softiommu("run", "--", program, ...args);
    expect({ ...attached, signal: null }).toEqual({
      ...plain,
      status: plain.status ?? 128 + 15, // a shell's way to tell of a signal
      signal: null,
    });
  });

  it("keep their own signal handlers, descriptors and memory", async () => {
    const program = client("plain");
    const plain = await exec(program, []);
    expect(plain).toMatchObject({ status: 0, stdout: expect.stringContaining("all as it should be") });
    expect(await softiommu("run", "--", program)).toEqual(plain);
  });

  it.skipIf(!hasQemu)("include qemu-img on plain files", async () => {
    const args = ["create", "-f", "qcow2", "/tmp/softiommu-plain.qcow2", "16M"];
    expect(await softiommu("run", "--", "qemu-img", ...args)).toEqual(await exec("qemu-img", args));
  });
});
