/** GET_HW_INFO (linux/iommufd.h, "struct iommu_hw_info"): what the IOMMU of a bound device tells about itself. */
import { LinuxError } from "../uapi/errno.ts";
import {
  IOMMU_GET_HW_INFO,
  IOMMU_HW_CAP_DIRTY_TRACKING,
  IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED,
  IOMMU_HW_CAP_PCI_PASID_EXEC,
  IOMMU_HW_CAP_PCI_PASID_PRIV,
  IOMMU_HW_INFO_FLAG_INPUT_TYPE,
  IOMMU_HW_INFO_TYPE_DEFAULT,
  IOMMU_HW_INFO_TYPE_NONE,
  IommuHwInfo,
} from "../uapi/iommufd.ts";
import { deviceOf } from "./device.ts";
import { request, requireFlags, requireZero } from "./request.ts";

/** Bytes beyond the structure that are cleared in one go. */
const CHUNK = 65_536;

export const getHwInfo = request(
  IOMMU_GET_HW_INFO,
  IommuHwInfo,
  "__reserved",
  ({ context, call, argument, respond }) => {
    const { flags, data_len, data_uptr } = argument;
    requireFlags(flags, IOMMU_HW_INFO_FLAG_INPUT_TYPE);
    requireZero("__reserved", argument.__reserved);
    const given = (flags & IOMMU_HW_INFO_FLAG_INPUT_TYPE) !== 0;
    const type = given ? argument.in_data_type : IOMMU_HW_INFO_TYPE_DEFAULT;
    const { device } = deviceOf(context, argument.dev_id);
    const { driver, function: requester, capabilities } = device;
    const info = driver.hardwareInfo?.(requester, type);
    if (!info && type !== IOMMU_HW_INFO_TYPE_DEFAULT)
      throw new LinuxError(
        "EOPNOTSUPP",
        `the IOMMU has no information of type 0x${type.toString(16)}`,
        device.name,
      );
    if (info) context.allocate("what the IOMMU tells about itself");
    const bytes = info?.bytes ?? new Uint8Array(0);
    call.memory.write(data_uptr, bytes.subarray(0, Math.min(data_len, bytes.length)));
    const zeros = new Uint8Array(Math.min(CHUNK, Math.max(0, data_len - bytes.length)));
    for (let at = bytes.length; at < data_len; at += zeros.length)
      call.memory.write(data_uptr + BigInt(at), zeros.subarray(0, Math.min(zeros.length, data_len - at)));
    const has = (present: boolean | undefined, bit: number): number => (present ? bit : 0);
    respond({
      data_len: bytes.length,
      out_data_type: info?.type ?? IOMMU_HW_INFO_TYPE_NONE,
      out_max_pasid_log2: capabilities.pasidBits,
      out_capabilities: BigInt(
        has(capabilities.dirtyTracking, IOMMU_HW_CAP_DIRTY_TRACKING) |
          has(capabilities.pasidExecute, IOMMU_HW_CAP_PCI_PASID_EXEC) |
          has(capabilities.pasidPrivileged, IOMMU_HW_CAP_PCI_PASID_PRIV) |
          has(!capabilities.ats, IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED),
      ),
    });
  },
);
