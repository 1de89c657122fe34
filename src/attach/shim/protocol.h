/*
 * What travels between the preload library and the daemon: one SOCK_SEQPACKET message a request, one a reply, on a
 * control connection that belongs to one thread. The daemon's end of this file is src/attach/protocol.ts; a test
 * holds the two equal. Everything is little-endian and naturally aligned. Leaves out: the bodies of the adopt and
 * trap operations, which their own files describe.
 */
#ifndef SOFTIOMMU_PROTOCOL_H
#define SOFTIOMMU_PROTOCOL_H

#include <stdint.h>

#define PROTOCOL_VERSION 1u

/* A body, a reply payload and one read or write transfer are at most this long. */
#define PROTOCOL_MAX_BODY 65536u
/* Descriptors in one message. */
#define PROTOCOL_MAX_FDS 16

enum shim_op {
    /* attach core */
    OP_CANCEL = 1,   /* a signal arrived while waiting; no reply of its own. body: none; seq = the request to cancel */
    OP_OPEN = 2,     /* body: struct open_body + path; reply: fd in SCM_RIGHTS, or flag REPLY_PASS */
    OP_IOCTL = 3,    /* body: struct ioctl_body + the first bytes of the argument */
    OP_READ = 4,     /* body: struct transfer_body */
    OP_WRITE = 5,
    OP_PREAD = 6,
    OP_PWRITE = 7,
    OP_MMAP = 8,     /* body: struct mmap_body; reply: struct mmap_segment[] and their memory descriptors; value 1: and
                        one more, to be kept until the last page is unmapped */
    OP_FSTAT = 9,    /* body: struct file_body; reply: struct fstat_reply */
    OP_RING = 10,    /* body: struct file_body: a doorbell message was taken that was still due */
    OP_SEEK = 11,    /* body: struct seek_body; the value is the new position */
    OP_PAGES = 12,   /* body: struct pages_body; reply: struct pages_reply */
    /* src/attach/shim/mailbox.c, src/attach/mailbox.ts */
    OP_MAILBOX = 50, /* body: none; reply: the page (struct mailbox_page) and the eventfd that rings for a request */
    /* src/attach/shim/adopt.c, src/attach/process-memory.ts */
    OP_ADOPT_FIRST = 100,
    OP_ADOPT_LAST = 199,
    /* src/attach/shim/trap.c, src/attach/traps.ts */
    OP_TRAP_FIRST = 200,
    OP_TRAP_LAST = 299,
};

struct request_header {
    uint32_t version; /* PROTOCOL_VERSION */
    uint32_t op;
    uint32_t seq;    /* counts the requests of this connection */
    uint32_t tid;
    uint64_t image;  /* names the program image: another one after exec, the same in a forked child */
    uint32_t length; /* bytes of body that follow */
    uint32_t attempt; /* 0, or how often the request was restarted */
};

enum reply_flag {
    REPLY_RESTART = 1, /* payload: struct range[]; adopt each, then send the same request again */
    REPLY_PASS = 2,    /* not the daemon's business: make the real call */
    REPLY_DRAIN = 8,   /* payload: uint32_t generation; take doorbell messages up to it */
    REPLY_INSTALL = 16, /* payload: struct install[], one a descriptor */
};

struct reply_header {
    uint32_t seq;
    uint32_t flags;
    int64_t value; /* of the call; -errno when it failed */
    uint32_t length; /* bytes of payload that follow */
    uint32_t fds;    /* descriptors that come with it */
};

#define MAILBOX_ROOM 1984u
/* F_GETSIG of the eventfd of a mailbox: what lies at its number still is it. */
#define MAILBOX_SIGNAL 61

/* Shared by one thread and the daemon. Each side writes its own fields only. */
struct mailbox_page {
    uint32_t request; /* seq of the request in `body`, written last */
    uint32_t length;
    uint32_t sleeps;  /* not 0: the thread waits for the futex, or is about to */
    uint8_t unused[52];
    uint32_t reply;   /* seq of the request that `answer` answers, written last; a futex */
    uint32_t closed;  /* not 0: the daemon will not answer here */
    uint32_t looking; /* not 0: the daemon sees a request without the eventfd */
    uint32_t taken;   /* seq of the request that was taken last */
    uint8_t unused_too[48];
    uint8_t body[MAILBOX_ROOM];   /* struct request_header and what follows */
    uint8_t answer[MAILBOX_ROOM]; /* struct reply_header and what follows; all zero: it comes over the connection */
};

struct range {
    uint64_t va;
    uint64_t length;
};

/* Where the number of a new descriptor is written (s32), 0: it is the value of the call. */
struct install {
    uint64_t at;
    uint32_t close_on_exec;
    uint32_t reserved;
};

/* Names an emulated descriptor: SO_COOKIE of the socket, and the caller's number for it, by which the daemon
 * verifies the first use by a process. */
struct file_body {
    uint64_t cookie;
    int32_t fd;
    uint32_t reserved;
};

struct open_body {
    uint32_t flags; /* of open(2) */
    uint32_t path_length;
};

struct ioctl_body {
    struct file_body file;
    uint64_t argument;
    uint32_t request;
    uint32_t prefetched; /* bytes of memory at the argument that follow */
};

struct transfer_body {
    struct file_body file;
    uint64_t va;
    uint64_t length;
    uint64_t offset;    /* OP_PREAD, OP_PWRITE */
    uint32_t status_flags; /* O_NONBLOCK and the like */
    uint32_t prefetched; /* OP_WRITE, OP_PWRITE: bytes of memory at va that follow */
};

struct seek_body {
    struct file_body file;
    int64_t offset;
    uint32_t whence; /* SEEK_SET, SEEK_CUR, SEEK_END */
    uint32_t reserved;
};

struct mmap_body {
    struct file_body file;
    uint64_t length;
    uint64_t offset;
    uint32_t protection;
    uint32_t flags;
    /* Where the program's windows are (trap.h): the table, and how many of its slots were used (u32). */
    uint64_t windows;
    uint64_t windows_used;
};

struct pages_body {
    uint32_t process;
    uint32_t reserved;
};

/* What the daemon holds of a process, in pages; of one it does not know nothing. */
struct pages_reply {
    uint64_t locked;
    uint64_t pinned;
};

enum segment_kind { SEGMENT_TRAP = 0, SEGMENT_MEMORY = 1 };

struct mmap_segment {
    uint32_t kind;
    uint32_t fd_index;   /* SEGMENT_MEMORY: which of the descriptors of this message */
    uint64_t offset;     /* from the start of the mapping */
    uint64_t length;
    uint64_t fd_offset;  /* SEGMENT_MEMORY: in that descriptor; SEGMENT_TRAP: offset in the emulated file */
};

struct fstat_reply {
    uint32_t mode;  /* S_IFCHR | permissions for a device node; 0600 alone for an anonymous inode */
    uint32_t major;
    uint32_t minor;
    uint32_t pollable; /* it has a poll operation: epoll takes it */
    uint64_t inode;
};

#endif
