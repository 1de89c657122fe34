/*
 * A userspace driver that copies memory with a Data Streaming Accelerator, by one of the five ways to an IOMMU (argument):
 * "type1", "type1v2", both through an iommufd in the container's place ("compat-type1", "compat-type1v2"), or "cdev".
 */
#define CONTAINER container_path
static const char *container_path = "/dev/vfio/vfio";
#include "vfio-nvme.h"
#include "iommufd.h"
#include "vfio-cdev.h"
#include "dsa.h"

#define IOVA 0x200000UL
#define HALF (512 * 1024UL)
/* Behind the two halves: records, then a list of descriptors. */
#define RECORD (2 * HALF)
#define LIST (2 * HALF + PAGE)
#define BYTES (2 * HALF + 2 * PAGE)
#define BATCH 16

static struct nvme way;
static struct dsa dsa;
static int iommufd = -1;
static uint32_t space;
static uint8_t *memory;
static int interrupts[DSA_VECTORS];

static int map_memory(void)
{
    return iommufd >= 0 ? ioas_map(iommufd, space, memory, IOVA, BYTES)
                        : map_dma(way.container, memory, IOVA, BYTES);
}

static int unmap_memory(void)
{
    return iommufd >= 0 ? ioas_unmap(iommufd, space, IOVA, BYTES) : unmap_dma(way.container, IOVA, BYTES);
}

/* Takes the device by the chosen way. */
static int take(const char *how)
{
    if (strcmp(how, "cdev") == 0) {
        int device = open_cdev(DSA_BDF);
        must((iommufd = open("/dev/iommu", O_RDWR)) >= 0);
        must(cdev_bind(device, iommufd) != 0);
        must((space = ioas_alloc(iommufd)) != 0);
        must(cdev_attach(device, space) == 0);
        return device;
    }
    if (strncmp(how, "compat-", 7) == 0) {
        container_path = "/dev/iommu";
        how += 7;
    }
    open_device(&way, DSA_BDF, strcmp(how, "type1") == 0 ? VFIO_TYPE1_IOMMU : VFIO_TYPE1v2_IOMMU);
    return way.device;
}

static void take_interrupts(void)
{
    struct {
        struct vfio_irq_set set;
        int32_t fds[DSA_VECTORS];
    } irqs = {.set = {.argsz = sizeof(irqs),
                      .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
                      .index = VFIO_PCI_MSIX_IRQ_INDEX,
                      .count = DSA_VECTORS}};
    for (int i = 0; i < DSA_VECTORS; i++) {
        must((interrupts[i] = eventfd(0, 0)) >= 0);
        memcpy((char *)&irqs + sizeof(irqs.set) + i * sizeof(int32_t), &interrupts[i], sizeof(int32_t));
    }
    must(ioctl(dsa.device, VFIO_DEVICE_SET_IRQS, &irqs) == 0);
}

static struct dsa_completion_record *record(void)
{
    return (struct dsa_completion_record *)(memory + RECORD);
}

static int run(struct dsa_hw_desc *descriptor)
{
    return dsa_run(&dsa, descriptor, record(), IOVA + RECORD);
}

static void fill_halves(int seed)
{
    for (size_t i = 0; i < HALF; i++)
        memory[i] = (uint8_t)(i * 7 + (i >> 8) + seed);
    memset(memory + HALF, 0, HALF);
}

static struct dsa_hw_desc copy_of(uint64_t from, uint64_t to, uint32_t bytes)
{
    return (struct dsa_hw_desc){.opcode = DSA_OPCODE_MEMMOVE, .src_addr = from, .dst_addr = to, .xfer_size = bytes};
}

static void copies(int seed)
{
    fill_halves(seed);
    struct dsa_hw_desc copy = copy_of(IOVA, IOVA + HALF, HALF);
    must(run(&copy) == DSA_COMP_SUCCESS);
    must(memcmp(memory, memory + HALF, HALF) == 0);
}

static void fills_and_compares(void)
{
    struct dsa_hw_desc fill = {
        .opcode = DSA_OPCODE_MEMFILL, .pattern = 0x1122334455667788, .dst_addr = IOVA + HALF, .xfer_size = 1000};
    must(run(&fill) == DSA_COMP_SUCCESS);
    for (int i = 0; i < 1000; i++)
        must(memory[HALF + i] == 0x88 - 0x11 * (i % 8));
    struct dsa_hw_desc compare = {
        .opcode = DSA_OPCODE_COMPARE, .src_addr = IOVA, .src2_addr = IOVA + 100, .xfer_size = 100};
    memcpy(memory + 100, memory, 100);
    must(run(&compare) == DSA_COMP_SUCCESS && record()->result == 0);
    memory[142] ^= 1;
    must(run(&compare) == DSA_COMP_SUCCESS && record()->result == 1 && record()->bytes_completed == 42);
    memcpy(memory, "123456789", 9);
    struct dsa_hw_desc crc = {.opcode = DSA_OPCODE_CRCGEN, .src_addr = IOVA, .xfer_size = 9};
    must(run(&crc) == DSA_COMP_SUCCESS && record()->crc_val == 0xe3069283);
}

static void runs_batches(void)
{
    fill_halves(3);
    struct dsa_hw_desc *list = (struct dsa_hw_desc *)(memory + LIST);
    for (int i = 0; i < BATCH; i++)
        list[i] = copy_of(IOVA + i * PAGE, IOVA + HALF + i * PAGE, PAGE);
    struct dsa_hw_desc batch = {
        .opcode = DSA_OPCODE_BATCH, .desc_list_addr = IOVA + LIST, .desc_count = BATCH};
    must(run(&batch) == DSA_COMP_SUCCESS && record()->bytes_completed == BATCH);
    must(memcmp(memory, memory + HALF, BATCH * PAGE) == 0);
}

static void interrupts_by_handle(void)
{
    uint64_t count;
    uint32_t handle = dsa_command(&dsa, DSA_GET_HANDLE, 3);
    struct dsa_hw_desc noop = {.opcode = DSA_OPCODE_NOOP, .flags = IDXD_OP_FLAG_RCI, .int_handle = handle};
    must(run(&noop) == DSA_COMP_SUCCESS);
    must(read(interrupts[3], &count, sizeof(count)) == sizeof(count) && count == 1);
}

/* An address that is not mapped is in the record, or in the software error register when there is no record. */
static void tells_faults(void)
{
    uint64_t hole = IOVA + BYTES;
    struct dsa_hw_desc copy = copy_of(IOVA, hole - PAGE, 2 * PAGE);
    must(run(&copy) == (DSA_COMP_PAGE_FAULT_NOBOF | DSA_COMP_STATUS_WRITE));
    must(record()->fault_addr == hole && record()->bytes_completed == PAGE);
    static struct dsa_hw_desc quiet __attribute__((aligned(64)));
    quiet = copy_of(hole, IOVA, PAGE);
    movdir64b(dsa.portal, &quiet);
    uint64_t error;
    for (int i = 0; !((error = dsa_read64(&dsa, DSA_SWERR)) & 1); i++)
        must(i < 1000000);
    must((error >> 8 & 0xff) == DSA_COMP_PAGE_FAULT_NOBOF && (error >> 32 & 0xff) == DSA_OPCODE_MEMMOVE);
    must(dsa_read64(&dsa, DSA_SWERR + 16) == hole);
    dsa_write(&dsa, DSA_SWERR, 3);
}

int main(int argc, char **argv)
{
    must(argc == 2);
    int device = take(argv[1]);
    memory = pages(BYTES / PAGE);
    must(map_memory() == 0);
    dsa_start(&dsa, device);
    take_interrupts();
    copies(1);
    fills_and_compares();
    runs_batches();
    interrupts_by_handle();
    tells_faults();
    must(unmap_memory() == 0);
    static struct dsa_hw_desc lost __attribute__((aligned(64)));
    lost = copy_of(IOVA, IOVA + HALF, PAGE);
    movdir64b(dsa.portal, &lost);
    must(map_memory() == 0);
    dsa_command(&dsa, DSA_DISABLE, 0);
    dsa_start(&dsa, device);
    copies(2);
    must(close(device) == 0);
    puts("the accelerator's work was right");
    return 0;
}
