/*
 * Random ioctls on every kind of file: numbers near the real ones and anywhere, sizes, bytes, pointers good, bad and
 * half good. Argument 1: seed, 2: how many. Every answer must be 0 or above, or -1 with an errno.
 */
#include "vfio-nvme.h"

static uint64_t state;
static uint64_t random64(void)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}
static uint64_t below(uint64_t bound) { return random64() % bound; }

/* Values that parsers trip over. */
static uint64_t value(void)
{
    static const uint64_t odd[] = {0, 1, 7, 8, 20, 24, 32, 0xfff, 0x1000, 0x10000, 0x7fffffff, 0x80000000, 0xffffffff,
                                   1UL << 32, 1UL << 47, 1UL << 48, 1UL << 63, ~0UL, ~0xfffUL};
    return below(3) ? odd[below(sizeof(odd) / sizeof(*odd))] + below(3) - 1 : random64();
}

int main(int argc, char **argv)
{
    must(argc == 3);
    state = strtoull(argv[1], NULL, 0) * 0x9e3779b97f4a7c15 + 1;
    long count = atol(argv[2]), failed = 0;
    uint8_t *data = pages(16);
    must(munmap(data + 15 * PAGE, PAGE) == 0); /* a pointer near the end is half good */
    struct nvme n;
    open_device(&n, argv[0][0] ? "0000:01:00.0" : "", VFIO_TYPE1v2_IOMMU);
    int fresh = open("/dev/vfio/vfio", O_RDWR);
    int iommufd = open("/dev/iommu", O_RDWR); /* -1 where the machine has none */
    int bell = eventfd(0, EFD_NONBLOCK);
    int files[] = {n.container, n.group, n.device, fresh, iommufd};

    for (long i = 0; i < count; i++) {
        int fd = files[below(5)];
        uint32_t request = below(8) ? (0x3b << 8) + 100 + below(40) : below(2) ? (0x3b << 8) + 0x80 + below(40) : random64();
        /* Closing what the fuzz works on would leave nothing to fuzz. */
        if (request == VFIO_GROUP_UNSET_CONTAINER)
            continue;
        uint8_t *at = data + below(14 * PAGE);
        if (below(4))
            at = (uint8_t *)((uintptr_t)at & ~7UL);
        for (int word = 0; word < 12 && at + 8 * word + 8 <= data + 15 * PAGE; word++) {
            uint64_t v = below(6) ? value() : below(2) ? (uintptr_t)data + below(15) * PAGE : (uint64_t)bell;
            if (below(2))
                v = (uint32_t)v | value() << 32;
            memcpy(at + 8 * word, &v, 8);
        }
        if (below(4)) { /* mostly an argsz that lets the call get further */
            uint32_t argsz = below(3) ? 24 + 8 * below(6) : value();
            memcpy(at, &argsz, 4);
        }
        void *argument = below(16) ? at : (void *)value();
        errno = 0;
        int result = ioctl(fd, request, argument);
        if (result >= 0) {
            if (result > 2 && result != bell && (request == VFIO_GROUP_GET_DEVICE_FD))
                close(result);
            continue;
        }
        must(result == -1 && errno > 0 && errno < 134);
        failed++;
        if (below(64) == 0) {
            char byte[64];
            must(pread(n.device, byte, below(64), value()) <= 64);
            if (below(4) == 0)
                (void)!pwrite(n.device, byte, below(64), (uint64_t)below(9) << 40 | below(0x2000));
        }
    }
    printf("%ld failed\n", failed);
    return 0;
}
