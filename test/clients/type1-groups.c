/*
 * Two groups in one container, behind one unit or two: one list of mappings, which a group that joins later has too, IOVAs
 * that both can map, and what one group leaves behind is the other's.
 */
#include "type1.h"

#define AT 0x200000UL

static uint64_t highest(int container)
{
    uint8_t info[4096];
    struct vfio_iommu_type1_info_cap_iova_range *ranges = capability(container, info, 1);
    must(ranges && ranges->nr_iovas > 0);
    return ranges->iova_ranges[ranges->nr_iovas - 1].end;
}

static uint32_t available(int container)
{
    uint8_t info[4096];
    struct vfio_iommu_type1_info_dma_avail *left = capability(container, info, 3);
    must(left);
    return left->avail;
}

static int join(struct nvme *second, int container)
{
    char path[64];
    memset(second, 0, sizeof(*second));
    snprintf(path, sizeof(path), "/dev/vfio/%d", group_of(SECOND));
    must((second->group = open(path, O_RDWR)) >= 0);
    second->container = container;
    return ioctl(second->group, VFIO_GROUP_SET_CONTAINER, &container);
}

int main(int count, char **arguments)
{
    must(count == 2);
    int narrow = atoi(arguments[1]); /* address bits of the second one's unit */
    struct nvme n, second;
    start_nvme(&n, FIRST, VFIO_TYPE1v2_IOMMU);
    uint8_t *memory = pages(4);
    must(map_dma(n.container, memory, AT, 2 * PAGE) == 0 && available(n.container) == 65533);
    must(highest(n.container) == (1UL << 48) - 1);

    if (narrow < 48) { /* a mapping that the second one's unit cannot have keeps it out */
        must(map_dma(n.container, memory, 1UL << narrow, PAGE) == 0);
        refused(join(&second, n.container), EINVAL);
        must(close(second.group) == 0 && unmap_dma(n.container, 1UL << narrow, PAGE) == 0);
    }
    must(join(&second, n.container) == 0 && highest(n.container) == (1UL << narrow) - 1);
    if (narrow < 48)
        refused(map_dma(n.container, memory, 1UL << narrow, PAGE), EINVAL);
    must((second.device = ioctl(second.group, VFIO_GROUP_GET_DEVICE_FD, SECOND)) >= 0);

    memcpy(memory, "what the second one writes", 27);
    /* The controllers' queues lie at one address, which each needs for itself: one after the other. */
    must(transfer(&n, 1, AT, 7, 1) == 0 && transfer(&n, 2, AT + PAGE, 7, 1) == 0);
    must(strcmp((char *)memory + PAGE, (char *)memory) == 0);
    *reg32(&n, 0x14) = 0;
    while (*reg32(&n, 0x1c) & 1)
        usleep(100);
    memset(n.queues, 0, 8 * PAGE);
    second.queues = n.queues;
    start_controller(&second);
    memset(memory + PAGE, 0, PAGE);
    must(transfer(&second, 1, AT, 3, 1) == 0 && transfer(&second, 2, AT + PAGE, 3, 1) == 0);
    must(strcmp((char *)memory + PAGE, (char *)memory) == 0);
    must(unmap_dma(n.container, AT, 2 * PAGE) == 0 && transfer(&second, 2, AT, 3, 1) != 0);

    refused(ioctl(second.group, VFIO_GROUP_UNSET_CONTAINER), EBUSY);
    must(munmap((void *)n.bar, n.bar_size) == 0 && close(n.device) == 0); /* a mapped BAR keeps the device open */
    must(ioctl(n.group, VFIO_GROUP_UNSET_CONTAINER) == 0);
    must(map_dma(second.container, memory, AT, PAGE) == 0 && transfer(&second, 2, AT, 3, 1) == 0);
    must(munmap((void *)second.bar, second.bar_size) == 0 && close(second.device) == 0);
    must(ioctl(second.group, VFIO_GROUP_UNSET_CONTAINER) == 0);
    refused(map_dma(second.container, memory, AT, PAGE), EINVAL); /* the IOMMU went with the last group */
    puts("groups");
    return 0;
}
