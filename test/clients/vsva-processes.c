/* Whose PASIDs they are: threads and containers of a process share them; a forked child, an executed program and another
 * process with the same container have none of them; they go with the process. Bind races free from two containers. */
#include "vsva.h"
#include <pthread.h>
#include <sys/wait.h>

#define TURNS 300
#define CHILDREN 64

static struct setup one, two;
static uint64_t pasid;

static int child_says(pid_t child)
{
    int status;
    must(waitpid(child, &status, 0) == child && WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void *in_thread(void *unused)
{
    must(bind_table(two.container, ROOT(0), pasid) == 0);
    return unused;
}

/* A child that has both containers; its parent's PASID is not its own. */
static void forked(void)
{
    pid_t child = fork();
    must(child >= 0);
    if (child == 0) {
        must(bind_table(one.container, ROOT(0), pasid) == -EACCES);
        must(unbind_table(two.container, pasid) == -EACCES);
        must(invalidate_page(two.container, pasid, VA) == -EACCES);
        must(free_pasids(one.container, 0, 0x7fffffff) == 0); /* its own: none */
        int own = alloc_pasid(one.container, (uint32_t)pasid, (uint32_t)pasid + 100);
        must(own > (int)pasid && bind_table(one.container, ROOT(0), (uint64_t)own) == 0);
        must(reads(one, VA, "shared", WITH_PASID(own)));
        _exit(own & 0xff);
    }
    int own = child_says(child);
    must(own == (int)(pasid + 1));
    while (dma(one, READ, VA, 4, WITH_PASID(own)) != FAULT) /* its end is noticed soon */
        usleep(1000);
    must(reads(two, VA, "shared", WITH_PASID(pasid)));
    must(alloc_pasid(two.container, (uint32_t)own, (uint32_t)own) == own);
    must(free_pasids(two.container, (uint32_t)own, (uint32_t)own) == 0);
}

/* What is executed has the containers, and not the PASIDs of what it was before. */
static void executed(const char *self)
{
    pid_t child = fork();
    must(child >= 0);
    if (child == 0) {
        char fd[16], number[16];
        int own = alloc_pasid(one.container, 500, 600);
        must(own == 500);
        snprintf(fd, sizeof(fd), "%d", one.container);
        snprintf(number, sizeof(number), "%d", own);
        must(fcntl(one.container, F_SETFD, 0) == 0);
        execl(self, self, fd, number, (char *)NULL);
        _exit(1);
    }
    must(child_says(child) == 0);
}

static int after_exec(int container, uint64_t number)
{
    must(bind_table(container, ROOT(0), number) == -ENOENT); /* it went with the old program */
    must(alloc_pasid(container, (uint32_t)number, (uint32_t)number) == (int)number);
    return 0;
}

/* The parent ends while its child has the container: the devices lose the PASIDs, and the child may have the numbers. */
static void outlived(void)
{
    int ended[2], told[2];
    must(pipe(ended) == 0 && pipe(told) == 0);
    pid_t parent = fork();
    must(parent >= 0);
    if (parent == 0) {
        int own = alloc_pasid(one.container, 700, 700);
        must(own == 700 && bind_table(one.container, ROOT(0), 700) == 0);
        must(reads(one, VA, "shared", WITH_PASID(700)));
        if (fork() == 0) {
            char word;
            close(ended[1]);
            must(read(ended[0], &word, 1) == 0); /* nobody holds the other end: the parent has ended */
            while (alloc_pasid(one.container, 700, 700) != 700)
                usleep(1000);
            must(dma(one, READ, VA, 4, WITH_PASID(700)) == FAULT);
            must(write(told[1], "x", 1) == 1);
            _exit(0);
        }
        _exit(0);
    }
    close(ended[1]);
    must(child_says(parent) == 0);
    char word;
    must(read(told[0], &word, 1) == 1);
    close(ended[0]), close(told[0]), close(told[1]);
}

static void *binds(void *unused)
{
    for (int turn = 0; turn < TURNS; turn++) {
        int error = bind_table(one.container, ROOT(0), 900);
        must(error == 0 || error == -ENOENT || error == -EBUSY);
        error = unbind_table(one.container, 900);
        must(error == 0 || error == -ENOENT);
    }
    return unused;
}

static void *frees(void *unused)
{
    for (int turn = 0; turn < TURNS; turn++) {
        int got = alloc_pasid(two.container, 900, 900);
        must(got == 900 || got == -ENOSPC);
        must(free_pasids(two.container, 900, 900) == 0);
    }
    return unused;
}

static void races(void)
{
    pthread_t binder, freer;
    must(pthread_create(&binder, NULL, binds, NULL) == 0 && pthread_create(&freer, NULL, frees, NULL) == 0);
    must(pthread_join(binder, NULL) == 0 && pthread_join(freer, NULL) == 0);
    must(bind_table(one.container, ROOT(0), 900) == -ENOENT && dma(one, READ, VA, 4, WITH_PASID(900)) == FAULT);
}

/* Many processes at once take what they can get; afterwards everything is there again. */
static void many(void)
{
    int ready[2], go[2];
    must(pipe(ready) == 0 && pipe(go) == 0);
    for (int i = 0; i < CHILDREN; i++)
        if (fork() == 0) {
            uint16_t count = 0;
            char word;
            close(go[1]);
            while (alloc_pasid(one.container, 1, 0x7fffffff) > 0)
                count++;
            must(write(ready[1], &count, sizeof(count)) == sizeof(count));
            must(read(go[0], &word, 1) == 0);
            _exit(0);
        }
    uint32_t total = 0, most, left;
    for (int i = 0; i < CHILDREN; i++) {
        uint16_t count;
        must(read(ready[0], &count, sizeof(count)) == sizeof(count));
        total += count;
    }
    quota(one.container, &most, &left);
    printf("%u for 64 children, %u left\n", total, left);
    close(go[1]);
    for (int i = 0; i < CHILDREN; i++)
        must(wait(NULL) > 0);
    for (int patience = 0; left != most - 1 && patience < 10000; patience++) {
        usleep(1000);
        quota(one.container, &most, &left);
    }
    must(left == most - 1); /* all but the one that this process has */
    close(ready[0]), close(ready[1]), close(go[0]);
}

int main(int argc, char **argv)
{
    if (argc == 3)
        return after_exec(atoi(argv[1]), (uint64_t)atoi(argv[2]));
    one = open_nesting("0000:05:00.0");
    two = open_nesting("0000:06:00.0");
    uint8_t *guest = map_guest(one.container);
    uint8_t *other = map_guest(two.container);
    strcpy((char *)guest + DATA(0), "shared");
    strcpy((char *)other + DATA(0), "shared");
    write_table(guest, 0, DATA(0));
    write_table(other, 0, DATA(0));
    pasid = (uint64_t)alloc_pasid(one.container, 10, 20);
    must(pasid == 10);
    pthread_t thread;
    must(pthread_create(&thread, NULL, in_thread, NULL) == 0 && pthread_join(thread, NULL) == 0);
    must(reads(two, VA, "shared", WITH_PASID(pasid)));
    forked();
    executed(argv[0]);
    outlived();
    races();
    many();
    close_nesting(one); /* the process has another container: its PASIDs stay */
    must(reads(two, VA, "shared", WITH_PASID(pasid)));
    close_nesting(two);
    two = open_nesting("0000:06:00.0");
    must(bind_table(two.container, ROOT(0), pasid) == -ENOENT); /* that was its last one */
    puts("vsva-processes");
    return 0;
}
