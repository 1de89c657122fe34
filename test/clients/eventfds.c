/* Eventfds that act on a device when the program counts them up: one unmasks INTx, one rings a doorbell. */
#include "vfio-nvme.h"
#include <poll.h>

static struct nvme n;

static int set_line(uint32_t action, int fd)
{
    struct {
        struct vfio_irq_set set;
        int fd;
    } irq = {{sizeof(irq), VFIO_IRQ_SET_DATA_EVENTFD | action, VFIO_PCI_INTX_IRQ_INDEX, 0, 1}, fd};
    return ioctl(n.device, VFIO_DEVICE_SET_IRQS, &irq);
}

static uint64_t taken(int fd)
{
    uint64_t count;
    must(read(fd, &count, 8) == 8);
    return count;
}

static int counts(int fd)
{
    struct pollfd one = {.fd = fd, .events = POLLIN};
    return poll(&one, 1, 0);
}

/* Counts it up, and waits until whoever watches it has taken that. */
static void ring(int fd)
{
    must(write(fd, &(uint64_t){1}, 8) == 8);
    for (int waits = 0; counts(fd); waits++) {
        must(waits < 20000);
        usleep(1000);
    }
}

int main(void)
{
    int line = eventfd(0, 0), unmask = eventfd(0, 0), doorbell = eventfd(0, EFD_NONBLOCK);
    start_nvme(&n, "0000:01:00.0", VFIO_TYPE1v2_IOMMU);
    must(set_line(VFIO_IRQ_SET_ACTION_UNMASK, unmask) == -1 && errno == EINVAL);
    must(set_line(VFIO_IRQ_SET_ACTION_TRIGGER, line) == 0);
    must(set_line(VFIO_IRQ_SET_ACTION_UNMASK, unmask) == 0);

    uint32_t get_features[16] = {0xa};
    get_features[10] = 7; /* number of queues */
    submit(&n, &n.admin, get_features);
    must(taken(line) == 1);
    for (int i = 0; i < 3; i++) { /* still asserted */
        ring(unmask);
        must(taken(line) == 1);
    }
    must(complete(&n, &n.admin) == 0);
    ring(unmask);
    must(!counts(line));

    /* The doorbell of the next command on the admin queue. */
    struct vfio_region_info bar = {.argsz = sizeof(bar), .index = VFIO_PCI_BAR0_REGION_INDEX};
    must(ioctl(n.device, VFIO_DEVICE_GET_REGION_INFO, &bar) == 0);
    for (int i = 0; i < 16; i++)
        n.admin.sq[n.admin.tail * 16 + i] = get_features[i];
    n.admin.tail = (n.admin.tail + 1) % DEPTH;
    struct vfio_device_ioeventfd io = {
        .argsz = sizeof(io),
        .flags = VFIO_DEVICE_IOEVENTFD_32,
        .offset = bar.offset + 0x1000,
        .data = n.admin.tail,
        .fd = doorbell,
    };
    must(ioctl(n.device, VFIO_DEVICE_IOEVENTFD, &io) == 0);
    must(ioctl(n.device, VFIO_DEVICE_IOEVENTFD, &io) == -1 && errno == EEXIST);
    must(!counts(line));
    ring(doorbell);
    must(complete(&n, &n.admin) == 0);
    io.fd = -1;
    must(ioctl(n.device, VFIO_DEVICE_IOEVENTFD, &io) == 0);
    must(ioctl(n.device, VFIO_DEVICE_IOEVENTFD, &io) == -1 && errno == ENODEV);
    must(write(doorbell, &(uint64_t){1}, 8) == 8);
    must(taken(doorbell) == 1); /* nobody else takes it now */
    puts("done");
    return 0;
}
