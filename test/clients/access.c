/*
 * Accesses: pages pinned for long, bytes read and written at once, other address spaces, and unmaps
 * beneath pins.
 */
#include "iommufd-objects.h"

static int fd;

static int pin(int access, uint64_t iova, uint64_t length, void *memory, uint32_t *id)
{
    struct test_command command = {.access_pages = {1, 0, iova, length, (uintptr_t)memory}};
    int error = test(fd, OP_ACCESS_PAGES, (uint32_t)access, &command);
    *id = command.access_pages.out_id;
    return error;
}

static int word(uint32_t op, int access, uint32_t value)
{
    struct test_command command = {.word = value};
    return test(fd, op, (uint32_t)access, &command);
}

static int pinning_access(uint32_t ioas)
{
    struct test_command command = {.create_access.flags = 1};
    must(test(fd, OP_CREATE_ACCESS, ioas, &command) == 0);
    return (int)command.create_access.out_access_fd;
}

int main(void)
{
    fd = open_iommu();
    uint32_t ioas = alloc_ioas(fd), other = alloc_ioas(fd), first, second;
    uint8_t *memory = some_pages(4), bytes[PAGE + 8];
    must(map_memory(fd, ioas, memory, 4 * PAGE, APERTURE) == 0);
    int access = pinning_access(ioas), plain = create_access(fd, ioas);
    must(map_memory(fd, ioas, memory, 16, 8) == EINVAL); /* what pins wants whole pages */

    must(pin(plain, APERTURE, PAGE, memory, &first) == EOPNOTSUPP &&
         pin(access, APERTURE + 8 * PAGE, PAGE, memory, &first) == ENOENT);
    must(pin(access, APERTURE, 2 * PAGE, memory, &first) == 0 && check_refs(fd, memory, 2 * PAGE, 1) == 0);
    must(check_refs(fd, memory + 2 * PAGE, 2 * PAGE, 0) == 0);
    must(pin(access, APERTURE + PAGE, 2 * PAGE, memory + PAGE, &second) == 0 && first != second);
    must(word(OP_DESTROY_ACCESS_PAGES, access, first) == 0 &&
         word(OP_DESTROY_ACCESS_PAGES, access, first) == ENOENT);
    must(check_refs(fd, memory, PAGE, 0) == 0 && check_refs(fd, memory + PAGE, 2 * PAGE, 1) == 0);

    memset(bytes, 0x3c, sizeof bytes);
    must(access_rw(fd, plain, APERTURE + PAGE - 4, bytes, sizeof bytes, 1) == 0);
    must(memory[PAGE - 5] == 0 && memory[PAGE - 4] == 0x3c && memory[2 * PAGE + 3] == 0x3c &&
         memory[2 * PAGE + 4] == 0);
    memory[2 * PAGE] = 9;
    must(access_rw(fd, plain, APERTURE + 2 * PAGE, bytes, 1, 0) == 0 && bytes[0] == 9);
    must(access_rw(fd, plain, APERTURE + 4 * PAGE - 1, bytes, 2, 0) == ENOENT);
    must(access_rw(fd, plain, APERTURE, (void *)8, 8, 0) == EFAULT);

    /* The access is told and gives its pins back. */
    must(unmap(fd, ioas, 0, ~0UL) == 0 && check_refs(fd, memory, 4 * PAGE, 0) == 0);
    must(map_memory(fd, ioas, memory, 4 * PAGE, APERTURE) == 0 &&
         pin(access, APERTURE, PAGE, memory, &first) == 0);
    must(destroy(fd, ioas) == EBUSY && word(OP_ACCESS_REPLACE_IOAS, access, 77) == ENOENT);
    must(check_refs(fd, memory, PAGE, 1) == 0 && word(OP_ACCESS_REPLACE_IOAS, access, other) == 0);
    must(check_refs(fd, memory, PAGE, 0) == 0 && pin(access, APERTURE, PAGE, memory, &first) == ENOENT);
    must(close(plain) == 0 && destroy(fd, ioas) == 0);
    must(map_memory(fd, other, memory, PAGE, APERTURE) == 0 &&
         pin(access, APERTURE, PAGE, memory, &first) == 0);
    must(close(access) == 0 && check_refs(fd, memory, PAGE, 0) == 0 && destroy(fd, other) == 0);
    puts("access");
    return 0;
}
