/* A device that is taken out of its slot: its user is asked for it, gives it back, and finds it again after a rescan. */
#include "vfio-nvme.h"
#include <poll.h>

#define BUS "/sys/bus/pci/"
#define BDF "0000:01:00.0"

static struct nvme n;

static int set(const char *path)
{
    int fd = open(path, O_WRONLY);
    if (fd < 0)
        return -1;
    int result = write(fd, "1\n", 2) == 2 ? 0 : -1, error = errno;
    close(fd);
    errno = error;
    return result;
}

static int there(const char *path)
{
    return access(path, F_OK) == 0;
}

int main(void)
{
    char node[64];
    snprintf(node, sizeof(node), "/dev/vfio/%d", group_of(BDF));
    start_nvme(&n, BDF, VFIO_TYPE1v2_IOMMU);
    struct {
        struct vfio_irq_set set;
        int fd;
    } irq = {{sizeof(irq), VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_PCI_REQ_IRQ_INDEX, 0, 1},
             eventfd(0, EFD_NONBLOCK)};
    must(ioctl(n.device, VFIO_DEVICE_SET_IRQS, &irq) == 0);

    uint64_t asked;
    must(read(irq.fd, &asked, 8) == -1);
    must(set(BUS "devices/" BDF "/remove") == -1 && errno == EBUSY);
    must(read(irq.fd, &asked, 8) == 8 && asked == 1);
    must(munmap((void *)n.bar, n.bar_size) == 0 && close(n.device) == 0 && close(n.group) == 0 && close(n.container) == 0);
    must(set(BUS "devices/" BDF "/remove") == 0);
    must(!there(BUS "devices/" BDF) && !there(node) && there(BUS "devices/0000:02:00.0"));
    must(open(node, O_RDWR) == -1 && errno == ENOENT);

    must(set(BUS "rescan") == 0);
    must(there(BUS "devices/" BDF) && there(node));
    start_nvme(&n, BDF, VFIO_TYPE1v2_IOMMU);
    uint8_t *data = pages(1);
    must(map_dma(n.container, data, 0x200000, PAGE) == 0 && transfer(&n, 2, 0x200000, 0, 8) == 0);
    puts("done");
    return 0;
}
