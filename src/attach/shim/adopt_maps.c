/*
 * Asks the kernel what this process maps: PROCMAP_QUERY (Linux 6.11) where there is one, else the text of
 * /proc/self/maps. Nothing is remembered, because memory is unmapped and moved by calls inside libc that nobody sees.
 */
#include "adopt_maps.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>

#include "shim.h"

/* linux/fs.h, for headers that are older. */
struct query {
    uint64_t size, flags, address;
    uint64_t start, end, vma_flags, page_size, offset, inode;
    uint32_t major, minor, name_size, build_id_size;
    uint64_t name, build_id;
};
#define QUERY 0xc0686611ul
#define QUERY_SHARED 0x08
#define QUERY_NEXT 0x10
#define QUERY_FILE_BACKED 0x20

struct adopt_file_id adopt_file_id_of(const struct stat *status)
{
    return (struct adopt_file_id){major(status->st_dev), minor(status->st_dev), status->st_ino};
}

static bool same_file(const struct adopt_file_id *a, uint32_t major_number, uint32_t minor_number, uint64_t inode)
{
    return a->inode == inode && a->major == major_number && a->minor == minor_number;
}

/* ---- text --------------------------------------------------------------------------------------------------- */

struct reader {
    int fd;
    char buffer[4096];
    size_t length;
    size_t at;
};

static int next_char(struct reader *reader)
{
    if (reader->at == reader->length) {
        long got;
        do
            got = raw_read(reader->fd, reader->buffer, sizeof reader->buffer);
        while (got == -EINTR);
        if (got <= 0)
            return -1;
        reader->length = (size_t)got;
        reader->at = 0;
    }
    return (unsigned char)reader->buffer[reader->at++];
}

/* One line without its end, cut to the buffer; false at the end. */
static bool next_line(struct reader *reader, char *line, size_t size)
{
    size_t length = 0;
    int c = next_char(reader);
    if (c < 0)
        return false;
    for (; c >= 0 && c != '\n'; c = next_char(reader))
        if (length + 1 < size)
            line[length++] = (char)c;
    line[length] = 0;
    return true;
}

static uint64_t number(const char **text, unsigned base)
{
    uint64_t value = 0;
    for (;; (*text)++) {
        char c = **text;
        unsigned digit = c >= '0' && c <= '9' ? (unsigned)(c - '0') : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10 : 99;
        if (digit >= base)
            return value;
        value = value * base + digit;
    }
}

/* "start-end rwxs offset major:minor inode name" */
static bool parse(const char *text, struct adopt_vma *vma, struct adopt_file_id *file, bool *shared)
{
    vma->start = number(&text, 16);
    if (*text++ != '-')
        return false;
    vma->end = number(&text, 16);
    if (*text++ != ' ' || strlen(text) < 5)
        return false;
    vma->prot = (text[0] == 'r' ? PROT_READ : 0) | (text[1] == 'w' ? PROT_WRITE : 0) | (text[2] == 'x' ? PROT_EXEC : 0);
    *shared = text[3] == 's';
    text += 5;
    vma->offset = number(&text, 16);
    text++;
    file->major = (uint32_t)number(&text, 16);
    text++;
    file->minor = (uint32_t)number(&text, 16);
    text++;
    file->inode = number(&text, 10);
    return true;
}

static bool next_in_text(const struct adopt_file_id *file, uint64_t start, struct adopt_vma *out)
{
    struct reader reader = {.fd = (int)raw_openat(AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0)};
    if (reader.fd < 0)
        return false;
    char line[256];
    bool found = false;
    while (!found && next_line(&reader, line, sizeof line)) {
        struct adopt_file_id owner;
        bool shared;
        found = parse(line, out, &owner, &shared) && shared && out->end > start &&
                same_file(file, owner.major, owner.minor, owner.inode);
    }
    raw_close(reader.fd);
    return found;
}

/* ---- queries ------------------------------------------------------------------------------------------------ */

/* 1 found, 0 none, or -errno. */
static int next_by_query(int maps, const struct adopt_file_id *file, uint64_t start, uint64_t limit,
                         struct adopt_vma *out)
{
    struct query query;
    for (uint64_t at = start; at < limit; at = query.end) {
        query = (struct query){
            .size = sizeof query, .flags = QUERY_SHARED | QUERY_NEXT | QUERY_FILE_BACKED, .address = at};
        long result = raw_ioctl(maps, QUERY, (unsigned long)&query);
        if (result == -ENOENT)
            return 0;
        if (result < 0)
            return (int)result;
        if (!same_file(file, query.major, query.minor, query.inode))
            continue;
        *out = (struct adopt_vma){query.start, query.end, query.offset, (int)(query.vma_flags & 7)};
        return 1;
    }
    return 0;
}

static bool next_of(int maps, const struct adopt_file_id *file, uint64_t start, uint64_t limit, struct adopt_vma *out)
{
    int result = next_by_query(maps, file, start, limit, out);
    return result < 0 ? next_in_text(file, start, out) : result > 0;
}

bool adopt_maps_next(const struct adopt_file_id *file, uint64_t start, uint64_t end, struct adopt_vma *out)
{
    int maps = (int)raw_openat(AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0);
    if (maps < 0)
        return false;
    bool found = next_of(maps, file, start, end, out) && out->start < end;
    raw_close(maps);
    if (!found)
        return false;
    if (out->start < start) {
        out->offset += start - out->start;
        out->start = start;
    }
    if (out->end > end)
        out->end = end;
    return true;
}

struct adopt_vma *adopt_maps_list(const struct adopt_file_id *file, size_t *count, size_t *bytes)
{
    *count = *bytes = 0;
    int maps = (int)raw_openat(AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0);
    if (maps < 0)
        return NULL;
    struct adopt_vma *list = NULL;
    struct adopt_vma vma;
    for (uint64_t at = 0; next_of(maps, file, at, ~UINT64_C(0), &vma); at = vma.end) {
        if ((*count + 1) * sizeof vma > *bytes) {
            size_t larger = *bytes ? *bytes * 2 : 4096;
            long fresh = raw_mmap(NULL, larger, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (fresh < 0 && fresh > -4096)
                break;
            if (list) {
                memcpy((void *)fresh, list, *bytes);
                raw_munmap(list, *bytes);
            }
            list = (struct adopt_vma *)fresh;
            *bytes = larger;
        }
        list[(*count)++] = vma;
    }
    raw_close(maps);
    return list;
}

/* ---- flags -------------------------------------------------------------------------------------------------- */

bool adopt_maps_dontfork(uint64_t va)
{
    struct reader reader = {.fd = (int)raw_openat(AT_FDCWD, "/proc/self/smaps", O_RDONLY | O_CLOEXEC, 0)};
    if (reader.fd < 0)
        return false;
    char line[256];
    bool here = false, found = false;
    while (next_line(&reader, line, sizeof line)) {
        struct adopt_vma vma;
        struct adopt_file_id file;
        bool shared;
        if (strncmp(line, "VmFlags:", 8) == 0 && here) {
            found = strstr(line, " dc") != NULL;
            break;
        }
        if (line[0] >= 'A' && line[0] <= 'Z')
            continue;
        if (parse(line, &vma, &file, &shared))
            here = va >= vma.start && va < vma.end;
    }
    raw_close(reader.fd);
    return found;
}
