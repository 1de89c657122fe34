/*
 * What a VMM does for a guest whose IOMMU is nested on Intel VT-d, in one file and without a guest: it
 * writes a first-stage page table itself, at guest addresses, and gives it to one PASID of a device above
 * the table that maps "guest memory". The device then reads and writes by the guest's virtual addresses,
 * asks for a page that is not there and gets it, and loses a page that is taken away. Every byte is
 * checked.
 *
 *     cc -o vfio-nested examples/vfio-nested.c
 *     softiommu run --machine vtd -- ./vfio-nested 0000:05:00.0
 *
 * The device is softiommu's DMA test function. Its registers are in src/pci/devices/test-function.ts.
 */
#include "nested.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define PATIENCE 50000 /* polls of 100 us: five seconds */
#define PASID 7

/* Guest memory: what is where, as the guest counts. Its first-stage tables lie in it like everything else. */
#define GUEST_BYTES (64 * PAGE)
enum { ROOT = 1 * PAGE, LEVEL3 = 2 * PAGE, LEVEL2 = 3 * PAGE, LEVEL1 = 4 * PAGE, FIRST = 8 * PAGE };
/* The address that a process of the guest, and the device with its PASID, use. */
#define VA 0x555500000000UL

/* x86-64 page tables: present, writable, for users. */
#define ENTRY 7UL

/* The test function's BAR 0. */
enum { COMMAND = 0x04, SOURCE = 0x08, DESTINATION = 0x10, LENGTH = 0x18, TAG = 0x1c, STATUS = 0x20 };
enum { BUFFER = 0x10000 };
enum { READ = 1, WRITE = 2 };
enum { DONE = 2, FAULT = 3 };
#define TAG_VALID 0x80000000U

static int iommufd, device, faults;
static uint32_t device_id, parent, nested, fault_queue;
static uint8_t *guest;
static uint64_t bar;

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

/* ---- 1. The device and the host's page table ----------------------------------------------------------- */

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
    struct hw_info_vtd vtd = {0};
    struct hw_info info = {
        .size = sizeof(info), .dev_id = device_id, .data_len = sizeof(vtd), .data_uptr = (uintptr_t)&vtd};
    if (ioctl(iommufd, IOMMU_GET_HW_INFO, &info) < 0)
        fail("IOMMU_GET_HW_INFO");
    int nests = info.out_data_type == HW_INFO_TYPE_INTEL_VTD && vtd.ecap_reg >> 26 & 1;
    check(nests, "the IOMMU is a VT-d unit that nests");
    check(info.out_max_pasid_log2 > 3, "the device has PASIDs");
    uint16_t command = 6; /* memory space, bus master */
    if (pwrite(device, &command, 2, (off_t)region(VFIO_PCI_CONFIG_REGION_INDEX) + 4) != 2)
        fail("command register");
    bar = region(VFIO_PCI_BAR0_REGION_INDEX);
}

static uint32_t allocate_hwpt(uint32_t flags, uint32_t above, struct hwpt_vtd_s1 *first_stage)
{
    struct hwpt_alloc alloc = {.size = sizeof(alloc), .flags = flags, .dev_id = device_id, .pt_id = above};
    if (first_stage) {
        alloc.data_type = HWPT_DATA_VTD_S1;
        alloc.data_len = sizeof(*first_stage);
        alloc.data_uptr = (uintptr_t)first_stage;
        alloc.fault_id = fault_queue;
    }
    if (ioctl(iommufd, IOMMU_HWPT_ALLOC, &alloc) < 0)
        fail("IOMMU_HWPT_ALLOC");
    return alloc.out_hwpt_id;
}

/* All of guest memory, in a table made to lie beneath others. */
static void map_guest(void)
{
    guest = mmap(NULL, GUEST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (guest == MAP_FAILED)
        fail("mmap");
    struct ioas_alloc ioas = {.size = sizeof(ioas)};
    if (ioctl(iommufd, IOMMU_IOAS_ALLOC, &ioas) < 0)
        fail("IOMMU_IOAS_ALLOC");
    struct ioas_map map = {
        .size = sizeof(map),
        .flags = MAP_FIXED_IOVA | MAP_READABLE | MAP_WRITEABLE,
        .ioas_id = ioas.out_ioas_id,
        .user_va = (uintptr_t)guest,
        .length = GUEST_BYTES,
    };
    if (ioctl(iommufd, IOMMU_IOAS_MAP, &map) < 0)
        fail("IOMMU_IOAS_MAP");
    parent = allocate_hwpt(ALLOC_NEST_PARENT | ALLOC_PASID, ioas.out_ioas_id, NULL);
}

/* ---- 2. The guest's own table -------------------------------------------------------------------------- */

static uint64_t *entry(uint64_t table, int level)
{
    return (uint64_t *)(guest + table) + (VA >> (12 + 9 * (level - 1)) & 511);
}

static void write_tables(void)
{
    *entry(ROOT, 4) = LEVEL3 | ENTRY;
    *entry(LEVEL3, 3) = LEVEL2 | ENTRY;
    *entry(LEVEL2, 2) = LEVEL1 | ENTRY;
    *entry(LEVEL1, 1) = FIRST | ENTRY;
}

static void attach(uint32_t table, uint32_t flags, uint32_t pasid)
{
    struct cdev_attach attach = {sizeof(attach), flags, table, pasid};
    if (ioctl(device, CDEV_ATTACH_IOMMUFD_PT, &attach) < 0)
        fail("VFIO_DEVICE_ATTACH_IOMMUFD_PT");
}

static void nest(void)
{
    struct fault_alloc queue = {.size = sizeof(queue)};
    if (ioctl(iommufd, IOMMU_FAULT_QUEUE_ALLOC, &queue) < 0)
        fail("IOMMU_FAULT_QUEUE_ALLOC");
    fault_queue = queue.out_fault_id;
    faults = (int)queue.out_fault_fd;
    struct hwpt_vtd_s1 first_stage = {.flags = VTD_S1_WPE, .pgtbl_addr = ROOT, .addr_width = 48};
    nested = allocate_hwpt(ALLOC_PASID | ALLOC_FAULT_ID_VALID, parent, &first_stage);
    attach(parent, 0, 0);               /* requests without a PASID: guest physical addresses */
    attach(nested, WITH_PASID, PASID);  /* those with it: virtual ones */
}

/* The guest changed the entry of one page: what the IOMMU remembers of it goes. */
static void invalidate(uint64_t address)
{
    struct vtd_s1_invalidate one = {.addr = address, .npages = 1, .flags = VTD_INV_LEAF};
    struct hwpt_invalidate list = {
        .size = sizeof(list),
        .hwpt_id = nested,
        .data_uptr = (uintptr_t)&one,
        .data_type = INVALIDATE_DATA_VTD_S1,
        .entry_len = sizeof(one),
        .entry_num = 1,
    };
    if (ioctl(iommufd, IOMMU_HWPT_INVALIDATE, &list) < 0)
        fail("IOMMU_HWPT_INVALIDATE");
    check(list.entry_num == 1, "the invalidation was done");
}

/* ---- 3. The device ------------------------------------------------------------------------------------- */

static void set(uint32_t offset, uint32_t value)
{
    if (pwrite(device, &value, 4, (off_t)(bar + offset)) != 4)
        fail("device register");
}

static uint32_t status(void)
{
    uint32_t value = 0;
    if (pread(device, &value, 4, (off_t)(bar + STATUS)) != 4)
        fail("device register");
    return value;
}

static void begin(uint32_t command, uint64_t address, uint32_t length, uint32_t tag)
{
    uint32_t outside = command == READ ? SOURCE : DESTINATION;
    uint32_t inside = command == READ ? DESTINATION : SOURCE;
    set(inside, 0);
    set(inside + 4, 0);
    set(outside, (uint32_t)address);
    set(outside + 4, (uint32_t)(address >> 32));
    set(LENGTH, length);
    set(TAG, tag);
    set(COMMAND, command);
}

static uint32_t wait_for_device(void)
{
    for (int i = 0; i < PATIENCE; i++) {
        uint32_t now = status();
        if (now == DONE || now == FAULT)
            return now;
        usleep(100);
    }
    return status();
}

static int device_reads(uint64_t address, const char *text, uint32_t tag)
{
    char got[64] = "";
    begin(READ, address, (uint32_t)strlen(text), tag);
    if (wait_for_device() != DONE || pread(device, got, strlen(text), (off_t)(bar + BUFFER)) < 0)
        return 0;
    return strcmp(got, text) == 0;
}

static void device_begins_to_write(uint64_t address, const char *text, uint32_t tag)
{
    if (pwrite(device, text, strlen(text), (off_t)(bar + BUFFER)) < 0)
        fail("device buffer");
    begin(WRITE, address, (uint32_t)strlen(text), tag);
}

/* ---- 4. A page that is asked for ----------------------------------------------------------------------- */

/* Waits for one request, which must be for this page, and answers it. */
static void answer(uint64_t page, uint32_t code)
{
    struct pollfd ready = {.fd = faults, .events = POLLIN};
    check(poll(&ready, 1, 5000) == 1, "a page fault has come");
    struct pgfault fault = {0};
    check(read(faults, &fault, sizeof(fault)) == sizeof(fault), "it is read whole");
    check(fault.flags == (FAULT_PASID_VALID | FAULT_LAST_PAGE) && fault.pasid == PASID, "it is of our PASID");
    check(fault.dev_id == device_id && fault.addr == page, "it is of our device, at the right page");
    check(fault.perm & FAULT_PERM_WRITE, "which the device wants to write to");
    struct page_response response = {fault.cookie, code};
    if (code == RESPONSE_SUCCESS)
        *entry(LEVEL1, 1) = FIRST | ENTRY;
    if (write(faults, &response, sizeof(response)) != sizeof(response))
        fail("page response");
}

int main(int argc, char **argv)
{
    const char *bdf = argc > 1 ? argv[1] : "0000:05:00.0";
    iommufd = open("/dev/iommu", O_RDWR);
    if (iommufd < 0)
        fail("/dev/iommu");
    device = open_cdev(bdf);
    bind_device();
    map_guest();
    write_tables();
    nest();

    strcpy((char *)guest + FIRST, "hello");
    check(device_reads(FIRST, "hello", 0), "without PASID the device reads guest memory");
    check(device_reads(VA, "hello", PASID | TAG_VALID), "with it, at the guest's virtual address");
    device_begins_to_write(VA + 100, "from the device", PASID | TAG_VALID);
    check(wait_for_device() == DONE, "it writes there");
    check(memcmp(guest + FIRST + 100, "from the device", 15) == 0, "and the bytes are in guest memory");

    *entry(LEVEL1, 1) = 0;
    invalidate(VA);
    device_begins_to_write(VA, "stray", PASID | TAG_VALID);
    answer(VA, RESPONSE_INVALID);
    check(wait_for_device() == FAULT, "a page that was taken away is not reached");
    check(memcmp(guest + FIRST, "hello", 5) == 0, "and its bytes stay");

    device_begins_to_write(VA, "late", PASID | TAG_VALID);
    answer(VA, RESPONSE_SUCCESS);
    check(wait_for_device() == DONE, "given back when the device asks for it, it is");
    check(memcmp(guest + FIRST, "lateo", 5) == 0, "and the bytes have arrived");

    struct cdev_detach detach = {sizeof(detach), WITH_PASID, PASID};
    check(ioctl(device, CDEV_DETACH_IOMMUFD_PT, &detach) == 0, "the PASID is detached");
    begin(READ, VA, 4, PASID | TAG_VALID);
    check(wait_for_device() == FAULT, "and reaches nothing any more");
    close(faults);
    close(device);
    close(iommufd);
    puts("nested translation works: every byte was right");
    return 0;
}
