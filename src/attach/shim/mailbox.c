/*
 * Short requests through a shared page: the request is written there, an eventfd tells the daemon, a futex tells the
 * thread. A side that looks into the page says so there and need not be told: waking a processor that has nothing to do
 * may take longer than all the rest. Each side writes what the other waits for before it reads whether the other sleeps,
 * and says that it will sleep before it looks a last time, in one order for both (sequentially consistent): so one of
 * the two sees the other. Where the kernel cannot wait for a futex as a system call should wait (futex_waitv, Linux 5.16: with a
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
/* How long to look for an answer: a daemon that sleeps takes most of it to wake. In nanoseconds, as are the others. */
#define LONGEST_LOOK 100000
/* A pause is 10 to 150 cycles, and asking for the time several hundred. */
#define LOOKS_A_TIME 64
/* A look for a request that was taken by then paid, and is worth so much. Sleeping costs hardly more on processors that
 * have other work. */
#define SOON 10000
#define WORTH 2000
/* A debt that is followed by a rest, and how many times as long that is. */
#define MOST_DEBT 150000
#define REST 64
/* While it rests it asks for the time at every so many requests. */
#define MOST_SKIPS 15

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

static bool one_processor(void)
{
    uint64_t allowed[128] = {0};
    long bytes = raw_syscall(SYS_sched_getaffinity, 0, sizeof allowed, (long)allowed, 0, 0, 0);
    int count = 0;
    for (long i = 0; i < bytes / 8; i++)
        count += __builtin_popcountll(allowed[i]);
    return count < 2;
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
    *mailbox = (struct mailbox){.page = (struct mailbox_page *)mapped, .doorbell = kept, .alone = one_processor()};
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
    if (!__atomic_load_n(&page->looking, __ATOMIC_SEQ_CST))
        raw_write(mailbox->doorbell, &one, sizeof one);
    return true;
}

static int64_t now(void)
{
    struct timespec time;
    raw_syscall(SYS_clock_gettime, CLOCK_MONOTONIC, (long)&time, 0, 0, 0, 0);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static bool has_come(const struct mailbox_page *page, uint32_t seq)
{
    for (int i = 0; i < LOOKS_A_TIME; i++) {
        if (__atomic_load_n(&page->reply, __ATOMIC_ACQUIRE) == seq)
            return true;
        __builtin_ia32_pause();
    }
    return false;
}

/* Time that was looked in vain, or in which others had the processor, is a debt that good looks pay off. */
void mailbox_look(struct mailbox *mailbox, uint32_t seq)
{
    const struct mailbox_page *page = mailbox->page;
    if (mailbox->alone)
        return;
    if (mailbox->skips > 0) {
        mailbox->skips--;
        return;
    }
    int64_t start = now(), time = start;
    if (start < mailbox->rests_until) {
        mailbox->skips = MOST_SKIPS;
        return;
    }
    bool came, soon = false;
    while (!(came = has_come(page, seq)) && time - start < LONGEST_LOOK) {
        time = now();
        soon |= time - start <= SOON && __atomic_load_n(&page->taken, __ATOMIC_ACQUIRE) == seq;
    }
    if (came && (soon || time - start <= SOON)) {
        mailbox->debt = mailbox->debt > WORTH ? mailbox->debt - WORTH : 0;
        return;
    }
    mailbox->debt += time - start;
    if (mailbox->debt > MOST_DEBT) {
        mailbox->rests_until = time + REST * mailbox->debt;
        mailbox->debt = 0;
    }
}

long mailbox_wait(struct mailbox *mailbox, uint32_t seq)
{
    struct mailbox_page *page = mailbox->page;
    if (__atomic_load_n(&page->reply, __ATOMIC_ACQUIRE) == seq)
        return 0;
    for (;;) {
        __atomic_store_n(&page->sleeps, 1, __ATOMIC_SEQ_CST);
        uint32_t seen = __atomic_load_n(&page->reply, __ATOMIC_SEQ_CST);
        if (seen != seq && __atomic_load_n(&page->closed, __ATOMIC_ACQUIRE))
            return -EIO;
        long result = seen == seq ? 0 : wait_for_change(&page->reply, seen);
        __atomic_store_n(&page->sleeps, 0, __ATOMIC_RELAXED);
        if (seen == seq)
            return 0;
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
