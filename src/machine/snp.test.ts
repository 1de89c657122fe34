/** Machines with secure nested paging: what a machine file asks for, what there is then, and what a saved state keeps of it. */
import { describe, expect, it } from "vitest";
import { codeOf } from "../../test/support/code-of.ts";
import { GuestRig } from "../../test/support/guest-rig.ts";
import { SecureGuest } from "../guest/secure-guest.ts";
import { openNode } from "../guest/vmm-process.ts";
import { formatWalk, walk } from "../trace/walk.ts";
import { SnpCalls } from "../viommu/snp-calls.ts";
import { parseMachine } from "./file.ts";
import { PRESETS } from "./presets.ts";
import { restoreState, saveState } from "./state.ts";

const PAGE = 4096;
const DEVICE = "0000:7e:00.0";
const preset = PRESETS.get("snp")!;
const complaints = (text: string): string => {
  try {
    parseMachine(text, "m.yaml");
    return "";
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
};

describe("a machine file with snp-rmp", () => {
  it("has units of model amdvi alone, and no device without one", () => {
    expect(complaints(preset)).toBe("");
    expect(complaints(preset.replace("units:", "units:\n  - model: vtd"))).toMatch(
      /units\.0\.model: with extensions: \[snp-rmp\] every unit is of model amdvi/,
    );
    expect(
      complaints(`${preset}  - model: bare\n    at: 0000:09:00.0\n    unit: none\nno-iommu: true\n`),
    ).toMatch(/devices\.3\.unit: .*no device can be without a unit/);
    expect(complaints("name: empty\nextensions: [snp-rmp]\nunits: []\ndevices: []\n")).toMatch(
      /extensions.0: snp-rmp needs a unit of model amdvi/,
    );
  });
});

/** A guest whose memory is private, but for one page. */
const begin = () => {
  const rig = new GuestRig("snp", "shadow", { shows: "none" });
  const fd = openNode(rig.vmm.task, rig.machine, "/dev/softiommu-snp");
  const guest = new SecureGuest(rig.vmm, new SnpCalls(rig.vmm.task, fd, 3));
  guest.share(5 * PAGE, PAGE);
  return { rig, guest };
};
const outcomeOf = (machine: GuestRig["machine"], iova: number) =>
  walk(machine, { device: DEVICE, iova: BigInt(iova), write: true }).steps.at(-1)!.outcome!;

describe("the machine snp", () => {
  it("has its control file, which others have not; what is private ends with the VMM", () => {
    const { rig, guest } = begin();
    expect(rig.machine.live()).toMatchObject({ snpFiles: 1, privatePages: rig.vmm.ram.bytes / PAGE - 1 });
    expect(guest.entry(5 * PAGE)).toEqual({ entry: 0n, bytes: PAGE });
    expect(rig.close()).toEqual({});
    const other = new GuestRig("amd", "shadow", { shows: "none" });
    expect(codeOf(() => openNode(other.vmm.task, other.machine, "/dev/softiommu-snp"))).toBe("ENOENT");
    other.close();
  });

  it("keeps devices from what is private, and walks say so with the entry of the reverse map table", () => {
    const { rig } = begin();
    for (const [page, reason] of [
      [4, /private to the guest with ASID 3, at its 0x4000, in a page of 4 KiB/],
      [5, /size mismatch.*the leaf maps .* at once.*511 pages of 4 KiB/],
      [1024, /private to the guest with ASID 3.* in a page of 2 MiB/],
    ] as const)
      expect(outcomeOf(rig.machine, page * PAGE)).toMatchObject({
        ok: false,
        code: 0xd,
        reason: expect.stringMatching(reason),
      });
    const text = formatWalk(walk(rig.machine, { device: DEVICE, iova: BigInt(4 * PAGE), write: true }));
    expect(text.join("\n")).toMatch(/RMP entry of host page 0x[0-9a-f]+ is 0x[0-9a-f]+\n +ASSIGNED +0x1/);
    rig.close();
  });

  it("is explained alike from a saved state", () => {
    const { rig } = begin();
    const text = JSON.stringify(saveState(rig.machine));
    const restored = restoreState(text);
    for (const page of [0, 4, 5, 6, 1024])
      expect(walk(restored, { device: DEVICE, iova: BigInt(page * PAGE), write: true }).steps).toEqual(
        walk(rig.machine, { device: DEVICE, iova: BigInt(page * PAGE), write: true }).steps.filter(
          ({ cache }) => cache === undefined,
        ),
      );
    restored.close();
    const broken = text.replace(/"rmp":\{"0x[0-9a-f]+"/, '"rmp":{"0x123"');
    expect(() => restoreState(broken)).toThrow(/RMP entry 0x123: no entry of/);
    rig.close();
  });
});

describe("an AMD host whose kernel makes small pages alone (huge-pages: false)", () => {
  it("has them in every domain, of whatever guest", () => {
    const edit = (text: string): string =>
      text.replace("host-levels:", "huge-pages: false\n    host-levels:");
    const rig = new GuestRig("amd", "shadow", { shows: "none", edit });
    const { steps } = walk(rig.machine, { device: DEVICE, iova: 0n, write: true });
    expect(steps.at(-2)?.note).toMatch(/^a page of 0x1000 bytes/);
    const { driver, function: device } = rig.machine.core.devices.get(DEVICE)!;
    for (const options of [{}, { dirtyTracking: true }, { nestParent: true }]) {
      const domain = driver.allocatePaging(device, options);
      expect(domain.pageSizes).toBe(0x1000n);
      domain.free();
    }
    rig.close();
  });
});
