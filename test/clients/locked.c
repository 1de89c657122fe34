/* What a VFIO container maps counts as locked memory of its process, and as pinned nowhere. Prints /proc/self/status. */
#include "vfio-nvme.h"

static void show(const char *what)
{
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    must(status);
    printf("%s:", what);
    while (fgets(line, sizeof line, status))
        if (strncmp(line, "VmLck:", 6) == 0 || strncmp(line, "VmPin:", 6) == 0)
            printf(" %.5s %ld", line, strtol(line + 6, NULL, 10) / 4);
    printf("\n");
    fclose(status);
}

int main(void)
{
    struct nvme n;
    open_device(&n, "0000:01:00.0", VFIO_TYPE1v2_IOMMU);
    char *memory = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(memory != MAP_FAILED);
    show("before");
    must(map_dma(n.container, memory, 0x100000, 3 * PAGE) == 0);
    must(map_dma(n.container, memory, 0x200000, 3 * PAGE) == 0);
    must(mlock(memory + 4 * PAGE, PAGE) == 0);
    show("mapped");
    must(unmap_dma(n.container, 0x100000, 3 * PAGE) == 0);
    show("unmapped once");
    return 0;
}
