/*
 * Which descriptors are emulated. An emulated file is a connected socket whose peer's name begins with the daemon's;
 * its SO_COOKIE is its identity and survives dup, fork, exec and SCM_RIGHTS. A table of cookies, indexed by
 * descriptor, stands in front of the hot calls (calls.c), so that a read of an ordinary file costs one more load. The
 * library's own descriptors survive a program that closes everything.
 */
#include <dirent.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "core.h"

#define TABLE_FDS 65536

static uint64_t table[TABLE_FDS];
static char file_name[64];
static size_t file_name_length;

static struct {
    int (*close)(int);
    int (*close_range)(unsigned, unsigned, int);
    int (*dup)(int);
    int (*dup2)(int, int);
    int (*dup3)(int, int, int);
    int (*fcntl)(int, int, ...);
    ssize_t (*recvmsg)(int, struct msghdr *, int);
    int (*recvmmsg)(int, struct mmsghdr *, unsigned, int, struct timespec *);
    ssize_t (*sendmsg)(int, const struct msghdr *, int);
    int (*sendmmsg)(int, struct mmsghdr *, unsigned, int);
} real;

void files_init(void)
{
    real.close = shim_next("close");
    real.close_range = shim_next("close_range");
    real.dup = shim_next("dup");
    real.dup2 = shim_next("dup2");
    real.dup3 = shim_next("dup3");
    real.fcntl = shim_next("fcntl64");
    real.recvmsg = shim_next("recvmsg");
    real.recvmmsg = shim_next("recvmmsg");
    real.sendmsg = shim_next("sendmsg");
    real.sendmmsg = shim_next("sendmmsg");
}

/* The abstract name, without its leading NUL, that the names of all the daemon's ends begin with. */
void files_configure(const char *name)
{
    size_t length = strlen(name);
    if (length >= sizeof file_name)
        return;
    memcpy(file_name, name, length);
    file_name_length = length;
}

/* ---- which descriptors are emulated -------------------------------------------------------------------- */

bool maybe_emulated(int fd)
{
    if (!attached() || fd < 0)
        return false;
    return fd >= TABLE_FDS || __atomic_load_n(&table[fd], __ATOMIC_RELAXED) != 0;
}

static uint64_t socket_cookie(int fd)
{
    uint64_t cookie = 0;
    socklen_t length = sizeof cookie;
    return raw_getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length) == 0 ? cookie : 0;
}

static bool peer_is_daemon(int fd)
{
    struct sockaddr_un peer;
    socklen_t length = sizeof peer;
    if (!file_name_length || raw_syscall(SYS_getpeername, fd, (long)&peer, (long)&length, 0, 0, 0) != 0)
        return false;
    return peer.sun_family == AF_UNIX && length > offsetof(struct sockaddr_un, sun_path) + file_name_length &&
           peer.sun_path[0] == 0 && memcmp(peer.sun_path + 1, file_name, file_name_length) == 0;
}

/* A vfork child has its own descriptors but its parent's table. */
static void remember(int fd, uint64_t cookie)
{
    if (fd >= 0 && fd < TABLE_FDS && cookie != table[fd] && shim_own_memory())
        __atomic_store_n(&table[fd], cookie, __ATOMIC_RELAXED);
}

uint64_t emulated_cookie(int fd, bool certain)
{
    if (!attached() || fd < 0)
        return 0;
    uint64_t known = fd < TABLE_FDS ? __atomic_load_n(&table[fd], __ATOMIC_RELAXED) : 0;
    if (!known && !certain && fd < TABLE_FDS)
        return 0;
    uint64_t cookie = socket_cookie(fd);
    if (cookie && cookie == known)
        return cookie;
    if (!cookie || !peer_is_daemon(fd))
        cookie = 0;
    remember(fd, cookie);
    return cookie;
}

void note_emulated(int fd)
{
    emulated_cookie(fd, true);
}

static void copy_note(int from, int to)
{
    if (from >= 0 && from < TABLE_FDS)
        remember(to, __atomic_load_n(&table[from], __ATOMIC_RELAXED));
}

void files_scan(void)
{
    char buffer[2048];
    long folder = raw_openat(AT_FDCWD, "/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (folder < 0)
        return;
    long n;
    while ((n = raw_syscall(SYS_getdents64, folder, (long)buffer, sizeof buffer, 0, 0, 0)) > 0) {
        for (long at = 0; at < n;) {
            struct dirent64 *entry = (struct dirent64 *)(buffer + at);
            if (entry->d_name[0] != '.')
                note_emulated(atoi(entry->d_name));
            at += entry->d_reclen;
        }
    }
    raw_close((int)folder);
}

/* ---- descriptors come and go --------------------------------------------------------------------------- */

EXPORT int close(int fd)
{
    if (__builtin_expect(shim_is_kept(fd), 0))
        return (int)result_of(-EBADF);
    attached();
    return real.close(fd);
}

EXPORT int close_range(unsigned first, unsigned last, int flags)
{
    unsigned fd;
    attached();
    if (flags & CLOSE_RANGE_CLOEXEC || first > last) /* ours are close-on-exec anyway */
        return real.close_range(first, last, flags);
    for (unsigned from = first; from <= last; from = fd + 1) {
        if (!kept_range(from, &fd) || fd > last)
            return real.close_range(from, last, flags);
        if (fd > from && real.close_range(from, fd - 1, flags) < 0)
            return -1;
    }
    return 0;
}

EXPORT void closefrom(int low)
{
    close_range(low < 0 ? 0 : (unsigned)low, ~0u, 0);
}

EXPORT int dup(int fd)
{
    attached();
    int result = real.dup(fd);
    if (result >= 0)
        copy_note(fd, result);
    return result;
}

EXPORT int dup2(int from, int to)
{
    attached();
    int result = from == to ? 0 : shim_make_way(to);
    result = result < 0 ? (int)result_of(result) : real.dup2(from, to);
    if (result >= 0)
        copy_note(from, result);
    return result;
}

EXPORT int dup3(int from, int to, int flags)
{
    attached();
    int result = from == to ? 0 : shim_make_way(to);
    result = result < 0 ? (int)result_of(result) : real.dup3(from, to, flags);
    if (result >= 0)
        copy_note(from, result);
    return result;
}

EXPORT int fcntl64(int fd, int command, ...)
{
    va_list list;
    va_start(list, command);
    long argument = va_arg(list, long);
    va_end(list);
    if (attached() && command == F_ADD_SEALS && argument & F_SEAL_FUTURE_WRITE)
        adopt_seal(fd);
    int result = real.fcntl(fd, command, argument);
    if (result >= 0 && (command == F_DUPFD || command == F_DUPFD_CLOEXEC))
        copy_note(fd, result);
    return result;
}

EXPORT int fcntl(int fd, int command, ...) __attribute__((alias("fcntl64")));

static void note_received(struct msghdr *message)
{
    if (!attached() || !message->msg_control || message->msg_controllen < sizeof(struct cmsghdr))
        return;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; CMSG_LEN((i + 1) * sizeof(int)) <= c->cmsg_len; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            note_emulated(fd);
        }
    }
}

EXPORT ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    attached();
    ssize_t result = real.recvmsg(fd, message, flags);
    if (result >= 0)
        note_received(message);
    return result;
}

EXPORT int recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout)
{
    attached();
    int result = real.recvmmsg(fd, messages, count, flags, timeout);
    for (int i = 0; i < result; i++)
        note_received(&messages[i].msg_hdr);
    return result;
}

static bool sends_emulated(const struct msghdr *message)
{
    if (!message || !message->msg_control || message->msg_controllen < sizeof(struct cmsghdr))
        return false;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR((struct msghdr *)message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; CMSG_LEN((i + 1) * sizeof(int)) <= c->cmsg_len; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (maybe_emulated(fd))
                return true;
        }
    }
    return false;
}

EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    if (attached() && calls_made && sends_emulated(message))
        adopt_before_sharing();
    return real.sendmsg(fd, message, flags);
}

EXPORT int sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    if (attached() && calls_made)
        for (unsigned i = 0; i < count; i++)
            if (sends_emulated(&messages[i].msg_hdr))
                adopt_before_sharing();
    return real.sendmmsg(fd, messages, count, flags);
}
