import { describe, expect, it } from "vitest";
import { ModelMemory } from "../kernel/model-memory.ts";
import { createMemory } from "../memory/banks.ts";
import * as vfio from "../uapi/vfio.ts";
import { describeIoctl } from "./describe.ts";

const VA = 0x10_0000;

const withMemory = (work: (memory: ModelMemory) => void): void => {
  const host = createMemory({ ramBytes: 2 ** 20 });
  const memory = new ModelMemory(host);
  memory.map(VA, 4096);
  work(memory);
  host.close();
};

describe("an ioctl on one line", () => {
  it("has the request's name and its argument, field by field", () =>
    withMemory((memory) => {
      const map = vfio.VfioIommuType1DmaMap;
      memory.write(
        BigInt(VA),
        map.bytes({ argsz: map.size, flags: 3, vaddr: 0x7000n, iova: 0x1800n, size: 0x1000n }),
      );
      const line = describeIoctl("vfio-container", vfio.VFIO_IOMMU_MAP_DMA, BigInt(VA), memory);
      expect(line).toMatch(/^VFIO_IOMMU_MAP_DMA \{ .*flags=READ\|WRITE.* vaddr=0x7000.* iova=0x1800.* \}$/);
    }));

  it("shows what follows the structure when argsz says so", () =>
    withMemory((memory) => {
      const { VfioIrqSet } = vfio;
      const flags = vfio.VFIO_IRQ_SET_DATA_EVENTFD | vfio.VFIO_IRQ_SET_ACTION_TRIGGER;
      memory.write(
        BigInt(VA),
        VfioIrqSet.bytes({ argsz: 24, flags, index: 2, start: 0, count: 1, data: [7, 0, 0, 0] }),
      );
      expect(describeIoctl("vfio-device", vfio.VFIO_DEVICE_SET_IRQS, BigInt(VA), memory)).toContain("7");
    }));

  it("shows a name of a device up to its end, even at the end of the mapped memory", () =>
    withMemory((memory) => {
      memory.write(BigInt(VA + 4096 - 13), Buffer.from("0000:01:00.0\0"));
      expect(describeIoctl("vfio-group", vfio.VFIO_GROUP_GET_DEVICE_FD, BigInt(VA + 4096 - 13), memory)).toBe(
        'VFIO_GROUP_GET_DEVICE_FD "0000:01:00.0"',
      );
    }));

  it("says so when the argument cannot be read", () =>
    withMemory((memory) =>
      expect(describeIoctl("vfio-container", vfio.VFIO_IOMMU_MAP_DMA, 8n, memory)).toBe(
        "VFIO_IOMMU_MAP_DMA { not readable at 0x8 }",
      ),
    ));

  it("does not believe an argsz beyond the mapped memory", () =>
    withMemory((memory) => {
      const at = BigInt(VA + 4096 - vfio.VfioIommuType1Info.size);
      memory.write(at, vfio.VfioIommuType1Info.bytes({ argsz: 0xffff_ffff }));
      expect(describeIoctl("vfio-container", vfio.VFIO_IOMMU_GET_INFO, at, memory)).toMatch(
        /^VFIO_IOMMU_GET_INFO \{ flags=0/,
      );
    }));

  it("shows a plain number as it is, and a request nobody knows by its number", () =>
    withMemory((memory) => {
      expect(describeIoctl("vfio-container", vfio.VFIO_SET_IOMMU, 1n, memory)).toBe("VFIO_SET_IOMMU 1");
      expect(describeIoctl("vfio-container", vfio.VFIO_GET_API_VERSION, 0n, memory)).toBe(
        "VFIO_GET_API_VERSION",
      );
      expect(describeIoctl("vfio-group", 0x5401, 0n, memory)).toBe("ioctl 0x5401");
    }));
});
