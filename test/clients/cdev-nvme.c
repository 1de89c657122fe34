/*
 * What a VMM does with an NVMe controller and iommufd: finds the device's own node in sysfs, binds it, asks for the
 * IOMMU's registers and the usable addresses, maps memory, takes interrupts, reads and writes with data checked;
 * replaces its page table while transfers run; detaches; and closes "iommufd" or "device" first (argument).
 */
#include "vfio-nvme.h"
#include "iommufd.h"
#include "vfio-cdev.h"
#include <pthread.h>
#include <stdatomic.h>

#define BDF "0000:01:00.0"
#define TARGET 0x40000000UL
#define VECTOR 1
#define ROUNDS 60

static struct nvme n;
static int iommufd;
static int interrupts[2];
static atomic_int stop;
static long transfers;

/* Addresses that no mapping can have, in their order. */
struct windows {
    uint32_t count;
    struct iommu_iova_range at[2];
};

/* Where the interrupts of the machine are: what the IOMMU says it is tells. */
static struct windows check_hardware(uint32_t device)
{
    union {
        struct iommu_hw_info_vtd vtd;
        struct iommu_hw_info_arm_smmuv3 smmu;
        struct iommu_hw_info_amd amd;
    } told = {0};
    const struct iommu_iova_range x86 = {0xfee00000, 0xfeefffff};
    struct iommu_hw_info info = {
        .size = sizeof(info), .dev_id = device, .data_len = sizeof(told), .data_uptr = (uintptr_t)&told};
    must(ioctl(iommufd, IOMMU_GET_HW_INFO, &info) == 0);
    if (info.out_data_type == 2) {
        must(info.data_len == sizeof(told.smmu) && (told.smmu.idr[0] & 3) != 0);
        return (struct windows){1, {{0x8000000, 0x80fffff}}};
    }
    if (info.out_data_type == 4) {
        must(info.data_len == sizeof(told.amd) && told.amd.efr != 0);
        /* And the addresses of HyperTransport. */
        return (struct windows){2, {x86, {0xfd00000000, 0xffffffffff}}};
    }
    /* s390 has no structure of its own, nor has a host bridge of POWER. */
    if (info.out_data_type == 0) {
        must(info.data_len == 0);
        return (struct windows){1, {x86}};
    }
    must(info.out_data_type == 1 && info.data_len == sizeof(told.vtd));
    must(told.vtd.cap_reg != 0 && told.vtd.ecap_reg != 0);
    return (struct windows){1, {x86}};
}

/* Asks twice, as programs do; the windows are not among the ranges. */
static void check_ranges(uint32_t ioas, const struct windows *windows)
{
    struct iommu_ioas_iova_ranges ask = {.size = sizeof(ask), .ioas_id = ioas};
    must(ioctl(iommufd, IOMMU_IOAS_IOVA_RANGES, &ask) == -1 && errno == EMSGSIZE);
    must(ask.num_iovas == windows->count + 1 && ask.out_iova_alignment == PAGE);
    struct iommu_iova_range ranges[3];
    ask.allowed_iovas = (uintptr_t)ranges;
    must(ioctl(iommufd, IOMMU_IOAS_IOVA_RANGES, &ask) == 0);
    must(ranges[0].start == 0);
    /* Between the two windows of a POWER host there is room. */
    const struct windows power = {1, {{0x80000000, 0x7ffffffffffffff}}};
    if (ranges[0].last < windows->at[0].start - 1 && ranges[0].last == power.at[0].start - 1)
        windows = &power;
    for (uint32_t i = 0; i < windows->count; i++) {
        must(ranges[i].last == windows->at[i].start - 1);
        must(ranges[i + 1].start == windows->at[i].last + 1);
    }
    /* A whole number of address bits: 47 of a VT-d first stage, whose addresses are signed; of a window as many as it has. */
    uint64_t last = ranges[windows->count].last, length = last + 1 - ranges[windows->count].start;
    must(last > 1ULL << 38 && ((last & (last + 1)) == 0 || (length & (length - 1)) == 0));
}

static void take_interrupts(void)
{
    struct {
        struct vfio_irq_set set;
        int32_t fds[2];
    } irqs = {.set = {.argsz = sizeof(irqs),
                      .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
                      .index = VFIO_PCI_MSIX_IRQ_INDEX,
                      .start = 0,
                      .count = 2}};
    for (int i = 0; i < 2; i++) {
        must((interrupts[i] = eventfd(0, EFD_NONBLOCK)) >= 0);
        memcpy((char *)&irqs + sizeof(irqs.set) + i * sizeof(int32_t), &interrupts[i], sizeof(int32_t));
    }
    must(ioctl(n.device, VFIO_DEVICE_SET_IRQS, &irqs) == 0);
}

static void check_identify(void)
{
    uint32_t words[16] = {6};
    words[6] = QUEUES_IOVA + 4 * PAGE;
    words[10] = 1; /* the controller */
    must(command(&n, &n.admin, words) == 0);
    must(n.queues[4 * PAGE] | n.queues[4 * PAGE + 1]); /* a vendor id */
}

/* Block 8 gets the byte from one page, and another page gets it back; the interrupt came. */
static void check_data(uint8_t *page, uint8_t value)
{
    memset(page, value, PAGE);
    must(transfer(&n, 1, TARGET, 8, 8) == 0);
    memset(page, 0, PAGE);
    must(transfer(&n, 2, TARGET, 8, 8) == 0);
    for (size_t i = 0; i < PAGE; i++)
        must(page[i] == value);
}

static void *run_transfers(void *unused)
{
    (void)unused;
    while (!stop) {
        must(transfer(&n, 2, TARGET, 8, 8) == 0);
        transfers++;
    }
    return NULL;
}

/* While transfers run, the device moves from one table to the other: what it left is never written to again. */
static void replace_under_load(const uint32_t table[2], uint8_t *const page[2])
{
    pthread_t thread;
    must(pthread_create(&thread, NULL, run_transfers, NULL) == 0);
    for (int round = 0; round < ROUNDS; round++) {
        int next = ~round & 1;
        must(cdev_attach(n.device, table[next]) == 0);
        memset(page[!next], 0x11, PAGE);
        usleep(500);
        for (size_t i = 0; i < PAGE; i++)
            must(page[!next][i] == 0x11);
    }
    stop = 1;
    must(pthread_join(thread, NULL) == 0);
    must(transfers > 0);
}

int main(int argc, char **argv)
{
    int iommufd_first = argc > 1 && strcmp(argv[1], "iommufd") == 0;
    must(access("/dev/iommu", F_OK) == 0);
    n.device = open_cdev(BDF);
    must((iommufd = open("/dev/iommu", O_RDWR)) >= 0);
    uint32_t device = cdev_bind(n.device, iommufd);
    must(device != 0);
    const struct windows windows = check_hardware(device);

    uint32_t space[2], table[2];
    uint8_t *page[2];
    n.queues = pages(8);
    for (int i = 0; i < 2; i++) {
        must((space[i] = ioas_alloc(iommufd)) != 0);
        must((table[i] = hwpt_alloc(iommufd, device, space[i])) != 0);
        page[i] = pages(1);
        must(ioas_map(iommufd, space[i], n.queues, QUEUES_IOVA, 8 * PAGE) == 0);
        must(ioas_map(iommufd, space[i], page[i], TARGET, PAGE) == 0);
    }
    must(cdev_attach(n.device, table[0]) == 0);
    check_ranges(space[0], &windows);
    must(destroy(iommufd, table[0]) == -1 && errno == EBUSY);
    must(destroy(iommufd, space[0]) == -1 && errno == EBUSY);
    must(destroy(iommufd, device) == -1 && errno == EBUSY);

    n.vector = VECTOR;
    take_interrupts();
    start_controller(&n);
    check_identify();
    check_data(page[0], 0xee);
    uint64_t count = 0;
    must(read(interrupts[VECTOR], &count, sizeof(count)) == sizeof(count) && count > 0);
    replace_under_load(table, page);
    must(cdev_attach(n.device, table[1]) == 0);
    must(destroy(iommufd, table[0]) == 0);
    must(ioas_unmap(iommufd, space[0], TARGET, PAGE) == 0);
    must(destroy(iommufd, space[0]) == 0);
    check_data(page[1], 0x77);

    if (iommufd_first) {
        must(close(iommufd) == 0);
        check_data(page[1], 0x78);
    }
    must(cdev_detach(n.device) == 0);
    must(cdev_detach(n.device) == 0);
    if (!iommufd_first)
        must(destroy(iommufd, table[1]) == 0);
    memset(page[1], 0x22, PAGE);
    uint32_t words[16] = {2, 1};
    words[6] = TARGET, words[10] = 8, words[12] = 7;
    submit(&n, &n.io, words); /* nobody answers: the queue itself is out of reach */
    usleep(1000);
    for (size_t i = 0; i < PAGE; i++)
        must(page[1][i] == 0x22);
    must(close(n.device) == 0);
    if (!iommufd_first) {
        must(destroy(iommufd, device) == -1 && errno == EBUSY); /* its BAR is still mapped */
        must(munmap((void *)n.bar, n.bar_size) == 0);
        must(destroy(iommufd, device) == -1 && errno == ENOENT);
        must(close(iommufd) == 0);
    }
    puts("data, interrupts and tables were right");
    return 0;
}
