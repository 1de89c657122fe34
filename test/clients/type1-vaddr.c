/*
 * A program exchanges itself for another one, as a VMM does that updates itself: it takes the user addresses of its
 * mappings away, executes, and the new program, which has the memory elsewhere, gives them new ones. The device keeps
 * its pages all the while; no group can join meanwhile; the new program is charged.
 */
#include "type1.h"

#define AT 0x200000UL
#define SIZE (4 * PAGE)

static long locked(void)
{
    char line[256];
    long pages = -1;
    FILE *status = fopen("/proc/self/status", "r");
    must(status);
    while (fgets(line, sizeof line, status))
        if (strncmp(line, "VmLck:", 6) == 0)
            pages = strtol(line + 6, NULL, 10) / 4;
    fclose(status);
    return pages;
}

static void *memory_of(int memfd)
{
    void *va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    must(va != MAP_FAILED);
    return va;
}

static void take_away(char *program)
{
    struct nvme n;
    open_device(&n, FIRST, VFIO_TYPE1v2_IOMMU);
    must(ioctl(n.container, VFIO_CHECK_EXTENSION, VFIO_UPDATE_VADDR) == 1);
    int memfd = memfd_create("guest", 0);
    must(memfd >= 0 && ftruncate(memfd, SIZE) == 0);
    uint8_t *memory = memory_of(memfd);
    memory[0] = 0x5a;
    must(map_dma(n.container, memory, AT, SIZE) == 0);
    refused(map_flags(n.container, VFIO_DMA_MAP_FLAG_VADDR, memory, AT, SIZE), EINVAL); /* it has one */
    refused(unmap_flags(n.container, VFIO_DMA_UNMAP_FLAG_VADDR, AT, PAGE), EINVAL);
    must(unmap_flags(n.container, VFIO_DMA_UNMAP_FLAG_VADDR | VFIO_DMA_UNMAP_FLAG_ALL, 0, 0) == (int64_t)SIZE);
    refused(unmap_flags(n.container, VFIO_DMA_UNMAP_FLAG_VADDR, AT, SIZE), EINVAL); /* it has none */

    char path[64], container[16], shared[16];
    snprintf(path, sizeof(path), "/dev/vfio/%d", group_of(SECOND));
    int other = open(path, O_RDWR);
    must(other >= 0);
    refused(ioctl(other, VFIO_GROUP_SET_CONTAINER, &n.container), EBUSY);
    must(close(other) == 0);

    snprintf(container, sizeof(container), "%d", n.container);
    snprintf(shared, sizeof(shared), "%d", memfd);
    execl(program, program, container, shared, NULL);
    must(0);
}

static void give_back(int container, int memfd)
{
    uint8_t *memory = memory_of(memfd);
    must(memory[0] == 0x5a);
    long before = locked();
    refused(map_flags(container, VFIO_DMA_MAP_FLAG_VADDR | VFIO_DMA_MAP_FLAG_READ, memory, AT, SIZE), EINVAL);
    refused(map_flags(container, VFIO_DMA_MAP_FLAG_VADDR, memory, AT, PAGE), EINVAL);
    refused(map_flags(container, VFIO_DMA_MAP_FLAG_VADDR, memory, AT - SIZE, SIZE), ENOENT);
    must(map_flags(container, VFIO_DMA_MAP_FLAG_VADDR, memory, AT, SIZE) == 0);
    must(locked() == before + 4);
    must(unmap_flags(container, 0, AT, SIZE) == (int64_t)SIZE);
    must(locked() == before);
    puts("vaddr");
}

int main(int count, char **arguments)
{
    if (count == 1)
        take_away(arguments[0]);
    give_back(atoi(arguments[1]), atoi(arguments[2]));
    return 0;
}
