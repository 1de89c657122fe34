/* Every kind of call on one file, and how it fails. */
#include "client.h"

int main(void)
{
    int fd = open_node();
    CHECK(fd == 3); /* the lowest, as open promises */
    check_echo(fd, 41);
    CHECK_FAILS(ioctl(fd, BUSY, 0), EBUSY);
    CHECK_FAILS(ioctl(fd, 0x3bff, 0), ENOTTY);
    CHECK_FAILS(ioctl(fd, TIOCGWINSZ, 0), ENOTTY);
    CHECK_FAILS(ioctl(fd, ECHO_, 8), EFAULT);
    CHECK_FAILS(ioctl(fd, ECHO_, 0x7ffffffff000), EFAULT);
    CHECK_FAILS(ioctl(fd, BUG, 0), EIO);
    check_echo(fd, 1); /* the daemon survived */
    CHECK_FAILS(open("/dev/softiommu-test/absent", O_RDWR), ENOENT);

    /* An argument at the very end of a mapping. */
    char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED && munmap(page + 4096, 4096) == 0);
    uint32_t *edge = (uint32_t *)(page + 4096 - 8);
    edge[0] = 9;
    CHECK(ioctl(fd, ECHO_, edge) == 7 && edge[1] == 10);
    CHECK(mprotect(page, 4096, PROT_READ) == 0);
    CHECK_FAILS(ioctl(fd, ECHO_, edge), EFAULT);

    /* Positioned access, long ones in pieces. */
    static unsigned char big[300000], back[300000];
    for (size_t i = 0; i < sizeof big; i++)
        big[i] = (unsigned char)(i * 7 + i / 251);
    CHECK(pwrite(fd, big, sizeof big, 100) == sizeof big);
    CHECK(pread(fd, back, sizeof back, 100) == sizeof back);
    CHECK(memcmp(big, back, sizeof big) == 0);
    CHECK(pwrite(fd, "abc", 3, 5) == 3 && pread(fd, back, 3, 5) == 3 && memcmp(back, "abc", 3) == 0);
    CHECK(pread(fd, back, 100, (1 << 20) - 10) == 10);
    CHECK(pread(fd, back, 100, 1 << 20) == 0);
    CHECK_FAILS(pread(fd, back, 4, -1), EINVAL);
    CHECK_FAILS(pread(fd, (void *)8, 4, 0), EFAULT);
    CHECK_FAILS(pwrite(fd, (void *)8, 4, 0), EFAULT);
    struct iovec parts[2] = {{back, 3}, {back + 10, 5}};
    CHECK(preadv(fd, parts, 2, 5) == 8 && memcmp(back, "abc", 3) == 0);
    CHECK(pwritev(fd, parts, 2, 50) == 8);

    /* Queue reads and their poll. */
    struct pollfd poller = {.fd = fd, .events = POLLIN};
    CHECK_FAILS(read(fd, back, 64), EAGAIN);
    CHECK(poll(&poller, 1, 0) == 0);
    CHECK(write(fd, "hello", 5) == 5);
    CHECK(poll(&poller, 1, 1000) == 1 && (poller.revents & POLLIN));
    CHECK(ioctl(fd, PUSH, 3) == 0);
    CHECK(read(fd, back, 64) == 5 && memcmp(back, "hello", 5) == 0);
    CHECK(poll(&poller, 1, 0) == 1);
    CHECK(read(fd, back, 64) == 7 && memcmp(back, "event 3", 7) == 0);
    CHECK(poll(&poller, 1, 0) == 0);
    CHECK_FAILS(read(fd, back, 64), EAGAIN);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
    CHECK(epoll_wait(epoll, &event, 1, 0) == 0);
    for (int i = 0; i < 50; i++) {
        CHECK(ioctl(fd, PUSH, i) == 0);
        CHECK(epoll_wait(epoll, &event, 1, 1000) == 1);
        CHECK(read(fd, back, 64) > 0);
        CHECK(epoll_wait(epoll, &event, 1, 0) == 0);
    }

    /* What fstat says of a node and of a file that an ioctl made. */
    struct stat status;
    CHECK(fstat(fd, &status) == 0 && S_ISCHR(status.st_mode) && (status.st_mode & 0777) == 0660);
    CHECK(status.st_rdev == makedev(240, 7));
    struct statx wide;
    CHECK(statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &wide) == 0 && S_ISCHR(wide.stx_mode));
    CHECK(wide.stx_rdev_major == 240 && wide.stx_rdev_minor == 7);

    /* Files made by an ioctl, both ways. */
    int32_t made = -1;
    CHECK(ioctl(fd, CREATE_AT, &made) == 0 && made >= 0);
    CHECK(fcntl(made, F_GETFD) == FD_CLOEXEC);
    check_echo(made, 5);
    int other = ioctl(fd, CREATE, 0);
    CHECK(other >= 0 && other != made && fcntl(other, F_GETFD) == 0);
    check_echo(other, 6);
    CHECK(fstat(other, &status) == 0 && (status.st_mode & S_IFMT) == 0);
    CHECK(ioctl(fd, WHICH, fd) == 0 && ioctl(fd, WHICH, made) == 1 && ioctl(fd, WHICH, other) == 2);
    CHECK_FAILS(ioctl(fd, WHICH, 0), EBADF);
    CHECK_FAILS(ioctl(fd, WHICH, 777), EBADF);
    CHECK_FAILS(ioctl(fd, CREATE_AT, 8), EFAULT);
    CHECK(ioctl(fd, WHICH, made) == 1);

    /* Eventfds. */
    int eventfd_ = eventfd(0, EFD_CLOEXEC);
    uint64_t count;
    CHECK(ioctl(fd, SIGNAL, eventfd_) == 0 && read(eventfd_, &count, 8) == 8 && count == 1);
    CHECK(ioctl(fd, KEEP_EVENTFD, eventfd_) == 0 && ioctl(fd, SIGNAL_KEPT, 5) == 0);
    CHECK(read(eventfd_, &count, 8) == 8 && count == 5);
    count = UINT64_MAX - 1; /* a full counter must not stop the daemon */
    CHECK(write(eventfd_, &count, 8) == 8 && ioctl(fd, SIGNAL_KEPT, 2) == 0);
    CHECK_FAILS(ioctl(fd, SIGNAL, 0), EINVAL);
    CHECK_FAILS(ioctl(fd, SIGNAL, 777), EBADF);

    /* A call that must be made again. */
    CHECK(ioctl(fd, RESTART, 3) == 4);
    CHECK_FAILS(ioctl(fd, RESTART, 100000), EFAULT);
    puts("done");
    return 0;
}
