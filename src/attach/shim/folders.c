/*
 * Links, the working folder, listings and patterns of routed paths. What leads into a shadow tree (realpath, getcwd,
 * glob, nftw, the links of /proc) is shown as the path the program knows.
 */
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <glob.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "core.h"

static struct {
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

void folders_init(void)
{
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

/* ---- access, links, working folder --------------------------------------------------------------------- */

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
    if (result == 0 && route_count)
        note_cwd();
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

/* ---- folders and patterns ------------------------------------------------------------------------------ */

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

/* ---- extended attributes, which `ls -l` asks for ------------------------------------------------------- */

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
