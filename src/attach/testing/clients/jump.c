/* Handlers that jump out of a waiting call: the thread goes on with other connections. */
#include "client.h"
#include <setjmp.h>

static sigjmp_buf back;

static void jump(int signal)
{
    (void)signal;
    siglongjmp(back, 1);
}

static void *alarm_soon(void *argument)
{
    usleep(20000);
    pthread_kill(*(pthread_t *)argument, SIGUSR2);
    return NULL;
}

int main(void)
{
    int fd = open_node();
    pthread_t self = pthread_self(), other;
    signal(SIGUSR2, jump);
    for (int i = 0; i < 7; i++) {
        CHECK(pthread_create(&other, NULL, alarm_soon, &self) == 0);
        if (sigsetjmp(back, 1) == 0) {
            ioctl(fd, SUSPEND, 0);
            CHECK(!"the call came back");
        }
        for (uint32_t n = 0; n < 20; n++)
            check_echo(fd, n);
        CHECK(pthread_join(other, NULL) == 0);
    }
    puts("done");
    return 0;
}
