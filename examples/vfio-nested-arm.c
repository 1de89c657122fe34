/*
 * What a VMM does for a guest whose IOMMU is nested on an Arm SMMUv3, in one program and without a guest: a
 * virtual IOMMU of the host with the device in it, context descriptors and stage 1 page tables that it
 * writes itself at guest addresses, a nested page table for what the guest's stream table entry says, the
 * guest's commands as they are, stalled accesses through the fault queue, and events of the guest's own
 * making through the event queue. The story is in nested.h.
 *
 *     cc -o vfio-nested-arm examples/vfio-nested-arm.c
 *     softiommu run --machine smmuv3 -- ./vfio-nested-arm 0000:03:00.0
 */
#define AFTER_RELEASE take_event
static void take_event(void);
#include "nested.h"

/* Stream table entries, their first two words (IHI 0070, 5.2). */
#define STE_ABORT 0x1UL
#define STE_BYPASS 0x9UL
/* Not valid for any unit, as a missing one: more context descriptors than there are SubstreamIDs. */
#define STE_NONE (0xbUL | 31UL << 59)
/* Stage 1, context descriptors in two levels of 4 KiB for 16 bits of a PASID; without one it is number 0. */
#define STE_STAGE1(contexts) (0x1bUL | (contexts) | 16UL << 59)
#define STE_ATTRIBUTES (2UL | 1UL << 2 | 1UL << 4 | 3UL << 6)
#define STE_ATS (1UL << 28)
/* Context descriptors (5.4): 48 bits, cacheable, valid, 44 bits out, AArch64; faults stall and are told. */
#define CD_VALID (0x3510UL | 1UL << 30 | 1UL << 31 | 4UL << 32 | 1UL << 41 | 0xfUL << 44)
#define CD_WRITE_BACK 0xffUL
/* Where the host's interrupt messages are for functions. */
#define MESSAGES 0x8000000UL
#define MESSAGE_BYTES 0x100000UL
#define DESCRIPTORS 64 /* in a table of the second level */
/* Tables of stage 1: a table; a page for data, of this ASID only, accessed. */
#define TABLE_BITS 3UL
#define PAGE_BITS (0xf43UL | 3UL << 53)
/* Commands (4): opcodes, and what they are about. */
enum { CFGI_CD = 0x05, TLBI_NH_ASID = 0x11, TLBI_NH_VA = 0x12, TLBI_NSNH_ALL = 0x30, ATC_INV = 0x40 };
#define OF_STREAM ((uint64_t)GUEST_SID << 32)
#define OF_PASID(pasid) (1UL << 11 | (uint64_t)(pasid) << 12)
#define EVERY_PASID (1UL << 11 | 1UL << 9)
#define OF_ASID(asid) ((uint64_t)(asid) << 48)
#define EVERYTHING 52 /* lg2 of pages */
/* An event (7.3.5): the stream table entry is not valid. */
#define C_BAD_STE 4

static uint32_t viommu, stream;
static uint64_t contexts;
static int events;

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
    const struct hw_info_smmuv3 *smmu = registers;
    return info->out_data_type == HW_INFO_TYPE_ARM_SMMUV3 && (smmu->idr[0] & 3) == 3;
}

/* The host does what the guest's stream table entry says; what the device had goes. */
static void follow(uint64_t low, uint64_t high)
{
    struct hwpt_smmuv3 entry = {{low, high}};
    uint32_t before = stream;
    stream = allocate_hwpt(0, viommu, HWPT_DATA_ARM_SMMUV3, &entry, sizeof(entry));
    attach(stream, 0);
    if (before)
        destroy(before);
}

static void command(uint64_t low, uint64_t high)
{
    struct smmuv3_invalidate one = {{low, high}};
    invalidate(viommu, INVALIDATE_DATA_ARM_SMMUV3, &one, 1, sizeof(one));
}

/* The host's virtual IOMMU, where the device has the guest's StreamID. */
static void take(void)
{
    uint32_t parent = allocate_hwpt(ALLOC_NEST_PARENT, ioas, 0, NULL, 0);
    struct viommu_alloc alloc = {
        .size = sizeof(alloc), .type = VIOMMU_TYPE_ARM_SMMUV3, .dev_id = device_id, .hwpt_id = parent};
    if (ioctl(iommufd, IOMMU_VIOMMU_ALLOC, &alloc) < 0)
        fail("IOMMU_VIOMMU_ALLOC");
    viommu = alloc.out_viommu_id;
    struct vdevice_alloc known = {
        .size = sizeof(known), .viommu_id = viommu, .dev_id = device_id, .virt_id = GUEST_SID};
    if (ioctl(iommufd, IOMMU_VDEVICE_ALLOC, &known) < 0)
        fail("IOMMU_VDEVICE_ALLOC");
    follow(STE_BYPASS, 0);
    struct veventq_alloc queue = {
        .size = sizeof(queue), .viommu_id = viommu, .type = VEVENTQ_TYPE_ARM_SMMUV3, .veventq_depth = 256};
    if (ioctl(iommufd, IOMMU_VEVENTQ_ALLOC, &queue) < 0)
        fail("IOMMU_VEVENTQ_ALLOC");
    events = (int)queue.out_veventq_fd;
}

/* The guest's driver makes its unit abort, forget everything and translate; then it makes an entry. */
static void boot(void)
{
    follow(STE_ABORT, 0);
    command(TLBI_NSNH_ALL, 0);
    follow(STE_NONE, 0);
    follow(STE_ABORT, 0);
}

static uint64_t *descriptor(uint32_t pasid)
{
    uint64_t *first = (uint64_t *)(guest + contexts) + pasid / DESCRIPTORS;
    if (!*first)
        *first = allocate_page() | 1;
    return (uint64_t *)(guest + (*first & ~(PAGE - 1))) + 8 * (pasid % DESCRIPTORS);
}

static void changed(uint32_t pasid)
{
    command(CFGI_CD | OF_STREAM | (uint64_t)pasid << 12, 0);
}

/* What the host's unit needs to know of a process is in its context descriptor. */
static void give(struct space *space)
{
    if (!contexts) {
        next_page = (next_page + 2 * PAGE - 1) & -(2 * PAGE); /* the first level has two pages, together */
        contexts = allocate_page();
        allocate_page();
    }
    uint64_t *words = descriptor(space->pasid);
    words[1] = space->root;
    words[3] = CD_WRITE_BACK;
    words[0] = CD_VALID | OF_ASID(space->asid);
    changed(space->pasid);
    space->hwpt = 1;
    if (space->pasid)
        return;
    /* Interrupt messages go through the tables too, at their own addresses. */
    for (uint64_t at = MESSAGES; at < MESSAGES + MESSAGE_BYTES; at += PAGE)
        *page_slot(space, at) = page_entry(at);
    space->messages = 1;
    follow(STE_STAGE1(contexts), STE_ATTRIBUTES | STE_ATS);
    struct smmuv3_invalidate both[] = {
        {{ATC_INV | OF_STREAM, EVERYTHING}},
        {{ATC_INV | OF_STREAM | EVERY_PASID, EVERYTHING}},
    };
    invalidate(viommu, INVALIDATE_DATA_ARM_SMMUV3, both, 2, sizeof(both[0]));
}

static void take_away(struct space *space)
{
    descriptor(space->pasid)[0] = 0;
    changed(space->pasid);
    command(ATC_INV | OF_STREAM | OF_PASID(space->pasid), EVERYTHING);
    space->hwpt = 0;
}

/* Nothing is remembered of what was not there. */
static void mapped(struct space *space, uint64_t address)
{
    (void)space;
    (void)address;
}

/* Of the unit's own TLB: 2^SCALE pages of 4 KiB (TG), or the one. */
static void forget_pages(const struct space *space, uint64_t address, uint64_t lg2)
{
    uint64_t granule = lg2 ? 1UL << 10 : 0;
    command(TLBI_NH_VA | OF_ASID(space->asid) | lg2 << 20, address | granule);
}

static void unmapped(struct space *space, uint64_t address, uint64_t pages)
{
    uint64_t lg2 = (uint64_t)__builtin_ctzl(pages);
    forget_pages(space, address, lg2);
    command(ATC_INV | OF_STREAM | (space->pasid ? OF_PASID(space->pasid) : 0), address | lg2);
}

static void ended(struct space *space, int has_page)
{
    if (has_page)
        forget_pages(space, VA, 0);
    command(TLBI_NH_ASID | OF_ASID(space->asid), 0);
}

/* Its process's descriptor, its own, and then its entry. */
static void release(void)
{
    take_away(&beta);
    follow(STE_ABORT, 0);
    descriptor(0)[0] = 0;
    changed(0);
    follow(STE_NONE, 0);
}

/* An access under an entry that is not valid is the guest's to know of. */
static void take_event(void)
{
    struct {
        struct vevent_header header;
        struct vevent_smmuv3 event;
    } got = {0};
    struct pollfd ready = {.fd = events, .events = POLLIN};
    check(poll(&ready, 1, PATIENCE) == 1, "an event has come");
    check(read(events, &got, sizeof(got)) == sizeof(got), "it is read whole");
    check(!(got.header.flags & VEVENT_LOST) && (got.event.evt[0] & 0xff) == C_BAD_STE, "it is C_BAD_STE");
    check(got.event.evt[0] >> 32 == GUEST_SID, "of the guest's StreamID");
}
