/*
 * sPAPR containers, version 1 and 2: what is told of windows, memory that is registered, entries, windows that are created
 * and removed, and every errno of these calls. An NVMe controller is the device: it sees each change at once.
 */
#include "type1.h"

#define WINDOW (1UL << 31)
#define HIGH (1UL << 59)
#define LARGE 0x10000UL
#define AT 0x200000UL

static int container;
static struct nvme n;

static int block(unsigned long request, const void *va, uint64_t size, uint32_t flags)
{
    struct vfio_iommu_spapr_register_memory argument = {sizeof(argument), flags, (uintptr_t)va, size};
    return ioctl(container, request, &argument);
}
#define REGISTER(va, size) block(VFIO_IOMMU_SPAPR_REGISTER_MEMORY, va, size, 0)
#define UNREGISTER(va, size) block(VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY, va, size, 0)

static int create(uint32_t shift, uint64_t size, uint32_t levels, uint64_t *start)
{
    struct vfio_iommu_spapr_tce_create argument = {
        .argsz = sizeof(argument), .page_shift = shift, .window_size = size, .levels = levels};
    int status = ioctl(container, VFIO_IOMMU_SPAPR_TCE_CREATE, &argument);
    *start = argument.start_addr;
    return status;
}

static int remove_window(uint64_t start)
{
    struct vfio_iommu_spapr_tce_remove argument = {.argsz = sizeof(argument), .start_addr = start};
    return ioctl(container, VFIO_IOMMU_SPAPR_TCE_REMOVE, &argument);
}

/* Pages that begin at a multiple of 2 MiB. */
static uint8_t *aligned_pages(size_t count)
{
    uint8_t *va = pages(count + 512);
    return va + (-(uintptr_t)va & 0x1fffff);
}

/* A block of the disk into memory at this bus address. */
static int reaches(uint64_t iova)
{
    return transfer(&n, 2, iova, 0, 1) == 0;
}

static void begin(int type)
{
    open_device(&n, FIRST, type);
    container = n.container;
    n.queues = pages(8);
}

static void information(int dynamic)
{
    struct vfio_iommu_spapr_tce_info info = {.argsz = sizeof(info)};
    must(ioctl(container, VFIO_IOMMU_SPAPR_TCE_GET_INFO, &info) == 0);
    must(info.dma32_window_start == 0 && info.dma32_window_size == WINDOW);
    must(info.flags == (dynamic ? VFIO_IOMMU_SPAPR_INFO_DDW : 0));
    if (dynamic)
        must((info.ddw.pgsizes & 0x11000) == 0x11000 && info.ddw.max_dynamic_windows_supported == 2 &&
             info.ddw.levels == 5);
    info.argsz = 16, info.flags = 7;
    must(ioctl(container, VFIO_IOMMU_SPAPR_TCE_GET_INFO, &info) == 0 && info.flags == 0);
    info.argsz = 15;
    refused(ioctl(container, VFIO_IOMMU_SPAPR_TCE_GET_INFO, &info), EINVAL);
    refused(ioctl(container, VFIO_IOMMU_SPAPR_TCE_GET_INFO, 8), EFAULT);
}

/* What MAP_DMA and UNMAP_DMA refuse of memory that could be mapped. */
static void entries(uint8_t *memory)
{
    refused(map_flags(container, 0, memory, AT, PAGE), EINVAL);
    refused(map_flags(container, 4, memory, AT, PAGE), EINVAL);
    refused(map_dma(container, memory, AT, 0), EINVAL);
    refused(map_dma(container, memory, AT + 1, PAGE), EINVAL);
    refused(map_dma(container, memory + 1, AT, PAGE), EINVAL);
    refused(map_dma(container, memory, WINDOW - PAGE, 2 * PAGE), ENXIO);
    refused(map_dma(container, memory, HIGH, PAGE), ENXIO);
    refused(ioctl(container, VFIO_IOMMU_MAP_DMA, 8), EFAULT);
    refused(unmap_flags(container, VFIO_DMA_UNMAP_FLAG_ALL, 0, 0), EINVAL);
    refused(unmap_dma(container, AT, 0), EINVAL);
    refused(unmap_dma(container, WINDOW, PAGE), ENXIO);

    memory[0] = memory[PAGE] = memory[2 * PAGE] = 0x5a;
    must(map_dma(container, memory, AT, 2 * PAGE) == 0 && reaches(AT) && reaches(AT + PAGE) && !reaches(AT + 2 * PAGE));
    must(memory[0] == 0 && memory[PAGE] == 0 && memory[2 * PAGE] == 0x5a);
    must(map_dma(container, memory + 2 * PAGE, AT, PAGE) == 0 && reaches(AT) && memory[2 * PAGE] == 0); /* replaced */
    must(map_flags(container, VFIO_DMA_MAP_FLAG_READ, memory, AT, PAGE) == 0 && !reaches(AT));
    must(unmap_dma(container, AT, PAGE) == 0 && reaches(AT + PAGE));
    must(unmap_dma(container, 0x100000, 0x200000) == 0 && !reaches(AT + PAGE));
}

static void first_version(void)
{
    begin(VFIO_SPAPR_TCE_IOMMU);
    information(0);
    uint8_t *memory = pages(4);
    refused(map_dma(container, memory, AT, PAGE), EPERM);
    refused(unmap_dma(container, AT, PAGE), EPERM);
    must(ioctl(container, VFIO_IOMMU_ENABLE) == 0);
    refused(ioctl(container, VFIO_IOMMU_ENABLE), EBUSY);
    refused(map_dma(container, (void *)8192, AT, PAGE), EFAULT);
    refused(REGISTER(memory, PAGE), ENOTTY);
    refused(UNREGISTER(memory, PAGE), ENOTTY);
    uint64_t start;
    refused(create(12, WINDOW, 1, &start), ENOTTY);
    refused(remove_window(0), ENOTTY);
    must(map_dma(container, n.queues, QUEUES_IOVA, 8 * PAGE) == 0);
    start_controller(&n);
    entries(memory);

    char path[64];
    snprintf(path, sizeof(path), "/dev/vfio/%d", group_of(SECOND));
    int second = open(path, O_RDWR);
    must(second >= 0);
    refused(ioctl(second, VFIO_GROUP_SET_CONTAINER, &container), EBUSY);
    must(ioctl(container, VFIO_IOMMU_DISABLE) == 0 && ioctl(container, VFIO_IOMMU_DISABLE) == 0);
    refused(map_dma(container, memory, AT, PAGE), EPERM);
}

static void registered(uint8_t *memory)
{
    refused(map_dma(container, memory, AT, PAGE), EINVAL); /* it is not registered */
    refused(block(VFIO_IOMMU_SPAPR_REGISTER_MEMORY, memory, PAGE, 1), EINVAL);
    refused(REGISTER(memory + 1, PAGE), EINVAL);
    refused(REGISTER(memory, 0), EINVAL);
    refused(REGISTER((void *)8192, PAGE), EFAULT);
    refused(ioctl(container, VFIO_IOMMU_SPAPR_REGISTER_MEMORY, 8), EFAULT);
    must(REGISTER(memory, 512 * PAGE) == 0);
    refused(REGISTER(memory, 512 * PAGE), EBUSY);
    refused(REGISTER(memory + PAGE, PAGE), EINVAL);
    refused(UNREGISTER(memory, PAGE), ENOENT);
    refused(block(VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY, memory, 512 * PAGE, 1), EINVAL);
    refused(ioctl(container, VFIO_IOMMU_ENABLE), ENOTTY);
    refused(ioctl(container, VFIO_IOMMU_DISABLE), ENOTTY);
}

static void windows(uint8_t *memory)
{
    uint64_t start;
    refused(create(13, WINDOW, 1, &start), EINVAL);
    refused(create(16, WINDOW, 0, &start), EINVAL);
    refused(create(16, WINDOW, 6, &start), EINVAL);
    refused(create(16, 3 * WINDOW, 1, &start), EINVAL);
    refused(ioctl(container, VFIO_IOMMU_SPAPR_TCE_CREATE, 8), EFAULT);
    must(create(16, WINDOW, 2, &start) == 0 && start == HIGH);
    refused(create(16, WINDOW, 2, &start), ENOSPC);
    refused(map_dma(container, memory, HIGH, PAGE), EINVAL); /* its pages have 64 KiB */
    refused(map_dma(container, memory + PAGE, HIGH, LARGE), EINVAL);
    must(map_dma(container, memory + LARGE, HIGH + LARGE, LARGE) == 0);
    memory[2 * LARGE - PAGE] = 0x5a;
    must(!reaches(HIGH) && reaches(HIGH + 2 * LARGE - PAGE) && memory[2 * LARGE - PAGE] == 0);
    refused(unmap_dma(container, HIGH + LARGE, PAGE), EINVAL);
    refused(UNREGISTER(memory, 512 * PAGE), EBUSY);
    refused(remove_window(HIGH + LARGE), EINVAL);
    refused(ioctl(container, VFIO_IOMMU_SPAPR_TCE_REMOVE, 8), EFAULT);
    must(remove_window(HIGH) == 0 && !reaches(HIGH + LARGE));
    refused(remove_window(HIGH), EINVAL);
}

static void second_version(void)
{
    begin(VFIO_SPAPR_TCE_v2_IOMMU);
    must(ioctl(container, VFIO_CHECK_EXTENSION, VFIO_SPAPR_TCE_v2_IOMMU) == 1);
    must(ioctl(container, VFIO_CHECK_EXTENSION, VFIO_EEH) == 0);
    struct vfio_eeh_pe_op operation = {.argsz = sizeof(operation), .op = VFIO_EEH_PE_GET_STATE};
    refused(ioctl(container, VFIO_EEH_PE_OP, &operation), ENOTTY);
    information(1);
    uint8_t *memory = aligned_pages(512);
    registered(memory);
    must(REGISTER(n.queues, 8 * PAGE) == 0 && map_dma(container, n.queues, QUEUES_IOVA, 8 * PAGE) == 0);
    start_controller(&n);
    entries(memory);
    windows(memory);
    must(UNREGISTER(memory, 512 * PAGE) == 0);
    refused(UNREGISTER(memory, 512 * PAGE), ENOENT);

    struct nvme second = {.container = container}; /* a second group has the same windows */
    char path[64];
    snprintf(path, sizeof(path), "/dev/vfio/%d", group_of(SECOND));
    must((second.group = open(path, O_RDWR)) >= 0);
    must(ioctl(second.group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
}

int main(int count, char **arguments)
{
    must(count == 2);
    if (arguments[1][0] == '1')
        first_version();
    else
        second_version();
    printf("sPAPR version %s\n", arguments[1]);
    return 0;
}
