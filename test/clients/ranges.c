/*
 * Which IOVAs can be used: reserved, allowed and those of what is attached; where automatic ones go; the
 * options.
 */
#include "iommufd-objects.h"

struct range {
    uint64_t start, last;
};

static int fd;

static int usable(uint32_t ioas, struct range *ranges, uint32_t *count, uint64_t *alignment)
{
    struct {
        uint32_t size, ioas_id, num_iovas, reserved;
        uint64_t allowed_iovas, alignment;
    } argument = {32, ioas, *count, 0, (uintptr_t)ranges, 0};
    int error = request(fd, IOMMU_IOAS_IOVA_RANGES, &argument);
    *count = argument.num_iovas;
    *alignment = argument.alignment;
    return error;
}

static int allow(uint32_t ioas, struct range *ranges, uint32_t count)
{
    struct {
        uint32_t size, ioas_id, num_iovas, reserved;
        uint64_t allowed_iovas;
    } argument = {24, ioas, count, 0, (uintptr_t)ranges};
    return request(fd, IOMMU_IOAS_ALLOW_IOVAS, &argument);
}

static int reserve(uint32_t ioas, uint64_t start, uint64_t length)
{
    struct test_command command = {.add_reserved = {start, length}};
    return test(fd, OP_ADD_RESERVED, ioas, &command);
}

/* Where the kernel puts it. */
static int place(uint32_t ioas, void *memory, uint64_t length, uint64_t *iova)
{
    struct {
        uint32_t size, flags, ioas_id, reserved;
        uint64_t user_va, length, iova;
    } argument = {40, MAP_READABLE | MAP_WRITEABLE, ioas, 0, (uintptr_t)memory, length, 0};
    int error = request(fd, IOMMU_IOAS_MAP, &argument);
    *iova = argument.iova;
    return error;
}

static int option(uint32_t id, uint16_t op, uint32_t object, uint64_t *value)
{
    struct {
        uint32_t size, option_id;
        uint16_t op, reserved;
        uint32_t object_id;
        uint64_t val64;
    } argument = {24, id, op, 0, object, *value};
    int error = request(fd, IOMMU_OPTION, &argument);
    *value = argument.val64;
    return error;
}

static void ranges(uint8_t *memory)
{
    uint32_t ioas = alloc_ioas(fd), count = 8;
    uint64_t alignment, iova;
    struct range seen[8];
    must(usable(ioas, seen, &count, &alignment) == 0 && count == 1 && alignment == 1);
    must(seen[0].start == 0 && seen[0].last == ~0UL);
    must(reserve(ioas, 0x4000, 0x2000) == 0 && reserve(ioas, 0x5000, 0x2000) == 0);
    count = 1;
    must(usable(ioas, seen, &count, &alignment) == EMSGSIZE && count == 2);
    must(usable(ioas, seen, &count, &alignment) == 0 && seen[0].last == 0x3fff && seen[1].start == 0x7000);
    must(map_memory(fd, ioas, memory, PAGE, 0x6000) == EINVAL);

    struct range wanted[] = {{0x10000, 0x10fff}, {0x8000, 0x8fff}};
    must(allow(ioas, wanted, 2) == 0 && reserve(ioas, 0x8000, 0x1000) == EADDRINUSE);
    must(place(ioas, memory, PAGE, &iova) == 0 && iova == 0x8000);
    must(place(ioas, memory, PAGE, &iova) == 0 && iova == 0x10000);
    must(place(ioas, memory, PAGE, &iova) == ENOSPC && map_memory(fd, ioas, memory, PAGE, 0x20000) == 0);
    wanted[1] = (struct range){0x6000, 0x6fff};
    must(allow(ioas, wanted, 2) == EADDRINUSE);
    wanted[1] = wanted[0];
    must(allow(ioas, wanted, 2) == EINVAL && allow(ioas, wanted, 0) == 0);
    must(place(ioas, memory, PAGE, &iova) == 0 && iova == 0x1000);
    must(unmap(fd, ioas, 0, ~0UL) == 0 && destroy(fd, ioas) == 0);
}

static void attached(uint8_t *memory)
{
    uint32_t ioas = alloc_ioas(fd), count = 4;
    uint64_t alignment;
    struct range seen[4];
    must(map_memory(fd, ioas, memory + 8, 16, APERTURE + 8) == 0); /* bytes, while nothing is attached */
    struct test_command command = {0};
    must(test(fd, OP_MOCK_DOMAIN, ioas, &command) == EADDRINUSE && unmap(fd, ioas, APERTURE + 8, 16) == 0);
    struct device device = plug(fd, ioas, 0);
    must(usable(ioas, seen, &count, &alignment) == 0 && count == 1 && alignment == 2048);
    must(seen[0].start == APERTURE && seen[0].last == 0x7fffffff);
    must(map_memory(fd, ioas, memory, PAGE, 0) == EINVAL &&
         map_memory(fd, ioas, memory, PAGE, APERTURE + 8) == EINVAL);
    must(map_memory(fd, ioas, memory, 2048, APERTURE + 2048) == 0 &&
         unmap(fd, ioas, APERTURE + 2048, 1024) == ENOENT);

    uint64_t value = 0;
    must(option(1, 0, ioas, &value) == EINVAL && unmap(fd, ioas, 0, ~0UL) == 0 &&
         option(1, 0, ioas, &value) == 0);
    value = 9;
    must(option(1, 1, ioas, &value) == 0 && value == 0);
    count = 4;
    must(usable(ioas, seen, &count, &alignment) == 0 && alignment == PAGE);
    must(map_memory(fd, ioas, memory, 2048, APERTURE + 2048) == EINVAL);
    must(destroy(fd, device.stdev) == 0);
    value = 1;
    must(option(1, 0, ioas, &value) == 0 && option(0, 0, 0, &value) == EBUSY && destroy(fd, ioas) == 0);
    must(option(0, 0, 0, &value) == 0 && option(7, 1, 0, &value) == EOPNOTSUPP &&
         option(1, 1, 77, &value) == ENOENT);
}

int main(void)
{
    fd = open_iommu();
    uint8_t *memory = some_pages(4);
    ranges(memory);
    attached(memory);
    puts("ranges");
    return 0;
}
