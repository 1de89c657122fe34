/*
 * The status file of a process in /proc, as Linux would show it: pages that the daemon holds for devices count in VmLck
 * and VmPin. The real file is read when it is opened; where there is something to add, the program gets a descriptor
 * of the text with it added. Leaves out: a descriptor that is kept open and read again shows what was counted before.
 */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "core.h"

#define STATUS_BYTES 16384
#define PAGE_KB 4

static bool ends_in_status(const char *path)
{
    size_t length = strlen(path);
    return length >= 6 && memcmp(path + length - 6, "status", 6) == 0 && (length == 6 || path[length - 7] == '/');
}

/* Whether a path that ends so leads into the folder of a process or a thread: any number or name after /proc/ does. */
static bool in_proc(int dirfd, const char *path)
{
    char folder[PATH_MAX], link[32];
    if (path[0] == '/')
        return strncmp(path, "/proc/", 6) == 0 && strchr(path + 6, '/') && strncmp(path, "/proc/sys/", 10) != 0;
    snprintf(link, sizeof link, dirfd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", dirfd);
    long n = raw_readlink(link, folder, sizeof folder - 1);
    return n > 5 && strncmp(folder, "/proc/", 6) == 0;
}

/* The number behind a label that begins a line, and where its line ends; NULL: there is none. */
static const char *value_of(const char *text, const char *label, unsigned long long *value, const char **end)
{
    const char *line = strstr(text, label);
    if (!line || (line != text && line[-1] != '\n'))
        return NULL;
    *end = strchr(line, '\n');
    *value = strtoull(line + strlen(label), NULL, 10);
    return *end ? line : NULL;
}

/* The text with pages added to one line, in `out` of the same room. */
static const char *with_pages(const char *text, const char *label, uint64_t pages, char *out)
{
    unsigned long long value;
    const char *end;
    const char *line = pages ? value_of(text, label, &value, &end) : NULL;
    if (!line)
        return text;
    int n = snprintf(out, STATUS_BYTES, "%.*s%s\t%8llu kB%s", (int)(line - text), text, label,
                     value + pages * PAGE_KB, end);
    return n < STATUS_BYTES ? out : text;
}

static long show_text(const char *text, int flags)
{
    long fd = raw_memfd_create("status", flags & O_CLOEXEC ? MFD_CLOEXEC : 0);
    size_t length = strlen(text);
    if (fd < 0)
        return fd;
    if (raw_write((int)fd, text, length) == (long)length &&
        raw_syscall(SYS_lseek, fd, 0, SEEK_SET, 0, 0, 0) == 0)
        return fd;
    raw_close((int)fd);
    return -EIO;
}

static size_t read_all(int fd, char *text)
{
    size_t length = 0;
    long n;
    while (length < STATUS_BYTES - 1 && (n = raw_read(fd, text + length, STATUS_BYTES - 1 - length)) > 0)
        length += (size_t)n;
    text[length] = 0;
    return length;
}

long open_status(int dirfd, const char *path, int flags)
{
    char text[STATUS_BYTES], locked[STATUS_BYTES], pinned[STATUS_BYTES];
    unsigned long long process;
    const char *end;
    struct pages_reply pages = {0};
    if (!attached() || !path || (flags & (O_ACCMODE | O_PATH | O_DIRECTORY)) || !ends_in_status(path) ||
        !in_proc(dirfd, path))
        return OPEN_PASS;
    long fd = raw_openat(dirfd, path, flags & ~O_CREAT, 0);
    if (fd < 0)
        return fd;
    size_t length = read_all((int)fd, text);
    struct pages_body body = {0};
    bool known = length < STATUS_BYTES - 1 && value_of(text, "Tgid:", &process, &end);
    if (known) {
        body.process = (uint32_t)process;
        known = shim_request(OP_PAGES, &body, sizeof body, &pages, sizeof pages, NULL, 0, NULL, NULL) == 0;
    }
    if (!known || (!pages.locked && !pages.pinned)) {
        raw_syscall(SYS_lseek, fd, 0, SEEK_SET, 0, 0, 0);
        return fd;
    }
    raw_close((int)fd);
    return show_text(with_pages(with_pages(text, "VmLck:", pages.locked, locked), "VmPin:", pages.pinned, pinned),
                     flags);
}
