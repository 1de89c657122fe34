/*
 * Dirty tracking: on, off and again, the bitmap with and without clearing, by larger bits, and what
 * cannot track.
 */
#include "iommufd-objects.h"

static int fd;
static uint32_t hwpt;
static uint8_t bitmap[16];

static int track(uint32_t id, uint32_t flags)
{
    uint32_t argument[4] = {sizeof argument, flags, id, 0};
    return request(fd, IOMMU_HWPT_SET_DIRTY_TRACKING, argument);
}

static int get(uint32_t flags, uint64_t iova, uint64_t length, uint64_t page_size)
{
    struct {
        uint32_t size, hwpt_id, flags, reserved;
        uint64_t iova, length, page_size, data;
    } argument = {48, hwpt, flags, 0, iova, length, page_size, (uintptr_t)bitmap};
    memset(bitmap, 0, sizeof bitmap);
    return request(fd, IOMMU_HWPT_GET_DIRTY_BITMAP, &argument);
}

/* Devices write the pages whose bits are set. */
static uint64_t dirty(uint8_t pages)
{
    uint64_t bits = pages;
    struct test_command command = {.dirty = {.iova = APERTURE, .length = 8 * PAGE, .page_size = PAGE,
         .uptr = (uintptr_t)&bits}};
    must(test(fd, OP_DIRTY, hwpt, &command) == 0);
    return command.dirty.out_count;
}

int main(void)
{
    fd = open_iommu();
    uint32_t ioas = alloc_ioas(fd);
    struct device device = plug(fd, ioas, 0), without = plug(fd, ioas, DEVICE_NO_DIRTY);
    hwpt = new_hwpt(fd, device, ioas, DIRTY_TRACKING);
    struct hwpt_alloc refused = {.flags = DIRTY_TRACKING, .dev_id = without.id, .pt_id = ioas};
    must(hwpt_alloc(fd, &refused) == EOPNOTSUPP);
    must(replace(fd, without, hwpt) == EINVAL && replace(fd, device, hwpt) == 0);

    uint8_t *memory = some_pages(8);
    for (int i = 0; i < 8; i++) /* one by one: each has a table entry of its own */
        must(map_memory(fd, ioas, memory + i * PAGE, PAGE, APERTURE + i * PAGE) == 0);
    must(track(device.hwpt, 1) == EOPNOTSUPP && track(hwpt, 2) == EOPNOTSUPP && track(ioas, 1) == ENOENT);
    must(track(hwpt, 1) == 0 && track(hwpt, 1) == 0);

    must(dirty(0x25) == 3);
    must(get(1, APERTURE, 8 * PAGE, PAGE) == 0 && bitmap[0] == 0x25);
    must(get(1, APERTURE, 8 * PAGE, 2 * PAGE) == 0 && bitmap[0] == 0x07);
    must(get(0, APERTURE, 2 * PAGE, PAGE) == 0 && bitmap[0] == 0x01);
    must(get(0, APERTURE, 8 * PAGE, PAGE) == 0 && bitmap[0] == 0x24);
    must(get(0, APERTURE, 8 * PAGE, PAGE) == 0 && bitmap[0] == 0);
    must(get(0, APERTURE, 8 * PAGE, 0) == EINVAL && get(0, APERTURE + 1, PAGE, PAGE) == EINVAL);
    must(get(0, APERTURE, 0, PAGE) == EOVERFLOW && get(2, APERTURE, PAGE, PAGE) == EOPNOTSUPP);

    must(dirty(0x80) == 1 && track(hwpt, 0) == 0 && track(hwpt, 1) == 0);
    must(get(0, APERTURE, 8 * PAGE, PAGE) == 0 && bitmap[0] == 0);
    puts("dirty");
    return 0;
}
