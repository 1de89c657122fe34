/* System calls without libc: no interposition, no errno, no cancellation. Each returns -errno on failure. */
#ifndef SOFTIOMMU_RAW_H
#define SOFTIOMMU_RAW_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>

static inline long raw_syscall(long number, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static inline long raw_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
    return raw_syscall(SYS_mmap, (long)addr, (long)len, prot, flags, fd, offset);
}
static inline long raw_munmap(void *addr, size_t len)
{
    return raw_syscall(SYS_munmap, (long)addr, (long)len, 0, 0, 0, 0);
}
static inline long raw_mprotect(void *addr, size_t len, int prot)
{
    return raw_syscall(SYS_mprotect, (long)addr, (long)len, prot, 0, 0, 0);
}
static inline long raw_mremap(void *old, size_t old_size, size_t new_size, int flags, void *new_address)
{
    return raw_syscall(SYS_mremap, (long)old, (long)old_size, (long)new_size, flags, (long)new_address, 0);
}
static inline long raw_madvise(void *addr, size_t len, int advice)
{
    return raw_syscall(SYS_madvise, (long)addr, (long)len, advice, 0, 0, 0);
}
static inline long raw_openat(int dirfd, const char *path, int flags, mode_t mode)
{
    return raw_syscall(SYS_openat, dirfd, (long)path, flags, mode, 0, 0);
}
static inline long raw_close(int fd)
{
    return raw_syscall(SYS_close, fd, 0, 0, 0, 0, 0);
}
static inline long raw_read(int fd, void *buffer, size_t count)
{
    return raw_syscall(SYS_read, fd, (long)buffer, (long)count, 0, 0, 0);
}
static inline long raw_write(int fd, const void *buffer, size_t count)
{
    return raw_syscall(SYS_write, fd, (long)buffer, (long)count, 0, 0, 0);
}
static inline long raw_pread(int fd, void *buffer, size_t count, off_t offset)
{
    return raw_syscall(SYS_pread64, fd, (long)buffer, (long)count, offset, 0, 0);
}
static inline long raw_pwrite(int fd, const void *buffer, size_t count, off_t offset)
{
    return raw_syscall(SYS_pwrite64, fd, (long)buffer, (long)count, offset, 0, 0);
}
static inline long raw_fcntl(int fd, int command, long argument)
{
    return raw_syscall(SYS_fcntl, fd, command, argument, 0, 0, 0);
}
static inline long raw_ioctl(int fd, unsigned long request, unsigned long argument)
{
    return raw_syscall(SYS_ioctl, fd, (long)request, (long)argument, 0, 0, 0);
}
static inline long raw_ftruncate(int fd, off_t length)
{
    return raw_syscall(SYS_ftruncate, fd, length, 0, 0, 0, 0);
}
static inline long raw_memfd_create(const char *name, unsigned flags)
{
    return raw_syscall(SYS_memfd_create, (long)name, flags, 0, 0, 0, 0);
}
static inline long raw_readlink(const char *path, char *buffer, size_t size)
{
    return raw_syscall(SYS_readlink, (long)path, (long)buffer, (long)size, 0, 0, 0);
}
static inline long raw_sendmsg(int fd, const struct msghdr *message, int flags)
{
    return raw_syscall(SYS_sendmsg, fd, (long)message, flags, 0, 0, 0);
}
static inline long raw_recvmsg(int fd, struct msghdr *message, int flags)
{
    return raw_syscall(SYS_recvmsg, fd, (long)message, flags, 0, 0, 0);
}
static inline long raw_getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
    return raw_syscall(SYS_getsockopt, fd, level, option, (long)value, (long)length, 0);
}
static inline long raw_getpid(void)
{
    return raw_syscall(SYS_getpid, 0, 0, 0, 0, 0, 0);
}
static inline long raw_gettid(void)
{
    return raw_syscall(SYS_gettid, 0, 0, 0, 0, 0, 0);
}
/* The kernel's form of the signal set: 8 bytes. */
static inline long raw_sigprocmask(int how, const uint64_t *set, uint64_t *old)
{
    return raw_syscall(SYS_rt_sigprocmask, how, (long)set, (long)old, sizeof(uint64_t), 0, 0);
}
static inline long raw_futex(uint32_t *word, int operation, uint32_t value)
{
    return raw_syscall(SYS_futex, (long)word, operation, value, 0, 0, 0);
}
static inline long raw_sched_yield(void)
{
    return raw_syscall(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
}

#endif
