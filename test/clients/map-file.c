/* Maps files for devices: memfds whose descriptor and mapping go, sealed ones, and dma-bufs, which are revoked. */
#include "iommufd-mock.h"
#include <sys/syscall.h>

#define IOVA 0x1000000UL

static int fd;
static uint32_t ioas;
static int access_fd;

static int dmabuf_get(uint32_t length, uint32_t open_flags)
{
    struct test_command command = {.size = sizeof command, .op = OP_DMABUF_GET};
    command.dmabuf_get.length = length;
    command.dmabuf_get.open_flags = open_flags;
    return ioctl(fd, IOMMU_TEST_CMD, &command);
}

static int dmabuf_revoke(int file, uint32_t revoked)
{
    struct test_command command = {.size = sizeof command, .op = OP_DMABUF_REVOKE};
    command.dmabuf_revoke.dmabuf_fd = file;
    command.dmabuf_revoke.revoked = revoked;
    return request(fd, IOMMU_TEST_CMD, &command);
}

static void memfd_outlives_its_descriptor(void)
{
    uint8_t pattern[3 * PAGE], seen[3 * PAGE];
    for (size_t i = 0; i < sizeof pattern; i++)
        pattern[i] = (uint8_t)(i * 7 + (i >> 12));
    int file = memfd_create("dma", MFD_CLOEXEC);
    must(file >= 0 && write(file, pattern, sizeof pattern) == (ssize_t)sizeof pattern);
    must(map_file(fd, ioas, file, 0, sizeof pattern, IOVA) == 0);
    must(map_file(fd, ioas, file, PAGE, sizeof pattern, IOVA + 0x100000) == EINVAL);
    uint8_t *map = mmap(NULL, sizeof pattern, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    must(map != MAP_FAILED && close(file) == 0);
    must(access_rw(fd, access_fd, IOVA, seen, sizeof seen, 0) == 0 && memcmp(seen, pattern, sizeof seen) == 0);
    must(access_rw(fd, access_fd, IOVA + PAGE - 4, "eightby", 8, 1) == 0);
    must(memcmp(map + PAGE - 4, "eightby", 8) == 0);
    must(munmap(map, sizeof pattern) == 0);
    memcpy(pattern + PAGE - 4, "eightby", 8);
    must(access_rw(fd, access_fd, IOVA, seen, sizeof seen, 0) == 0 && memcmp(seen, pattern, sizeof seen) == 0);
    must(unmap(fd, ioas, IOVA, sizeof pattern) == 0);
    must(access_rw(fd, access_fd, IOVA, seen, 1, 0) == ENOENT);
    puts("memfd");
}

/* How a file was opened does not matter, what it is does. */
static void only_memory_and_however_it_was_opened(void)
{
    int file = memfd_create("memory", MFD_CLOEXEC), other = open("/proc/version", O_RDONLY);
    must(file >= 0 && other >= 0 && ftruncate(file, PAGE) == 0);
    char path[64], seen[4];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    int reader = open(path, O_RDONLY | O_CLOEXEC);
    must(reader >= 0 && map_file(fd, ioas, reader, 0, PAGE, IOVA) == 0 && close(reader) == 0);
    must(access_rw(fd, access_fd, IOVA + 100, "DMA", 4, 1) == 0);
    must(pread(file, seen, 4, 100) == 4 && strcmp(seen, "DMA") == 0);
    must(unmap(fd, ioas, IOVA, PAGE) == 0 && close(file) == 0);
    must(map_file(fd, ioas, other, 0, PAGE, IOVA) == EINVAL && close(other) == 0);
    must(map_file(fd, ioas, fd, 0, PAGE, IOVA) == EINVAL && map_file(fd, ioas, 1000, 0, PAGE, IOVA) == EBADF);
    puts("memory");
}

/* Later mappings may not write (F_SEAL_FUTURE_WRITE); what the kernel does for devices is no mapping. */
static void sealed_memfd_is_written_by_devices(void)
{
    int file = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    must(file >= 0 && ftruncate(file, 2 * PAGE) == 0);
    uint8_t *map = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    must(map != MAP_FAILED && fcntl(file, F_ADD_SEALS, 0x10) == 0 && fcntl(file, F_GET_SEALS) == 0x10);
    must(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) == MAP_FAILED && errno == EPERM);
    must(map_file(fd, ioas, file, 0, 2 * PAGE, IOVA) == 0);
    must(access_rw(fd, access_fd, IOVA + PAGE - 2, "DMA", 3, 1) == 0 && memcmp(map + PAGE - 2, "DMA", 3) == 0);
    must(munmap(map, 2 * PAGE) == 0);
    char seen[3];
    must(access_rw(fd, access_fd, IOVA + PAGE, "!", 1, 1) == 0);
    must(access_rw(fd, access_fd, IOVA + PAGE - 2, seen, 3, 0) == 0 && memcmp(seen, "DM!", 3) == 0);
    must(unmap(fd, ioas, IOVA, 2 * PAGE) == 0 && close(file) == 0);
    puts("sealed");
}

/* Sealed behind the library's back, as by a program that is not attached: it can be read, and written where it is mapped. */
static void memfd_sealed_elsewhere_is_read(void)
{
    int file = memfd_create("elsewhere", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    must(file >= 0 && ftruncate(file, PAGE) == 0);
    char *map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0), seen[4];
    must(map != MAP_FAILED && syscall(SYS_fcntl, file, F_ADD_SEALS, 0x10) == 0);
    strcpy(map, "old");
    must(map_file(fd, ioas, file, 0, PAGE, IOVA) == 0);
    must(access_rw(fd, access_fd, IOVA, seen, 4, 0) == 0 && strcmp(seen, "old") == 0);
    must(access_rw(fd, access_fd, IOVA, "new", 4, 1) == EFAULT);
    must(map_memory(fd, ioas, map, PAGE, IOVA + PAGE) == 0);
    must(access_rw(fd, access_fd, IOVA + PAGE, "new", 4, 1) == 0 && strcmp(map, "new") == 0);
    must(access_rw(fd, access_fd, IOVA, seen, 4, 0) == 0 && strcmp(seen, "new") == 0);
    must(unmap(fd, ioas, IOVA, 2 * PAGE) == 0 && munmap(map, PAGE) == 0 && close(file) == 0);
    puts("elsewhere");
}

static void dmabuf_is_mapped_and_revoked(void)
{
    uint8_t byte;
    must(dmabuf_get(0, 0) == -1 && errno == EINVAL);
    must(dmabuf_get(0x200001, 0) == -1 && errno == EINVAL);
    int file = dmabuf_get(3 * PAGE + 1, O_CLOEXEC), plain = dmabuf_get(1, 0);
    must(file >= 0 && plain >= 0);
    must(fcntl(file, F_GETFD) == FD_CLOEXEC && fcntl(plain, F_GETFD) == 0);
    must(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, file, 0) == MAP_FAILED && errno == EINVAL);
    must(map_file(fd, ioas, file, 0, 5 * PAGE, IOVA) == EINVAL);
    must(map_file(fd, ioas, file, 4 * PAGE, PAGE, IOVA) == EINVAL);
    must(map_file(fd, ioas, file, PAGE, 3 * PAGE, IOVA) == 0);
    must(map_file(fd, ioas, plain, 0, PAGE, IOVA + 0x100000) == 0);
    must(access_rw(fd, access_fd, IOVA, &byte, 1, 0) == EINVAL);
    must(dmabuf_revoke(file, 1) == 0 && dmabuf_revoke(file, 1) == 0);
    must(map_file(fd, ioas, file, 0, PAGE, IOVA + 0x200000) == ENODEV);
    must(access_rw(fd, access_fd, IOVA, &byte, 1, 0) == EINVAL);
    must(unmap(fd, ioas, IOVA, 3 * PAGE) == 0);
    must(dmabuf_revoke(file, 0) == 0 && map_file(fd, ioas, file, 0, PAGE, IOVA) == 0);
    must(dmabuf_revoke(fd, 1) == EINVAL && dmabuf_revoke(1000, 1) == EBADF);
    int ordinary = memfd_create("ordinary", MFD_CLOEXEC);
    must(ordinary >= 0 && dmabuf_revoke(ordinary, 1) == EINVAL && close(ordinary) == 0);
    must(close(file) == 0 && close(plain) == 0);
    puts("dma-buf"); /* both are mapped at the end of the program */
}

int main(void)
{
    fd = open_iommu();
    ioas = alloc_ioas(fd);
    mock_device(fd, ioas);
    access_fd = create_access(fd, ioas);
    memfd_outlives_its_descriptor();
    only_memory_and_however_it_was_opened();
    sealed_memfd_is_written_by_devices();
    memfd_sealed_elsewhere_is_read();
    dmabuf_is_mapped_and_revoked();
    return 0;
}
