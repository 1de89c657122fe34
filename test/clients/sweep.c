/*
 * Requests of /dev/iommu with every allocation failing in turn (fail-nth), on a machine with mock devices: each failure
 * is ENOMEM, none leaves an object behind (the next number is still the next), and in the end each request succeeds.
 * With a seed it makes random requests for ever instead, in three processes, to be killed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define IOVA 0x1000000ul
#define NUMBER(command) (0x3b00 | (command))
enum { DESTROY = 0x80, IOAS_ALLOC, ALLOW, COPY, RANGES, MAP, UNMAP, OPTION, VFIO_IOAS, HWPT_ALLOC, HW_INFO,
       SET_DIRTY, GET_DIRTY, INVALIDATE, FAULT_ALLOC, FILE_MAP, VIOMMU, VDEVICE, CHANGE_PROCESS, VEVENTQ, HW_QUEUE,
       TEST = 0xa0 };
enum { TEST_DOMAIN_FLAGS = 12, TEST_ACCESS = 5, TEST_ACCESS_PAGES = 7, TEST_REPLACE = 10, TEST_PASID_ATTACH = 18 };
#define SELFTEST 0xdeadbeefu
#define WORDS 20
#define TEST_BYTES 72

static int iommu, nth_file, surprises;
static char *memory;

/* A request as 32-bit words; those that were given are its size, the rest is 0. */
struct request {
    unsigned command, count;
    uint32_t word[WORDS];
};

#define REQUEST(number, ...)                                                                                 \
    (struct request){.command = (number),                                                                    \
                     .count = 1 + sizeof((uint32_t[]){__VA_ARGS__}) / 4,                                     \
                     .word = {4 * (1 + sizeof((uint32_t[]){__VA_ARGS__}) / 4), __VA_ARGS__}}
#define TEST_REQUEST(op, id, ...) REQUEST(TEST, op, id, 0, __VA_ARGS__)
#define LONG(value) (uint32_t)(uintptr_t)(value), (uint32_t)((uint64_t)(uintptr_t)(value) >> 32)

static int make(struct request *r)
{
    if (r->command == TEST)
        r->word[0] = TEST_BYTES;
    return ioctl(iommu, NUMBER(r->command), r->word);
}

/* A request that must succeed; one of its words afterwards. */
static uint32_t sure(struct request r, unsigned answer)
{
    if (make(&r) < 0) {
        printf("command %x: %s\n", r.command, strerror(errno));
        exit(2);
    }
    return r.word[answer];
}

static uint32_t ioas(void)
{
    return sure(REQUEST(IOAS_ALLOC, 0, 0), 2);
}

static void destroy(uint32_t id)
{
    sure(REQUEST(DESTROY, id), 0);
}

static struct request map(uint32_t id, uint64_t iova)
{
    return REQUEST(MAP, 7, id, 0, LONG(memory), LONG(4 * PAGE), LONG(iova));
}

static void arm(int nth)
{
    char text[16];
    int length = snprintf(text, sizeof text, "%d", nth);
    if (write(nth_file, text, length) != length)
        surprises++;
}

static int armed(void)
{
    char text[16] = "";
    return pread(nth_file, text, sizeof text - 1, 0) > 0 ? atoi(text) : -1;
}

/* The number that the next object gets. */
static uint32_t next_number(void)
{
    uint32_t id = ioas();
    destroy(id);
    return id;
}

/* What the request answers in the end, in one of its words. */
static uint32_t sweep(const char *name, struct request r, unsigned answer)
{
    uint32_t before = next_number();
    for (int nth = 1; nth < 200; nth++) {
        struct request copy = r;
        arm(nth);
        int result = make(&copy), reason = errno, left = armed();
        arm(0);
        if (result >= 0 && left > 0) {
            printf("%s: %d\n", name, nth > 1);
            return copy.word[answer];
        }
        if (result >= 0 || reason != ENOMEM || left != 0 || next_number() != before) {
            printf("%s, allocation %d: %d, %s, %d left, next number %u\n", name, nth, result, strerror(reason), left,
                   next_number());
            surprises++;
        }
    }
    printf("%s never succeeds\n", name);
    exit(2);
}

static int all(void)
{
    uint32_t first = sweep("IOAS_ALLOC", REQUEST(IOAS_ALLOC, 0, 0), 2), second = ioas();
    sweep("IOAS_MAP", map(first, IOVA), 0);
    uint64_t ranges[] = {0, 0xfff, IOVA, 0x7fffffff};
    sweep("IOAS_ALLOW_IOVAS", REQUEST(ALLOW, second, 2, 0, LONG(ranges)), 0);
    sweep("IOAS_COPY", REQUEST(COPY, 7, second, first, LONG(4 * PAGE), LONG(IOVA), LONG(IOVA)), 0);
    struct request plug = TEST_REQUEST(TEST_DOMAIN_FLAGS, first, 0, 0, 0, 4);
    uint32_t stdev = sweep("a device", plug, 4), dev = stdev + 1;
    sweep("IOAS_MAP with a device", map(first, IOVA + 0x200000), 0);
    uint32_t plain = sweep("HWPT_ALLOC", REQUEST(HWPT_ALLOC, 8, dev, first, 0, 0, 0, 0, 0, 0, 0, 0), 4);
    uint32_t parent = sweep("HWPT_ALLOC of a parent", REQUEST(HWPT_ALLOC, 1, dev, first, 0, 0, 0, 0, 0, 0, 0, 0), 4);
    sweep("a replacement", TEST_REQUEST(TEST_REPLACE, stdev, plain), 0);
    sweep("a PASID", TEST_REQUEST(TEST_PASID_ATTACH, stdev, 5, plain), 0);
    sweep("GET_HW_INFO", REQUEST(HW_INFO, 0, dev, 8, LONG(ranges), 0, 0, 0, 0), 0);
    uint32_t viommu = sweep("VIOMMU_ALLOC", REQUEST(VIOMMU, 0, SELFTEST, dev, parent, 0, 0, 0, 0, 0), 5);
    sweep("VDEVICE_ALLOC", REQUEST(VDEVICE, viommu, dev, 0, 7, 0), 0);
    uint32_t data[2] = {1, 0};
    uint32_t nested = sweep("HWPT_ALLOC nested",
                            REQUEST(HWPT_ALLOC, 0, dev, viommu, 0, 0, 0xdead, 8, LONG(data), 0, 0), 4);
    sweep("HWPT_INVALIDATE", REQUEST(INVALIDATE, nested, LONG(data), SELFTEST, 8, 1, 0), 0);
    close((int)sweep("VEVENTQ_ALLOC", REQUEST(VEVENTQ, 0, viommu, 0xbeefbeefu, 4, 0, 0, 0), 6));
    sweep("HW_QUEUE_ALLOC", REQUEST(HW_QUEUE, 0, viommu, SELFTEST, 0, 0, LONG(IOVA), LONG(PAGE)), 0);
    close((int)sweep("FAULT_QUEUE_ALLOC", REQUEST(FAULT_ALLOC, 0, 0, 0), 3));
    int access = (int)sweep("an access", TEST_REQUEST(TEST_ACCESS, first, 0, 1), 4);
    sweep("pages of an access", TEST_REQUEST(TEST_ACCESS_PAGES, (uint32_t)access, 1, 0, LONG(IOVA), LONG(PAGE), 0, 0), 0);
    close(access);
    printf("%d surprises\n", surprises);
    return surprises != 0;
}

/* Anything, with small numbers, for ever. */
static void random_requests(unsigned seed)
{
    fork();
    fork();
    srand(seed + (unsigned)getpid());
    nth_file = open("/proc/thread-self/fail-nth", O_RDWR);
    if (seed & 1)
        iommu = open("/dev/iommu", O_RDWR);
    for (;;) {
        struct request r = {.command = DESTROY + (unsigned)rand() % 21, .count = 14};
        if (rand() % 3 == 0)
            r = TEST_REQUEST(TEST_DOMAIN_FLAGS, (uint32_t)(1 + rand() % 3), 0, 0, 0, 4);
        else if (rand() % 3 == 0)
            r = map((uint32_t)(1 + rand() % 3), IOVA + PAGE * (uint64_t)(rand() % 64));
        else if (rand() % 3 == 0)
            r = REQUEST(IOAS_ALLOC, 0, 0);
        else
            for (int i = 1; i < 14; i++)
                r.word[i] = (uint32_t)rand() % 6;
        r.word[0] = r.command == TEST ? TEST_BYTES : 4 * r.count;
        if (rand() % 8 == 0)
            arm(1 + rand() % 10);
        make(&r);
    }
}

int main(int count, char **arguments)
{
    memory = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(memory, 1, 8 * PAGE);
    iommu = open("/dev/iommu", O_RDWR);
    nth_file = open("/proc/thread-self/fail-nth", O_RDWR);
    if (count < 2)
        return all();
    puts("begins");
    fflush(stdout);
    random_requests((unsigned)atoi(arguments[1]));
}
