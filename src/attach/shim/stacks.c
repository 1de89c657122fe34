/*
 * Stacks of threads, which are never adopted: a stack must not be write-protected. The handler's frame would have nowhere
 * to go, and the kernel itself writes to the thread block at its top. So stacks are known, and refused.
 */
#include <pthread.h>
#include <stdlib.h>

#include "adopt.h"
#include "shim.h"

#define STACKS 4096
static struct span stacks[STACKS];
static pthread_key_t stack_key;

static void forget_stack(void *slot)
{
    __atomic_store_n(&((struct span *)slot)->end, 0, __ATOMIC_RELEASE);
}

static void note_stack(void)
{
    pthread_attr_t attributes;
    void *start;
    size_t size;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0)
        return;
    int error = pthread_attr_getstack(&attributes, &start, &size);
    pthread_attr_destroy(&attributes);
    for (int i = 0; i < STACKS && error == 0; i++) {
        uint64_t none = 0, end = (uint64_t)start + size;
        if (!__atomic_compare_exchange_n(&stacks[i].end, &none, end, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            continue;
        stacks[i].start = (uint64_t)start;
        pthread_setspecific(stack_key, &stacks[i]);
        return;
    }
}

struct start {
    void *(*run)(void *);
    void *argument;
};

static void *start_thread(void *argument)
{
    struct start start = *(struct start *)argument;
    free(argument);
    note_stack();
    return start.run(start.argument);
}

static int (*next_pthread_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

EXPORT int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument)
{
    if (!next_pthread_create)
        next_pthread_create = shim_next("pthread_create");
    struct start *start = shim_attached() ? malloc(sizeof *start) : NULL;
    if (!start)
        return next_pthread_create(thread, attributes, run, argument);
    *start = (struct start){run, argument};
    int error = next_pthread_create(thread, attributes, start_thread, start);
    if (error)
        free(start);
    return error;
}

bool stacks_touch(uint64_t start, uint64_t end)
{
    uint64_t here = (uint64_t)__builtin_frame_address(0);
    /* Also of a coroutine that is nobody's stack: some pages below are about to be used. */
    if (here >= start && here - 65536 < end)
        return true;
    for (int i = 0; i < STACKS; i++) {
        uint64_t stack_end = __atomic_load_n(&stacks[i].end, __ATOMIC_ACQUIRE);
        if (stack_end && stacks[i].start < end && stack_end > start)
            return true;
    }
    return false;
}

void stacks_keep_own(void)
{
    uint64_t here = (uint64_t)__builtin_frame_address(0);
    for (int i = 0; i < STACKS; i++)
        if (stacks[i].end && (here < stacks[i].start || here >= stacks[i].end))
            stacks[i].end = 0;
}

void stacks_init(void)
{
    if (!next_pthread_create)
        next_pthread_create = shim_next("pthread_create");
    pthread_key_create(&stack_key, forget_stack);
}
