/*
 * The extension amd-nesting by its system calls: nested page tables for device table entries of a guest,
 * what they may not say, the guest's GCR3 and page tables read by the host's unit, and the guest's commands.
 * The device is the DMA test function of the machine; its registers are in src/pci/devices/test-function.ts.
 */
#include "iommufd.h"
#include "vfio-cdev.h"
#include <linux/vfio.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL
#define GUEST_BYTES (1UL << 20)
#define VA 0x555500000000UL
#define GUEST_ID 8
#define GUEST_DOMAIN 0x44
#define IOMMU_HWPT_INVALIDATE 0x3b8d
#define IOMMU_VIOMMU_ALLOC 0x3b90
#define IOMMU_VDEVICE_ALLOC 0x3b91
#define INVALIDATE_DATA_AMD 0xa3d00001 /* SOFTIOMMU_VIOMMU_INVALIDATE_DATA_AMD */
enum { NEST_PARENT = 1, PASID = 8, HWPT_DATA_AMD_GUEST = 3 };
/* The test function's BAR 0. */
enum { COMMAND = 0x04, SOURCE = 0x08, DESTINATION = 0x10, LENGTH = 0x18, TAG = 0x1c, STATUS = 0x20 };
enum { BUFFER = 0x10000, WRITE = 2, DONE = 2, FAULT = 3 };
#define TAG_VALID 0x80000000U
/* Device table entry (48882, 2.2.2.1): V, TV, GIoV, GV, IR, IW; and of its third word the paging mode. */
#define ENTRY_VALID 3UL
#define ENTRY_GUEST (ENTRY_VALID | 3UL << 54 | 3UL << 61)
#define FIVE_LEVELS (1UL << 54)
/* Commands (2.4). */
#define PAGES(domain) (3UL << 60 | (uint64_t)(domain) << 32)
#define GN_ALL (0x7ffffffffffff000UL | 7) /* S, PDE, GN: everything */
#define IOTLB(device) (4UL << 60 | (device))
#define DEVTAB(device) (2UL << 60 | (device))

struct command { uint64_t words[2]; };

static int iommufd, device;
static uint32_t device_id, ioas, parent, viommu;
static uint8_t *guest;
static uint64_t bar, next_page;

static uint64_t region(uint32_t index)
{
    struct vfio_region_info info = {.argsz = sizeof(info), .index = index};
    must(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) == 0);
    return info.offset;
}

static void open_device(const char *bdf)
{
    device = open_cdev(bdf);
    must((device_id = cdev_bind(device, iommufd)) != 0);
    uint16_t command = 6; /* memory space, bus master */
    must(pwrite(device, &command, 2, (off_t)region(VFIO_PCI_CONFIG_REGION_INDEX) + 4) == 2);
    bar = region(VFIO_PCI_BAR0_REGION_INDEX);
}

/* 0, and the id; else the errno. */
static int allocate(uint32_t flags, uint32_t above, const uint64_t *entry, uint32_t *id)
{
    struct iommu_hwpt_alloc alloc = {
        .size = sizeof(alloc), .flags = flags, .dev_id = device_id, .pt_id = above};
    if (entry) {
        alloc.data_type = HWPT_DATA_AMD_GUEST;
        alloc.data_len = 32;
        alloc.data_uptr = (uintptr_t)entry;
    }
    if (ioctl(iommufd, IOMMU_HWPT_ALLOC, &alloc) < 0)
        return errno;
    *id = alloc.out_hwpt_id;
    return 0;
}

/* How an entry of the guest's is answered; what was made goes again. */
static int answer(uint64_t low, uint64_t second, uint64_t third)
{
    uint64_t entry[4] = {low, second, third, 0};
    uint32_t id;
    int error = allocate(0, viommu, entry, &id);
    must(error != 0 || destroy(iommufd, id) == 0);
    return error;
}

static void make_viommu(void)
{
    struct {
        uint32_t size, flags, type, dev_id, hwpt_id, out_viommu_id, data_len, reserved;
        uint64_t data_uptr;
    } alloc = {.size = sizeof(alloc), .type = 1, .dev_id = device_id, .hwpt_id = parent};
    must(ioctl(iommufd, IOMMU_VIOMMU_ALLOC, &alloc) == 0);
    viommu = alloc.out_viommu_id;
    struct {
        uint32_t size, viommu_id, dev_id, out_vdevice_id;
        uint64_t virt_id;
    } known = {.size = sizeof(known), .viommu_id = viommu, .dev_id = device_id, .virt_id = GUEST_ID};
    must(ioctl(iommufd, IOMMU_VDEVICE_ALLOC, &known) == 0);
}

/* The errno; `done`: how many of the guest's commands were carried out. */
static int invalidate(uint32_t object, const struct command *commands, uint32_t count, uint32_t *done)
{
    struct {
        uint32_t size, hwpt_id;
        uint64_t data_uptr;
        uint32_t data_type, entry_len, entry_num, reserved;
    } what = {.size = sizeof(what), .hwpt_id = object, .data_uptr = (uintptr_t)commands,
              .data_type = INVALIDATE_DATA_AMD, .entry_len = sizeof(commands[0]), .entry_num = count};
    int error = ioctl(iommufd, IOMMU_HWPT_INVALIDATE, &what) == 0 ? 0 : errno;
    *done = what.entry_num;
    return error;
}

static uint64_t new_page(void)
{
    next_page += PAGE;
    return next_page;
}

/* Maps a page of guest memory; tables of four levels, present, writable, for users. */
static void map_page(uint64_t root, uint64_t address, uint64_t page)
{
    for (int level = 4; level > 0; level--) {
        uint64_t *slot = (uint64_t *)(guest + root) + (address >> (3 + 9 * level) & 511);
        if (level == 1)
            *slot = page | 7;
        else if (!*slot)
            *slot = new_page() | 7;
        root = *slot & 0xfffffffff000UL;
    }
}

static void set(uint32_t offset, uint32_t value)
{
    must(pwrite(device, &value, 4, (off_t)(bar + offset)) == 4);
}

/* Whether the device could write a byte there; `pasid` 0: its request has none. */
static int writes(uint64_t address, char byte, uint32_t pasid)
{
    uint32_t status = 0;
    must(pwrite(device, &byte, 1, (off_t)(bar + BUFFER)) == 1);
    set(SOURCE, 0);
    set(SOURCE + 4, 0);
    set(DESTINATION, (uint32_t)address);
    set(DESTINATION + 4, (uint32_t)(address >> 32));
    set(LENGTH, 1);
    set(TAG, pasid ? pasid | TAG_VALID : 0);
    set(COMMAND, WRITE);
    while (status != DONE && status != FAULT)
        must(pread(device, &status, 4, (off_t)(bar + STATUS)) == 4);
    return status == DONE;
}

/* What an entry may not say, and where it may not be. */
static void refusals(uint64_t gcr3)
{
    uint64_t second = GUEST_DOMAIN | (gcr3 >> 15 & 0xffff) << 16;
    uint64_t low = ENTRY_GUEST | (gcr3 >> 12 & 7) << 58;
    must(answer(low, second, 0) == 0);
    must(answer(0, 0, 0) == 0 && answer(ENTRY_VALID, GUEST_DOMAIN, 0) == 0 && answer(1, 0, 0) == 0);
    must(answer(low | 3UL << 9, second, 0) == EINVAL);     /* a host mode */
    must(answer(low | 0x5000, second, 0) == EINVAL);       /* a host table */
    must(answer(low | 3UL << 56, second, 0) == EINVAL);    /* GLX */
    must(answer(low, second, 2UL << 54) == EINVAL);        /* a paging mode of its own */
    must(answer(ENTRY_GUEST, GUEST_DOMAIN, 0) == EINVAL);  /* no GCR3 table */
    must(answer(low, second, FIVE_LEVELS) == EOPNOTSUPP);  /* which the unit has not */
    uint64_t entry[4] = {low, second, 0, 0};
    uint32_t id;
    must(allocate(PASID, viommu, entry, &id) == EOPNOTSUPP && allocate(0, parent, entry, &id) == EOPNOTSUPP);
    must(allocate(0, viommu, (void *)8, &id) == EFAULT);
}

/* The guest changes its table, and says so. */
static void commands(uint32_t nested, uint64_t root, const uint8_t *page)
{
    uint64_t moved = new_page();
    uint32_t done;
    map_page(root, VA, moved);
    must(writes(VA, 'b', 0) && page[0] == 'b'); /* the unit remembers */
    struct command list[] = {
        {{PAGES(GUEST_DOMAIN), GN_ALL}}, {{IOTLB(GUEST_ID), 0}}, {{PAGES(GUEST_DOMAIN + 1), GN_ALL}},
        {{DEVTAB(GUEST_ID), 0}},
    };
    must(invalidate(viommu, list, 4, &done) == EINVAL && done == 3);
    must(writes(VA, 'c', 0) && page[0] == 'b' && guest[moved] == 'c');
    struct command bad[] = {{{PAGES(GUEST_DOMAIN), GN_ALL & ~4UL}}, {{IOTLB(GUEST_ID + 1), 0}}, {{0, 0}}};
    for (int i = 0; i < 3; i++)
        must(invalidate(viommu, &bad[i], 1, &done) == EINVAL && done == 0);
    must(invalidate(nested, list, 1, &done) == EOPNOTSUPP && done == 0);
}

int main(void)
{
    must((iommufd = open("/dev/iommu", O_RDWR)) >= 0);
    open_device("0000:05:00.0");
    guest = mmap(NULL, GUEST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(guest != MAP_FAILED && (ioas = ioas_alloc(iommufd)) != 0);
    must(ioas_map(iommufd, ioas, guest, 0, GUEST_BYTES) == 0);
    must(allocate(NEST_PARENT, ioas, NULL, &parent) == 0);
    make_viommu();

    uint64_t gcr3 = new_page(), root = new_page(), other = new_page(), page = new_page(), data = new_page();
    uint64_t *pasids = (uint64_t *)(guest + gcr3);
    pasids[0] = root | 1;
    pasids[3] = other | 1;
    map_page(root, VA, page);
    map_page(other, VA, data);
    refusals(gcr3);

    uint64_t entry[4] = {ENTRY_GUEST | (gcr3 >> 12 & 7) << 58, GUEST_DOMAIN | (gcr3 >> 15 & 0xffff) << 16};
    uint32_t nested;
    must(allocate(0, viommu, entry, &nested) == 0 && cdev_attach(device, nested) == 0);
    must(writes(VA, 'a', 0) && guest[page] == 'a');
    must(writes(VA, 'p', 3) && guest[data] == 'p' && !writes(VA, 'x', 4) && !writes(page, 'x', 0));
    commands(nested, root, guest + page);
    must(ioas_unmap(iommufd, ioas, 0, GUEST_BYTES) == 0 && !writes(VA, 'd', 0));
    must(destroy(iommufd, nested) == -1 && errno == EBUSY);
    must(cdev_detach(device) == 0 && destroy(iommufd, nested) == 0);
    must(!writes(VA, 'e', 0));
    puts("the host's unit read the guest's tables");
    return 0;
}
