/*
 * A program that uses a mapped BAR in every way the traps promise to serve. One run is one scenario, named by the
 * argument; it exits with 0 when all it saw was right. The device behind /dev/bar is memory that counts accesses.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <immintrin.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SIZE (256 * 1024)
static volatile uint8_t *bar;
static int bar_fd;

#define CHECK(condition)                                                             \
    do {                                                                             \
        if (!(condition)) {                                                          \
            fprintf(stderr, "line %d: %s does not hold\n", __LINE__, #condition);    \
            _exit(1);                                                                \
        }                                                                            \
    } while (0)

#define AT(type, offset) (*(volatile type *)(bar + (offset)))

static void widths(void)
{
    AT(uint8_t, 0) = 0x11;
    AT(uint16_t, 2) = 0x2222;
    AT(uint32_t, 4) = 0x33333333;
    AT(uint64_t, 8) = 0x4444444444444444;
    CHECK(AT(uint8_t, 0) == 0x11 && AT(uint16_t, 2) == 0x2222);
    CHECK(AT(uint32_t, 4) == 0x33333333 && AT(uint64_t, 8) == 0x4444444444444444);
    __m128i pattern = _mm_set1_epi8(0x55), out;
    __asm__ volatile("movups %1, (%0)" : : "r"(bar + 16), "x"(pattern) : "memory");
    __asm__ volatile("movdqu (%1), %0" : "=x"(out) : "r"(bar + 16) : "memory");
    CHECK(memcmp(&out, &pattern, 16) == 0);
}

__attribute__((target("avx2"))) static void avx(void)
{
    if (!__builtin_cpu_supports("avx2"))
        return;
    __m256i pattern = _mm256_set_epi64x(4, 3, 2, 1), out;
    __asm__ volatile("vmovdqu %1, (%0)" : : "r"(bar + 64), "x"(pattern) : "memory");
    __asm__ volatile("vmovdqu (%1), %0" : "=x"(out) : "r"(bar + 64) : "memory");
    CHECK(memcmp(&out, &pattern, 32) == 0);
}

static void copies(void)
{
    static uint8_t in[70000], out[70000];
    for (size_t i = 0; i < sizeof in; i++)
        in[i] = (uint8_t)(i * 7 + i / 251);
    void *device = (void *)bar;
    for (size_t n = 0; n < 600; n += n < 140 ? 1 : 37) {
        size_t at = n * 13 % 64;
        memcpy((char *)device + at, in + 1, n);
        memset(out, 0xee, n + 1);
        memcpy(out, (char *)device + at, n);
        CHECK(memcmp(out, in + 1, n) == 0 && out[n] == 0xee);
        CHECK(memcmp((char *)device + at, in + 1, n) == 0);
        memset((char *)device + at, (int)n, n);
        for (size_t i = 0; i < n; i++)
            CHECK(bar[at + i] == (uint8_t)n);
    }
    memcpy(device, in, sizeof in);
    memmove((char *)device + 100, device, 60000);
    memcpy(out, (char *)device + 100, 60000);
    CHECK(memcmp(out, in, 60000) == 0);
}

static void rep_movs(void)
{
    static uint8_t in[100000], out[100000];
    for (size_t i = 0; i < sizeof in; i++)
        in[i] = (uint8_t)(i * 31);
    void *to = (void *)bar, *from = in;
    size_t count = sizeof in;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
    CHECK(to == bar + sizeof in && from == in + sizeof in && count == 0);
    to = out, from = (void *)bar, count = sizeof in / 4;
    __asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
    CHECK(memcmp(in, out, sizeof in) == 0 && count == 0);
    to = (void *)(bar + 128 * 1024), from = (void *)bar, count = 1000;
    __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
    CHECK(memcmp((void *)(bar + 128 * 1024), in, 8000) == 0);
}

static void *add(void *p)
{
    for (int i = 0; i < 500; i++)
        atomic_fetch_add((_Atomic uint32_t *)p, 1);
    return NULL;
}

static void *store(void *p)
{
    for (uint32_t i = 0; i < 1000; i++)
        *(volatile uint32_t *)p = i;
    return NULL;
}

static void in_threads(void *(*work)(void *), size_t apart)
{
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, work, (void *)(bar + 4096 + apart * i)) == 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
}

static void atomics(void)
{
    in_threads(add, 0);
    CHECK(AT(uint32_t, 4096) == 2000);
    uint64_t expected = 5;
    AT(uint64_t, 0) = 5;
    CHECK(__atomic_compare_exchange_n((uint64_t *)bar, &expected, 9, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    CHECK(__atomic_exchange_n((uint64_t *)bar, 1, __ATOMIC_SEQ_CST) == 9);
    __atomic_or_fetch((uint64_t *)bar, 0xf0, __ATOMIC_SEQ_CST);
    CHECK(AT(uint64_t, 0) == 0xf1);
}

static void threads(void)
{
    in_threads(store, 4);
}

static volatile sig_atomic_t handled;
static void touch(int signal)
{
    (void)signal;
    AT(uint32_t, 512) = AT(uint32_t, 512) + 1;
    handled++;
}

/* Handlers with everything blocked, on a small stack of their own, interrupting accesses of the same thread. */
static void handlers(void)
{
    stack_t stack = {.ss_size = 16384, .ss_sp = malloc(16384)};
    CHECK(sigaltstack(&stack, NULL) == 0);
    struct sigaction action = {.sa_handler = touch, .sa_flags = SA_ONSTACK}, back;
    sigfillset(&action.sa_mask);
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    CHECK(sigaction(SIGALRM, NULL, &back) == 0);
    CHECK(sigismember(&back.sa_mask, SIGSEGV) == 1 && sigismember(&back.sa_mask, SIGUSR2) == 1);
    struct itimerval timer = {{0, 2000}, {0, 2000}};
    setitimer(ITIMER_REAL, &timer, NULL);
    uint32_t count = 0;
    while (handled < 20)
        AT(uint32_t, 516) = ++count;
    timer = (struct itimerval){0};
    setitimer(ITIMER_REAL, &timer, NULL);
    CHECK(AT(uint32_t, 512) == (uint32_t)handled && AT(uint32_t, 516) == count);
    sigset_t all;
    sigfillset(&all);
    sigdelset(&all, SIGALRM);
    handled = 0;
    alarm(1);
    CHECK(sigsuspend(&all) == -1 && errno == EINTR && handled == 1);
    alarm(1);
    CHECK(ppoll(NULL, 0, NULL, &all) == -1 && errno == EINTR && handled == 2);
}

static sigjmp_buf escape;
static void *volatile seen_address;
static void catch_fault(int signal, siginfo_t *info, void *context)
{
    (void)context;
    seen_address = info->si_addr;
    AT(uint32_t, 0) = (uint32_t)signal; /* a trap within the program's own handler */
    siglongjmp(escape, signal);
}

static void repair(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    mprotect((void *)((uintptr_t)info->si_addr & ~4095ul), 4096, PROT_READ | PROT_WRITE);
    handled++;
}

static void own_handler(void)
{
    char *page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct sigaction action = {.sa_sigaction = catch_fault, .sa_flags = SA_SIGINFO}, back;
    sigaddset(&action.sa_mask, SIGUSR1);
    CHECK(sigaction(SIGSEGV, NULL, &back) == 0 && back.sa_handler == SIG_DFL);
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
    CHECK(sigaction(SIGSEGV, NULL, &back) == 0 && back.sa_sigaction == catch_fault);
    CHECK((back.sa_flags & SA_SIGINFO) && sigismember(&back.sa_mask, SIGUSR1) == 1);
    for (int i = 0; i < 3; i++) {
        int signal = sigsetjmp(escape, 1);
        if (!signal) {
            *(volatile char *)(page + 8 * i) = 1;
            CHECK(!"a store to PROT_NONE memory");
        }
        CHECK(signal == SIGSEGV && seen_address == page + 8 * i && AT(uint32_t, 0) == SIGSEGV);
    }
    action.sa_sigaction = repair;
    sigaction(SIGSEGV, &action, NULL);
    *(volatile char *)page = 7;
    CHECK(*page == 7 && handled == 1);
    AT(uint32_t, 4) = 5;
    CHECK(AT(uint32_t, 4) == 5 && handled == 1);
    CHECK(signal(SIGSEGV, SIG_DFL) == (sighandler_t)(void (*)(void))repair);
    CHECK(signal(SIGILL, SIG_IGN) == SIG_DFL && signal(SIGILL, SIG_DFL) == SIG_IGN);
}

static void blocked(void)
{
    sigset_t set, old;
    sigemptyset(&set);
    sigaddset(&set, SIGSEGV);
    sigaddset(&set, SIGUSR1);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    AT(uint32_t, 0) = 77;
    CHECK(AT(uint32_t, 0) == 77);
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &old) == 0);
    CHECK(sigismember(&old, SIGSEGV) == 1 && sigismember(&old, SIGUSR1) == 1 && sigismember(&old, SIGBUS) == 0);
    for (int signal = SIGRTMIN; signal <= 64; signal++)
        CHECK(sigismember(&old, signal) == 0);
    signal(SIGSEGV, touch);
    raise(SIGSEGV);
    CHECK(handled == 0);
    CHECK(sigpending(&old) == 0 && sigismember(&old, SIGSEGV) == 1);
    CHECK(sigprocmask(SIG_UNBLOCK, &set, NULL) == 0 && handled == 1);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    int signal = 0;
    kill(getpid(), SIGSEGV);
    CHECK(sigwait(&set, &signal) == 0 && signal == SIGSEGV && handled == 1);
    CHECK(sigprocmask(12345, &set, NULL) == -1 && errno == EINVAL);
}

static int status_of(void (*work)(void))
{
    pid_t child = fork();
    if (child == 0) {
        work();
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    return status;
}

static volatile int *volatile nowhere = (int *)16;
static void wild_store(void) { *nowhere = 1; }
static void wild_store_blocked(void)
{
    sigset_t set;
    sigfillset(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGSEGV, touch);
    wild_store();
}
static void wild_store_ignored(void) { signal(SIGSEGV, SIG_IGN), wild_store(); }
static void wild_store_once(void)
{
    struct sigaction action = {.sa_handler = touch, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGSEGV, &action, NULL);
    wild_store(); /* the handler returns, the store faults again */
}
static void crash_in_handler(int signal) { (void)signal, wild_store(); }
static void wild_store_in_handler(void) { signal(SIGSEGV, crash_in_handler), wild_store(); }
static void ignored_signal(void) { signal(SIGSEGV, SIG_IGN), raise(SIGSEGV); }
static void raised(void) { raise(SIGSEGV); }
static void illegal(void) { __builtin_trap(); }
static void jump(void) { ((void (*)(void))bar)(); }
static void x87(void) { __asm__ volatile("fldl (%0); fstp %%st(0)" : : "r"(bar)); }
static void misaligned(void) { __asm__ volatile("movaps (%0), %%xmm0" : : "r"(bar + 8) : "xmm0"); }
static void device_dead(void) { (void)AT(uint32_t, SIZE - 4096); }

static bool died(int status, int signal) { return WIFSIGNALED(status) && WTERMSIG(status) == signal; }

static void deaths(void)
{
    CHECK(died(status_of(wild_store), SIGSEGV));
    CHECK(died(status_of(wild_store_blocked), SIGSEGV));
    CHECK(died(status_of(wild_store_ignored), SIGSEGV));
    CHECK(died(status_of(wild_store_once), SIGSEGV));
    CHECK(died(status_of(wild_store_in_handler), SIGSEGV));
    CHECK(died(status_of(raised), SIGSEGV));
    CHECK(died(status_of(illegal), SIGILL));
    CHECK(died(status_of(jump), SIGSEGV));
    CHECK(died(status_of(x87), SIGSEGV));
    CHECK(died(status_of(misaligned), SIGSEGV));
    CHECK(died(status_of(device_dead), SIGBUS));
    CHECK(status_of(ignored_signal) == 0);
}

static void overflow(volatile char *above, uint64_t depth)
{
    volatile char frame[4096];
    frame[0] = *above;
    if (depth > 0)
        overflow(frame, depth - 1);
    frame[1] = 1;
}
static void on_overflow(int signal) { (void)signal, _exit(AT(uint32_t, 0) == 3 ? 42 : 1); }
static void overflowing(void)
{
    static char room[32768];
    stack_t stack = {.ss_size = sizeof room, .ss_sp = room};
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_handler = on_overflow, .sa_flags = SA_ONSTACK};
    sigaction(SIGSEGV, &action, NULL);
    AT(uint32_t, 0) = 3;
    overflow(room, UINT64_MAX);
}
static void stack_overflow(void)
{
    int status = status_of(overflowing);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42);
}

static void child_access(void)
{
    CHECK(AT(uint32_t, 8) == 1);
    AT(uint32_t, 8) = 2;
    CHECK(died(status_of(raised), SIGSEGV));
}
static void forked(void)
{
    AT(uint32_t, 8) = 1;
    CHECK(status_of(child_access) == 0);
    CHECK(AT(uint32_t, 8) == 2);
}

static void touch_first(void) { AT(uint32_t, 0) = 1; }
static void touch_second(void) { AT(uint32_t, 4096) = 1; }
static void touch_third(void) { AT(uint32_t, 8192) = 1; }
static void unmapped(void)
{
    close(bar_fd);
    CHECK(munmap((void *)(bar + 4096), 4096) == 0);
    touch_third();
    CHECK(status_of(touch_first) == 0 && died(status_of(touch_second), SIGSEGV) && status_of(touch_third) == 0);
    void *plain = mmap((void *)bar, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(plain == bar);
    AT(uint32_t, 0) = 99;
    CHECK(AT(uint32_t, 0) == 99 && AT(uint32_t, 8192) == 1);
    CHECK(munmap((void *)bar, SIZE) == 0);
    CHECK(died(status_of(touch_third), SIGSEGV) && died(status_of(touch_first), SIGSEGV));
}

static void protection(void)
{
    CHECK(mprotect((void *)(bar + 4096), 4096, PROT_READ) == 0);
    CHECK(AT(uint32_t, 4096) == 0 && died(status_of(touch_second), SIGSEGV));
    CHECK(status_of(touch_first) == 0 && status_of(touch_third) == 0);
    CHECK(mprotect((void *)bar, SIZE, PROT_NONE) == 0 && died(status_of(touch_first), SIGSEGV));
    CHECK(mprotect((void *)bar, SIZE, PROT_READ | PROT_WRITE) == 0 && status_of(touch_second) == 0);
    AT(uint32_t, 4096) = 8;
    CHECK(AT(uint32_t, 4096) == 8);
}

/* A part of the BAR moves, and what is left, shrunk or moved over goes. */
static void moved(void)
{
    volatile uint8_t *target = mmap(NULL, 16384, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(target != MAP_FAILED);
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    AT(uint32_t, 4096) = 1, AT(uint32_t, 8192) = 2;
    CHECK(mremap((void *)(bar + 4096), 8192, 8192, flags, (void *)target) == target);
    CHECK(*(volatile uint32_t *)target == 1 && *(volatile uint32_t *)(target + 4096) == 2);
    *(volatile uint32_t *)(target + 4096) = 3;
    CHECK(died(status_of(touch_second), SIGSEGV) && status_of(touch_first) == 0);
    CHECK(mremap((void *)target, 8192, 4096, 0) == target && *(volatile uint32_t *)target == 1);
    volatile uint8_t *second = bar + 4096;
    CHECK(mmap((void *)second, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, bar_fd, 8192) == second);
    CHECK(*(volatile uint32_t *)second == 3);
    /* Over another part: that one is gone. */
    CHECK(mremap((void *)second, 4096, 4096, flags, (void *)bar) == bar && AT(uint32_t, 0) == 3);
    CHECK(died(status_of(touch_second), SIGSEGV));
    errno = 0;
    CHECK(mremap((void *)bar, 4096, 8192, MREMAP_MAYMOVE) == MAP_FAILED && errno == EFAULT);
    CHECK(munmap((void *)bar, SIZE) == 0 && *(volatile uint32_t *)target == 1);
}

static void advised(void)
{
    errno = 0;
    CHECK(madvise((void *)bar, 4096, MADV_DONTNEED) == -1 && errno == EINVAL);
    CHECK(madvise((void *)bar, SIZE, MADV_DOFORK) == -1 && errno == EINVAL);
    CHECK(madvise((void *)bar, SIZE, MADV_DONTDUMP) == 0);
    AT(uint32_t, 0) = 5;
    CHECK(status_of(touch_second) == 0);
    CHECK(madvise((void *)(bar + 4096), 4096, MADV_DONTFORK) == 0);
    CHECK(AT(uint32_t, 4096) == 1 && died(status_of(touch_second), SIGSEGV));
    CHECK(mprotect((void *)bar, SIZE, PROT_READ) == 0 && mprotect((void *)bar, SIZE, PROT_READ | PROT_WRITE) == 0);
    CHECK(died(status_of(touch_second), SIGSEGV) && status_of(touch_first) == 0 && status_of(touch_third) == 0);
    AT(uint32_t, 4096) = 6;
    CHECK(AT(uint32_t, 4096) == 6 && AT(uint32_t, 0) == 1);
}

/* Puts files of its own at every number, those of the library too. */
static void renumbered(void)
{
    int null = open("/dev/null", O_RDWR);
    volatile uint8_t *other = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, bar_fd, 0);
    CHECK(close(bar_fd) == 0);
    for (int fd = null + 1; fd < 1000; fd++)
        CHECK(dup2(null, fd) == fd);
    AT(uint32_t, 0) = 7;
    CHECK(*(volatile uint32_t *)other == 7);
    pid_t child = vfork();
    if (child == 0) {
        for (int fd = 1000; fd < 1024; fd++)
            dup2(null, fd);
        _exit(0);
    }
    CHECK(waitpid(child, NULL, 0) == child);
    AT(uint32_t, 0) = 8;
    CHECK(*(volatile uint32_t *)other == 8);
    CHECK(munmap((void *)bar, SIZE) == 0 && munmap((void *)other, 4096) == 0);
    for (int fd = null + 1; fd < 1000; fd++)
        CHECK(write(fd, "x", 1) == 1); /* none of them was closed with the mappings */
}

/* An access of which one half is device and the other half ordinary memory. */
static void straddling(void)
{
    volatile uint8_t *border = bar + 8192;
    void *plain = mmap((void *)border, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(plain == border);
    *(volatile uint64_t *)(border - 4) = 0x1111111122222222;
    CHECK(*(volatile uint32_t *)(border - 4) == 0x22222222 && *(volatile uint32_t *)border == 0x11111111);
    *(volatile uint32_t *)border = 0x33333333;
    CHECK(*(volatile uint64_t *)(border - 4) == 0x3333333322222222);
}

static volatile uint8_t *map_again(size_t length, off_t offset)
{
    void *p = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, bar_fd, offset);
    CHECK(p != MAP_FAILED);
    return p;
}

/* Many windows: one instruction reaches two of them, and each outlives its neighbours. */
static void many_windows(void)
{
    enum { N = 200 };
    static volatile uint8_t *page[N];
    for (int i = 0; i < N; i++)
        page[i] = map_again(4096, i % 32 * 4096);
    for (int i = 0; i < 32; i++)
        *(volatile uint32_t *)page[i] = 1000 + (uint32_t)i;
    void *to = (void *)page[5], *from = (void *)page[N - 1];
    __asm__ volatile("movsl" : "+D"(to), "+S"(from) : : "memory");
    CHECK(AT(uint32_t, 5 * 4096) == 1000 + (N - 1) % 32);
    for (int i = 0; i < N; i += 2)
        munmap((void *)page[i], 4096);
    for (int i = 1; i < N; i += 2)
        CHECK(*(volatile uint32_t *)page[i] == AT(uint32_t, i % 32 * 4096));
    for (int i = 1; i < N; i += 2)
        munmap((void *)page[i], 4096);
}

static atomic_bool stop;
static void *churn(void *p)
{
    while (!stop) {
        volatile uint8_t *window = map_again(8192, 16384);
        *(volatile uint32_t *)(window + 8) = 1;
        mprotect((void *)window, 4096, PROT_READ);
        munmap((void *)(window + 4096), 4096);
        munmap((void *)window, 4096);
    }
    return p;
}
static void *fork_often(void *p)
{
    for (int i = 0; i < 25; i++) {
        pid_t child = fork();
        if (child == 0) {
            AT(uint32_t, 12288) = (uint32_t)i;
            munmap((void *)map_again(4096, 0), 4096);
            signal(SIGSEGV, SIG_IGN);
            _exit(AT(uint32_t, 12288) == (uint32_t)i ? 0 : 1);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    return p;
}

/* Windows come and go, and the process forks, while other threads access theirs. */
static void commotion(void)
{
    pthread_t others[3];
    pthread_create(&others[0], NULL, churn, NULL);
    pthread_create(&others[1], NULL, churn, NULL);
    pthread_create(&others[2], NULL, fork_often, NULL);
    in_threads(store, 4);
    pthread_join(others[2], NULL);
    stop = true;
    pthread_join(others[0], NULL);
    pthread_join(others[1], NULL);
}

/* An address that one thread gives up is the next one's window at once. */
static void *take_turns(void *p)
{
    for (int i = 0; i < 1500; i++) {
        volatile uint8_t *window = map_again(4096, 16384);
        *(volatile uint32_t *)(window + 8) = 1;
        munmap((void *)window, 4096);
    }
    return p;
}
static void handed_over(void)
{
    in_threads(take_turns, 0);
}

/* A vfork child that changes its own dispositions does not change its parent's. */
static void vforked(void)
{
    signal(SIGSEGV, touch);
    pid_t child = vfork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        execl("/bin/true", "true", (char *)NULL);
        _exit(1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    AT(uint32_t, 0) = 6;
    CHECK(AT(uint32_t, 0) == 6 && signal(SIGSEGV, SIG_DFL) == touch);
}

static void direct_stores(void)
{
    static uint64_t command[8] __attribute__((aligned(64))) = {1, 2, 3, 4, 5, 6, 7, 8};
    volatile uint8_t *portal = bar + 4096, *busy = bar + 8192;
    __asm__ volatile(".byte 0x66, 0x0f, 0x38, 0xf8, 0x02" : : "a"(portal), "d"(command) : "memory");
    CHECK(memcmp((void *)portal, command, 64) == 0);
    uint8_t retry;
    __asm__ volatile(".byte 0xf2, 0x0f, 0x38, 0xf8, 0x02; setz %0" : "=q"(retry) : "a"(portal), "d"(command) : "memory", "cc");
    CHECK(retry == 0);
    __asm__ volatile(".byte 0xf2, 0x0f, 0x38, 0xf8, 0x02; setz %0" : "=q"(retry) : "a"(busy), "d"(command) : "memory", "cc");
    CHECK(retry == 1);
    struct sigaction action = {.sa_sigaction = catch_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    int signal = sigsetjmp(escape, 1);
    if (!signal) /* to ordinary memory it is what the CPU makes of it */
        __asm__ volatile(".byte 0xf2, 0x0f, 0x38, 0xf8, 0x02" : : "a"(escape), "d"(command) : "memory", "cc");
    CHECK((signal == SIGILL || signal == SIGSEGV) && seen_address != (void *)escape);
}

/* Registers that the program cannot see change must not. */
static void vectors_kept(void)
{
    uint8_t before[16][16], after[16][16];
    for (int i = 0; i < 256; i++)
        ((uint8_t *)before)[i] = (uint8_t)(i * 11);
    __asm__ volatile("movdqu (%0), %%xmm3; movdqu 16(%0), %%xmm9; movl $5, (%2); movq (%2), %%xmm9;"
                     "movdqu %%xmm3, (%1); movdqu %%xmm9, 16(%1)"
                     : : "r"(before), "r"(after), "r"(bar + 640) : "xmm3", "xmm9", "memory");
    CHECK(memcmp(before[0], after[0], 16) == 0 && after[1][0] == 5 && after[1][8] == 0);
}

static void forever(void)
{
    puts("running");
    fflush(stdout);
    pthread_t thread;
    pthread_create(&thread, NULL, store, (void *)bar);
    for (uint32_t i = 0;; i++)
        AT(uint32_t, 4) = i;
}

static int by_value(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

static void latency(void)
{
    enum { N = 20000 };
    static int nanoseconds[N];
    for (int i = 0; i < N; i++) {
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        AT(uint32_t, 0) = (uint32_t)i;
        clock_gettime(CLOCK_MONOTONIC, &b);
        nanoseconds[i] = (int)((b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec);
    }
    qsort(nanoseconds, N, sizeof *nanoseconds, by_value);
    printf("p50 %d p99 %d\n", nanoseconds[N / 2], nanoseconds[N * 99 / 100]);
}

#define SCENARIO(name) {#name, name}
static const struct {
    const char *name;
    void (*run)(void);
} scenarios[] = {
    SCENARIO(widths), SCENARIO(avx), SCENARIO(copies), SCENARIO(rep_movs), SCENARIO(atomics), SCENARIO(threads),
    SCENARIO(handlers), SCENARIO(own_handler), SCENARIO(blocked), SCENARIO(deaths), SCENARIO(stack_overflow),
    SCENARIO(forked), SCENARIO(moved), SCENARIO(advised), SCENARIO(renumbered), SCENARIO(unmapped), SCENARIO(protection), SCENARIO(straddling), SCENARIO(direct_stores),
    SCENARIO(vectors_kept), SCENARIO(many_windows), SCENARIO(commotion), SCENARIO(handed_over), SCENARIO(vforked), SCENARIO(forever), SCENARIO(latency),
};

int main(int argc, char **argv)
{
    bar_fd = open("/dev/bar", O_RDWR);
    CHECK(argc == 2 && bar_fd >= 0);
    bar = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, bar_fd, 0);
    CHECK(bar != MAP_FAILED);
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++)
        if (strcmp(scenarios[i].name, argv[1]) == 0) {
            scenarios[i].run();
            return 0;
        }
    return 2;
}
