/*
 * SIGSEGV, SIGBUS and SIGILL belong to the library, which serves accesses to devices with them; the program keeps
 * the illusion that they are its own. What it installs is stored here and called for faults that are not ours,
 * with the mask, the flags and the default action the kernel would give it.
 *
 * It must never block them for real, or a load from a BAR would kill it. So for each there is a marker: a real-time
 * signal taken from the C library's reserve, which is blocked in the thread's real mask while the program believes
 * that it blocks the owned signal. Everything that saves, restores or inherits masks (siglongjmp, sigreturn, threads,
 * fork, exec, swapcontext) thereby carries the belief along. A signal sent from outside while it is "blocked" is
 * queued as its marker, and delivered when that is unblocked.
 *
 * Left out: sigqueue of a marker by number.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <ucontext.h>

#include "lock.h"
#include "signals.h"

const int owned_signal[OWNED] = {SIGSEGV, SIGBUS, SIGILL};
int marker_signal[OWNED];
static uint64_t owned_bits;
static bool installed;
static long own_pid; /* a vfork child shares this memory, but not the signal handlers */

/* Reported by the C library for a handler that it installed. */
#define KERNEL_SA_RESTORER 0x04000000

/* ---- dispositions ------------------------------------------------------------------------------------------- */

static struct disposition {
    uint32_t sequence; /* odd while it is written */
    struct sigaction action;
} dispositions[OWNED];
static int lock_word;
static uint64_t fork_mask;

static struct {
    int (*sigaction)(int, const struct sigaction *, struct sigaction *);
    sighandler_t (*signal)(int, sighandler_t);
    sighandler_t (*sysv_signal)(int, sighandler_t);
    sighandler_t (*sigset)(int, sighandler_t);
} real;
static bool looked_up;

static void look_up(void)
{
    real.sigaction = shim_next("sigaction");
    real.signal = shim_next("signal");
    real.sysv_signal = shim_next("sysv_signal");
    real.sigset = shim_next("sigset");
    sigmask_look_up();
    __atomic_store_n(&looked_up, true, __ATOMIC_RELEASE);
}

bool signals_translated(void)
{
    if (!__atomic_load_n(&looked_up, __ATOMIC_ACQUIRE))
        look_up();
    return __atomic_load_n(&installed, __ATOMIC_ACQUIRE) && raw_getpid() == own_pid;
}

/* ---- the program's handlers --------------------------------------------------------------------------------- */

static void fork_prepare(void)
{
    uint64_t before = lock_take(&lock_word);
    fork_mask = before;
}
static void fork_parent(void)
{
    lock_give(&lock_word, fork_mask);
}
static void fork_child(void)
{
    own_pid = raw_getpid();
    lock_give(&lock_word, fork_mask);
}

/* Under the lock. */
static void write_disposition(struct disposition *d, const struct sigaction *action)
{
    __atomic_store_n(&d->sequence, d->sequence + 1, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    d->action = *action;
    __atomic_store_n(&d->sequence, d->sequence + 1, __ATOMIC_RELEASE);
}

static struct sigaction read_disposition(struct disposition *d)
{
    for (;;) {
        uint32_t sequence = __atomic_load_n(&d->sequence, __ATOMIC_ACQUIRE);
        if (!(sequence & 1)) {
            struct sigaction action = d->action;
            __atomic_thread_fence(__ATOMIC_ACQUIRE);
            if (__atomic_load_n(&d->sequence, __ATOMIC_RELAXED) == sequence)
                return action;
        }
        raw_sched_yield();
    }
}

static void on_signal(int signal, siginfo_t *info, void *context);

static void install_one(int signal, int flags)
{
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | flags};
    memset(&action.sa_mask, 0xff, sizeof action.sa_mask);
    real.sigaction(signal, &action, NULL);
}

/* The kernel's handler runs on the stack, and restarts calls, as the program's would. */
static void install(int i)
{
    const struct sigaction *action = &dispositions[i].action;
    bool handled = action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN;
    int flags = handled ? action->sa_flags & (SA_ONSTACK | SA_RESTART) : SA_RESTART;
    install_one(owned_signal[i], flags);
    if (!marker_signal[i])
        return;
    /* An ignored marker forgets what is pending, and tells the next program image, as an ignored signal does. */
    if (action->sa_handler == SIG_IGN)
        real.sigaction(marker_signal[i], &(struct sigaction){.sa_handler = SIG_IGN}, NULL);
    else
        install_one(marker_signal[i], flags);
}

static int set_disposition(int i, const struct sigaction *act, struct sigaction *old)
{
    struct sigaction copy;
    if (act)
        copy = *act;
    uint64_t before = lock_take(&lock_word);
    if (old)
        *old = dispositions[i].action;
    if (act) {
        store_mask(&copy.sa_mask, load_mask(&copy.sa_mask) & ~(BIT(SIGKILL) | BIT(SIGSTOP)));
        copy.sa_flags |= KERNEL_SA_RESTORER;
        write_disposition(&dispositions[i], &copy);
        install(i);
    }
    lock_give(&lock_word, before);
    return 0;
}

EXPORT int sigaction(int signal, const struct sigaction *restrict act, struct sigaction *restrict old)
{
    if (!signals_translated())
        return real.sigaction(signal, act, old);
    int i = owned_index(signal);
    if (i >= 0)
        return set_disposition(i, act, old);
    if (marker_index(signal) >= 0) {
        errno = EINVAL;
        return -1;
    }
    struct sigaction copy;
    if (act) {
        copy = *act;
        store_mask(&copy.sa_mask, to_kernel(load_mask(&act->sa_mask)));
    }
    int result = real.sigaction(signal, act ? &copy : NULL, old);
    if (result == 0 && old)
        store_mask(&old->sa_mask, to_program(load_mask(&old->sa_mask)));
    return result;
}

static sighandler_t set_handler(int signal, sighandler_t handler, int flags, bool mask_itself)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags}, old;
    sigemptyset(&action.sa_mask);
    if (mask_itself && sigaddset(&action.sa_mask, signal) < 0)
        return SIG_ERR;
    return sigaction(signal, &action, &old) < 0 ? SIG_ERR : old.sa_handler;
}

static bool passes(int signal)
{
    return !signals_translated() || (owned_index(signal) < 0 && marker_index(signal) < 0);
}

EXPORT sighandler_t signal(int number, sighandler_t handler)
{
    if (passes(number))
        return real.signal(number, handler);
    return set_handler(number, handler, SA_RESTART, true);
}

EXPORT sighandler_t bsd_signal(int number, sighandler_t handler)
{
    return signal(number, handler);
}

EXPORT sighandler_t ssignal(int number, sighandler_t handler)
{
    return signal(number, handler);
}

EXPORT sighandler_t sysv_signal(int number, sighandler_t handler)
{
    if (passes(number))
        return real.sysv_signal(number, handler);
    return set_handler(number, handler, (int)SA_RESETHAND | SA_NODEFER, false);
}

EXPORT sighandler_t __sysv_signal(int number, sighandler_t handler)
{
    return sysv_signal(number, handler);
}

EXPORT sighandler_t sigset(int number, sighandler_t handler)
{
    if (passes(number))
        return real.sigset(number, handler);
    sigset_t set, before;
    sigemptyset(&set);
    sigaddset(&set, number);
    sigemptyset(&before);
    struct sigaction old;
    if (sigaction(number, NULL, &old) < 0)
        return SIG_ERR;
    bool hold = handler == SIG_HOLD;
    if (!hold && set_handler(number, handler, 0, false) == SIG_ERR)
        return SIG_ERR;
    sigprocmask(hold ? SIG_BLOCK : SIG_UNBLOCK, &set, &before);
    return sigismember(&before, number) ? SIG_HOLD : old.sa_handler;
}

EXPORT int sigignore(int number)
{
    return set_handler(number, SIG_IGN, 0, false) == SIG_ERR ? -1 : 0;
}

/* ---- delivery ----------------------------------------------------------------------------------------------- */

static long queue_to_thread(int signal, const siginfo_t *info)
{
    return raw_syscall(SYS_rt_tgsigqueueinfo, raw_getpid(), raw_gettid(), signal, (long)info, 0, 0);
}

/* The default action, by the kernel itself, on return from this handler: status, core and address are the real ones. */
static void die(int signal, const siginfo_t *info, uint64_t *mask)
{
    struct {
        void *handler;
        unsigned long flags;
        void *restorer;
        uint64_t mask;
    } by_default = {0};
    raw_syscall(SYS_rt_sigaction, signal, (long)&by_default, 0, sizeof by_default.mask, 0, 0);
    *mask &= ~BIT(signal);
    queue_to_thread(signal, info);
}

/* Runs the program's handler as the kernel would: its mask, its flags, its view of the interrupted mask. */
static void call_program(int i, const struct sigaction *action, siginfo_t *info, ucontext_t *context)
{
    uint64_t mask = load_mask(&context->uc_sigmask), all = ~UINT64_C(0);
    if (action->sa_flags & (int)SA_RESETHAND) {
        struct sigaction reset = *action;
        reset.sa_handler = SIG_DFL;
        uint64_t before = lock_take(&lock_word);
        write_disposition(&dispositions[i], &reset);
        lock_give(&lock_word, before);
    }
    uint64_t during = mask | to_kernel(load_mask(&action->sa_mask));
    if (!(action->sa_flags & SA_NODEFER) && marker_signal[i])
        during |= BIT(marker_signal[i]);
    store_mask(&context->uc_sigmask, to_program(mask));
    during &= ~owned_bits;
    raw_sigprocmask(SIG_SETMASK, &during, NULL);
    action->sa_sigaction(owned_signal[i], info, context);
    raw_sigprocmask(SIG_SETMASK, &all, NULL);
    store_mask(&context->uc_sigmask, to_kernel(load_mask(&context->uc_sigmask)));
}

/* A line of /proc/thread-self/status, a mask in hexadecimal. */
static uint64_t status_mask(const char *text, const char *key)
{
    const char *line = strstr(text, key);
    uint64_t mask = 0;
    if (!line)
        return 0;
    for (line += strlen(key); *line && *line != '\n'; line++) {
        int digit = *line >= '0' && *line <= '9' ? *line - '0' : *line >= 'a' && *line <= 'f' ? *line - 'a' + 10 : -1;
        if (digit >= 0)
            mask = mask << 4 | (uint64_t)digit;
    }
    return mask;
}

/* A standard signal is pending at most once for the thread and once for the process. */
static bool is_pending(int signal, bool for_thread)
{
    uint64_t pending = 0;
    raw_syscall(SYS_rt_sigpending, (long)&pending, sizeof pending, 0, 0, 0, 0);
    if (!(pending & BIT(signal)))
        return false;
    char text[2048];
    long fd = raw_openat(AT_FDCWD, "/proc/thread-self/status", O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return true;
    long length = raw_read((int)fd, text, sizeof text - 1);
    raw_close((int)fd);
    text[length > 0 ? length : 0] = 0;
    return status_mask(text, for_thread ? "SigPnd:" : "ShdPnd:") & BIT(signal);
}

/* tgkill and raise send to the thread, kill and sigqueue to the process. */
static void hold(int i, const siginfo_t *info)
{
    bool for_thread = info->si_code == SI_TKILL;
    if (is_pending(marker_signal[i], for_thread))
        return;
    if (for_thread)
        queue_to_thread(marker_signal[i], info);
    else
        raw_syscall(SYS_rt_sigqueueinfo, raw_getpid(), marker_signal[i], (long)info, 0, 0, 0);
}

static void deliver(int i, siginfo_t *info, ucontext_t *context, bool forced)
{
    uint64_t mask = load_mask(&context->uc_sigmask);
    bool blocked = marker_signal[i] && mask & BIT(marker_signal[i]);
    struct sigaction action = read_disposition(&dispositions[i]);
    bool handled = action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN;
    if (!forced && blocked) {
        hold(i, info);
    } else if ((forced && blocked) || (!handled && (forced || action.sa_handler == SIG_DFL))) {
        die(owned_signal[i], info, &mask);
        store_mask(&context->uc_sigmask, mask);
    } else if (handled) {
        call_program(i, &action, info, context);
    }
}

/* All signals are blocked here. */
static void on_signal(int signal, siginfo_t *info, void *context)
{
    int i = marker_index(signal);
    if (i >= 0) {
        info->si_signo = owned_signal[i];
        deliver(i, info, context, false);
        return;
    }
    /* A fault has a positive code; what kill, sigqueue and tgkill send has not. */
    bool fault = info->si_code > 0;
    if (fault && signal != SIGILL && adopt_fault(info->si_addr))
        return;
    if (fault && trap_fault(info, context))
        return;
    i = owned_index(info->si_signo); /* a device that does not answer is a SIGBUS */
    deliver(i, info, context, fault);
}

/* ---- start-up ----------------------------------------------------------------------------------------------- */

extern int __libc_allocate_rtsig(int high);

void signals_init(void)
{
    if (!__atomic_load_n(&looked_up, __ATOMIC_ACQUIRE))
        look_up();
    own_pid = raw_getpid();
    uint64_t mask = 0;
    raw_sigprocmask(SIG_BLOCK, NULL, &mask);
    for (int i = 0; i < OWNED; i++) {
        int marker = __libc_allocate_rtsig(0);
        if (marker > 0) {
            marker_signal[i] = marker;
            if (mask & BIT(owned_signal[i]))
                mask |= BIT(marker);
        }
        owned_bits |= BIT(owned_signal[i]);
        struct sigaction inherited = {.sa_handler = SIG_DFL};
        real.sigaction(owned_signal[i], NULL, &dispositions[i].action);
        if (marker_signal[i])
            real.sigaction(marker_signal[i], NULL, &inherited);
        if (inherited.sa_handler == SIG_IGN)
            dispositions[i].action.sa_handler = SIG_IGN;
        install(i);
    }
    mask &= ~owned_bits;
    raw_sigprocmask(SIG_SETMASK, &mask, NULL);
    pthread_atfork(fork_prepare, fork_parent, fork_child);
    __atomic_store_n(&installed, true, __ATOMIC_RELEASE);
}
