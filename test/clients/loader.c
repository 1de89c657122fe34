/* Reaches the container through a library loaded later, and through functions looked up in the C library by name. */
#include "vfio-nvme.h"
#include <dlfcn.h>

static void load(const char *path, int mode)
{
    void *helper = dlopen(path, mode);
    must(helper);
    int (*version)(void) = (int (*)(void))dlsym(helper, "container_version");
    must(version && version() == VFIO_API_VERSION);
    must(((void *(*)(void))dlsym(helper, "next_getpid"))() != NULL);
    must(dlclose(helper) == 0);
}

int main(int argc, char **argv)
{
    must(argc == 2);
    load(argv[1], RTLD_NOW | RTLD_LOCAL);
    load(argv[1], RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
    load(argv[1], RTLD_LAZY | RTLD_DEEPBIND);
    void *global = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
    must(global && ((int (*)(void))dlsym(global, "own_symbol"))());
    must(dlsym(RTLD_DEFAULT, "container_version"));
    must(!dlsym(RTLD_DEFAULT, "no_such_function") && dlerror());

    void *libc = dlopen("libc.so.6", RTLD_NOW);
    must(libc);
    int (*open_)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(libc, "open");
    int (*ioctl_)(int, unsigned long, ...) = (int (*)(int, unsigned long, ...))dlsym(libc, "ioctl");
    int (*close_)(int) = (int (*)(int))dlsym(libc, "close");
    int fd = open_("/dev/vfio/vfio", O_RDWR);
    must(fd >= 0 && ioctl_(fd, VFIO_GET_API_VERSION) == VFIO_API_VERSION && close_(fd) == 0);
    must(((pid_t(*)(void))dlsym(libc, "getpid"))() == getpid());
    puts("done");
    return 0;
}
