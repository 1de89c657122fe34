/*
 * Unmaps of a container that do not fit its mappings: version 1 takes nothing when it is asked from within a mapping and
 * all of one that it is asked to cut at the end, version 2 refuses both; ALL takes everything. The device sees each.
 */
#include "type1.h"

#define AT 0x200000UL

/* The device reads a block into the page at this address. */
static int reaches(struct nvme *n, uint64_t iova)
{
    return transfer(n, 2, iova, 0, 1) == 0;
}

int main(int count, char **arguments)
{
    must(count == 2);
    int version = atoi(arguments[1]);
    struct nvme n;
    start_nvme(&n, FIRST, version == 1 ? VFIO_TYPE1_IOMMU : VFIO_TYPE1v2_IOMMU);
    uint8_t *memory = pages(8);
    must(map_dma(n.container, memory, AT, 4 * PAGE) == 0);
    must(map_dma(n.container, memory + 4 * PAGE, AT + 4 * PAGE, 4 * PAGE) == 0);

    if (version == 1) {
        must(unmap_flags(n.container, 0, AT + PAGE, PAGE) == 0);
        must(unmap_flags(n.container, 0, AT + PAGE, 7 * PAGE) == 0 && reaches(&n, AT) && reaches(&n, AT + 7 * PAGE));
        must(unmap_flags(n.container, 0, AT, PAGE) == (int64_t)(4 * PAGE));
        must(!reaches(&n, AT + 3 * PAGE) && reaches(&n, AT + 4 * PAGE));
    } else {
        refused(unmap_flags(n.container, 0, AT + PAGE, PAGE), EINVAL);
        refused(unmap_flags(n.container, 0, AT, PAGE), EINVAL);
        refused(unmap_flags(n.container, 0, AT, 5 * PAGE), EINVAL);
        must(reaches(&n, AT) && reaches(&n, AT + 7 * PAGE));
        must(unmap_flags(n.container, 0, AT, 4 * PAGE) == (int64_t)(4 * PAGE));
        must(!reaches(&n, AT) && reaches(&n, AT + 4 * PAGE));
    }
    must(unmap_flags(n.container, 0, AT, 4 * PAGE) == 0);

    refused(unmap_flags(n.container, 8, AT, PAGE), EINVAL);
    refused(unmap_flags(n.container, 0, AT, 0), EINVAL);
    refused(unmap_flags(n.container, 0, AT + 1, PAGE), EINVAL);
    refused(unmap_flags(n.container, 0, ~0UL & -PAGE, 2 * PAGE), EOVERFLOW);
    refused(unmap_flags(n.container, VFIO_DMA_UNMAP_FLAG_ALL, AT, PAGE), EINVAL);
    must(ioctl(n.container, VFIO_CHECK_EXTENSION, VFIO_UNMAP_ALL) == 1);
    must(unmap_flags(n.container, VFIO_DMA_UNMAP_FLAG_ALL, 0, 0) == (int64_t)(12 * PAGE)); /* the queues too */
    must(unmap_flags(n.container, VFIO_DMA_UNMAP_FLAG_ALL, 0, 0) == 0);
    printf("version %d\n", version);
    return 0;
}
