/*
 * Transfers keep running in one thread while another maps and unmaps their target: a transfer succeeds or fails, but
 * never touches memory after the unmap of its page has returned. Argument: rounds.
 */
#include "vfio-nvme.h"
#include <pthread.h>
#include <stdatomic.h>

#define TARGET 0x40000000UL
static struct nvme n;
static atomic_int stop;
static long done, refused;

static void *transfers(void *unused)
{
    (void)unused;
    while (!stop) {
        if (transfer(&n, 2, TARGET, 8, 8) == 0)
            done++;
        else
            refused++;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 100;
    start_nvme(&n, "0000:01:00.0", VFIO_TYPE1v2_IOMMU);
    uint8_t *first = pages(1);
    memset(first, 0xee, PAGE);
    must(map_dma(n.container, first, TARGET, PAGE) == 0);
    must(transfer(&n, 1, TARGET, 8, 8) == 0); /* block 8 holds 0xee */
    must(unmap_dma(n.container, TARGET, PAGE) == 0);
    pthread_t thread;
    must(pthread_create(&thread, NULL, transfers, NULL) == 0);
    for (int round = 0; round < rounds; round++) {
        uint8_t *data = pages(1);
        must(map_dma(n.container, data, TARGET, PAGE) == 0);
        usleep(200 + round % 7 * 100);
        must(unmap_dma(n.container, TARGET, PAGE) == 0);
        memset(data, 0x11, PAGE); /* ours again: nobody may write here now */
        usleep(300);
        for (size_t i = 0; i < PAGE; i++)
            must(data[i] == 0x11);
        must(munmap(data, PAGE) == 0);
    }
    stop = 1;
    must(pthread_join(thread, NULL) == 0);
    must(done > 0 && refused > 0);
    puts("quiet after every unmap");
    return 0;
}
