/*
 * The library's half of a mailbox against a thread that plays the daemon at full speed, looking and sleeping by turns:
 * no request may lie there while the daemon sleeps, nor an answer while the caller does.
 */
#define _GNU_SOURCE
#include "../../shim/mailbox.c"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define CALLS 150000
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static struct mailbox mailbox;
static int doorbell;
static uint32_t taken;

int shim_keep_control(int fd)
{
    return fd;
}
void shim_drop_fd(int fd)
{
    close(fd);
}
void shim_release_fd(int fd)
{
    (void)fd;
}

static bool answer_next(struct mailbox_page *page)
{
    uint32_t seq = __atomic_load_n(&page->request, __ATOMIC_SEQ_CST);
    if (seq == taken)
        return false;
    taken = seq;
    ((struct reply_header *)page->answer)->seq = seq;
    __atomic_store_n(&page->reply, seq, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&page->sleeps, __ATOMIC_SEQ_CST))
        syscall(SYS_futex, &page->reply, FUTEX_WAKE, 1);
    return true;
}

static void sleep_until_rung(const struct mailbox_page *page)
{
    struct pollfd rung = {.fd = doorbell, .events = POLLIN};
    uint64_t count;
    if (poll(&rung, 1, 5000) == 0)
        CHECK(__atomic_load_n(&page->request, __ATOMIC_SEQ_CST) == taken); /* it was not heard */
    else
        CHECK(read(doorbell, &count, sizeof count) == sizeof count);
}

static void *play_daemon(void *argument)
{
    struct mailbox_page *page = argument;
    uint32_t looks = 0;
    while (taken != CALLS) {
        __atomic_store_n(&page->looking, 1, __ATOMIC_SEQ_CST);
        bool found = false;
        for (uint32_t i = looks++ % 128 * 16; i > 0 && !found; i--)
            found = answer_next(page);
        __atomic_store_n(&page->looking, 0, __ATOMIC_SEQ_CST);
        if (!answer_next(page) && !found)
            sleep_until_rung(page);
    }
    return NULL;
}

/* Times a whole wait went by although the answer was there: a computer with other things to do explains one or two. */
static int overslept;

static void call(uint32_t seq)
{
    struct request_header header = {.seq = seq};
    struct exchange x = {0};
    CHECK(mailbox_post(&mailbox, &header, &x));
    if (seq % 4 == 0)
        mailbox_look(&mailbox, seq);
    long result;
    while ((result = mailbox_wait(&mailbox, seq)) == -ETIMEDOUT)
        overslept += __atomic_load_n(&mailbox.page->reply, __ATOMIC_SEQ_CST) == seq;
    CHECK(result == 0 && mailbox_answer(&mailbox, seq, &x) == 0 && overslept < 4);
}

int main(void)
{
    int page = memfd_create("mailbox", 0);
    doorbell = eventfd(0, EFD_NONBLOCK);
    CHECK(ftruncate(page, sizeof(struct mailbox_page)) == 0 && fcntl(doorbell, F_SETSIG, MAILBOX_SIGNAL) == 0);
    CHECK(mailbox_open(&mailbox, page, doorbell));
    pthread_t other;
    CHECK(pthread_create(&other, NULL, play_daemon, mailbox.page) == 0);
    for (uint32_t seq = 1; seq <= CALLS; seq++)
        call(seq);
    CHECK(pthread_join(other, NULL) == 0);
    puts("done");
    return 0;
}
