/*
 * The parts of linux/iommufd.h and of newer versions of linux/vfio.h that the test clients use, for computers whose
 * headers are older; numbers and layouts are those of the interface.
 */
#ifndef IOMMUFD_H
#define IOMMUFD_H
#include <stdint.h>
#include <sys/ioctl.h>

#define IOMMU_DESTROY 0x3b80
#define IOMMU_IOAS_ALLOC 0x3b81
#define IOMMU_IOAS_IOVA_RANGES 0x3b84
#define IOMMU_IOAS_MAP 0x3b85
#define IOMMU_IOAS_UNMAP 0x3b86
#define IOMMU_HWPT_ALLOC 0x3b89
#define IOMMU_GET_HW_INFO 0x3b8a
#define CDEV_BIND_IOMMUFD 0x3b76
#define CDEV_ATTACH_IOMMUFD_PT 0x3b77
#define CDEV_DETACH_IOMMUFD_PT 0x3b78

struct iommu_destroy { uint32_t size, id; };
struct iommu_ioas_alloc { uint32_t size, flags, out_ioas_id; };
struct iommu_iova_range { uint64_t start, last; };
struct iommu_ioas_iova_ranges {
    uint32_t size, ioas_id, num_iovas, reserved;
    uint64_t allowed_iovas, out_iova_alignment;
};
struct iommu_ioas_map {
    uint32_t size, flags, ioas_id, reserved;
    uint64_t user_va, length, iova;
};
struct iommu_ioas_unmap {
    uint32_t size, ioas_id;
    uint64_t iova, length;
};
struct iommu_hwpt_alloc {
    uint32_t size, flags, dev_id, pt_id, out_hwpt_id, reserved, data_type, data_len;
    uint64_t data_uptr;
    uint32_t fault_id, reserved2;
};
struct iommu_hw_info {
    uint32_t size, flags, dev_id, data_len;
    uint64_t data_uptr;
    uint32_t out_data_type;
    uint8_t out_max_pasid_log2, reserved[3];
    uint64_t out_capabilities;
};
struct iommu_hw_info_vtd {
    uint32_t flags, reserved;
    uint64_t cap_reg, ecap_reg;
};
struct iommu_hw_info_arm_smmuv3 {
    uint32_t flags, reserved, idr[6], iidr, aidr;
};
struct iommu_hw_info_amd { uint64_t efr, efr2; };
struct cdev_bind {
    uint32_t argsz, flags;
    int32_t iommufd;
    uint32_t out_devid;
};
struct cdev_attach { uint32_t argsz, flags, pt_id; };
struct cdev_detach { uint32_t argsz, flags; };

static inline int ioas_map(int iommufd, uint32_t ioas, void *va, uint64_t iova, uint64_t length)
{
    struct iommu_ioas_map map = {
        .size = sizeof(map),
        .flags = 7, /* at this IOVA, writable, readable */
        .ioas_id = ioas,
        .user_va = (uintptr_t)va,
        .length = length,
        .iova = iova,
    };
    return ioctl(iommufd, IOMMU_IOAS_MAP, &map);
}

static inline int ioas_unmap(int iommufd, uint32_t ioas, uint64_t iova, uint64_t length)
{
    struct iommu_ioas_unmap unmap = {sizeof(unmap), ioas, iova, length};
    return ioctl(iommufd, IOMMU_IOAS_UNMAP, &unmap);
}

/* A new address space; 0 on failure. */
static inline uint32_t ioas_alloc(int iommufd)
{
    struct iommu_ioas_alloc alloc = {.size = sizeof(alloc)};
    return ioctl(iommufd, IOMMU_IOAS_ALLOC, &alloc) == 0 ? alloc.out_ioas_id : 0;
}

/* A page table of the device for an address space; 0 on failure. */
static inline uint32_t hwpt_alloc(int iommufd, uint32_t device, uint32_t ioas)
{
    struct iommu_hwpt_alloc alloc = {.size = sizeof(alloc), .dev_id = device, .pt_id = ioas};
    return ioctl(iommufd, IOMMU_HWPT_ALLOC, &alloc) == 0 ? alloc.out_hwpt_id : 0;
}

static inline int destroy(int iommufd, uint32_t id)
{
    struct iommu_destroy gone = {sizeof(gone), id};
    return ioctl(iommufd, IOMMU_DESTROY, &gone);
}

/* The device's id; 0 on failure. */
static inline uint32_t cdev_bind(int device, int iommufd)
{
    struct cdev_bind bind = {.argsz = sizeof(bind), .iommufd = iommufd};
    return ioctl(device, CDEV_BIND_IOMMUFD, &bind) == 0 ? bind.out_devid : 0;
}

static inline int cdev_attach(int device, uint32_t pt)
{
    struct cdev_attach attach = {sizeof(attach), 0, pt};
    return ioctl(device, CDEV_ATTACH_IOMMUFD_PT, &attach);
}

static inline int cdev_detach(int device)
{
    struct cdev_detach detach = {sizeof(detach), 0};
    return ioctl(device, CDEV_DETACH_IOMMUFD_PT, &detach);
}
#endif
