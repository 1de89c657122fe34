/*
 * Paths. A routed prefix ("/sys/bus/pci", "/sys/devices/pci*") is replaced as a whole by the same path under a
 * shadow root, a real folder that the daemon filled: readdir, FILE* and symbolic links work by themselves there.
 * What the program gets back carries the path it knows. Under /dev the shadow holds a regular file for each device
 * node, "chr MAJOR MINOR MODE". The calls themselves are in open.c, status.c and folders.c. Leaves out: calls that
 * change the tree (mkdir, rename, ...), fts_open, and the listing of folders above a routed one.
 */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

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
int route_count;

/* Descriptors that may lie in a shadow tree; /proc/self/fd says whether they do. */
static uint8_t shadow_fds[SHADOW_FDS];
bool cwd_may_be_shadow;
/* The working folder is a real one with a routed prefix below it: "/dev", "/sys/bus", "/". */
static bool cwd_above_route;

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
    route_count++;
    note_cwd();
}

static bool above_route(const char *folder)
{
    size_t length = strlen(folder);
    for (int i = 0; i < route_count; i++)
        if (length == 1 || (strncmp(routes[i].prefix, folder, length) == 0 && routes[i].prefix[length] == '/'))
            return true;
    return false;
}

void note_cwd(void)
{
    char here[PATH_MAX];
    size_t length;
    if (raw_syscall(SYS_getcwd, (long)here, sizeof here, 0, 0, 0, 0) <= 0)
        return;
    cwd_may_be_shadow = unroute(here, &length);
    cwd_above_route = !cwd_may_be_shadow && above_route(here);
}

/* ---- the mapping of paths ------------------------------------------------------------------------------ */

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

/* A relative path, seen from a working folder above a routed one. */
static const char *route_from_above(const char *path, char *out)
{
    char whole[PATH_MAX];
    long here = raw_syscall(SYS_getcwd, (long)whole, sizeof whole, 0, 0, 0, 0) - 1;
    size_t length = strlen(path);
    if (here <= 0 || (size_t)here + 1 + length >= sizeof whole)
        return NULL;
    whole[here] = '/';
    memcpy(whole + here + 1, path, length + 1);
    return route_absolute(whole, out);
}

/* ---- files of fault injection in /proc ---------------------------------------------------------------- */

/* The stand-in in the shadow tree for every file in /proc of the same name; NULL: the path ends otherwise. */
static const char *stand_in(const char *path)
{
    static const char *const names[] = {"/proc/fail-nth", "/proc/make-it-fail"};
    const char *slash = strrchr(path, '/');
    const char *last = slash ? slash + 1 : path;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(last, names[i] + sizeof "/proc") == 0)
            return names[i];
    return NULL;
}

/* A folder by its descriptor, or the working folder. */
static bool folder_path(int dirfd, char *out)
{
    char link[32];
    snprintf(link, sizeof link, dirfd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", dirfd);
    long n = raw_readlink(link, out, PATH_MAX - 1);
    if (n <= 0)
        return false;
    out[n] = 0;
    return true;
}

bool task_attribute(int dirfd, const char *path, char *out)
{
    if (!stand_in(path))
        return false;
    size_t length = strlen(path), folder = 0;
    if (path[0] != '/') {
        if (!folder_path(dirfd, out))
            return false;
        folder = strlen(out);
        out[folder++] = '/';
    }
    if (folder + length >= PATH_MAX)
        return false;
    memcpy(out + folder, path, length + 1);
    return strncmp(out, "/proc/", 6) == 0;
}

const char *route(int dirfd, const char *path, char *out)
{
    if (!attached() || !path || !route_count)
        return NULL;
    if (task_attribute(dirfd, path, out))
        return route_absolute(stand_in(path), out);
    if (path[0] == '/')
        return route_absolute(path, out);
    if (path[0] == 0)
        return NULL;
    if (dirfd == AT_FDCWD && cwd_above_route)
        return route_from_above(path, out);
    if (!base_folder(dirfd, out))
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
const char *known_path(const char *shadow)
{
    for (int i = 0; i < route_count; i++)
        if (strncmp(shadow, routes[i].root, routes[i].root_length) == 0 && shadow[routes[i].root_length] == '/')
            return shadow + routes[i].root_length;
    return shadow;
}

bool under_dev(const char *known)
{
    return strncmp(known, "/dev/", 5) == 0;
}

bool is_served(const char *known)
{
    return under_dev(known) || strncmp(known, "/sys/kernel/debug/", 18) == 0;
}

void note_shadow_fd(int fd)
{
    if (fd >= 0 && fd < SHADOW_FDS)
        shadow_fds[fd] = 1;
}

/* ---- device nodes -------------------------------------------------------------------------------------- */

/* Reads "chr MAJOR MINOR MODE"; false when the file is something else. */
bool read_node(const char *shadow, unsigned *major, unsigned *minor, unsigned *mode)
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
