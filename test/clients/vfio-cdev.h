/* A PCI device's own character device, as a program finds it: by what sysfs lists. */
#ifndef VFIO_CDEV_H
#define VFIO_CDEV_H
#include "must.h"
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

/* Opens /dev/vfio/devices/vfioN: N is what sysfs lists, and the node has the numbers that sysfs tells. */
static inline int open_cdev(const char *bdf)
{
    char path[256], name[64] = "";
    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", bdf);
    DIR *folder = opendir(path);
    must(folder != NULL);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;)
        if (strncmp(entry->d_name, "vfio", 4) == 0)
            snprintf(name, sizeof(name), "%.60s", entry->d_name);
    closedir(folder);
    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev/%s/dev", bdf, name);
    FILE *file = fopen(path, "r");
    unsigned major_number = 0, minor_number = 0;
    must(file != NULL && fscanf(file, "%u:%u", &major_number, &minor_number) == 2);
    fclose(file);
    snprintf(path, sizeof(path), "/dev/vfio/devices/%s", name);
    int fd = open(path, O_RDWR);
    must(fd >= 0);
    struct stat status;
    must(fstat(fd, &status) == 0 && S_ISCHR(status.st_mode));
    must(status.st_rdev == makedev(major_number, minor_number));
    return fd;
}
#endif
