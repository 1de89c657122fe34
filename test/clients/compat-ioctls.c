/*
 * VFIO's container requests on /dev/iommu: the address space they use, both versions of unmap, and what
 * is told.
 */
#include "iommufd-objects.h"
#include <linux/vfio.h>

static int fd;

static int vfio_ioas(uint16_t op, uint32_t *ioas)
{
    struct {
        uint32_t size, ioas_id;
        uint16_t op, reserved;
    } argument = {12, *ioas, op, 0};
    int error = request(fd, IOMMU_VFIO_IOAS, &argument);
    *ioas = argument.ioas_id;
    return error;
}

static int map_dma(void *memory, uint64_t iova, uint64_t size)
{
    struct vfio_iommu_type1_dma_map map = {sizeof map, 3, (uintptr_t)memory, iova, size};
    return request(fd, VFIO_IOMMU_MAP_DMA, &map);
}

static int unmap_dma(uint32_t flags, uint64_t iova, uint64_t *size)
{
    struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof unmap, .flags = flags, .iova = iova,
         .size = *size};
    int error = request(fd, VFIO_IOMMU_UNMAP_DMA, &unmap);
    *size = unmap.size;
    return error;
}

static void information(void)
{
    uint8_t text[256] = {0};
    struct vfio_iommu_type1_info *info = (struct vfio_iommu_type1_info *)text;
    info->argsz = sizeof *info;
    must(request(fd, VFIO_IOMMU_GET_INFO, info) == 0 && (info->flags & VFIO_IOMMU_INFO_CAPS) &&
         info->argsz > sizeof *info);
    must(info->cap_offset == 0);
    info->argsz = sizeof text;
    must(request(fd, VFIO_IOMMU_GET_INFO, info) == 0 && info->cap_offset != 0);
    struct vfio_info_cap_header *cap = (void *)(text + info->cap_offset);
    must(cap->id == 3 && *(uint32_t *)(cap + 1) == ~0u && cap->next != 0); /* mappings left */
    cap = (void *)(text + cap->next);
    struct vfio_iova_range *ranges = (void *)((uint64_t *)cap + 2);
    must(cap->id == 1 && cap->next == 0 && ((uint32_t *)cap)[2] == 1);
    must(ranges[0].start == APERTURE && ranges[0].end == 0x7fffffff);
}

int main(void)
{
    fd = open_iommu();
    uint32_t ioas = alloc_ioas(fd), named = 0;
    uint8_t *memory = some_pages(8);
    uint64_t size = PAGE;
    must(ioctl(fd, VFIO_GET_API_VERSION) == 0 && vfio_ioas(0, &named) == ENODEV);
    must(map_dma(memory, APERTURE, PAGE) == ENODEV && ioctl(fd, VFIO_SET_IOMMU, 3) == -1 && errno == ENODEV);
    must(vfio_ioas(1, &ioas) == 0 && vfio_ioas(0, &named) == 0 && named == ioas);
    must(ioctl(fd, VFIO_CHECK_EXTENSION, 1) == 1 && ioctl(fd, VFIO_CHECK_EXTENSION, 3) == 1 &&
         ioctl(fd, VFIO_CHECK_EXTENSION, 2) == 0);
    must(ioctl(fd, VFIO_SET_IOMMU, 3) == 0 && ioctl(fd, VFIO_SET_IOMMU, 2) == -1 && errno == EINVAL);
    struct device device = plug(fd, ioas, 0);
    information();

    must(map_dma(memory, APERTURE, 8 * PAGE) == 0 && map_dma(memory, APERTURE + PAGE, PAGE) == EEXIST);
    must(check_refs(fd, memory, 8 * PAGE, 1) == 0);
    must(unmap_dma(0, APERTURE + 16 * PAGE, &size) == 0 && size == 0);
    size = PAGE;
    must(unmap_dma(0, APERTURE, &size) == ENOENT); /* version 2 takes whole mappings */
    size = 16 * PAGE;
    must(unmap_dma(0, APERTURE, &size) == 0 && size == 8 * PAGE && check_refs(fd, memory, 8 * PAGE, 0) == 0);

    must(ioctl(fd, VFIO_SET_IOMMU, 1) == 0 && map_dma(memory, APERTURE, 8 * PAGE) == 0);
    size = 2 * PAGE;
    must(unmap_dma(0, APERTURE + 2 * PAGE, &size) == 0 && size == 2 * PAGE); /* version 1 cuts */
    must(check_refs(fd, memory, 2 * PAGE, 1) == 0 && check_refs(fd, memory + 2 * PAGE, 2 * PAGE, 0) == 0);
    size = PAGE;
    must(unmap_dma(2, 0, &size) == EINVAL);
    size = 0;
    must(unmap_dma(2, 0, &size) == 0 && size == 6 * PAGE && check_refs(fd, memory, 8 * PAGE, 0) == 0);
    must(vfio_ioas(2, &ioas) == 0 && vfio_ioas(0, &named) == ENODEV && destroy(fd, device.stdev) == 0);
    puts("compat");
    return 0;
}
