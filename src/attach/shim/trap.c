/*
 * Accesses to device memory. A window is a PROT_NONE range that belongs to an emulated file; a load or store in it
 * faults, and the daemon performs the instruction. Windows live in a table that the fault handler reads without a
 * lock: a slot is written under a sequence count, by a thread that has all its signals blocked. Jumping into a window
 * is not served. The table is inherited by a forked child, whose accesses go over its own connection.
 */
#include <asm/prctl.h>
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <ucontext.h>

#include "lock.h"
#include "shim.h"
#include "trap.h"

#define PAGE 4096u
/* More mappings than a process may have by default cannot be windows. Untouched slots cost no memory. */
#define MAX_WINDOWS 65536u

static struct trap_window windows[MAX_WINDOWS];
static uint32_t used; /* slots below this one were used at least once */
static int lock_word;
static uint64_t fork_mask;
static uint32_t opmask_offset, zmm_high_offset, high_zmm_offset;
static int (*real_mprotect)(void *, size_t, int);

/* ---- the table ---------------------------------------------------------------------------------------------- */

static void fork_prepare(void)
{
    uint64_t before = lock_take(&lock_word);
    fork_mask = before;
}
static void fork_done(void)
{
    lock_give(&lock_word, fork_mask);
}
static void remove_window(struct trap_window *slot);
static void fork_child(void)
{
    for (uint32_t i = 0; i < used; i++)
        if (windows[i].start != windows[i].end && windows[i].protection & TRAP_DONTFORK)
            remove_window(&windows[i]);
    fork_done();
}

static void write_slot(struct trap_window *slot, const struct trap_window *value)
{
    uint64_t sequence = slot->sequence;
    __atomic_store_n(&slot->sequence, sequence + 1, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    __atomic_store_n(&slot->start, value->start, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->end, value->end, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->file_offset, value->file_offset, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->cookie, value->cookie, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->fd, value->fd, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->protection, value->protection, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->sequence, sequence + 2, __ATOMIC_RELEASE);
}

static bool read_slot(struct trap_window *slot, uint64_t address, struct trap_window *out)
{
    for (;;) {
        uint64_t sequence = __atomic_load_n(&slot->sequence, __ATOMIC_ACQUIRE);
        if (!(sequence & 1)) {
            *out = (struct trap_window){
                .start = __atomic_load_n(&slot->start, __ATOMIC_RELAXED),
                .end = __atomic_load_n(&slot->end, __ATOMIC_RELAXED),
                .file_offset = __atomic_load_n(&slot->file_offset, __ATOMIC_RELAXED),
                .cookie = __atomic_load_n(&slot->cookie, __ATOMIC_RELAXED),
                .fd = __atomic_load_n(&slot->fd, __ATOMIC_RELAXED),
                .protection = __atomic_load_n(&slot->protection, __ATOMIC_RELAXED),
            };
            __atomic_thread_fence(__ATOMIC_ACQUIRE);
            if (__atomic_load_n(&slot->sequence, __ATOMIC_RELAXED) == sequence)
                return address - out->start < out->end - out->start;
        }
        raw_sched_yield();
    }
}

static bool find_window(uint64_t address, struct trap_window *out)
{
    uint32_t count = __atomic_load_n(&used, __ATOMIC_ACQUIRE);
    for (uint32_t i = 0; i < count; i++)
        if (read_slot(&windows[i], address, out))
            return true;
    return false;
}

/* Under the lock: the descriptor that the windows of a file share, so that each outlives the others and the
 * program's own descriptor. -1: there is none yet. */
static int shared_fd(uint64_t cookie)
{
    for (uint32_t i = 0; i < used; i++)
        if (windows[i].start != windows[i].end && windows[i].cookie == cookie)
            return windows[i].fd;
    return -1;
}

static int keep_duplicate(int fd)
{
    long duplicate = raw_fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (duplicate < 0)
        return (int)duplicate;
    int kept = shim_keep_fd((int)duplicate);
    if (kept < 0)
        raw_close((int)duplicate);
    return kept;
}

/* Under the lock. */
static int add_window(const struct trap_window *window)
{
    uint32_t i = 0;
    while (i < used && windows[i].start != windows[i].end)
        i++;
    if (i == MAX_WINDOWS)
        return -ENOMEM;
    struct trap_window own = *window;
    own.fd = shared_fd(window->cookie);
    if (own.fd < 0)
        own.fd = keep_duplicate(window->fd);
    if (own.fd < 0)
        return own.fd;
    write_slot(&windows[i], &own);
    if (i == used)
        __atomic_store_n(&used, used + 1, __ATOMIC_RELEASE);
    return 0;
}

static void resize_window(struct trap_window *slot, uint64_t start, uint64_t end)
{
    struct trap_window value = *slot;
    value.file_offset += start - value.start;
    value.start = start;
    value.end = end;
    write_slot(slot, &value);
}

static void remove_window(struct trap_window *slot)
{
    int fd = slot->fd;
    uint64_t cookie = slot->cookie;
    write_slot(slot, &(struct trap_window){.fd = -1});
    if (shared_fd(cookie) < 0)
        shim_drop_fd(fd);
}

/* Under the lock: makes `address` a border between windows. The new part is added before the old one shrinks, so
 * that no address is without its window for a moment. */
static int split_at(uint64_t address)
{
    for (uint32_t i = 0; i < used; i++) {
        struct trap_window *slot = &windows[i];
        if (slot->start < address && address < slot->end) {
            struct trap_window tail = *slot;
            tail.file_offset += address - tail.start;
            tail.start = address;
            int result = add_window(&tail);
            if (result < 0)
                return result;
            resize_window(slot, slot->start, address);
            return 0;
        }
    }
    return 0;
}

static bool overlaps(const struct trap_window *slot, uint64_t start, uint64_t end)
{
    return slot->start < end && start < slot->end;
}

static uint64_t page_end(void *addr, size_t len)
{
    return ((uint64_t)addr + len + PAGE - 1) & ~(uint64_t)(PAGE - 1);
}

void trap_table(uint64_t *table, uint64_t *count)
{
    *table = (uint64_t)windows;
    *count = (uint64_t)&used;
}

void trap_unmap(void *addr, size_t len)
{
    if (!__atomic_load_n(&used, __ATOMIC_ACQUIRE) || !len)
        return;
    uint64_t start = (uint64_t)addr, end = page_end(addr, len);
    uint64_t before = lock_take(&lock_word);
    for (uint32_t i = 0; i < used; i++) {
        struct trap_window *slot = &windows[i];
        if (slot->start == slot->end || !overlaps(slot, start, end))
            continue;
        /* When there is no room for the tail of a window, it is cut short. */
        if (end < slot->end)
            split_at(end);
        if (slot->start < start)
            resize_window(slot, slot->start, start);
        else
            remove_window(slot);
    }
    lock_give(&lock_word, before);
}

int trap_map(void *addr, size_t len, int prot, int flags, uint64_t cookie, int keep_fd, uint64_t file_offset)
{
    (void)flags;
    if (!len)
        return 0;
    trap_unmap(addr, len);
    struct trap_window window = {
        .start = (uint64_t)addr,
        .end = page_end(addr, len),
        .file_offset = file_offset,
        .cookie = cookie,
        .fd = keep_fd,
        .protection = (uint32_t)prot,
    };
    uint64_t before = lock_take(&lock_word);
    int result = add_window(&window);
    lock_give(&lock_word, before);
    return result;
}

void trap_move(void *from, size_t len, void *to)
{
    if (!__atomic_load_n(&used, __ATOMIC_ACQUIRE) || !len)
        return;
    uint64_t start = (uint64_t)from, end = page_end(from, len);
    uint64_t before = lock_take(&lock_word);
    for (uint32_t i = 0; i < used; i++) {
        struct trap_window moved = windows[i];
        if (moved.start == moved.end || !overlaps(&moved, start, end))
            continue;
        if (moved.start < start) {
            moved.file_offset += start - moved.start;
            moved.start = start;
        }
        if (moved.end > end)
            moved.end = end;
        moved.start += (uint64_t)to - start;
        moved.end += (uint64_t)to - start;
        add_window(&moved); /* without room for it the window is gone */
    }
    lock_give(&lock_word, before);
    trap_unmap(from, len);
}

void trap_renumber(int from, int to)
{
    uint64_t before = lock_take(&lock_word);
    for (uint32_t i = 0; i < used; i++)
        if (windows[i].start != windows[i].end && windows[i].fd == from) {
            struct trap_window value = windows[i];
            value.fd = to;
            write_slot(&windows[i], &value);
        }
    lock_give(&lock_word, before);
}

/* ---- madvise ------------------------------------------------------------------------------------------------ */

static bool any_window(uint64_t start, uint64_t end)
{
    for (uint32_t i = 0; i < used; i++)
        if (windows[i].start != windows[i].end && overlaps(&windows[i], start, end))
            return true;
    return false;
}

/* Under the lock: a child does not inherit the windows of the range. */
static void keep_from_children(uint64_t start, uint64_t end)
{
    split_at(start);
    split_at(end);
    for (uint32_t i = 0; i < used; i++) {
        struct trap_window value = windows[i];
        if (value.start == value.end || value.start < start || value.end > end)
            continue;
        value.protection |= TRAP_DONTFORK;
        write_slot(&windows[i], &value);
    }
}

bool trap_madvise(void *addr, size_t len, int advice, int *result)
{
    uint64_t start = (uint64_t)addr, end = page_end(addr, len);
    if (!__atomic_load_n(&used, __ATOMIC_ACQUIRE) || start % PAGE || end <= start)
        return false;
    uint64_t before = lock_take(&lock_word);
    bool refused = false;
    if (any_window(start, end)) {
        if (advice == MADV_DONTFORK)
            keep_from_children(start, end);
        refused = advice == MADV_DONTNEED || advice == MADV_FREE || advice == MADV_REMOVE || advice == MADV_DOFORK;
    }
    lock_give(&lock_word, before);
    *result = -EINVAL;
    return refused;
}

/* ---- mprotect: a window stays PROT_NONE and remembers what the program asked for ---------------------------- */

/* Sets the protection of the window at `at`, or finds how far there is none. Returns where that ends. */
static uint64_t protect_piece(uint64_t at, uint64_t end, int prot, bool *is_window)
{
    *is_window = false;
    for (uint32_t i = 0; i < used; i++) {
        struct trap_window *slot = &windows[i];
        if (slot->start == slot->end || !overlaps(slot, at, end))
            continue;
        if (slot->start > at) {
            end = slot->start;
            continue;
        }
        struct trap_window value = *slot;
        value.protection = (uint32_t)prot | (slot->protection & TRAP_DONTFORK);
        write_slot(slot, &value);
        *is_window = true;
        return slot->end < end ? slot->end : end;
    }
    return end;
}

EXPORT int mprotect(void *addr, size_t len, int prot)
{
    if (!real_mprotect)
        real_mprotect = shim_next("mprotect");
    uint64_t start = (uint64_t)addr, end = page_end(addr, len);
    if (!__atomic_load_n(&used, __ATOMIC_ACQUIRE) || !len || start % PAGE || end <= start)
        return real_mprotect(addr, len, prot);
    uint64_t before = lock_take(&lock_word);
    int result = split_at(start);
    if (result == 0)
        result = split_at(end);
    while (result == 0 && start < end) {
        bool is_window;
        uint64_t to = protect_piece(start, end, prot, &is_window);
        if (!is_window)
            result = (int)raw_mprotect((void *)start, to - start, prot);
        start = to;
    }
    lock_give(&lock_word, before);
    if (result < 0) {
        errno = -result;
        return -1;
    }
    return 0;
}

/* ---- the fault ---------------------------------------------------------------------------------------------- */

/* The next page may not be readable: then the instruction ends before it. */
static uint32_t copy_code(uint8_t *code, uint64_t rip)
{
    uint32_t length = TRAP_CODE, here = PAGE - rip % PAGE;
    if (here >= length) {
        memcpy(code, (const void *)rip, length);
        return length;
    }
    memcpy(code, (const void *)rip, here);
    struct iovec to = {code + here, length - here}, from = {(void *)(rip + here), length - here};
    long got = raw_syscall(SYS_process_vm_readv, raw_getpid(), (long)&to, 1, (long)&from, 1, 0);
    return here + (got > 0 ? (uint32_t)got : 0);
}

/* 66, F2 and F3 0F 38 F8 (movdir64b, enqcmd, enqcmds) and 0F 38 F9 (movdiri), which older CPUs do not know. */
static bool is_direct_store(const uint8_t *code, uint32_t length)
{
    uint32_t i = 0;
    for (; i < length; i++) {
        uint8_t byte = code[i];
        bool prefix = byte == 0x66 || byte == 0x67 || byte == 0xf2 || byte == 0xf3 || byte == 0x2e || byte == 0x36 ||
                      byte == 0x3e || byte == 0x26 || byte == 0x64 || byte == 0x65 || (byte & 0xf0) == 0x40;
        if (!prefix)
            break;
    }
    return i + 3 < length && code[i] == 0x0f && code[i + 1] == 0x38 && (code[i + 2] == 0xf8 || code[i + 2] == 0xf9);
}

/* Page-fault error code: bit 1 a write, bit 4 an instruction fetch. */
static bool serves_access(const siginfo_t *info, const greg_t *gregs, struct trap_window *window)
{
    bool page_fault = info->si_code == SEGV_MAPERR || info->si_code == SEGV_ACCERR;
    uint64_t error = (uint64_t)gregs[REG_ERR];
    if (!page_fault || error & 16 || !find_window((uint64_t)info->si_addr, window))
        return false;
    uint32_t needed = error & 2 ? PROT_WRITE : PROT_READ | PROT_WRITE | PROT_EXEC;
    return window->protection & needed;
}

/* ENQCMD and MOVDIR64B are illegal on a CPU without them. ENQCMD in a process that has no PASID is a general
 * protection fault on a CPU with it. */
static bool is_unserved(const siginfo_t *info)
{
    return (info->si_signo == SIGILL && info->si_code == ILL_ILLOPN) ||
           (info->si_signo == SIGSEGV && info->si_code == SI_KERNEL);
}

int trap_fault(siginfo_t *info, void *ucontext)
{
    mcontext_t *context = &((ucontext_t *)ucontext)->uc_mcontext;
    if (!__atomic_load_n(&used, __ATOMIC_ACQUIRE))
        return 0;
    struct trap_body body;
    memset(&body, 0, sizeof body);
    bool hit = info->si_signo == SIGSEGV && serves_access(info, context->gregs, &body.window);
    if (!hit && !is_unserved(info))
        return 0;
    body.code_length = copy_code(body.code, (uint64_t)context->gregs[REG_RIP]);
    if (!hit && !is_direct_store(body.code, body.code_length))
        return 0;
    memcpy(body.gregs, context->gregs, sizeof body.gregs);
    raw_syscall(SYS_arch_prctl, ARCH_GET_FS, (long)&body.fs_base, 0, 0, 0, 0);
    raw_syscall(SYS_arch_prctl, ARCH_GET_GS, (long)&body.gs_base, 0, 0, 0, 0);
    body.fpstate = (uint64_t)context->fpregs;
    body.table = (uint64_t)windows;
    body.windows = __atomic_load_n(&used, __ATOMIC_ACQUIRE);
    body.opmask_offset = opmask_offset;
    body.zmm_high_offset = zmm_high_offset;
    body.high_zmm_offset = high_zmm_offset;
    struct trap_reply reply = {0};
    long result = shim_request(OP_TRAP, &body, sizeof body, &reply, sizeof reply, NULL, 0, NULL, NULL);
    if (result == TRAP_DONE) {
        memcpy(context->gregs, reply.gregs, sizeof reply.gregs);
        return 1;
    }
    if (result > 0 && hit && reply.refused_at) {
        if (result == TRAP_REFUSED && adopt_fault((void *)reply.refused_at))
            return 1;
        info->si_addr = (void *)reply.refused_at;
    }
    if (result == TRAP_BUS_ERROR) { /* whatever it came as */
        info->si_signo = SIGBUS;
        info->si_code = BUS_ADRERR;
    }
    return 0;
}

void trap_init(void)
{
    unsigned a, b, c, d;
    if (!real_mprotect)
        real_mprotect = shim_next("mprotect");
    if (__get_cpuid_count(0xd, 5, &a, &b, &c, &d) && a)
        opmask_offset = b;
    if (__get_cpuid_count(0xd, 6, &a, &b, &c, &d) && a)
        zmm_high_offset = b;
    if (__get_cpuid_count(0xd, 7, &a, &b, &c, &d) && a)
        high_zmm_offset = b;
    pthread_atfork(fork_prepare, fork_done, fork_child);
}
