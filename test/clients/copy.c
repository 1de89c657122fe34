/*
 * Copies share pins: pages are pinned once however many address spaces map them, and until the last
 * unmaps them.
 */
#include "iommufd-objects.h"

static int fd;

static int copy(uint32_t to, uint32_t from, uint32_t flags, uint64_t length, uint64_t dst, uint64_t src,
     uint64_t *at)
{
    struct {
        uint32_t size, flags, dst_ioas_id, src_ioas_id;
        uint64_t length, dst_iova, src_iova;
    } argument = {40, flags, to, from, length, dst, src};
    int error = request(fd, IOMMU_IOAS_COPY, &argument);
    *at = argument.dst_iova;
    return error;
}

int main(void)
{
    fd = open_iommu();
    uint32_t one = alloc_ioas(fd), two = alloc_ioas(fd);
    uint8_t *memory = some_pages(4), *view;
    uint64_t at, word = 0;
    const uint32_t all = MAP_FIXED_IOVA | MAP_READABLE | MAP_WRITEABLE;
    must(map_memory(fd, one, memory, 4 * PAGE, APERTURE) == 0 && check_refs(fd, memory, 4 * PAGE, 0) == 0);
    struct device device = plug(fd, one, 0), other = plug(fd, two, 0);
    must(check_refs(fd, memory, 4 * PAGE, 1) == 0);

    must(copy(two, one, all, 2 * PAGE, APERTURE + PAGE, APERTURE + PAGE, &at) == 0 &&
         check_refs(fd, memory, 4 * PAGE, 1) == 0);
    must(copy(two, one, all, PAGE, APERTURE + 2 * PAGE, APERTURE, &at) == EEXIST);
    must(copy(two, one, all, 5 * PAGE, APERTURE + 8 * PAGE, APERTURE, &at) == ENOENT);
    must(copy(two, one, all, 0, APERTURE + 8 * PAGE, APERTURE, &at) == EINVAL);
    must(copy(two, 77, all, PAGE, APERTURE + 8 * PAGE, APERTURE, &at) == ENOENT);
    must(copy(two, one, MAP_READABLE, PAGE, 0, APERTURE, &at) == 0 && at == APERTURE);

    /* The first address space and the program's own mapping go; the pages stay. */
    memset(memory + PAGE, 0x5a, PAGE);
    int access = create_access(fd, two);
    must(unmap(fd, one, 0, ~0UL) == 0 && destroy(fd, device.stdev) == 0 && destroy(fd, one) == 0);
    must(check_refs(fd, memory + PAGE, 2 * PAGE, 1) == 0 && check_refs(fd, memory + 3 * PAGE, PAGE, 0) == 0);
    must(munmap(memory, 4 * PAGE) == 0);
    must(access_rw(fd, access, APERTURE + PAGE + 16, &word, sizeof word, 0) == 0 &&
         word == 0x5a5a5a5a5a5a5a5aUL);
    must(access_rw(fd, access, APERTURE, &word, sizeof word, 1) == EPERM); /* copied to be read only */

    /* A copy may not be written where the original may not. */
    view = some_pages(1);
    struct {
        uint32_t size, flags, ioas_id, reserved;
        uint64_t user_va, length, iova;
    } map = {40, MAP_FIXED_IOVA | MAP_READABLE, two, 0, (uintptr_t)view, PAGE, APERTURE + 8 * PAGE};
    must(request(fd, IOMMU_IOAS_MAP, &map) == 0);
    must(copy(two, two, all, PAGE, APERTURE + 16 * PAGE, APERTURE + 8 * PAGE, &at) == EPERM);
    must(copy(two, two, MAP_FIXED_IOVA | MAP_READABLE, PAGE, APERTURE + 16 * PAGE, APERTURE + 8 * PAGE,
         &at) == 0);
    must(check_refs(fd, view, PAGE, 1) == 0 && unmap(fd, two, APERTURE + 8 * PAGE, PAGE) == 0);
    must(check_refs(fd, view, PAGE, 1) == 0 && unmap(fd, two, APERTURE + 16 * PAGE, PAGE) == 0);
    must(check_refs(fd, view, PAGE, 0) == 0);
    must(close(access) == 0 && destroy(fd, other.stdev) == 0 && destroy(fd, two) == 0);
    puts("copy");
    return 0;
}
