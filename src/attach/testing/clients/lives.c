/* How descriptors live: dup, fork, exec, SCM_RIGHTS, close. argv[1] says which. */
#include "client.h"
#include <spawn.h>

static void send_fd(int socket, int fd)
{
    union { struct cmsghdr align; char bytes[CMSG_SPACE(sizeof(int))]; } control = {0};
    struct iovec part = {"x", 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    CHECK(sendmsg(socket, &message, 0) == 1);
}

static int receive_fd(int socket)
{
    union { struct cmsghdr align; char bytes[CMSG_SPACE(sizeof(int))]; } control;
    char byte;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    CHECK(recvmsg(socket, &message, 0) == 1);
    int fd;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

static int wait_for(pid_t pid)
{
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
    return WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "after-exec")) {
        CHECK(pwrite(atoi(argv[2]), "x", 1, 0) == 1);
        check_echo(atoi(argv[2]), 3);
        return 0;
    }
    int fd = open_node();
    check_echo(fd, 1);
    if (!strcmp(what, "dup")) {
        int a = dup(fd), b = fcntl(fd, F_DUPFD, 50), c = dup2(fd, 60), d = dup3(fd, 61, O_CLOEXEC);
        CHECK(b >= 50 && c == 60 && d == 61);
        CHECK(close(fd) == 0);
        /* The first use is a plain write: each duplicate is known without an ioctl that asks. */
        CHECK(pwrite(a, "x", 1, 0) == 1 && pwrite(b, "x", 1, 0) == 1);
        CHECK(pwrite(c, "x", 1, 0) == 1 && pwrite(d, "x", 1, 0) == 1);
        check_echo(a, 1), check_echo(b, 2), check_echo(c, 3), check_echo(d, 4);
        CHECK_FAILS(ioctl(fd, ECHO_, 0), EBADF);
        /* A number that was ours and is an ordinary file now. */
        int null = open("/dev/null", O_RDWR);
        CHECK(dup2(null, a) == a && write(a, "x", 1) == 1 && read(a, what, 0) == 0);
        CHECK_FAILS(ioctl(a, ECHO_, 0), ENOTTY);
        check_echo(b, 5);
    } else if (!strcmp(what, "fork")) {
        pid_t child = fork();
        if (child == 0) {
            for (uint32_t i = 0; i < 100; i++)
                check_echo(fd, i);
            _exit(7);
        }
        for (uint32_t i = 0; i < 100; i++)
            check_echo(fd, i);
        CHECK(wait_for(child) == 7);
        check_echo(fd, 1);
        pid_t raw = (pid_t)syscall(57 /* fork */);
        if (raw == 0) {
            check_echo(fd, 8);
            _exit(9);
        }
        CHECK(wait_for(raw) == 9);
        check_echo(fd, 2);
        pid_t quick = vfork();
        if (quick == 0) {
            close(fd);
            dup2(0, fd);
            _exit(3);
        }
        CHECK(wait_for(quick) == 3);
        CHECK(pwrite(fd, "z", 1, 0) == 1);
        check_echo(fd, 3);
    } else if (!strcmp(what, "spawn")) {
        char number[16];
        CHECK(fcntl(fd, F_SETFD, 0) == 0);
        snprintf(number, sizeof number, "%d", fd);
        char *arguments[] = {argv[0], "after-exec", number, NULL};
        char *bare[] = {"A=b", NULL}, *other[] = {"LD_PRELOAD=libm.so.6", "B=c", NULL}, *none[] = {NULL};
        char **environments[] = {environ, bare, other, none};
        for (int i = 0; i < 8; i++) {
            pid_t child;
            CHECK((i & 1 ? posix_spawn : posix_spawnp)(&child, argv[0], NULL, NULL, arguments, environments[i / 2]) == 0);
            CHECK(wait_for(child) == 0);
        }
        char *saved = getenv("LD_PRELOAD");
        CHECK(saved && clearenv() == 0);
        for (int i = 0; i < 3; i++) {
            pid_t child = vfork();
            if (child == 0) {
                if (i == 0)
                    execv(argv[0], arguments);
                if (i == 1)
                    execvp(argv[0], arguments);
                execvpe(argv[0], arguments, other);
                _exit(99);
            }
            CHECK(wait_for(child) == 0);
        }
    } else if (!strcmp(what, "exec") || !strcmp(what, "exec-bare")) {
        char number[16];
        CHECK(fcntl(fd, F_SETFD, 0) == 0);
        snprintf(number, sizeof number, "%d", fd);
        char *bare[] = {"A=b", NULL};
        char *arguments[] = {argv[0], "after-exec", number, NULL};
        execve("/proc/self/exe", arguments, !strcmp(what, "exec") ? environ : bare);
    } else if (!strcmp(what, "rights")) {
        int pair[2];
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
        pid_t child = fork();
        if (child == 0) {
            CHECK(dup2(0, fd) == fd); /* so that the number of the received one was never seen */
            int got = receive_fd(pair[1]);
            CHECK(got != fd);
            CHECK(pwrite(got, "q", 1, 0) == 1);
            check_echo(got, 6);
            _exit(4);
        }
        send_fd(pair[0], fd);
        CHECK(close(fd) == 0);
        CHECK(wait_for(child) == 4);
    } else if (!strcmp(what, "closefrom")) {
        int other = open("/dev/null", O_RDONLY);
        CHECK(fcntl(other, F_DUPFD, 950) >= 950);
        closefrom(3);
        CHECK_FAILS(fcntl(fd, F_GETFD), EBADF);
        for (int i = 3; i < 1100; i++)
            CHECK(close(i) == -1 && errno == EBADF);
        int again = open_node();
        CHECK(again == 3);
        check_echo(again, 2);
        CHECK(close_range(3, ~0u, 0) == 0);
        again = open_node();
        check_echo(again, 4);
        CHECK(close_range(3, ~0u, CLOSE_RANGE_CLOEXEC) == 0);
        check_echo(again, 4);
        /* Replace the control connection by force: another one is opened. */
        for (int i = 890; i < 1024; i++)
            dup2(0, i);
        check_echo(again, 5);
        for (int i = 890; i < 1024; i++)
            CHECK(close(i) == 0 || errno == EBADF);
        check_echo(again, 6);
    } else {
        return 2;
    }
    return 0;
}
