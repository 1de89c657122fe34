/*
 * Streams and formatted output on emulated descriptors. glibc's own streams read and write with calls that cannot be
 * interposed, so a stream on an emulated file of text is one of functions, and dprintf formats here. Leaves out fileno
 * of such a stream, and freopen and fdopen: what is written there still arrives, but errors are not seen.
 */
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "core.h"

static struct {
    off_t (*lseek)(int, off_t, int);
    int (*vdprintf)(int, const char *, va_list);
} real;

void stream_init(void)
{
    real.lseek = shim_next("lseek64");
    real.vdprintf = shim_next("vdprintf");
}

EXPORT off_t lseek64(int fd, off_t offset, int whence)
{
    attached();
    uint64_t cookie = maybe_emulated(fd) ? emulated_cookie(fd, false) : 0;
    if (!cookie)
        return real.lseek(fd, offset, whence);
    struct seek_body body = {
        .file = {.cookie = cookie, .fd = fd}, .offset = offset, .whence = (uint32_t)whence};
    return result_of(shim_request(OP_SEEK, &body, sizeof body, NULL, 0, NULL, 0, NULL, NULL));
}

EXPORT off_t lseek(int fd, off_t offset, int whence) __attribute__((alias("lseek64")));

/* ---- streams ------------------------------------------------------------------------------------------- */

static int fd_of(void *cookie)
{
    return (int)(intptr_t)cookie;
}

static ssize_t stream_read(void *cookie, char *buffer, size_t size)
{
    return read(fd_of(cookie), buffer, size);
}

/* A stream that cannot write says so with 0. */
static ssize_t stream_write(void *cookie, const char *buffer, size_t size)
{
    ssize_t written = write(fd_of(cookie), buffer, size);
    return written < 0 ? 0 : written;
}

static int stream_seek(void *cookie, off64_t *offset, int whence)
{
    off_t at = lseek64(fd_of(cookie), *offset, whence);
    if (at < 0)
        return -1;
    *offset = at;
    return 0;
}

static int stream_close(void *cookie)
{
    return close(fd_of(cookie));
}

FILE *emulated_stream(int fd, const char *mode)
{
    cookie_io_functions_t functions = {
        .read = stream_read, .write = stream_write, .seek = stream_seek, .close = stream_close};
    return fopencookie((void *)(intptr_t)fd, mode, functions);
}

/* ---- dprintf ------------------------------------------------------------------------------------------- */

EXPORT int vdprintf(int fd, const char *format, va_list list)
{
    attached();
    if (!maybe_emulated(fd) || !emulated_cookie(fd, false))
        return real.vdprintf(fd, format, list);
    char *text;
    int length = vasprintf(&text, format, list);
    if (length < 0)
        return -1;
    ssize_t written = write(fd, text, (size_t)length);
    int reason = errno;
    free(text);
    errno = reason;
    return written < 0 ? -1 : length;
}

#define FORWARD_LIST(fd, format)                                                                             \
    va_list list;                                                                                            \
    va_start(list, format);                                                                                  \
    int length = vdprintf(fd, format, list);                                                                 \
    va_end(list);                                                                                            \
    return length;

EXPORT int dprintf(int fd, const char *format, ...)
{
    FORWARD_LIST(fd, format)
}

EXPORT int __dprintf_chk(int fd, int flag, const char *format, ...)
{
    (void)flag;
    FORWARD_LIST(fd, format)
}

EXPORT int __vdprintf_chk(int fd, int flag, const char *format, va_list list)
{
    (void)flag;
    return vdprintf(fd, format, list);
}
