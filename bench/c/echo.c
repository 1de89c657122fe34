/*
 * The baseline of a round trip: a process that sends 64 bytes over a SOCK_SEQPACKET pair to another, which sends them
 * back. Arguments: how many, and the pause between two in microseconds. Prints each round trip in nanoseconds.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 10000, pause = argc > 2 ? atoi(argv[2]) : 0, ends[2];
    char message[64] = {0};
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) != 0)
        return 1;
    if (fork() == 0) {
        close(ends[0]);
        while (read(ends[1], message, sizeof(message)) == sizeof(message))
            if (write(ends[1], message, sizeof(message)) != sizeof(message))
                return 1;
        return 0;
    }
    close(ends[1]);
    for (int i = 0; i < count; i++) {
        if (pause)
            usleep(pause);
        long start = now();
        if (write(ends[0], message, sizeof(message)) != sizeof(message) ||
            read(ends[0], message, sizeof(message)) != sizeof(message))
            return 1;
        printf("%ld\n", now() - start);
    }
    return 0;
}
