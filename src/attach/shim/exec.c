/*
 * The environment survives exec: a program that builds its own environment still starts attached programs. Variables
 * are added only where they are missing. Leaves out execl and its relatives, which take the caller's environment.
 */
#include <alloca.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core.h"

static char preload_variable[4200];
static char library_variable[4200];
static char socket_variable[256];
static const char *library;

static struct {
    int (*execve)(const char *, char *const[], char *const[]);
    int (*execvpe)(const char *, char *const[], char *const[]);
    int (*fexecve)(int, char *const[], char *const[]);
    int (*posix_spawn)(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *,
                       char *const[], char *const[]);
    int (*posix_spawnp)(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *,
                        char *const[], char *const[]);
} real;

void exec_init(const char *preload, const char *socket)
{
    real.execve = shim_next("execve");
    real.execvpe = shim_next("execvpe");
    real.fexecve = shim_next("fexecve");
    real.posix_spawn = shim_next("posix_spawn");
    real.posix_spawnp = shim_next("posix_spawnp");
    if (!preload || !socket || strlen(preload) > 4000 || strlen(socket) > 200)
        return;
    snprintf(preload_variable, sizeof preload_variable, "LD_PRELOAD=%s", preload);
    snprintf(library_variable, sizeof library_variable, "SOFTIOMMU_PRELOAD=%s", preload);
    snprintf(socket_variable, sizeof socket_variable, "SOFTIOMMU_SOCKET=%s", socket);
    library = library_variable + strlen("SOFTIOMMU_PRELOAD=");
}

static const char *value_of(const char *entry, const char *name)
{
    size_t n = strlen(name);
    return strncmp(entry, name, n) == 0 && entry[n] == '=' ? entry + n + 1 : NULL;
}

static size_t count_of(char *const environment[])
{
    size_t n = 0;
    while (environment && environment[n])
        n++;
    return n;
}

struct completed {
    size_t preload_room; /* bytes for an LD_PRELOAD that names other libraries and lacks ours */
    bool complete;
};

static struct completed inspect(char *const environment[])
{
    bool preload = false, names = false, path = false;
    struct completed result = {0};
    for (size_t i = 0; environment && environment[i]; i++) {
        const char *value = value_of(environment[i], "LD_PRELOAD");
        if (value && !strstr(value, library))
            result.preload_room = strlen(value) + strlen(preload_variable) + 2;
        preload |= value && strstr(value, library);
        names |= value_of(environment[i], "SOFTIOMMU_PRELOAD") != NULL;
        path |= value_of(environment[i], "SOFTIOMMU_SOCKET") != NULL;
    }
    result.complete = preload && names && path;
    return result;
}

static char *const *complete(char *const environment[], char **out, char *preload)
{
    size_t n = 0;
    out[n++] = socket_variable;
    out[n++] = library_variable;
    if (!preload)
        out[n++] = preload_variable;
    for (size_t i = 0; environment && environment[i]; i++) {
        const char *value = value_of(environment[i], "LD_PRELOAD");
        if (value_of(environment[i], "SOFTIOMMU_SOCKET") || value_of(environment[i], "SOFTIOMMU_PRELOAD"))
            continue;
        if (value && !preload)
            continue;
        if (value) {
            stpcpy(stpcpy(stpcpy(preload, preload_variable), ":"), value);
            out[n++] = preload;
            preload = NULL;
            continue;
        }
        out[n++] = environment[i];
    }
    out[n] = NULL;
    return out;
}

/* On the stack of the caller: after vfork nothing may be allocated. */
#define COMPLETED(environment)                                                                               \
    ({                                                                                                       \
        char *const *result_ = (environment);                                                                \
        if (attached() && library) {                                                                         \
            struct completed c_ = inspect(result_);                                                          \
            if (!c_.complete) {                                                                              \
                char **room_ = alloca((count_of(result_) + 4) * sizeof(char *));                             \
                char *preload_ = c_.preload_room ? alloca(c_.preload_room) : NULL;                           \
                result_ = complete(result_, room_, preload_);                                                \
            }                                                                                                \
        }                                                                                                    \
        result_;                                                                                             \
    })

EXPORT int execve(const char *path, char *const arguments[], char *const environment[])
{
    return real.execve(path, arguments, COMPLETED(environment));
}

EXPORT int execv(const char *path, char *const arguments[])
{
    return real.execve(path, arguments, COMPLETED(environ));
}

EXPORT int execvp(const char *file, char *const arguments[])
{
    return real.execvpe(file, arguments, COMPLETED(environ));
}

EXPORT int execvpe(const char *file, char *const arguments[], char *const environment[])
{
    return real.execvpe(file, arguments, COMPLETED(environment));
}

EXPORT int fexecve(int fd, char *const arguments[], char *const environment[])
{
    return real.fexecve(fd, arguments, COMPLETED(environment));
}

EXPORT int posix_spawn(pid_t *restrict pid, const char *restrict path,
                       const posix_spawn_file_actions_t *restrict actions,
                       const posix_spawnattr_t *restrict attributes, char *const arguments[restrict],
                       char *const environment[restrict])
{
    return real.posix_spawn(pid, path, actions, attributes, arguments, COMPLETED(environment));
}

EXPORT int posix_spawnp(pid_t *restrict pid, const char *restrict file,
                        const posix_spawn_file_actions_t *restrict actions,
                        const posix_spawnattr_t *restrict attributes, char *const arguments[restrict],
                        char *const environment[restrict])
{
    return real.posix_spawnp(pid, file, actions, attributes, arguments, COMPLETED(environment));
}
