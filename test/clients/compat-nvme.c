/*
 * A program written for VFIO's container that opens /dev/iommu in its place: the same calls, the same data. When its
 * group is closed the device goes on; when its mapping goes, so does what the device reaches.
 */
#define CONTAINER "/dev/iommu"
#include "vfio-nvme.h"

#define TARGET 0x40000000UL

int main(void)
{
    static struct nvme n;
    start_nvme(&n, "0000:01:00.0", VFIO_TYPE1v2_IOMMU);
    uint8_t *page = pages(1);
    must(map_dma(n.container, page, TARGET, PAGE) == 0);
    memset(page, 0xc3, PAGE);
    must(transfer(&n, 1, TARGET, 16, 8) == 0);
    memset(page, 0, PAGE);
    must(transfer(&n, 2, TARGET, 16, 8) == 0);
    for (size_t i = 0; i < PAGE; i++)
        must(page[i] == 0xc3);
    must(close(n.group) == 0);
    must(transfer(&n, 2, TARGET, 16, 8) == 0);
    must(unmap_dma(n.container, TARGET, PAGE) == 0);
    memset(page, 0x11, PAGE);
    must(transfer(&n, 2, TARGET, 16, 8) != 0);
    for (size_t i = 0; i < PAGE; i++)
        must(page[i] == 0x11);
    must(close(n.device) == 0);
    puts("the container was an iommufd");
    return 0;
}
