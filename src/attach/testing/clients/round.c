/* Round-trip times of an ioctl, in nanoseconds: one line a call. argv: count, pause in µs, request. */
#include "client.h"

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 10000, pause_us = argc > 2 ? atoi(argv[2]) : 0;
    unsigned long request = argc > 3 ? strtoul(argv[3], NULL, 0) : NOTHING;
    uint64_t *times = calloc((size_t)count, sizeof *times);
    int fd = open_node();
    uint32_t pair[2] = {1, 0};
    for (int i = -500; i < count; i++) {
        uint64_t start = now();
        CHECK(ioctl(fd, request, pair) >= 0);
        if (i >= 0)
            times[i] = now() - start;
        if (pause_us)
            for (uint64_t until = now() + (uint64_t)pause_us * 1000; now() < until;)
                ;
    }
    qsort(times, (size_t)count, sizeof *times, compare);
    printf("%.2f %.2f\n", (double)times[count / 2] / 1000, (double)times[count * 99 / 100] / 1000);
    return 0;
}
