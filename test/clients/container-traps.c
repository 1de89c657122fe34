/* The traps of the legacy container: what people run into, one line each with the errno that Linux gives. */
#include "vfio-nvme.h"
#include <sys/wait.h>

static void said(const char *what, int result)
{
    printf("%s: %s\n", what, result >= 0 ? "ok" : strerrorname_np(errno));
}

static int open_group(const char *bdf)
{
    char path[64];
    snprintf(path, sizeof(path), "/dev/vfio/%d", group_of(bdf));
    return open(path, O_RDWR);
}

int main(void)
{
    const char *bdf = "0000:01:00.0";
    uint8_t *data = pages(4);
    int container = open("/dev/vfio/vfio", O_RDWR);
    said("map before SET_IOMMU", map_dma(container, data, 0x1000, PAGE));
    said("SET_IOMMU without a group", ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
    int group = open_group(bdf);
    said("open the group", group);
    said("open the group twice", open_group(bdf));
    said("device before SET_CONTAINER", ioctl(group, VFIO_GROUP_GET_DEVICE_FD, bdf));
    said("SET_CONTAINER of a group", ioctl(group, VFIO_GROUP_SET_CONTAINER, &group));
    said("SET_CONTAINER", ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
    said("SET_CONTAINER twice", ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
    said("map before SET_IOMMU, with a group", map_dma(container, data, 0x1000, PAGE));
    said("SET_IOMMU of the 2020 nesting type", ioctl(container, VFIO_SET_IOMMU, 6));
    said("SET_IOMMU", ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
    said("SET_IOMMU twice", ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
    said("device of another group", ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:02:00.0"));
    int device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, bdf);
    said("device", device);
    said("UNSET_CONTAINER with the device open", ioctl(group, VFIO_GROUP_UNSET_CONTAINER));

    said("map", map_dma(container, data, 0x100000, 2 * PAGE));
    said("map over it", map_dma(container, data, 0x101000, 2 * PAGE));
    said("map of no memory", map_dma(container, (void *)0x10000, 0x200000, PAGE));
    said("map of an odd address", map_dma(container, data + 1, 0x200000, PAGE));
    said("map of an odd iova", map_dma(container, data, 0x200001, PAGE));
    said("map of no length", map_dma(container, data, 0x200000, 0));
    said("map around the end of addresses", map_dma(container, data, -PAGE, 2 * PAGE));
    said("map beyond the 48 bits of the unit", map_dma(container, data, 1UL << 48, PAGE));
    said("map over the interrupt window", map_dma(container, data, 0xfee00000, PAGE));
    said("unmap of half a mapping", unmap_dma(container, 0x100000, PAGE));
    said("unmap", unmap_dma(container, 0x100000, 2 * PAGE));

    long count = 0;
    while (map_dma(container, data, 0x100000000UL + count * PAGE, PAGE) == 0)
        count++;
    printf("mappings until %s: %ld\n", strerrorname_np(errno), count);
    struct vfio_iommu_type1_dma_unmap all = {.argsz = sizeof(all), .flags = VFIO_DMA_UNMAP_FLAG_ALL};
    said("unmap all", ioctl(container, VFIO_IOMMU_UNMAP_DMA, &all));
    printf("unmapped %llu\n", (unsigned long long)all.size / PAGE);

    fflush(stdout);
    if (fork() == 0) {
        said("open the group in another process", open_group(bdf));
        fflush(stdout);
        _exit(0);
    }
    wait(NULL);
    close(device);
    said("UNSET_CONTAINER", ioctl(group, VFIO_GROUP_UNSET_CONTAINER));
    said("map after the last group left", map_dma(container, data, 0x1000, PAGE));
    close(group);
    said("open the group again", open_group(bdf));
    return 0;
}
