/* Paths below routed prefixes, in every way a program asks for them. The tree is made by paths.test.ts. */
#include "client.h"
#include <ftw.h>
#include <glob.h>
#include <limits.h>
#include <sys/xattr.h>

#define DEVICE "/sys/bus/pci/devices/0000:01:00.0"
#define REAL_DEVICE "/sys/devices/pci0000:00/0000:01:00.0"

static int visits, seen_node;

static int visit(const char *path, const struct stat *status, int kind, struct FTW *at)
{
    (void)kind;
    CHECK(strncmp(path, "/dev/softiommu-test", 19) == 0);
    CHECK(strchr(path + at->base, '/') == NULL);
    if (!strcmp(path, NODE))
        seen_node = S_ISCHR(status->st_mode);
    visits++;
    return 0;
}

static void check_text(const char *path, const char *text)
{
    char line[64] = "";
    FILE *file = fopen(path, "r");
    CHECK(file && fgets(line, sizeof line, file) && !fclose(file));
    CHECK(!strcmp(line, text));
}

static int not_dot(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

int main(void)
{
    char buffer[PATH_MAX];
    struct stat status;

    check_text(DEVICE "/vendor", "0x1b36\n");
    check_text("/sys//bus/./pci/devices/0000:01:00.0/vendor", "0x1b36\n");
    check_text(DEVICE "/../0000:01:00.0/vendor", "0x1b36\n");
    int fd = open(DEVICE "/vendor", O_RDONLY);
    CHECK(fd >= 0 && read(fd, buffer, 6) == 6 && !memcmp(buffer, "0x1b36", 6));
    snprintf(buffer, sizeof buffer, "/proc/self/fd/%d", fd);
    char link[PATH_MAX];
    ssize_t n = readlink(buffer, link, sizeof link);
    CHECK(n > 0 && (size_t)n == strlen(REAL_DEVICE "/vendor") && !memcmp(link, REAL_DEVICE "/vendor", (size_t)n));

    n = readlink(DEVICE, buffer, sizeof buffer);
    CHECK(n > 0 && (buffer[n] = 0, !strcmp(buffer, "../../../devices/pci0000:00/0000:01:00.0")));
    n = readlink(DEVICE "/iommu_group", buffer, sizeof buffer);
    CHECK(n > 0 && (buffer[n] = 0, !strcmp(strrchr(buffer, '/'), "/14")));
    CHECK(realpath(DEVICE, buffer) && !strcmp(buffer, REAL_DEVICE));
    char *allocated = realpath(DEVICE "/iommu_group", NULL);
    CHECK(allocated && !strcmp(allocated, "/sys/kernel/iommu_groups/14"));
    free(allocated);
    CHECK(!strcmp(canonicalize_file_name(DEVICE), REAL_DEVICE));

    /* A routed folder is replaced as a whole. */
    DIR *folder = opendir("/sys/bus/pci/devices");
    CHECK(folder);
    int entries = 0;
    for (struct dirent *e; (e = readdir(folder));)
        if (e->d_name[0] != '.') {
            CHECK(!strcmp(e->d_name, "0000:01:00.0"));
            CHECK(fstatat(dirfd(folder), e->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(status.st_mode));
            int inside = openat(dirfd(folder), "0000:01:00.0/vendor", O_RDONLY);
            CHECK(inside >= 0 && close(inside) == 0);
            entries++;
        }
    CHECK(entries == 1 && closedir(folder) == 0);
    struct dirent **list;
    CHECK(scandir("/sys/bus/pci/devices", &list, not_dot, alphasort) == 1 && !strcmp(list[0]->d_name, "0000:01:00.0"));
    CHECK(opendir("/sys/bus/pci/absent") == NULL && errno == ENOENT);
    CHECK_FAILS(open("/sys/bus/pci/slots", O_RDONLY), ENOENT);
    CHECK_FAILS(open("/sys/bus/pci/created", O_WRONLY | O_CREAT, 0600), ENOENT);
    CHECK_FAILS(stat("/sys/bus/pci/absent", &status), ENOENT);
    CHECK_FAILS(access("/sys/bus/pci/absent", F_OK), ENOENT);
    CHECK(access(DEVICE "/vendor", R_OK) == 0 && faccessat(AT_FDCWD, DEVICE, F_OK, 0) == 0);
    glob_t found;
    CHECK(glob("/sys/bus/pci/devices/*/vendor", 0, NULL, &found) == 0 && found.gl_pathc == 1);
    CHECK(!strcmp(found.gl_pathv[0], DEVICE "/vendor"));

    /* A prefix that is not ours, only begins alike. */
    CHECK(stat("/sys/bus/pci_express", &status) == 0 || errno == ENOENT);
    CHECK(stat("/sys/bus", &status) == 0 && S_ISDIR(status.st_mode));

    /* Working folder. */
    CHECK(chdir(DEVICE) == 0 && getcwd(buffer, sizeof buffer) && !strcmp(buffer, REAL_DEVICE));
    check_text("vendor", "0x1b36\n");
    CHECK(realpath("vendor", buffer) && !strcmp(buffer, REAL_DEVICE "/vendor"));
    CHECK(system("[ \"$(cat vendor)\" = 0x1b36 ] && [ -r " DEVICE "/vendor ]") == 0);
    CHECK(chdir("/dev/softiommu-test") == 0);
    CHECK(stat("echo", &status) == 0 && S_ISCHR(status.st_mode));
    fd = open("echo", O_RDWR);
    CHECK(fd >= 0);
    check_echo(fd, 4);
    CHECK(chdir("/") == 0 && getcwd(buffer, sizeof buffer) && !strcmp(buffer, "/"));

    /* The node. */
    CHECK(stat(NODE, &status) == 0 && S_ISCHR(status.st_mode) && (status.st_mode & 0777) == 0660);
    CHECK(status.st_rdev == makedev(240, 7) && status.st_size == 0);
    CHECK(lstat(NODE, &status) == 0 && S_ISCHR(status.st_mode));
    struct stat same;
    CHECK(fstat(fd, &same) == 0 && same.st_rdev == status.st_rdev && same.st_mode == status.st_mode);
    struct statx wide;
    CHECK(statx(AT_FDCWD, NODE, 0, STATX_BASIC_STATS, &wide) == 0 && S_ISCHR(wide.stx_mode) && wide.stx_rdev_minor == 7);
    CHECK(access(NODE, R_OK | W_OK) == 0);
    CHECK(nftw("/dev/softiommu-test", visit, 8, FTW_PHYS) == 0 && visits == 2 && seen_node);
    int directory = open("/dev/softiommu-test", O_RDONLY | O_DIRECTORY);
    CHECK(directory >= 0);
    fd = openat(directory, "echo", O_RDWR | O_NONBLOCK);
    CHECK(fd >= 0 && (fcntl(fd, F_GETFL) & O_NONBLOCK));
    check_echo(fd, 5);
    CHECK(fstatat(directory, "echo", &status, 0) == 0 && S_ISCHR(status.st_mode));
    FILE *stream = fopen(NODE, "r+");
    CHECK(stream);
    check_echo(fileno(stream), 6);
    CHECK(lgetxattr(NODE, "security.none", buffer, 10) == -1 && errno != ENOENT);
    puts("done");
    return 0;
}
