/* A program that has nothing to do with IOMMUs: signals, descriptors, mappings, threads, fork and exec of its own. */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define must(condition) \
    do { if (!(condition)) { fprintf(stderr, "%d: %s\n", __LINE__, #condition); exit(1); } } while (0)

static sigjmp_buf back;
static volatile int seen;
static void on_segv(int signal, siginfo_t *info, void *context)
{
    (void)context;
    must(signal == SIGSEGV && info->si_addr == (void *)0x10);
    seen++;
    siglongjmp(back, 1);
}
static void *thread(void *argument) { return (char *)argument + 1; }

int main(void)
{
    struct sigaction action = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO}, old;
    must(sigaction(SIGSEGV, &action, &old) == 0);
    must(old.sa_handler == SIG_DFL);
    must(sigaction(SIGSEGV, NULL, &old) == 0 && old.sa_sigaction == on_segv);
    for (int i = 0; i < 3; i++)
        if (sigsetjmp(back, 1) == 0)
            *(volatile int *)0x10 = 1;
    must(seen == 3);
    sigset_t all, was;
    sigfillset(&all);
    must(sigprocmask(SIG_BLOCK, &all, &was) == 0);
    must(sigprocmask(SIG_SETMASK, &was, &all) == 0 && sigismember(&all, SIGSEGV) == 1);

    int fds[2];
    must(pipe(fds) == 0 && write(fds[1], "x", 1) == 1);
    must(dup2(fds[0], 200) == 200 && close(fds[0]) == 0);
    char byte;
    must(read(200, &byte, 1) == 1 && byte == 'x');
    closefrom(100);
    must(read(200, &byte, 1) == -1);

    char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(memory != MAP_FAILED);
    pid_t child = fork();
    if (child == 0) {
        memory[5] = 7; /* shared with the parent */
        execlp("true", "true", NULL);
        _exit(127);
    }
    int status;
    must(waitpid(child, &status, 0) == child && status == 0 && memory[5] == 7);
    memory = mremap(memory, 1 << 20, 1 << 19, 0);
    must(memory != MAP_FAILED && memory[5] == 7 && munmap(memory, 1 << 19) == 0);

    pthread_t id;
    void *result;
    must(pthread_create(&id, NULL, thread, "ab") == 0 && pthread_join(id, &result) == 0);
    must(*(char *)result == 'b');
    struct stat about;
    must(stat("/dev/null", &about) == 0 && S_ISCHR(about.st_mode));
    must(access("/dev/iommu-not-there", F_OK) == -1);
    DIR *folder = opendir("/proc/self/fd");
    must(folder && readdir(folder) && closedir(folder) == 0);
    FILE *file = fopen("/proc/self/comm", "r");
    char line[64];
    must(file && fgets(line, sizeof(line), file) && fclose(file) == 0);
    puts("all as it should be");
    return 0;
}
