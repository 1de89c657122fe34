/*
 * The model that the emulator is held to: the CPU itself. Reads cases from standard input, executes each one's
 * instruction with the given registers on ordinary memory, and writes what became of registers and memory. Registers
 * are loaded and fetched through signal frames, so every one of them, rsp included, can have any value.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define CODE 0x20000000ul
#define MEMORY 0x10000000ul
#define IMAGE 1024
#define GREGS 18
#define YMM_HIGH 576
#define XSTATE_BV 512

struct state {
    uint64_t gregs[GREGS];
    uint8_t vectors[16][32];
    uint8_t memory[IMAGE];
};

struct test_case {
    struct state state;
    uint64_t gs_base;
    uint32_t length;
    uint8_t code[20];
};

struct outcome {
    struct state state;
    uint64_t signal; /* 0: the instruction completed */
};

static struct test_case input;
static struct outcome output;
static greg_t saved[NGREG];

static void copy_vectors(ucontext_t *context, uint8_t vectors[16][32], int load)
{
    uint8_t *area = (uint8_t *)context->uc_mcontext.fpregs;
    uint64_t present;
    memcpy(&present, area + XSTATE_BV, sizeof present);
    if (load) {
        present |= 7;
        memcpy(area + XSTATE_BV, &present, sizeof present);
    }
    for (int i = 0; i < 16; i++) {
        uint8_t *low = area + 160 + 16 * i, *high = area + YMM_HIGH + 16 * i;
        if (load) {
            memcpy(low, vectors[i], 16);
            memcpy(high, vectors[i] + 16, 16);
        } else {
            memcpy(vectors[i], low, 16);
            if (present & 4)
                memcpy(vectors[i] + 16, high, 16);
            else
                memset(vectors[i] + 16, 0, 16);
        }
    }
}

static void enter(int signal, siginfo_t *info, void *p)
{
    ucontext_t *context = p;
    (void)signal, (void)info;
    memcpy(saved, context->uc_mcontext.gregs, sizeof saved);
    memcpy(context->uc_mcontext.gregs, input.state.gregs, sizeof input.state.gregs);
    copy_vectors(context, input.state.vectors, 1);
}

static void leave(int signal, siginfo_t *info, void *p)
{
    ucontext_t *context = p;
    (void)info;
    output.signal = signal == SIGTRAP ? 0 : signal;
    memcpy(output.state.gregs, context->uc_mcontext.gregs, sizeof output.state.gregs);
    if (signal == SIGTRAP)
        output.state.gregs[REG_RIP]--;
    copy_vectors(context, output.state.vectors, 0);
    memcpy(context->uc_mcontext.gregs, saved, sizeof saved);
}

static void *map(unsigned long address, size_t length, int protection)
{
    void *p = mmap((void *)address, length, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (p != (void *)address) {
        perror("mmap");
        exit(2);
    }
    return p;
}

static void install(int signal, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigfillset(&action.sa_mask);
    sigaction(signal, &action, NULL);
}

int main(void)
{
    uint8_t *code = map(CODE, 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
    uint8_t *memory = map(MEMORY, 4096, PROT_READ | PROT_WRITE);
    stack_t stack = {.ss_size = 65536};
    stack.ss_sp = mmap(NULL, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sigaltstack(&stack, NULL);
    install(SIGUSR1, enter);
    int ends[] = {SIGTRAP, SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        install(ends[i], leave);
    while (fread(&input, sizeof input, 1, stdin) == 1) {
        syscall(SYS_arch_prctl, ARCH_SET_GS, input.gs_base);
        memset(code, 0xcc, 64);
        memcpy(code, input.code, input.length);
        memset(memory, 0, 4096);
        memcpy(memory, input.state.memory, IMAGE);
        raise(SIGUSR1);
        memcpy(output.state.memory, memory, IMAGE);
        fwrite(&output, sizeof output, 1, stdout);
    }
    return 0;
}
