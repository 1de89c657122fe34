/*
 * Calls of a thread that has made many: they go through a page it shares with the daemon. Everything is as before.
 * argv: nothing, or "orphan" (the daemon goes while a call waits).
 */
#include "client.h"
#include <sys/syscall.h>

static int fd;
static volatile sig_atomic_t interrupted;

static void warm(void)
{
    for (uint32_t i = 0; i < 30; i++)
        check_echo(fd, i);
}

static int mailboxes(void)
{
    char line[512];
    int count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps != NULL);
    while (fgets(line, sizeof line, maps))
        count += strstr(line, "softiommu mailbox") != NULL;
    fclose(maps);
    return count;
}

static void on_signal(int signal)
{
    (void)signal;
    interrupted++;
}

static void set_handler(int flags)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = flags};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
}

static void *signal_later(void *argument)
{
    usleep(50000);
    pthread_kill(*(pthread_t *)argument, SIGUSR1);
    return NULL;
}

static void *resume_later(void *argument)
{
    signal_later(argument);
    usleep(400000); /* longer than one wait for the answer */
    CHECK(ioctl(fd, RESUME, 21) == 1);
    return NULL;
}

static void check_waiting(void)
{
    pthread_t self = pthread_self(), other;
    set_handler(SA_RESTART);
    CHECK(pthread_create(&other, NULL, resume_later, &self) == 0);
    CHECK(ioctl(fd, SUSPEND, 0) == 21 && interrupted == 1);
    CHECK(pthread_join(other, NULL) == 0);
    set_handler(0);
    CHECK(pthread_create(&other, NULL, signal_later, &self) == 0);
    CHECK_FAILS(ioctl(fd, SUSPEND, 0), EINTR);
    CHECK(pthread_join(other, NULL) == 0 && interrupted == 2);
    CHECK(ioctl(fd, RESUME, 1) == 1); /* answering it does nothing */
}

/* An argument of 8 bytes at the end of what is mapped: what lies behind cannot be sent along. */
static void check_edge(void)
{
    char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED && munmap(page + 4096, 4096) == 0);
    uint32_t *pair = (uint32_t *)(page + 4096 - 8);
    pair[0] = 5;
    CHECK(ioctl(fd, ECHO_, pair) == 7 && pair[1] == 6);
    CHECK_FAILS(ioctl(fd, ECHO_, page + 4096), EFAULT);
}

static void check_new_files(void)
{
    int made = ioctl(fd, CREATE, 0);
    CHECK(made >= 0);
    check_echo(made, 9);
    CHECK(close(made) == 0);
    CHECK_FAILS(ioctl(fd, BUSY, 0), EBUSY);
}

static void check_children(void)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        if (mailboxes() != 0)
            _exit(1);
        warm();
        _exit(mailboxes() == 1 ? 0 : 2);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    child = vfork();
    if (child == 0) {
        uint32_t pair[2] = {1, 0};
        _exit(ioctl(fd, ECHO_, pair) == 7 ? 0 : 1);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* Behind the library's back: what then lies at the number is left alone. */
static void check_lost_descriptors(void)
{
    char nothing;
    int mine[2];
    CHECK(pipe(mine) == 0 && fcntl(mine[0], F_SETFL, O_NONBLOCK) == 0);
    for (long kept = 900; kept < 1000; kept++)
        syscall(SYS_close, kept);
    for (int kept = 900; kept < 1000; kept++)
        CHECK(syscall(SYS_dup2, mine[1], kept) == kept);
    warm();
    CHECK(read(mine[0], &nothing, 1) == -1 && errno == EAGAIN);
    for (int kept = 900; kept < 1000; kept++)
        CHECK(fcntl(kept, F_GETFD) >= 0);
}

int main(int argc, char **argv)
{
    fd = open_node();
    warm();
    CHECK(mailboxes() == 1);
    if (argc > 1 && !strcmp(argv[1], "orphan")) {
        CHECK(ioctl(fd, SUSPEND, 0) == -1 && (errno == EIO || errno == ENOTTY || errno == EBADF));
        puts("done");
        return 0;
    }
    check_waiting();
    check_edge();
    check_new_files();
    check_children();
    warm();
    check_lost_descriptors();
    puts("done");
    return 0;
}
