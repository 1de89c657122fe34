/*
 * Paths. A routed prefix ("/sys/bus/pci", "/sys/devices/pci*") is replaced as a whole by the same path under a shadow
 * root, a real folder that the daemon filled: readdir, FILE* and symbolic links work by themselves there. What the
 * program gets back (realpath, getcwd, glob, nftw) carries the path it knows. Under /dev the shadow holds a regular
 * file for each device node, "chr MAJOR MINOR MODE": stat shows the node, open asks the daemon.
 * glibc's own calls cannot be interposed, therefore fopen, opendir and the like are. Leaves out: calls that change
 * the tree (mkdir, rename, …), fts_open, and the listing of folders above a routed one.
 */
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <glob.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "core.h"

#define MAX_ROUTES 128
#define SHADOW_FDS 65536

static struct {
    const char *root;
    const char *prefix;
    size_t root_length;
    size_t prefix_length;
    bool open_ended; /* ended in '*' */
} routes[MAX_ROUTES];
static int route_count;

/* Descriptors that may lie in a shadow tree; /proc/self/fd says whether they do. */
static uint8_t shadow_fds[SHADOW_FDS];
static bool cwd_may_be_shadow;

static struct {
    int (*openat)(int, const char *, int, ...);
    int (*open_2)(const char *, int);
    int (*openat_2)(int, const char *, int);
    FILE *(*fopen)(const char *, const char *);
    FILE *(*freopen)(const char *, const char *, FILE *);
    DIR *(*opendir)(const char *);
    int (*scandir)(const char *, struct dirent ***, int (*)(const struct dirent *),
                   int (*)(const struct dirent **, const struct dirent **));
    int (*glob)(const char *, int, int (*)(const char *, int), glob_t *);
    int (*nftw)(const char *, __nftw_func_t, int, int);
    int (*ftw)(const char *, __ftw_func_t, int);
    ssize_t (*readlinkat)(int, const char *, char *, size_t);
    ssize_t (*readlink_chk)(const char *, char *, size_t, size_t);
    ssize_t (*readlinkat_chk)(int, const char *, char *, size_t, size_t);
    char *(*realpath)(const char *, char *);
    char *(*realpath_chk)(const char *, char *, size_t);
    char *(*canonicalize)(const char *);
    int (*faccessat)(int, const char *, int, int);
    int (*chdir)(const char *);
    int (*fchdir)(int);
    char *(*getcwd)(char *, size_t);
    ssize_t (*getxattr)(const char *, const char *, void *, size_t);
    ssize_t (*lgetxattr)(const char *, const char *, void *, size_t);
    ssize_t (*listxattr)(const char *, char *, size_t);
    ssize_t (*llistxattr)(const char *, char *, size_t);
} real;

void route_init(void)
{
    real.openat = shim_next("openat64");
    real.open_2 = shim_next("__open64_2");
    real.openat_2 = shim_next("__openat64_2");
    real.fopen = shim_next("fopen64");
    real.freopen = shim_next("freopen64");
    real.opendir = shim_next("opendir");
    real.scandir = shim_next("scandir64");
    real.glob = shim_next("glob64");
    real.nftw = shim_next("nftw64");
    real.ftw = shim_next("ftw64");
    real.readlinkat = shim_next("readlinkat");
    real.readlink_chk = shim_next("__readlink_chk");
    real.readlinkat_chk = shim_next("__readlinkat_chk");
    real.realpath = shim_next("realpath");
    real.realpath_chk = shim_next("__realpath_chk");
    real.canonicalize = shim_next("canonicalize_file_name");
    real.faccessat = shim_next("faccessat");
    real.chdir = shim_next("chdir");
    real.fchdir = shim_next("fchdir");
    real.getcwd = shim_next("getcwd");
    real.getxattr = shim_next("getxattr");
    real.lgetxattr = shim_next("lgetxattr");
    real.listxattr = shim_next("listxattr");
    real.llistxattr = shim_next("llistxattr");
}

/* Both strings live as long as the program: they lie in the configuration's text. */
void route_configure(const char *root, const char *prefix)
{
    size_t length = strlen(prefix);
    if (route_count == MAX_ROUTES || prefix[0] != '/' || length < 2)
        return;
    bool open_ended = prefix[length - 1] == '*';
    routes[route_count].root = root;
    routes[route_count].root_length = strlen(root);
    routes[route_count].prefix = prefix;
    routes[route_count].prefix_length = length - open_ended;
    routes[route_count].open_ended = open_ended;
    if (route_count++ == 0) {
        char here[PATH_MAX];
        size_t n = 0;
        if (raw_syscall(SYS_getcwd, (long)here, sizeof here, 0, 0, 0, 0) > 0)
            cwd_may_be_shadow = unroute(here, &n);
    }
}

/* ---- the mapping of paths ----------------------------------------------------------------------------------- */

/* Copies without "//" and "/./"; ".." stays, it is the kernel's to resolve. NULL when too long. */
static const char *tidy(const char *path, char *out)
{
    size_t n = 0;
    for (size_t i = 0; path[i]; i++) {
        if (path[i] == '/' && path[i + 1] == '/')
            continue;
        if (path[i] == '/' && path[i + 1] == '.' && path[i + 2] == '/') {
            i++;
            continue;
        }
        if (n == PATH_MAX - 1)
            return NULL;
        out[n++] = path[i];
    }
    out[n] = 0;
    return out;
}

static const char *route_absolute(const char *path, char *out)
{
    char tidied[PATH_MAX];
    if (path[0] != '/' || (path[1] != 's' && path[1] != 'd' && path[1] != 'p' && path[1] != '/' && path[1] != '.'))
        return NULL;
    if (strstr(path, "//") || strstr(path, "/./")) {
        path = tidy(path, tidied);
        if (!path)
            return NULL;
    }
    size_t length = strlen(path);
    for (int i = 0; i < route_count; i++) {
        size_t n = routes[i].prefix_length;
        if (length < n || memcmp(path, routes[i].prefix, n) != 0)
            continue;
        if (!routes[i].open_ended && path[n] != 0 && path[n] != '/')
            continue;
        if (routes[i].root_length + length >= PATH_MAX)
            return NULL;
        memcpy(out, routes[i].root, routes[i].root_length);
        memcpy(out + routes[i].root_length, path, length + 1);
        return out;
    }
    return NULL;
}

/* The shadow folder that relative paths start from. */
static bool base_folder(int dirfd, char *out)
{
    long n;
    if (dirfd == AT_FDCWD) {
        if (!cwd_may_be_shadow)
            return false;
        n = raw_syscall(SYS_getcwd, (long)out, PATH_MAX, 0, 0, 0, 0) - 1;
    } else {
        if (dirfd < 0 || dirfd >= SHADOW_FDS || !shadow_fds[dirfd])
            return false;
        char link[32];
        snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
        n = raw_readlink(link, out, PATH_MAX - 1);
    }
    if (n <= 0)
        return false;
    out[n] = 0;
    size_t length = (size_t)n;
    char copy[PATH_MAX];
    memcpy(copy, out, length + 1);
    return unroute(copy, &length);
}

const char *route(int dirfd, const char *path, char *out)
{
    if (!attached() || !path || !route_count)
        return NULL;
    if (path[0] == '/')
        return route_absolute(path, out);
    if (path[0] == 0 || !base_folder(dirfd, out))
        return NULL;
    size_t folder = strlen(out), length = strlen(path);
    if (folder + 1 + length >= PATH_MAX)
        return NULL;
    out[folder] = '/';
    memcpy(out + folder + 1, path, length + 1);
    return out;
}

bool unroute(char *path, size_t *length)
{
    size_t n = strlen(path);
    for (int i = 0; i < route_count; i++) {
        size_t root = routes[i].root_length;
        if (n < root || memcmp(path, routes[i].root, root) != 0 || (path[root] != '/' && path[root] != 0))
            continue;
        if (path[root] == 0) {
            path[0] = '/';
            path[1] = 0;
            *length = 1;
        } else {
            memmove(path, path + root, n - root + 1);
            *length = n - root;
        }
        return true;
    }
    return false;
}

/* The path a program knows for a shadow path. */
static const char *known_path(const char *shadow)
{
    for (int i = 0; i < route_count; i++)
        if (strncmp(shadow, routes[i].root, routes[i].root_length) == 0 && shadow[routes[i].root_length] == '/')
            return shadow + routes[i].root_length;
    return shadow;
}

static bool under_dev(const char *known)
{
    return strncmp(known, "/dev/", 5) == 0;
}

void note_shadow_fd(int fd)
{
    if (fd >= 0 && fd < SHADOW_FDS)
        shadow_fds[fd] = 1;
}

/* ---- device nodes ------------------------------------------------------------------------------------------- */

/* Reads "chr MAJOR MINOR MODE"; false when the file is something else. */
static bool read_node(const char *shadow, unsigned *major, unsigned *minor, unsigned *mode)
{
    char text[64] = "";
    if (!under_dev(known_path(shadow)))
        return false;
    long fd = raw_openat(AT_FDCWD, shadow, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0);
    if (fd < 0)
        return false;
    long n = raw_read((int)fd, text, sizeof text - 1);
    raw_close((int)fd);
    return n > 0 && sscanf(text, "chr %u %u %o", major, minor, mode) == 3;
}

static void show_node(const char *shadow, struct stat *out)
{
    unsigned major, minor, mode;
    if (!S_ISREG(out->st_mode) || !read_node(shadow, &major, &minor, &mode))
        return;
    out->st_mode = S_IFCHR | (mode & 07777);
    out->st_rdev = makedev(major, minor);
    out->st_size = 0;
    out->st_blocks = 0;
}

static long routed_open(const char *shadow, int flags)
{
    const char *known = known_path(shadow);
    if (under_dev(known) && !(flags & (O_PATH | O_DIRECTORY))) {
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

#define MODE_ARGUMENT                                                                                                  \
    mode_t mode = 0;                                                                                                   \
    if (needs_mode(flags)) {                                                                                           \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode = va_arg(list, mode_t);                                                                                   \
        va_end(list);                                                                                                  \
    }

EXPORT int openat64(int dirfd, const char *path, int flags, ...)
{
    char shadow[PATH_MAX];
    MODE_ARGUMENT
    if (route(dirfd, path, shadow))
        return (int)result_of(routed_open(shadow, flags));
    return real.openat(dirfd, path, flags, mode);
}

EXPORT int openat(int dirfd, const char *path, int flags, ...) __attribute__((alias("openat64")));

EXPORT int open64(const char *path, int flags, ...)
{
    char shadow[PATH_MAX];
    MODE_ARGUMENT
    if (route(AT_FDCWD, path, shadow))
        return (int)result_of(routed_open(shadow, flags));
    return real.openat(AT_FDCWD, path, flags, mode);
}

EXPORT int open(const char *path, int flags, ...) __attribute__((alias("open64")));

EXPORT int creat64(const char *path, mode_t mode)
{
    char shadow[PATH_MAX];
    if (route(AT_FDCWD, path, shadow))
        return (int)result_of(routed_open(shadow, O_WRONLY | O_CREAT | O_TRUNC));
    return real.openat(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode);
}

EXPORT int creat(const char *path, mode_t mode) __attribute__((alias("creat64")));

EXPORT int __open64_2(const char *path, int flags)
{
    char shadow[PATH_MAX];
    if (!needs_mode(flags) && route(AT_FDCWD, path, shadow))
        return (int)result_of(routed_open(shadow, flags));
    return real.open_2(path, flags);
}

EXPORT int __open_2(const char *path, int flags) __attribute__((alias("__open64_2")));

EXPORT int __openat64_2(int dirfd, const char *path, int flags)
{
    char shadow[PATH_MAX];
    if (!needs_mode(flags) && route(dirfd, path, shadow))
        return (int)result_of(routed_open(shadow, flags));
    return real.openat_2(dirfd, path, flags);
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
    if (!route(AT_FDCWD, path, shadow))
        return real.fopen(path, mode);
    long fd = result_of(routed_open(shadow, flags_of_mode(mode)));
    if (fd < 0)
        return NULL;
    FILE *file = fdopen((int)fd, mode);
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

/* ---- stat --------------------------------------------------------------------------------------------------- */

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

/* ---- access, links, working folder -------------------------------------------------------------------------- */

EXPORT int faccessat(int dirfd, const char *path, int mode, int flags)
{
    char shadow[PATH_MAX];
    return route(dirfd, path, shadow) ? real.faccessat(AT_FDCWD, shadow, mode, flags)
                                      : real.faccessat(dirfd, path, mode, flags);
}

EXPORT int access(const char *path, int mode)
{
    return faccessat(AT_FDCWD, path, mode, 0);
}

EXPORT int euidaccess(const char *path, int mode)
{
    return faccessat(AT_FDCWD, path, mode, AT_EACCESS);
}

EXPORT int eaccess(const char *path, int mode)
{
    return faccessat(AT_FDCWD, path, mode, AT_EACCESS);
}

/* A link that leads into a shadow tree (those of /proc) is shown as the path the program knows. */
static ssize_t shown_link(char *buffer, ssize_t length, size_t size)
{
    char text[PATH_MAX];
    if (length <= 0 || (size_t)length >= size || length >= PATH_MAX || buffer[0] != '/')
        return length;
    memcpy(text, buffer, (size_t)length);
    text[length] = 0;
    size_t n = (size_t)length;
    if (!unroute(text, &n))
        return length;
    memcpy(buffer, text, n);
    return (ssize_t)n;
}

EXPORT ssize_t readlinkat(int dirfd, const char *restrict path, char *restrict buffer, size_t size)
{
    char shadow[PATH_MAX];
    if (route(dirfd, path, shadow))
        return real.readlinkat(AT_FDCWD, shadow, buffer, size);
    ssize_t length = real.readlinkat(dirfd, path, buffer, size);
    return route_count ? shown_link(buffer, length, size) : length;
}

EXPORT ssize_t readlink(const char *restrict path, char *restrict buffer, size_t size)
{
    return readlinkat(AT_FDCWD, path, buffer, size);
}

EXPORT ssize_t __readlink_chk(const char *restrict path, char *restrict buffer, size_t size, size_t room)
{
    return attached() && size <= room ? readlink(path, buffer, size) : real.readlink_chk(path, buffer, size, room);
}

EXPORT ssize_t __readlinkat_chk(int dirfd, const char *restrict path, char *restrict buffer, size_t size, size_t room)
{
    return attached() && size <= room ? readlinkat(dirfd, path, buffer, size)
                                      : real.readlinkat_chk(dirfd, path, buffer, size, room);
}

static char *shown_path(char *path)
{
    size_t length;
    if (path && route_count)
        unroute(path, &length);
    return path;
}

EXPORT char *realpath(const char *restrict path, char *restrict resolved)
{
    char shadow[PATH_MAX];
    return shown_path(real.realpath(route(AT_FDCWD, path, shadow) ? shadow : path, resolved));
}

EXPORT char *__realpath_chk(const char *restrict path, char *restrict resolved, size_t room)
{
    char shadow[PATH_MAX];
    return shown_path(real.realpath_chk(route(AT_FDCWD, path, shadow) ? shadow : path, resolved, room));
}

EXPORT char *canonicalize_file_name(const char *path)
{
    char shadow[PATH_MAX];
    return shown_path(real.canonicalize(route(AT_FDCWD, path, shadow) ? shadow : path));
}

static int moved(int result)
{
    char here[PATH_MAX];
    size_t length;
    if (result == 0 && route_count && raw_syscall(SYS_getcwd, (long)here, sizeof here, 0, 0, 0, 0) > 0)
        cwd_may_be_shadow = unroute(here, &length);
    return result;
}

EXPORT int chdir(const char *path)
{
    char shadow[PATH_MAX];
    return moved(real.chdir(route(AT_FDCWD, path, shadow) ? shadow : path));
}

EXPORT int fchdir(int fd)
{
    attached();
    return moved(real.fchdir(fd));
}

EXPORT char *getcwd(char *buffer, size_t size)
{
    attached();
    char *here = real.getcwd(buffer, size);
    return cwd_may_be_shadow ? shown_path(here) : here;
}

/* ---- folders and patterns ----------------------------------------------------------------------------------- */

EXPORT DIR *opendir(const char *path)
{
    char shadow[PATH_MAX];
    if (!route(AT_FDCWD, path, shadow))
        return real.opendir(path);
    DIR *folder = real.opendir(shadow);
    if (folder)
        note_shadow_fd(dirfd(folder));
    return folder;
}

EXPORT int scandir64(const char *restrict path, struct dirent64 ***restrict list,
                     int (*select)(const struct dirent64 *),
                     int (*compare)(const struct dirent64 **, const struct dirent64 **))
{
    char shadow[PATH_MAX];
    return real.scandir(route(AT_FDCWD, path, shadow) ? shadow : path, (struct dirent ***)list,
                        (int (*)(const struct dirent *))select,
                        (int (*)(const struct dirent **, const struct dirent **))compare);
}

EXPORT int scandir(const char *restrict path, struct dirent ***restrict list, int (*select)(const struct dirent *),
                   int (*compare)(const struct dirent **, const struct dirent **))
{
    return scandir64(path, (struct dirent64 ***)list, (int (*)(const struct dirent64 *))select,
                     (int (*)(const struct dirent64 **, const struct dirent64 **))compare);
}

EXPORT int glob64(const char *restrict pattern, int flags, int (*error)(const char *, int), glob64_t *restrict out)
{
    char shadow[PATH_MAX];
    if (!route(AT_FDCWD, pattern, shadow))
        return real.glob(pattern, flags, error, (glob_t *)out);
    int result = real.glob(shadow, flags, error, (glob_t *)out);
    size_t first = flags & GLOB_DOOFFS ? out->gl_offs : 0;
    for (size_t i = 0; result == 0 && i < out->gl_pathc; i++)
        shown_path(out->gl_pathv[first + i]);
    return result;
}

EXPORT int glob(const char *restrict pattern, int flags, int (*error)(const char *, int), glob_t *restrict out)
{
    return glob64(pattern, flags, error, (glob64_t *)out);
}

static __thread __nftw_func_t visit_nftw;
static __thread __ftw_func_t visit_ftw;

static int nftw_entry(const char *path, const struct stat *status, int kind, struct FTW *at)
{
    struct stat shown = *status;
    struct FTW there = *at;
    const char *known = known_path(path);
    show_node(path, &shown);
    there.base -= (int)(known - path);
    return visit_nftw(known, &shown, kind, &there);
}

static int ftw_entry(const char *path, const struct stat *status, int kind)
{
    struct stat shown = *status;
    show_node(path, &shown);
    return visit_ftw(known_path(path), &shown, kind);
}

EXPORT int nftw64(const char *path, __nftw64_func_t visit, int descriptors, int flags)
{
    char shadow[PATH_MAX];
    if (!route(AT_FDCWD, path, shadow))
        return real.nftw(path, (__nftw_func_t)visit, descriptors, flags);
    __nftw_func_t outer = visit_nftw;
    visit_nftw = (__nftw_func_t)visit;
    int result = real.nftw(shadow, nftw_entry, descriptors, flags);
    visit_nftw = outer;
    return result;
}

EXPORT int nftw(const char *path, __nftw_func_t visit, int descriptors, int flags)
{
    return nftw64(path, (__nftw64_func_t)visit, descriptors, flags);
}

EXPORT int ftw64(const char *path, __ftw64_func_t visit, int descriptors)
{
    char shadow[PATH_MAX];
    if (!route(AT_FDCWD, path, shadow))
        return real.ftw(path, (__ftw_func_t)visit, descriptors);
    __ftw_func_t outer = visit_ftw;
    visit_ftw = (__ftw_func_t)visit;
    int result = real.ftw(shadow, ftw_entry, descriptors);
    visit_ftw = outer;
    return result;
}

EXPORT int ftw(const char *path, __ftw_func_t visit, int descriptors)
{
    return ftw64(path, (__ftw64_func_t)visit, descriptors);
}

/* ---- extended attributes, which `ls -l` asks for ------------------------------------------------------------ */

EXPORT ssize_t getxattr(const char *path, const char *name, void *value, size_t size)
{
    char shadow[PATH_MAX];
    return real.getxattr(route(AT_FDCWD, path, shadow) ? shadow : path, name, value, size);
}

EXPORT ssize_t lgetxattr(const char *path, const char *name, void *value, size_t size)
{
    char shadow[PATH_MAX];
    return real.lgetxattr(route(AT_FDCWD, path, shadow) ? shadow : path, name, value, size);
}

EXPORT ssize_t listxattr(const char *path, char *list, size_t size)
{
    char shadow[PATH_MAX];
    return real.listxattr(route(AT_FDCWD, path, shadow) ? shadow : path, list, size);
}

EXPORT ssize_t llistxattr(const char *path, char *list, size_t size)
{
    char shadow[PATH_MAX];
    return real.llistxattr(route(AT_FDCWD, path, shadow) ? shadow : path, list, size);
}
