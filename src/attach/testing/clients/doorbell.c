/* Readers in several processes wait with poll for one file's events while another pushes: none is lost. */
#include "client.h"

#define READERS 3
#define EVENTS 2000

int main(void)
{
    int fd = open_node();
    int *taken = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(taken != MAP_FAILED && fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK) == 0);
    for (int i = 0; i < READERS; i++) {
        if (fork() != 0)
            continue;
        char text[32];
        for (;;) {
            struct pollfd poller = {.fd = fd, .events = POLLIN};
            CHECK(poll(&poller, 1, 5000) == 1);
            ssize_t n = read(fd, text, sizeof text);
            if (n < 0) {
                CHECK(errno == EAGAIN);
                continue;
            }
            if (!memcmp(text, "event 0", 7))
                _exit(0);
            __atomic_add_fetch(taken, 1, __ATOMIC_RELAXED);
        }
    }
    for (int i = 0; i < EVENTS; i++) {
        CHECK(ioctl(fd, PUSH, 1000 + i) == 0);
        if (i % 7 == 0)
            usleep(100);
    }
    while (ioctl(fd, COUNT, 0) > 0)
        usleep(1000);
    for (int i = 0; i < READERS; i++)
        CHECK(ioctl(fd, PUSH, 0) == 0);
    for (int i = 0, status; i < READERS; i++)
        CHECK(wait(&status) > 0 && status == 0);
    CHECK(*taken == EVENTS);
    puts("done");
    return 0;
}
