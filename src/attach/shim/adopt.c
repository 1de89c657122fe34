/*
 * Adoption: private anonymous memory that a device is to reach is moved onto a memfd of the daemon, at the same
 * address. While a range moves it is write-protected; a thread that writes meanwhile waits in the SIGSEGV handler
 * (adopt_fault) and writes again afterwards, so no store is lost. From then on the range is a shared mapping, and what
 * private memory promises is kept by hand: a forked child gets its own copy here, the rest is adopted.c. What the
 * program still maps is always asked of the kernel (adopt_maps.h): glibc unmaps and moves memory by calls that
 * nobody sees. Leaves out: a system call of another thread that writes into a range while it moves (it gets EFAULT),
 * forks that do not go through fork(3).
 *
 * Bodies: OP_ADOPT_PLAN {va, length} -> {offset, protection} and the memfd, or value 1 when it is not there any more;
 * OP_ADOPT_REFUSED {va, length, offset}; OP_ADOPT_FORKING {} -> the memfd; OP_ADOPT_FORKED {}; OP_ADOPT_SEAL {} with
 * the file's descriptor; OP_ADOPT_SHARING {} -> {va, length} of what to adopt, as many as its value says. All fields u64.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <ucontext.h>

#include "adopt.h"
#include "shim.h"

#define OP_ADOPT_PLAN (OP_ADOPT_FIRST + 0)
#define OP_ADOPT_REFUSED (OP_ADOPT_FIRST + 1)
#define OP_ADOPT_FORKING (OP_ADOPT_FIRST + 2)
#define OP_ADOPT_FORKED (OP_ADOPT_FIRST + 3)
#define OP_ADOPT_SEAL (OP_ADOPT_FIRST + 4)
#define OP_ADOPT_SHARING (OP_ADOPT_FIRST + 5)

#define NOWHERE (~UINT64_C(0))
/* Below this many pages all are copied; above, those that were never touched are left out. */
#define COPY_ALL_PAGES 16
#define PAGEMAP_TOUCHED (UINT64_C(3) << 62) /* present, swapped */
#define PAGEMAP_ENTRIES 512

/* Signals stay out, except those that a fault of this thread raises. */
static uint64_t block_signals(void)
{
    uint64_t all = ~UINT64_C(0), before = 0;
    static const int faults[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS};
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++)
        all &= ~(UINT64_C(1) << (faults[i] - 1));
    raw_sigprocmask(SIG_SETMASK, &all, &before);
    return before;
}

static void restore_signals(uint64_t before)
{
    raw_sigprocmask(SIG_SETMASK, &before, NULL);
}

/* ---- one at a time ------------------------------------------------------------------------------------------ */

static uint32_t lock_word; /* 0 free, 1 held, 2 held and waited for */

static void lock(void)
{
    uint32_t seen = 0;
    if (__atomic_compare_exchange_n(&lock_word, &seen, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return;
    while (__atomic_exchange_n(&lock_word, 2, __ATOMIC_ACQUIRE) != 0)
        raw_futex(&lock_word, 0 /* FUTEX_WAIT */, 2);
}

static void unlock(void)
{
    if (__atomic_exchange_n(&lock_word, 0, __ATOMIC_RELEASE) == 2)
        raw_futex(&lock_word, 1 /* FUTEX_WAKE */, 1);
}

uint64_t adopt_lock(void)
{
    uint64_t before = block_signals();
    lock();
    return before;
}

void adopt_unlock(uint64_t before)
{
    unlock();
    restore_signals(before);
}

/* ---- state -------------------------------------------------------------------------------------------------- */

#define FINISHED 64
/* Counts the ends of write protections; threads that were held back wait for it to change. */
static uint32_t generation;
static struct span moving; /* end 0: nothing moves */
static int moving_prot;
static long mover;
static bool move_aborted;
/* The last ranges that were protected: a thread may come to its handler late. */
static struct span finished[FINISHED];
static uint32_t finished_count;

bool adopt_any;
bool adopt_any_dontfork;
struct adopt_file_id adopt_file;

static bool in_span(const struct span *span, uint64_t at)
{
    return at >= span->start && at < span->end;
}

static void end_protection(uint64_t start, uint64_t end)
{
    finished[finished_count++ % FINISHED] = (struct span){start, end};
    __atomic_store_n(&moving.end, 0, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&generation, 1, __ATOMIC_SEQ_CST);
    raw_futex(&generation, 1 /* FUTEX_WAKE */, INT32_MAX);
}

/* ---- moving a range ----------------------------------------------------------------------------------------- */

static long copy_run(int fd, uint64_t va, uint64_t offset, uint64_t length)
{
    while (length > 0) {
        long done = raw_pwrite(fd, (const void *)va, length, (off_t)offset);
        if (done == -EINTR)
            continue;
        if (done <= 0)
            return done < 0 ? done : -EIO;
        va += (uint64_t)done;
        offset += (uint64_t)done;
        length -= (uint64_t)done;
    }
    return 0;
}

/* Copies the pages that were ever touched. */
static long copy_touched(int fd, uint64_t va, uint64_t offset, uint64_t length)
{
    if (length <= COPY_ALL_PAGES * PAGE)
        return copy_run(fd, va, offset, length);
    int pagemap = (int)raw_openat(AT_FDCWD, "/proc/self/pagemap", O_RDONLY | O_CLOEXEC, 0);
    if (pagemap < 0)
        return copy_run(fd, va, offset, length);
    uint64_t entries[PAGEMAP_ENTRIES];
    long result = 0;
    for (uint64_t page = 0, pages = length / PAGE; page < pages && result == 0;) {
        uint64_t count = pages - page < PAGEMAP_ENTRIES ? pages - page : PAGEMAP_ENTRIES;
        long got = raw_pread(pagemap, entries, count * sizeof entries[0], (off_t)((va / PAGE + page) * sizeof entries[0]));
        if (got < (long)(count * sizeof entries[0])) {
            result = copy_run(fd, va + page * PAGE, offset + page * PAGE, length - page * PAGE);
            break;
        }
        for (uint64_t i = 0; i < count && result == 0;) {
            uint64_t from = i;
            while (i < count && entries[i] & PAGEMAP_TOUCHED)
                i++;
            if (i > from)
                result = copy_run(fd, va + (page + from) * PAGE, offset + (page + from) * PAGE, (i - from) * PAGE);
            while (i < count && !(entries[i] & PAGEMAP_TOUCHED))
                i++;
        }
        page += count;
    }
    raw_close(pagemap);
    return result;
}

static long move_protected(uint64_t va, uint64_t length, int fd, uint64_t offset, int prot)
{
    long result = copy_touched(fd, va, offset, length);
    if (result == 0 && __atomic_load_n(&move_aborted, __ATOMIC_SEQ_CST))
        result = -EDEADLK;
    if (result < 0)
        return result;
    result = raw_mmap((void *)va, length, prot, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, (off_t)offset);
    return result < 0 && result > -4096 ? result : 0;
}

static long move(uint64_t va, uint64_t length, int fd, uint64_t offset, int prot)
{
    bool keep_from_children = adopt_any_dontfork && adopt_maps_dontfork(va);
    moving_prot = prot;
    mover = raw_gettid();
    move_aborted = false;
    moving.start = va;
    __atomic_store_n(&moving.end, va + length, __ATOMIC_SEQ_CST);
    long result = prot & PROT_WRITE ? raw_mprotect((void *)va, length, prot & ~PROT_WRITE) : 0;
    if (result == 0)
        result = move_protected(va, length, fd, offset, prot);
    if (result < 0)
        raw_mprotect((void *)va, length, prot);
    else if (keep_from_children)
        raw_madvise((void *)va, length, MADV_DONTFORK);
    end_protection(va, va + length);
    return result;
}

static void remember_file(int fd)
{
    struct stat status;
    if (fstat(fd, &status) != 0)
        return;
    adopt_file = adopt_file_id_of(&status);
    __atomic_store_n(&adopt_any, true, __ATOMIC_RELEASE);
}

int adopt_range(uint64_t va, uint64_t length)
{
    uint64_t before = block_signals();
    lock();
    uint64_t body[3] = {va, length, NOWHERE}, reply[2];
    int fd = -1, fds = 1;
    long result = stacks_touch(va, va + length) ? -EBUSY : 0;
    if (result == 0)
        result = shim_request(OP_ADOPT_PLAN, body, 2 * sizeof body[0], reply, sizeof reply, NULL, 0, &fd, &fds);
    if (result == 0 && fds == 1) {
        body[2] = reply[0];
        remember_file(fd);
        result = move(va, length, fd, reply[0], (int)reply[1]);
    } else if (result == 0) {
        result = -EIO;
    }
    if (fd >= 0)
        raw_close(fd);
    if (result < 0)
        shim_request(OP_ADOPT_REFUSED, body, sizeof body, NULL, 0, NULL, 0, NULL, NULL);
    unlock();
    restore_signals(before);
    return result < 0 ? (int)result : 0;
}

void adopt_seal(int fd)
{
    shim_request(OP_ADOPT_SEAL, NULL, 0, NULL, 0, &fd, 1, NULL, NULL);
}

/* A daemon that keeps asking does not keep a program. */
#define SHARING_ROUNDS 16
#define SHARING_RANGES 64

void adopt_before_sharing(void)
{
    struct range ranges[SHARING_RANGES];
    for (int round = 0; round < SHARING_ROUNDS; round++) {
        long count = shim_request(OP_ADOPT_SHARING, NULL, 0, ranges, sizeof ranges, NULL, 0, NULL, NULL);
        if (count <= 0 || count > SHARING_RANGES)
            return;
        for (long i = 0; i < count; i++)
            adopt_range(ranges[i].va, ranges[i].length);
    }
}

/* ---- fork --------------------------------------------------------------------------------------------------- */

/*
 * fork(3) runs the prepare handlers, then takes the locks of malloc and stdio, then makes the system call. Adopted
 * memory must be write-protected from that call on until the child has its copy, but not earlier: a thread that holds
 * one of those locks may be about to write there. So the forking thread has its system calls reported to it (syscall
 * user dispatch, Linux 5.11), and protects when the clone comes. Where that cannot be had nothing is protected, and
 * what other threads write while they fork may show in the child.
 */

/* Adopted mappings at the time of the fork; in memory of its own, so that the child finds it. */
static struct adopt_vma *fork_list;
static size_t fork_count;
static size_t fork_bytes;
static long fork_process; /* pid of the parent while it waits; 0: no fork is going on */
static long fork_thread;
static bool fork_protected;
static int fork_file = -1;
static int fork_pipe[2] = {-1, -1};
static uint64_t fork_signals;

static bool in_fork_list(uint64_t at)
{
    for (size_t i = 0; i < fork_count; i++)
        if (at >= fork_list[i].start && at < fork_list[i].end)
            return true;
    return false;
}

static void protect_for_fork(void)
{
    fork_list = adopt_maps_list(&adopt_file, &fork_count, &fork_bytes);
    __atomic_store_n(&fork_protected, true, __ATOMIC_SEQ_CST);
    for (size_t i = 0; i < fork_count; i++)
        if (fork_list[i].prot & PROT_WRITE)
            raw_mprotect((void *)fork_list[i].start, fork_list[i].end - fork_list[i].start,
                         fork_list[i].prot & ~PROT_WRITE);
}

/* The kernel's struct, and the flag that says it has a restorer. */
struct kernel_action {
    void *handler;
    unsigned long flags;
    void (*restorer)(void);
    uint64_t mask;
};
#define KERNEL_SA_RESTORER 0x04000000ul
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define DISPATCH_OFF 0
#define DISPATCH_ON 1
#define CODE_USER_DISPATCH 2 /* SYS_USER_DISPATCH */
#define SYSCALL_INSTRUCTION 2 /* bytes */

static struct kernel_action sys_before;
static bool dispatching;
static volatile char dispatch_all = 1;

/* System calls from the library's own code are never reported; the handler's return is one. */
void adopt_sigreturn(void) __attribute__((visibility("hidden")));
__asm__(".text\n"
        ".type adopt_sigreturn, @function\n"
        "adopt_sigreturn:\n"
        "    mov $15, %eax\n"
        "    syscall\n");
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char etext[] __attribute__((visibility("hidden")));

static void stop_dispatching(void)
{
    if (!dispatching)
        return;
    dispatching = false;
    raw_syscall(SYS_prctl, PR_SET_SYSCALL_USER_DISPATCH, DISPATCH_OFF, 0, 0, 0, 0);
    raw_syscall(SYS_rt_sigaction, SIGSYS, (long)&sys_before, 0, sizeof(uint64_t), 0, 0);
}

/* sigprocmask of the interrupted code, which would block SIGSYS as well: it must not. */
static long set_interrupted_mask(ucontext_t *context, int how, const uint64_t *set, uint64_t *old)
{
    uint64_t mask;
    memcpy(&mask, &context->uc_sigmask, sizeof mask);
    if (old)
        *old = mask;
    if (set)
        mask = how == SIG_BLOCK ? mask | *set : how == SIG_UNBLOCK ? mask & ~*set : *set;
    mask &= ~(UINT64_C(1) << (SIGSYS - 1));
    memcpy(&context->uc_sigmask, &mask, sizeof mask);
    return 0;
}

static void on_system_call(int signal, siginfo_t *info, void *opaque)
{
    ucontext_t *context = opaque;
    greg_t *r = context->uc_mcontext.gregs;
    if (info->si_code != CODE_USER_DISPATCH || raw_gettid() != fork_thread) {
        if ((uintptr_t)sys_before.handler > 1) /* neither SIG_DFL nor SIG_IGN: another thread's sandbox */
            ((void (*)(int, siginfo_t *, void *))sys_before.handler)(signal, info, opaque);
        return;
    }
    long number = info->si_syscall;
    if (number == SYS_clone || number == SYS_clone3 || number == SYS_fork) {
        stop_dispatching();
        protect_for_fork();
        r[REG_RAX] = number;
        r[REG_RIP] -= SYSCALL_INSTRUCTION; /* the same call once more, unreported */
    } else if (number == SYS_rt_sigprocmask && r[REG_R10] == sizeof(uint64_t)) {
        r[REG_RAX] = set_interrupted_mask(context, (int)r[REG_RDI], (const uint64_t *)r[REG_RSI], (uint64_t *)r[REG_RDX]);
    } else {
        r[REG_RAX] = raw_syscall(number, r[REG_RDI], r[REG_RSI], r[REG_RDX], r[REG_R10], r[REG_R8], r[REG_R9]);
    }
}

static void start_dispatching(void)
{
    struct kernel_action action = {
        .handler = on_system_call, .flags = SA_SIGINFO | KERNEL_SA_RESTORER, .restorer = adopt_sigreturn};
    if (raw_syscall(SYS_rt_sigaction, SIGSYS, (long)&action, (long)&sys_before, sizeof(uint64_t), 0, 0) < 0)
        return;
    dispatching = true;
    if (raw_syscall(SYS_prctl, PR_SET_SYSCALL_USER_DISPATCH, DISPATCH_ON, (long)__ehdr_start, etext - __ehdr_start,
                    (long)&dispatch_all, 0) < 0)
        stop_dispatching();
}

void adopt_fork_prepare(void)
{
    fork_signals = block_signals();
    lock();
    if (!__atomic_load_n(&adopt_any, __ATOMIC_ACQUIRE))
        return;
    int fds = 1;
    if (shim_request(OP_ADOPT_FORKING, NULL, 0, NULL, 0, NULL, 0, &fork_file, &fds) < 0 || fds != 1)
        fork_file = -1;
    if (raw_syscall(SYS_pipe2, (long)fork_pipe, O_CLOEXEC, 0, 0, 0, 0) < 0)
        fork_pipe[0] = fork_pipe[1] = -1;
    fork_thread = raw_gettid();
    __atomic_store_n(&fork_process, raw_getpid(), __ATOMIC_SEQ_CST);
    start_dispatching();
}

static void close_fork_fds(void)
{
    int *fds[] = {&fork_file, &fork_pipe[0], &fork_pipe[1]};
    for (size_t i = 0; i < sizeof fds / sizeof fds[0]; i++) {
        if (*fds[i] >= 0)
            raw_close(*fds[i]);
        *fds[i] = -1;
    }
}

static void end_fork(void)
{
    for (size_t i = 0; i < fork_count && i < FINISHED; i++)
        finished[finished_count++ % FINISHED] = (struct span){fork_list[i].start, fork_list[i].end};
    size_t bytes = fork_bytes;
    struct adopt_vma *list = fork_list;
    fork_count = fork_bytes = 0;
    fork_list = NULL;
    __atomic_store_n(&fork_protected, false, __ATOMIC_SEQ_CST);
    __atomic_store_n(&fork_process, 0, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&generation, 1, __ATOMIC_SEQ_CST);
    raw_futex(&generation, 1 /* FUTEX_WAKE */, INT32_MAX);
    if (list)
        raw_munmap(list, bytes);
}

/* The child has its copy, or there is none: writes go on. */
static void finish_parent(void)
{
    char done;
    if (fork_pipe[1] >= 0)
        raw_close(fork_pipe[1]);
    fork_pipe[1] = -1;
    while (fork_pipe[0] >= 0 && raw_read(fork_pipe[0], &done, 1) == -EINTR)
        ;
    close_fork_fds();
    /* Only what still is an adopted mapping gets its protection back: others may have come to its place. */
    struct adopt_vma now;
    for (size_t i = 0; i < fork_count; i++)
        for (uint64_t at = fork_list[i].start;
             fork_list[i].prot & PROT_WRITE && adopt_maps_next(&adopt_file, at, fork_list[i].end, &now); at = now.end)
            raw_mprotect((void *)now.start, now.end - now.start, fork_list[i].prot);
    end_fork();
}

void adopt_fork_parent(void)
{
    if (__atomic_load_n(&adopt_any, __ATOMIC_ACQUIRE)) {
        stop_dispatching(); /* if no clone came */
        if (fork_process)
            finish_parent();
        shim_request(OP_ADOPT_FORKED, NULL, 0, NULL, 0, NULL, 0, NULL, NULL);
    }
    unlock();
    restore_signals(fork_signals);
}

/* Copies what the memfd holds of a mapping; holes stay zeros. */
static long copy_data(const struct adopt_vma *vma, char *copy)
{
    uint64_t length = vma->end - vma->start;
    for (uint64_t done = 0; done < length;) {
        long data = raw_syscall(SYS_lseek, fork_file, (long)(vma->offset + done), 3 /* SEEK_DATA */, 0, 0, 0);
        if (data == -ENXIO || (data >= 0 && (uint64_t)data >= vma->offset + length))
            break;
        if (data < 0)
            return data;
        long hole = raw_syscall(SYS_lseek, fork_file, data, 4 /* SEEK_HOLE */, 0, 0, 0);
        uint64_t end = hole < 0 || (uint64_t)hole > vma->offset + length ? vma->offset + length : (uint64_t)hole;
        for (done = (uint64_t)data - vma->offset; vma->offset + done < end;) {
            long got = raw_pread(fork_file, copy + done, end - vma->offset - done, (off_t)(vma->offset + done));
            if (got == -EINTR)
                continue;
            if (got <= 0)
                return got < 0 ? got : -EIO;
            done += (uint64_t)got;
        }
    }
    return 0;
}

/* The child's own copy of one mapping, put into its place at once. */
static long copy_for_child(const struct adopt_vma *vma)
{
    uint64_t length = vma->end - vma->start;
    unsigned char resident;
    if (raw_syscall(SYS_mincore, (long)vma->start, PAGE, (long)&resident, 0, 0, 0) == -ENOMEM)
        return 0; /* MADV_DONTFORK */
    long copy = raw_mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (copy < 0 && copy > -4096)
        return copy;
    long result = 0;
    if (fork_file >= 0) {
        result = copy_data(vma, (char *)copy);
    } else { /* the daemon is gone; what is mapped still is there */
        raw_mprotect((void *)vma->start, length, PROT_READ);
        memcpy((void *)copy, (const void *)vma->start, length);
    }
    if (result < 0)
        return result;
    if (vma->prot != (PROT_READ | PROT_WRITE))
        raw_mprotect((void *)copy, length, vma->prot);
    result = raw_mremap((void *)copy, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)vma->start);
    return result < 0 && result > -4096 ? result : 0;
}

static void copy_all_for_child(void)
{
    if (!fork_list) /* not dispatched */
        fork_list = adopt_maps_list(&adopt_file, &fork_count, &fork_bytes);
    for (size_t i = 0; i < fork_count; i++)
        if (copy_for_child(&fork_list[i]) < 0) /* it would write into its parent's memory */
            raw_syscall(SYS_exit_group, 127, 0, 0, 0, 0, 0);
    if (fork_pipe[1] >= 0)
        raw_write(fork_pipe[1], "", 1);
    close_fork_fds();
    end_fork();
    adopt_any = false;
}

void adopt_fork_child(void)
{
    if (fork_process)
        copy_all_for_child();
    stacks_keep_own();
    lock_word = 0;
    restore_signals(fork_signals);
}

/* ---- faults ------------------------------------------------------------------------------------------------- */

static int fault_while_forking(uint32_t seen)
{
    if (raw_getpid() != fork_process) {
        copy_all_for_child(); /* libc itself writes before our handler of the child is called */
        return 1;
    }
    if (raw_gettid() == fork_thread) {
        finish_parent(); /* the same in the parent */
        return 1;
    }
    raw_futex(&generation, 0 /* FUTEX_WAIT */, seen);
    return 1;
}

int adopt_fault(void *addr)
{
    static __thread uint64_t last_at;
    static __thread uint32_t last_seen;
    uint64_t at = (uint64_t)addr;
    uint32_t seen = __atomic_load_n(&generation, __ATOMIC_SEQ_CST);
    struct span now = {moving.start, __atomic_load_n(&moving.end, __ATOMIC_SEQ_CST)};
    if (in_span(&now, at) && moving_prot & PROT_WRITE) {
        if (raw_gettid() == mover) { /* it is our own state that moves: give up */
            raw_mprotect((void *)now.start, now.end - now.start, moving_prot);
            move_aborted = true;
        } else {
            raw_futex(&generation, 0 /* FUTEX_WAIT */, seen);
        }
        return 1;
    }
    if (__atomic_load_n(&fork_protected, __ATOMIC_SEQ_CST) && in_fork_list(at))
        return fault_while_forking(seen);
    if (last_at == at && last_seen == seen)
        return 0; /* tried again already, and nothing has moved since */
    for (int i = 0; i < FINISHED; i++)
        if (in_span(&finished[i], at)) {
            last_at = at;
            last_seen = seen;
            return 1;
        }
    return 0;
}
