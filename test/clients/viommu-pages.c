/*
 * Maps the pages of a virtual mock IOMMU and tries to destroy it in every state of the mapping. With the argument
 * "hold" it says "holding" once two processes map the pages, and waits to be killed.
 */
#include "iommufd-mock.h"
#include <signal.h>

static int fd;
static uint32_t device, parent;

struct pages {
    uint32_t id;
    uint64_t offset, length;
};

static struct pages alloc_viommu(uint32_t mark)
{
    struct {
        uint32_t in_data, out_data;
        uint64_t out_mmap_offset, out_mmap_length;
    } data = {.in_data = mark};
    struct {
        uint32_t size, flags, type, dev_id, hwpt_id, out_viommu_id, data_len, reserved;
        uint64_t data_uptr;
    } argument = {40, 0, TYPE_SELFTEST, device, parent, 0, sizeof data, 0, (uintptr_t)&data};
    must(request(fd, IOMMU_VIOMMU_ALLOC, &argument) == 0);
    must(data.out_data == mark && data.out_mmap_length == 2 * PAGE);
    return (struct pages){argument.out_viommu_id, data.out_mmap_offset, data.out_mmap_length};
}

static uint32_t alloc_parent(uint32_t ioas)
{
    struct {
        uint32_t size, flags, dev_id, pt_id, out_hwpt_id, reserved, data_type, data_len;
        uint64_t data_uptr;
        uint32_t fault_id, reserved2;
    } argument = {.size = 48, .flags = 1, .dev_id = device, .pt_id = ioas};
    must(request(fd, IOMMU_HWPT_ALLOC, &argument) == 0);
    return argument.out_hwpt_id;
}

static uint32_t *map_pages(const struct pages *pages)
{
    uint32_t *map = mmap(NULL, pages->length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)pages->offset);
    must(map != MAP_FAILED);
    return map;
}

/* A child that lives until the pipe's other end closes, or is killed. */
static pid_t child_that_waits(int *end)
{
    int ends[2];
    must(pipe(ends) == 0);
    pid_t child = fork();
    must(child >= 0);
    if (child == 0) {
        char byte;
        close(ends[1]);
        _exit(read(ends[0], &byte, 1) == 0 ? 0 : 1);
    }
    close(ends[0]);
    *end = ends[1];
    return child;
}

static void by_parts(void)
{
    struct pages pages = alloc_viommu(0x1234);
    uint32_t *map = map_pages(&pages);
    must(map[0] == 0x1234 && map[PAGE / 4] == 0);
    map[PAGE / 4] = 77;
    uint32_t *again = map_pages(&pages);
    must(again[PAGE / 4] == 77);
    must(destroy(fd, pages.id) == EBUSY);
    must(munmap(again, pages.length) == 0 && destroy(fd, pages.id) == EBUSY);
    must(munmap(map, PAGE) == 0 && map[PAGE / 4] == 77 && destroy(fd, pages.id) == EBUSY);
    must(munmap(map + PAGE / 4, PAGE) == 0 && destroy(fd, pages.id) == 0);
    must(mmap(NULL, 2 * PAGE, PROT_READ, MAP_SHARED, fd, (off_t)pages.offset) == MAP_FAILED && errno == ENXIO);
    /* The middle of three is taken out: two are left. */
    pages = alloc_viommu(1);
    map = map_pages(&pages);
    must(mmap(map, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == map);
    must(map[PAGE / 4] == 0 && destroy(fd, pages.id) == EBUSY);
    must(munmap(map, 2 * PAGE) == 0 && destroy(fd, pages.id) == 0);
    puts("parts");
}

static void by_children(void)
{
    struct pages pages = alloc_viommu(2);
    uint32_t *map = map_pages(&pages);
    int end;
    pid_t child = child_that_waits(&end);
    must(munmap(map, pages.length) == 0 && destroy(fd, pages.id) == EBUSY);
    close(end);
    must(waitpid(child, NULL, 0) == child && destroy(fd, pages.id) == 0);

    pages = alloc_viommu(3);
    map = map_pages(&pages);
    child = child_that_waits(&end);
    must(munmap(map, pages.length) == 0 && destroy(fd, pages.id) == EBUSY);
    must(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
    close(end);
    must(destroy(fd, pages.id) == 0);
    puts("children");
}

static void by_moves(void)
{
    struct pages pages = alloc_viommu(4);
    uint32_t *map = map_pages(&pages);
    void *place = mmap(NULL, 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(mremap(map, 2 * PAGE, 3 * PAGE, MREMAP_MAYMOVE) == MAP_FAILED && errno == EFAULT);
    must(mremap(map, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place);
    map = place;
    must(map[0] == 4 && destroy(fd, pages.id) == EBUSY);
    must(mremap(map, 2 * PAGE, PAGE, 0) == map && map[0] == 4 && destroy(fd, pages.id) == EBUSY);
    must(munmap(map, PAGE) == 0 && destroy(fd, pages.id) == 0);
    puts("moves");
}

/* They are no memory of the program: nothing can be mapped for devices through them. */
static void as_memory(uint32_t ioas)
{
    struct pages pages = alloc_viommu(5);
    uint32_t *map = map_pages(&pages);
    must(map_memory(fd, ioas, map, pages.length, 0x1000000) == EFAULT);
    must(munmap(map, pages.length) == 0 && destroy(fd, pages.id) == 0);
    puts("memory");
}

int main(int argc, char **argv)
{
    fd = open_iommu();
    uint32_t ioas = alloc_ioas(fd);
    device = mock_device(fd, ioas);
    parent = alloc_parent(ioas);
    if (argc > 1 && strcmp(argv[1], "hold") == 0) {
        struct pages pages = alloc_viommu(6);
        map_pages(&pages);
        int end;
        pid_t child = child_that_waits(&end);
        printf("holding %d\n", (int)child);
        fflush(stdout);
        pause();
    }
    by_parts();
    by_children();
    by_moves();
    as_memory(ioas);
    struct pages left = alloc_viommu(7);
    map_pages(&left); /* for the end of the program */
    return 0;
}
