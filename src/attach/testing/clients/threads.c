/* Threads calling at once, signals during calls, and threads that end. */
#include "client.h"
#include <sys/prctl.h>

static int fd;
static volatile sig_atomic_t interrupted;

static void *work(void *argument)
{
    for (uint32_t i = 0; i < 300; i++)
        check_echo(fd, i + (uint32_t)(uintptr_t)argument);
    return NULL;
}

/* A handler that asks the daemon itself, while a call of the same thread waits. */
static void nested(int signal)
{
    (void)signal;
    int saved = errno;
    check_echo(fd, 77);
    interrupted++;
    errno = saved;
}

static void set_handler(int flags)
{
    struct sigaction action = {.sa_handler = nested, .sa_flags = flags};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
}

static void *resume_later(void *argument)
{
    pthread_t caller = *(pthread_t *)argument;
    usleep(50000);
    pthread_kill(caller, SIGUSR1);
    usleep(50000);
    CHECK(ioctl(fd, RESUME, 21) == 1);
    return NULL;
}

static void *call_and_linger(void *argument)
{
    check_echo(fd, 1);
    usleep(60000);
    return argument;
}

static void *interrupt_later(void *argument)
{
    usleep(50000);
    pthread_kill(*(pthread_t *)argument, SIGUSR1);
    return NULL;
}

int main(int argc, char **argv)
{
    fd = open_node();
    pthread_t self = pthread_self(), other;
    if (argc > 1 && !strcmp(argv[1], "wait-forever")) {
        puts("waiting");
        fflush(stdout);
        ioctl(fd, SUSPEND, 0);
        return 0;
    }
    if (argc > 1 && !strcmp(argv[1], "end-threads")) {
        pthread_t thread;
        for (uintptr_t i = 0; i < 20; i++)
            CHECK(pthread_create(&thread, NULL, work, (void *)i) == 0 && pthread_join(thread, NULL) == 0);
        ioctl(fd, SUSPEND, 0);
        return 0;
    }
    if (argc > 1 && !strcmp(argv[1], "fork-child")) { /* the child must not hold the thread's connection */
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, call_and_linger, NULL) == 0);
        usleep(30000);
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (;;)
                pause();
        }
        CHECK(pthread_join(thread, NULL) == 0);
        ioctl(fd, SUSPEND, 0);
        return 0;
    }
    for (int round = 0; round < 5; round++) {
        pthread_t threads[8];
        for (uintptr_t i = 0; i < 8; i++)
            CHECK(pthread_create(&threads[i], NULL, work, (void *)(i * 1000)) == 0);
        for (int i = 0; i < 8; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
    }
    /* A waiting call goes on after a handler with SA_RESTART… */
    set_handler(SA_RESTART);
    CHECK(pthread_create(&other, NULL, resume_later, &self) == 0);
    CHECK(ioctl(fd, SUSPEND, 0) == 21 && interrupted == 1);
    CHECK(pthread_join(other, NULL) == 0);
    /* …and ends with EINTR without. */
    set_handler(0);
    CHECK(pthread_create(&other, NULL, interrupt_later, &self) == 0);
    CHECK_FAILS(ioctl(fd, SUSPEND, 0), EINTR);
    CHECK(interrupted == 2);
    CHECK(pthread_join(other, NULL) == 0);
    CHECK(ioctl(fd, RESUME, 1) == 1); /* the fake file still has it; answering it does nothing */
    /* A read that waits. */
    set_handler(SA_RESTART);
    CHECK(pthread_create(&other, NULL, resume_later, &self) == 0);
    char byte = 0;
    CHECK(read(fd, &byte, 1) == 21 || byte == 0x5a);
    CHECK(pthread_join(other, NULL) == 0);
    /* A storm of signals around ordinary calls. */
    set_handler(0);
    timer_t timer;
    struct sigevent notify = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    struct itimerspec period = {{0, 300000}, {0, 300000}};
    CHECK(timer_create(CLOCK_MONOTONIC, &notify, &timer) == 0 && timer_settime(timer, 0, &period, NULL) == 0);
    for (uint32_t i = 0; i < 3000; i++)
        check_echo(fd, i);
    CHECK(timer_delete(timer) == 0);
    puts("done");
    return 0;
}
