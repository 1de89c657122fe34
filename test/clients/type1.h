/* What the clients of a container's calls share: unmaps with flags, dirty bitmaps, and calls that must be refused. */
#ifndef TYPE1_H
#define TYPE1_H
#include "vfio-nvme.h"

#define refused(call, error)                                                                   \
    do {                                                                                       \
        errno = 0;                                                                             \
        must((call) == -1);                                                                    \
        must(errno == (error));                                                                \
    } while (0)

#define FIRST "0000:01:00.0"
#define SECOND "0000:02:00.0"

/* -1, or the bytes that were unmapped. */
static inline int64_t unmap_flags(int container, uint32_t flags, uint64_t iova, uint64_t size)
{
    struct vfio_iommu_type1_dma_unmap unmap = {sizeof(unmap), flags, iova, size};
    return ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap) == 0 ? (int64_t)unmap.size : -1;
}

static inline int map_flags(int container, uint32_t flags, void *va, uint64_t iova, uint64_t size)
{
    struct vfio_iommu_type1_dma_map map = {sizeof(map), flags, (uintptr_t)va, iova, size};
    return ioctl(container, VFIO_IOMMU_MAP_DMA, &map);
}

/* A container's answer to GET_INFO, whole; the capability with this id or NULL. */
static inline void *capability(int container, uint8_t info[4096], uint16_t id)
{
    struct vfio_iommu_type1_info *head = (void *)info;
    memset(info, 0, 4096);
    head->argsz = 4096;
    must(ioctl(container, VFIO_IOMMU_GET_INFO, info) == 0);
    must(head->flags == (VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS));
    for (uint32_t at = head->cap_offset; at;) {
        struct vfio_info_cap_header *header = (void *)(info + at);
        if (header->id == id)
            return header;
        at = header->next;
    }
    return NULL;
}
#endif
