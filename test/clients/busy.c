/* Works without end in every way there is: for being killed at a random moment. Says "busy" once it runs. */
#include "vfio-nvme.h"
#include <pthread.h>

static struct nvme n;

static void *mapper(void *unused)
{
    (void)unused;
    for (uint64_t i = 0;; i++) {
        uint64_t iova = 0x80000000UL + i % 64 * 0x10000;
        uint8_t *data = pages(1 + i % 8);
        data[0] = 1;
        if (map_dma(n.container, data, iova, (1 + i % 8) * PAGE) == 0 && i % 3)
            unmap_dma(n.container, iova, (1 + i % 8) * PAGE);
        munmap(data, (1 + i % 8) * PAGE);
        int bell = eventfd(0, 0);
        struct {
            struct vfio_irq_set set;
            int fd;
        } irq = {{sizeof(irq), VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_PCI_MSIX_IRQ_INDEX, 0, 1}, bell};
        ioctl(n.device, VFIO_DEVICE_SET_IRQS, &irq);
        close(bell);
    }
    return NULL;
}

int main(void)
{
    start_nvme(&n, "0000:01:00.0", VFIO_TYPE1v2_IOMMU);
    uint8_t *data = pages(1);
    must(map_dma(n.container, data, 0x200000, PAGE) == 0);
    pthread_t thread;
    must(pthread_create(&thread, NULL, mapper, NULL) == 0);
    puts("busy");
    fflush(stdout);
    for (uint64_t i = 0;; i++)
        must(transfer(&n, 1 + i % 2, 0x200000, i % 1000, 8) == 0);
}
