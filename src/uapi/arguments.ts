/**
 * How the arguments of requests are shown on one line: structures, and those whose blob has a layout that depends on
 * what the structure says. `requests.ts` says which request has which.
 */
import {
  SOFTIOMMU_NESTING_OP_BIND_PASID_TABLE,
  SOFTIOMMU_NESTING_OP_PAGE_RESPONSE,
  SOFTIOMMU_NESTING_OP_UNBIND_PASID_TABLE,
  SoftiommuPasidTableSmmuv3,
} from "./extensions.ts";
import * as mock from "./iommufd-mock.ts";
import { array, type Codec, s32, u8, u32 } from "./struct.ts";
import * as vfio from "./vfio.ts";
import * as vsva from "./vsva.ts";

/** How an argument is shown: the structure's size is what must be read at least, `argsz` bytes at most. */
export interface RequestArgument {
  readonly size: number;
  /** `bytes` has at least `size` bytes. */
  print(bytes: Uint8Array): string;
}

/** Bytes of an unknown blob that are shown. */
const SHOWN = 32;

const hexBytes = (bytes: Uint8Array): string =>
  Buffer.from(bytes.subarray(0, SHOWN)).toString("hex") + (bytes.length > SHOWN ? "…" : "");

/** What is needed of a structure to show it. */
interface Printable {
  readonly size: number;
  printBytes(bytes: Uint8Array): string;
}

/** At least `size` bytes: what is missing is zero. */
export const padded = (bytes: Uint8Array, size: number): Uint8Array => {
  if (bytes.length >= size) return bytes;
  const filled = new Uint8Array(size);
  filled.set(bytes);
  return filled;
};

export const whole = (struct: Printable): RequestArgument => ({
  size: struct.size,
  print: (bytes) => struct.printBytes(bytes),
});

export const scalar = (name: string, codec: Codec<number>): RequestArgument => ({
  size: codec.size,
  print(bytes) {
    const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    return `{ ${name}=${codec.print(codec.readAt(data, 0, true))} }`;
  },
});

export const text: RequestArgument = {
  size: 0,
  print(bytes) {
    const end = bytes.indexOf(0);
    return JSON.stringify(Buffer.from(bytes.subarray(0, end < 0 ? bytes.length : end)).toString("utf8"));
  },
};

/** A structure that ends in a blob whose layout depends on what the structure says. */
const withBlob = <T>(
  struct: Printable & { read(bytes: Uint8Array): T; readonly offsets: { readonly data: number } },
  head: (value: T) => string,
  blob: (value: T) => Printable | undefined,
): RequestArgument => ({
  size: struct.size,
  print(bytes) {
    const value = struct.read(bytes);
    const rest = bytes.subarray(struct.offsets.data);
    const inner = blob(value);
    const shown = inner && rest.length ? inner.printBytes(rest) : hexBytes(rest);
    return `{ ${head(value)}${shown ? `, data=${shown}` : ""} }`;
  },
});

type ValueOfStruct<S> = S extends { read(bytes: Uint8Array): infer T } ? T : never;

const features: { readonly [feature: number]: readonly [string, Printable?] } = {
  [vfio.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN]: ["PCI_VF_TOKEN"],
  [vfio.VFIO_DEVICE_FEATURE_MIGRATION]: ["MIGRATION", vfio.VfioDeviceFeatureMigration],
  [vfio.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE]: ["MIG_DEVICE_STATE", vfio.VfioDeviceFeatureMigState],
  [vfio.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY]: ["LOW_POWER_ENTRY"],
  [vfio.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP]: [
    "LOW_POWER_ENTRY_WITH_WAKEUP",
    vfio.VfioDeviceLowPowerEntryWithWakeup,
  ],
  [vfio.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT]: ["LOW_POWER_EXIT"],
  [vfio.VFIO_DEVICE_FEATURE_DMA_LOGGING_START]: [
    "DMA_LOGGING_START",
    vfio.VfioDeviceFeatureDmaLoggingControl,
  ],
  [vfio.VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP]: ["DMA_LOGGING_STOP"],
  [vfio.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT]: [
    "DMA_LOGGING_REPORT",
    vfio.VfioDeviceFeatureDmaLoggingReport,
  ],
  [vfio.VFIO_DEVICE_FEATURE_MIG_DATA_SIZE]: ["MIG_DATA_SIZE", vfio.VfioDeviceFeatureMigDataSize],
  [vfio.VFIO_DEVICE_FEATURE_BUS_MASTER]: ["BUS_MASTER", vfio.VfioDeviceFeatureBusMaster],
  [vfio.VFIO_DEVICE_FEATURE_DMA_BUF]: ["DMA_BUF", vfio.VfioDeviceFeatureDmaBuf],
  [vfio.VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2]: ["MIG_PRECOPY_INFOv2"],
};

export const deviceFeature = withBlob<ValueOfStruct<typeof vfio.VfioDeviceFeature>>(
  vfio.VfioDeviceFeature,
  ({ flags }) => {
    const number = flags & vfio.VFIO_DEVICE_FEATURE_MASK;
    const name = features[number]?.[0] ?? String(number);
    const verbs = vfio.VfioDeviceFeature.members.flags.print(flags - number);
    return `feature=${name}, flags=${verbs}`;
  },
  ({ flags }) => features[flags & vfio.VFIO_DEVICE_FEATURE_MASK]?.[1],
);

export const irqSet: RequestArgument = {
  size: vfio.VfioIrqSet.size,
  print(bytes) {
    const { flags, index, start, count } = vfio.VfioIrqSet.read(bytes);
    const head = `flags=${vfio.VfioIrqSet.members.flags.print(flags)}, index=${index}, start=${start}, count=${u32.print(count)}`;
    const element =
      flags & vfio.VFIO_IRQ_SET_DATA_EVENTFD ? s32 : flags & vfio.VFIO_IRQ_SET_DATA_BOOL ? u8 : undefined;
    const rest = bytes.subarray(vfio.VfioIrqSet.size);
    if (!element || !rest.length) return `{ ${head} }`;
    const list = array(element, Math.min(count, Math.floor(rest.length / element.size)));
    const data = new DataView(rest.buffer, rest.byteOffset, rest.byteLength);
    return `{ ${head}, data=${list.print(list.readAt(data, 0, true))} }`;
  },
};

export const dirtyPages = withBlob<ValueOfStruct<typeof vfio.VfioIommuType1DirtyBitmap>>(
  vfio.VfioIommuType1DirtyBitmap,
  ({ flags }) => `flags=${vfio.VfioIommuType1DirtyBitmap.members.flags.print(flags)}`,
  ({ flags }) =>
    flags & vfio.VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP ? vfio.VfioIommuType1DirtyBitmapGet : undefined,
);

export const dmaUnmap = withBlob<ValueOfStruct<typeof vfio.VfioIommuType1DmaUnmap>>(
  vfio.VfioIommuType1DmaUnmap,
  ({ flags, iova, size }) => {
    const names = vfio.VfioIommuType1DmaUnmap.members.flags.print(flags);
    return `flags=${names}, iova=0x${iova.toString(16)}, size=0x${size.toString(16)}`;
  },
  ({ flags }) => (flags & vfio.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP ? vfio.VfioBitmap : undefined),
);

const nestingOps: { readonly [op: number]: readonly [string, Printable] } = {
  [vsva.VFIO_IOMMU_NESTING_OP_BIND_PGTBL]: ["BIND_PGTBL", vsva.IommuGpasidBindData],
  [vsva.VFIO_IOMMU_NESTING_OP_UNBIND_PGTBL]: ["UNBIND_PGTBL", vsva.IommuGpasidBindData],
  [vsva.VFIO_IOMMU_NESTING_OP_CACHE_INVLD]: ["CACHE_INVLD", vsva.IommuCacheInvalidateInfo],
  [SOFTIOMMU_NESTING_OP_BIND_PASID_TABLE]: ["BIND_PASID_TABLE", SoftiommuPasidTableSmmuv3],
  [SOFTIOMMU_NESTING_OP_UNBIND_PASID_TABLE]: ["UNBIND_PASID_TABLE", SoftiommuPasidTableSmmuv3],
  [SOFTIOMMU_NESTING_OP_PAGE_RESPONSE]: ["PAGE_RESPONSE", vsva.IommuPageResponse],
};

export const nestingOp = withBlob<ValueOfStruct<typeof vsva.VfioIommuType1NestingOp>>(
  vsva.VfioIommuType1NestingOp,
  ({ flags }) => {
    const op = flags & vsva.VFIO_NESTING_OP_MASK;
    const rest = flags - op;
    return `op=${nestingOps[op]?.[0] ?? op}${rest ? `, flags=0x${rest.toString(16)}` : ""}`;
  },
  ({ flags }) => nestingOps[flags & vsva.VFIO_NESTING_OP_MASK]?.[1],
);

type TestMember = Exclude<keyof (typeof mock.IommuTestCmd.members)[""]["members"], "">;
/** Which member of the union each test operation uses. */
const testMembers: { readonly [op: number]: TestMember } = {
  [mock.IOMMU_TEST_OP_ADD_RESERVED]: "add_reserved",
  [mock.IOMMU_TEST_OP_MOCK_DOMAIN]: "mock_domain",
  [mock.IOMMU_TEST_OP_MD_CHECK_MAP]: "check_map",
  [mock.IOMMU_TEST_OP_MD_CHECK_REFS]: "check_refs",
  [mock.IOMMU_TEST_OP_CREATE_ACCESS]: "create_access",
  [mock.IOMMU_TEST_OP_DESTROY_ACCESS_PAGES]: "destroy_access_pages",
  [mock.IOMMU_TEST_OP_ACCESS_PAGES]: "access_pages",
  [mock.IOMMU_TEST_OP_ACCESS_RW]: "access_rw",
  [mock.IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT]: "memory_limit",
  [mock.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE]: "mock_domain_replace",
  [mock.IOMMU_TEST_OP_ACCESS_REPLACE_IOAS]: "access_replace_ioas",
  [mock.IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS]: "mock_domain_flags",
  [mock.IOMMU_TEST_OP_DIRTY]: "dirty",
  [mock.IOMMU_TEST_OP_MD_CHECK_IOTLB]: "check_iotlb",
  [mock.IOMMU_TEST_OP_TRIGGER_IOPF]: "trigger_iopf",
  [mock.IOMMU_TEST_OP_DEV_CHECK_CACHE]: "check_dev_cache",
  [mock.IOMMU_TEST_OP_TRIGGER_VEVENT]: "trigger_vevent",
  [mock.IOMMU_TEST_OP_PASID_ATTACH]: "pasid_attach",
  [mock.IOMMU_TEST_OP_PASID_REPLACE]: "pasid_replace",
  [mock.IOMMU_TEST_OP_PASID_DETACH]: "pasid_detach",
  [mock.IOMMU_TEST_OP_PASID_CHECK_HWPT]: "pasid_check",
  [mock.IOMMU_TEST_OP_DMABUF_GET]: "dmabuf_get",
  [mock.IOMMU_TEST_OP_DMABUF_REVOKE]: "dmabuf_revoke",
};

export const testCommand: RequestArgument = {
  size: mock.IommuTestCmd.size,
  print(bytes) {
    const { op, id } = mock.IommuTestCmd.read(bytes);
    const head = `op=${mock.IommuTestCmd.members.op.print(op)}, id=${id}`;
    const member = testMembers[op];
    if (!member) return `{ ${head} }`;
    const inner: Printable = mock.IommuTestCmd.members[""].members[member];
    return `{ ${head}, ${member}=${inner.printBytes(bytes.subarray(mock.IommuTestCmd.offsets[member]))} }`;
  },
};
