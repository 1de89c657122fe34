/*
 * The calls by which a program blocks signals, waits for them and asks what is blocked. For SIGSEGV, SIGBUS and SIGILL
 * their markers are blocked instead (signals.c tells why); the program never sees that.
 *
 * Left out: signalfd, and masks in thread and spawn attributes.
 */
#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <time.h>

#include "signals.h"

/* SIGCANCEL and SIGSETXID of the C library, which its sigprocmask leaves alone; SIGKILL and SIGSTOP. */
#define UNMASKABLE (BIT(32) | BIT(33) | BIT(SIGKILL) | BIT(SIGSTOP))

static struct {
    int (*sigprocmask)(int, const sigset_t *, sigset_t *);
    int (*pthread_sigmask)(int, const sigset_t *, sigset_t *);
    int (*sigsuspend)(const sigset_t *);
    int (*sigpending)(sigset_t *);
    int (*sigwait)(const sigset_t *, int *);
    int (*sigwaitinfo)(const sigset_t *, siginfo_t *);
    int (*sigtimedwait)(const sigset_t *, siginfo_t *, const struct timespec *);
    int (*ppoll)(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *);
    int (*ppoll_chk)(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *, size_t);
    int (*pselect)(int, fd_set *, fd_set *, fd_set *, const struct timespec *, const sigset_t *);
    int (*epoll_pwait)(int, struct epoll_event *, int, int, const sigset_t *);
    int (*epoll_pwait2)(int, struct epoll_event *, int, const struct timespec *, const sigset_t *);
} real;

void sigmask_look_up(void)
{
    real.sigprocmask = shim_next("sigprocmask");
    real.pthread_sigmask = shim_next("pthread_sigmask");
    real.sigsuspend = shim_next("sigsuspend");
    real.sigpending = shim_next("sigpending");
    real.sigwait = shim_next("sigwait");
    real.sigwaitinfo = shim_next("sigwaitinfo");
    real.sigtimedwait = shim_next("sigtimedwait");
    real.ppoll = shim_next("ppoll");
    real.ppoll_chk = shim_next("__ppoll_chk");
    real.pselect = shim_next("pselect");
    real.epoll_pwait = shim_next("epoll_pwait");
    real.epoll_pwait2 = shim_next("epoll_pwait2");
}

/* ---- translation -------------------------------------------------------------------------------------------- */

/* Neither owned signals nor markers. */
static uint64_t others(uint64_t mask)
{
    for (int i = 0; i < OWNED; i++) {
        mask &= ~BIT(owned_signal[i]);
        if (marker_signal[i])
            mask &= ~BIT(marker_signal[i]);
    }
    return mask;
}

uint64_t to_kernel(uint64_t mask)
{
    uint64_t out = others(mask);
    for (int i = 0; i < OWNED; i++)
        if (mask & BIT(owned_signal[i]) && marker_signal[i])
            out |= BIT(marker_signal[i]);
    return out;
}

uint64_t to_program(uint64_t mask)
{
    uint64_t out = others(mask);
    for (int i = 0; i < OWNED; i++)
        if (marker_signal[i] && mask & BIT(marker_signal[i]))
            out |= BIT(owned_signal[i]);
    return out;
}

static const sigset_t *translated(const sigset_t *set, sigset_t *room)
{
    if (!set)
        return NULL;
    sigemptyset(room);
    store_mask(room, to_kernel(load_mask(set)));
    return room;
}

/* 0 or an errno. */
static int change_mask(int how, const sigset_t *set, sigset_t *old)
{
    if (set && how != SIG_BLOCK && how != SIG_UNBLOCK && how != SIG_SETMASK)
        return EINVAL;
    uint64_t wanted = set ? to_kernel(load_mask(set)) & ~UNMASKABLE : 0, before = 0;
    long result = raw_sigprocmask(how, set ? &wanted : NULL, &before);
    if (result < 0)
        return (int)-result;
    if (old)
        store_mask(old, to_program(before));
    return 0;
}

EXPORT int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
    return signals_translated() ? change_mask(how, set, old) : real.pthread_sigmask(how, set, old);
}

EXPORT int sigprocmask(int how, const sigset_t *set, sigset_t *old)
{
    if (!signals_translated())
        return real.sigprocmask(how, set, old);
    int error = change_mask(how, set, old);
    if (!error)
        return 0;
    errno = error;
    return -1;
}

/* The BSD forms, whose masks are the signals 1 to 32. */
static int change_bsd_mask(int how, int mask)
{
    sigset_t set, old;
    sigemptyset(&set);
    store_mask(&set, (uint32_t)mask);
    sigemptyset(&old);
    return sigprocmask(how, &set, &old) < 0 ? -1 : (int)load_mask(&old);
}

EXPORT int sigblock(int mask)
{
    return change_bsd_mask(SIG_BLOCK, mask);
}

EXPORT int sigsetmask(int mask)
{
    return change_bsd_mask(SIG_SETMASK, mask);
}

static int change_one(int how, int signal)
{
    sigset_t set;
    sigemptyset(&set);
    return sigaddset(&set, signal) < 0 ? -1 : sigprocmask(how, &set, NULL);
}

EXPORT int sighold(int signal)
{
    return change_one(SIG_BLOCK, signal);
}

EXPORT int sigrelse(int signal)
{
    return change_one(SIG_UNBLOCK, signal);
}

/* ---- calls that take a mask for their own duration ---------------------------------------------------------- */

EXPORT int sigsuspend(const sigset_t *set)
{
    sigset_t room;
    return real.sigsuspend(signals_translated() ? translated(set, &room) : set);
}

EXPORT int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *set)
{
    sigset_t room;
    return real.ppoll(fds, count, timeout, signals_translated() ? translated(set, &room) : set);
}

EXPORT int __ppoll_chk(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *set,
                       size_t size)
{
    sigset_t room;
    return real.ppoll_chk(fds, count, timeout, signals_translated() ? translated(set, &room) : set, size);
}

EXPORT int pselect(int count, fd_set *restrict in, fd_set *restrict out, fd_set *restrict except,
                   const struct timespec *restrict timeout, const sigset_t *restrict set)
{
    sigset_t room;
    return real.pselect(count, in, out, except, timeout, signals_translated() ? translated(set, &room) : set);
}

EXPORT int epoll_pwait(int fd, struct epoll_event *events, int count, int timeout, const sigset_t *set)
{
    sigset_t room;
    return real.epoll_pwait(fd, events, count, timeout, signals_translated() ? translated(set, &room) : set);
}

EXPORT int epoll_pwait2(int fd, struct epoll_event *events, int count, const struct timespec *timeout,
                        const sigset_t *set)
{
    sigset_t room;
    const sigset_t *mask = signals_translated() ? translated(set, &room) : set;
    if (!real.epoll_pwait2) {
        errno = ENOSYS;
        return -1;
    }
    return real.epoll_pwait2(fd, events, count, timeout, mask);
}

EXPORT int sigpending(sigset_t *set)
{
    bool translate = signals_translated();
    int result = real.sigpending(set);
    if (result == 0 && translate)
        store_mask(set, to_program(load_mask(set)));
    return result;
}

static int waited(int signal, siginfo_t *info)
{
    int i = marker_index(signal);
    if (i < 0)
        return signal;
    if (info)
        info->si_signo = owned_signal[i];
    return owned_signal[i];
}

EXPORT int sigwait(const sigset_t *restrict set, int *restrict signal)
{
    sigset_t room;
    int result = real.sigwait(signals_translated() ? translated(set, &room) : set, signal);
    if (result == 0)
        *signal = waited(*signal, NULL);
    return result;
}

EXPORT int sigwaitinfo(const sigset_t *restrict set, siginfo_t *restrict info)
{
    sigset_t room;
    return waited(real.sigwaitinfo(signals_translated() ? translated(set, &room) : set, info), info);
}

EXPORT int sigtimedwait(const sigset_t *restrict set, siginfo_t *restrict info,
                        const struct timespec *restrict timeout)
{
    sigset_t room;
    return waited(real.sigtimedwait(signals_translated() ? translated(set, &room) : set, info, timeout), info);
}
