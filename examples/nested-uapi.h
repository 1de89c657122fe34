/*
 * The parts of linux/iommufd.h and of newer versions of linux/vfio.h that the examples of nesting use, for
 * computers whose headers are older. Numbers and layouts are those of Linux 7.2; names are shortened where
 * they are long.
 */
#ifndef NESTED_UAPI_H
#define NESTED_UAPI_H
#include <stdint.h>

#define IOMMU_DESTROY 0x3b80
#define IOMMU_IOAS_ALLOC 0x3b81
#define IOMMU_IOAS_MAP 0x3b85
#define IOMMU_HWPT_ALLOC 0x3b89
#define IOMMU_GET_HW_INFO 0x3b8a
#define IOMMU_HWPT_INVALIDATE 0x3b8d
#define IOMMU_FAULT_QUEUE_ALLOC 0x3b8e
#define IOMMU_VIOMMU_ALLOC 0x3b90
#define IOMMU_VDEVICE_ALLOC 0x3b91
#define IOMMU_VEVENTQ_ALLOC 0x3b93
#define CDEV_BIND_IOMMUFD 0x3b76      /* VFIO_DEVICE_BIND_IOMMUFD */
#define CDEV_ATTACH_IOMMUFD_PT 0x3b77 /* VFIO_DEVICE_ATTACH_IOMMUFD_PT */
#define CDEV_DETACH_IOMMUFD_PT 0x3b78 /* VFIO_DEVICE_DETACH_IOMMUFD_PT */

enum { MAP_FIXED_IOVA = 1, MAP_WRITEABLE = 2, MAP_READABLE = 4 };                      /* IOMMU_IOAS_MAP_* */
enum { ALLOC_NEST_PARENT = 1, ALLOC_FAULT_ID_VALID = 4, ALLOC_PASID = 8 };             /* IOMMU_HWPT_* */
enum { HW_INFO_TYPE_INTEL_VTD = 1, HWPT_DATA_VTD_S1 = 1, INVALIDATE_DATA_VTD_S1 = 0 };
enum { VTD_S1_WPE = 4, VTD_INV_LEAF = 1, WITH_PASID = 1 };
enum { FAULT_PASID_VALID = 1, FAULT_LAST_PAGE = 2, FAULT_PERM_WRITE = 2 }; /* IOMMU_PGFAULT_* */
enum { RESPONSE_SUCCESS = 0, RESPONSE_INVALID = 1 };                       /* IOMMUFD_PAGE_RESP_* */

enum { HW_INFO_TYPE_ARM_SMMUV3 = 2, HWPT_DATA_ARM_SMMUV3 = 2, INVALIDATE_DATA_ARM_SMMUV3 = 1 };
enum { VIOMMU_TYPE_ARM_SMMUV3 = 1, VEVENTQ_TYPE_ARM_SMMUV3 = 1, VEVENT_LOST = 1 };
/* IOMMU_VIOMMU_INVALIDATE_DATA_* of the extension amd-nesting, which Linux does not have. */
#define INVALIDATE_DATA_AMD 0xa3d00001U
enum { HW_INFO_TYPE_AMD = 4, HWPT_DATA_AMD_GUEST = 3 };

struct destroy { uint32_t size, id; };
struct ioas_alloc { uint32_t size, flags, out_ioas_id; };
struct ioas_map {
    uint32_t size, flags, ioas_id, reserved;
    uint64_t user_va, length, iova;
};
struct hwpt_alloc {
    uint32_t size, flags, dev_id, pt_id, out_hwpt_id, reserved, data_type, data_len;
    uint64_t data_uptr;
    uint32_t fault_id, reserved2;
};
struct hw_info {
    uint32_t size, flags, dev_id, data_len;
    uint64_t data_uptr;
    uint32_t out_data_type;
    uint8_t out_max_pasid_log2, reserved[3];
    uint64_t out_capabilities;
};
struct hw_info_vtd {
    uint32_t flags, reserved;
    uint64_t cap_reg, ecap_reg;
};
struct hwpt_vtd_s1 {
    uint64_t flags, pgtbl_addr;
    uint32_t addr_width, reserved;
};
struct hw_info_smmuv3 { uint32_t flags, reserved, idr[6], iidr, aidr; };
struct hwpt_smmuv3 { uint64_t ste[2]; };
struct smmuv3_invalidate { uint64_t cmd[2]; };
struct hw_info_amd { uint64_t efr, efr2; };
struct hwpt_amd_guest { uint64_t dte[4]; };
struct amd_invalidate { uint64_t cmd[2]; };
struct viommu_alloc {
    uint32_t size, flags, type, dev_id, hwpt_id, out_viommu_id, data_len, reserved;
    uint64_t data_uptr;
};
struct vdevice_alloc {
    uint32_t size, viommu_id, dev_id, out_vdevice_id;
    uint64_t virt_id;
};
struct veventq_alloc {
    uint32_t size, flags, viommu_id, type, veventq_depth, out_veventq_id, out_veventq_fd, reserved;
};
struct vevent_header { uint32_t flags, sequence; };
struct vevent_smmuv3 { uint64_t evt[4]; };
struct hwpt_invalidate {
    uint32_t size, hwpt_id;
    uint64_t data_uptr;
    uint32_t data_type, entry_len, entry_num, reserved;
};
struct vtd_s1_invalidate {
    uint64_t addr, npages;
    uint32_t flags, reserved;
};
struct fault_alloc { uint32_t size, flags, out_fault_id, out_fault_fd; };
struct pgfault {
    uint32_t flags, dev_id, pasid, grpid, perm, reserved;
    uint64_t addr;
    uint32_t length, cookie;
};
struct page_response { uint32_t cookie, code; };
struct cdev_bind {
    uint32_t argsz, flags;
    int32_t iommufd;
    uint32_t out_devid;
    uint64_t token_uuid_ptr;
};
struct cdev_attach { uint32_t argsz, flags, pt_id, pasid; };
struct cdev_detach { uint32_t argsz, flags, pasid; };
#endif
