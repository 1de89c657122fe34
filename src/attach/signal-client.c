/*
 * A random walk through everything a program does with SIGSEGV, SIGBUS and SIGILL, written down as it goes. The same
 * walk is made with and without the preload library, which must not show; with it, BAR accesses are mixed in.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define say(...) dprintf(1, __VA_ARGS__)
static const int signals[] = {SIGSEGV, SIGBUS, SIGILL};
static const int masked[] = {SIGSEGV, SIGBUS, SIGILL, SIGUSR1, SIGUSR2, SIGALRM};
#define MASKED ((int)(sizeof masked / sizeof *masked))

static volatile uint32_t *bar;
static uint32_t seed;
static char *guarded;       /* PROT_NONE: a SIGSEGV */
static char *beyond;        /* a page after the end of its file: a SIGBUS */
static int file;
static volatile int escaping; /* 0: the handler repairs, 1: siglongjmp, 2: longjmp */
static sigjmp_buf escape;
static volatile int depth;

static uint32_t pick(uint32_t n)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % n;
}

static void touch(void)
{
    if (bar) {
        bar[0] = seed;
        if (bar[0] != seed)
            say("THE BAR LOST A STORE\n");
    }
}

static const char *letters(const sigset_t *set)
{
    static char text[4][MASKED + 1];
    static int turn;
    char *out = text[turn = (turn + 1) % 4];
    for (int i = 0; i < MASKED; i++)
        out[i] = sigismember(set, masked[i]) == 1 ? "SBI12A"[i] : '-';
    for (int i = SIGRTMIN; i <= SIGRTMAX; i++)
        if (sigismember(set, i) == 1)
            out[0] = '!';
    return out;
}

static sigset_t random_set(void)
{
    sigset_t set;
    sigemptyset(&set);
    if (pick(8) == 0) {
        sigfillset(&set);
        for (int i = SIGRTMIN; i <= 64; i++)
            sigdelset(&set, i);
        return set;
    }
    for (int i = 0; i < MASKED; i++)
        if (pick(3) == 0)
            sigaddset(&set, masked[i]);
    return set;
}

static const char *now_blocked(void)
{
    sigset_t set;
    sigemptyset(&set);
    pthread_sigmask(SIG_BLOCK, NULL, &set);
    return letters(&set);
}

static long where(const siginfo_t *info)
{
    char *address = info->si_addr;
    if (info->si_code <= 0)
        return info->si_pid == getpid() ? -1 : -2;
    if (address >= guarded && address < guarded + 4096)
        return address - guarded;
    if (address >= beyond && address < beyond + 4096)
        return 10000 + (address - beyond);
    return 20000;
}

static void repair(int signal, ucontext_t *context)
{
    if (signal == SIGILL)
        context->uc_mcontext.gregs[REG_RIP] += 2;
    if (signal == SIGSEGV)
        mprotect(guarded, 4096, PROT_READ | PROT_WRITE);
    if (signal == SIGBUS && ftruncate(file, 4096) < 0)
        say("ftruncate failed\n");
}

static void detailed(int signal, siginfo_t *info, void *p)
{
    ucontext_t *context = p;
    stack_t stack;
    sigaltstack(NULL, &stack);
    say("  handler %d/%d code %d at %ld mask %s interrupted %s stack %d\n", signal, info->si_signo, info->si_code,
        where(info), now_blocked(), letters(&context->uc_sigmask), stack.ss_flags & SS_ONSTACK);
    touch();
    if (info->si_code <= 0)
        return;
    if (pick(10) == 0 && depth < 3) {
        depth++;
        raise(signals[pick(3)]);
        depth--;
    }
    if (pick(6) == 0)
        sigaddset(&context->uc_sigmask, signals[pick(3)]);
    if (escaping == 0)
        repair(signal, context);
    else if (escaping == 1)
        siglongjmp(escape, 1);
    else
        longjmp(escape, 1);
}

static void plain(int signal)
{
    say("  plain handler %d mask %s\n", signal, now_blocked());
    touch();
    if (escaping == 1)
        siglongjmp(escape, 1);
    if (escaping == 2)
        longjmp(escape, 1);
}

static const char *name_of(void *handler)
{
    return handler == (void *)SIG_DFL    ? "default"
           : handler == (void *)SIG_IGN  ? "ignored"
           : handler == (void *)SIG_HOLD ? "held"
           : handler == (void *)SIG_ERR  ? "error"
           : handler == (void *)detailed ? "detailed"
           : handler == (void *)plain    ? "plain"
                                         : "unknown";
}

static sighandler_t random_handler(void)
{
    uint32_t n = pick(24);
    return n == 0 ? SIG_DFL : n == 1 ? SIG_IGN : plain;
}

static void set_action(int signal)
{
    static const int flags[] = {(int)SA_RESETHAND, SA_NODEFER, SA_RESTART, SA_ONSTACK};
    struct sigaction action = {.sa_mask = random_set()}, old;
    memset(&old, 0, sizeof old);
    if (pick(3)) {
        action.sa_sigaction = detailed;
        action.sa_flags = SA_SIGINFO;
    } else {
        action.sa_handler = random_handler();
    }
    for (int i = 0; i < 4; i++)
        if (pick(i == 0 ? 12 : 4) == 0)
            action.sa_flags |= flags[i];
    int result = sigaction(signal, pick(5) ? &action : NULL, &old);
    say("sigaction %d: %d, was %s %x %s\n", signal, result, name_of((void *)old.sa_handler), old.sa_flags,
        letters(&old.sa_mask));
}

static sighandler_t set_plainly(int number)
{
    return signal(number, random_handler());
}

static void older_calls(int signal)
{
    switch (pick(7)) {
    case 0: say("signal %d: %s\n", signal, name_of((void *)set_plainly(signal))); break;
    case 1: say("sysv_signal %d: %s\n", signal, name_of((void *)sysv_signal(signal, random_handler()))); break;
    case 2: say("sigset %d: %s\n", signal, name_of((void *)sigset(signal, pick(3) ? plain : SIG_HOLD))); break;
    case 3: say("sighold %d: %d\n", signal, sighold(signal)); break;
    case 4: say("sigrelse %d: %d\n", signal, sigrelse(signal)); break;
    case 5: say("sigignore %d: %d\n", signal, pick(4) ? 0 : sigignore(signal)); break;
    default: say("sigblock: %x\n", sigblock(1 << (signal - 1)) & 0x7fffffff);
    }
}

static void fault(int signal)
{
    escaping = (int)pick(3);
    char *volatile page = signal == SIGSEGV ? guarded : beyond;
    volatile uint32_t at = pick(4096);
    if (signal == SIGSEGV)
        mprotect(guarded, 4096, PROT_NONE);
    if (signal == SIGBUS && ftruncate(file, 0) < 0)
        say("ftruncate failed\n");
    struct sigaction action;
    sigaction(signal, NULL, &action);
    if (pick(12) && (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN))
        sigaction(signal, &(struct sigaction){.sa_sigaction = detailed, .sa_flags = SA_SIGINFO}, NULL);
    if (pick(12))
        sigrelse(signal);
    if (escaping == 0 && action.sa_handler == plain)
        escaping = 1;
    say("fault %d, escaping %d\n", signal, escaping);
    if (sigsetjmp(escape, escaping == 1) == 0) {
        if (signal == SIGILL)
            __asm__ volatile("ud2");
        else
            page[at] = 1;
    }
    escaping = 0;
    say("after it: %s\n", now_blocked());
}

static void send_signal(int signal)
{
    union sigval value = {.sival_int = 5};
    escaping = pick(4) == 0;
    int how = (int)pick(4);
    say("send %d by %d\n", signal, how);
    if (sigsetjmp(escape, 1) == 0) {
        if (how == 0)
            raise(signal);
        else if (how == 1)
            kill(getpid(), signal);
        else if (how == 2)
            pthread_kill(pthread_self(), signal);
        else
            sigqueue(getpid(), signal, value);
    }
    escaping = 0;
}

static void change_mask(void)
{
    static const int how[] = {SIG_BLOCK, SIG_UNBLOCK, SIG_UNBLOCK, SIG_SETMASK};
    sigset_t set = random_set(), old;
    sigemptyset(&old);
    int i = (int)pick(4);
    int result = pick(2) ? sigprocmask(how[i], &set, &old) : pthread_sigmask(how[i], &set, &old);
    say("mask %d %s: %d, was %s\n", how[i], letters(&set), result, letters(&old));
}

static void wait_for_one(void)
{
    sigset_t set = random_set(), blocked;
    sigemptyset(&blocked);
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    sigandset(&set, &set, &blocked);
    siginfo_t info = {0};
    struct timespec none = {0, 0};
    say("sigtimedwait %s: %d", letters(&set), sigtimedwait(&set, &info, &none));
    say(", %d\n", info.si_signo);
}

static void *inherits(void *p)
{
    say("a thread starts with %s\n", now_blocked());
    touch();
    return p;
}

static void step(void)
{
    int signal = signals[pick(3)];
    sigset_t pending;
    pthread_t thread;
    touch();
    switch (pick(14)) {
    case 0: case 1: case 2: case 3: set_action(signal); break;
    case 4: older_calls(signal); break;
    case 5: case 6: change_mask(); break;
    case 7: case 8: case 9: fault(signal); break;
    case 10: send_signal(signal); break;
    case 11: wait_for_one(); break;
    case 12:
        sigemptyset(&pending);
        sigpending(&pending);
        say("pending %s\n", letters(&pending));
        break;
    default:
        pthread_create(&thread, NULL, inherits, NULL);
        pthread_join(thread, NULL);
    }
}

/* Each walk is a child's, so that one run has many and shows how each ended. */
int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "exec") == 0) {
        struct sigaction old;
        sigaction(SIGSEGV, NULL, &old);
        say("exec'ed with %s, %s\n", now_blocked(), name_of((void *)old.sa_handler));
        return 0;
    }
    uint32_t first = (uint32_t)atoi(argv[1]), count = (uint32_t)atoi(argv[2]);
    static char stack[65536];
    sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, NULL);
    int fd = open("/dev/bar", O_RDWR);
    if (fd >= 0)
        bar = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    guarded = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    file = memfd_create("beyond", 0);
    beyond = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    for (uint32_t walk = first; walk < first + count; walk++) {
        say("walk %u\n", walk);
        pid_t child = fork();
        if (child == 0) {
            seed = walk * 2654435761u;
            for (int i = 0; i < 3; i++)
                sigaction(signals[i], &(struct sigaction){.sa_sigaction = detailed, .sa_flags = SA_SIGINFO}, NULL);
            for (int i = 0; i < 60; i++)
                step();
            execl("/proc/self/exe", argv[0], "exec", (char *)NULL);
            _exit(9);
        }
        int status;
        waitpid(child, &status, 0);
        say("walk %u ended with %x\n", walk, status & ~0x80);
    }
    return 0;
}
