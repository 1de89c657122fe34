/*
 * What the test clients share: a legacy VFIO container with one NVMe controller, and just enough of a driver to send
 * it commands. Every failure ends the program with a line on stderr and status 1. A client may define CONTAINER, the
 * file that it opens as its container.
 */
#ifndef VFIO_NVME_H
#define VFIO_NVME_H
#include "must.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef CONTAINER
#define CONTAINER "/dev/vfio/vfio"
#endif
#define PAGE 4096UL
#define DEPTH 64
/* Where the queues and the identify buffer are mapped for the device. */
#define QUEUES_IOVA 0x10000UL

struct queue {
    volatile uint32_t *sq, *cq;
    uint32_t tail, head, phase;
    int id;
};

struct nvme {
    int container, group, device;
    volatile uint8_t *bar;
    size_t bar_size;
    uint8_t *queues; /* 8 pages at QUEUES_IOVA */
    struct queue admin, io;
    uint16_t next_cid;
    int vector; /* of the I/O queue's interrupt; 0: it is polled */
};

static inline int map_dma(int container, void *va, uint64_t iova, uint64_t size)
{
    struct vfio_iommu_type1_dma_map map = {
        .argsz = sizeof(map),
        .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        .vaddr = (uintptr_t)va,
        .iova = iova,
        .size = size,
    };
    return ioctl(container, VFIO_IOMMU_MAP_DMA, &map);
}

static inline int unmap_dma(int container, uint64_t iova, uint64_t size)
{
    struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof(unmap), .iova = iova, .size = size};
    return ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap);
}

/* The number in /sys/bus/pci/devices/BDF/iommu_group. */
static inline int group_of(const char *bdf)
{
    char path[128], target[256];
    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", bdf);
    ssize_t length = readlink(path, target, sizeof(target) - 1);
    must(length > 0);
    target[length] = 0;
    return atoi(strrchr(target, '/') + 1);
}

static inline void open_device(struct nvme *n, const char *bdf, int type)
{
    char path[64];
    memset(n, 0, sizeof(*n));
    must((n->container = open(CONTAINER, O_RDWR)) >= 0);
    must(ioctl(n->container, VFIO_GET_API_VERSION) == VFIO_API_VERSION);
    must(ioctl(n->container, VFIO_CHECK_EXTENSION, type) == 1);
    snprintf(path, sizeof(path), "/dev/vfio/%d", group_of(bdf));
    must((n->group = open(path, O_RDWR)) >= 0);
    must(ioctl(n->group, VFIO_GROUP_SET_CONTAINER, &n->container) == 0);
    must(ioctl(n->container, VFIO_SET_IOMMU, type) == 0);
    must((n->device = ioctl(n->group, VFIO_GROUP_GET_DEVICE_FD, bdf)) >= 0);
}

static inline volatile uint32_t *reg32(struct nvme *n, uint32_t offset)
{
    return (volatile uint32_t *)(n->bar + offset);
}
static inline volatile uint64_t *reg64(struct nvme *n, uint32_t offset)
{
    return (volatile uint64_t *)(n->bar + offset);
}

/* Puts one command on a queue and rings its doorbell; returns the command's id. */
static inline uint16_t submit(struct nvme *n, struct queue *q, const uint32_t command[16])
{
    uint16_t cid = ++n->next_cid;
    volatile uint32_t *slot = q->sq + q->tail * 16;
    for (int i = 0; i < 16; i++)
        slot[i] = command[i];
    slot[0] = command[0] | (uint32_t)cid << 16;
    q->tail = (q->tail + 1) % DEPTH;
    *reg32(n, 0x1000 + 8 * q->id) = q->tail;
    return cid;
}

/* Waits for the next completion; returns its status field (0 = success). */
static inline int complete(struct nvme *n, struct queue *q)
{
    for (long spins = 0; (q->cq[q->head * 4 + 3] >> 16 & 1) != q->phase; spins++) {
        must(spins < 200000);
        usleep(spins < 100 ? 0 : 100);
    }
    int status = q->cq[q->head * 4 + 3] >> 17;
    q->head = (q->head + 1) % DEPTH;
    if (q->head == 0)
        q->phase ^= 1;
    *reg32(n, 0x1004 + 8 * q->id) = q->head;
    return status;
}

static inline int command(struct nvme *n, struct queue *q, const uint32_t words[16])
{
    submit(n, q, words);
    return complete(n, q);
}

/* One read (2) or write (1) of `blocks` 512-byte blocks at PRP1 (one page at most). */
static inline int transfer(struct nvme *n, int opcode, uint64_t prp1, uint64_t lba, uint32_t blocks)
{
    uint32_t words[16] = {opcode, 1};
    words[6] = prp1, words[7] = prp1 >> 32;
    words[10] = lba, words[11] = lba >> 32;
    words[12] = blocks - 1;
    return command(n, &n->io, words);
}

/* Fresh private memory. */
static inline void *pages(size_t count)
{
    void *va = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(va != MAP_FAILED);
    return va;
}

/* Maps BAR 0 of the open device, whose queues are mapped for it, and sets up the admin and one pair of I/O queues. */
static inline void start_controller(struct nvme *n)
{
    struct vfio_region_info region = {.argsz = sizeof(region), .index = VFIO_PCI_BAR0_REGION_INDEX};
    must(ioctl(n->device, VFIO_DEVICE_GET_REGION_INFO, &region) == 0);
    struct vfio_region_info config = {.argsz = sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX};
    must(ioctl(n->device, VFIO_DEVICE_GET_REGION_INFO, &config) == 0);
    uint16_t pci_command = 0x6; /* memory decode and bus master */
    must(pwrite(n->device, &pci_command, 2, config.offset + 4) == 2);
    n->bar = mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED, n->device, region.offset);
    must(n->bar != MAP_FAILED);
    n->bar_size = region.size;
    n->admin = (struct queue){(void *)n->queues, (void *)(n->queues + PAGE), 0, 0, 1, 0};
    n->io = (struct queue){(void *)(n->queues + 2 * PAGE), (void *)(n->queues + 3 * PAGE), 0, 0, 1, 1};

    *reg32(n, 0x14) = 0;
    while (*reg32(n, 0x1c) & 1)
        usleep(100);
    *reg32(n, 0x24) = (DEPTH - 1) | (DEPTH - 1) << 16;
    *reg64(n, 0x28) = QUEUES_IOVA;
    *reg64(n, 0x30) = QUEUES_IOVA + PAGE;
    *reg32(n, 0x14) = 1 | 6 << 16 | 4 << 20;
    for (int i = 0; !(*reg32(n, 0x1c) & 1); i++) {
        must(i < 10000);
        usleep(100);
    }
    uint32_t create_cq[16] = {5};
    create_cq[6] = QUEUES_IOVA + 3 * PAGE;
    create_cq[10] = 1 | (DEPTH - 1) << 16, create_cq[11] = 1;
    if (n->vector)
        create_cq[11] |= 2 | (uint32_t)n->vector << 16;
    must(command(n, &n->admin, create_cq) == 0);
    uint32_t create_sq[16] = {1};
    create_sq[6] = QUEUES_IOVA + 2 * PAGE;
    create_sq[10] = 1 | (DEPTH - 1) << 16, create_sq[11] = 1 | 1 << 16;
    must(command(n, &n->admin, create_sq) == 0);
}

/* The whole way through a container, polled. */
static inline void start_nvme(struct nvme *n, const char *bdf, int type)
{
    open_device(n, bdf, type);
    n->queues = pages(8);
    must(map_dma(n->container, n->queues, QUEUES_IOVA, 8 * PAGE) == 0);
    start_controller(n);
}
#endif
