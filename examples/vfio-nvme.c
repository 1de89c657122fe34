/*
 * A whole user-space NVMe driver in one file: it identifies the disk, writes a block, reads it back and compares.
 * It uses the kernel's VFIO interface (container, group, type 1 IOMMU) and nothing else: no library, no root.
 *
 *     cc -o vfio-nvme examples/vfio-nvme.c
 *     softiommu run -- ./vfio-nvme 0000:01:00.0
 *
 * On a computer with an IOMMU and a spare NVMe disk bound to vfio-pci it does the same to the disk: IT WRITES TO
 * BLOCK 0. The steps are numbered; the NVMe specification's section is named where a register or command is used.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define ENTRIES 16  /* of every queue */
#define PATIENCE 50000 /* polls of 100 us: five seconds */

/* Where the device finds our memory. We choose these addresses; they are nobody's but the device's. */
#define IOVA 0x100000UL
enum { ADMIN_SQ, ADMIN_CQ, IO_SQ, IO_CQ, IDENTIFY, DATA, PAGES };

/* NVMe 1.4, section 3.1: the controller's registers. */
enum { REG_CC = 0x14, REG_CSTS = 0x1c, REG_AQA = 0x24, REG_ASQ = 0x28, REG_ACQ = 0x30, REG_DOORBELLS = 0x1000 };

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

/* ---- 1. VFIO: a device file, and memory that the device may reach ------------------------------------------------ */

struct device {
    int container, group, fd;
    volatile uint8_t *registers;
    uint8_t *memory; /* PAGES pages, for the device at IOVA */
};

/* The IOMMU group of a device is the target of a link in sysfs. */
static int group_of(const char *address)
{
    char path[128], target[256];
    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", address);
    ssize_t length = readlink(path, target, sizeof(target) - 1);
    if (length < 0)
        fail(path);
    target[length] = '\0';
    return atoi(strrchr(target, '/') + 1);
}

static void open_device(struct device *d, const char *address)
{
    char path[64];

    /* A container is an address space for devices. It has no IOMMU before it has a group. */
    d->container = open("/dev/vfio/vfio", O_RDWR);
    if (d->container < 0)
        fail("/dev/vfio/vfio");
    if (ioctl(d->container, VFIO_GET_API_VERSION) != VFIO_API_VERSION)
        fail("VFIO_GET_API_VERSION");

    /* All devices of a group can reach each other, so they are given to one user together. */
    snprintf(path, sizeof(path), "/dev/vfio/%d", group_of(address));
    d->group = open(path, O_RDWR);
    if (d->group < 0)
        fail(path);
    struct vfio_group_status status = {.argsz = sizeof(status)};
    if (ioctl(d->group, VFIO_GROUP_GET_STATUS, &status) || !(status.flags & VFIO_GROUP_FLAGS_VIABLE))
        fail("the group is not viable: every device in it must be bound to vfio-pci");
    if (ioctl(d->group, VFIO_GROUP_SET_CONTAINER, &d->container))
        fail("VFIO_GROUP_SET_CONTAINER");
    if (ioctl(d->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
        fail("VFIO_SET_IOMMU");
    d->fd = ioctl(d->group, VFIO_GROUP_GET_DEVICE_FD, address);
    if (d->fd < 0)
        fail("VFIO_GROUP_GET_DEVICE_FD");
}

/* From here on the device reaches these pages, and no others of ours. */
static void map_memory(struct device *d)
{
    d->memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (d->memory == MAP_FAILED)
        fail("mmap of memory");
    struct vfio_iommu_type1_dma_map map = {
        .argsz = sizeof(map),
        .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        .vaddr = (uintptr_t)d->memory,
        .iova = IOVA,
        .size = PAGES * PAGE,
    };
    if (ioctl(d->container, VFIO_IOMMU_MAP_DMA, &map))
        fail("VFIO_IOMMU_MAP_DMA");
}

static void map_registers(struct device *d)
{
    /* PCI command register: without bus mastering (bit 2) a device makes no DMA; bit 1 turns its registers on. */
    struct vfio_region_info config = {.argsz = sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX};
    if (ioctl(d->fd, VFIO_DEVICE_GET_REGION_INFO, &config))
        fail("VFIO_DEVICE_GET_REGION_INFO of config space");
    uint16_t command;
    if (pread(d->fd, &command, 2, config.offset + 4) != 2)
        fail("reading the command register");
    command |= 0x6;
    if (pwrite(d->fd, &command, 2, config.offset + 4) != 2)
        fail("writing the command register");

    struct vfio_region_info bar = {.argsz = sizeof(bar), .index = VFIO_PCI_BAR0_REGION_INDEX};
    if (ioctl(d->fd, VFIO_DEVICE_GET_REGION_INFO, &bar))
        fail("VFIO_DEVICE_GET_REGION_INFO of BAR 0");
    d->registers = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, d->fd, bar.offset);
    if (d->registers == MAP_FAILED)
        fail("mmap of BAR 0");
}

static volatile uint32_t *reg32(struct device *d, uint32_t offset)
{
    return (volatile uint32_t *)(d->registers + offset);
}
static void *page(struct device *d, int index)
{
    return d->memory + index * PAGE;
}
static uint64_t iova(int index)
{
    return IOVA + (uint64_t)index * PAGE;
}

/* ---- 2. NVMe: queues of commands and completions in our memory -------------------------------------------------- */

struct queue {
    int id; /* 0 is the admin queue; also says which doorbells */
    volatile uint32_t (*commands)[16];
    volatile uint32_t (*completions)[4];
    int tail, head, phase;
};

static void new_queue(struct queue *q, struct device *d, int id, int sq, int cq)
{
    *q = (struct queue){.id = id, .commands = page(d, sq), .completions = page(d, cq), .phase = 1};
}

/*
 * One command, from submission to completion (section 7.2): the entry into the queue, its doorbell, then wait until
 * the phase bit of the next completion turns. Returns the status, 0 for success.
 */
static int run(struct device *d, struct queue *q, const uint32_t command[16])
{
    for (int word = 0; word < 16; word++)
        q->commands[q->tail][word] = command[word];
    q->tail = (q->tail + 1) % ENTRIES;
    __sync_synchronize(); /* the entry must be there before the doorbell rings */
    *reg32(d, REG_DOORBELLS + 8 * q->id) = q->tail;

    volatile uint32_t *completion = q->completions[q->head];
    for (int polls = 0; (int)(completion[3] >> 16 & 1) != q->phase; polls++) {
        if (polls == PATIENCE) {
            fprintf(stderr, "the controller does not answer\n");
            exit(1);
        }
        usleep(100);
    }
    int status = completion[3] >> 17;
    q->head = (q->head + 1) % ENTRIES;
    if (q->head == 0)
        q->phase = !q->phase;
    *reg32(d, REG_DOORBELLS + 8 * q->id + 4) = q->head;
    return status;
}

/* Sections 3.1.5 to 3.1.10: off, tell where the admin queues are, on. */
static void enable(struct device *d)
{
    *reg32(d, REG_CC) = 0;
    for (int polls = 0; *reg32(d, REG_CSTS) & 1 && polls < PATIENCE; polls++)
        usleep(100);
    *reg32(d, REG_AQA) = (ENTRIES - 1) << 16 | (ENTRIES - 1);
    *reg32(d, REG_ASQ) = (uint32_t)iova(ADMIN_SQ);
    *reg32(d, REG_ASQ + 4) = iova(ADMIN_SQ) >> 32;
    *reg32(d, REG_ACQ) = (uint32_t)iova(ADMIN_CQ);
    *reg32(d, REG_ACQ + 4) = iova(ADMIN_CQ) >> 32;
    *reg32(d, REG_CC) = 4 << 20 | 6 << 16 | 1; /* entries of 16 and 64 bytes, enabled */
    for (int polls = 0; !(*reg32(d, REG_CSTS) & 1); polls++) {
        if (polls == PATIENCE) {
            fprintf(stderr, "the controller does not become ready\n");
            exit(1);
        }
        usleep(100);
    }
}

/* Words 6 and 7 of every command are PRP entry 1, where its data lies for the device. */
static void check(const char *what, int status)
{
    if (status == 0)
        return;
    fprintf(stderr, "%s failed: NVMe status 0x%x\n", what, status);
    exit(1);
}

static void create_io_queues(struct device *d, struct queue *admin)
{
    /* Sections 5.3 and 5.4; contiguous, no interrupt, the submission queue completes to completion queue 1. */
    uint32_t cq[16] = {[0] = 0x05, [6] = iova(IO_CQ), [10] = (ENTRIES - 1) << 16 | 1, [11] = 1};
    check("create I/O completion queue", run(d, admin, cq));
    uint32_t sq[16] = {[0] = 0x01, [6] = iova(IO_SQ), [10] = (ENTRIES - 1) << 16 | 1, [11] = 1 << 16 | 1};
    check("create I/O submission queue", run(d, admin, sq));
}

/* Section 5.15: what the controller and its first namespace are. Returns the bytes of a block. */
static unsigned identify(struct device *d, struct queue *admin)
{
    uint8_t *data = page(d, IDENTIFY);
    uint32_t controller[16] = {[0] = 0x06, [6] = iova(IDENTIFY), [10] = 1};
    check("identify controller", run(d, admin, controller));
    printf("model %.40s serial %.20s\n", data + 24, data + 4);

    uint32_t namespace[16] = {[0] = 0x06, [1] = 1, [6] = iova(IDENTIFY), [10] = 0};
    check("identify namespace", run(d, admin, namespace));
    uint64_t blocks;
    memcpy(&blocks, data, sizeof(blocks));
    uint32_t format;
    memcpy(&format, data + 128 + 4 * (data[26] & 0xf), sizeof(format));
    unsigned size = 1u << (format >> 16 & 0xff);
    printf("namespace 1: %llu blocks of %u bytes\n", (unsigned long long)blocks, size);
    return size;
}

/* Section 6: Write (1) or Read (2) one block. */
static void transfer(struct device *d, struct queue *io, int opcode, uint64_t block)
{
    uint32_t command[16] = {[0] = opcode, [1] = 1, [6] = iova(DATA), [10] = block, [11] = block >> 32};
    check(opcode == 1 ? "write" : "read", run(d, io, command));
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s 0000:01:00.0\n", argv[0]);
        return 2;
    }
    struct device device = {0};
    struct queue admin, io;
    open_device(&device, argv[1]);
    map_memory(&device);
    map_registers(&device);
    new_queue(&admin, &device, 0, ADMIN_SQ, ADMIN_CQ);
    new_queue(&io, &device, 1, IO_SQ, IO_CQ);

    enable(&device);
    unsigned size = identify(&device, &admin);
    create_io_queues(&device, &admin);

    uint8_t *data = page(&device, DATA);
    for (unsigned i = 0; i < size; i++)
        data[i] = i * 7;
    transfer(&device, &io, 1, 0);
    memset(data, 0, size);
    transfer(&device, &io, 2, 0);
    for (unsigned i = 0; i < size; i++)
        if (data[i] != (uint8_t)(i * 7)) {
            fprintf(stderr, "byte %u differs\n", i);
            return 1;
        }
    printf("wrote a block, read it back: the same %u bytes\n", size);

    *reg32(&device, REG_CC) = 0; /* off, so that no DMA is under way when our memory goes */
    return 0;
}
