/*
 * Who is seen to pay for pinned memory, and when it is too much: VmPin and VmLck of /proc/PID/status by every way to
 * read it, RLIMIT_MEMLOCK by user and by process, with and without CAP_IPC_LOCK. Prints what it saw.
 */
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "iommufd-mock.h"

#define IOVA 0x1000000UL
enum { IOMMU_OPTION = 0x3b87, IOMMU_IOAS_CHANGE_PROCESS = 0x3b92 };

static char *memory;

static const char *name_of(int error)
{
    return error ? strerrorname_np(error) : "0";
}

static int set_rlimit_mode(int fd, uint64_t mode)
{
    struct {
        uint32_t size, option_id;
        uint16_t op, reserved;
        uint32_t object_id;
        uint64_t val64;
    } argument = {.size = 24, .val64 = mode};
    return request(fd, IOMMU_OPTION, &argument);
}

static int change_process(int fd)
{
    uint32_t argument[2] = {8, 0};
    return request(fd, IOMMU_IOAS_CHANGE_PROCESS, argument);
}

static void drop_ipc_lock(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    must(syscall(SYS_capget, &header, data) == 0);
    data[0].effective &= ~(1u << CAP_IPC_LOCK);
    must(syscall(SYS_capset, &header, data) == 0);
}

static long kb_of(const char *text, const char *label)
{
    const char *line = strstr(text, label);
    must(line);
    return strtol(line + strlen(label), NULL, 10);
}

/* Text of a status file, read by plain calls from a descriptor. */
static const char *text_of(int fd)
{
    static char text[16384];
    must(fd >= 0);
    ssize_t n = read(fd, text, sizeof text - 1);
    must(n > 0 && read(fd, text + n, 1) == 0);
    text[n] = 0;
    close(fd);
    return text;
}

static void show(const char *what, const char *text)
{
    printf("%s: VmPin %ld VmLck %ld\n", what, kb_of(text, "\nVmPin:") / 4, kb_of(text, "\nVmLck:") / 4);
}

static void show_self(const char *what)
{
    show(what, text_of(open("/proc/self/status", O_RDONLY)));
}

static void show_by_every_way(void)
{
    char path[64], text[16384];
    int pid = getpid();
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    show("open pid", text_of(open(path, O_RDONLY | O_CLOEXEC)));
    snprintf(path, sizeof path, "/proc/self/task/%d/status", pid);
    show("open task", text_of(open(path, O_RDONLY)));
    show("thread-self", text_of(open("/proc/thread-self/status", O_RDONLY)));
    int folder = open("/proc/self", O_RDONLY | O_DIRECTORY);
    show("openat", text_of(openat(folder, "status", O_RDONLY)));
    must(fchdir(folder) == 0 && close(folder) == 0);
    show("relative", text_of(open("status", O_RDONLY)));
    FILE *file = fopen("/proc/self/status", "re");
    must(file);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    must(fclose(file) == 0);
    show("fopen", text);
    fflush(stdout);
    if (fork() == 0) {
        show_self("child");
        snprintf(path, sizeof path, "/proc/%d/status", pid);
        show("child of parent", text_of(open(path, O_RDONLY)));
        fflush(stdout);
        _exit(0);
    }
    wait(NULL);
}

static void limit_pages(rlim_t pages)
{
    struct rlimit limit;
    must(getrlimit(RLIMIT_MEMLOCK, &limit) == 0);
    limit.rlim_cur = pages * PAGE;
    must(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
}

/* Another process of the same user takes the pages it was told to. */
static int map_in_child(int pages)
{
    int status;
    fflush(stdout);
    if (fork() == 0) {
        int fd = open_iommu();
        uint32_t ioas = alloc_ioas(fd);
        mock_device(fd, ioas);
        _exit(map_memory(fd, ioas, memory, (uint64_t)pages * PAGE, IOVA));
    }
    must(wait(&status) > 0 && WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* Pages of a memfd, mapped by this process, are taken over by a child. */
static void hand_over(int fd, uint32_t ioas)
{
    int file = memfd_create("file", 0), taken[2], seen[2];
    char byte;
    must(file >= 0 && ftruncate(file, 3 * PAGE) == 0 && pipe(taken) == 0 && pipe(seen) == 0);
    must(map_file(fd, ioas, file, 0, 3 * PAGE, IOVA) == 0);
    show_self("file mapped");
    fflush(stdout);
    if (fork() == 0) {
        must(change_process(fd) == 0);
        show_self("child took them");
        fflush(stdout);
        must(write(taken[1], "x", 1) == 1 && read(seen[0], &byte, 1) == 1);
        _exit(0);
    }
    must(read(taken[0], &byte, 1) == 1);
    show_self("parent then");
    must(write(seen[1], "x", 1) == 1 && wait(NULL) > 0);
    must(map_memory(fd, ioas, memory, PAGE, IOVA + 0x10000) == 0);
    printf("private memory cannot change: %s\n", name_of(change_process(fd)));
    show_self("parent after");
    must(change_process(fd) == EINVAL && unmap(fd, ioas, IOVA + 0x10000, PAGE) == 0 && change_process(fd) == 0);
    show_self("taken back");
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "user";
    if (strcmp(mode, "capable") != 0)
        drop_ipc_lock();
    memory = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(memory != MAP_FAILED);
    int fd = open_iommu();
    must(set_rlimit_mode(fd, strcmp(mode, "process") == 0) == 0);
    uint32_t ioas = alloc_ioas(fd);
    mock_device(fd, ioas);
    must(map_memory(fd, ioas, memory + 2048, 4 * PAGE, IOVA + 2048) == 0);
    show_by_every_way();
    limit_pages(8);
    printf("beyond the limit: %s\n", name_of(map_memory(fd, ioas, memory, 4 * PAGE, IOVA + 0x10000)));
    int error = map_memory(fd, ioas, memory, 3 * PAGE, IOVA + 0x20000);
    printf("within it: %s\n", name_of(error));
    printf("another process: %s\n", name_of(map_in_child(1)));
    must(mlock(memory + 32 * PAGE, PAGE) == 0 && unmap(fd, ioas, IOVA + 0x20000, 3 * PAGE) == 0);
    printf("beside a page of mlock: %s\n", name_of(map_memory(fd, ioas, memory, 3 * PAGE, IOVA + 0x20000)));
    must(munlock(memory + 32 * PAGE, PAGE) == 0);
    must(unmap(fd, ioas, 0, ~0UL) == 0);
    show_self("unmapped");
    hand_over(fd, ioas);
    must(close(fd) == 0);
    show_self("closed");
    return 0;
}
