/* A library that is loaded later (loader.c): it opens the container and asks its version with its own calls. */
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <sys/ioctl.h>
#include <unistd.h>

int container_version(void)
{
    int fd = open("/dev/vfio/vfio", O_RDWR);
    int version = fd < 0 ? -1 : ioctl(fd, VFIO_GET_API_VERSION);
    close(fd);
    return version;
}

/* The function that comes after this library's own. */
void *next_getpid(void)
{
    return dlsym(RTLD_NEXT, "getpid");
}

int own_symbol(void)
{
    return dlsym(RTLD_DEFAULT, "container_version") == (void *)container_version;
}
