/*
 * The extension apertures by a C program on a POWER host: an address space has the windows of its page tables, maps land in the
 * window that they are in, and a page table with windows of the program's choice comes and goes. What the test function
 * writes is checked byte by byte; then every errno of the structure.
 */
#include "test-function.h"
#include "iommufd.h"
#include "vfio-cdev.h"

#define BDF "0000:05:00.0"
#define IOMMU_IOAS_ALLOW_IOVAS 0x3b82
#define HWPT_DATA_TCE 0x7ce00001U
#define LARGE 0x10000UL
#define HIGH 0x800000000000000UL
#define GIB 0x40000000UL
enum { NEST_PARENT = 1, DIRTY_TRACKING = 2, FAULT_ID = 4, PASIDS = 8 };

struct tce_window {
    uint64_t start, length;
    uint32_t page_shift, levels;
};
struct tce { struct tce_window window[2]; };
static const struct tce chosen = {{{0, 2 * GIB, 12, 2}, {HIGH, 1UL << 36, 16, 3}}};

static int iommufd;
static uint32_t device_id;
/* Small pages, and behind them 2 MiB that lie together on the host, as memory does that is mapped in such amounts. */
static uint8_t *memory, *large;
#define TOGETHER 0x200000UL

static int alloc_as(uint32_t ioas, uint32_t type, const void *data, uint32_t length, uint32_t flags, uint32_t *id)
{
    struct iommu_hwpt_alloc argument = {.size = sizeof(argument),
                                        .flags = flags,
                                        .dev_id = device_id,
                                        .pt_id = ioas,
                                        .data_type = type,
                                        .data_len = length,
                                        .data_uptr = (uintptr_t)data};
    int error = ioctl(iommufd, IOMMU_HWPT_ALLOC, &argument) == 0 ? 0 : errno;
    *id = argument.out_hwpt_id;
    return error;
}

/* With the chosen windows, but one field of one of them: what it is answered. */
static int alloc_with(uint32_t ioas, unsigned window, struct tce_window instead)
{
    struct tce data = chosen;
    uint32_t id;
    data.window[window] = instead;
    int error = alloc_as(ioas, HWPT_DATA_TCE, &data, sizeof(data), 0, &id);
    if (error == 0)
        must(destroy(iommufd, id) == 0);
    return error;
}

static void check_ranges(uint32_t ioas, const struct tce *windows, uint64_t alignment)
{
    struct iommu_iova_range ranges[2];
    struct iommu_ioas_iova_ranges ask = {
        .size = sizeof(ask), .ioas_id = ioas, .num_iovas = 2, .allowed_iovas = (uintptr_t)ranges};
    must(ioctl(iommufd, IOMMU_IOAS_IOVA_RANGES, &ask) == 0);
    must(ask.num_iovas == 2 && ask.out_iova_alignment == alignment);
    for (int i = 0; i < 2; i++) {
        must(ranges[i].start == windows->window[i].start);
        must(ranges[i].last == windows->window[i].start + windows->window[i].length - 1);
    }
}

static int allow(uint32_t ioas, uint64_t start, uint64_t last)
{
    struct iommu_iova_range range = {start, last};
    struct { uint32_t size, ioas_id, num_iovas, reserved; uint64_t allowed_iovas; } argument = {
        sizeof(argument), ioas, 1, 0, (uintptr_t)&range};
    return ioctl(iommufd, IOMMU_IOAS_ALLOW_IOVAS, &argument) == 0 ? 0 : errno;
}

static int map_error(uint32_t ioas, void *va, uint64_t iova, uint64_t length)
{
    return ioas_map(iommufd, ioas, va, iova, length) == 0 ? 0 : errno;
}

static int has(uint64_t offset, const char *text)
{
    return memcmp(memory + offset, text, strlen(text)) == 0;
}

/* The windows that a page table has of itself. */
static void check_own(struct test_function f, uint32_t ioas)
{
    const struct tce own = {{{0, 2 * GIB, 12, 2}, {HIGH, 1UL << 40, 12, 4}}};
    must(cdev_attach(f.fd, ioas) == 0);
    check_ranges(ioas, &own, PAGE);
    must(map_error(ioas, memory, 2 * GIB - PAGE, PAGE) == 0 && map_error(ioas, memory + PAGE, HIGH, PAGE) == 0);
    must(map_error(ioas, memory, 2 * GIB, PAGE) == EINVAL); /* between them */
    must(map_error(ioas, memory, HIGH + (1UL << 40), PAGE) == EINVAL);
    must(tf_write(f, 2 * GIB - PAGE, "low") == DONE && has(0, "low"));
    must(tf_write(f, HIGH, "high") == DONE && has(PAGE, "high"));
    must(tf_write(f, HIGH + PAGE, "stray") == FAULT && tf_write(f, 4 * GIB, "stray") == FAULT);
    must(ioas_unmap(iommufd, ioas, 2 * GIB - PAGE, PAGE) == 0);
    must(tf_write(f, 2 * GIB - PAGE, "too late") == FAULT && tf_write(f, HIGH, "again") == DONE);
}

/* A window with larger pages, for a while; the small ones of before come back. */
static void check_chosen(struct test_function f, uint32_t before)
{
    uint32_t ioas = ioas_alloc(iommufd), hwpt;
    must(alloc_as(ioas, HWPT_DATA_TCE, &chosen, sizeof(chosen), 0, &hwpt) == 0);
    check_ranges(ioas, &chosen, LARGE);
    must(cdev_attach(f.fd, hwpt) == 0);
    must(map_error(ioas, memory, HIGH, PAGE) == EINVAL);
    must(map_error(ioas, memory + PAGE, HIGH, LARGE) == EINVAL); /* not aligned in memory */
    must(map_error(ioas, memory + PAGE, PAGE, PAGE) == 0);
    must(map_error(ioas, large, HIGH + LARGE, TOGETHER) == 0);
    must(tf_write(f, HIGH + LARGE + TOGETHER - 16, "the last") == DONE && has(2 * TOGETHER - 16, "the last"));
    must(tf_write(f, PAGE, "beside") == DONE && has(PAGE, "beside"));
    must(allow(ioas, 3 * GIB, 3 * GIB + 1) == EADDRINUSE && allow(ioas, HIGH, HIGH + LARGE - 1) == 0);
    must(cdev_attach(f.fd, before) == 0);
    must(tf_write(f, HIGH + 2 * LARGE, "too late") == FAULT && tf_write(f, HIGH, "as before") == DONE);
    must(destroy(iommufd, hwpt) == 0 && destroy(iommufd, ioas) == 0);
    /* An address space that was promised more than there is takes no device. */
    ioas = ioas_alloc(iommufd);
    must(allow(ioas, 0, 4 * GIB - 1) == 0);
    must(cdev_attach(f.fd, ioas) == -1 && errno == EADDRINUSE && destroy(iommufd, ioas) == 0);
}

static void check_refusals(uint32_t ioas)
{
    uint32_t id;
    const struct tce none = {0};
    must(alloc_as(ioas, 1, &chosen, sizeof(chosen), 0, &id) == EOPNOTSUPP);
    must(alloc_as(ioas, HWPT_DATA_TCE, &chosen, sizeof(chosen) - 1, 0, &id) == EINVAL);
    must(alloc_as(ioas, HWPT_DATA_TCE, &chosen, sizeof(chosen) + 1, 0, &id) == EINVAL);
    must(alloc_as(ioas, HWPT_DATA_TCE, (void *)8, sizeof(chosen), 0, &id) == EFAULT);
    must(alloc_as(ioas, HWPT_DATA_TCE, &none, sizeof(none), 0, &id) == EINVAL);
    for (unsigned flag = NEST_PARENT; flag <= PASIDS; flag <<= 1)
        if (flag != FAULT_ID)
            must(alloc_as(ioas, HWPT_DATA_TCE, &chosen, sizeof(chosen), flag, &id) == EOPNOTSUPP);
    must(alloc_with(ioas, 0, (struct tce_window){0, 0, 0, 0}) == 0); /* absent */
    must(alloc_with(ioas, 1, (struct tce_window){0, 0, 0, 0}) == 0);
    must(alloc_with(ioas, 0, (struct tce_window){0, GIB, 13, 1}) == EINVAL);
    must(alloc_with(ioas, 0, (struct tce_window){0, GIB, 12, 0}) == EINVAL);
    must(alloc_with(ioas, 0, (struct tce_window){0, GIB, 12, 6}) == EINVAL);
    must(alloc_with(ioas, 0, (struct tce_window){0, 5 * GIB, 12, 2}) == EINVAL);
    must(alloc_with(ioas, 0, (struct tce_window){0x800, GIB, 12, 2}) == EINVAL);
    must(alloc_with(ioas, 0, (struct tce_window){0, 0x1800, 12, 2}) == EINVAL);
    must(alloc_with(ioas, 0, (struct tce_window){HIGH, GIB, 12, 2}) == EINVAL);
    must(alloc_with(ioas, 1, (struct tce_window){GIB, GIB, 12, 2}) == EINVAL);
    must(alloc_with(ioas, 1, (struct tce_window){HIGH, 1UL << 40, 12, 1}) == EINVAL); /* tables too large */
    must(alloc_with(ioas, 1, (struct tce_window){HIGH, 1UL << 40, 24, 1}) == 0);
    must(alloc_with(ioas, 1, (struct tce_window){~0UL << 12, ~0UL << 12, 12, 5}) == EINVAL);
}

int main(void)
{
    must((iommufd = open("/dev/iommu", O_RDWR)) >= 0);
    int device = open_cdev(BDF);
    must((device_id = cdev_bind(device, iommufd)) != 0);
    struct test_function f = test_function(device);
    uint8_t *all = mmap(NULL, 3 * TOGETHER, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(all != MAP_FAILED);
    memory = (uint8_t *)(((uintptr_t)all + TOGETHER - 1) & ~(TOGETHER - 1));
    large = memory + TOGETHER;
    uint32_t ioas = ioas_alloc(iommufd), empty = ioas_alloc(iommufd);
    check_own(f, ioas);
    check_chosen(f, ioas);
    check_refusals(empty);
    must(cdev_detach(device) == 0 && destroy(iommufd, ioas) == 0 && destroy(iommufd, empty) == 0);
    printf("windows came and went\n");
    return 0;
}
