/** HWPT_ALLOC (linux/iommufd.h, "struct iommu_hwpt_alloc"), in the order in which Linux 7.2 checks. */
import type { NestedDomain, UserData } from "../iommu/driver.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  IOMMU_HWPT_ALLOC,
  IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
  IOMMU_HWPT_ALLOC_NEST_PARENT,
  IOMMU_HWPT_ALLOC_PASID,
  IOMMU_HWPT_DATA_NONE,
  IOMMU_HWPT_FAULT_ID_VALID,
  IommuHwptAlloc,
} from "../uapi/iommufd.ts";
import { hex } from "./address.ts";
import type { IommufdContext } from "./context.ts";
import { type DeviceObject, deviceOf } from "./device.ts";
import { faultQueueOf } from "./fault-queue.ts";
import { type Hwpt, HwptNested, HwptPaging } from "./hwpt.ts";
import { Ioas } from "./ioas.ts";
import { request, requireFlags, requireZero } from "./request.ts";
import { userData } from "./user-data.ts";
import { Viommu } from "./viommu.ts";

/** What the request asks for, taken apart. */
interface Wanted {
  readonly context: IommufdContext;
  readonly device: DeviceObject;
  readonly flags: number;
  readonly data: UserData;
}

const KNOWN_FLAGS =
  IOMMU_HWPT_ALLOC_NEST_PARENT |
  IOMMU_HWPT_ALLOC_DIRTY_TRACKING |
  IOMMU_HWPT_FAULT_ID_VALID |
  IOMMU_HWPT_ALLOC_PASID;

const paging = ({ device, flags, data }: Wanted, ioas: Ioas): HwptPaging => {
  requireFlags(flags, KNOWN_FLAGS);
  const nestParent = (flags & IOMMU_HWPT_ALLOC_NEST_PARENT) !== 0;
  return device.allocatePaging(
    ioas,
    {
      nestParent,
      dirtyTracking: (flags & IOMMU_HWPT_ALLOC_DIRTY_TRACKING) !== 0,
      pasid: (flags & IOMMU_HWPT_ALLOC_PASID) !== 0,
      faults: (flags & IOMMU_HWPT_FAULT_ID_VALID) !== 0,
    },
    data.length > 0 ? data : undefined,
  );
};

/** Flags that a nested HWPT may have; its driver may know fewer. */
const NESTED_FLAGS = IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_PASID;

const addNested = (wanted: Wanted, parent: HwptPaging, above: HwptPaging | Viommu, domain: NestedDomain) => {
  const { context, flags } = wanted;
  const pasid = (flags & IOMMU_HWPT_ALLOC_PASID) !== 0;
  const hwpt = new HwptNested(context, parent, domain, { above, pasid });
  try {
    return context.add(hwpt);
  } catch (error) {
    hwpt.destroy();
    throw error;
  }
};

const nestedOptions = ({ flags }: Wanted) => ({
  faults: (flags & IOMMU_HWPT_FAULT_ID_VALID) !== 0,
  pasid: (flags & IOMMU_HWPT_ALLOC_PASID) !== 0,
});

const requireVendorData = ({ data, device }: Wanted, allocate: unknown): void => {
  if (data.length === 0 || !allocate)
    throw new LinuxError(
      "EOPNOTSUPP",
      "a nested HWPT needs the vendor's data, and an IOMMU that nests",
      device.name,
    );
};

const nestedOnParent = (wanted: Wanted, parent: HwptPaging): HwptNested => {
  const { context, device, flags, data } = wanted;
  const { driver, function: requester } = device.device;
  requireVendorData(wanted, driver.allocateNested);
  requireFlags(flags, NESTED_FLAGS);
  if (!parent.nestParent)
    throw new LinuxError("EINVAL", `${parent.name} was not made as a nest parent`, parent.name);
  context.allocate("a nested domain");
  const domain = driver.allocateNested!(requester, parent.domain, data, nestedOptions(wanted));
  return addNested(wanted, parent, parent, domain);
};

const nestedOnViommu = (wanted: Wanted, viommu: Viommu): HwptNested => {
  const { context, device, flags, data } = wanted;
  requireVendorData(wanted, viommu.virtual.allocateNested);
  requireFlags(flags, NESTED_FLAGS);
  if (device.device.driver !== viommu.driver)
    throw new LinuxError("EINVAL", `the device is not behind the IOMMU of ${viommu.name}`, device.name);
  context.allocate("a nested domain");
  const domain = viommu.virtual.allocateNested!(device.device.function, data, nestedOptions(wanted));
  return addNested(wanted, viommu.parent, viommu, domain);
};

const allocate = (wanted: Wanted, ptId: number): Hwpt => {
  const target = wanted.context.objects.find(ptId);
  if (target instanceof Ioas) return paging(wanted, target);
  if (target instanceof HwptPaging) return nestedOnParent(wanted, target);
  if (target instanceof Viommu) return nestedOnViommu(wanted, target);
  throw new LinuxError(
    "EINVAL",
    `pt_id ${ptId} names no IOAS, nest parent or vIOMMU for a HWPT to lie above`,
    wanted.device.name,
  );
};

export const hwptAlloc = request(
  IOMMU_HWPT_ALLOC,
  IommuHwptAlloc,
  "__reserved",
  ({ context, call, argument, respond }) => {
    const { flags, data_type: type, data_len: length, data_uptr } = argument;
    requireZero("__reserved", argument.__reserved);
    if ((type === IOMMU_HWPT_DATA_NONE) !== (length === 0))
      throw new LinuxError("EINVAL", `data_type ${hex(type)} and data_len ${length} do not go together`);
    const device = deviceOf(context, argument.dev_id);
    const data = userData(call, type, data_uptr, length);
    const hwpt = allocate({ context, device, flags, data }, argument.pt_id);
    try {
      if (flags & IOMMU_HWPT_FAULT_ID_VALID) hwpt.useFault(faultQueueOf(context, argument.fault_id));
      respond({ out_hwpt_id: hwpt.id });
    } catch (error) {
      context.objects.remove(hwpt);
      throw error;
    }
  },
);
