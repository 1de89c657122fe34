/*
 * The extension s390-nesting by a C program: a guest's memory and tables are its own pages, mapped once; its anchor becomes a
 * page table above them, refreshes are handed on, and what the test function writes is checked byte by byte. Then every
 * errno of the two structures, memory that goes while it is in use, and that nothing was pinned or locked for any of it.
 */
#include "test-function.h"
#include "iommufd.h"
#include "vfio-cdev.h"
#include <endian.h>

#define BDF "0000:05:00.0"
#define HWPT_INVALIDATE 0x3b8d
#define S390_IOTA 0x73390001U
#define S390_REFRESH 0x73390002U
enum { NEST_PARENT = 1, PASIDS = 8 };

struct s390_iota { uint64_t iota, reserved; };
struct s390_refresh { uint64_t iova, length, reserved; };
struct hwpt_invalidate {
    uint32_t size, hwpt_id;
    uint64_t data_uptr;
    uint32_t data_type, entry_len, entry_num, reserved;
};

/* Guest memory: a region-third and a segment table of four pages each, a page table, and pages. */
enum { REGIONS = 0, SEGMENTS = 4, PAGES = 8, DATA = 16, GUEST_PAGES = 64 };
#define IOVA 0x100000000UL
#define INVALID 0x420UL
#define ANCHOR(table) ((table) * PAGE | 0x800 | 1 << 2) /* translated, begins with a region-third table */

static int iommufd;
static struct test_function function;
static uint32_t device_id, ioas;
static uint8_t *guest;

static void store(unsigned table, unsigned index, uint64_t entry)
{
    ((uint64_t *)(guest + table * PAGE))[index] = htobe64(entry);
}

/* The page that an address IOVA + n pages has; 0: none. */
static void set_page(unsigned n, uint64_t page)
{
    store(PAGES, n, page ? page * PAGE : INVALID);
}

static void make_tables(void)
{
    for (unsigned i = 0; i < 8 * 512; i++)
        store(REGIONS, i, INVALID);
    for (unsigned i = 0; i < 512; i++)
        store(PAGES, i, INVALID);
    store(REGIONS, IOVA >> 31, SEGMENTS * PAGE | 7);
    store(SEGMENTS, 0, PAGES * PAGE);
}

static int alloc(uint32_t parent, uint32_t type, uint64_t iota, uint64_t reserved, uint32_t flags, uint32_t *id)
{
    struct s390_iota data = {iota, reserved};
    struct iommu_hwpt_alloc argument = {.size = sizeof(argument),
                                        .flags = flags,
                                        .dev_id = device_id,
                                        .pt_id = parent,
                                        .data_type = type,
                                        .data_len = type ? sizeof(data) : 0,
                                        .data_uptr = (uintptr_t)&data};
    int error = ioctl(iommufd, IOMMU_HWPT_ALLOC, &argument) == 0 ? 0 : errno;
    *id = argument.out_hwpt_id;
    return error;
}

/* How many of the ranges were taken is in `done`. */
static int refresh_as(uint32_t hwpt, uint32_t type, struct s390_refresh *ranges, uint32_t count, uint32_t *done)
{
    struct hwpt_invalidate argument = {sizeof(argument), hwpt, (uintptr_t)ranges, type, sizeof(*ranges), count, 0};
    int error = ioctl(iommufd, HWPT_INVALIDATE, &argument) == 0 ? 0 : errno;
    *done = argument.entry_num;
    return error;
}

static int refresh(uint32_t hwpt, unsigned first, unsigned count)
{
    struct s390_refresh range = {IOVA + first * PAGE, count * PAGE, 0};
    uint32_t done;
    int error = refresh_as(hwpt, S390_REFRESH, &range, 1, &done);
    must(done == (error == 0));
    return error;
}

static void attach(uint32_t hwpt)
{
    must(cdev_attach(function.fd, hwpt) == 0);
}

/* What a write of the function to page n comes to. */
static uint32_t dma(unsigned n, const char *text)
{
    return tf_write(function, IOVA + n * PAGE, text);
}

static int has(unsigned page, const char *text)
{
    return memcmp(guest + page * PAGE, text, strlen(text)) == 0;
}

static void open_all(void)
{
    must((iommufd = open("/dev/iommu", O_RDWR)) >= 0);
    int device = open_cdev(BDF);
    must((device_id = cdev_bind(device, iommufd)) != 0);
    function = test_function(device);
    guest = mmap(NULL, GUEST_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(guest != MAP_FAILED && (ioas = ioas_alloc(iommufd)) != 0);
    /* Two mappings, so that one can go. */
    must(ioas_map(iommufd, ioas, guest, 0, (GUEST_PAGES - 1) * PAGE) == 0);
    must(ioas_map(iommufd, ioas, guest + (GUEST_PAGES - 1) * PAGE, (GUEST_PAGES - 1) * PAGE, PAGE) == 0);
}

/* VmPin of this process, in kilobytes. */
static long pinned(void)
{
    char line[256];
    long value = -1;
    FILE *status = fopen("/proc/self/status", "r");
    must(status != NULL);
    while (fgets(line, sizeof(line), status))
        if (sscanf(line, "VmPin: %ld", &value) == 1)
            break;
    fclose(status);
    return value;
}

static void check_translation(uint32_t hwpt)
{
    must(dma(0, "to the first page") == DONE && has(DATA, "to the first page"));
    must(dma(1, "nowhere") == FAULT);
    set_page(0, DATA + 1);
    must(dma(0, "still the first") == DONE && has(DATA, "still the first")); /* not refreshed */
    must(refresh(hwpt, 0, 1) == 0);
    must(dma(0, "now the second") == DONE && has(DATA + 1, "now the second"));
    long before = pinned();
    for (unsigned n = 0; n < 32; n++)
        set_page(n, DATA + n);
    must(refresh(hwpt, 0, 32) == 0 && pinned() == before && before == (long)(GUEST_PAGES * PAGE / 1024));
    must(dma(31, "the last") == DONE && has(DATA + 31, "the last"));
    set_page(31, 0);
    must(refresh(hwpt, 31, 1) == 0 && dma(31, "too late") == FAULT && has(DATA + 31, "the last"));
}

static void check_refusals(uint32_t parent, uint32_t hwpt)
{
    uint32_t id, done;
    must(alloc(parent, 1, ANCHOR(REGIONS), 0, 0, &id) == EOPNOTSUPP);
    must(alloc(parent, S390_IOTA, ANCHOR(REGIONS), 1, 0, &id) == EOPNOTSUPP);
    must(alloc(parent, S390_IOTA, ANCHOR(REGIONS), 0, PASIDS, &id) == EOPNOTSUPP);
    must(alloc(ioas, S390_IOTA, ANCHOR(REGIONS), 0, 0, &id) == EOPNOTSUPP);
    must(alloc(parent, S390_IOTA, 0, 0, 0, &id) == EINVAL);                             /* not translated */
    must(alloc(parent, S390_IOTA, ANCHOR(REGIONS) | 7 << 2, 0, 0, &id) == EINVAL);      /* no table */
    must(alloc(parent, S390_IOTA, ANCHOR(GUEST_PAGES + 0UL), 0, 0, &id) == EFAULT);     /* not the guest's */
    struct s390_refresh ranges[3] = {{IOVA, PAGE, 0}, {IOVA, PAGE, 0}, {IOVA, PAGE, 0}};
    must(refresh_as(hwpt, 1, ranges, 3, &done) == EINVAL && done == 0);
    must(refresh_as(parent, S390_REFRESH, ranges, 3, &done) == EINVAL && done == 0);
    ranges[1].reserved = 1;
    must(refresh_as(hwpt, S390_REFRESH, ranges, 3, &done) == EOPNOTSUPP && done == 1);
    ranges[1] = (struct s390_refresh){IOVA + 1, PAGE, 0};
    must(refresh_as(hwpt, S390_REFRESH, ranges, 3, &done) == EINVAL && done == 1);
    ranges[1] = (struct s390_refresh){1UL << 42, PAGE, 0};
    must(refresh_as(hwpt, S390_REFRESH, ranges, 3, &done) == EINVAL && done == 1);
    set_page(40, GUEST_PAGES); /* beyond guest memory */
    ranges[1] = (struct s390_refresh){IOVA + 40 * PAGE, PAGE, 0};
    must(refresh_as(hwpt, S390_REFRESH, ranges, 3, &done) == EFAULT && done == 1);
    must(dma(40, "stray") == FAULT);
    set_page(40, 0);
}

/* Pages that the VMM takes back are out of reach, whatever the guest's tables say. */
static void check_loss(uint32_t hwpt)
{
    set_page(50, GUEST_PAGES - 1);
    must(refresh(hwpt, 50, 1) == 0 && dma(50, "while it can") == DONE && has(GUEST_PAGES - 1, "while it can"));
    must(ioas_unmap(iommufd, ioas, (GUEST_PAGES - 1) * PAGE, PAGE) == 0);
    must(dma(50, "too late") == FAULT && has(GUEST_PAGES - 1, "while it can"));
    must(refresh(hwpt, 50, 1) == EFAULT && dma(0, "the rest stays") == DONE);
    must(ioas_unmap(iommufd, ioas, 0, (GUEST_PAGES - 1) * PAGE) == 0); /* its tables, too */
    must(dma(0, "too late") == FAULT && pinned() == 0);
}

int main(void)
{
    uint32_t parent, hwpt;
    open_all();
    make_tables();
    set_page(0, DATA);
    must(alloc(ioas, 0, 0, 0, NEST_PARENT, &parent) == 0);
    must(alloc(parent, S390_IOTA, ANCHOR(REGIONS), 0, 0, &hwpt) == 0);
    must(destroy(iommufd, parent) == -1 && errno == EBUSY);
    attach(hwpt);
    check_translation(hwpt);
    check_refusals(parent, hwpt);
    check_loss(hwpt);
    must(cdev_detach(function.fd) == 0);
    must(destroy(iommufd, hwpt) == 0 && destroy(iommufd, parent) == 0);
    printf("the guest's tables were followed\n");
    return 0;
}
