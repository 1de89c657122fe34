/** What a client sees of the memory that is held for its devices: in /proc, and when it reaches its limits. */
import { readFileSync } from "node:fs";
import { beforeAll, describe, expect, it } from "vitest";
import { client, softiommu } from "./support/run.ts";

const CAP_IPC_LOCK = 14n;
const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1];
/** Who lacks CAP_IPC_LOCK here has it on the machine `mock`, and cannot drop it. */
const canDrop = ((BigInt(`0x${effective ?? "0"}`) >> CAP_IPC_LOCK) & 1n) === 1n;

interface Seen {
  /** VmLck of n pages that are pinned. */
  locked(pages: number): number;
  readonly beyond: string;
  readonly otherProcess: string;
  readonly besideMlock: string;
}
const capable: Seen = { locked: () => 0, beyond: "0", otherProcess: "0", besideMlock: "0" };
const expectations: Readonly<Record<string, Seen>> = {
  user: canDrop ? { ...capable, beyond: "ENOMEM", otherProcess: "ENOMEM" } : capable,
  process: canDrop
    ? { locked: (pages) => pages, beyond: "ENOMEM", otherProcess: "0", besideMlock: "ENOMEM" }
    : capable,
  capable,
};

describe("pages pinned by iommufd", () => {
  let program: string;
  beforeAll(() => {
    program = client("accounting");
  });

  it.each(Object.entries(expectations))("are counted and limited: %s", async (mode, seen) => {
    const { status, stdout, stderr } = await softiommu("run", "--machine", "mock", "--", program, mode);
    const line = (what: string, pages: number) => `${what}: VmPin ${pages} VmLck ${seen.locked(pages)}`;
    expect(stderr).toBe("");
    expect(stdout.trim().split("\n")).toEqual([
      ...["open pid", "open task", "thread-self", "openat", "relative", "fopen"].map((way) => line(way, 5)),
      line("child", 0),
      line("child of parent", 5),
      `beyond the limit: ${seen.beyond}`,
      "within it: 0",
      `another process: ${seen.otherProcess}`,
      `beside a page of mlock: ${seen.besideMlock}`,
      line("unmapped", 0),
      line("file mapped", 3),
      line("child took them", 3),
      line("parent then", 0),
      "private memory cannot change: EINVAL",
      line("parent after", 1),
      line("taken back", 3),
      line("closed", 0),
    ]);
    expect(status).toBe(0);
  });
});

describe("pages mapped by a VFIO container", () => {
  it("are locked memory of their process, beside what it locks itself, and count once a mapping", async () => {
    const { status, stdout, stderr } = await softiommu("run", "--machine", "vtd", "--", client("locked"));
    expect(stderr).toBe("");
    const [before, ...lines] = stdout.trim().split("\n");
    const held = Number(/VmLck (\d+) VmPin 0$/.exec(before!)?.[1]);
    expect(lines).toEqual([`mapped: VmLck ${held + 7} VmPin 0`, `unmapped once: VmLck ${held + 4} VmPin 0`]);
    expect(status).toBe(0);
  });
});
