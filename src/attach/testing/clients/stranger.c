/* Uses the cookie of another program's file: argv[1] the socket, argv[2] the cookie. Prints the answer. */
#include "../../shim/protocol.h"
#include "client.h"
#include <sys/un.h>

int main(int argc, char **argv)
{
    CHECK(argc > 2);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    CHECK(connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    struct {
        struct request_header header;
        struct ioctl_body body;
    } request = {
        .header = {.version = PROTOCOL_VERSION, .op = OP_IOCTL, .seq = 1, .length = sizeof(struct ioctl_body)},
        .body = {.file = {.cookie = strtoull(argv[2], NULL, 10), .fd = fd}, .request = NOTHING},
    };
    struct reply_header reply;
    CHECK(send(fd, &request, sizeof request, 0) == sizeof request);
    CHECK(recv(fd, &reply, sizeof reply, 0) == sizeof reply);
    printf("%d\n", (int)reply.value);
    return 0;
}
