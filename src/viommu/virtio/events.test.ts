/** Events of a virtio-iommu that nobody takes (virtio 1.3, §5.13.6.7). */
import { describe, expect, it } from "vitest";
import { silent } from "../../base/events.ts";
import { VirtioIommuDevice } from "../../guest/virtio/device.ts";
import { type PageRequest, PageResponse } from "../../hardware/ats.ts";
import { Access, NO_PASID } from "../../hardware/unit.ts";
import { SparseMemory } from "../../memory/sparse-memory.ts";
import { VirtioIommu } from "./front-end.ts";
import { DeviceStatus, Register } from "./transport-spec.ts";

const begin = () => {
  const memory = new SparseMemory([{ start: 0x1000, end: 0x10_0000 }]);
  let interrupts = 0;
  const iommu = new VirtioIommu({
    ...{ name: "virtio", memory, events: silent, reservedRanges: 1 },
    ...{ pageSizes: 2n ** 64n - 4096n, input: { start: 0, end: 2 ** 40 } },
    interrupt: () => {
      interrupts += 1;
    },
  });
  const answers: number[] = [];
  iommu.onPageResponse = (_rid, _pasid, _group, response) => answers.push(response);
  return { memory, iommu, answers, interrupts: () => interrupts };
};
const request = (page: number, last = true): PageRequest => ({
  ...{ rid: 8, pasid: NO_PASID, lo: page * 4096, hi: 1, access: Access.write, group: 3, last },
});

describe("events for which the driver has no buffers", () => {
  it("wait, as many as there is room for, and come in their order; others are lost", () => {
    const { iommu, memory, answers } = begin();
    const told: bigint[] = [];
    new VirtioIommuDevice("driver", iommu, memory, ({ address }) => told.push(address));
    // Nobody takes interrupts: 16 buffers are filled, 64 events wait, and 5 are lost.
    for (let page = 0; page < 85; page++) iommu.requestPage(request(page));
    expect([iommu.lostEvents, answers.length, told.length]).toEqual([5, 85, 0]);
    iommu.onInterrupt?.();
    expect(told).toEqual(Array.from({ length: 80 }, (_, page) => 2n ** 32n + BigInt(page * 4096)));
  });

  it("need an interrupt each time that one gets its buffer", () => {
    const { iommu, memory, interrupts } = begin();
    new VirtioIommuDevice("driver", iommu, memory, () => {});
    iommu.requestPage(request(1));
    expect([interrupts(), iommu.mmioRead(Register.InterruptStatus, 4)]).toEqual([1, 1n]);
    iommu.onInterrupt?.();
    expect(iommu.mmioRead(Register.InterruptStatus, 4)).toBe(0n);
  });

  it("are forgotten when the device is reset", () => {
    const { iommu, memory } = begin();
    iommu.requestPage(request(1));
    const told: bigint[] = [];
    new VirtioIommuDevice("driver", iommu, memory, ({ address }) => told.push(address));
    iommu.onInterrupt?.();
    expect(told).toEqual([]);
    expect(Number(iommu.mmioRead(Register.Status, 4)) & DeviceStatus.DRIVER_OK).not.toBe(0);
  });
});

describe("a group of pages that a device asks for", () => {
  it("is refused once, with its last page", () => {
    const { iommu, answers } = begin();
    iommu.requestPage(request(1, false));
    expect(answers).toEqual([]);
    iommu.requestPage(request(2));
    expect(answers).toEqual([PageResponse.invalid]);
  });
});
