/*
 * Fault injection as programs use it: the files of debugfs and /proc by every call that reaches them, and allocations of
 * iommufd that fail one after the other. Prints what it found; any surprise is a line of its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096
#define DEBUG "/sys/kernel/debug/"

struct ioas_alloc { uint32_t size, flags, id; };
struct destroy { uint32_t size, id; };
struct ioas_map { uint32_t size, flags, ioas, reserved; uint64_t va, length, iova; };
struct ioas_unmap { uint32_t size, ioas; uint64_t iova, length; };
#define DESTROY 0x3b80
#define IOAS_ALLOC 0x3b81
#define IOAS_MAP 0x3b85
#define IOAS_UNMAP 0x3b86

static int failures;

static void expect(const char *what, long got, long wanted)
{
    if (got == wanted)
        return;
    failures++;
    printf("%s: %ld, not %ld (%s)\n", what, got, wanted, strerror(errno));
}

static void expect_text(const char *what, const char *got, const char *wanted)
{
    if (strcmp(got, wanted) == 0)
        return;
    failures++;
    printf("%s: \"%s\", not \"%s\"\n", what, got, wanted);
}

/* What a file says, or the name of the error. */
static const char *says(const char *path)
{
    static char text[64];
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return strerrorname_np(errno);
    ssize_t n = read(fd, text, sizeof text - 1);
    text[n < 0 ? 0 : n] = 0;
    close(fd);
    return text;
}

static long put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_TRUNC);
    if (fd < 0)
        return -errno;
    long n = write(fd, text, strlen(text));
    int reason = errno;
    close(fd);
    return n < 0 ? -reason : n;
}

static void knobs(void)
{
    static const char *const folders[] = {"failslab", "fail_page_alloc"};
    char path[128];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, DEBUG "%s/probability", folders[i]);
        expect_text("probability", says(path), "0\n");
        expect("probability 10", put(path, "10\n"), 3);
        expect_text("probability", says(path), "10\n");
        expect("probability in hex", put(path, "0x0"), 3);
        expect_text("probability", says(path), "0\n");
        expect("a word", put(path, "ten"), -EINVAL);
        snprintf(path, sizeof path, DEBUG "%s/times", folders[i]);
        expect("times -1", put(path, "-1"), 2);
        expect_text("times", says(path), "-1\n");
        snprintf(path, sizeof path, DEBUG "%s/ignore-gfp-wait", folders[i]);
        expect("N", put(path, "N"), 1);
        expect_text("ignore-gfp-wait", says(path), "N\n");
        expect("a bad switch", put(path, "maybe"), -EINVAL);
        snprintf(path, sizeof path, DEBUG "%s/task-filter", folders[i]);
        expect("1", put(path, "1\n"), 2);
        expect_text("task-filter", says(path), "Y\n");
        expect("off", put(path, "off"), 3);
        expect_text("task-filter", says(path), "N\n");
        snprintf(path, sizeof path, DEBUG "%s/require-end", folders[i]);
        expect_text("require-end", says(path), "0xffffffffffffffff\n");
        snprintf(path, sizeof path, DEBUG "%s/nothing", folders[i]);
        expect_text("no such file", says(path), "ENOENT");
    }
    expect_text("min-order", says(DEBUG "fail_page_alloc/min-order"), "0\n");
    expect_text("cache-filter", says(DEBUG "failslab/cache-filter"), "N\n");

    struct stat st;
    expect("stat", stat(DEBUG "failslab/times", &st), 0);
    expect("its mode", st.st_mode, S_IFREG | 0600);
    expect("access", access(DEBUG "fail_page_alloc/min-order", F_OK), 0);
    int folder = open(DEBUG "failslab", O_RDONLY | O_DIRECTORY);
    int fd = openat(folder, "interval", O_RDWR);
    expect("fstat", fstat(fd, &st), 0);
    expect("its mode when open", st.st_mode, S_IFREG | 0600);
    expect("dprintf", dprintf(fd, "%d\n", 7), 2);
    char text[16] = "";
    expect("pread", pread(fd, text, sizeof text, 0), 2);
    expect_text("interval", text, "7\n");
    expect("a bad dprintf", dprintf(fd, "%s", "x"), -1);
    expect("read", read(fd, text, 1), 1);
    expect("the position", lseek(fd, 0, SEEK_CUR), 1);
    expect("rewind", lseek(fd, 0, SEEK_SET), 0);
    expect("read again", read(fd, text, sizeof text), 2);
    expect("at the end", read(fd, text, sizeof text), 0);
    expect("SEEK_END", lseek(fd, 0, SEEK_END), -1);
    close(fd);
    close(folder);

    FILE *file = fopen(DEBUG "failslab/interval", "w");
    expect("fprintf", fprintf(file, "%u", 1u), 1);
    expect("fclose", fclose(file), 0);
    file = fopen(DEBUG "failslab/interval", "r");
    expect("fgets", fgets(text, sizeof text, file) != NULL, 1);
    expect_text("interval", text, "1\n");
    fclose(file);
    file = fopen(DEBUG "failslab/interval", "w");
    fprintf(file, "what");
    expect("fflush of no number", fflush(file), EOF);
    fclose(file);
    expect("echo in a shell", system("echo 3 > " DEBUG "failslab/interval"), 0);
    expect_text("interval", says(DEBUG "failslab/interval"), "3\n");
    if (access("/bin/bash", X_OK) == 0) {
        expect("echo in bash", system("/bin/bash -c 'echo 1 > " DEBUG "failslab/interval'"), 0);
        expect_text("interval", says(DEBUG "failslab/interval"), "1\n");
    }
    put(DEBUG "failslab/interval", "1");
}

static int nth_of(const char *path)
{
    return atoi(says(path));
}

static void task_files(void)
{
    char path[64], other[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/fail-nth", gettid());
    snprintf(other, sizeof other, "/proc/%d/task/%d/fail-nth", getpid(), gettid());
    expect_text("at rest", says(path), "0\n");
    expect("arm", put(path, "5"), 1);
    expect("by its number", nth_of(other), 5);
    expect("by thread-self", nth_of("/proc/thread-self/fail-nth"), 5);
    expect("hexadecimal", put(other, "0x10\n"), 5);
    expect("of the process", nth_of("/proc/self/fail-nth"), 16);
    expect("a word", put(path, "many"), -EINVAL);
    expect("negative", put(path, "-1"), -EINVAL);
    expect("too large", put(path, "4294967296"), -ERANGE);
    expect("disarm", put(path, "0"), 1);
    expect("no such task", put("/proc/self/task/1/fail-nth", "1"), -ENOENT);
    struct stat st;
    expect("stat", stat(path, &st), 0);
    expect("its mode", st.st_mode, S_IFREG | 0644);
    expect("make-it-fail", put("/proc/self/make-it-fail", "2"), -EINVAL);
    int folder = open("/proc/self", O_RDONLY | O_DIRECTORY);
    int fd = openat(folder, "make-it-fail", O_RDWR);
    expect("mark", write(fd, "1", 1), 1);
    expect_text("marked", says("/proc/self/make-it-fail"), "1\n");
    expect("unmark", write(fd, "0", 1), 1);
    close(fd);
    close(folder);
}

static int iommu;

static uint32_t ioas_alloc(void)
{
    struct ioas_alloc alloc = {.size = sizeof alloc};
    return ioctl(iommu, IOAS_ALLOC, &alloc) == 0 ? alloc.id : 0;
}

static void destroy(uint32_t id)
{
    struct destroy gone = {.size = sizeof gone, .id = id};
    expect("DESTROY", ioctl(iommu, DESTROY, &gone), 0);
}

/* Fails every allocation of IOAS_ALLOC in turn, on a descriptor that stays open; how many there are. */
static int sweep(void)
{
    char path[64], text[16];
    snprintf(path, sizeof path, "/proc/self/task/%d/fail-nth", gettid());
    int fd = open(path, O_RDWR);
    for (int nth = 1; nth < 100; nth++) {
        snprintf(text, sizeof text, "%d", nth);
        expect("arm", write(fd, text, strlen(text)), (long)strlen(text));
        uint32_t id = ioas_alloc();
        int reason = errno;
        memset(text, 0, sizeof text);
        pread(fd, text, sizeof text, 0);
        if (id) {
            expect("not fired", atoi(text) > 0, 1);
            expect("disarm", write(fd, "0", 1), 1);
            close(fd);
            destroy(id);
            return nth - 1;
        }
        expect("fired", atoi(text), 0);
        expect("errno", reason, ENOMEM);
    }
    return -1;
}

static void *sweep_thread(void *count)
{
    *(int *)count = sweep();
    return NULL;
}

/* Armed for another thread, this one does not fail; and private memory is adopted on the way. */
static void *waiting_thread(void *gate)
{
    pthread_barrier_wait(gate);
    pthread_barrier_wait(gate);
    expect("the other thread fails", ioas_alloc(), 0);
    expect("with", errno, ENOMEM);
    return NULL;
}

static pid_t waiting_tid;
static void *announced_thread(void *gate)
{
    waiting_tid = gettid();
    return waiting_thread(gate);
}

static void other_thread(void)
{
    pthread_t thread;
    pthread_barrier_t gate;
    pthread_barrier_init(&gate, NULL, 2);
    pthread_create(&thread, NULL, announced_thread, &gate);
    pthread_barrier_wait(&gate);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/fail-nth", waiting_tid);
    expect("arm another", put(path, "1"), 1);
    uint32_t id = ioas_alloc();
    expect("this thread does not fail", id != 0, 1);
    destroy(id);
    expect("still armed", nth_of(path), 1);
    pthread_barrier_wait(&gate);
    pthread_join(thread, NULL);
}

static void map_sweep(void)
{
    uint32_t ioas = ioas_alloc();
    int count = 0;
    for (int nth = 1; nth < 100; nth++) {
        char text[16];
        char *memory = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memory[0] = 1;
        struct ioas_map map = {.size = sizeof map, .flags = 7, .ioas = ioas, .va = (uintptr_t)memory,
                               .length = 2 * PAGE, .iova = 0x10000};
        snprintf(text, sizeof text, "%d", nth);
        put("/proc/thread-self/fail-nth", text);
        int result = ioctl(iommu, IOAS_MAP, &map), reason = errno;
        if (result == 0) {
            put("/proc/thread-self/fail-nth", "0");
            struct ioas_unmap unmap = {.size = sizeof unmap, .ioas = ioas, .iova = 0x10000, .length = 2 * PAGE};
            expect("unmap", ioctl(iommu, IOAS_UNMAP, &unmap), 0);
            break;
        }
        expect("map", reason, ENOMEM);
        count++;
        munmap(memory, 2 * PAGE);
    }
    expect("a map has allocations", count > 0, 1);
    destroy(ioas);
}

static void by_chance(void)
{
    put(DEBUG "failslab/probability", "100");
    put(DEBUG "failslab/times", "2");
    put(DEBUG "failslab/task-filter", "Y");
    uint32_t id = ioas_alloc();
    expect("not marked", id != 0, 1);
    destroy(id);
    put("/proc/self/make-it-fail", "1");
    expect("first", ioas_alloc(), 0);
    expect("second", ioas_alloc(), 0);
    id = ioas_alloc();
    expect("no more", id != 0, 1);
    expect_text("times", says(DEBUG "failslab/times"), "0\n");
    put(DEBUG "failslab/times", "-1");
    put(DEBUG "failslab/ignore-gfp-wait", "Y");
    destroy(id);
    id = ioas_alloc();
    expect("what may wait does not fail", id != 0, 1);
    destroy(id);
    put(DEBUG "failslab/ignore-gfp-wait", "N");
    put(DEBUG "failslab/probability", "0");
    put(DEBUG "failslab/task-filter", "N");
    put("/proc/self/make-it-fail", "0");
}

int main(void)
{
    knobs();
    task_files();
    iommu = open("/dev/iommu", O_RDWR);
    int count = sweep(), of_thread = -1;
    expect("allocations of IOAS_ALLOC", count > 0, 1);
    pthread_t thread;
    pthread_create(&thread, NULL, sweep_thread, &of_thread);
    pthread_join(thread, NULL);
    expect("as many in a thread", of_thread, count);
    other_thread();
    map_sweep();
    by_chance();
    printf("%d surprises\n", failures);
    return failures != 0;
}
