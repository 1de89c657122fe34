/* The daemon knows the caller as the kernel does. */
#include "client.h"
#include <sys/syscall.h>

static int fd;
static uint32_t space;

static void check_me(int same_space)
{
    uint32_t me[4];
    CHECK(ioctl(fd, WHOAMI, me) == 0);
    CHECK(me[0] == (uint32_t)getpid() && me[1] == (uint32_t)syscall(SYS_gettid) && me[2] == getuid());
    CHECK(same_space == (me[3] == space));
}

static void *thread(void *argument)
{
    check_me(1);
    return argument;
}

int main(int argc, char **argv)
{
    fd = argc > 2 ? atoi(argv[1]) : open("/dev/softiommu-test/echo", O_RDWR);
    uint32_t me[4];
    CHECK(ioctl(fd, WHOAMI, me) == 0);
    if (argc > 2) { /* after exec: the same process with a new address space */
        CHECK(me[0] == (uint32_t)getpid() && me[3] != (uint32_t)atoi(argv[2]));
        puts("done");
        return 0;
    }
    space = me[3];
    check_me(1);
    pthread_t other;
    CHECK(pthread_create(&other, NULL, thread, NULL) == 0 && pthread_join(other, NULL) == 0);
    pid_t child = fork();
    if (child == 0) {
        check_me(0);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    char number[16], before[16];
    snprintf(number, sizeof number, "%d", fd);
    snprintf(before, sizeof before, "%u", space);
    execl("/proc/self/exe", argv[0], number, before, NULL);
    return 1;
}
