/** Containers of type 1 by C programs: unmaps, dirty pages, user addresses exchanged over an exec, groups, no IOMMU. */
import { afterEach, describe, expect, it } from "vitest";
import { Host } from "../src/attach/host.ts";
import { parseMachine } from "../src/machine/file.ts";
import { leftOver, runOn } from "./support/host.ts";
import { client } from "./support/run.ts";

/** Two NVMe controllers, the second one's unit with this many address bits; and what else a machine says. */
const machine = (narrow: number, more = ""): string => `
name: type1
units:
  - {model: vtd, name: wide}
  - {model: vtd, name: narrow, address-widths: [${narrow}]}
devices:
  - {model: nvme, at: "0000:01:00.0", unit: wide, size: 1M}
  - {model: nvme, at: "0000:02:00.0", unit: ${narrow < 48 ? "narrow" : "wide"}, size: 1M}
${more}`;
const UNPROTECTED = `
  - {model: nvme, at: "0000:05:00.0", unit: none, size: 1M}
no-iommu: true
privileges: root
`;

let host: Host | undefined;
afterEach(() => host?.stop());

/** What a program says on a machine; nothing else, and nothing is left. */
const says = async (text: string, program: string, ...args: string[]): Promise<string> => {
  const bugs: string[] = [];
  host = new Host(parseMachine(text, "type1.yaml"), {
    onBug: (where, reason) => bugs.push(`${where}: ${reason}`),
  });
  const { status, stdout, stderr } = await runOn(host, client(program), ...args);
  expect({ status, stderr, bugs }).toEqual({ status: 0, stderr: "", bugs: [] });
  expect(await leftOver(host)).toEqual({});
  return stdout;
};

describe("a container of type 1", () => {
  it.each(["1", "2"])("version %s unmaps as it does, and ALL takes everything", async (version) =>
    expect(await says(machine(48), "type1-unmap", version)).toBe(`version ${version}\n`),
  );

  it("tracks dirty pages in version 2 and reports them with an unmap", async () =>
    expect(await says(machine(48), "type1-dirty")).toBe("dirty\n"));

  it("keeps a device's pages while a program is exchanged for another", async () =>
    expect(await says(machine(48), "type1-vaddr")).toBe("vaddr\n"));

  it.each(["48", "39"])("takes two groups; the second one's unit has %s bits", async (bits) =>
    expect(await says(machine(Number(bits)), "type1-groups", bits)).toBe("groups\n"),
  );
});

it("a device without an IOMMU is to be had where the machine file says so", async () =>
  expect(await says(machine(48, UNPROTECTED), "no-iommu")).toBe("no IOMMU\n"));
