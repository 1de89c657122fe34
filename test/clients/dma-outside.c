/* Posts a PRP outside its mappings, then a good one: the first fails, nothing is written, the program goes on. */
#include "vfio-nvme.h"

int main(int argc, char **argv)
{
    const char *bdf = argc > 1 ? argv[1] : "0000:01:00.0";
    struct nvme n;
    start_nvme(&n, bdf, VFIO_TYPE1v2_IOMMU);
    uint8_t *data = pages(2);
    memset(data, 0x5a, 2 * PAGE);
    must(map_dma(n.container, data, 0x200000, PAGE) == 0); /* the second page is not mapped */

    must(transfer(&n, 1, 0x200000, 0, 8) == 0); /* write what we have to the disk */
    memset(data, 0, 2 * PAGE);
    int status = transfer(&n, 2, 0x201000, 0, 8); /* read to the page behind */
    printf("outside: status 0x%x\n", status);
    must(status != 0);
    for (size_t i = 0; i < 2 * PAGE; i++)
        must(data[i] == 0);
    must(transfer(&n, 2, 0x200000, 0, 8) == 0);
    for (size_t i = 0; i < PAGE; i++)
        must(data[i] == 0x5a);
    must(unmap_dma(n.container, 0x200000, PAGE) == 0);
    must(transfer(&n, 2, 0x200000, 0, 8) != 0); /* unmapped is unmapped */
    puts("the program goes on");
    return 0;
}
