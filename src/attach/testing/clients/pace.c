/*
 * Calls at every pace: either side sleeps, is about to, or looks for the other. argv: "threads" (pauses of all lengths;
 * a call that was not heard would wait for ever) or "closes" (a file that was closed before a call is closed in it).
 */
#include "client.h"

#define THREADS 3
#define CALLS 3000
#define CLOSES 400

static int fd;

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Half of the calls follow at once, others within 130 µs: looks end in between. Some sleep. */
static void take_a_break(uint32_t random)
{
    if (random & 1)
        return;
    if (random % 64 == 0) {
        usleep(100);
        return;
    }
    for (uint64_t until = now() + (random >> 8) % 130000; now() < until;)
        ;
}

static void *work(void *argument)
{
    uint32_t random = (uint32_t)(uintptr_t)argument;
    for (uint32_t i = 0; i < CALLS; i++) {
        check_echo(fd, i);
        random = random * 1664525u + 1013904223u;
        take_a_break(random >> 4);
    }
    return NULL;
}

static void check_threads(void)
{
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, work, (void *)(i + 1)) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

static void check_closes(void)
{
    for (int i = 1; i <= CLOSES; i++) {
        int made = ioctl(fd, CREATE, 0);
        CHECK(made >= 0);
        check_echo(made, 1);
        CHECK(close(made) == 0);
        CHECK(ioctl(fd, CLOSED, 0) == i);
    }
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    fd = open_node();
    if (!strcmp(argv[1], "threads"))
        check_threads();
    else
        check_closes();
    puts("done");
    return 0;
}
