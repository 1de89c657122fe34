/*
 * open(2) and its relatives. A device node is opened by the daemon, any other routed path in the shadow tree. glibc's
 * own calls cannot be interposed, therefore fopen and the like are.
 */
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core.h"

static struct {
    int (*openat)(int, const char *, int, ...);
    int (*open_2)(const char *, int);
    int (*openat_2)(int, const char *, int);
    FILE *(*fopen)(const char *, const char *);
    FILE *(*freopen)(const char *, const char *, FILE *);
} real;

void open_init(void)
{
    real.openat = shim_next("openat64");
    real.open_2 = shim_next("__open64_2");
    real.openat_2 = shim_next("__openat64_2");
    real.fopen = shim_next("fopen64");
    real.freopen = shim_next("freopen64");
}

static long routed_open(int dirfd, const char *path, const char *shadow, int flags)
{
    char attribute[PATH_MAX];
    const char *known = task_attribute(dirfd, path, attribute) ? attribute : known_path(shadow);
    /* Attributes of sysfs may act when they are written; the daemon knows which. */
    bool writes = (flags & O_ACCMODE) != O_RDONLY && strncmp(known, "/sys/", 5) == 0;
    if ((known == attribute || is_served(known) || writes) && !(flags & (O_PATH | O_DIRECTORY))) {
        long fd = open_node(known, flags);
        if (fd != OPEN_PASS)
            return fd;
    }
    /* sysfs has the files it has */
    long fd = raw_openat(AT_FDCWD, shadow, flags & ~(O_CREAT | O_EXCL | O_TRUNC), 0);
    if (fd >= 0)
        note_shadow_fd((int)fd);
    return fd;
}

static bool needs_mode(int flags)
{
    return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE;
}

static int open_unrouted(int dirfd, const char *path, int flags, mode_t mode)
{
    long fd = open_status(dirfd, path, flags);
    return fd != OPEN_PASS ? (int)result_of(fd) : real.openat(dirfd, path, flags, mode);
}

#define MODE_ARGUMENT                                                                                        \
    mode_t mode = 0;                                                                                         \
    if (needs_mode(flags)) {                                                                                 \
        va_list list;                                                                                        \
        va_start(list, flags);                                                                               \
        mode = va_arg(list, mode_t);                                                                         \
        va_end(list);                                                                                        \
    }

EXPORT int openat64(int dirfd, const char *path, int flags, ...)
{
    char shadow[PATH_MAX];
    MODE_ARGUMENT
    if (route(dirfd, path, shadow))
        return (int)result_of(routed_open(dirfd, path, shadow, flags));
    return open_unrouted(dirfd, path, flags, mode);
}

EXPORT int openat(int dirfd, const char *path, int flags, ...) __attribute__((alias("openat64")));

EXPORT int open64(const char *path, int flags, ...)
{
    char shadow[PATH_MAX];
    MODE_ARGUMENT
    if (route(AT_FDCWD, path, shadow))
        return (int)result_of(routed_open(AT_FDCWD, path, shadow, flags));
    return open_unrouted(AT_FDCWD, path, flags, mode);
}

EXPORT int open(const char *path, int flags, ...) __attribute__((alias("open64")));

EXPORT int creat64(const char *path, mode_t mode)
{
    char shadow[PATH_MAX];
    if (route(AT_FDCWD, path, shadow))
        return (int)result_of(routed_open(AT_FDCWD, path, shadow, O_WRONLY | O_CREAT | O_TRUNC));
    return real.openat(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode);
}

EXPORT int creat(const char *path, mode_t mode) __attribute__((alias("creat64")));

EXPORT int __open64_2(const char *path, int flags)
{
    char shadow[PATH_MAX];
    if (!needs_mode(flags) && route(AT_FDCWD, path, shadow))
        return (int)result_of(routed_open(AT_FDCWD, path, shadow, flags));
    return needs_mode(flags) ? real.open_2(path, flags) : open_unrouted(AT_FDCWD, path, flags, 0);
}

EXPORT int __open_2(const char *path, int flags) __attribute__((alias("__open64_2")));

EXPORT int __openat64_2(int dirfd, const char *path, int flags)
{
    char shadow[PATH_MAX];
    if (!needs_mode(flags) && route(dirfd, path, shadow))
        return (int)result_of(routed_open(dirfd, path, shadow, flags));
    return needs_mode(flags) ? real.openat_2(dirfd, path, flags) : open_unrouted(dirfd, path, flags, 0);
}

EXPORT int __openat_2(int dirfd, const char *path, int flags) __attribute__((alias("__openat64_2")));

static int flags_of_mode(const char *mode)
{
    bool plus = strchr(mode, '+') != NULL;
    int flags = mode[0] == 'r' ? (plus ? O_RDWR : O_RDONLY) : (plus ? O_RDWR : O_WRONLY);
    if (mode[0] == 'a')
        flags |= O_APPEND;
    return strchr(mode, 'e') ? flags | O_CLOEXEC : flags;
}

EXPORT FILE *fopen64(const char *path, const char *mode)
{
    char shadow[PATH_MAX];
    int flags = flags_of_mode(mode);
    bool routed = route(AT_FDCWD, path, shadow);
    long fd = routed ? routed_open(AT_FDCWD, path, shadow, flags) : open_status(AT_FDCWD, path, flags);
    if (fd == OPEN_PASS)
        return real.fopen(path, mode);
    fd = result_of(fd);
    if (fd < 0)
        return NULL;
    /* Who opens a node as a stream wants its number (fileno); a file of text is read and written. */
    bool text = routed && !under_dev(known_path(shadow)) && emulated_cookie((int)fd, false);
    FILE *file = text ? emulated_stream((int)fd, mode) : fdopen((int)fd, mode);
    if (!file)
        raw_close((int)fd);
    return file;
}

EXPORT FILE *fopen(const char *path, const char *mode) __attribute__((alias("fopen64")));

EXPORT FILE *freopen64(const char *path, const char *mode, FILE *file)
{
    char shadow[PATH_MAX];
    return real.freopen(route(AT_FDCWD, path, shadow) ? shadow : path, mode, file);
}

EXPORT FILE *freopen(const char *path, const char *mode, FILE *file) __attribute__((alias("freopen64")));
