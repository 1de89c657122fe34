/*
 * What the clients of a nesting container share: the requests of the 2020 proposal for virtual SVA, guest memory with a
 * page table in it, and the DMA test function. A function named after a request returns its value, or minus the errno.
 */
#ifndef VSVA_H
#define VSVA_H
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

#define PAGE 4096UL
#define NESTING 6
#define VFIO_IOMMU_PASID_REQUEST 0x3b76
#define VFIO_IOMMU_NESTING_OP 0x3b77
enum { ALLOC_PASID = 1, FREE_PASID = 2 };
enum { OP_BIND = 0, OP_UNBIND = 1, OP_INVALIDATE = 2 };
enum { CAP_MIGRATION = 2, CAP_NESTING = 3, CAP_IOVA_RANGE = 1, CAP_PASID_QUOTA = 0x8001 };
enum { FORMAT_VTD = 1, GPASID_VALID = 1 };
enum { SRE = 1, EAFE = 2, PCD = 4, PWT = 8, EMTE = 16, CD = 32 };
enum { IOTLB = 1, DEV_IOTLB = 2, PASID_CACHE = 4 };
enum { BY_DOMAIN = 0, BY_PASID = 1, BY_ADDR = 2 };
enum { INV_PASID = 1, INV_ARCHID = 2, INV_LEAF = 4 };

struct pasid_request {
    uint32_t argsz, flags, min, max;
};
struct nesting_info {
    uint32_t argsz, flags, format, features;
    uint16_t addr_width, pasid_bits;
    uint8_t padding[12];
    struct {
        uint32_t flags;
        uint8_t padding[12];
        uint64_t cap, ecap;
    } vtd;
};
struct bind_data {
    uint32_t argsz, version, format, addr_width;
    uint64_t flags, gpgd, hpasid, gpasid;
    uint8_t padding[8];
    uint64_t vtd_flags;
    uint32_t pat, emt;
};
struct invalidate_info {
    uint32_t argsz, version;
    uint8_t cache, granularity, padding[6];
    union {
        struct {
            uint32_t flags, archid;
            uint64_t pasid;
        } pasid;
        struct {
            uint32_t flags, archid;
            uint64_t pasid, addr, granule_size, nb_granules;
        } addr;
    };
};
_Static_assert(sizeof(struct nesting_info) == 64 && sizeof(struct bind_data) == 72, "layout");
_Static_assert(sizeof(struct invalidate_info) == 56, "layout");

#define must(condition)                                                                        \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            fprintf(stderr, "%s:%d: %s (errno: %s)\n", __FILE__, __LINE__, #condition, strerror(errno)); \
            exit(1);                                                                           \
        }                                                                                      \
    } while (0)

static inline int request(int fd, unsigned long number, void *argument)
{
    int value = ioctl(fd, number, argument);
    return value < 0 ? -errno : value;
}

/* ---- The container ------------------------------------------------------------------------------------- */

struct setup {
    int container, group, device;
    uint64_t bar, config;
};

/* Of a PCI function by its address, or of a mediated device by its UUID. */
static inline int open_group(const char *name)
{
    char path[128], target[256];
    snprintf(path, sizeof(path), "/sys/bus/%s/devices/%s/iommu_group", strlen(name) == 36 ? "mdev" : "pci", name);
    ssize_t length = readlink(path, target, sizeof(target) - 1);
    must(length > 0);
    target[length] = 0;
    snprintf(path, sizeof(path), "/dev/vfio/%d", atoi(strrchr(target, '/') + 1));
    int group = open(path, O_RDWR);
    must(group >= 0);
    return group;
}

static inline uint64_t region(int device, uint32_t index)
{
    struct vfio_region_info info = {.argsz = sizeof(info), .index = index};
    must(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) == 0);
    return info.offset;
}

/* A nesting container with the group of the function, which may access memory. */
static inline struct setup open_nesting(const char *bdf)
{
    struct setup s = {0};
    must((s.container = open("/dev/vfio/vfio", O_RDWR)) >= 0);
    must(ioctl(s.container, VFIO_CHECK_EXTENSION, NESTING) == 1);
    s.group = open_group(bdf);
    must(ioctl(s.group, VFIO_GROUP_SET_CONTAINER, &s.container) == 0);
    must(ioctl(s.container, VFIO_SET_IOMMU, NESTING) == 0);
    must((s.device = ioctl(s.group, VFIO_GROUP_GET_DEVICE_FD, bdf)) >= 0);
    s.bar = region(s.device, VFIO_PCI_BAR0_REGION_INDEX);
    s.config = region(s.device, VFIO_PCI_CONFIG_REGION_INDEX);
    uint16_t command = 6; /* memory space, bus master */
    must(pwrite(s.device, &command, 2, (off_t)s.config + 4) == 2);
    return s;
}

static inline void close_nesting(struct setup s)
{
    close(s.device);
    close(s.group);
    close(s.container);
}

/* The capability in GET_INFO's answer, or NULL. */
static inline void *capability(int container, uint16_t id)
{
    static uint8_t answer[4096];
    struct vfio_iommu_type1_info *info = (void *)answer;
    memset(answer, 0, sizeof(answer));
    info->argsz = sizeof(answer);
    must(ioctl(container, VFIO_IOMMU_GET_INFO, info) == 0);
    for (uint32_t at = info->cap_offset; at;) {
        struct vfio_info_cap_header *header = (void *)(answer + at);
        if (header->id == id)
            return header;
        at = header->next;
    }
    return NULL;
}

static inline struct nesting_info nesting_info(int container)
{
    uint8_t *found = capability(container, CAP_NESTING);
    must(found);
    return *(struct nesting_info *)(found + sizeof(struct vfio_info_cap_header));
}

/* The process's quota and what is left of it. */
static inline void quota(int container, uint32_t *most, uint32_t *left)
{
    uint32_t *found = capability(container, CAP_PASID_QUOTA);
    must(found);
    *most = found[2];
    *left = found[3];
}

static inline int alloc_pasid(int container, uint32_t min, uint32_t max)
{
    struct pasid_request ask = {sizeof(ask), ALLOC_PASID, min, max};
    return request(container, VFIO_IOMMU_PASID_REQUEST, &ask);
}

static inline int free_pasids(int container, uint32_t min, uint32_t max)
{
    struct pasid_request ask = {sizeof(ask), FREE_PASID, min, max};
    return request(container, VFIO_IOMMU_PASID_REQUEST, &ask);
}

static inline int nesting_op(int container, uint32_t op, const void *data, uint32_t size)
{
    struct {
        uint32_t argsz, flags;
        uint8_t data[128];
    } ask = {8 + size, op, {0}};
    memcpy(ask.data, data, size);
    return request(container, VFIO_IOMMU_NESTING_OP, &ask);
}

static inline struct bind_data bind_data(uint64_t root, uint64_t pasid)
{
    struct bind_data data = {.argsz = sizeof(data), .version = 1, .format = FORMAT_VTD, .addr_width = 48};
    data.gpgd = root;
    data.hpasid = pasid;
    return data;
}

static inline int bind_table(int container, uint64_t root, uint64_t pasid)
{
    struct bind_data data = bind_data(root, pasid);
    return nesting_op(container, OP_BIND, &data, sizeof(data));
}

static inline int unbind_table(int container, uint64_t pasid)
{
    struct bind_data data = bind_data(0, pasid);
    return nesting_op(container, OP_UNBIND, &data, sizeof(data));
}

static inline struct invalidate_info changed(uint8_t cache, uint8_t granularity, uint64_t pasid)
{
    struct invalidate_info info = {sizeof(info), 1, cache, granularity, {0}, .pasid = {INV_PASID, 0, pasid}};
    return info;
}

static inline int invalidate(int container, struct invalidate_info info)
{
    return nesting_op(container, OP_INVALIDATE, &info, sizeof(info));
}

static inline int invalidate_page(int container, uint64_t pasid, uint64_t address)
{
    struct invalidate_info info = changed(IOTLB | DEV_IOTLB, BY_ADDR, pasid);
    info.addr.flags |= INV_LEAF;
    info.addr.addr = address;
    info.addr.granule_size = PAGE;
    info.addr.nb_granules = 1;
    return invalidate(container, info);
}

/* ---- Guest memory: 64 pages from guest address 0 on, the table of one process in each eighth --------------- */

#define GUEST_BYTES (64 * PAGE)
#define ROOT(n) (((uint64_t)(n) * 8 + 1) * PAGE)
#define DATA(n) (((uint64_t)(n) * 8 + 5) * PAGE)
/* The address that every process of the guest uses. */
#define VA 0x555500000000UL
#define ENTRY 7UL /* present, writable, for users */

static inline uint8_t *map_guest(int container)
{
    uint8_t *guest = mmap(NULL, GUEST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(guest != MAP_FAILED);
    struct vfio_iommu_type1_dma_map map = {
        .argsz = sizeof(map),
        .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        .vaddr = (uintptr_t)guest,
        .size = GUEST_BYTES,
    };
    must(ioctl(container, VFIO_IOMMU_MAP_DMA, &map) == 0);
    return guest;
}

/* The table of process n: one page at VA. */
static inline void write_table(uint8_t *guest, int n, uint64_t page)
{
    for (uint64_t level = 4, table = ROOT(n); level >= 1; level--, table += PAGE)
        *((uint64_t *)(guest + table) + (VA >> (12 + 9 * (level - 1)) & 511)) =
            (level > 1 ? table + PAGE : page) | (page ? ENTRY : 0);
}

/* ---- The DMA test function ------------------------------------------------------------------------------ */

enum { COMMAND = 0x04, SOURCE = 0x08, DESTINATION = 0x10, LENGTH = 0x18, TAG = 0x1c, STATUS = 0x20 };
enum { BUFFER = 0x10000 };
enum { READ = 1, WRITE = 2 };
enum { DONE = 2, FAULT = 3 };
#define WITH_PASID(n) ((uint32_t)(n) | 0x80000000U)

static inline void put(struct setup s, uint32_t offset, uint32_t value)
{
    must(pwrite(s.device, &value, 4, (off_t)(s.bar + offset)) == 4);
}

/* The function begins to move `length` bytes between its buffer and the address. */
static inline void begin_dma(struct setup s, uint32_t command, uint64_t address, uint32_t length, uint32_t tag)
{
    uint32_t outside = command == READ ? SOURCE : DESTINATION;
    uint32_t inside = command == READ ? DESTINATION : SOURCE;
    put(s, inside, 0);
    put(s, inside + 4, 0);
    put(s, outside, (uint32_t)address);
    put(s, outside + 4, (uint32_t)(address >> 32));
    put(s, LENGTH, length);
    put(s, TAG, tag);
    put(s, COMMAND, command);
}

/* The same, until it is DONE or FAULT. */
static inline uint32_t dma(struct setup s, uint32_t command, uint64_t address, uint32_t length, uint32_t tag)
{
    uint32_t status = 0;
    begin_dma(s, command, address, length, tag);
    for (int patience = 0; status != DONE && status != FAULT; patience++) {
        must(patience < 100000);
        must(pread(s.device, &status, 4, (off_t)(s.bar + STATUS)) == 4);
    }
    return status;
}

/* Whether the function reads this text there. */
static inline int reads(struct setup s, uint64_t address, const char *text, uint32_t tag)
{
    char got[64] = "";
    if (dma(s, READ, address, (uint32_t)strlen(text), tag) != DONE)
        return 0;
    must(pread(s.device, got, strlen(text), (off_t)(s.bar + BUFFER)) == (ssize_t)strlen(text));
    return strcmp(got, text) == 0;
}
#endif
