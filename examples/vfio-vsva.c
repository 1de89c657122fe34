/*
 * What a VMM does for a guest whose processes share their addresses with a device, by the interface for
 * virtual SVA that was proposed in 2020 and by nothing else: a nesting container, PASIDs of the host, tables
 * bound to them, invalidations, page requests. The guest is played here too: it has three processes. Pages of
 * one come when the device asks for them, one is killed in the middle of a transfer, and the PASID that it had
 * belongs to another program then, which this one tries to use. Every byte is checked; each transfer is a line
 * of output.
 *
 *     cc -o vfio-vsva examples/vfio-vsva.c
 *     softiommu run --machine vtd-vsva -- ./vfio-vsva 0000:05:00.0 0000:06:00.0
 *
 * The device is softiommu's DMA test function. Its registers are in src/pci/devices/test-function.ts.
 */
#include "vsva-uapi.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define PATIENCE 30000 /* polls of a millisecond */
#define GUEST_BYTES (4UL << 20) /* within the 8 MiB that ordinary users may lock */
/* The address that every process of the guest uses, and how many pages it has from there on. */
#define VA 0x555500000000UL
#define PROCESS_PAGES 16
#define ENTRY 7UL /* of x86-64 tables: present, writable, for users */

enum { COMMAND = 0x04, SOURCE = 0x08, DESTINATION = 0x10, LENGTH = 0x18, TAG = 0x1c, STATUS = 0x20 };
enum { MOVED = 0x24, BUFFER = 0x10000, READ = 1, WRITE = 2, BUSY = 1, DONE = 2, FAULT = 3 };
#define TAG_VALID 0x80000000U

/* A process of the guest. */
struct process {
    const char *name;
    uint64_t root; /* of its page table, in guest memory */
    uint32_t pasid;
    int reserved;  /* pages from VA on may be asked for */
};

static int container, group, device, fault_event;
static uint64_t bar, fault_region;
static uint8_t *guest;
static uint64_t next_page = 2UL << 20;
static struct process alpha = {.name = "alpha"}, beta = {.name = "beta"}, gamma_ = {.name = "gamma"};
static int answered, refused;

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static void check(int holds, const char *what)
{
    printf("%s %s\n", holds ? "ok  " : "FAIL", what);
    if (!holds)
        exit(1);
}

/* ---- 1. Select nesting, read the capability ------------------------------------------------------ */

static int open_group(const char *bdf)
{
    char path[128], target[256];
    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", bdf);
    ssize_t length = readlink(path, target, sizeof(target) - 1);
    if (length < 0)
        fail(path);
    target[length] = 0;
    snprintf(path, sizeof(path), "/dev/vfio/%d", atoi(strrchr(target, '/') + 1));
    int fd = open(path, O_RDWR);
    if (fd < 0)
        fail(path);
    return fd;
}

/* A container with the group of the function; the host's page table there is the second stage. */
static void select_nesting(const char *bdf)
{
    container = open("/dev/vfio/vfio", O_RDWR);
    if (container < 0 || ioctl(container, VFIO_CHECK_EXTENSION, TYPE1_NESTING_IOMMU) != 1)
        fail("a nesting container");
    group = open_group(bdf);
    if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container))
        fail("VFIO_GROUP_SET_CONTAINER");
    if (ioctl(container, VFIO_SET_IOMMU, TYPE1_NESTING_IOMMU))
        fail("VFIO_SET_IOMMU");
}

static void read_capability(void)
{
    uint64_t answer[128] = {0};
    struct vfio_iommu_type1_info *info = (void *)answer;
    info->argsz = sizeof(answer);
    if (ioctl(container, VFIO_IOMMU_GET_INFO, info))
        fail("VFIO_IOMMU_GET_INFO");
    for (uint32_t at = info->cap_offset; at;) {
        struct nesting_capability *found = (void *)((uint8_t *)answer + at);
        if (found->id == INFO_CAP_NESTING) {
            uint32_t wanted = FEAT_SYSWIDE_PASID | FEAT_BIND_PGTBL | FEAT_CACHE_INVLD | FEAT_PAGE_RESP;
            check(found->format == FORMAT_INTEL_VTD && found->addr_width >= 48, "guests' tables are VT-d's");
            check(found->pasid_bits > 0, "there are PASIDs");
            check((found->features & wanted) == wanted, "and page requests");
            return;
        }
        at = found->next;
    }
    check(0, "the container has the nesting capability");
}

static void map_guest(void)
{
    guest = mmap(NULL, GUEST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct vfio_iommu_type1_dma_map map = {
        .argsz = sizeof(map),
        .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        .vaddr = (uintptr_t)guest,
        .size = GUEST_BYTES,
    };
    if (guest == MAP_FAILED || ioctl(container, VFIO_IOMMU_MAP_DMA, &map))
        fail("VFIO_IOMMU_MAP_DMA");
}

/* ---- 2. PASIDs ----------------------------------------------------------------------------------- */

static uint32_t allocate_pasid(int fd)
{
    struct pasid_request ask = {sizeof(ask), PASID_ALLOC, 1, (1 << 20) - 1};
    int pasid = ioctl(fd, VFIO_IOMMU_PASID_REQUEST, &ask);
    if (pasid < 0)
        fail("VFIO_IOMMU_PASID_REQUEST");
    return (uint32_t)pasid;
}

static void free_pasid(uint32_t pasid)
{
    struct pasid_request ask = {sizeof(ask), PASID_FREE, pasid, pasid};
    if (ioctl(container, VFIO_IOMMU_PASID_REQUEST, &ask))
        fail("VFIO_IOMMU_PASID_REQUEST");
}

/* ---- 3. Bind and unbind, 4. invalidate ----------------------------------------------------------- */

static int nesting_op(uint32_t op, const void *data, uint32_t size)
{
    struct {
        uint32_t argsz, flags;
        uint8_t data[80];
    } ask = {8 + size, op, {0}};
    memcpy(ask.data, data, size);
    return ioctl(container, VFIO_IOMMU_NESTING_OP, &ask);
}

static struct bind_data bind_data(uint32_t pasid)
{
    struct bind_data data = {.argsz = sizeof(data), .version = 1, .format = FORMAT_INTEL_VTD};
    data.hpasid = pasid;
    return data;
}

static int bind_table(uint64_t root, uint32_t pasid)
{
    struct bind_data data = bind_data(pasid);
    data.addr_width = 48;
    data.gpgd = root;
    return nesting_op(OP_BIND_PGTBL, &data, sizeof(data));
}

static void unbind_table(uint32_t pasid)
{
    struct bind_data data = bind_data(pasid);
    if (nesting_op(OP_UNBIND_PGTBL, &data, sizeof(data)))
        fail("UNBIND_PGTBL");
}

static void invalidate(uint32_t pasid, uint64_t address, uint64_t pages)
{
    struct invalidate_info info = {
        .argsz = sizeof(info),
        .version = 1,
        .cache = CACHE_IOTLB | CACHE_DEV_IOTLB,
        .granularity = BY_ADDRESS,
        .flags = INV_PASID,
        .pasid = pasid,
        .addr = address,
        .granule_size = PAGE,
        .nb_granules = pages,
    };
    if (nesting_op(OP_CACHE_INVLD, &info, sizeof(info)))
        fail("CACHE_INVLD");
}

/* ---- The guest's page tables --------------------------------------------------------------------- */

static uint64_t allocate_page(void)
{
    next_page += PAGE;
    return next_page - PAGE;
}

static uint64_t *entry(uint64_t table, int level, uint64_t address)
{
    return (uint64_t *)(guest + table) + (address >> (12 + 9 * (level - 1)) & 511);
}

/* A process touches a page of its memory, which is brought in if need be. */
static uint8_t *touch(struct process *process, uint64_t address)
{
    uint64_t table = process->root;
    for (int level = 4; level > 1; level--) {
        uint64_t *slot = entry(table, level, address);
        if (!*slot)
            *slot = allocate_page() | ENTRY;
        table = *slot & ~(PAGE - 1);
    }
    uint64_t *slot = entry(table, 1, address);
    if (!*slot) {
        *slot = allocate_page() | ENTRY;
        /* The unit may remember that nothing was there. */
        invalidate(process->pasid, address & ~(PAGE - 1), 1);
    }
    return guest + (*slot & ~(PAGE - 1)) + address % PAGE;
}

static void start(struct process *process)
{
    char text[32];
    process->root = allocate_page();
    process->pasid = allocate_pasid(container);
    if (bind_table(process->root, process->pasid))
        fail("BIND_PGTBL");
    process->reserved = 1;
    snprintf(text, sizeof(text), "memory of %s", process->name);
    memcpy(touch(process, VA), text, strlen(text));
}

/* ---- 5. Page requests ---------------------------------------------------------------------------- */

static uint64_t region(uint32_t index)
{
    struct vfio_region_info info = {.argsz = sizeof(info), .index = index};
    if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info))
        fail("VFIO_DEVICE_GET_REGION_INFO");
    return info.offset;
}

static void find_faults(void)
{
    struct vfio_device_info all = {.argsz = sizeof(all)};
    if (ioctl(device, VFIO_DEVICE_GET_INFO, &all))
        fail("VFIO_DEVICE_GET_INFO");
    for (uint32_t index = VFIO_PCI_NUM_REGIONS; index < all.num_regions; index++) {
        uint64_t answer[32] = {0};
        struct vfio_region_info *info = (void *)answer;
        *info = (struct vfio_region_info){.argsz = sizeof(answer), .index = index};
        if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, info))
            fail("VFIO_DEVICE_GET_REGION_INFO");
        struct type_capability *type = (void *)((uint8_t *)answer + info->cap_offset);
        if (info->cap_offset && type->id == VFIO_REGION_INFO_CAP_TYPE && type->type == REGION_TYPE_FAULT)
            fault_region = info->offset;
    }
    for (uint32_t index = VFIO_PCI_NUM_IRQS; index < all.num_irqs; index++) {
        uint64_t answer[32] = {0};
        struct irq_info *info = (void *)answer;
        *info = (struct irq_info){.argsz = sizeof(answer), .index = index};
        if (ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, info))
            fail("VFIO_DEVICE_GET_IRQ_INFO");
        struct type_capability *type = (void *)((uint8_t *)answer + info->cap_offset);
        if (!info->cap_offset || type->id != IRQ_INFO_CAP_TYPE || type->type != IRQ_TYPE_FAULT)
            continue;
        fault_event = eventfd(0, EFD_CLOEXEC);
        struct {
            struct vfio_irq_set set;
            int32_t eventfd;
        } irqs = {{.argsz = sizeof(irqs), .index = index}, 0};
        irqs.set.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        irqs.set.count = 1;
        irqs.eventfd = fault_event;
        if (fault_event < 0 || ioctl(device, VFIO_DEVICE_SET_IRQS, &irqs))
            fail("VFIO_DEVICE_SET_IRQS");
    }
    check(fault_region && fault_event > 0, "the device has a region for faults, and an interrupt");
}

/* The guest's page fault handler: whether there is such a page now. */
static int bring_in(uint32_t pasid, uint64_t address)
{
    struct process *all[] = {&alpha, &beta, &gamma_};
    if (address < VA || address >= VA + PROCESS_PAGES * PAGE)
        return 0;
    for (int i = 0; i < 3; i++)
        if (all[i]->pasid == pasid && all[i]->reserved) {
            touch(all[i], address);
            return 1;
        }
    return 0;
}

static void respond(uint32_t pasid, uint32_t group_number, int present)
{
    struct page_response response = {sizeof(response), 1, RESPONSE_PASID, pasid, group_number, 0};
    response.code = present ? RESPONSE_SUCCESS : RESPONSE_INVALID;
    /* ENOENT: the host answered it itself, as its table went. */
    if (nesting_op(OP_PAGE_RESPONSE, &response, sizeof(response)) && errno != ENOENT)
        fail("PAGE_RESPONSE");
    *(present ? &answered : &refused) += 1;
}

/* Takes what is in the ring; a group is answered with its last page. */
static void answer_faults(void)
{
    struct fault_head head;
    int present = 1;
    if (pread(device, &head, sizeof(head), (off_t)fault_region) != sizeof(head))
        fail("fault region");
    for (; head.consumer != head.producer; head.consumer++) {
        struct iommu_fault fault;
        off_t at = (off_t)(fault_region + sizeof(head) + head.consumer % head.entries * sizeof(fault));
        if (pread(device, &fault, sizeof(fault), at) != sizeof(fault))
            fail("fault region");
        if (fault.type != FAULT_PAGE_REQUEST)
            continue;
        present &= bring_in(fault.pasid, fault.addr);
        if (!(fault.flags & REQUEST_LAST_PAGE))
            continue;
        respond(fault.pasid, fault.grpid, present);
        present = 1;
    }
    off_t consumer = (off_t)(fault_region + offsetof(struct fault_head, consumer));
    if (pwrite(device, &head.consumer, 4, consumer) != 4)
        fail("fault region");
}

/* ---- The device at work -------------------------------------------------------------------------- */

static void open_device(const char *bdf)
{
    device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, bdf);
    if (device < 0)
        fail("VFIO_GROUP_GET_DEVICE_FD");
    bar = region(VFIO_PCI_BAR0_REGION_INDEX);
    uint16_t command = 6; /* memory space, bus master */
    if (pwrite(device, &command, 2, (off_t)region(VFIO_PCI_CONFIG_REGION_INDEX) + 4) != 2)
        fail("command register");
}

static void set(uint32_t offset, uint32_t value)
{
    if (pwrite(device, &value, 4, (off_t)(bar + offset)) != 4)
        fail("device register");
}

static uint32_t get(uint32_t offset)
{
    uint32_t value = 0;
    if (pread(device, &value, 4, (off_t)(bar + offset)) != 4)
        fail("device register");
    return value;
}

static void begin(uint32_t command, uint64_t address, uint32_t length, uint32_t pasid)
{
    uint32_t outside = command == READ ? SOURCE : DESTINATION;
    uint32_t inside = command == READ ? DESTINATION : SOURCE;
    set(inside, 0);
    set(inside + 4, 0);
    set(outside, (uint32_t)address);
    set(outside + 4, (uint32_t)(address >> 32));
    set(LENGTH, length);
    set(TAG, pasid ? pasid | TAG_VALID : 0);
    set(COMMAND, command);
}

/* How the transfer ends; page requests are answered meanwhile. */
static uint32_t finish(void)
{
    for (int patience = 0; patience < PATIENCE; patience++) {
        uint32_t status = get(STATUS);
        if (status != BUSY)
            return status;
        struct pollfd event = {fault_event, POLLIN, 0};
        uint64_t count;
        if (poll(&event, 1, 1) == 1 && read(fault_event, &count, sizeof(count)) == sizeof(count))
            answer_faults();
    }
    errno = ETIMEDOUT;
    fail("the device");
    return 0;
}

static void tell(uint32_t command, uint64_t address, uint32_t pasid, const char *text, uint32_t length)
{
    printf("dma %s 0x%llx pasid %u ", command == READ ? "read" : "write", (unsigned long long)address, pasid);
    printf("%s ", get(STATUS) == DONE ? "done" : "fault");
    for (uint32_t i = 0; i < length; i++)
        printf("%02x", (uint8_t)text[i]);
    puts("");
}

/* Whether the device reads this there; NULL: that it may not. */
static int reads(uint64_t address, const char *text, uint32_t pasid)
{
    char got[64] = "";
    uint32_t length = text ? (uint32_t)strlen(text) : 4;
    begin(READ, address, length, pasid);
    int done = finish() == DONE;
    if (done && pread(device, got, length, (off_t)(bar + BUFFER)) != (ssize_t)length)
        fail("device buffer");
    tell(READ, address, pasid, got, done ? length : 0);
    return text ? done && memcmp(got, text, length) == 0 : !done;
}

static int writes(uint64_t address, const char *text, uint32_t pasid)
{
    uint32_t length = (uint32_t)strlen(text);
    if (pwrite(device, text, length, (off_t)(bar + BUFFER)) != (ssize_t)length)
        fail("device buffer");
    begin(WRITE, address, length, pasid);
    int done = finish() == DONE;
    tell(WRITE, address, pasid, text, length);
    return done;
}

/* ---- The story ----------------------------------------------------------------------------------- */

static void share(void)
{
    struct process *all[] = {&alpha, &beta, &gamma_};
    char text[64];
    for (int i = 0; i < 3; i++)
        start(all[i]);
    for (int i = 0; i < 3; i++) {
        snprintf(text, sizeof(text), "memory of %s", all[i]->name);
        check(reads(VA, text, all[i]->pasid), "with its PASID the device reads the memory of a process");
        snprintf(text, sizeof(text), "written for %s", all[i]->name);
        check(writes(VA + 256, text, all[i]->pasid), "and writes it");
        check(memcmp(touch(all[i], VA + 256), text, strlen(text)) == 0, "the process finds what was written");
    }
}

static void fault_in(void)
{
    const char *text = "across two new pages";
    uint64_t address = VA + 4 * PAGE - 6;
    check(writes(address, text, beta.pasid), "two pages of beta come when the device asks for them");
    check(answered == 1 && refused == 0, "it asked once for both");
    check(memcmp(touch(&beta, address), text, 6) == 0, "what it wrote is in the first");
    check(memcmp(touch(&beta, VA + 4 * PAGE), text + 6, strlen(text) - 6) == 0, "and in the second");
    check(reads(VA + 1024 * PAGE, NULL, beta.pasid), "an address that beta has not is out of reach");
    check(refused == 1, "and refused by the guest");
}

/* alpha gives its memory back; whoever gets the page next is safe. */
static void give_back(void)
{
    uint8_t *page = touch(&alpha, VA);
    *entry(alpha.root, 4, VA) = 0;
    alpha.reserved = 0;
    invalidate(alpha.pasid, VA, PROCESS_PAGES);
    memcpy(page, "somebody else's", 15);
    check(!writes(VA, "a stray write", alpha.pasid), "memory that alpha gave back is out of reach");
    check(memcmp(page, "somebody else's", 15) == 0, "and stays as it is");
    alpha.reserved = 1;
    memcpy(touch(&alpha, VA), "alpha once more", 15);
}

static void kill_in_the_middle(void)
{
    begin(READ, VA, 2 * PAGE, alpha.pasid);
    for (int patience = 0; get(MOVED) != PAGE && patience < PATIENCE; patience++)
        poll(NULL, 0, 1);
    check(get(STATUS) == BUSY && get(MOVED) == PAGE, "the device has read a page and waits for another");
    alpha.reserved = 0;
    unbind_table(alpha.pasid);
    answer_faults(); /* too late: the host has denied it */
    free_pasid(alpha.pasid);
    check(finish() == FAULT, "alpha is gone, and the transfer ends with a fault");
    check(reads(VA, NULL, alpha.pasid), "its PASID reaches nothing");
    check(reads(VA, "memory of beta", beta.pasid), "beta goes on");
}

/* Another program, with a container of its own, has the PASID by then. */
static void try_anothers(const char *bdf)
{
    int ready[2], done[2];
    uint32_t pasid = 0;
    if (pipe(ready) || pipe(done))
        fail("pipe");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        select_nesting(bdf);
        pasid = allocate_pasid(container);
        char end;
        close(done[1]);
        _exit(write(ready[1], &pasid, 4) != 4 || read(done[0], &end, 1) != 0);
    }
    if (child < 0 || read(ready[0], &pasid, 4) != 4)
        fail("the other program");
    check(bind_table(gamma_.root, pasid) < 0 && errno == EACCES, "another program's PASID cannot be bound");
    check(reads(VA, NULL, pasid), "and reaches nothing");
    int status = 1;
    close(done[1]);
    check(waitpid(child, &status, 0) == child && status == 0, "the other program had what it asked for");
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: %s DEVICE DEVICE-OF-ANOTHER-PROGRAM\n", argv[0]);
        return 2;
    }
    select_nesting(argv[1]);
    read_capability();
    open_device(argv[1]);
    find_faults();
    map_guest();
    memcpy(guest + 0x100000, "bytes of a guest", 16);
    check(reads(0x100000, "bytes of a guest", 0), "without a PASID guest addresses are the device's");
    check(reads(0x100000, "bytes of a guest", 0), "whatever the guest's IOMMU driver has started");
    check(reads(VA, NULL, 0xfffff), "with one it reaches nothing");
    share();
    fault_in();
    give_back();
    kill_in_the_middle();
    try_anothers(argv[2]);
    puts("virtual SVA works: every byte was right");
    return 0;
}
