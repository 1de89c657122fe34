/*
 * The client of process-memory.test.ts: each scenario pins memory through /dev/pin-test, lets the "device" read and
 * write the pinned frames, and checks what the program itself sees. Exit status 0 when everything was as on Linux.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct pin_args {
    uint64_t va, length, writable;
};
struct dma_args {
    uint64_t id, offset, length, byte;
};
#define PIN _IOW('T', 1, struct pin_args)   /* value: id of the pin */
#define UNPIN _IO('T', 2)                   /* argument: id */
#define FILL _IOW('T', 3, struct dma_args)  /* the device writes `byte` */
#define CHECK _IOW('T', 4, struct dma_args) /* 1: the device reads nothing but `byte` */
#define DIRECT _IO('T', 5)                  /* argument: id. 1: its first frame is mapped memory */
#define SWEEP _IO('T', 6)                   /* value: KiB of adopted memory that exist */
#define BACKING _IOW('T', 7, struct dma_args) /* id: an fd; pins [offset, +length) of the file */

static int dev;

#define EXPECT(condition)                                                                   \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            printf("line %d: %s (errno %d %s)\n", __LINE__, #condition, errno, strerror(errno)); \
            fflush(stdout);                                                                 \
            _exit(1);                                                                       \
        }                                                                                   \
    } while (0)

static long pin(void *at, size_t length, int writable)
{
    struct pin_args args = {(uint64_t)at, length, (uint64_t)writable};
    return ioctl(dev, PIN, &args);
}
static int unpin(long id) { return ioctl(dev, UNPIN, id); }
static int fill(long id, uint64_t offset, uint64_t length, int byte)
{
    struct dma_args args = {(uint64_t)id, offset, length, (uint64_t)byte};
    return ioctl(dev, FILL, &args);
}
static int device_sees(long id, uint64_t offset, uint64_t length, int byte)
{
    struct dma_args args = {(uint64_t)id, offset, length, (uint64_t)byte};
    return ioctl(dev, CHECK, &args);
}
static int all(const volatile uint8_t *at, size_t length, int byte)
{
    for (size_t i = 0; i < length; i++)
        if (at[i] != byte)
            return 0;
    return 1;
}
static uint8_t *page_of(void *at) { return (uint8_t *)((uintptr_t)at & ~4095ul); }
static uint8_t *anonymous(size_t length)
{
    void *at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(at != MAP_FAILED);
    return at;
}

#define MIB (1ul << 20)

/* malloc, pin, free, malloc: the device still has the old page, and the new allocation is its own. */
static void freed(void)
{
    for (int round = 0; round < 8; round++) {
        uint8_t *old = malloc(MIB);
        memset(old, 0x11, MIB);
        uint8_t *whole = page_of(old + 4095);
        long id = pin(whole, MIB - 4096, 1);
        EXPECT(id >= 0);
        EXPECT(ioctl(dev, DIRECT, id) == 1);
        EXPECT(device_sees(id, 0, MIB - 4096, 0x11) == 1);
        EXPECT(fill(id, 0, 4096, 0x22) == 0);
        EXPECT(all(whole, 4096, 0x22));
        free(old);
        uint8_t *fresh = malloc(MIB);
        memset(fresh, 0x33, MIB);
        EXPECT(fill(id, 0, MIB - 4096, 0x44) == 0);
        EXPECT(all(fresh, MIB, 0x33));
        EXPECT(device_sees(id, 0, MIB - 4096, 0x44) == 1);
        EXPECT(unpin(id) == 0);
        EXPECT(all(fresh, MIB, 0x33));
        free(fresh);
    }
}

/* Threads that store at full speed while a range is adopted lose nothing. */
static volatile uint64_t *counters;
static volatile int stop;
static void *count_up(void *slot)
{
    volatile uint64_t *at = counters + (uintptr_t)slot;
    uint64_t n = 0;
    while (!stop) {
        n++;
        *at = n;
        if (*at != n)
            return (void *)1;
    }
    return *at == n ? NULL : (void *)2;
}
static void storing(void)
{
    for (int round = 0; round < 60; round++) {
        size_t length = round % 2 ? 256 * 1024 : 4096;
        uint8_t *at = anonymous(length);
        memset(at, 0x5a, length);
        counters = (volatile uint64_t *)at;
        counters[0] = counters[256] = 0;
        stop = 0;
        pthread_t threads[2];
        EXPECT(pthread_create(&threads[0], NULL, count_up, (void *)0) == 0);
        EXPECT(pthread_create(&threads[1], NULL, count_up, (void *)256) == 0);
        while (counters[0] < 1000 || counters[256] < 1000)
            ;
        long id = pin(at, length, 1);
        EXPECT(id >= 0 && ioctl(dev, DIRECT, id) == 1);
        uint64_t seen = counters[0];
        while (counters[0] == seen)
            ;
        stop = 1;
        for (int i = 0; i < 2; i++) {
            void *lost;
            pthread_join(threads[i], &lost);
            EXPECT(lost == NULL);
        }
        EXPECT(all(at + 8, 2040, 0x5a) && all(at + 2056, length - 2056, 0x5a));
        EXPECT(unpin(id) == 0);
        munmap(at, length);
    }
}

/* A child has what was there at the fork, and neither side's writes reach the other. */
static int child_of(void (*body)(uint8_t *), uint8_t *at)
{
    pid_t child = fork();
    EXPECT(child >= 0);
    if (child == 0) {
        body(at);
        _exit(0);
    }
    int status;
    EXPECT(waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
static int go[2];
static void child_writes(uint8_t *at)
{
    EXPECT(all(at, 8 * 4096, 0x61));
    memset(at, 0x62, 4 * 4096);
    char byte;
    EXPECT(read(go[0], &byte, 1) == 1); /* the device has written by now */
    EXPECT(all(at, 4 * 4096, 0x62) && all(at + 4 * 4096, 4 * 4096, 0x61));
    /* The child may do DMA of its own. */
    dev = open("/dev/pin-test", O_RDWR);
    long id = pin(at, 8 * 4096, 1);
    EXPECT(id >= 0 && ioctl(dev, DIRECT, id) == 1);
    EXPECT(fill(id, 0, 8 * 4096, 0x63) == 0);
    EXPECT(all(at, 8 * 4096, 0x63));
}
static void forking(void)
{
    for (int round = 0; round < 10; round++) {
        uint8_t *at = anonymous(8 * 4096);
        memset(at, 0x61, 8 * 4096);
        long id = pin(at, 8 * 4096, 1);
        EXPECT(id >= 0);
        EXPECT(pipe(go) == 0);
        pid_t child = fork();
        EXPECT(child >= 0);
        if (child == 0) {
            child_writes(at);
            _exit(0);
        }
        EXPECT(fill(id, 4096, 4096, 0x64) == 0);
        EXPECT(fill(id, 5 * 4096, 4096, 0x64) == 0);
        EXPECT(write(go[1], "", 1) == 1);
        int status;
        EXPECT(waitpid(child, &status, 0) == child && status == 0);
        EXPECT(all(at, 4096, 0x61) && all(at + 4096, 4096, 0x64) && all(at + 5 * 4096, 4096, 0x64));
        EXPECT(device_sees(id, 0, 4096, 0x61) == 1);
        memset(at, 0x65, 8 * 4096); /* still writable here, still the device's */
        EXPECT(device_sees(id, 0, 8 * 4096, 0x65) == 1);
        EXPECT(unpin(id) == 0);
        munmap(at, 8 * 4096);
        close(go[0]), close(go[1]);
    }
}

/* A fork while another thread stores: the child has one consistent state and the parent loses nothing. */
static void fork_storing(void)
{
    uint8_t *at = anonymous(64 * 4096);
    counters = (volatile uint64_t *)at;
    long id = pin(at, 64 * 4096, 1);
    EXPECT(id >= 0);
    stop = 0;
    pthread_t thread;
    EXPECT(pthread_create(&thread, NULL, count_up, (void *)0) == 0);
    for (int round = 0; round < 30; round++) {
        pid_t child = fork();
        EXPECT(child >= 0);
        if (child == 0) {
            uint64_t seen = counters[0];
            for (volatile int i = 0; i < 100000; i++)
                ;
            _exit(counters[0] == seen ? 0 : 1);
        }
        int status;
        EXPECT(waitpid(child, &status, 0) == child && status == 0);
    }
    stop = 1;
    void *lost;
    pthread_join(thread, &lost);
    EXPECT(lost == NULL);
}

/* MADV_DONTFORK: the child has nothing there, before and after adoption. */
static sigjmp_buf out;
static void jump(int signal) { (void)signal, siglongjmp(out, 1); }
static void must_fault(uint8_t *at)
{
    signal(SIGSEGV, jump);
    if (sigsetjmp(out, 1) == 0) {
        *(volatile uint8_t *)at;
        _exit(3);
    }
}
static void dontfork(void)
{
    uint8_t *at = anonymous(4 * 4096);
    memset(at, 1, 4 * 4096);
    EXPECT(madvise(at, 4 * 4096, MADV_DONTFORK) == 0);
    long id = pin(at, 4 * 4096, 1);
    EXPECT(id >= 0 && ioctl(dev, DIRECT, id) == 1);
    EXPECT(child_of(must_fault, at) == 0);
    uint8_t *later = anonymous(4096);
    *later = 7;
    EXPECT(pin(later, 4096, 1) >= 0);
    EXPECT(madvise(later, 4096, MADV_DONTFORK) == 0);
    EXPECT(child_of(must_fault, later) == 0);
    EXPECT(*later == 7 && all(at, 4 * 4096, 1));
}

/* MADV_DONTNEED: zeros for the program, the old page for the device. */
static void dontneed(void)
{
    uint8_t *at = anonymous(4 * 4096);
    memset(at, 0x71, 4 * 4096);
    long id = pin(at, 4 * 4096, 1);
    EXPECT(id >= 0);
    EXPECT(madvise(at + 4096, 2 * 4096, MADV_DONTNEED) == 0);
    EXPECT(all(at, 4096, 0x71) && all(at + 4096, 2 * 4096, 0) && all(at + 3 * 4096, 4096, 0x71));
    EXPECT(device_sees(id, 0, 4 * 4096, 0x71) == 1);
    EXPECT(fill(id, 4096, 4096, 0x72) == 0);
    EXPECT(all(at + 4096, 2 * 4096, 0));
    EXPECT(madvise(at, 4096, MADV_REMOVE) == -1 && errno == EINVAL);
    long again = pin(at, 4 * 4096, 1);
    EXPECT(again >= 0 && ioctl(dev, DIRECT, again) == 1);
    EXPECT(device_sees(again, 4096, 2 * 4096, 0) == 1);
}

/* realloc moves and grows the mapping by a call nobody sees: nothing is shared with a neighbour. */
static void growing(void)
{
    uint8_t *one = malloc(MIB), *two = malloc(MIB);
    memset(one, 1, MIB), memset(two, 2, MIB);
    uint8_t *one_page = page_of(one + 4095), *two_page = page_of(two + 4095);
    long first = pin(one_page, MIB - 4096, 1), second = pin(two_page, MIB - 4096, 1);
    EXPECT(first >= 0 && second >= 0);
    uint8_t *grown = realloc(one, 16 * MIB);
    EXPECT(all(grown, MIB, 1));
    memset(grown + MIB, 3, 15 * MIB);
    EXPECT(all(two, MIB, 2));
    EXPECT(device_sees(second, 0, MIB - 4096, 2) == 1);
    EXPECT(unpin(first) == 0);
    uint8_t *grown_page = page_of(grown + 4095);
    long third = pin(grown_page, 15 * MIB, 1);
    EXPECT(third >= 0);
    EXPECT(device_sees(third, 2 * MIB, 12 * MIB, 3) == 1);
    EXPECT(fill(third, 2 * MIB, 4096, 5) == 0);
    EXPECT(all(grown_page + 2 * MIB, 4096, 5));
    EXPECT(all(two, MIB, 2));
    /* A mapping that moves keeps its pages, the device's too, and grows by zeros. */
    uint8_t *map = anonymous(MIB), *other = anonymous(MIB);
    memset(map, 6, MIB), memset(other, 7, MIB);
    long moved = pin(map, MIB, 1), stays = pin(other, MIB, 1);
    EXPECT(moved >= 0 && stays >= 0);
    map = mremap(map, MIB, 8 * MIB, MREMAP_MAYMOVE);
    EXPECT(map != MAP_FAILED && all(map, MIB, 6) && all(map + MIB, 7 * MIB, 0));
    EXPECT(fill(moved, 4096, 4096, 8) == 0 && all(map + 4096, 4096, 8));
    memset(map + MIB, 9, 7 * MIB);
    EXPECT(all(other, MIB, 7) && device_sees(stays, 0, MIB, 7) == 1);
    long grown_pin = pin(map, 8 * MIB, 1);
    EXPECT(grown_pin >= 0 && device_sees(grown_pin, MIB, 7 * MIB, 9) == 1);
    EXPECT(device_sees(grown_pin, 4096, 4096, 8) == 1);
    /* Also one of which only the middle was adopted. */
    uint8_t *part = anonymous(MIB);
    memset(part, 10, MIB);
    long middle = pin(part + 65536, 65536, 1);
    EXPECT(middle >= 0 && madvise(part + 98304, 4096, MADV_DONTNEED) == 0);
    part = mremap(part, MIB, 2 * MIB, MREMAP_MAYMOVE);
    EXPECT(part != MAP_FAILED && all(part, 98304, 10) && all(part + 98304, 4096, 0));
    EXPECT(all(part + 102400, MIB - 102400, 10) && all(part + MIB, MIB, 0));
    EXPECT(fill(middle, 0, 65536, 11) == 0);
    EXPECT(all(part + 65536, 32768, 11) && all(part + 98304, 4096, 0) && all(part + 102400, 28672, 11));
    /* And one that moves and leaves its addresses behind: zeros are there then, and nothing is shared. */
    uint8_t *left = anonymous(8192);
    memset(left, 12, 8192);
    long followed = pin(left, 8192, 1);
    uint8_t *went = mremap(left, 8192, 8192, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    EXPECT(followed >= 0 && went != MAP_FAILED && all(went, 8192, 12) && all(left, 8192, 0));
    memset(left, 13, 8192);
    EXPECT(fill(followed, 0, 4096, 14) == 0 && all(went, 4096, 14) && all(went + 4096, 4096, 12));
    EXPECT(all(left, 8192, 13));
}

/* A client that shrinks its memfd gets errors, and hurts nobody. */
static void shrinking(void)
{
    int fd = memfd_create("client", 0);
    EXPECT(ftruncate(fd, 8 * 4096) == 0);
    uint8_t *at = mmap(NULL, 8 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    memset(at, 0x33, 8 * 4096);
    long id = pin(at, 8 * 4096, 1);
    EXPECT(id >= 0 && ioctl(dev, DIRECT, id) == 1);
    EXPECT(device_sees(id, 0, 8 * 4096, 0x33) == 1);
    EXPECT(ftruncate(fd, 4096) == 0);
    EXPECT(device_sees(id, 0, 4096, 0x33) == 1);
    EXPECT(device_sees(id, 4096, 4096, 0) == -1 && errno == EIO);
    EXPECT(fill(id, 3 * 4096, 8, 1) == -1 && errno == EIO);
    EXPECT(pin(at, 8 * 4096, 1) == -1 && errno == EFAULT);
    EXPECT(ftruncate(fd, 8 * 4096) == 0); /* what was lost stays lost to the pin that had it */
    EXPECT(device_sees(id, 4096, 4096, 0) == -1 && errno == EIO);
    EXPECT(unpin(id) == 0);
    EXPECT(ftruncate(fd, 8 * 4096) == 0);
    memset(at, 0x34, 8 * 4096);
    id = pin(at, 8 * 4096, 1);
    EXPECT(id >= 0 && device_sees(id, 0, 8 * 4096, 0x34) == 1);
    struct dma_args file = {(uint64_t)fd, 4096, 2 * 4096, 0};
    long by_fd = ioctl(dev, BACKING, &file);
    EXPECT(by_fd >= 0 && fill(by_fd, 0, 8192, 0x35) == 0);
    EXPECT(all(at + 4096, 8192, 0x35) && all(at, 4096, 0x34));
    file.length = 8 * 4096;
    EXPECT(ioctl(dev, BACKING, &file) == -1 && errno == EFAULT);
}

/* Memory of every origin. */
static uint8_t in_bss[8192] __attribute__((aligned(4096)));
static uint8_t in_data[8192] __attribute__((aligned(4096))) = {1};
static void works(uint8_t *at, int direct)
{
    memset(at, 0x41, 4096);
    long id = pin(at, 4096, 1);
    EXPECT(id >= 0);
    EXPECT(ioctl(dev, DIRECT, id) == direct);
    EXPECT(device_sees(id, 0, 4096, 0x41) == 1);
    EXPECT(fill(id, 10, 4000, 0x42) == 0);
    EXPECT(at[9] == 0x41 && all(at + 10, 4000, 0x42) && at[4010] == 0x41);
    EXPECT(unpin(id) == 0);
}
static void *on_thread(void *unused)
{
    uint8_t room[3 * 4096];
    works(page_of(room + 4095), 0);
    return unused;
}
static void origins(void)
{
    void *heap = sbrk(0);
    EXPECT(heap != (void *)-1 && sbrk(16384) != (void *)-1);
    works(page_of((uint8_t *)heap + 4095), 1);
    uint8_t *small = aligned_alloc(4096, 8192);
    works(small, 1);
    uint8_t stack[3 * 4096];
    works(page_of(stack + 4095), 0);
    pthread_t thread;
    EXPECT(pthread_create(&thread, NULL, on_thread, NULL) == 0 && pthread_join(thread, NULL) == 0);
    works(in_bss, 1);
    works(in_data, 0);
    uint8_t *shared = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(shared != MAP_FAILED);
    works(shared, 1);
    if (fork() == 0) {
        shared[0] = 0x99; /* still shared with a child */
        _exit(0);
    }
    wait(NULL);
    EXPECT(shared[0] == 0x99);
    int fd = memfd_create("closed", 0);
    EXPECT(ftruncate(fd, 8192) == 0);
    uint8_t *closed = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    works(closed, 0);
    munmap(shared, 8192);
    works(anonymous(4096), 1);
    works(small, 1);
}

static void faults(void)
{
    uint8_t *at = anonymous(4 * 4096);
    EXPECT(pin(at, 4 * 4096 + 4096 * 4096ul, 1) == -1 && errno == EFAULT); /* runs into nothing */
    munmap(at + 4096, 4096);
    EXPECT(pin(at, 4 * 4096, 0) == -1 && errno == EFAULT);
    mprotect(at, 4096, PROT_NONE);
    EXPECT(pin(at, 4096, 0) == -1 && errno == EFAULT);
    mprotect(at, 4096, PROT_READ);
    EXPECT(pin(at, 4096, 1) == -1 && errno == EFAULT);
    long id = pin(at, 4096, 0);
    EXPECT(id >= 0 && device_sees(id, 0, 4096, 0) == 1);
    mprotect(at, 4096, PROT_READ | PROT_WRITE); /* still the same page, now writable */
    *at = 5;
    EXPECT(device_sees(id, 0, 1, 5) == 1);
    EXPECT(pin((void *)0x7ffffffff000, 8192, 0) == -1 && errno == EFAULT);
    EXPECT(pin(NULL, 4096, 0) == -1 && errno == EFAULT);
}

/* Remote pages whose mapping went are poisoned, never something else. */
static void replaced(void)
{
    int fd = open("/proc/self/exe", O_RDONLY);
    uint8_t *at = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    long id = pin(at, 8192, 1);
    EXPECT(id >= 0 && ioctl(dev, DIRECT, id) == 0 && device_sees(id, 0, 1, 0x7f) == 1);
    EXPECT(fill(id, 4096, 16, 9) == 0 && all(at + 4096, 16, 9));
    EXPECT(mmap(at, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
    EXPECT(device_sees(id, 0, 1, 0) == -1 && errno == EIO);
    EXPECT(fill(id, 4096, 16, 8) == -1 && errno == EIO);
    EXPECT(all(at, 8192, 0));
}

/* Again and again: what is freed is given back. */
static void repeating(void)
{
    for (int round = 0; round < 600; round++) {
        size_t length = (round % 5 + 1) * 65536ul;
        uint8_t *at = malloc(length + 4096 + 200 * 1024);
        uint8_t *whole = page_of(at + 4095);
        whole[0] = (uint8_t)round;
        long id = pin(whole, length, 1);
        EXPECT(id >= 0 && device_sees(id, 0, 1, round & 255) == 1);
        if (round % 3 == 0)
            free(at), at = NULL;
        EXPECT(unpin(id) == 0);
        free(at);
    }
    uint8_t *last = anonymous(4096);
    *last = 1;
    EXPECT(pin(last, 4096, 1) >= 0);
    EXPECT(ioctl(dev, SWEEP, 0) == 4);
}

/* Threads that allocate, pin, do DMA and free, while others are interrupted by signals and the program forks. */
static volatile unsigned ticks;
static void tick(int signal)
{
    (void)signal;
    ticks++;
}
static void *pinning(void *number)
{
    uint8_t mark = (uint8_t)((uintptr_t)number + 1);
    for (int round = 0; round < 60; round++) {
        size_t length = (round % 4 + 1) * 4096ul;
        uint8_t *at = aligned_alloc(4096, length); /* from the thread's own arena, next to its bookkeeping */
        memset(at, mark, length);
        long id = pin(at, length, 1);
        EXPECT(id >= 0);
        EXPECT(device_sees(id, 0, length, mark) == 1);
        EXPECT(fill(id, 0, 64, mark + 64) == 0);
        EXPECT(all(at, 64, mark + 64) && all(at + 64, length - 64, mark));
        EXPECT(unpin(id) == 0);
        free(at);
    }
    return NULL;
}
static void together(void)
{
    struct sigaction action = {.sa_handler = tick, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &(struct itimerval){{0, 2000}, {0, 2000}}, NULL);
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++)
        EXPECT(pthread_create(&threads[i], NULL, pinning, (void *)i) == 0);
    for (int round = 0; round < 20; round++) {
        pid_t child = fork();
        EXPECT(child >= 0);
        if (child == 0) {
            for (int i = 0; i < 100; i++)
                free(memset(malloc(5000), 1, 5000));
            _exit(0);
        }
        int status;
        while (waitpid(child, &status, 0) < 0)
            EXPECT(errno == EINTR);
        EXPECT(status == 0);
        EXPECT(system("true") == 0);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    EXPECT(ticks > 0);
}

static void waiting(void)
{
    uint8_t *at = anonymous(MIB);
    memset(at, 1, MIB);
    uint8_t stack[8192];
    EXPECT(pin(at, MIB, 1) >= 0 && pin(page_of(stack + 4095), 4096, 1) >= 0);
    puts("pinned");
    fflush(stdout);
    pause();
}

/* The daemon has gone: what was adopted still is the program's memory, and a child's copy its own. */
static void alone(void)
{
    uint8_t *at = anonymous(8 * 4096);
    memset(at, 0x61, 8 * 4096);
    EXPECT(pin(at, 8 * 4096, 1) >= 0);
    puts("pinned");
    fflush(stdout);
    while (pin(at, 4096, 1) >= 0)
        usleep(1000);
    EXPECT(all(at, 8 * 4096, 0x61));
    pid_t child = fork();
    EXPECT(child >= 0);
    if (child == 0) {
        EXPECT(all(at, 8 * 4096, 0x61));
        memset(at, 0x62, 8 * 4096);
        _exit(0);
    }
    int status;
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
    EXPECT(all(at, 8 * 4096, 0x61));
    puts("whole");
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}
static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static void measure(const char *name, size_t length, int fresh)
{
    double times[200];
    uint8_t *at = NULL;
    for (int i = 0; i < 200; i++) {
        if (!at || fresh) {
            at = anonymous(length);
            memset(at, 1, length);
        }
        double start = now();
        long id = pin(at, length, 1);
        times[i] = now() - start;
        EXPECT(id >= 0 && unpin(id) == 0);
        if (fresh)
            munmap(at, length);
    }
    qsort(times, 200, sizeof times[0], ascending);
    printf("%s: %.1f us\n", name, times[100]);
}
static void costs(void)
{
    double start = now();
    for (int i = 0; i < 1000; i++)
        ioctl(dev, DIRECT, -1);
    printf("empty call: %.1f us\n", (now() - start) / 1000);
    measure("4 KiB fresh", 4096, 1);
    measure("4 KiB again", 4096, 0);
    measure("1 MiB fresh", MIB, 1);
    measure("1 MiB again", MIB, 0);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } scenarios[] = {
        {"freed", freed},         {"storing", storing},   {"forking", forking}, {"fork_storing", fork_storing},
        {"dontfork", dontfork},   {"dontneed", dontneed}, {"growing", growing}, {"shrinking", shrinking},
        {"origins", origins},     {"faults", faults},     {"replaced", replaced}, {"repeating", repeating},
        {"together", together},   {"waiting", waiting},     {"alone", alone},     {"costs", costs},
    };
    mallopt(M_MMAP_THRESHOLD, 128 * 1024); /* and stays there: what is freed is unmapped */
    dev = open("/dev/pin-test", O_RDWR);
    EXPECT(dev >= 0);
    for (size_t i = 0; i < sizeof scenarios / sizeof scenarios[0] && argc > 1; i++)
        if (strcmp(argv[1], scenarios[i].name) == 0) {
            scenarios[i].run();
            return 0;
        }
    return 2;
}
