import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { findCapabilities, InfoChain } from "./info-chain.ts";
import {
  VfioInfoCapHeader,
  VfioIommuType1Info,
  VfioIommuType1InfoCapIovaRange,
  VfioIommuType1InfoDmaAvail,
  VfioRegionInfo,
  VfioRegionInfoCapSparseMmap,
} from "./vfio.ts";

const chain = () =>
  new InfoChain(VfioIommuType1Info.size)
    .add(3, 1, VfioIommuType1InfoDmaAvail, { avail: 65535 })
    .add(1, 1, VfioIommuType1InfoCapIovaRange, {
      nr_iovas: 2,
      iova_ranges: [
        { start: 0n, end: 0xfedf_ffffn },
        { start: 0xfef0_0000n, end: 0xffff_ffff_ffffn },
      ],
    });

describe("capability chains of VFIO", () => {
  it("capabilities lie at multiples of 8, linked from the start of the information structure", () => {
    const made = chain();
    expect(made.needed).toBe(24 + 16 + 48);
    const answer = made.answer(VfioIommuType1Info, { flags: 3, iova_pgsizes: 0x1000n }, 88);
    expect(answer).toHaveLength(88);
    const info = VfioIommuType1Info.read(answer);
    expect(info).toMatchObject({ argsz: 88, flags: 3, iova_pgsizes: 0x1000n, cap_offset: 24 });
    expect(findCapabilities(answer, info.cap_offset)).toEqual([
      { id: 3, version: 1, at: 24 },
      { id: 1, version: 1, at: 40 },
    ]);
    expect(VfioIommuType1InfoDmaAvail.read(answer, 24)).toEqual({
      header: { id: 3, version: 1, next: 40 },
      avail: 65535,
    });
    expect(VfioIommuType1InfoCapIovaRange.read(answer, 40)).toMatchObject({
      header: { next: 0 },
      nr_iovas: 2,
      iova_ranges: [{ start: 0n }, { start: 0xfef0_0000n, end: 0xffff_ffff_ffffn }],
    });
  });

  it("without room for all there is none, argsz says what is needed, and nothing is written beyond argsz", () => {
    for (const argsz of [16, 20, 24, 40, 87]) {
      const answer = chain().answer(VfioIommuType1Info, { flags: 3 }, argsz);
      expect(answer).toHaveLength(Math.min(argsz, 24));
      const whole = new Uint8Array(24);
      whole.set(answer);
      expect(VfioIommuType1Info.read(whole)).toMatchObject({ argsz: 88, cap_offset: 0, flags: 3 });
    }
  });

  it("without capabilities argsz stays the caller's", () => {
    const answer = new InfoChain(VfioRegionInfo.size).answer(VfioRegionInfo, { index: 7 }, 4000);
    expect(answer).toHaveLength(32);
    expect(VfioRegionInfo.read(answer)).toMatchObject({ argsz: 4000, cap_offset: 0, index: 7 });
  });

  it("any list of capabilities is found again, in order", () => {
    const capability = fc.record({ id: fc.nat(0xffff), areas: fc.nat(5) });
    fc.assert(
      fc.property(fc.array(capability, { maxLength: 6 }), (wanted) => {
        const made = new InfoChain(VfioRegionInfo.size);
        for (const { id, areas } of wanted) {
          const list = Array.from({ length: areas }, (_, i) => ({ offset: BigInt(i), size: 1n }));
          made.add(id, 1, VfioRegionInfoCapSparseMmap, { nr_areas: areas, areas: list });
        }
        const answer = made.answer(VfioRegionInfo, {}, made.needed + 5);
        const found = findCapabilities(answer, VfioRegionInfo.read(answer).cap_offset);
        expect(found.map((one) => one.id)).toEqual(wanted.map((one) => one.id));
        expect(found.every((one) => one.at % 8 === 0)).toBe(true);
        expect(found.map((one) => VfioRegionInfoCapSparseMmap.read(answer, one.at).areas.length)).toEqual(
          wanted.map((one) => one.areas),
        );
      }),
    );
  });

  it("a chain that loops or leaves the bytes ends", () => {
    const bytes = new Uint8Array(32);
    VfioInfoCapHeader.write(bytes, { id: 1, next: 16 }, 8);
    VfioInfoCapHeader.write(bytes, { id: 2, next: 8 }, 16);
    expect(findCapabilities(bytes, 8).map((one) => one.id)).toEqual([1, 2]);
    VfioInfoCapHeader.write(bytes, { id: 2, next: 28 }, 16);
    expect(findCapabilities(bytes, 8)).toHaveLength(2);
  });
});
