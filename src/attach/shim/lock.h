/*
 * The lock of a table that threads change and signal handlers read: whoever holds it has all signals blocked, so that
 * no handler of the same thread can find it held or the table half written. It is never held for long.
 */
#ifndef SOFTIOMMU_LOCK_H
#define SOFTIOMMU_LOCK_H

#include <signal.h>
#include <stdint.h>

#include "raw.h"

/* Takes the lock; returns the signal mask that `lock_give` puts back. */
static inline uint64_t lock_take(int *word)
{
    uint64_t all = ~UINT64_C(0), before = 0;
    raw_sigprocmask(SIG_BLOCK, &all, &before);
    while (__atomic_exchange_n(word, 1, __ATOMIC_ACQUIRE))
        raw_sched_yield();
    return before;
}

static inline void lock_give(int *word, uint64_t before)
{
    __atomic_store_n(word, 0, __ATOMIC_RELEASE);
    raw_sigprocmask(SIG_SETMASK, &before, NULL);
}

#endif
