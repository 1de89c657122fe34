/* Weak answers for the parts of the library that are linked only when their files are present. */
#include <errno.h>

#include "shim.h"

#define WEAK __attribute__((weak))

WEAK void adopt_init(void) {}
WEAK int adopt_range(uint64_t va, uint64_t len) { (void)va; (void)len; return -ENOSYS; }
WEAK int adopt_fault(void *addr) { (void)addr; return 0; }
WEAK void adopt_munmap(void *addr, size_t len) { (void)addr; (void)len; }
WEAK bool adopt_madvise(void *addr, size_t len, int advice, int *result)
{
    (void)addr; (void)len; (void)advice; (void)result;
    return false;
}
WEAK bool adopt_mremap(void *old, size_t old_size, size_t new_size, int flags, void *new_address, long *result)
{
    (void)old; (void)old_size; (void)new_size; (void)flags; (void)new_address; (void)result;
    return false;
}
WEAK long adopt_mmap_shared_anonymous(void *addr, size_t len, int prot, int flags)
{
    return raw_mmap(addr, len, prot, flags, -1, 0);
}
WEAK void adopt_fork_prepare(void) {}
WEAK void adopt_fork_parent(void) {}
WEAK void adopt_fork_child(void) {}
WEAK void trap_init(void) {}
WEAK int trap_map(void *addr, size_t len, int prot, int flags, uint64_t cookie, int keep_fd, uint64_t file_offset)
{
    (void)addr; (void)len; (void)prot; (void)flags; (void)cookie; (void)keep_fd; (void)file_offset;
    return -ENOSYS;
}
WEAK void trap_unmap(void *addr, size_t len) { (void)addr; (void)len; }
WEAK int trap_fault(siginfo_t *info, void *ucontext) { (void)info; (void)ucontext; return 0; }
WEAK void signals_init(void) {}
