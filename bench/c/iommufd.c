/*
 * Requests of /dev/iommu through libc, as a program makes them. Prints for each kind one line: how many ioctls a round
 * has, the nanoseconds of one round (the median), and its name. The first kind is the empty ioctl. Expects the mock
 * machine, whose test command makes a device.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#define must(condition)                                                                                      \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            perror(#condition);                                                                              \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

/* linux/iommufd.h */
#define NUMBER(n) _IO(';', n)
#define IOMMU_DESTROY NUMBER(0x80)
#define IOMMU_IOAS_ALLOC NUMBER(0x81)
#define IOMMU_IOAS_COPY NUMBER(0x83)
#define IOMMU_IOAS_IOVA_RANGES NUMBER(0x84)
#define IOMMU_IOAS_MAP NUMBER(0x85)
#define IOMMU_IOAS_UNMAP NUMBER(0x86)
#define IOMMU_OPTION NUMBER(0x87)
#define IOMMU_TEST_CMD NUMBER(0xa0)
#define FIXED 7u /* at the given IOVA, readable, writable */
#define TEST_MOCK_DOMAIN 2

struct destroy { uint32_t size, id; };
struct ioas_alloc { uint32_t size, flags, id; };
struct ioas_copy { uint32_t size, flags, to, from; uint64_t length, to_iova, from_iova; };
struct ioas_ranges { uint32_t size, id, count, reserved; uint64_t ranges, alignment; };
struct ioas_map { uint32_t size, flags, id, reserved; uint64_t va, length, iova; };
struct ioas_unmap { uint32_t size, id; uint64_t iova, length; };
struct option { uint32_t size, option; uint16_t op, reserved; uint32_t object; uint64_t value; };
struct test { uint32_t size, op, id, reserved; uint32_t out[24]; };

#define KIB 1024ul
#define MIB (1024ul * KIB)
/* Where the mock IOMMU begins. */
#define START (16 * MIB)
#define ROUNDS 400

static int fd;
static char *buffer;
static uint32_t ioas, source;
static uint64_t length;

static void empty(void)
{
    struct option get = {.size = sizeof get, .op = 1};
    must(ioctl(fd, IOMMU_OPTION, &get) == 0);
}

static uint32_t alloc(void)
{
    struct ioas_alloc made = {.size = sizeof made};
    must(ioctl(fd, IOMMU_IOAS_ALLOC, &made) == 0);
    return made.id;
}

static void alloc_destroy(void)
{
    struct destroy gone = {.size = sizeof gone, .id = alloc()};
    must(ioctl(fd, IOMMU_DESTROY, &gone) == 0);
}

static void ranges(void)
{
    uint64_t room[16];
    struct ioas_ranges get = {.size = sizeof get, .id = ioas, .count = 8, .ranges = (uint64_t)room};
    must(ioctl(fd, IOMMU_IOAS_IOVA_RANGES, &get) == 0);
}

static void map(uint32_t id, uint64_t bytes)
{
    struct ioas_map wanted = {
        .size = sizeof wanted, .flags = FIXED, .id = id, .va = (uint64_t)buffer, .length = bytes, .iova = START};
    must(ioctl(fd, IOMMU_IOAS_MAP, &wanted) == 0);
}

static void unmap(uint32_t id, uint64_t bytes)
{
    struct ioas_unmap gone = {.size = sizeof gone, .id = id, .iova = START, .length = bytes};
    must(ioctl(fd, IOMMU_IOAS_UNMAP, &gone) == 0);
}

static void map_unmap(void)
{
    map(ioas, length);
    unmap(ioas, length);
}

static void copy_unmap(void)
{
    struct ioas_copy copy = {.size = sizeof copy, .flags = FIXED, .to = ioas, .from = source, .length = 4 * KIB,
                             .to_iova = START, .from_iova = START};
    must(ioctl(fd, IOMMU_IOAS_COPY, &copy) == 0);
    unmap(ioas, 4 * KIB);
}

static int ascending(const void *a, const void *b)
{
    long x = *(const long *)a, y = *(const long *)b;
    return x < y ? -1 : x > y;
}

static void measure(int calls, const char *name, const char *where, void (*round)(void))
{
    static long taken[ROUNDS];
    struct timespec from, to;
    for (int i = -ROUNDS / 4; i < ROUNDS; i++) {
        clock_gettime(CLOCK_MONOTONIC, &from);
        round();
        clock_gettime(CLOCK_MONOTONIC, &to);
        if (i >= 0)
            taken[i] = (to.tv_sec - from.tv_sec) * 1000000000L + to.tv_nsec - from.tv_nsec;
    }
    qsort(taken, ROUNDS, sizeof taken[0], ascending);
    printf("%d %ld %s%s\n", calls, taken[ROUNDS / 2], name, where);
}

static void measure_maps(const char *where)
{
    static const struct { const char *name; uint64_t length; } sizes[] = {
        {"map + unmap 4 KiB", 4 * KIB}, {"map + unmap 2 MiB", 2 * MIB}, {"map + unmap 64 MiB", 64 * MIB}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        length = sizes[i].length;
        measure(2, sizes[i].name, where, map_unmap);
    }
    map(source, 4 * KIB);
    measure(2, "copy + unmap 4 KiB", where, copy_unmap);
    unmap(source, 4 * KIB);
}

int main(void)
{
    must((fd = open("/dev/iommu", O_RDWR)) >= 0);
    buffer = mmap(NULL, 64 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(buffer != MAP_FAILED);
    memset(buffer, 1, 64 * MIB);
    ioas = alloc();
    source = alloc();
    measure(1, "an empty ioctl (option get)", "", empty);
    measure(2, "IOAS alloc + destroy", "", alloc_destroy);
    measure(1, "IOVA_RANGES", "", ranges);
    measure_maps("");
    struct test device = {.size = sizeof device, .op = TEST_MOCK_DOMAIN, .id = ioas};
    must(ioctl(fd, IOMMU_TEST_CMD, &device) == 0);
    measure_maps(", mock domain");
    return 0;
}
