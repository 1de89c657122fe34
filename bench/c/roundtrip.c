/*
 * Our round trips: an ioctl that does nothing (VFIO_GET_API_VERSION) or a trapped 32-bit read of a BAR. Arguments:
 * "ioctl" or "trap", how many, and the pause between two in microseconds. Prints each in nanoseconds.
 */
#include "../../test/clients/vfio-nvme.h"
#include <time.h>

static long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

int main(int argc, char **argv)
{
    must(argc == 4);
    int trap = argv[1][0] == 't', count = atoi(argv[2]), pause = atoi(argv[3]);
    struct nvme n;
    start_nvme(&n, "0000:01:00.0", VFIO_TYPE1v2_IOMMU);
    for (int i = 0; i < count; i++) {
        if (pause)
            usleep(pause);
        long start = now();
        if (trap)
            (void)*reg32(&n, 0x08);
        else
            must(ioctl(n.container, VFIO_GET_API_VERSION) == VFIO_API_VERSION);
        printf("%ld\n", now() - start);
    }
    return 0;
}
