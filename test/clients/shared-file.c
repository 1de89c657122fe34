/*
 * Memory that one process maps and another's call pins: an IOAS that crosses a fork or a socket. Devices reach the
 * memory of the process that mapped it, also when that has unmapped it since, forked again, or is gone.
 */
#include <linux/mman.h>
#include <stdbool.h>
#include <sys/socket.h>

#include "iommufd-mock.h"

#define IOVA 0x1000000UL
#define BYTES (4 * PAGE)
#define HUGE (2UL << 20)

static void fill(char *memory, char what)
{
    for (size_t i = 0; i < BYTES; i++)
        memory[i] = (char)(what + i / PAGE);
}

/* What an access of the IOAS finds at each page; an error instead where there is one. */
static void see(const char *what, int fd, uint32_t ioas)
{
    char byte, found[5] = "";
    int access = create_access(fd, ioas);
    for (int page = 0; page < 4; page++)
        found[page] = access_rw(fd, access, IOVA + (uint64_t)page * PAGE + 7, &byte, 1, 0) == 0 ? byte : '!';
    printf("%s: %s\n", what, found);
    fflush(stdout);
    close(access);
}

static char *private_memory(char what)
{
    char *memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(memory != MAP_FAILED);
    fill(memory, what);
    return memory;
}

static void finish(pid_t child)
{
    int status;
    must(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* The child attaches a device: its call pins the parent's pages, not its own copies at the same addresses. */
static void child_pins_the_parents(void)
{
    int fd = open_iommu();
    uint32_t ioas = alloc_ioas(fd);
    char *memory = private_memory('a');
    must(map_memory(fd, ioas, memory, BYTES, IOVA) == 0);
    pid_t child = fork();
    if (child == 0) {
        fill(memory, 'q');
        mock_device(fd, ioas);
        see("pinned by the child", fd, ioas);
        _exit(0);
    }
    finish(child);
    memory[7] = 'A';
    see("after the parent's store", fd, ioas);
    must(munmap(memory, BYTES) == 0);
    see("after its munmap", fd, ioas);
    close(fd);
}

/* The child maps and the parent pins; then the child is gone. */
static void pins_outlive_their_owner(void)
{
    int fd = open_iommu(), mapped[2], pinned[2];
    uint32_t ioas = alloc_ioas(fd);
    char byte;
    must(pipe(mapped) == 0 && pipe(pinned) == 0);
    pid_t child = fork();
    if (child == 0) {
        char *memory = private_memory('k');
        must(map_memory(fd, ioas, memory, BYTES, IOVA) == 0);
        finish(fork() ?: (_exit(0), 0)); /* the file is shared from here on */
        must(write(mapped[1], "x", 1) == 1 && read(pinned[0], &byte, 1) == 1);
        _exit(0);
    }
    must(read(mapped[0], &byte, 1) == 1);
    mock_device(fd, ioas);
    see("pinned by the parent", fd, ioas);
    must(write(pinned[1], "x", 1) == 1);
    finish(child);
    see("after its owner's end", fd, ioas);
    close(fd);
}

static void send_file(int socket, int fd)
{
    char byte = 0, control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    must(sendmsg(socket, &message, 0) == 1);
}

static int receive_file(int socket)
{
    int fd;
    char byte, control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    must(recvmsg(socket, &message, 0) == 1);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

/* A file that is passed: the receiver pins memory that the sender mapped before. */
static void receiver_pins_the_senders(void)
{
    int ends[2];
    uint32_t ioas = 1;
    must(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
    pid_t child = fork();
    if (child == 0) {
        char done;
        int fd = receive_file(ends[1]);
        mock_device(fd, ioas);
        must(write(ends[1], "x", 1) == 1 && read(ends[1], &done, 1) == 1);
        see("seen by the receiver", fd, ioas);
        _exit(0);
    }
    char byte, *memory = private_memory('s');
    int fd = open_iommu();
    must(alloc_ioas(fd) == ioas && map_memory(fd, ioas, memory, BYTES, IOVA) == 0);
    send_file(ends[0], fd);
    must(close(fd) == 0 && read(ends[0], &byte, 1) == 1);
    must(munmap(memory, BYTES) == 0 && write(ends[0], "x", 1) == 1);
    finish(child);
}

/* Mapped after the file was shared, and pinned by the other: reached where it is, as long as it is there. */
static void mapped_after_sharing(void)
{
    int fd = open_iommu(), mapped[2];
    uint32_t ioas = alloc_ioas(fd);
    char byte;
    must(pipe(mapped) == 0);
    pid_t child = fork();
    if (child == 0) {
        must(read(mapped[0], &byte, 1) == 1);
        mock_device(fd, ioas);
        see("mapped later", fd, ioas);
        _exit(0);
    }
    char *memory = private_memory('x');
    memory[7] = 'w';
    must(map_memory(fd, ioas, memory, BYTES, IOVA) == 0 && write(mapped[1], "x", 1) == 1);
    finish(child);
    close(fd);
}

/* Every kind of memory that a program may have, with a part of a page at both ends. */
static void every_kind(void)
{
    static const struct {
        const char *name;
        int flags;
        bool readonly, in_file;
    } kinds[] = {
        {"private", MAP_PRIVATE | MAP_ANONYMOUS, false, false},
        {"private, read-only", MAP_PRIVATE | MAP_ANONYMOUS, true, false},
        {"shared", MAP_SHARED | MAP_ANONYMOUS, false, false},
        {"memfd", MAP_SHARED, false, true},
        {"copy of a memfd", MAP_PRIVATE, false, true},
        {"memfd, read-only", MAP_SHARED, true, true},
        {"huge, private", MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, false, false},
        {"huge, shared", MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB | 21 << MAP_HUGE_SHIFT, false, false},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        int fd = open_iommu(), file = kinds[i].in_file ? memfd_create("kind", MFD_CLOEXEC) : -1;
        uint32_t ioas = alloc_ioas(fd);
        must(file < 0 || ftruncate(file, BYTES) == 0);
        char *memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, kinds[i].flags, file, 0);
        must(memory != MAP_FAILED);
        bool huge = kinds[i].flags & MAP_HUGETLB;
        must(!huge || (uintptr_t)memory % HUGE == 0);
        fill(memory, 'a');
        must(!kinds[i].readonly || mprotect(memory, BYTES, PROT_READ) == 0);
        mock_device(fd, ioas);
        struct {
            uint32_t size, flags, ioas_id, reserved;
            uint64_t user_va, length, iova;
        } map = {40, MAP_FIXED_IOVA | MAP_READABLE, ioas, 0, (uintptr_t)memory + 2048, BYTES - PAGE, IOVA + 2048};
        int error = request(fd, IOMMU_IOAS_MAP, &map);
        char byte = 0;
        int access = create_access(fd, ioas);
        /* A private mapping of a file is the one kind that must stay where it is. */
        must(kinds[i].flags == MAP_PRIVATE || munmap(memory, huge ? HUGE : BYTES) == 0);
        int first = access_rw(fd, access, IOVA + 2048, &byte, 1, 0);
        printf("%s: %s %c", kinds[i].name, error ? strerrorname_np(error) : "mapped", first ? '!' : byte);
        int last = access_rw(fd, access, IOVA + 2047 + BYTES - PAGE, &byte, 1, 0);
        printf("%c, beyond %s\n", last ? '!' : byte,
               strerrorname_np(access_rw(fd, access, IOVA + 2048 + BYTES - PAGE, &byte, 1, 0)));
        close(access);
        close(fd);
        if (file >= 0)
            close(file);
    }
}

int main(void)
{
    child_pins_the_parents();
    pins_outlive_their_owner();
    receiver_pins_the_senders();
    mapped_after_sharing();
    fflush(stdout);
    every_kind();
    return 0;
}
