/* The daemon goes away while the file is open. */
#include "client.h"

int main(void)
{
    int fd = open_node();
    int result;
    do {
        uint32_t pair[2] = {1, 0};
        errno = 0;
        result = ioctl(fd, ECHO_, pair);
        usleep(1000);
    } while (result == 7);
    /* Its socket has lost its peer: it is no emulated file any more, or the daemon cannot be reached. */
    CHECK(result == -1 && (errno == EIO || errno == ENOTTY || errno == EBADF));
    CHECK(open(NODE, O_RDWR) == -1);
    CHECK(close(fd) == 0);
    puts("done");
    return 0;
}
