/*
 * Libraries that a program loads later. Their calls are ours as those of the program, but for two ways round: a library
 * loaded with RTLD_DEEPBIND prefers the C library to us, so it is loaded without; and a name looked up in the C library
 * itself, as foreign function interfaces do, would be its own function: it is given ours. Left out: dlmopen, whose
 * namespaces have a C library of their own.
 *
 * The loader looks at the return address to know who asks. So the calls of its functions are the last thing done here,
 * and the compiler makes jumps of them, however the rest is compiled.
 */
#include <dlfcn.h>

#include "core.h"

#ifdef __clang__
#define JUMPS
#define jump_to __attribute__((musttail)) return
#else
#define JUMPS __attribute__((optimize("O2")))
#define jump_to return
#endif

static struct {
    void *(*dlsym)(void *, const char *);
    void *(*dlopen)(const char *, int);
} real;

static void *library;   /* this one */
static void *libc_base; /* where the C library lies */

/* As early as another library's constructor may ask. */
static void find_dlsym(void)
{
    real.dlsym = (void *(*)(void *, const char *))dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.34");
    if (!real.dlsym)
        real.dlsym = (void *(*)(void *, const char *))dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5");
}

void *shim_next(const char *name)
{
    if (!real.dlsym)
        find_dlsym();
    return real.dlsym(RTLD_NEXT, name);
}

void dl_init(void)
{
    Dl_info self, libc;
    real.dlopen = shim_next("dlopen");
    if (dladdr(&real, &self) && real.dlopen)
        library = real.dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (dladdr(shim_next("ioctl"), &libc))
        libc_base = libc.dli_fbase;
}

/* What stands for a function of the C library. */
static void *in_our_place(void *found, const char *name)
{
    Dl_info place;
    if (!found || !library || !dladdr(found, &place) || place.dli_fbase != libc_base)
        return found;
    void *ours = real.dlsym(library, name);
    return ours ? ours : found;
}

EXPORT JUMPS void *dlsym(void *handle, const char *name)
{
    if (!real.dlsym)
        find_dlsym();
    if (handle == RTLD_NEXT || handle == RTLD_DEFAULT || !shim_is_attached)
        jump_to real.dlsym(handle, name);
    return in_our_place(real.dlsym(handle, name), name);
}

EXPORT JUMPS void *dlopen(const char *file, int mode)
{
    if (!real.dlopen)
        real.dlopen = shim_next("dlopen");
    jump_to real.dlopen(file, attached() ? mode & ~RTLD_DEEPBIND : mode);
}
