/*
 * Just enough of a driver for Intel's Data Streaming Accelerator, by its specification: one dedicated queue, descriptors
 * submitted with MOVDIR64B, completion records that are polled. Includes after vfio-nvme.h, whose `must` it uses.
 */
#ifndef DSA_H
#define DSA_H
#include <linux/idxd.h>

#define DSA_BDF "0000:03:00.0"
#define DSA_GENCAP 0x10
#define DSA_OFFSETS 0x60
#define DSA_GENSTS 0x90
#define DSA_CMD 0xa0
#define DSA_CMDSTS 0xa8
#define DSA_SWERR 0xc0
#define DSA_VECTORS 9

enum { DSA_ENABLE = 1, DSA_DISABLE = 2, DSA_RESET = 5, DSA_ENABLE_WQ = 6, DSA_GET_HANDLE = 13 };

struct dsa {
    int device;
    volatile uint8_t *bar, *portal;
    uint32_t max_transfer_lg2;
};

static inline uint32_t dsa_read(struct dsa *d, uint32_t offset)
{
    return *(volatile uint32_t *)(d->bar + offset);
}
static inline uint64_t dsa_read64(struct dsa *d, uint32_t offset)
{
    return *(volatile uint64_t *)(d->bar + offset);
}
static inline void dsa_write(struct dsa *d, uint32_t offset, uint32_t value)
{
    *(volatile uint32_t *)(d->bar + offset) = value;
}

/* Orders a command and polls the command status until it has ended; its result. */
static inline uint32_t dsa_command(struct dsa *d, uint32_t command, uint32_t operand)
{
    uint32_t status;
    dsa_write(d, DSA_CMD, command << 20 | operand);
    for (int i = 0; (status = dsa_read(d, DSA_CMDSTS)) >> 31; i++)
        must(i < 1000000);
    must((status & 0xff) == 0);
    return status >> 8 & 0xffff;
}

static inline volatile uint8_t *dsa_map(struct dsa *d, uint32_t index, size_t bytes)
{
    struct vfio_region_info region = {.argsz = sizeof(region), .index = index};
    must(ioctl(d->device, VFIO_DEVICE_GET_REGION_INFO, &region) == 0 && region.size >= bytes);
    void *at = mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED, d->device, region.offset);
    must(at != MAP_FAILED);
    return at;
}

/* Resets the device and enables it with one dedicated queue of 32 entries on engine 0. */
static inline void dsa_start(struct dsa *d, int device)
{
    uint16_t command = 0x6; /* memory decode and bus master */
    struct vfio_region_info config = {.argsz = sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX};
    d->device = device;
    must(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config) == 0);
    must(pwrite(device, &command, 2, config.offset + 4) == 2);
    d->bar = dsa_map(d, VFIO_PCI_BAR0_REGION_INDEX, 0x10000);
    d->portal = dsa_map(d, VFIO_PCI_BAR2_REGION_INDEX, 0x1000);
    dsa_command(d, DSA_RESET, 0);
    must((dsa_read(d, DSA_GENSTS) & 3) == 0);
    uint64_t capabilities = dsa_read64(d, DSA_GENCAP), offsets = dsa_read64(d, DSA_OFFSETS);
    uint32_t groups = (offsets & 0xffff) * 0x100, queues = (offsets >> 16 & 0xffff) * 0x100;
    uint32_t permissions = (offsets >> 32 & 0xffff) * 0x100;
    d->max_transfer_lg2 = capabilities >> 16 & 0x1f;
    for (int vector = 0; vector < DSA_VECTORS; vector++)
        dsa_write(d, permissions + 8 * vector, 0);
    dsa_write(d, groups, 1);        /* queue 0 */
    dsa_write(d, groups + 0x20, 1); /* engine 0 */
    dsa_write(d, queues, 32);
    dsa_write(d, queues + 8, 1 | 1 << 1 | 10 << 4); /* dedicated, may wait for pages, priority 10 */
    dsa_write(d, queues + 12, d->max_transfer_lg2 | (uint32_t)(capabilities >> 21 & 0xf) << 5);
    dsa_command(d, DSA_ENABLE, 0);
    must((dsa_read(d, DSA_GENSTS) & 3) == 1);
    dsa_command(d, DSA_ENABLE_WQ, 0);
}

/* 64 bytes in one write. */
static inline void movdir64b(volatile void *portal, const void *descriptor)
{
    __asm__ volatile(".byte 0x66, 0x0f, 0x38, 0xf8, 0x02" : : "a"(portal), "d"(descriptor) : "memory");
}

/* 64 bytes in one write that the device may turn away; whether it did. */
static inline int enqcmd(volatile void *portal, const void *descriptor)
{
    uint8_t retry;
    __asm__ volatile(".byte 0xf2, 0x0f, 0x38, 0xf8, 0x02\n\tsetz %0"
                     : "=q"(retry)
                     : "a"(portal), "d"(descriptor)
                     : "memory", "cc");
    return retry;
}

/* Waits for the record; its status. */
static inline int dsa_wait(struct dsa_completion_record *record)
{
    for (long spins = 0; record->status == 0; spins++) {
        must(spins < 200000);
        usleep(spins < 100 ? 0 : 100);
    }
    __sync_synchronize();
    return record->status;
}

/* Submits to queue 0 a descriptor whose record is at `record` to us and at `record_iova` to the device; its status. */
static inline int dsa_run(struct dsa *d, struct dsa_hw_desc *descriptor, struct dsa_completion_record *record,
                          uint64_t record_iova)
{
    static struct dsa_hw_desc submitted __attribute__((aligned(64)));
    memset(record, 0, sizeof(*record));
    submitted = *descriptor;
    submitted.flags |= IDXD_OP_FLAG_CRAV | IDXD_OP_FLAG_RCR;
    submitted.completion_addr = record_iova;
    __sync_synchronize();
    movdir64b(d->portal, &submitted);
    return dsa_wait(record);
}
#endif
