import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import * as iommufd from "./iommufd.ts";
import * as mock from "./iommufd-mock.ts";
import { findRequest, printArgument, requestName, requests } from "./requests.ts";
import * as vfio from "./vfio.ts";
import * as vsva from "./vsva.ts";

const bytesOf = (...parts: Uint8Array[]): Uint8Array => Uint8Array.from(parts.flatMap((part) => [...part]));

describe("names of requests", () => {
  it("the same number has another name on another kind of file", () => {
    const names = (n: number) =>
      [
        "vfio-container",
        "vfio-container:spapr",
        "vfio-container:nesting",
        "vfio-device",
        "vfio-migration",
      ].map((kind) => requestName(kind, vfio.vfioRequest(n)));
    expect(names(12)).toEqual([
      "VFIO_IOMMU_GET_INFO",
      "VFIO_IOMMU_SPAPR_TCE_GET_INFO",
      "VFIO_IOMMU_GET_INFO",
      "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO",
      "0x3b70",
    ]);
    expect(names(17)).toEqual([
      "VFIO_IOMMU_DIRTY_PAGES",
      "VFIO_IOMMU_SPAPR_REGISTER_MEMORY",
      "VFIO_IOMMU_DIRTY_PAGES",
      "VFIO_DEVICE_FEATURE",
      "0x3b75",
    ]);
    expect(names(19)).toEqual([
      "0x3b77",
      "VFIO_IOMMU_SPAPR_TCE_CREATE",
      "VFIO_IOMMU_NESTING_OP",
      "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
      "0x3b77",
    ]);
    expect(names(21)).toEqual(["0x3b79", "VFIO_EEH_PE_OP", "0x3b79", "0x3b79", "VFIO_MIG_GET_PRECOPY_INFO"]);
  });

  it("an iommufd answers its own numbers and a container's", () => {
    expect(requestName("iommufd", 0x3b80)).toBe("IOMMU_DESTROY");
    expect(requestName("iommufd", vfio.VFIO_IOMMU_MAP_DMA)).toBe("VFIO_IOMMU_MAP_DMA");
    expect(requestName("iommufd", 0x5496)).toBe("0x5496");
  });

  it("every request number of the interfaces has its name on some kind of file", () => {
    const everything = { ...vfio, ...iommufd, ...mock, ...vsva };
    const named = new Map(
      Object.values(requests).flatMap((rows) =>
        [...rows.values()].map((row) => [row.name, row.number] as const),
      ),
    );
    const numbers = Object.entries(everything).filter(
      ([, value]) => typeof value === "number" && value >> 8 === 0x3b && value < 0x3c00,
    );
    expect(numbers.length).toBeGreaterThan(55);
    for (const [name, value] of numbers) expect(named.get(name), name).toBe(value);
  });

  it("no number is listed twice for one kind of file", () => {
    for (const rows of Object.values(requests))
      for (const [number, row] of rows) expect(row.number).toBe(number);
    expect(requests.iommufd.size).toBe(22 + 3 + 4);
  });

  it("a kind that takes no requests has no names, whatever it is called", () => {
    for (const kind of ["fault-queue", "constructor", ""]) {
      expect(requestName(kind, 0x3b80)).toBe("0x3b80");
      expect(findRequest(kind, 0x3b80)).toBeUndefined();
      expect(printArgument(kind, 0x3b80, new Uint8Array(100))).toBe("");
    }
  });
});

describe("arguments of requests", () => {
  it("structures with their flags by name", () => {
    const bytes = vfio.VfioIommuType1DmaMap.bytes({ flags: 3, vaddr: 0x1000n, iova: 0x2000n, size: 0x1000n });
    expect(printArgument("vfio-container", vfio.VFIO_IOMMU_MAP_DMA, bytes)).toBe(
      "{ flags=READ|WRITE, vaddr=0x1000, iova=0x2000, size=0x1000 }",
    );
  });

  it("what could not be read counts as zero", () => {
    expect(printArgument("iommufd", iommufd.IOMMU_DESTROY, Uint8Array.of(8, 0, 0, 0, 5))).toBe(
      "{ size=8, id=5 }",
    );
    expect(printArgument("iommufd", iommufd.IOMMU_DESTROY, new Uint8Array(0))).toBe("{ size=0, id=0 }");
  });

  it("descriptors, names, and nothing where there is nothing", () => {
    const group = (number: number, bytes: Uint8Array) => printArgument("vfio-group", number, bytes);
    expect(group(vfio.VFIO_GROUP_SET_CONTAINER, Uint8Array.of(7, 0, 0, 0))).toBe("{ fd=7 }");
    expect(group(vfio.VFIO_GROUP_GET_DEVICE_FD, Buffer.from("0000:01:00.0\0rest"))).toBe('"0000:01:00.0"');
    expect(group(vfio.VFIO_GROUP_UNSET_CONTAINER, new Uint8Array(8))).toBe("");
  });

  it("the eventfds of SET_IRQS, as many as there are", () => {
    const set = (flags: number, count: number, data: number[]) =>
      printArgument(
        "vfio-device",
        vfio.VFIO_DEVICE_SET_IRQS,
        vfio.VfioIrqSet.bytes({ flags, index: 2, count, data }),
      );
    expect(set(0x24, 2, [5, 0, 0, 0, 255, 255, 255, 255])).toBe(
      "{ flags=DATA_EVENTFD|TRIGGER, index=2, start=0, count=2, data=[5, -1] }",
    );
    expect(set(0x22, 0xffff_ffff, [1, 0])).toContain("count=0xffffffff, data=[1, 0]");
    expect(set(0x21, 0, [])).toBe("{ flags=DATA_NONE|TRIGGER, index=2, start=0, count=0 }");
  });

  it("the blob of a feature by its number", () => {
    const feature = (flags: number, data: Uint8Array) =>
      printArgument(
        "vfio-device",
        vfio.VFIO_DEVICE_FEATURE,
        bytesOf(vfio.VfioDeviceFeature.bytes({ flags }), data),
      );
    const state = vfio.VfioDeviceFeatureMigState.bytes({ device_state: 2, data_fd: -1 });
    expect(feature(vfio.VFIO_DEVICE_FEATURE_SET | 2, state)).toBe(
      "{ feature=MIG_DEVICE_STATE, flags=SET, data={ device_state=RUNNING, data_fd=-1 } }",
    );
    expect(feature(vfio.VFIO_DEVICE_FEATURE_SET, new Uint8Array(40).fill(0xab))).toBe(
      `{ feature=PCI_VF_TOKEN, flags=SET, data=${"ab".repeat(32)}… }`,
    );
    expect(feature(0x12_0999, new Uint8Array(0))).toBe("{ feature=2457, flags=SET|0x100000 }");
  });

  it("unmaps and dirty pages with the bitmap they carry", () => {
    const bitmap = vfio.VfioBitmap.bytes({ pgsize: 4096n, size: 8n, data: 0x5000n });
    const unmap = vfio.VfioIommuType1DmaUnmap.bytes({ flags: 1, iova: 0x1000n, size: 0x2000n });
    expect(printArgument("vfio-container", vfio.VFIO_IOMMU_UNMAP_DMA, bytesOf(unmap, bitmap))).toBe(
      "{ flags=GET_DIRTY_BITMAP, iova=0x1000, size=0x2000, data={ pgsize=0x1000, size=0x8, data=0x5000 } }",
    );
    const start = vfio.VfioIommuType1DirtyBitmap.bytes({ flags: 1 });
    expect(printArgument("vfio-container", vfio.VFIO_IOMMU_DIRTY_PAGES, start)).toBe("{ flags=START }");
  });

  it("the operation of a nesting container", () => {
    const bind = vsva.IommuGpasidBindData.bytes({ format: 1, flags: 1n, hpasid: 9n });
    const op = (flags: number, data: Uint8Array) =>
      printArgument(
        "vfio-container:nesting",
        vsva.VFIO_IOMMU_NESTING_OP,
        bytesOf(vsva.VfioIommuType1NestingOp.bytes({ flags }), data),
      );
    expect(op(0, bind)).toMatch(/^{ op=BIND_PGTBL, data={ version=0, format=INTEL_VTD, .* hpasid=0x9, /);
    expect(op(0x1_0005, new Uint8Array(0))).toBe("{ op=5, flags=0x10000 }");
  });

  it("of the test command the member its operation uses", () => {
    const test = (op: number) =>
      printArgument(
        "iommufd",
        mock.IOMMU_TEST_CMD,
        mock.IommuTestCmd.bytes({ op, id: 3, check_iotlb: { id: 1, iotlb: 2 } }),
      );
    expect(test(mock.IOMMU_TEST_OP_MD_CHECK_IOTLB)).toBe(
      "{ op=MD_CHECK_IOTLB, id=3, check_iotlb={ id=1, iotlb=2 } }",
    );
    expect(test(99)).toBe("{ op=99, id=3 }");
    for (let op = 1; op <= 23; op++) expect(test(op)).toMatch(/^{ op=[A-Z_]+, id=3, [a-z_]+={ .* } }$/);
  });

  it("any bytes on any file can be shown, briefly", () => {
    const all = Object.entries(requests).flatMap(([kind, rows]) =>
      [...rows.keys()].map((n) => [kind, n] as const),
    );
    fc.assert(
      fc.property(fc.constantFrom(...all), fc.uint8Array({ maxLength: 300 }), ([kind, number], bytes) => {
        expect(printArgument(kind, number, bytes).length).toBeLessThan(2500);
      }),
      { numRuns: 500 },
    );
  });
});
