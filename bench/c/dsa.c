/*
 * How fast memory is copied: by the accelerator ("dsa"), in the container of its user, or by memcpy ("memcpy"). Arguments:
 * which, and how many times 1 MiB. Prints each in nanoseconds.
 */
#include "../../test/clients/vfio-nvme.h"
#include "../../test/clients/dsa.h"
#include <time.h>

#define BYTES (1UL << 20)
#define IOVA 0x200000UL

static long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

int main(int argc, char **argv)
{
    must(argc == 3);
    int count = atoi(argv[2]);
    uint8_t *memory = pages(2 * BYTES / PAGE + 1);
    memset(memory, 0x5a, 2 * BYTES);
    struct dsa_hw_desc copy = {
        .opcode = DSA_OPCODE_MEMMOVE, .src_addr = IOVA, .dst_addr = IOVA + BYTES, .xfer_size = BYTES};
    struct dsa_completion_record *record = (void *)(memory + 2 * BYTES);
    struct dsa dsa;
    struct nvme way;
    int by_device = argv[1][0] == 'd';
    if (by_device) {
        open_device(&way, DSA_BDF, VFIO_TYPE1v2_IOMMU);
        must(map_dma(way.container, memory, IOVA, 2 * BYTES + PAGE) == 0);
        dsa_start(&dsa, way.device);
    }
    for (int i = 0; i < count; i++) {
        long start = now();
        memory[i] = i;
        if (by_device)
            must(dsa_run(&dsa, &copy, record, IOVA + 2 * BYTES) == DSA_COMP_SUCCESS);
        else
            memcpy(memory + BYTES, memory, BYTES);
        printf("%ld\n", now() - start);
    }
    must(memory[BYTES + count - 1] == (uint8_t)(count - 1));
    return 0;
}
