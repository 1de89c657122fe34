/*
 * What the examples of nesting share: a VMM and its guest in one program, which does on the host what
 * `softiommu demo nested` does there. This file has guest memory, page tables of four levels in it, the
 * device, the guest's answers to page faults, and the story. What depends on the IOMMU is in the file that
 * includes this one: vfio-nested.c (Intel VT-d), vfio-nested-arm.c (Arm SMMUv3) and vfio-nested-amd.c
 * (AMD-Vi). Every byte is checked, and each transfer is a line of output.
 *
 * The device is softiommu's DMA test function. Its registers are in src/pci/devices/test-function.ts.
 */
#ifndef NESTED_H
#define NESTED_H
#include "nested-uapi.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL
#define PATIENCE 30000 /* polls of a millisecond */

/* Guest memory, and the page of it that nobody uses yet, as the guest counts. */
#define GUEST_BYTES (4UL << 20) /* within the 8 MiB that ordinary users may lock */
#define FREE_PAGES (2UL << 20)
/* Where the guest's kernel has its buffer for the device, and where its processes have their memory. */
#define IOVA 0x100000000UL
#define VA 0x555500000000UL
#define PROCESS_PAGES 16
/* The device as the guest finds it: 00:01.0. */
#define GUEST_SID 8

/* The test function's BAR 0. */
enum { COMMAND = 0x04, SOURCE = 0x08, DESTINATION = 0x10, LENGTH = 0x18, TAG = 0x1c, STATUS = 0x20 };
enum { BUFFER = 0x10000 };
enum { READ = 1, WRITE = 2 };
enum { DONE = 2, FAULT = 3, REFUSED = 4 };
#define TAG_VALID 0x80000000U
#define VECTORS 4 /* of its MSI-X; it signals number 0 */

/* The addresses of one process of the guest, or (PASID 0: requests have none) of its kernel. */
struct space {
    const char *name;
    uint64_t root;       /* of its page table, in guest memory */
    uint32_t pasid, asid;
    uint32_t hwpt;       /* on the host; 0: none */
    int reserved;        /* pages from VA on may be asked for */
    int messages;        /* interrupt messages pass through it: their pages stay */
};

static int iommufd, device, faults;
static int interrupts[VECTORS]; /* eventfds */
static unsigned told;           /* transfers whose end an interrupt told */
static uint32_t device_id, ioas, fault_queue;
static int answered, refused; /* groups of page faults */
static uint8_t *guest;
static uint64_t bar, next_page = FREE_PAGES;
static struct space kernel = {.name = "the kernel", .asid = 1};
static struct space alpha = {.name = "alpha", .pasid = 1, .asid = 2};
static struct space beta = {.name = "beta", .pasid = 2, .asid = 3};
static struct space gamma_ = {.name = "gamma", .pasid = 1, .asid = 4};

/* What the IOMMU's file says. Entries of its first stage: */
static uint64_t table_entry(uint64_t table);
static uint64_t page_entry(uint64_t page);
/* The IOMMU can nest. */
static int nests(const struct hw_info *info, const void *registers);
/* The device is given guest memory; the guest's IOMMU driver starts; and it gives the device up. */
static void take(void);
static void boot(void);
static void release(void);
/* The device gets a page table of the guest, and loses it. */
static void give(struct space *space);
static void take_away(struct space *space);
/* Pages have appeared in a page table, and have gone; nobody uses it any more, nor the page it still has. */
static void mapped(struct space *space, uint64_t address);
static void unmapped(struct space *space, uint64_t address, uint64_t pages);
static void ended(struct space *space, int has_page);

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

/* ---- The device and the host's page tables ------------------------------------------------------------- */

static int open_cdev(const char *bdf)
{
    char path[300], name[64] = "";
    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", bdf);
    DIR *folder = opendir(path);
    if (!folder)
        fail(path);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;)
        if (strncmp(entry->d_name, "vfio", 4) == 0)
            snprintf(name, sizeof(name), "%.60s", entry->d_name);
    closedir(folder);
    snprintf(path, sizeof(path), "/dev/vfio/devices/%s", name);
    int fd = open(path, O_RDWR);
    if (fd < 0)
        fail(path);
    return fd;
}

static uint64_t region(uint32_t index)
{
    struct vfio_region_info info = {.argsz = sizeof(info), .index = index};
    if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) < 0)
        fail("VFIO_DEVICE_GET_REGION_INFO");
    return info.offset;
}

static void bind_device(void)
{
    struct cdev_bind bind = {.argsz = sizeof(bind), .iommufd = iommufd};
    if (ioctl(device, CDEV_BIND_IOMMUFD, &bind) < 0)
        fail("VFIO_DEVICE_BIND_IOMMUFD");
    device_id = bind.out_devid;
    uint64_t registers[5] = {0};
    struct hw_info info = {.size = sizeof(info), .dev_id = device_id, .data_len = sizeof(registers)};
    info.data_uptr = (uintptr_t)registers;
    if (ioctl(iommufd, IOMMU_GET_HW_INFO, &info) < 0)
        fail("IOMMU_GET_HW_INFO");
    check(nests(&info, registers), "the IOMMU nests");
    check(info.out_max_pasid_log2 > 3, "the device has PASIDs");
    uint16_t command = 6; /* memory space, bus master */
    if (pwrite(device, &command, 2, (off_t)region(VFIO_PCI_CONFIG_REGION_INDEX) + 4) != 2)
        fail("command register");
    bar = region(VFIO_PCI_BAR0_REGION_INDEX);
}

/* All of guest memory, in an address space of the host. */
static void map_guest(void)
{
    guest = mmap(NULL, GUEST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (guest == MAP_FAILED)
        fail("mmap");
    struct fault_alloc queue = {.size = sizeof(queue)};
    if (ioctl(iommufd, IOMMU_FAULT_QUEUE_ALLOC, &queue) < 0)
        fail("IOMMU_FAULT_QUEUE_ALLOC");
    fault_queue = queue.out_fault_id;
    faults = (int)queue.out_fault_fd;
    struct ioas_alloc space = {.size = sizeof(space)};
    if (ioctl(iommufd, IOMMU_IOAS_ALLOC, &space) < 0)
        fail("IOMMU_IOAS_ALLOC");
    ioas = space.out_ioas_id;
    struct ioas_map map = {
        .size = sizeof(map),
        .flags = MAP_FIXED_IOVA | MAP_READABLE | MAP_WRITEABLE,
        .ioas_id = ioas,
        .user_va = (uintptr_t)guest,
        .length = GUEST_BYTES,
    };
    if (ioctl(iommufd, IOMMU_IOAS_MAP, &map) < 0)
        fail("IOMMU_IOAS_MAP");
}

/* A page table on the host: its own (`data` is NULL), or one for what the guest has above another object. */
static uint32_t allocate_hwpt(
    uint32_t flags, uint32_t above, uint32_t type, const void *data, uint32_t length)
{
    struct hwpt_alloc alloc = {.size = sizeof(alloc), .flags = flags, .dev_id = device_id, .pt_id = above};
    if (data) {
        alloc.flags |= ALLOC_FAULT_ID_VALID;
        alloc.data_type = type;
        alloc.data_len = length;
        alloc.data_uptr = (uintptr_t)data;
        alloc.fault_id = fault_queue;
    }
    if (ioctl(iommufd, IOMMU_HWPT_ALLOC, &alloc) < 0)
        fail("IOMMU_HWPT_ALLOC");
    return alloc.out_hwpt_id;
}

static void destroy(uint32_t id)
{
    struct destroy what = {sizeof(what), id};
    if (ioctl(iommufd, IOMMU_DESTROY, &what) < 0)
        fail("IOMMU_DESTROY");
}

static void attach(uint32_t table, uint32_t pasid)
{
    struct cdev_attach attach = {sizeof(attach), pasid ? WITH_PASID : 0, table, pasid};
    if (ioctl(device, CDEV_ATTACH_IOMMUFD_PT, &attach) < 0)
        fail("VFIO_DEVICE_ATTACH_IOMMUFD_PT");
}

/* A list of what the guest wants forgotten. */
static void invalidate(uint32_t object, uint32_t type, const void *list, uint32_t count, uint32_t length)
{
    struct hwpt_invalidate what = {
        .size = sizeof(what),
        .hwpt_id = object,
        .data_uptr = (uintptr_t)list,
        .data_type = type,
        .entry_len = length,
        .entry_num = count,
    };
    if (ioctl(iommufd, IOMMU_HWPT_INVALIDATE, &what) < 0 || what.entry_num != count)
        fail("IOMMU_HWPT_INVALIDATE");
}

/* ---- The guest's page tables --------------------------------------------------------------------------- */

static uint64_t allocate_page(void)
{
    next_page += PAGE;
    return next_page - PAGE;
}

/* The entry for an address, at level 1 (of a page) to 4 (of the root). */
static uint64_t *entry(uint64_t table, int level, uint64_t address)
{
    return (uint64_t *)(guest + table) + (address >> (12 + 9 * (level - 1)) & 511);
}

static uint64_t *page_slot(struct space *space, uint64_t address)
{
    uint64_t table = space->root;
    for (int level = 4; level > 1; level--) {
        uint64_t *slot = entry(table, level, address);
        if (!*slot)
            *slot = table_entry(allocate_page());
        table = *slot & 0xfffffffff000UL;
    }
    return entry(table, 1, address);
}

static void map_page(struct space *space, uint64_t address, uint64_t page)
{
    *page_slot(space, address) = page_entry(page);
    mapped(space, address);
}

/* With the last page of a page table its tables go too. */
static void unmap(struct space *space, uint64_t address, uint64_t pages)
{
    uint64_t *slot = entry(space->root, 4, address);
    if (space->messages)
        slot = entry(*slot & 0xfffffffff000UL, 3, address);
    *slot = 0;
    unmapped(space, address, pages);
}

/* A process touches a page of its memory; what it writes there. */
static uint8_t *touch(struct space *space, uint64_t address, const char *text)
{
    uint64_t *slot = page_slot(space, address);
    if (!*slot)
        map_page(space, address, allocate_page());
    uint8_t *bytes = guest + (*slot & 0xfffffffff000UL) + address % PAGE;
    return text ? memcpy(bytes, text, strlen(text)) : bytes;
}

/* ---- Page faults --------------------------------------------------------------------------------------- */

/* Whether there is such a page, brought in if need be: the guest's page fault handler. */
static int bring_in(const struct pgfault *fault)
{
    struct space *space = fault->flags & FAULT_PASID_VALID && fault->pasid == beta.pasid ? &beta : &alpha;
    if (fault->dev_id != device_id)
        fail("a fault of another device");
    if (!(fault->flags & FAULT_PASID_VALID) || fault->pasid != space->pasid || !space->reserved)
        return 0;
    if (fault->addr < VA || fault->addr >= VA + PROCESS_PAGES * PAGE)
        return 0;
    touch(space, fault->addr & ~(PAGE - 1), NULL);
    return 1;
}

/* Answers what waits in the fault queue, each group with its last page. */
static void answer_faults(void)
{
    struct pgfault list[16];
    ssize_t got = read(faults, list, sizeof(list));
    int present = 1;
    for (ssize_t i = 0; i < got / (ssize_t)sizeof(list[0]); i++) {
        present &= bring_in(&list[i]);
        if (!(list[i].flags & FAULT_LAST_PAGE))
            continue;
        struct page_response response = {list[i].cookie, present ? RESPONSE_SUCCESS : RESPONSE_INVALID};
        if (write(faults, &response, sizeof(response)) != sizeof(response))
            fail("page response");
        *(present ? &answered : &refused) += 1;
        present = 1;
    }
}

/* ---- The device at work -------------------------------------------------------------------------------- */

static void set(uint32_t offset, uint32_t value)
{
    if (pwrite(device, &value, 4, (off_t)(bar + offset)) != 4)
        fail("device register");
}

/* The device's interrupts go to eventfds. */
static void listen_to_device(void)
{
    struct {
        struct vfio_irq_set set;
        int32_t eventfds[VECTORS];
    } irqs = {.set = {
        .argsz = sizeof(irqs),
        .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
        .index = VFIO_PCI_MSIX_IRQ_INDEX,
        .count = VECTORS,
    }};
    for (int i = 0; i < VECTORS; i++)
        irqs.eventfds[i] = interrupts[i] = eventfd(0, EFD_NONBLOCK);
    if (ioctl(device, VFIO_DEVICE_SET_IRQS, &irqs) < 0)
        fail("VFIO_DEVICE_SET_IRQS");
}

/* Whether an interrupt has told of the end of the last transfer; a message can be refused like any access. */
static int is_told(void)
{
    uint64_t count;
    return read(interrupts[0], &count, sizeof(count)) == sizeof(count);
}

static int run(uint32_t command, uint64_t address, uint32_t length, uint32_t pasid)
{
    uint32_t outside = command == READ ? SOURCE : DESTINATION;
    uint32_t inside = command == READ ? DESTINATION : SOURCE;
    uint32_t status = 0;
    set(inside, 0);
    set(inside + 4, 0);
    set(outside, (uint32_t)address);
    set(outside + 4, (uint32_t)(address >> 32));
    set(LENGTH, length);
    set(TAG, pasid ? pasid | TAG_VALID : 0);
    (void)is_told();
    set(COMMAND, command);
    for (int i = 0; i < PATIENCE && status != DONE && status != FAULT && status != REFUSED; i++) {
        struct pollfd ready = {.fd = faults, .events = POLLIN};
        if (poll(&ready, 1, i == 0 ? 0 : 1) == 1)
            answer_faults();
        if (pread(device, &status, 4, (off_t)(bar + STATUS)) != 4)
            fail("device register");
    }
    if (status == DONE)
        told += (unsigned)is_told();
    return status == DONE;
}

static void tell(
    const char *direction, uint64_t address, uint32_t pasid, int done, const char *bytes, size_t count)
{
    printf("dma %s 0x%lx pasid %u %s ", direction, (unsigned long)address, pasid, done ? "done" : "fault");
    for (size_t i = 0; i < count; i++)
        printf("%02x", (uint8_t)bytes[i]);
    puts("");
}

/* Reads so many bytes; NULL: it could not. */
static const char *fetch(uint64_t address, size_t length, uint32_t pasid)
{
    static char bytes[64];
    memset(bytes, 0, sizeof(bytes));
    int done = run(READ, address, (uint32_t)length, pasid);
    if (done && pread(device, bytes, length, (off_t)(bar + BUFFER)) < 0)
        fail("device buffer");
    tell("read", address, pasid, done, bytes, done ? length : 0);
    return done ? bytes : NULL;
}

static int reads(uint64_t address, const char *text, uint32_t pasid)
{
    const char *found = fetch(address, strlen(text), pasid);
    return found && strcmp(found, text) == 0;
}

static int writes(uint64_t address, const char *text, uint32_t pasid)
{
    if (pwrite(device, text, strlen(text), (off_t)(bar + BUFFER)) < 0)
        fail("device buffer");
    int done = run(WRITE, address, (uint32_t)strlen(text), pasid);
    tell("write", address, pasid, done, text, strlen(text));
    return done;
}

static int holds(const void *memory, const char *text)
{
    return memcmp(memory, text, strlen(text)) == 0;
}

/* ---- The story ----------------------------------------------------------------------------------------- */

static uint64_t map_buffer(void)
{
    const char *text = "bytes of a guest";
    memcpy(guest + 0x100000, text, strlen(text));
    check(reads(0x100000, text, 0), "until the guest says otherwise, its addresses are the device's");
    boot();
    listen_to_device();
    check(!fetch(0x100000, 4, 0), "the guest has an IOMMU driver, and the device reaches nothing");
    kernel.root = allocate_page();
    give(&kernel);
    uint64_t buffer = allocate_page();
    memcpy(guest + buffer, text, strlen(text));
    map_page(&kernel, IOVA, buffer);
    check(reads(IOVA, text, 0), "the device reads what the guest has mapped for it");
    check(writes(IOVA + 2048, "from the device", 0), "it writes there");
    check(holds(guest + buffer + 2048, "from the device"), "and the bytes are in guest memory");
    check(told == 2, "and an interrupt has told of the end of each transfer");
    return buffer;
}

static void share(struct space *space, const char *text)
{
    space->root = allocate_page();
    give(space);
    space->reserved = 1;
    touch(space, VA, text);
}

static void use(struct space *space, const char *text, const char *answer)
{
    printf("     %s shares its addresses\n", space->name);
    check(reads(VA, text, space->pasid), "the device reads a process's memory at its own address");
    check(writes(VA + 256, answer, space->pasid), "it writes there");
    check(holds(touch(space, VA + 256, NULL), answer), "and the process finds the bytes");
}

static void ask_for_pages(void)
{
    const char *text = "across two new pages";
    check(writes(VA + 4 * PAGE - 6, text, beta.pasid), "pages that are not there are brought in");
    check(answered > 0, "since the device has asked for them");
    check(holds(touch(&beta, VA + 4 * PAGE - 6, NULL), "across"), "its bytes are in the first one");
    check(holds(touch(&beta, VA + 4 * PAGE, NULL), " two new pages"), "and in the second one");
    check(!fetch(VA + 1024 * PAGE, 4, beta.pasid), "an address that the process has nothing for");
    check(refused > 0, "is refused by the guest itself");
}

static void take_memory_away(uint64_t buffer)
{
    unmap(&kernel, IOVA, 1);
    memcpy(guest + buffer, "out of reach", 12);
    check(!writes(IOVA, "too late", 0), "what was unmapped is out of reach");
    check(holds(guest + buffer, "out of reach"), "and stays as it is");
    uint8_t *page = touch(&alpha, VA, NULL);
    alpha.reserved = 0;
    unmap(&alpha, VA, PROCESS_PAGES);
    memcpy(page, "somebody else's", 15);
    check(!writes(VA, "a stray write", alpha.pasid), "pages that a process no longer has are not written");
    check(holds(page, "somebody else's"), "and who gets them next finds them as they were");
}

/* A process ends, and another one gets its PASID. */
static void succeed(void)
{
    take_away(&alpha);
    ended(&alpha, 0);
    check(!fetch(VA, 4, alpha.pasid), "a PASID that was taken away reaches nothing");
    gamma_.root = allocate_page();
    touch(&gamma_, VA, "memory of gamma");
    give(&gamma_);
    check(reads(VA, "memory of gamma", gamma_.pasid), "who gets it next has it for its own memory");
    take_away(&gamma_);
    ended(&gamma_, 1);
}

int main(int argc, char **argv)
{
    iommufd = open("/dev/iommu", O_RDWR);
    if (iommufd < 0)
        fail("/dev/iommu");
    device = open_cdev(argc > 1 ? argv[1] : "0000:05:00.0");
    bind_device();
    map_guest();
    take();
    uint64_t buffer = map_buffer();
    share(&alpha, "memory of alpha");
    share(&beta, "memory of beta");
    use(&alpha, "memory of alpha", "written for alpha");
    use(&beta, "memory of beta", "written for beta");
    check(!fetch(VA, 4, beta.pasid + 2), "a PASID that nobody has reaches nothing");
    ask_for_pages();
    take_memory_away(buffer);
    succeed();
    map_page(&kernel, IOVA + 16 * PAGE, GUEST_BYTES);
    check(!writes(IOVA + 16 * PAGE, "stray", 0), "memory that is not the guest's is not reached");
    unmap(&kernel, IOVA + 16 * PAGE, 1);
    release();
    check(!fetch(IOVA, 4, 0), "a device that the guest has given up reaches nothing");
#ifdef AFTER_RELEASE
    AFTER_RELEASE();
#endif
    close(faults);
    close(device);
    close(iommufd);
    puts("nested translation works: every byte was right");
    return 0;
}
#endif
