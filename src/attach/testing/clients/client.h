/* Shared by the test clients: the requests of testing/fake-node.ts and a check that says where it failed. */
#ifndef CLIENT_H
#define CLIENT_H
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NODE "/dev/softiommu-test/echo"
enum {
    ECHO_ = 0x3b01, BUSY, CREATE_AT, CREATE, SIGNAL, KEEP_EVENTFD, SUSPEND, RESUME, BUG, WHICH, RESTART, WHOAMI, PUSH,
    SIGNAL_KEPT, COUNT, NOTHING, CLOSED, MAPPED
};

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s (errno %d %s)\n", __FILE__, __LINE__, #condition, errno, strerror(errno));      \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)
#define CHECK_FAILS(call, error) CHECK((errno = 0, (call) == -1 && errno == (error)))

static inline int open_node(void)
{
    int fd = open(NODE, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

static inline void check_echo(int fd, uint32_t value)
{
    uint32_t pair[2] = {value, 0};
    CHECK(ioctl(fd, ECHO_, pair) == 7);
    CHECK(pair[1] == value + 1);
}
#endif
