/*
 * What trap.c and src/attach/traps.ts say to each other. The request carries the thread's registers, the bytes of its
 * instruction and the window that was hit; vector registers and the other windows stay in the program, where the
 * daemon reads them when the instruction needs them. A test holds the layout equal to the one in traps.ts.
 */
#ifndef SOFTIOMMU_TRAP_H
#define SOFTIOMMU_TRAP_H

#include <stdint.h>

#include "protocol.h"

enum { OP_TRAP = OP_TRAP_FIRST };

#define TRAP_GREGS 18 /* r8 ... rsp, rip, rflags: the order of uc_mcontext.gregs */
#define TRAP_CODE 15

/* Addresses [start, end) show the file from file_offset on. start == end: the slot is free. */
struct trap_window {
    uint64_t sequence; /* odd while it is written */
    uint64_t start;
    uint64_t end;
    uint64_t file_offset;
    uint64_t cookie;
    int32_t fd;
    uint32_t protection; /* PROT_READ, PROT_WRITE as of the last mmap or mprotect; TRAP_DONTFORK */
};

/* madvise(MADV_DONTFORK): a child does not inherit the window. */
#define TRAP_DONTFORK 0x80000000u

struct trap_body {
    uint64_t gregs[TRAP_GREGS];
    uint64_t fs_base;
    uint64_t gs_base;
    uint64_t fpstate; /* address of the XSAVE area in the signal frame */
    struct trap_window window; /* all zero when an illegal instruction is to be served */
    uint64_t table;   /* address of the table of windows */
    uint32_t windows; /* slots of it that were ever used */
    /* Offsets in the XSAVE area, CPUID leaf 0Dh; 0: this CPU has none. */
    uint32_t opmask_offset;
    uint32_t zmm_high_offset;
    uint32_t high_zmm_offset;
    uint32_t code_length;
    uint8_t code[TRAP_CODE + 1];
    uint32_t reserved;
};

/* The value of the reply. */
enum trap_outcome {
    TRAP_DONE = 0,
    TRAP_REFUSED = 1, /* SIGSEGV, or SIGILL for what came as one */
    TRAP_BUS_ERROR = 2, /* the device does not answer: SIGBUS */
};

struct trap_reply {
    uint64_t gregs[TRAP_GREGS];
    uint64_t refused_at; /* the operand the program has no access to, 0 when that is not the reason */
};

#endif
