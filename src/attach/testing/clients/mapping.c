/* Mappings of an emulated file whose segments are memory. */
#include "client.h"

int main(void)
{
    int fd = open_node();
    volatile char *map = mmap(NULL, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED);
    CHECK(map[0] == 'A' && map[12287] == 'A');
    map[4096] = 'x'; /* the second segment shows offset 0 of the memory */
    volatile char *again = mmap(NULL, 12288, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(again != MAP_FAILED && again[4096] == 'x');
    CHECK(munmap((void *)again, 12288) == 0);
    CHECK(mremap((void *)map, 12288, 20480, MREMAP_MAYMOVE) == MAP_FAILED && errno == EFAULT);

    /* At a fixed place, over something else. */
    char *place = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(place != MAP_FAILED);
    CHECK(mmap(place, 12288, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == place);
    CHECK(place[4096] == 'x' && place[12288] == 0);
    CHECK(mmap(place, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == place);
    CHECK(place[4096] == 0);

    CHECK(mmap(NULL, 0, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EINVAL);
    CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 100) == MAP_FAILED && errno == EINVAL);

    /* The mapping keeps the file open; a part of it does as well. */
    int second = open_node();
    CHECK(close(fd) == 0);
    CHECK(ioctl(second, WHICH, second) == 1);
    CHECK(munmap((void *)(map + 4096), 4096) == 0);
    CHECK(map[0] == 'A' && map[8192] == 'A');
    pid_t child = fork();
    if (child == 0) {
        map[8192] = 'c';
        _exit(0);
    }
    CHECK(waitpid(child, NULL, 0) == child && map[8192] == 'c');
    CHECK(ioctl(second, CLOSED, 0) == 0);
    CHECK(munmap((void *)map, 4096) == 0 && ioctl(second, CLOSED, 0) == 0);
    CHECK(munmap((void *)map, 12288) == 0 && ioctl(second, CLOSED, 0) == 1);
    puts("done");
    return 0;
}
