/*
 * What a VMM does for a guest whose IOMMU is nested on a host's of AMD's, in one program and without a
 * guest: a virtual IOMMU of the host with the device in it, a GCR3 table and page tables that it writes
 * itself at guest addresses, a nested page table for what the guest's device table entry says, the guest's
 * commands as they are, and page requests through the fault queue. The story is in nested.h.
 *
 * Linux 7.2 does not nest there: the machine needs the extension amd-nesting, by which the guest's commands
 * are taken.
 *
 *     cc -o vfio-nested-amd examples/vfio-nested-amd.c
 *     softiommu machine show amd >nesting.yaml && echo 'extensions: [amd-nesting]' >>nesting.yaml
 *     softiommu run --machine nesting.yaml -- ./vfio-nested-amd 0000:05:00.0
 */
#include "nested.h"

/* EXT_FEATURE and EXT_FEATURE2: guest tables, for requests without PASID too, at guest addresses. */
#define GT_SUP (1UL << 4)
#define GIO_SUP (1UL << 48)
#define GCR3_TRP_MODE_SUP (1UL << 3)
/* Device table entries (48882, 2.2.2.1): valid, and with translation; reads and writes are allowed. */
#define DTE_BLOCKED 0x1UL
#define DTE_PASSING (0x3UL | 3UL << 61)
/* Page requests, whose answers have PASIDs; requests without one are of PASID 0; GCR3 tables of 3 levels. */
#define DTE_GUEST (DTE_PASSING | 3UL << 52 | 1UL << 54 | 1UL << 55 | 2UL << 56)
#define GCR3_LOW(table) (((table) >> 12 & 7) << 58)
#define GCR3_MIDDLE(table) (((table) >> 15 & 0xffff) << 16)
#define DTE_ATS (1UL << 32)
#define DOMAIN 2UL
/* An entry of a GCR3 table, and a table of the guest's: present, writable, for users, accessed; a page: dirty. */
#define GCR3_VALID 1UL
#define TABLE_BITS 0x27UL
#define PAGE_BITS 0x67UL
/* Commands (2.4): opcodes, and what they are about. */
#define INVALIDATE_PAGES (3UL << 60 | DOMAIN << 32)
#define INVALIDATE_IOTLB (4UL << 60 | GUEST_SID)
#define IOTLB_PASID(pasid) ((uint64_t)(pasid) << 48)
enum { SIZED = 1, TABLES_TOO = 2, GUEST_PAGES = 4 };
#define EVERYTHING 0x7ffffffffffff000UL

static uint32_t viommu, current;
static uint64_t gcr3;

static uint64_t table_entry(uint64_t table)
{
    return table | TABLE_BITS;
}

static uint64_t page_entry(uint64_t page)
{
    return page | PAGE_BITS;
}

static int nests(const struct hw_info *info, const void *registers)
{
    const struct hw_info_amd *amd = registers;
    return info->out_data_type == HW_INFO_TYPE_AMD && (amd->efr & GT_SUP) && (amd->efr & GIO_SUP) &&
           (amd->efr2 & GCR3_TRP_MODE_SUP);
}

/* The host does what the guest's device table entry says; what the device had goes. */
static void follow(uint64_t low, uint64_t high)
{
    struct hwpt_amd_guest entry = {{low, high, 0, 0}};
    uint32_t before = current;
    current = allocate_hwpt(0, viommu, HWPT_DATA_AMD_GUEST, &entry, sizeof(entry));
    attach(current, 0);
    if (before)
        destroy(before);
}

/* The same; nothing is left of what the host remembers of the guest. */
static void renew(uint64_t low)
{
    struct cdev_detach detach = {sizeof(detach), 0, 0};
    if (ioctl(device, CDEV_DETACH_IOMMUFD_PT, &detach) < 0)
        fail("VFIO_DEVICE_DETACH_IOMMUFD_PT");
    destroy(current);
    current = 0;
    follow(low, 0);
}

static void command(uint64_t low, uint64_t high)
{
    struct amd_invalidate one = {{low, high}};
    invalidate(viommu, INVALIDATE_DATA_AMD, &one, 1, sizeof(one));
}

/* The host's virtual IOMMU, where the device has the guest's number. */
static void take(void)
{
    uint32_t parent = allocate_hwpt(ALLOC_NEST_PARENT, ioas, 0, NULL, 0);
    struct viommu_alloc alloc = {
        .size = sizeof(alloc), .type = HW_INFO_TYPE_AMD, .dev_id = device_id, .hwpt_id = parent};
    if (ioctl(iommufd, IOMMU_VIOMMU_ALLOC, &alloc) < 0)
        fail("IOMMU_VIOMMU_ALLOC");
    viommu = alloc.out_viommu_id;
    struct vdevice_alloc known = {
        .size = sizeof(known), .viommu_id = viommu, .dev_id = device_id, .virt_id = GUEST_SID};
    if (ioctl(iommufd, IOMMU_VDEVICE_ALLOC, &known) < 0)
        fail("IOMMU_VDEVICE_ALLOC");
    follow(DTE_PASSING, 0);
}

/* The guest's driver switches its unit on, where nothing passes, and has it forget everything. */
static void boot(void)
{
    renew(DTE_BLOCKED);
    renew(DTE_BLOCKED);
}

static uint64_t *root_of(uint32_t pasid)
{
    uint64_t table = gcr3;
    for (int level = 2; level > 0; level--) {
        uint64_t *slot = (uint64_t *)(guest + table) + (pasid >> (9 * level) & 511);
        if (!*slot)
            *slot = allocate_page() | GCR3_VALID;
        table = *slot & ~(PAGE - 1);
    }
    return (uint64_t *)(guest + table) + (pasid & 511);
}

/* What the host's unit needs to know of a process is in the GCR3 table, and of the guest's kernel in the entry. */
static void give(struct space *space)
{
    if (!gcr3)
        gcr3 = allocate_page();
    *root_of(space->pasid) = space->root | GCR3_VALID;
    space->hwpt = 1;
    if (space->pasid)
        return;
    follow(DTE_GUEST | GCR3_LOW(gcr3), DOMAIN | GCR3_MIDDLE(gcr3) | DTE_ATS);
    command(INVALIDATE_IOTLB, EVERYTHING | SIZED);
}

static void take_away(struct space *space)
{
    *root_of(space->pasid) = 0;
    command(INVALIDATE_PAGES | space->pasid, EVERYTHING | SIZED | TABLES_TOO | GUEST_PAGES);
    command(INVALIDATE_IOTLB | IOTLB_PASID(space->pasid), EVERYTHING | SIZED | GUEST_PAGES);
    space->hwpt = 0;
}

/* Nothing is remembered of what was not there. */
static void mapped(struct space *space, uint64_t address)
{
    (void)space;
    (void)address;
}

/* The address says the size by its lowest bit that is 0. */
static void unmapped(struct space *space, uint64_t address, uint64_t pages)
{
    uint64_t sized = pages > 1 ? SIZED | (pages / 2 - 1) * PAGE : 0;
    uint64_t tagged = space->pasid ? GUEST_PAGES : 0;
    command(INVALIDATE_PAGES | space->pasid, address | sized | TABLES_TOO | GUEST_PAGES);
    command(INVALIDATE_IOTLB | IOTLB_PASID(space->pasid), address | sized | tagged);
}

/* No device had it any more. */
static void ended(struct space *space, int has_page)
{
    (void)space;
    (void)has_page;
}

/* Its process's table, and then its own: nothing passes. */
static void release(void)
{
    take_away(&beta);
    follow(DTE_BLOCKED, 0);
    *root_of(0) = 0;
    command(INVALIDATE_PAGES, EVERYTHING | SIZED | TABLES_TOO | GUEST_PAGES);
}
