/*
 * Shared by signals.c, which handles the signals that the library owns, and sigmask.c, which interposes the calls
 * that block and wait for signals. Private to the two.
 */
#ifndef SOFTIOMMU_SIGNALS_H
#define SOFTIOMMU_SIGNALS_H

#include <string.h>

#include "shim.h"

#define OWNED 3
/* SIGSEGV, SIGBUS, SIGILL. */
extern const int owned_signal[OWNED];
/* What is blocked in their stead; 0 when the C library had none left. Set once, at start-up. */
extern int marker_signal[OWNED];

#define BIT(signal) (UINT64_C(1) << ((signal) - 1))

/* True when calls are to be translated: in an attached program, and in its own memory (not in a vfork child). */
bool signals_translated(void);

/* Looks up the C library's functions of sigmask.c. */
void sigmask_look_up(void);

/* Which owned signal, or the marker of which one, a number is; -1: none. */
static inline int owned_index(int signal)
{
    for (int i = 0; i < OWNED; i++)
        if (owned_signal[i] == signal)
            return i;
    return -1;
}

static inline int marker_index(int signal)
{
    for (int i = 0; i < OWNED; i++)
        if (marker_signal[i] && marker_signal[i] == signal)
            return i;
    return -1;
}

/* The signals 1 to 64 of a set: all that the kernel has. */
static inline uint64_t load_mask(const sigset_t *set)
{
    uint64_t mask;
    memcpy(&mask, set, sizeof mask);
    return mask;
}

static inline void store_mask(sigset_t *set, uint64_t mask)
{
    memcpy(set, &mask, sizeof mask);
}

/* The program's view of a mask to the kernel's: an owned signal becomes its marker. */
uint64_t to_kernel(uint64_t mask);
/* And back. */
uint64_t to_program(uint64_t mask);

#endif
