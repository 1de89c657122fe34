/*
 * Start-up, control connections and requests. Each thread has its own connection to the daemon and further ones for
 * signal handlers that interrupt a request; a forked child opens new ones. Every request checks that its descriptor
 * still is the socket it was (a program may close or replace any number), so a lost connection is only opened again.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/resource.h>
#include <sys/un.h>

#include "mailbox.h"

#ifndef SO_COOKIE
#define SO_COOKIE 57
#endif

/* Connections of one thread: requests nest when handlers interrupt each other. */
#define NESTING 4
/* A thread that has made this many requests gets a mailbox. */
#define MAILBOX_AFTER 8

struct control {
    int fd;
    uint32_t tid;
    uint32_t seq;
    uint64_t cookie;
    struct mailbox mailbox;
    bool mailbox_tried;
};

struct thread_state {
    struct control control[NESTING];
    int depth;
    bool registered;
};

static __thread struct thread_state self;
static pthread_key_t thread_key;
static struct sockaddr_un address;
static uint64_t image;
static long process; /* the pid whose memory this is: a vfork child runs in its parent's */
static int keep_from = 900;

bool shim_initialised;
bool shim_is_attached;

bool shim_own_memory(void)
{
    return raw_getpid() == process;
}

bool shim_attached(void)
{
    return attached();
}

/* ---- kept descriptors ---------------------------------------------------------------------------------- */

#define TRACKED_FDS 65536u
static uint64_t kept[TRACKED_FDS / 64];
static uint64_t controls[TRACKED_FDS / 64];

static void set_bit(uint64_t *bits, int fd, bool value)
{
    if (fd < 0 || (unsigned)fd >= TRACKED_FDS)
        return;
    uint64_t bit = UINT64_C(1) << (fd & 63);
    if (value)
        __atomic_or_fetch(&bits[fd / 64], bit, __ATOMIC_RELAXED);
    else
        __atomic_and_fetch(&bits[fd / 64], ~bit, __ATOMIC_RELAXED);
}

bool shim_is_kept(int fd)
{
    if (fd < 0 || (unsigned)fd >= TRACKED_FDS)
        return false;
    return __atomic_load_n(&kept[fd / 64], __ATOMIC_RELAXED) >> (fd & 63) & 1;
}

/* The first kept descriptor that is not below `from`. */
bool kept_range(unsigned from, unsigned *fd)
{
    for (unsigned word = from / 64; word < TRACKED_FDS / 64; word++) {
        uint64_t bits = __atomic_load_n(&kept[word], __ATOMIC_RELAXED);
        if (word == from / 64)
            bits &= ~UINT64_C(0) << (from % 64);
        if (bits) {
            *fd = word * 64 + (unsigned)__builtin_ctzll(bits);
            return true;
        }
    }
    return false;
}

int shim_keep_fd(int fd)
{
    long high = raw_fcntl(fd, F_DUPFD_CLOEXEC, keep_from);
    if (high < 0)
        high = raw_fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (high < 0)
        return (int)high;
    raw_close(fd);
    set_bit(kept, (int)high, true);
    return (int)high;
}

void shim_drop_fd(int fd)
{
    set_bit(kept, fd, false);
    set_bit(controls, fd, false);
    raw_close(fd);
}

void shim_release_fd(int fd)
{
    set_bit(kept, fd, false);
    set_bit(controls, fd, false);
}

/* A connection that loses its number is opened again; whatever else we keep has owners that know the number. In a vfork
 * child the numbers are its own, and the owners its parent's. */
int shim_make_way(int fd)
{
    if (!shim_is_kept(fd) || !shim_own_memory() || controls[fd / 64] >> (fd & 63) & 1)
        return 0;
    long other = raw_fcntl(fd, F_DUPFD_CLOEXEC, keep_from);
    if (other < 0)
        other = raw_fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (other < 0)
        return (int)other;
    set_bit(kept, (int)other, true);
    mappings_renumber(fd, (int)other);
    trap_renumber(fd, (int)other);
    adopt_renumber(fd, (int)other);
    set_bit(kept, fd, false);
    return 0;
}

int shim_keep_control(int fd)
{
    int high = shim_keep_fd(fd);
    if (high >= 0)
        set_bit(controls, high, true);
    return high;
}

/* ---- connections --------------------------------------------------------------------------------------- */

static uint64_t cookie_of(int fd)
{
    uint64_t cookie = 0;
    socklen_t length = sizeof cookie;
    return raw_getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length) == 0 ? cookie : 0;
}

static void disconnect(struct control *control)
{
    if (control->fd > 0 && cookie_of(control->fd) == control->cookie)
        shim_drop_fd(control->fd);
    control->fd = 0;
    mailbox_close(&control->mailbox);
    control->mailbox_tried = false;
}

static void thread_ends(void *state)
{
    struct thread_state *thread = state;
    for (int i = 0; i < NESTING; i++)
        disconnect(&thread->control[i]);
    thread->registered = false;
}

static int connect_control(struct control *control, bool lasting)
{
    long fd = raw_syscall(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, 0, 0, 0);
    if (fd < 0)
        return (int)fd;
    long result;
    do
        result = raw_syscall(SYS_connect, fd, (long)&address, sizeof address, 0, 0, 0);
    while (result == -EINTR);
    if (result < 0) {
        raw_close((int)fd);
        return (int)result;
    }
    int high = (int)fd;
    if (lasting) {
        high = shim_keep_control((int)fd);
        if (high < 0) {
            raw_close((int)fd);
            return high;
        }
    }
    control->cookie = cookie_of(high);
    control->seq = 0;
    control->tid = (uint32_t)raw_gettid();
    control->fd = high;
    if (lasting && !self.registered) {
        self.registered = true;
        pthread_setspecific(thread_key, &self);
    }
    return 0;
}

static int ready(struct control *control)
{
    if (control->fd > 0 && cookie_of(control->fd) == control->cookie)
        return 0;
    if (control->fd > 0) /* somebody replaced it */
        shim_release_fd(control->fd);
    disconnect(control);
    return connect_control(control, true);
}

/* ---- requests ------------------------------------------------------------------------------------------ */

union fd_control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(EXCHANGE_FDS * sizeof(int))];
};

static struct request_header header_of(const struct control *control, const struct exchange *x)
{
    size_t length = 0;
    for (int i = 0; i < x->nsend; i++)
        length += x->send[i].iov_len;
    return (struct request_header){
        .version = PROTOCOL_VERSION,
        .op = x->op,
        .seq = control->seq,
        .tid = control->tid,
        .image = image,
        .length = (uint32_t)length,
        .attempt = x->attempt,
    };
}

static long send_request(struct control *control, const struct exchange *x)
{
    struct iovec parts[4];
    for (int i = 0; i < x->nsend; i++)
        parts[i + 1] = x->send[i];
    struct request_header header = header_of(control, x);
    parts[0] = (struct iovec){&header, sizeof header};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)x->nsend + 1};
    union fd_control fds;
    if (x->nsend_fds > 0) {
        memset(&fds, 0, sizeof fds);
        message.msg_control = &fds;
        message.msg_controllen = CMSG_SPACE((size_t)x->nsend_fds * sizeof(int));
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN((size_t)x->nsend_fds * sizeof(int));
        memcpy(CMSG_DATA(rights), x->send_fds, (size_t)x->nsend_fds * sizeof(int));
    }
    long result;
    do
        result = raw_sendmsg(control->fd, &message, MSG_NOSIGNAL);
    while (result == -EINTR);
    return result < 0 ? result : 0;
}

static void send_cancel(struct control *control)
{
    struct request_header header = {
        .version = PROTOCOL_VERSION, .op = OP_CANCEL, .seq = control->seq, .image = image};
    struct iovec part = {&header, sizeof header};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    while (raw_sendmsg(control->fd, &message, MSG_NOSIGNAL) == -EINTR)
        ;
}

static int take_fds(struct msghdr *message, int *fds)
{
    int count = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n && count < EXCHANGE_FDS; i++)
            memcpy(&fds[count++], CMSG_DATA(c) + i * sizeof(int), sizeof(int));
    }
    return count;
}

static long receive_reply(struct control *control, struct exchange *x)
{
    bool cancelled = false;
    for (;;) {
        struct iovec parts[2] = {{&x->header, sizeof x->header}, {x->reply, x->reply_size}};
        union fd_control control_bytes;
        struct msghdr message = {
            .msg_iov = parts,
            .msg_iovlen = x->reply_size ? 2 : 1,
            .msg_control = &control_bytes,
            .msg_controllen = sizeof control_bytes,
        };
        long result = raw_recvmsg(control->fd, &message, MSG_CMSG_CLOEXEC);
        if (result == -EINTR) {
            if (x->cancellable && !cancelled) {
                cancelled = true;
                send_cancel(control);
            }
            continue;
        }
        if (result < (long)sizeof x->header)
            return -EIO;
        int count = take_fds(&message, x->fds);
        bool stale = x->header.seq != control->seq;
        if (stale || (uint32_t)count != x->header.fds) {
            for (int i = 0; i < count; i++)
                raw_close(x->fds[i]);
            if (!stale) {
                x->header.fds = 0;
                return -EMFILE;
            }
            continue;
        }
        return x->header.value;
    }
}

/* A request over the connection. */
static long exchange_messages(struct control *control, struct exchange *x)
{
    control->seq++;
    long result = send_request(control, x);
    if (result == 0)
        return receive_reply(control, x);
    if (result == -EFAULT)
        return result;
    disconnect(control);
    return -EIO;
}

static void open_mailbox(struct control *control)
{
    struct exchange x = {.op = OP_MAILBOX};
    control->mailbox_tried = true;
    long result = exchange_messages(control, &x);
    if (result == 0 && x.header.fds == 2) {
        mailbox_open(&control->mailbox, x.fds[0], x.fds[1]);
        return;
    }
    for (uint32_t i = 0; i < x.header.fds; i++)
        raw_close(x.fds[i]);
}

/* Whether the daemon still has the other end. */
static bool connection_lives(const struct control *control)
{
    char byte;
    long result = raw_syscall(SYS_recvfrom, control->fd, (long)&byte, 1, MSG_PEEK | MSG_DONTWAIT, 0, 0);
    return result > 0 || result == -EAGAIN;
}

/* A request through the mailbox, if there is one and it fits. */
static long exchange_posted(struct control *control, struct exchange *x)
{
    struct mailbox *mailbox = &control->mailbox;
    if (!mailbox->page)
        return MAILBOX_UNABLE;
    control->seq++;
    struct request_header header = header_of(control, x);
    if (!mailbox_post(mailbox, &header, x))
        return MAILBOX_UNABLE;
    mailbox_look(mailbox, control->seq);
    bool cancelled = false;
    for (;;) {
        long result = mailbox_wait(mailbox, control->seq);
        if (result == 0)
            result = mailbox_answer(mailbox, control->seq, x);
        else if (result == -EINTR && x->cancellable && !cancelled) {
            cancelled = true;
            send_cancel(control);
            continue;
        } else if (result != -EIO && connection_lives(control))
            continue;
        else {
            disconnect(control);
            return -EIO;
        }
        return result == MAILBOX_ELSEWHERE ? receive_reply(control, x) : result;
    }
}

static long exchange_with(struct control *control, struct exchange *x)
{
    if (!control->mailbox_tried && control->seq >= MAILBOX_AFTER && control == &self.control[0]) {
        open_mailbox(control);
        if (control->fd <= 0)
            return -EIO;
    }
    long result = exchange_posted(control, x);
    return result == MAILBOX_UNABLE ? exchange_messages(control, x) : result;
}

long shim_exchange(struct exchange *x)
{
    x->header = (struct reply_header){0};
    if (!attached())
        return -EIO;
    struct control passing = {0};
    bool borrowed = !shim_own_memory();
    int depth = self.depth++;
    struct control *control = borrowed ? &passing : &self.control[depth < NESTING ? depth : NESTING - 1];
    long result = borrowed ? connect_control(control, false) : ready(control);
    if (result == 0)
        result = exchange_with(control, x);
    else if (result != -EMFILE)
        result = -EIO;
    self.depth = depth;
    if (borrowed && passing.fd > 0)
        raw_close(passing.fd);
    return result;
}

/* A daemon that keeps asking does not keep a program. */
#define MAX_RESTARTS 16
#define MAX_RANGES 64

long shim_exchange_restarting(struct exchange *x)
{
    void *reply = x->reply;
    size_t reply_size = x->reply_size;
    struct range ranges[MAX_RANGES];
    if (reply_size < sizeof ranges) {
        x->reply = ranges;
        x->reply_size = sizeof ranges;
    }
    for (x->attempt = 0;; x->attempt++) {
        long result = shim_exchange(x);
        if (!(x->header.flags & REPLY_RESTART)) {
            if (x->reply != reply && reply_size)
                memcpy(reply, x->reply, reply_size);
            return result;
        }
        if (x->attempt == MAX_RESTARTS)
            return -EFAULT;
        const struct range *asked = x->reply;
        for (uint32_t i = 0; i < x->header.length / sizeof *asked; i++)
            adopt_range(asked[i].va, asked[i].length);
    }
}

long shim_request(uint32_t op, const void *body, size_t length, void *reply, size_t reply_size, const int *send_fds,
                  int nsend, int *recv_fds, int *nrecv)
{
    int room = nrecv ? *nrecv : 0;
    if (nrecv)
        *nrecv = 0;
    if (length > PROTOCOL_MAX_BODY || nsend > PROTOCOL_MAX_FDS)
        return -EMSGSIZE;
    struct exchange x = {
        .op = op,
        .send = {{(void *)body, length}},
        .nsend = length ? 1 : 0,
        .send_fds = send_fds,
        .nsend_fds = nsend,
        .reply = reply,
        .reply_size = reply_size,
    };
    long result = shim_exchange(&x);
    for (int i = 0; i < (int)x.header.fds; i++) {
        if (i < room && recv_fds && nrecv)
            recv_fds[(*nrecv)++] = x.fds[i];
        else
            raw_close(x.fds[i]);
    }
    return result;
}

/* ---- start-up ------------------------------------------------------------------------------------------ */

/* Adoption comes last and goes first: until the child has its copy, faults must not be blocked. */
static void fork_prepare(void)
{
    if (calls_made)
        adopt_before_sharing();
    mappings_fork_prepare();
    adopt_fork_prepare();
}

static void fork_parent(void)
{
    adopt_fork_parent();
    mappings_fork_done();
}

/* Threads of the parent do not exist here; their connections are closed by number. */
static void fork_child(void)
{
    adopt_fork_child();
    mappings_fork_done();
    process = raw_getpid();
    unsigned fd;
    for (unsigned from = 0; kept_range(from, &fd); from = fd + 1)
        if (controls[fd / 64] >> (fd & 63) & 1)
            shim_drop_fd((int)fd);
    memset(self.control, 0, sizeof self.control);
    self.depth = 0;
}

/* "<socket folder>/routes": lines of a keyword and words separated by blanks. */
static void read_configuration(const char *folder_end)
{
    static char text[32768];
    char path[sizeof address.sun_path + 8];
    size_t folder = (size_t)(folder_end - address.sun_path);
    memcpy(path, address.sun_path, folder);
    memcpy(path + folder, "/routes", 8);
    long fd = raw_openat(AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return;
    size_t length = 0;
    long n;
    while (length < sizeof text - 1 && (n = raw_read((int)fd, text + length, sizeof text - 1 - length)) > 0)
        length += (size_t)n;
    raw_close((int)fd);
    char *state = NULL;
    for (char *line = strtok_r(text, "\n", &state); line; line = strtok_r(NULL, "\n", &state)) {
        char *words = NULL;
        const char *keyword = strtok_r(line, " ", &words);
        const char *first = strtok_r(NULL, " ", &words);
        const char *second = strtok_r(NULL, " ", &words);
        if (keyword && first && second && strcmp(keyword, "route") == 0)
            route_configure(first, second);
        else if (keyword && first && strcmp(keyword, "files") == 0)
            files_configure(first);
    }
}

static void choose_kept_numbers(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < 1024)
        keep_from = (int)(limit.rlim_cur * 3 / 4);
}

static void start(void)
{
    const char *socket_path = getenv("SOFTIOMMU_SOCKET");
    dl_init();
    open_init();
    folders_init();
    files_init();
    calls_init();
    mmap_init();
    huge_init();
    stream_init();
    exec_init(getenv("SOFTIOMMU_PRELOAD"), socket_path);
    const char *slash = socket_path ? strrchr(socket_path, '/') : NULL;
    if (!slash || strlen(socket_path) >= sizeof address.sun_path)
        return;
    address.sun_family = AF_UNIX;
    strcpy(address.sun_path, socket_path);
    const unsigned char *random = (const unsigned char *)getauxval(AT_RANDOM);
    if (random)
        memcpy(&image, random, sizeof image);
    read_configuration(address.sun_path + (slash - socket_path));
    choose_kept_numbers();
    process = raw_getpid();
    if (pthread_key_create(&thread_key, thread_ends) != 0)
        return;
    pthread_atfork(fork_prepare, fork_parent, fork_child);
    shim_is_attached = true;
    files_scan();
    stacks_init();
    trap_init();
    signals_init();
}

void shim_init(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    static __thread bool starting;
    if (starting)
        return; /* an interposed function that start-up itself calls */
    starting = true;
    pthread_once(&once, start);
    starting = false;
    shim_initialised = true;
}

__attribute__((constructor(101))) static void construct(void)
{
    if (!shim_initialised)
        shim_init();
}
