/* A disk that reads into the registers of another device, and writes from them, through a container with both. */
#include "vfio-nvme.h"
#include <sys/resource.h>

#define PEER_IOVA 0x40000000UL
#define SIZE (4 * PAGE)

static struct nvme n;
static uint64_t config;

static int open_peer(const char *bdf)
{
    char path[64];
    snprintf(path, sizeof(path), "/dev/vfio/%d", group_of(bdf));
    int group = open(path, O_RDWR);
    must(group >= 0 && ioctl(group, VFIO_GROUP_SET_CONTAINER, &n.container) == 0);
    int device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, bdf);
    must(device >= 0);
    struct vfio_region_info region = {.argsz = sizeof(region), .index = VFIO_PCI_CONFIG_REGION_INDEX};
    must(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region) == 0);
    config = region.offset;
    return device;
}

static uint8_t *map_bar(int device, int protection)
{
    struct vfio_region_info region = {.argsz = sizeof(region), .index = VFIO_PCI_BAR0_REGION_INDEX};
    must(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region) == 0 && region.size >= SIZE);
    uint8_t *bar = mmap(NULL, region.size, protection, MAP_SHARED, device, region.offset);
    must(bar != MAP_FAILED);
    return bar;
}

static void decode(int device, uint16_t on)
{
    must(pwrite(device, &on, 2, config + 4) == 2);
}

/* Kilobytes that count as locked. */
static long locked(void)
{
    char line[256];
    long count = -1;
    FILE *status = fopen("/proc/self/status", "r");
    must(status);
    while (fgets(line, sizeof(line), status))
        sscanf(line, "VmLck: %ld", &count);
    fclose(status);
    must(count >= 0);
    return count;
}

int main(void)
{
    start_nvme(&n, "0000:01:00.0", VFIO_TYPE1v2_IOMMU);
    uint8_t *data = pages(1);
    must(map_dma(n.container, data, 0x200000, PAGE) == 0);
    int peer = open_peer("0000:04:00.0");
    uint8_t *bar = map_bar(peer, PROT_READ | PROT_WRITE);

    /* They are nobody's memory: no limit counts them. */
    struct rlimit none = {0, 0};
    must(setrlimit(RLIMIT_MEMLOCK, &none) == 0);
    long before = locked();
    must(map_dma(n.container, bar, PEER_IOVA, SIZE) == 0 && locked() == before);
    must(map_dma(n.container, bar, PEER_IOVA, PAGE) == -1 && errno == EEXIST);

    memset(data, 0x5a, PAGE);
    must(transfer(&n, 1, 0x200000, 0, 8) == 0);
    must(transfer(&n, 2, PEER_IOVA + PAGE, 0, 8) == 0);
    for (size_t i = 0; i < PAGE; i += 64)
        must(bar[i] == 0 && bar[PAGE + i] == 0x5a);
    memset(bar, 0xc3, 64);
    must(transfer(&n, 1, PEER_IOVA, 100, 1) == 0);
    must(transfer(&n, 2, 0x200000, 100, 1) == 0);
    must(data[0] == 0xc3 && data[63] == 0xc3 && data[64] == 0 && data[512] == 0x5a);

    /* The mapping is the device's, not the address's. */
    must(munmap(bar, SIZE) == 0);
    must(transfer(&n, 2, PEER_IOVA + PAGE, 0, 1) == 0);
    decode(peer, 0);
    must(transfer(&n, 2, PEER_IOVA, 0, 1) != 0);
    bar = map_bar(peer, PROT_READ);
    must(map_dma(n.container, bar, PEER_IOVA + SIZE, SIZE) == -1 && errno == EFAULT);
    decode(peer, 2);
    must(transfer(&n, 2, PEER_IOVA, 0, 1) == 0);
    must(map_dma(n.container, bar, PEER_IOVA + SIZE, SIZE) == -1 && errno == EFAULT); /* read-only */
    must(unmap_dma(n.container, PEER_IOVA, SIZE) == 0 && locked() == before);
    must(transfer(&n, 2, PEER_IOVA, 0, 1) != 0);
    puts("done");
    return 0;
}
