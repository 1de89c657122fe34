import { describe, expect, it } from "vitest";
import { descriptors, examine, hugepages, mapCount, memlock, node } from "./doctor.ts";

describe("softiommu doctor", () => {
  it("says of each thing what was found, and of each that is not well what helps", async () => {
    const findings = await examine();
    expect(findings.map(({ what }) => what)).toEqual(
      expect.arrayContaining(["system", "Node", "preload library", "C compiler", "hugepages"]),
    );
    for (const { what, found, state, remedy } of findings) {
      expect(found, what).not.toBe("");
      if (state !== "ok") expect(remedy, what).toBeTruthy();
    }
  });

  it("wants Node 20.19", () => {
    expect(node("20.18.9").state).toBe("missing");
    expect(node("20.19.0").state).toBe("ok");
    expect(node("24.0.0").state).toBe("ok");
  });

  it("wants as many mappings and files as Linux gives by default", () => {
    expect(mapCount(65_530).state).toBe("ok");
    expect(mapCount(1000)).toMatchObject({ state: "limited", remedy: expect.stringContaining("sysctl") });
    expect(descriptors([1024, 4096]).state).toBe("ok");
    expect(descriptors([256, 4096])).toMatchObject({ state: "limited", found: "256 (hard limit 4096)" });
  });

  it("says how much a program may pin", () => {
    expect(memlock([Number.POSITIVE_INFINITY, 0])).toMatchObject({ state: "ok", found: "unlimited" });
    expect(memlock([8 * 2 ** 20, 0])).toMatchObject({ state: "ok", found: "8 MiB" });
    expect(memlock([65_536, 0]).state).toBe("limited");
  });

  it("says which hugepages there are", () => {
    expect(hugepages("16", "always within_size [advise] never")).toEqual({
      what: "hugepages",
      state: "ok",
      found: "16 reserved, transparent for shared memory: advise",
    });
    expect(hugepages("0", "").remedy).toContain("ordinary pages stand in");
  });
});
