/*
 * Short requests through a shared page: the request is written there, an eventfd tells the daemon, a futex tells the
 * thread. Where the kernel cannot wait for a futex as a system call should wait (futex_waitv, Linux 5.16: with a
 * limit, and restarted after a signal handler that wants it), and after a fork, the connection is used as before.
 */
#include <linux/futex.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "mailbox.h"

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
#define WAIT_32_BITS 2 /* FUTEX_32, and not private */
#define WAIT_NANOSECONDS 250000000
#define F_GETSIG_NUMBER 11

/* struct futex_waitv of newer headers. */
struct wait_entry {
    uint64_t value;
    uint64_t address;
    uint32_t flags;
    uint32_t reserved;
};

/* For a quarter of a second, while the word has this value. */
static long wait_for_change(const uint32_t *word, uint32_t value)
{
    struct wait_entry entry = {.value = value, .address = (uint64_t)word, .flags = WAIT_32_BITS};
    struct timespec until;
    raw_syscall(SYS_clock_gettime, CLOCK_MONOTONIC, (long)&until, 0, 0, 0, 0);
    until.tv_nsec += WAIT_NANOSECONDS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    return raw_syscall(SYS_futex_waitv, (long)&entry, 1, 0, (long)&until, CLOCK_MONOTONIC, 0);
}

/* Far from where the kernel puts mappings of programs: one that unmaps a range with holes must not hit our page. */
static void *quiet_place(void)
{
    return (void *)(UINT64_C(0x2f0000000000) + (uint64_t)raw_gettid() * 65536);
}

bool mailbox_open(struct mailbox *mailbox, int page, int doorbell)
{
    long mapped = raw_mmap(quiet_place(), sizeof *mailbox->page, PROT_READ | PROT_WRITE, MAP_SHARED, page, 0);
    raw_close(page);
    int kept = mapped < 0 && mapped > -4096 ? -1 : shim_keep_control(doorbell);
    if (kept < 0) {
        raw_close(doorbell);
        if (!(mapped < 0 && mapped > -4096))
            raw_munmap((void *)mapped, sizeof *mailbox->page);
        return false;
    }
    *mailbox = (struct mailbox){(struct mailbox_page *)mapped, kept};
    raw_madvise(mailbox->page, sizeof *mailbox->page, MADV_DONTFORK);
    if (wait_for_change(&mailbox->page->reply, 1) == -EAGAIN)
        return true;
    mailbox_close(mailbox);
    return false;
}

/* Whether our eventfd still lies at its number. */
static bool is_ours(int doorbell)
{
    return raw_fcntl(doorbell, F_GETSIG_NUMBER, 0) == MAILBOX_SIGNAL;
}

void mailbox_close(struct mailbox *mailbox)
{
    if (!mailbox->page)
        return;
    raw_munmap(mailbox->page, sizeof *mailbox->page);
    mailbox->page = NULL;
    if (is_ours(mailbox->doorbell))
        shim_drop_fd(mailbox->doorbell);
    else
        shim_release_fd(mailbox->doorbell);
}

/* The first part is the library's own; the others are the program's and may not be there. */
static bool copy_part(uint8_t *to, const struct iovec *part, int index)
{
    if (index == 0) {
        memcpy(to, part->iov_base, part->iov_len);
        return true;
    }
    struct iovec here = {to, part->iov_len};
    long got = raw_syscall(SYS_process_vm_readv, raw_getpid(), (long)&here, 1, (long)part, 1, 0);
    return got == (long)part->iov_len;
}

bool mailbox_post(struct mailbox *mailbox, const struct request_header *header, const struct exchange *x)
{
    struct mailbox_page *page = mailbox->page;
    size_t length = sizeof *header + header->length;
    if (x->nsend_fds > 0 || length > sizeof page->body || !is_ours(mailbox->doorbell))
        return false;
    memcpy(page->body, header, sizeof *header);
    uint8_t *at = page->body + sizeof *header;
    for (int i = 0; i < x->nsend; at += x->send[i].iov_len, i++)
        if (!copy_part(at, &x->send[i], i))
            return false;
    page->length = (uint32_t)length;
    __atomic_store_n(&page->request, header->seq, __ATOMIC_SEQ_CST);
    uint64_t one = 1;
    raw_write(mailbox->doorbell, &one, sizeof one);
    return true;
}

long mailbox_wait(struct mailbox *mailbox, uint32_t seq)
{
    struct mailbox_page *page = mailbox->page;
    for (;;) {
        uint32_t seen = __atomic_load_n(&page->reply, __ATOMIC_ACQUIRE);
        if (seen == seq)
            return 0;
        if (__atomic_load_n(&page->closed, __ATOMIC_ACQUIRE))
            return -EIO;
        long result = wait_for_change(&page->reply, seen);
        if (result == -EINTR || result == -ETIMEDOUT)
            return result;
        if (result < 0 && result != -EAGAIN)
            return -EIO;
    }
}

long mailbox_answer(struct mailbox *mailbox, uint32_t seq, struct exchange *x)
{
    const struct mailbox_page *page = mailbox->page;
    memcpy(&x->header, page->answer, sizeof x->header);
    if (x->header.seq != seq)
        return MAILBOX_ELSEWHERE;
    size_t length = x->header.length;
    if (length > sizeof page->answer - sizeof x->header)
        length = sizeof page->answer - sizeof x->header;
    if (length > 0 && x->reply_size > 0)
        memcpy(x->reply, page->answer + sizeof x->header, length < x->reply_size ? length : x->reply_size);
    x->header.fds = 0;
    return x->header.value;
}
