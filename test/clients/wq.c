/*
 * An ordinary program that has an accelerator work for it: opens a work queue, maps its portal, and submits descriptors with
 * addresses of its stack, its heap and its data. A forked child has no queue of its own until it opens one.
 */
#include "vfio-nvme.h"
#include "dsa.h"
#include <sys/wait.h>

#define QUEUE "/dev/dsa/wq0.0"
#define BIG (1 << 20)

static uint8_t data[3 * 4096];
static const uint8_t constant[4096] = {0x42};

static volatile void *open_queue(void)
{
    int fd = open(QUEUE, O_RDWR);
    must(fd >= 0);
    void *portal = mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    must(portal != MAP_FAILED);
    return portal;
}

static int run(volatile void *portal, struct dsa_hw_desc wanted, struct dsa_completion_record *record)
{
    struct dsa_hw_desc descriptor __attribute__((aligned(64))) = wanted;
    descriptor.flags |= IDXD_OP_FLAG_CRAV | IDXD_OP_FLAG_RCR;
    descriptor.completion_addr = (uintptr_t)record;
    memset(record, 0, sizeof(*record));
    for (int tries = 0; enqcmd(portal, &descriptor); tries++)
        must(tries < 100000);
    return dsa_wait(record);
}

static int copy(volatile void *portal, void *to, const void *from, uint32_t bytes, uint32_t flags)
{
    struct dsa_completion_record record __attribute__((aligned(32)));
    struct dsa_hw_desc wanted = {.opcode = DSA_OPCODE_MEMMOVE,
                                 .flags = flags,
                                 .src_addr = (uintptr_t)from,
                                 .dst_addr = (uintptr_t)to,
                                 .xfer_size = bytes};
    return run(portal, wanted, &record);
}

/* How a child ended that did what the function does. */
static int child(void (*work)(volatile void *), volatile void *portal)
{
    int status;
    pid_t pid = fork();
    must(pid >= 0);
    if (pid == 0) {
        work(portal);
        _exit(0);
    }
    must(waitpid(pid, &status, 0) == pid);
    return status;
}

static void with_its_parents(volatile void *portal)
{
    uint8_t to[64];
    (void)copy(portal, to, data, sizeof(to), 0);
}

static void with_its_own(volatile void *unused)
{
    uint8_t from[64], to[64];
    (void)unused;
    memset(from, 0x33, sizeof(from));
    must(copy(open_queue(), to, from, sizeof(to), 0) == DSA_COMP_SUCCESS);
    must(memcmp(to, from, sizeof(to)) == 0);
}

int main(void)
{
    volatile void *portal = open_queue();
    uint8_t stack[3 * 4096];
    uint8_t *heap = malloc(2 * BIG);
    must(heap != NULL);
    memset(stack, 0x11, sizeof(stack));
    must(copy(portal, data, stack, sizeof(data), 0) == DSA_COMP_SUCCESS);
    must(memcmp(data, stack, sizeof(data)) == 0);
    must(copy(portal, stack, constant, sizeof(constant), 0) == DSA_COMP_SUCCESS && stack[0] == 0x42);
    for (int i = 0; i < BIG; i++)
        heap[i] = i * 7 + (i >> 8);
    must(copy(portal, heap + BIG, heap, BIG, 0) == DSA_COMP_SUCCESS);
    must(memcmp(heap, heap + BIG, BIG) == 0);

    uint8_t *moving = pages(1);
    for (int round = 1; round < 4; round++) {
        memset(moving, round, PAGE);
        must(copy(portal, data, moving, PAGE, IDXD_OP_FLAG_BOF) == DSA_COMP_SUCCESS && data[PAGE - 1] == round);
        must(munmap(moving, PAGE) == 0);
        must(mmap(moving, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == moving);
    }
    must(munmap(moving, PAGE) == 0);
    must(copy(portal, data, moving, PAGE, 0) == DSA_COMP_PAGE_FAULT_NOBOF);
    must(copy(portal, data, moving, PAGE, IDXD_OP_FLAG_BOF) == DSA_COMP_PAGE_FAULT_IR);
    must(copy(portal, (void *)constant, data, PAGE, 0) == (DSA_COMP_PAGE_FAULT_NOBOF | DSA_COMP_STATUS_WRITE));

    must(WIFSIGNALED(child(with_its_parents, portal)));
    must(child(with_its_own, NULL) == 0);
    must(copy(portal, data, stack, sizeof(data), 0) == DSA_COMP_SUCCESS);
    puts("the queue worked at the program's own addresses");
    return 0;
}
