/*
 * Calls on emulated descriptors: ioctl, read, write and their relatives, sent to the daemon with the first bytes of
 * the memory they name. A call on any other descriptor goes straight to libc.
 */
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "core.h"

/* Bytes of an argument that travel with the request: enough for most structures of VFIO and iommufd. */
#define PREFETCH 64

static struct {
    int (*ioctl)(int, unsigned long, ...);
    ssize_t (*read)(int, void *, size_t);
    ssize_t (*write)(int, const void *, size_t);
    ssize_t (*pread)(int, void *, size_t, off_t);
    ssize_t (*pwrite)(int, const void *, size_t, off_t);
    ssize_t (*readv)(int, const struct iovec *, int);
    ssize_t (*writev)(int, const struct iovec *, int);
    ssize_t (*preadv)(int, const struct iovec *, int, off_t);
    ssize_t (*pwritev)(int, const struct iovec *, int, off_t);
    ssize_t (*read_chk)(int, void *, size_t, size_t);
    ssize_t (*pread_chk)(int, void *, size_t, off_t, size_t);
    int (*epoll_ctl)(int, int, int, struct epoll_event *);
} real;

void calls_init(void)
{
    real.ioctl = shim_next("ioctl");
    real.read = shim_next("read");
    real.write = shim_next("write");
    real.pread = shim_next("pread64");
    real.pwrite = shim_next("pwrite64");
    real.readv = shim_next("readv");
    real.writev = shim_next("writev");
    real.preadv = shim_next("preadv64");
    real.pwritev = shim_next("pwritev64");
    real.read_chk = shim_next("__read_chk");
    real.pread_chk = shim_next("__pread64_chk");
    real.epoll_ctl = shim_next("epoll_ctl");
}

static struct file_body file_of(int fd, uint64_t cookie)
{
    return (struct file_body){.cookie = cookie, .fd = fd};
}

/* Takes the descriptors of a reply: marks them, applies close-on-exec, writes their numbers. */
static long install_files(struct exchange *x, const struct install *installs, long value)
{
    for (uint32_t i = 0; i < x->header.fds; i++) {
        if (!installs[i].close_on_exec)
            raw_fcntl(x->fds[i], F_SETFD, 0);
        note_emulated(x->fds[i]);
        if (installs[i].at) {
            int32_t number = x->fds[i];
            struct iovec from = {&number, sizeof number}, to = {(void *)installs[i].at, sizeof number};
            long wrote = raw_syscall(SYS_process_vm_writev, raw_getpid(), (long)&from, 1, (long)&to, 1, 0);
            if (wrote != sizeof number)
                value = -EFAULT;
        } else {
            value = x->fds[i];
        }
    }
    if (value < 0)
        for (uint32_t i = 0; i < x->header.fds; i++)
            raw_close(x->fds[i]);
    return value;
}

static long exchange_installing(struct exchange *x)
{
    struct install installs[EXCHANGE_FDS];
    x->reply = installs;
    x->reply_size = sizeof installs;
    long value = shim_exchange_restarting(x);
    return x->header.flags & REPLY_INSTALL ? install_files(x, installs, value) : value;
}

/* Sends `size` readable bytes along when they can be read; the kernel finds out, no handler is needed. */
static long exchange_prefetching(struct exchange *x, uint32_t *prefetched, const void *memory, size_t size)
{
    int without = x->nsend;
    if (memory && size) {
        *prefetched = (uint32_t)size;
        x->send[x->nsend++] = (struct iovec){(void *)memory, size};
        long value = exchange_installing(x);
        if (value != -EFAULT || x->header.seq != 0)
            return value;
    }
    *prefetched = 0;
    x->nsend = without;
    return exchange_installing(x);
}

bool calls_made;

static long forward_ioctl(int fd, uint64_t cookie, uint32_t request, uint64_t argument)
{
    if (shim_own_memory())
        calls_made = true;
    struct ioctl_body body = {.file = file_of(fd, cookie), .argument = argument, .request = request};
    struct exchange x = {.op = OP_IOCTL, .cancellable = true, .send = {{&body, sizeof body}}, .nsend = 1};
    /* Small integers are values, not addresses. */
    const void *memory = argument >= 65536 ? (const void *)argument : NULL;
    return exchange_prefetching(&x, &body.prefetched, memory, PREFETCH);
}

EXPORT int ioctl(int fd, unsigned long request, ...)
{
    va_list list;
    va_start(list, request);
    unsigned long argument = va_arg(list, unsigned long);
    va_end(list);
    /* The type of all VFIO and iommufd requests: an unseen descriptor may well be emulated. */
    bool certain = (request >> 8 & 0xff) == ';';
    uint64_t cookie = certain || maybe_emulated(fd) ? emulated_cookie(fd, certain) : 0;
    bool generic = request == FIOCLEX || request == FIONCLEX || request == FIONBIO || request == FIOASYNC;
    if (!cookie || generic)
        return real.ioctl(fd, request, argument);
    return (int)result_of(forward_ioctl(fd, cookie, (uint32_t)request, argument));
}

/* Takes doorbell messages up to a generation out of the socket; a later one that was taken is rung again. */
static void drain_doorbell(int fd, uint64_t cookie, uint32_t generation)
{
    uint32_t rung;
    while (raw_syscall(SYS_recvfrom, fd, (long)&rung, sizeof rung, MSG_PEEK | MSG_DONTWAIT, 0, 0) == sizeof rung) {
        if ((int32_t)(rung - generation) > 0)
            return;
        if (raw_syscall(SYS_recvfrom, fd, (long)&rung, sizeof rung, MSG_DONTWAIT, 0, 0) != sizeof rung)
            return;
        if ((int32_t)(rung - generation) > 0) {
            struct file_body body = file_of(fd, cookie);
            shim_request(OP_RING, &body, sizeof body, NULL, 0, NULL, 0, NULL, NULL);
            return;
        }
    }
}

static long transfer_once(uint32_t op, int fd, uint64_t cookie, const void *memory, size_t length, uint64_t offset)
{
    bool positioned = op == OP_PREAD || op == OP_PWRITE;
    bool writes = op == OP_WRITE || op == OP_PWRITE;
    struct transfer_body body = {
        .file = file_of(fd, cookie),
        .va = (uint64_t)memory,
        .length = length,
        .offset = offset,
        .status_flags = positioned ? 0 : (uint32_t)raw_fcntl(fd, F_GETFL, 0),
    };
    struct exchange x = {.op = op, .cancellable = !positioned, .send = {{&body, sizeof body}}, .nsend = 1};
    if (writes)
        return exchange_prefetching(&x, &body.prefetched, memory, length <= PREFETCH ? length : 0);
    uint32_t generation = 0;
    x.reply = &generation;
    x.reply_size = sizeof generation;
    long value = shim_exchange_restarting(&x);
    if (x.header.flags & REPLY_DRAIN)
        drain_doorbell(fd, cookie, generation);
    return value;
}

static ssize_t transfer(uint32_t op, int fd, uint64_t cookie, const void *memory, size_t length, uint64_t offset)
{
    bool positioned = op == OP_PREAD || op == OP_PWRITE;
    if (length > SSIZE_MAX || (positioned && (int64_t)offset < 0))
        return result_of(-EINVAL);
    size_t done = 0;
    do {
        size_t part = length - done < PROTOCOL_MAX_BODY ? length - done : PROTOCOL_MAX_BODY;
        long value = transfer_once(op, fd, cookie, (const char *)memory + done, part, offset + done);
        if (value < 0)
            return done ? (ssize_t)done : result_of(value);
        done += (size_t)value;
        if ((size_t)value < part || !positioned)
            break;
    } while (done < length);
    return (ssize_t)done;
}

/* Linux calls a driver's read or write once for each element. */
static ssize_t transfer_vector(uint32_t op, int fd, uint64_t cookie, const struct iovec *parts, int count, off_t offset)
{
    if (count < 0 || count > IOV_MAX)
        return result_of(-EINVAL);
    size_t done = 0;
    for (int i = 0; i < count; i++) {
        ssize_t value = transfer(op, fd, cookie, parts[i].iov_base, parts[i].iov_len, (uint64_t)offset + done);
        if (value < 0)
            return done ? (ssize_t)done : value;
        done += (size_t)value;
        if ((size_t)value < parts[i].iov_len)
            break;
    }
    return (ssize_t)done;
}

#define FORWARD(op, fd, memory, length, offset)                                                              \
    if (__builtin_expect(maybe_emulated(fd), 0)) {                                                           \
        uint64_t cookie = emulated_cookie(fd, false);                                                        \
        if (cookie)                                                                                          \
            return transfer(op, fd, cookie, memory, length, (uint64_t)(offset));                             \
    }
#define FORWARD_VECTOR(op, fd, parts, count, offset)                                                         \
    if (__builtin_expect(maybe_emulated(fd), 0)) {                                                           \
        uint64_t cookie = emulated_cookie(fd, false);                                                        \
        if (cookie)                                                                                          \
            return transfer_vector(op, fd, cookie, parts, count, offset);                                    \
    }

EXPORT ssize_t read(int fd, void *buffer, size_t count)
{
    FORWARD(OP_READ, fd, buffer, count, 0)
    return real.read(fd, buffer, count);
}

EXPORT ssize_t write(int fd, const void *buffer, size_t count)
{
    FORWARD(OP_WRITE, fd, buffer, count, 0)
    return real.write(fd, buffer, count);
}

EXPORT ssize_t pread64(int fd, void *buffer, size_t count, off_t offset)
{
    FORWARD(OP_PREAD, fd, buffer, count, offset)
    return real.pread(fd, buffer, count, offset);
}

EXPORT ssize_t pread(int fd, void *buffer, size_t count, off_t offset) __attribute__((alias("pread64")));

EXPORT ssize_t pwrite64(int fd, const void *buffer, size_t count, off_t offset)
{
    FORWARD(OP_PWRITE, fd, buffer, count, offset)
    return real.pwrite(fd, buffer, count, offset);
}

EXPORT ssize_t pwrite(int fd, const void *buffer, size_t count, off_t offset) __attribute__((alias("pwrite64")));

EXPORT ssize_t readv(int fd, const struct iovec *parts, int count)
{
    FORWARD_VECTOR(OP_READ, fd, parts, count, 0)
    return real.readv(fd, parts, count);
}

EXPORT ssize_t writev(int fd, const struct iovec *parts, int count)
{
    FORWARD_VECTOR(OP_WRITE, fd, parts, count, 0)
    return real.writev(fd, parts, count);
}

EXPORT ssize_t preadv64(int fd, const struct iovec *parts, int count, off_t offset)
{
    FORWARD_VECTOR(OP_PREAD, fd, parts, count, offset)
    return real.preadv(fd, parts, count, offset);
}

EXPORT ssize_t preadv(int fd, const struct iovec *parts, int count, off_t offset) __attribute__((alias("preadv64")));

EXPORT ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t offset)
{
    FORWARD_VECTOR(OP_PWRITE, fd, parts, count, offset)
    return real.pwritev(fd, parts, count, offset);
}

EXPORT ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
    __attribute__((alias("pwritev64")));

EXPORT ssize_t __read_chk(int fd, void *buffer, size_t count, size_t size)
{
    if (count <= size)
        FORWARD(OP_READ, fd, buffer, count, 0)
    return real.read_chk(fd, buffer, count, size);
}

EXPORT ssize_t __pread64_chk(int fd, void *buffer, size_t count, off_t offset, size_t size)
{
    if (count <= size)
        FORWARD(OP_PREAD, fd, buffer, count, offset)
    return real.pread_chk(fd, buffer, count, offset, size);
}

EXPORT ssize_t __pread_chk(int fd, void *buffer, size_t count, off_t offset, size_t size)
    __attribute__((alias("__pread64_chk")));

/* ---- open and fstat ------------------------------------------------------------------------------------ */

long open_node(const char *path, int flags)
{
    size_t length = strlen(path);
    struct open_body body = {.flags = (uint32_t)flags, .path_length = (uint32_t)length};
    struct exchange x = {
        .op = OP_OPEN, .cancellable = true, .send = {{&body, sizeof body}, {(void *)path, length}}, .nsend = 2};
    long value = shim_exchange(&x);
    if (x.header.flags & REPLY_PASS)
        return OPEN_PASS;
    if (value < 0 || x.header.fds != 1)
        return value < 0 ? value : -EIO;
    int fd = x.fds[0];
    if (!(flags & O_CLOEXEC))
        raw_fcntl(fd, F_SETFD, 0);
    if (flags & O_NONBLOCK)
        raw_fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK);
    note_emulated(fd);
    return fd;
}

static long ask_fstat(int fd, uint64_t cookie, struct fstat_reply *reply)
{
    struct file_body body = file_of(fd, cookie);
    return shim_request(OP_FSTAT, &body, sizeof body, reply, sizeof *reply, NULL, 0, NULL, NULL);
}

int emulated_fstat(int fd, uint64_t cookie, struct stat *out)
{
    struct fstat_reply reply = {0};
    long value = ask_fstat(fd, cookie, &reply);
    if (value < 0)
        return (int)value;
    if (raw_syscall(SYS_fstat, fd, (long)out, 0, 0, 0, 0) < 0)
        return -EBADF;
    out->st_mode = reply.mode;
    out->st_rdev = makedev(reply.major, reply.minor);
    out->st_ino = reply.inode;
    out->st_nlink = 1;
    out->st_blksize = 4096;
    return 0;
}

/* Linux refuses files that have no poll operation; the sockets that stand for them have one. */
EXPORT int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    attached();
    uint64_t cookie = operation == EPOLL_CTL_ADD && maybe_emulated(fd) ? emulated_cookie(fd, false) : 0;
    struct fstat_reply reply = {0};
    if (cookie && ask_fstat(fd, cookie, &reply) == 0 && !reply.pollable)
        return (int)result_of(-EPERM);
    return real.epoll_ctl(epoll, operation, fd, event);
}
