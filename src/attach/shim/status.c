/*
 * stat(2) and its relatives, by path and by descriptor: a device node of the shadow tree and an emulated descriptor
 * look like what they stand for.
 */
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "core.h"

void show_node(const char *shadow, struct stat *out)
{
    unsigned major, minor, mode;
    if (!S_ISREG(out->st_mode) || !read_node(shadow, &major, &minor, &mode))
        return;
    out->st_mode = S_IFCHR | (mode & 07777);
    out->st_rdev = makedev(major, minor);
    out->st_size = 0;
    out->st_blocks = 0;
}

static int stat_at(int dirfd, const char *path, struct stat *out, int flags)
{
    char shadow[PATH_MAX];
    if (path && path[0] == 0 && (flags & AT_EMPTY_PATH) && maybe_emulated(dirfd)) {
        uint64_t cookie = emulated_cookie(dirfd, false);
        if (cookie)
            return (int)result_of(emulated_fstat(dirfd, cookie, out));
    }
    if (!route(dirfd, path, shadow))
        return (int)result_of(raw_syscall(SYS_newfstatat, dirfd, (long)path, (long)out, flags, 0, 0));
    long result = raw_syscall(SYS_newfstatat, AT_FDCWD, (long)shadow, (long)out, flags, 0, 0);
    if (result == 0)
        show_node(shadow, out);
    return (int)result_of(result);
}

static int stat_fd(int fd, struct stat *out)
{
    uint64_t cookie = maybe_emulated(fd) ? emulated_cookie(fd, false) : 0;
    return (int)result_of(cookie ? emulated_fstat(fd, cookie, out) : raw_syscall(SYS_fstat, fd, (long)out, 0, 0, 0, 0));
}

EXPORT int fstatat(int dirfd, const char *restrict path, struct stat *restrict out, int flags)
{
    return stat_at(dirfd, path, out, flags);
}

EXPORT int stat(const char *restrict path, struct stat *restrict out)
{
    return stat_at(AT_FDCWD, path, out, 0);
}

EXPORT int lstat(const char *restrict path, struct stat *restrict out)
{
    return stat_at(AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW);
}

EXPORT int fstat(int fd, struct stat *out)
{
    return stat_fd(fd, out);
}

/* On x86-64 struct stat64 is struct stat. The __x forms are what programs built before glibc 2.33 call. */
#define STAT64 struct stat64
EXPORT int fstatat64(int dirfd, const char *restrict path, STAT64 *restrict out, int flags)
{
    return stat_at(dirfd, path, (struct stat *)out, flags);
}

EXPORT int stat64(const char *restrict path, STAT64 *restrict out)
{
    return stat_at(AT_FDCWD, path, (struct stat *)out, 0);
}

EXPORT int lstat64(const char *restrict path, STAT64 *restrict out)
{
    return stat_at(AT_FDCWD, path, (struct stat *)out, AT_SYMLINK_NOFOLLOW);
}

EXPORT int fstat64(int fd, STAT64 *out)
{
    return stat_fd(fd, (struct stat *)out);
}

EXPORT int __xstat(int version, const char *path, struct stat *out)
{
    (void)version;
    return stat_at(AT_FDCWD, path, out, 0);
}

EXPORT int __lxstat(int version, const char *path, struct stat *out)
{
    (void)version;
    return stat_at(AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW);
}

EXPORT int __fxstat(int version, int fd, struct stat *out)
{
    (void)version;
    return stat_fd(fd, out);
}

EXPORT int __fxstatat(int version, int dirfd, const char *path, struct stat *out, int flags)
{
    (void)version;
    return stat_at(dirfd, path, out, flags);
}

EXPORT int __xstat64(int version, const char *path, STAT64 *out)
{
    return __xstat(version, path, (struct stat *)out);
}

EXPORT int __lxstat64(int version, const char *path, STAT64 *out)
{
    return __lxstat(version, path, (struct stat *)out);
}

EXPORT int __fxstat64(int version, int fd, STAT64 *out)
{
    return __fxstat(version, fd, (struct stat *)out);
}

EXPORT int __fxstatat64(int version, int dirfd, const char *path, STAT64 *out, int flags)
{
    return __fxstatat(version, dirfd, path, (struct stat *)out, flags);
}

static void show_in_statx(struct statx *out, const struct stat *shown)
{
    out->stx_mode = (uint16_t)shown->st_mode;
    out->stx_rdev_major = major(shown->st_rdev);
    out->stx_rdev_minor = minor(shown->st_rdev);
    out->stx_size = (uint64_t)shown->st_size;
    out->stx_blocks = (uint64_t)shown->st_blocks;
}

EXPORT int statx(int dirfd, const char *restrict path, int flags, unsigned mask, struct statx *restrict out)
{
    char shadow[PATH_MAX];
    struct stat shown;
    uint64_t cookie = path[0] == 0 && maybe_emulated(dirfd) ? emulated_cookie(dirfd, false) : 0;
    const char *routed = cookie ? NULL : route(dirfd, path, shadow);
    long result = raw_syscall(SYS_statx, routed ? AT_FDCWD : dirfd, (long)(routed ? routed : path), flags, mask,
                              (long)out, 0);
    if (result == 0 && cookie) {
        result = emulated_fstat(dirfd, cookie, &shown);
        if (result == 0) {
            show_in_statx(out, &shown);
            out->stx_ino = shown.st_ino;
        }
    } else if (result == 0 && routed && S_ISREG(out->stx_mode)) {
        shown = (struct stat){.st_mode = S_IFREG};
        show_node(shadow, &shown);
        if (!S_ISREG(shown.st_mode))
            show_in_statx(out, &shown);
    }
    return (int)result_of(result);
}
