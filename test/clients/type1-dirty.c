/*
 * Dirty pages of a container of version 2: what the migration capability says, start, stop and get, and an unmap that
 * reports. Devices do not tell what they write, so that every mapped page is dirty at any time.
 */
#include "type1.h"

#define AT 0x200000UL

static int track(int container, uint32_t flags)
{
    struct vfio_iommu_type1_dirty_bitmap argument = {.argsz = sizeof(argument), .flags = flags};
    return ioctl(container, VFIO_IOMMU_DIRTY_PAGES, &argument);
}

static int get(int container, uint64_t iova, uint64_t size, struct vfio_bitmap bitmap)
{
    struct {
        struct vfio_iommu_type1_dirty_bitmap head;
        struct vfio_iommu_type1_dirty_bitmap_get get;
    } argument = {{sizeof(argument), VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP}, {iova, size, bitmap}};
    return ioctl(container, VFIO_IOMMU_DIRTY_PAGES, &argument);
}

static int64_t unmap_and_report(int container, uint64_t iova, uint64_t size, struct vfio_bitmap bitmap)
{
    struct {
        struct vfio_iommu_type1_dma_unmap unmap;
        struct vfio_bitmap bitmap;
    } argument = {{sizeof(argument), VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, iova, size}, bitmap};
    return ioctl(container, VFIO_IOMMU_UNMAP_DMA, &argument) == 0 ? (int64_t)argument.unmap.size : -1;
}

int main(void)
{
    struct nvme n;
    start_nvme(&n, FIRST, VFIO_TYPE1v2_IOMMU);
    uint8_t info[4096], *memory = pages(8);
    struct vfio_iommu_type1_info_cap_migration *migration = capability(n.container, info, 2);
    must(migration && migration->header.version == 1 && migration->flags == 0);
    must(migration->pgsize_bitmap == PAGE && migration->max_dirty_bitmap_size == 1UL << 28);

    must(map_dma(n.container, memory, AT, 3 * PAGE) == 0);
    must(map_dma(n.container, memory + 4 * PAGE, AT + 4 * PAGE, PAGE) == 0);
    uint64_t bits = 0x80;
    struct vfio_bitmap bitmap = {PAGE, 8, (void *)&bits};
    refused(get(n.container, AT, 8 * PAGE, bitmap), EINVAL); /* not started */
    refused(unmap_and_report(n.container, AT, 3 * PAGE, bitmap), EINVAL);
    refused(track(n.container, 0), EINVAL);
    refused(track(n.container, 3), EINVAL);
    must(track(n.container, VFIO_IOMMU_DIRTY_PAGES_FLAG_START) == 0 && track(n.container, 1) == 0);

    must(transfer(&n, 2, AT, 0, 1) == 0);
    for (int again = 0; again < 2; again++) {
        bits = 0x80; /* where nothing is mapped, a bit is nobody's */
        must(get(n.container, AT, 8 * PAGE, bitmap) == 0 && bits == 0x97);
    }
    refused(get(n.container, AT, 2 * PAGE, bitmap), EINVAL); /* cuts a mapping */
    refused(get(n.container, AT, 0, bitmap), EINVAL);
    refused(get(n.container, AT + 1, PAGE, bitmap), EINVAL);
    refused(get(n.container, ~0UL & -PAGE, 2 * PAGE, bitmap), EOVERFLOW);
    struct vfio_bitmap wrong = bitmap;
    wrong.pgsize = 2 * PAGE;
    refused(get(n.container, AT, 8 * PAGE, wrong), EINVAL);
    wrong = bitmap, wrong.size = 0;
    refused(get(n.container, AT, 8 * PAGE, wrong), EINVAL);
    wrong = bitmap, wrong.data = (void *)8;
    refused(get(n.container, AT, 8 * PAGE, wrong), EFAULT);

    refused(unmap_and_report(n.container, AT, 3 * PAGE, wrong), EFAULT);
    must(transfer(&n, 2, AT, 0, 1) == 0); /* it is still mapped */
    bits = 0;
    must(unmap_and_report(n.container, AT, 3 * PAGE, bitmap) == (int64_t)(3 * PAGE) && bits == 7);
    must(transfer(&n, 2, AT, 0, 1) != 0);
    refused(unmap_flags(n.container, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP | VFIO_DMA_UNMAP_FLAG_ALL, 0, 0), EINVAL);
    must(track(n.container, VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP) == 0 && track(n.container, 2) == 0);
    refused(get(n.container, AT, 8 * PAGE, bitmap), EINVAL);

    struct nvme older;
    open_device(&older, SECOND, VFIO_TYPE1_IOMMU);
    refused(track(older.container, VFIO_IOMMU_DIRTY_PAGES_FLAG_START), EACCES);
    puts("dirty");
    return 0;
}
