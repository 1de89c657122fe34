/*
 * A device that no IOMMU is in front of: its group has a name of its own, its container takes one type and no request, and
 * its registers and interrupts work.
 */
#include "type1.h"

#define UNPROTECTED "0000:05:00.0"

int main(void)
{
    char path[64], mode = 0;
    int parameter = open("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", O_RDONLY);
    must(read(parameter, &mode, 1) == 1 && mode == 'Y');
    snprintf(path, sizeof(path), "/dev/vfio/%d", group_of(UNPROTECTED));
    must(access(path, F_OK) != 0);
    snprintf(path, sizeof(path), "/dev/vfio/noiommu-%d", group_of(UNPROTECTED));
    int group = open(path, O_RDWR), container = open("/dev/vfio/vfio", O_RDWR);
    must(group >= 0 && container >= 0);
    must(ioctl(container, VFIO_CHECK_EXTENSION, VFIO_NOIOMMU_IOMMU) == 0);
    must(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
    must(ioctl(container, VFIO_CHECK_EXTENSION, VFIO_NOIOMMU_IOMMU) == 1);
    must(ioctl(container, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) == 0);
    refused(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), EINVAL);
    must(ioctl(container, VFIO_SET_IOMMU, VFIO_NOIOMMU_IOMMU) == 0);

    char protected[64];
    snprintf(protected, sizeof(protected), "/dev/vfio/%d", group_of(FIRST));
    int other = open(protected, O_RDWR);
    must(other >= 0);
    refused(ioctl(other, VFIO_GROUP_SET_CONTAINER, &container), EPERM);
    refused(map_dma(container, pages(1), 0, PAGE), ENOTTY);

    int device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, UNPROTECTED);
    must(device >= 0);
    uint32_t version = 0;
    must(pread(device, &version, 4, 8) == 4 && version == 0x10400); /* NVMe 1.4, at the start of BAR 0 */
    puts("no IOMMU");
    return 0;
}
