/* The page that a thread shares with the daemon for short requests. Used by shim.c only. */
#ifndef SOFTIOMMU_MAILBOX_H
#define SOFTIOMMU_MAILBOX_H

#include "core.h"

struct mailbox {
    struct mailbox_page *page; /* NULL: there is none */
    int doorbell;
    bool alone;          /* on the only processor it may use: nobody answers while it looks */
    uint8_t skips;       /* so many requests it does not even ask whether it rests */
    int64_t debt;        /* nanoseconds of looking that did not pay */
    int64_t rests_until; /* on the monotonic clock, in nanoseconds: it does not look before */
};

/* Not posted: the request must go over the connection. */
#define MAILBOX_UNABLE (-5000)
/* Posted, and the answer comes over the connection. */
#define MAILBOX_ELSEWHERE (-5001)

/* Takes the two descriptors that the daemon gave. False: no mailbox, and both are closed. */
bool mailbox_open(struct mailbox *mailbox, int page, int doorbell);
void mailbox_close(struct mailbox *mailbox);
/* Puts the request into the page and rings if it must; false when it does not fit, or cannot be read. */
bool mailbox_post(struct mailbox *mailbox, const struct request_header *header, const struct exchange *x);
/* Looks for the answer for some microseconds, as long as that pays. */
void mailbox_look(struct mailbox *mailbox, uint32_t seq);
/*
 * Waits until the daemon has done something. 0: there is an answer; -EINTR: a signal whose handler does not restart
 * calls; -ETIMEDOUT: nothing for a while; -EIO: there will be no answer here.
 */
long mailbox_wait(struct mailbox *mailbox, uint32_t seq);
/* The value of the answer that is there, or MAILBOX_ELSEWHERE. */
long mailbox_answer(struct mailbox *mailbox, uint32_t seq, struct exchange *x);

#endif
