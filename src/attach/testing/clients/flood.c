/* A program that talks to the daemon without the library: rubbish, floods, and sudden ends. argv[1]: the socket. */
#include "client.h"
#include <sys/un.h>

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    return fd;
}

static uint32_t state = 12345;
static uint32_t next(void)
{
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    return state;
}

int main(int argc, char **argv)
{
    CHECK(argc > 1);
    static uint32_t message[20000];
    int fd = connect_to(argv[1]);
    for (int i = 0; i < 20000; i++) {
        size_t words = next() % (i % 50 == 0 ? 20000 : 40);
        for (size_t w = 0; w < words; w++)
            message[w] = next();
        if (i % 4 && words >= 8) { /* a good header, a random body */
            message[0] = 1, message[1] = next() % 12, message[6] = (uint32_t)(words * 4 - 32);
            message[4] = message[5] = 7, message[7] = 0;
            for (size_t w = 8; w < words && w < 20; w++)
                if (next() % 3)
                    message[w] = next() % 64;
        }
        if (send(fd, message, words * 4, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
            close(fd);
            fd = connect_to(argv[1]);
        }
        while (i % 7 && recv(fd, message, sizeof message, MSG_DONTWAIT) > 0)
            ;
    }
    puts("done");
    return 0;
}
