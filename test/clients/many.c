/* Thousands of descriptors: of the program's own, of ours, duplicates of ours; then all closed at once. */
#include "vfio-nvme.h"
#include "iommufd.h"
#include <sys/resource.h>

#define MOST 3000

static struct nvme n;
static int files[MOST / 5], duplicates[MOST];

int main(void)
{
    struct rlimit limit;
    must(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = limit.rlim_max;
    must(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    int many = limit.rlim_max > 2 * MOST ? MOST : 300;
    start_nvme(&n, "0000:01:00.0", VFIO_TYPE1v2_IOMMU);
    uint8_t *data = pages(1);
    must(map_dma(n.container, data, 0x200000, PAGE) == 0);

    for (int i = 0; i < many; i++) {
        must((duplicates[i] = i % 3 ? dup(n.device) : eventfd(0, 0)) >= 0);
        if (i < many / 5)
            must((files[i] = open("/dev/iommu", O_RDWR)) >= 0);
    }
    for (int i = 0; i < many / 5; i++)
        must(ioas_alloc(files[i]) > 0);
    struct vfio_device_info info = {.argsz = sizeof(info)};
    for (int i = 1; i < many; i += 3)
        must(ioctl(duplicates[i], VFIO_DEVICE_GET_INFO, &info) == 0);
    must(transfer(&n, 2, 0x200000, 0, 8) == 0);

    /* The mapping of the registers holds the device; the group and the container go. */
    closefrom(3);
    must(*reg32(&n, 0x1c) & 1);
    must(munmap((void *)n.bar, n.bar_size) == 0);
    must(open("/dev/iommu", O_RDWR) == 3 && ioas_alloc(3) > 0);

    /* A loop over every number, as daemons do it. */
    start_nvme(&n, "0000:02:00.0", VFIO_TYPE1v2_IOMMU);
    for (int fd = 3; fd < many; fd++)
        close(fd);
    must(*reg32(&n, 0x1c) & 1);
    must(munmap((void *)n.bar, n.bar_size) == 0);
    start_nvme(&n, "0000:02:00.0", VFIO_TYPE1v2_IOMMU);
    puts("done");
    return 0;
}
