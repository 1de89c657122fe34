/* Page requests of a guest's process on the machine vtd-vsva: a page comes when it is wanted, what is refused, answered late,
 * twice or wrongly, and what nobody answers. With `abandon` the program ends while an access waits. */
#include "vsva-faults.h"

static struct setup s;
static struct faults f;
static uint8_t *guest;
static uint32_t pasid;

static struct fault wait_for_page(void)
{
    begin_dma(s, READ, VA, 14, WITH_PASID(pasid));
    struct fault fault = next_request(f);
    must(status_of(s) == BUSY && fault.prm.addr == VA && fault.prm.perm == 1 && fault.prm.flags == 11);
    return fault;
}

static void on_demand(void)
{
    char got[15] = "";
    struct fault fault = wait_for_page();
    must(fault.prm.pasid == 77); /* as the guest calls it */
    write_table(guest, 0, DATA(0));
    must(respond(s.container, answer(77, fault.prm.grpid, SUCCESS)) == 0 && end_of(s) == DONE);
    must(pread(s.device, got, 14, (off_t)(s.bar + BUFFER)) == 14 && strcmp(got, "the first page") == 0);
    must(respond(s.container, answer(77, fault.prm.grpid, SUCCESS)) == -ENOENT); /* twice */
    write_table(guest, 0, 0);
    must(invalidate_page(s.container, pasid, VA) == 0);
}

static void refused(void)
{
    struct fault fault = wait_for_page();
    struct response good = answer(pasid, fault.prm.grpid, INVALID), bad = good;
#define WITH(change) (bad = good, bad.change, respond(s.container, bad))
    must(WITH(argsz = 23) == -EINVAL && WITH(version = 2) == -EINVAL && WITH(flags = 2) == -EINVAL);
    must(WITH(code = 3) == -EINVAL && WITH(pasid = 1 << 20) == -EINVAL && WITH(pasid = pasid + 1) == -ENOENT);
    must(WITH(flags = 0) == -ENOENT && WITH(grpid++) == -ENOENT);
    must(nesting_op(s.container, OP_RESPOND, &good, sizeof(good) - 1) == -EINVAL);
    pid_t child = fork();
    must(child >= 0);
    if (child == 0)
        _exit(respond(s.container, good) == -EACCES ? 0 : 1);
    int how;
    must(waitpid(child, &how, 0) == child && how == 0 && status_of(s) == BUSY);
    must(respond(s.container, good) == 0 && end_of(s) == FAULT);
}

/* The ring holds so many; what finds no room is denied and counted, and the device goes on. */
static void overflow(void)
{
    uint32_t consumer = f.head->consumer;
    while (f.head->producer - consumer < f.head->entries) {
        uint32_t before = f.head->producer;
        begin_dma(s, READ, VA, 14, WITH_PASID(pasid));
        while (f.head->producer == before && status_of(s) == BUSY)
            ;
        struct fault *ring = (void *)(f.head + 1);
        if (f.head->producer != before)
            must(respond(s.container, answer(pasid, ring[before % f.head->entries].prm.grpid, INVALID)) == 0);
        must(end_of(s) == FAULT);
    }
    uint32_t lost = f.head->lost;
    must(dma(s, READ, VA, 14, WITH_PASID(pasid)) == FAULT && f.head->lost > lost);
    f.head->consumer = f.head->producer;
}

static void unanswered(void)
{
    struct fault fault = wait_for_page();
    must(unbind_table(s.container, pasid) == 0 && end_of(s) == FAULT);
    must(respond(s.container, answer(pasid, fault.prm.grpid, SUCCESS)) == -ENOENT); /* late */
    must(bind_table(s.container, ROOT(0), pasid) == 0);
    wait_for_page();
    must(free_pasids(s.container, pasid, pasid) == 0 && end_of(s) == FAULT);
}

int main(int argc, char **argv)
{
    s = open_nesting("0000:05:00.0");
    f = listen_to_faults(s);
    guest = map_guest(s.container);
    strcpy((char *)guest + DATA(0), "the first page");
    pasid = (uint32_t)alloc_pasid(s.container, 1, 1000);
    write_table(guest, 0, 0);
    struct bind_data data = bind_data(ROOT(0), pasid);
    data.flags = GPASID_VALID;
    data.gpasid = 77;
    must(nesting_op(s.container, OP_BIND, &data, sizeof(data)) == 0);
    if (argc > 1 && strcmp(argv[1], "abandon") == 0) {
        wait_for_page();
        puts("an access waits");
        fflush(stdout);
        pause();
    }
    on_demand();
    refused();
    overflow();
    unanswered();
    munmap(f.head, f.bytes);
    close_nesting(s);
    puts("vsva-faults");
    return 0;
}
