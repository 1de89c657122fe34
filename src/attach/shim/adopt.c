/*
 * Adoption: private anonymous memory that a device is to reach is moved onto a memfd of the daemon, at the same
 * address. While a range moves it is write-protected; a thread that writes meanwhile waits in the SIGSEGV handler
 * (adopt_fault) and writes again afterwards, so no store is lost. From then on the range is a shared mapping, and what
 * private memory promises is kept by hand: a forked child gets its own copy, MADV_DONTNEED gives zeros. What the
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
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <ucontext.h>

#include "adopt_maps.h"
#include "shim.h"

#define OP_ADOPT_PLAN (OP_ADOPT_FIRST + 0)
#define OP_ADOPT_REFUSED (OP_ADOPT_FIRST + 1)
#define OP_ADOPT_FORKING (OP_ADOPT_FIRST + 2)
#define OP_ADOPT_FORKED (OP_ADOPT_FIRST + 3)
#define OP_ADOPT_SEAL (OP_ADOPT_FIRST + 4)
#define OP_ADOPT_SHARING (OP_ADOPT_FIRST + 5)

#define PAGE UINT64_C(4096)
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

/* ---- state -------------------------------------------------------------------------------------------------- */

struct span {
    uint64_t start;
    uint64_t end;
};

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

static bool any_adopted;
static bool any_dontfork;
static struct adopt_file_id file_id;

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

/* ---- stacks of threads -------------------------------------------------------------------------------------- */

/*
 * A stack must not be write-protected: the handler's frame would have nowhere to go, and the kernel itself writes to
 * the thread block at its top. So stacks are known, and refused.
 */
#define STACKS 4096
static struct span stacks[STACKS];
static pthread_key_t stack_key;

static void forget_stack(void *slot)
{
    __atomic_store_n(&((struct span *)slot)->end, 0, __ATOMIC_RELEASE);
}

static void note_stack(void)
{
    pthread_attr_t attributes;
    void *start;
    size_t size;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0)
        return;
    int error = pthread_attr_getstack(&attributes, &start, &size);
    pthread_attr_destroy(&attributes);
    for (int i = 0; i < STACKS && error == 0; i++) {
        uint64_t none = 0, end = (uint64_t)start + size;
        if (!__atomic_compare_exchange_n(&stacks[i].end, &none, end, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            continue;
        stacks[i].start = (uint64_t)start;
        pthread_setspecific(stack_key, &stacks[i]);
        return;
    }
}

struct start {
    void *(*run)(void *);
    void *argument;
};

static void *start_thread(void *argument)
{
    struct start start = *(struct start *)argument;
    free(argument);
    note_stack();
    return start.run(start.argument);
}

static int (*next_pthread_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

EXPORT int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument)
{
    if (!next_pthread_create)
        next_pthread_create = shim_next("pthread_create");
    struct start *start = shim_attached() ? malloc(sizeof *start) : NULL;
    if (!start)
        return next_pthread_create(thread, attributes, run, argument);
    *start = (struct start){run, argument};
    int error = next_pthread_create(thread, attributes, start_thread, start);
    if (error)
        free(start);
    return error;
}

static bool holds_stack(uint64_t start, uint64_t end)
{
    uint64_t here = (uint64_t)__builtin_frame_address(0);
    /* Also of a coroutine that is nobody's stack: some pages below are about to be used. */
    if (here >= start && here - 65536 < end)
        return true;
    for (int i = 0; i < STACKS; i++) {
        uint64_t stack_end = __atomic_load_n(&stacks[i].end, __ATOMIC_ACQUIRE);
        if (stack_end && stacks[i].start < end && stack_end > start)
            return true;
    }
    return false;
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
    bool keep_from_children = any_dontfork && adopt_maps_dontfork(va);
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
    file_id = adopt_file_id_of(&status);
    __atomic_store_n(&any_adopted, true, __ATOMIC_RELEASE);
}

int adopt_range(uint64_t va, uint64_t length)
{
    uint64_t before = block_signals();
    lock();
    uint64_t body[3] = {va, length, NOWHERE}, reply[2];
    int fd = -1, fds = 1;
    long result = holds_stack(va, va + length) ? -EBUSY : 0;
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
    fork_list = adopt_maps_list(&file_id, &fork_count, &fork_bytes);
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
    if (!__atomic_load_n(&any_adopted, __ATOMIC_ACQUIRE))
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
             fork_list[i].prot & PROT_WRITE && adopt_maps_next(&file_id, at, fork_list[i].end, &now); at = now.end)
            raw_mprotect((void *)now.start, now.end - now.start, fork_list[i].prot);
    end_fork();
}

void adopt_fork_parent(void)
{
    if (__atomic_load_n(&any_adopted, __ATOMIC_ACQUIRE)) {
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
        fork_list = adopt_maps_list(&file_id, &fork_count, &fork_bytes);
    for (size_t i = 0; i < fork_count; i++)
        if (copy_for_child(&fork_list[i]) < 0) /* it would write into its parent's memory */
            raw_syscall(SYS_exit_group, 127, 0, 0, 0, 0, 0);
    if (fork_pipe[1] >= 0)
        raw_write(fork_pipe[1], "", 1);
    close_fork_fds();
    end_fork();
    any_adopted = false;
}

void adopt_fork_child(void)
{
    if (fork_process)
        copy_all_for_child();
    for (int i = 0; i < STACKS; i++)
        if (stacks[i].end && !in_span(&stacks[i], (uint64_t)__builtin_frame_address(0)))
            stacks[i].end = 0;
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

/* ---- what private memory promises --------------------------------------------------------------------------- */

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

/* Fresh zeros in place of adopted mappings of [start, end). */
static long renew(uint64_t start, uint64_t end)
{
    struct adopt_vma vma;
    while (start < end && adopt_maps_next(&file_id, start, end, &vma)) {
        long result = raw_mmap((void *)vma.start, vma.end - vma.start, vma.prot,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
        if (result < 0 && result > -4096)
            return result;
        start = vma.end;
    }
    return 0;
}

bool adopt_madvise(void *addr, size_t len, int advice, int *result)
{
    if (advice == MADV_DONTFORK)
        any_dontfork = true;
    bool discards = advice == MADV_DONTNEED || advice == MADV_DONTNEED_LOCKED;
    if (!__atomic_load_n(&any_adopted, __ATOMIC_ACQUIRE) || !(discards || advice == MADV_FREE || advice == MADV_REMOVE))
        return false;
    struct adopt_vma vma;
    uint64_t start = (uint64_t)addr, end = start + ((len + PAGE - 1) & ~(PAGE - 1));
    if (start & (PAGE - 1) || end <= start)
        return false;
    uint64_t before = block_signals();
    lock();
    bool ours = adopt_maps_next(&file_id, start, end, &vma);
    if (ours && advice == MADV_REMOVE) {
        *result = -EINVAL; /* as for private memory */
    } else if (ours) {
        *result = (int)raw_madvise(addr, len, MADV_DONTNEED);
        if (advice == MADV_FREE)
            *result = 0; /* may keep its contents */
        else if (*result == 0)
            *result = (int)renew(start, end);
    }
    unlock();
    restore_signals(before);
    return ours;
}

/* Moves a range that is one mapping, or page by page one that is not. */
static long move_mapping(uint64_t from, uint64_t length, uint64_t to)
{
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    long result = raw_mremap((void *)from, length, length, flags, (void *)to);
    for (uint64_t done = 0; result == -EFAULT && length > PAGE && done < length; done += PAGE) {
        long page = raw_mremap((void *)(from + done), PAGE, PAGE, flags, (void *)(to + done));
        if (page < 0 && page > -4096)
            return page;
        if (done + PAGE == length)
            return 0;
    }
    return result < 0 && result > -4096 ? result : 0;
}

/* Moves a range of several mappings to fresh addresses, and lets it grow by private zeros. */
static long move_pieces(uint64_t old, uint64_t old_size, uint64_t new_size)
{
    long target = raw_mmap(NULL, new_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (target < 0 && target > -4096)
        return target;
    for (uint64_t at = old, end = old + old_size; at < end;) {
        struct adopt_vma vma = {.start = end, .end = end};
        if (!adopt_maps_next(&file_id, at, end, &vma))
            vma.start = vma.end = end;
        uint64_t stop = vma.start > at ? vma.start : vma.end;
        long result = move_mapping(at, stop - at, (uint64_t)target + (at - old));
        if (result < 0)
            return result;
        at = stop;
    }
    return target;
}

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

/* What stays behind would share the pages that moved; private memory leaves zeros. */
static long move_and_leave_zeros(uint64_t start, uint64_t size, int flags, void *target)
{
    long result = raw_mremap((void *)start, size, size, flags, target);
    if (result < 0 && result > -4096)
        return result;
    long left = renew(start, start + size);
    return left < 0 ? left : result;
}

/*
 * The kernel moves and grows an adopted mapping as any other; behind each range the memfd has fresh zeros. It does not
 * grow what adoption has made several mappings of; glibc copies then, others are not prepared for it.
 */
bool adopt_mremap(void *old, size_t old_size, size_t new_size, int flags, void *new_address, long *result)
{
    uint64_t start = (uint64_t)old, size = (old_size + PAGE - 1) & ~(PAGE - 1);
    uint64_t wanted = (new_size + PAGE - 1) & ~(PAGE - 1);
    bool stays = flags & MREMAP_DONTUNMAP && wanted == size;
    bool grows = flags == MREMAP_MAYMOVE && wanted > size;
    if (!__atomic_load_n(&any_adopted, __ATOMIC_ACQUIRE) || !(stays || grows) || size == 0 || start & (PAGE - 1))
        return false;
    uint64_t before = block_signals();
    lock();
    struct adopt_vma vma;
    bool ours = adopt_maps_next(&file_id, start, start + size, &vma) && (stays || vma.end - vma.start < size);
    if (ours && stays)
        *result = move_and_leave_zeros(start, size, flags, new_address);
    else if (ours)
        *result = move_pieces(start, size, wanted);
    unlock();
    restore_signals(before);
    return ours;
}

/* ---- shared anonymous memory -------------------------------------------------------------------------------- */

/*
 * It gets a memfd from the start, whose descriptor stays open for the daemon to find, until the mapping is gone. Too
 * many, and the mapping is made as the program asked: reached through system calls then.
 */
#define SHARED_MAPPINGS 256
static struct shared_mapping {
    struct span span;
    int fd;
} shared_mappings[SHARED_MAPPINGS];

static struct shared_mapping *free_shared_mapping(void)
{
    for (int i = 0; i < SHARED_MAPPINGS; i++)
        if (!shared_mappings[i].span.end)
            return &shared_mappings[i];
    return NULL;
}

static int shared_memfd(size_t len)
{
    int fd = (int)raw_memfd_create("softiommu shared", MFD_CLOEXEC);
    if (fd < 0)
        return fd;
    if (raw_ftruncate(fd, (off_t)((len + PAGE - 1) & ~(PAGE - 1))) < 0) {
        raw_close(fd);
        return -ENOMEM;
    }
    int kept = shim_keep_fd(fd);
    if (kept < 0)
        raw_close(fd);
    return kept;
}

long adopt_mmap_shared_anonymous(void *addr, size_t len, int prot, int flags)
{
    uint64_t before = block_signals();
    lock();
    struct shared_mapping *mapping = free_shared_mapping();
    int fd = mapping && len > 0 ? shared_memfd(len) : -1;
    long result = fd < 0 ? raw_mmap(addr, len, prot, flags, -1, 0) : raw_mmap(addr, len, prot, flags & ~MAP_ANONYMOUS, fd, 0);
    bool mapped = !(result < 0 && result > -4096);
    if (fd >= 0 && mapped)
        *mapping = (struct shared_mapping){{(uint64_t)result, (uint64_t)result + ((len + PAGE - 1) & ~(PAGE - 1))}, fd};
    else if (fd >= 0)
        shim_drop_fd(fd);
    unlock();
    restore_signals(before);
    return result;
}

void adopt_munmap(void *addr, size_t len)
{
    uint64_t start = (uint64_t)addr, end = start + ((len + PAGE - 1) & ~(PAGE - 1));
    bool any = false;
    for (int i = 0; i < SHARED_MAPPINGS && !any; i++)
        any = shared_mappings[i].span.end && shared_mappings[i].span.start < end && shared_mappings[i].span.end > start;
    if (!any)
        return;
    uint64_t before = block_signals();
    lock();
    for (int i = 0; i < SHARED_MAPPINGS; i++) {
        struct span *span = &shared_mappings[i].span;
        if (!span->end || span->start >= end || span->end <= start)
            continue;
        if (span->start >= start && span->end <= end) {
            shim_drop_fd(shared_mappings[i].fd);
            span->end = 0;
        } else if (span->start >= start) {
            span->start = end;
        } else if (span->end <= end) {
            span->end = start;
        }
    }
    unlock();
    restore_signals(before);
}

void adopt_init(void)
{
    if (!next_pthread_create)
        next_pthread_create = shim_next("pthread_create");
    pthread_key_create(&stack_key, forget_stack);
}
