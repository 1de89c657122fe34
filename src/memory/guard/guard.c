/*
 * Keeps the daemon alive when a client takes pages of a mapped file away: an access then raises SIGBUS. For an address
 * inside a registered bank the handler maps a page of zeros over the place, marks the frame as bad (its state byte
 * becomes 0, its bad byte 1), counts a trip, and lets the access go on; whoever accessed sees the count change. Any
 * other SIGBUS goes to the handler that was there before. Leaves out: threads (the daemon's state has one).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define FRAME 4096ul
#define HUGE_FRAME (2ul << 20)
#define BANKS 4096

struct bank {
    uintptr_t start;
    size_t length;
    uint8_t *state;
    uint8_t *bad;
};

static struct bank banks[BANKS];
static int used;
static volatile int32_t trips;
static struct sigaction before;

static int replace(const struct bank *bank, uintptr_t at, size_t length)
{
    void *page = (void *)(at & ~(length - 1));
    if (mmap(page, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) ==
        MAP_FAILED)
        return 0;
    size_t frame = ((uintptr_t)page - bank->start) / FRAME;
    memset(bank->state + frame, 0, length / FRAME);
    memset(bank->bad + frame, 1, length / FRAME);
    trips++;
    return 1;
}

static void on_bus_error(int signal, siginfo_t *info, void *context)
{
    uintptr_t at = (uintptr_t)info->si_addr;
    int saved = errno;
    for (int i = 0; i < used; i++) {
        struct bank *bank = &banks[i];
        if (at < bank->start || at - bank->start >= bank->length)
            continue;
        /* A mapping of huge pages can only be replaced by whole ones. */
        if (replace(bank, at, FRAME) || replace(bank, at, HUGE_FRAME)) {
            errno = saved;
            return;
        }
    }
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(signal, info, context);
    } else if (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN) {
        /* Back to the default; the access faults again and the process ends as it would have. */
        sigaction(SIGBUS, &before, NULL);
    } else {
        before.sa_handler(signal);
    }
    errno = saved;
}

/* Installs the handler once; the address of the trip counter, or 0. */
volatile int32_t *softiommu_guard(void)
{
    static int installed;
    if (installed)
        return &trips;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGBUS, &action, &before) != 0)
        return NULL;
    installed = 1;
    return &trips;
}

/* Watches a bank; 0, or -1 when there are too many. */
int softiommu_guard_bank(uintptr_t start, size_t length, uint8_t *state, uint8_t *bad)
{
    if (used == BANKS)
        return -1;
    banks[used] = (struct bank){start, length, state, bad};
    used++;
    return 0;
}

/* Forgets the bank at `start`. */
void softiommu_unguard_bank(uintptr_t start)
{
    for (int i = 0; i < used; i++) {
        if (banks[i].start != start)
            continue;
        used--;
        banks[i] = banks[used];
        return;
    }
}
