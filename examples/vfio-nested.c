/*
 * What a VMM does for a guest whose IOMMU is nested on Intel VT-d, in one program and without a guest: it
 * writes first-stage page tables itself, at guest addresses, and gives them to a device and to its PASIDs
 * above the table that maps "guest memory". The device then reads and writes by the guest's addresses,
 * asks for pages that are not there and gets them, and loses pages that are taken away. The story is in
 * nested.h.
 *
 *     cc -o vfio-nested examples/vfio-nested.c
 *     softiommu run --machine vtd -- ./vfio-nested 0000:05:00.0
 */
#include "nested.h"

/* x86-64 page tables: present, writable, for users. */
#define ENTRY 7UL

static uint32_t parent;

static uint64_t table_entry(uint64_t table)
{
    return table | ENTRY;
}

static uint64_t page_entry(uint64_t page)
{
    return page | ENTRY;
}

static int nests(const struct hw_info *info, const void *registers)
{
    const struct hw_info_vtd *vtd = registers;
    return info->out_data_type == HW_INFO_TYPE_INTEL_VTD && vtd->ecap_reg >> 26 & 1;
}

static void detach(uint32_t pasid)
{
    struct cdev_detach detach = {sizeof(detach), pasid ? WITH_PASID : 0, pasid};
    if (ioctl(device, CDEV_DETACH_IOMMUFD_PT, &detach) < 0)
        fail("VFIO_DEVICE_DETACH_IOMMUFD_PT");
}

/* The table that maps guest memory is made to lie beneath others. */
static void take(void)
{
    parent = allocate_hwpt(ALLOC_NEST_PARENT | ALLOC_PASID, ioas, 0, NULL, 0);
    attach(parent, 0);
}

/* The guest turns translation on; nothing has a PASID table entry yet. */
static void boot(void)
{
    detach(0);
}

static void forget(const struct space *space, uint64_t address, uint64_t pages)
{
    struct vtd_s1_invalidate one = {.addr = address, .npages = pages};
    if (space->hwpt)
        invalidate(space->hwpt, INVALIDATE_DATA_VTD_S1, &one, 1, sizeof(one));
}

/* The guest has written a PASID table entry (the one for requests without PASID, too). */
static void give(struct space *space)
{
    struct hwpt_vtd_s1 first_stage = {.flags = VTD_S1_WPE, .pgtbl_addr = space->root, .addr_width = 48};
    space->hwpt = allocate_hwpt(ALLOC_PASID, parent, HWPT_DATA_VTD_S1, &first_stage, sizeof(first_stage));
    attach(space->hwpt, space->pasid);
    forget(space, 0, ~0UL);
}

static void take_away(struct space *space)
{
    detach(space->pasid);
    destroy(space->hwpt);
    space->hwpt = 0;
}

/* The unit may remember that nothing was there: its caching mode is on. */
static void mapped(struct space *space, uint64_t address)
{
    forget(space, address & ~(PAGE - 1), 1);
}

static void unmapped(struct space *space, uint64_t address, uint64_t pages)
{
    forget(space, address, pages);
}

/* With its page table on the host everything that was remembered of it went. */
static void ended(struct space *space, int has_page)
{
    (void)space;
    (void)has_page;
}

static void release(void)
{
    take_away(&kernel);
    take_away(&beta);
}
