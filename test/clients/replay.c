// Replays recorded iommufd / VFIO programs (JSON Lines) against the devices of
// this host, with plain libc calls, and records or checks what each call answers.
// The format is described in README.md.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

struct field { const char *name; int off, size; };
struct layout { const char *name; int size; const struct field *f; int n; };
struct command { const char *name; unsigned long nr; const char *layout; int op; };
#include "layouts.h"
#define COUNT(a) (int)(sizeof(a) / sizeof((a)[0]))

#define PAGE 4096UL
#define ARG_VA 0xf0000000UL /* where an ioctl structure is put by default */
#define UNKNOWN_ID 0x7ffffff0UL /* what a symbol that was never bound stands for */

static void die(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(2);
}

/* ---- JSON ---------------------------------------------------------------- */

enum { J_NULL, J_BOOL, J_NUM, J_STR, J_ARR, J_OBJ };
struct node { int type; char *key, *s; struct node *child, *last, *next; };

static char *pool;
static size_t pool_used, pool_size;

static void *take(size_t n)
{
	n = (n + 15) & ~(size_t)15;
	if (pool_used + n > pool_size)
		die("out of memory for one program");
	void *p = pool + pool_used;
	memset(p, 0, n);
	pool_used += n;
	return p;
}

static char *dup_n(const char *s, size_t n)
{
	char *p = take(n + 1);
	memcpy(p, s, n);
	return p;
}

static const char *jp;

static void ws(void) { while (isspace((unsigned char)*jp)) jp++; }

static char *parse_string(void)
{
	const char *s = ++jp;
	while (*jp && *jp != '"')
		jp += *jp == '\\' ? 2 : 1;
	if (*jp != '"')
		die("unterminated string");
	char *out = take((size_t)(jp - s) + 1), *o = out;
	for (; s < jp; s++)
		*o++ = *s == '\\' ? *++s : *s;
	jp++;
	return out;
}

static struct node *parse_value(void)
{
	struct node *n = take(sizeof(*n));
	ws();
	if (*jp == '"') {
		n->type = J_STR;
		n->s = parse_string();
	} else if (*jp == '{' || *jp == '[') {
		char end = *jp == '{' ? '}' : ']';
		n->type = *jp++ == '{' ? J_OBJ : J_ARR;
		for (ws(); *jp != end; ws()) {
			char *key = NULL;
			if (n->type == J_OBJ) {
				key = parse_string();
				ws();
				if (*jp++ != ':')
					die("':' expected");
			}
			struct node *c = parse_value();
			c->key = key;
			if (n->last)
				n->last->next = c;
			else
				n->child = c;
			n->last = c;
			ws();
			if (*jp == ',')
				jp++;
			else if (*jp != end)
				die("',' expected near %.20s", jp);
		}
		jp++;
	} else {
		const char *s = jp;
		while (isalnum((unsigned char)*jp) || *jp == '-' || *jp == '+' || *jp == '.')
			jp++;
		if (s == jp)
			die("value expected near %.20s", jp);
		n->type = isdigit((unsigned char)*s) || *s == '-' ? J_NUM : *s == 'n' ? J_NULL : J_BOOL;
		n->s = dup_n(s, (size_t)(jp - s));
	}
	return n;
}

static struct node *get(struct node *o, const char *key)
{
	for (struct node *c = o ? o->child : NULL; c; c = c->next)
		if (c->key && !strcmp(c->key, key))
			return c;
	return NULL;
}

static const char *get_s(struct node *o, const char *key)
{
	struct node *c = get(o, key);
	return c ? c->s : NULL;
}

static int in_list(struct node *arr, const char *s)
{
	for (struct node *c = arr ? arr->child : NULL; c; c = c->next)
		if (c->s && !strcmp(c->s, s))
			return 1;
	return 0;
}

/* ---- text buffer --------------------------------------------------------- */

struct text { char *p; size_t n, cap; };

static void put(struct text *t, const char *fmt, ...)
{
	va_list ap;
	for (;;) {
		va_start(ap, fmt);
		int k = vsnprintf(t->p + t->n, t->cap - t->n, fmt, ap);
		va_end(ap);
		if (k >= 0 && (size_t)k < t->cap - t->n) {
			t->n += (size_t)k;
			return;
		}
		t->cap = t->cap * 2 + (size_t)k + 64;
		t->p = realloc(t->p, t->cap);
		if (!t->p)
			die("out of memory");
	}
}

static void put_node(struct text *t, struct node *n, const char *skip)
{
	if (n->type == J_STR) {
		put(t, "\"");
		for (const char *s = n->s; *s; s++)
			put(t, *s == '"' || *s == '\\' ? "\\%c" : "%c", *s);
		put(t, "\"");
	} else if (n->type == J_ARR || n->type == J_OBJ) {
		int first = 1;
		put(t, n->type == J_OBJ ? "{" : "[");
		for (struct node *c = n->child; c; c = c->next) {
			if (skip && c->key && !strcmp(c->key, skip))
				continue;
			if (!first)
				put(t, ",");
			first = 0;
			if (c->key)
				put(t, "\"%s\":", c->key);
			put_node(t, c, NULL);
		}
		put(t, n->type == J_OBJ ? "}" : "]");
	} else {
		put(t, "%s", n->s);
	}
}

static void put_num(struct text *t, uint64_t v)
{
	if (v < 65536)
		put(t, "%llu", (unsigned long long)v);
	else
		put(t, "\"0x%llx\"", (unsigned long long)v);
}

/* ---- program state: areas, symbols ---------------------------------------- */

struct area { const char *name; unsigned long va, len; int prot, mapped, fd; };
struct sym { char kind; const char *name; uint64_t val; int live, id; };

static struct area areas[32];
static struct sym syms[1024];
static int n_areas, n_syms;
static const char *opt_group, *opt_cdev, *opt_bdf, *opt_only;
static int opt_record, opt_verbose, opt_strict, opt_loose, opt_reverse;

/* Every descriptor a program has open, so that none outlives it. */
static int open_fds[256], n_open_fds;

static void fd_opened(int fd)
{
	if (fd >= 0 && n_open_fds < COUNT(open_fds))
		open_fds[n_open_fds++] = fd;
}

static void fd_closed(int fd)
{
	for (int i = 0; i < n_open_fds; i++)
		if (open_fds[i] == fd)
			open_fds[i] = -1;
}

static struct sym *sym_find(char kind, const char *name, size_t n)
{
	for (int i = n_syms - 1; i >= 0; i--)
		if (syms[i].kind == kind && strlen(syms[i].name) == n && !memcmp(syms[i].name, name, n))
			return &syms[i];
	return NULL;
}

static struct sym *sym_set(char kind, const char *name, uint64_t val, int id)
{
	struct sym *s = sym_find(kind, name, strlen(name));
	if (!s) {
		if (n_syms == COUNT(syms))
			die("too many symbols");
		s = &syms[n_syms++];
		s->kind = kind;
		s->name = name;
	}
	s->val = val;
	s->live = 1;
	s->id = id;
	return s;
}

static struct area *area_at(unsigned long va, unsigned long len)
{
	for (int i = 0; i < n_areas; i++)
		if (areas[i].mapped && va >= areas[i].va && va + len <= areas[i].va + areas[i].len)
			return &areas[i];
	return NULL;
}

/* A number, or "$symbol", "&area", "@fd", each with an optional +n / -n. */
static uint64_t eval(const char *s)
{
	uint64_t base = 0;
	if (*s == '$' || *s == '&' || *s == '@') {
		char kind = *s++;
		size_t n = strcspn(s, "+-");
		if (kind == '&') {
			int i;
			for (i = 0; i < n_areas; i++)
				if (strlen(areas[i].name) == n && !memcmp(areas[i].name, s, n))
					break;
			if (i == n_areas)
				die("no area %s", s);
			base = areas[i].va;
		} else {
			struct sym *y = sym_find(kind, s, n);
			base = y ? y->val : kind == '@' ? (uint64_t)-1 : UNKNOWN_ID;
		}
		s += n;
		if (!*s)
			return base;
		return *s == '-' ? base - strtoull(s + 1, NULL, 0) : base + strtoull(s + 1, NULL, 0);
	}
	if (*s == '-')
		return (uint64_t)0 - strtoull(s + 1, NULL, 0);
	return strtoull(s, NULL, 0);
}

static uint64_t eval_key(struct node *o, const char *key, uint64_t dflt)
{
	const char *s = get_s(o, key);
	return s ? eval(s) : dflt;
}

static const char *host_string(const char *s)
{
	const char *r = !strcmp(s, "%GROUP%") ? opt_group : !strcmp(s, "%CDEV%") ? opt_cdev :
			!strcmp(s, "%BDF%") ? opt_bdf : s;
	if (!r)
		die("program needs --group, --cdev and --bdf");
	return r;
}

/* ---- memory -------------------------------------------------------------- */

static uint32_t crc32_of(const unsigned char *p, size_t n)
{
	static uint32_t tab[256];
	if (!tab[1])
		for (uint32_t i = 0; i < 256; i++) {
			uint32_t c = i;
			for (int k = 0; k < 8; k++)
				c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
			tab[i] = c;
		}
	uint32_t c = 0xffffffffu;
	for (size_t i = 0; i < n; i++)
		c = tab[(c ^ p[i]) & 0xff] ^ (c >> 8);
	return ~c;
}

/* Write program input; an area that the program sees read-only is opened for it. */
static void poke(unsigned long va, const void *src, size_t n)
{
	struct area *a = area_at(va, n);
	if (!a && !(va >= ARG_VA && va + n <= ARG_VA + PAGE))
		die("write outside the mapped areas: 0x%lx", va);
	if (a && !(a->prot & PROT_WRITE))
		mprotect((void *)a->va, a->len, PROT_READ | PROT_WRITE);
	memcpy((void *)va, src, n);
	if (a && !(a->prot & PROT_WRITE))
		mprotect((void *)a->va, a->len, a->prot);
}

static size_t unhex(const char *s, unsigned char *out, size_t cap)
{
	size_t n = 0;
	for (; s[0] && s[1] && n < cap; s += 2) {
		char b[3] = { s[0], s[1], 0 };
		out[n++] = (unsigned char)strtoul(b, NULL, 16);
	}
	return n;
}

/* "zero:N" is N bytes of zero. */
static size_t unhex_or_zeros(const char *s, unsigned char *out, size_t cap)
{
	if (strncmp(s, "zero:", 5))
		return unhex(s, out, cap);
	size_t n = strtoul(s + 5, NULL, 10);
	if (n > cap)
		die("tail too long");
	memset(out, 0, n);
	return n;
}

static void put_hex(struct text *t, const unsigned char *p, size_t n)
{
	put(t, "\"");
	for (size_t i = 0; i < n; i++)
		put(t, "%02x", p[i]);
	put(t, "\"");
}

static void area_fill(struct area *a, unsigned seed)
{
	unsigned char *p = (unsigned char *)a->va;
	if (seed)
		for (unsigned long i = 0; i < a->len; i++)
			p[i] = (unsigned char)(i * 7 + (i >> 12) * 13 + seed);
	else
		memset(p, 0, a->len);
}

static const struct layout *layout_find(const char *name)
{
	for (int i = 0; i < COUNT(layouts); i++)
		if (!strcmp(layouts[i].name, name))
			return &layouts[i];
	if (*name)
		die("no structure %s", name);
	return NULL;
}

static void encode(const struct layout *l, struct node *in, unsigned char *buf)
{
	for (struct node *c = in ? in->child : NULL; c; c = c->next) {
		const struct field *f = NULL;
		for (int i = 0; i < l->n; i++)
			if (!strcmp(l->f[i].name, c->key))
				f = &l->f[i];
		if (!f)
			die("no field %s in %s", c->key, l->name);
		if (f->size > 8 || f->size == 3) {
			unhex(c->s, buf + f->off, (size_t)f->size);
		} else {
			uint64_t v = eval(c->s);
			memcpy(buf + f->off, &v, (size_t)f->size);
		}
	}
}

static uint64_t field_get(const struct field *f, const unsigned char *buf)
{
	uint64_t v = 0;
	memcpy(&v, buf + f->off, f->size > 8 ? 8 : (size_t)f->size);
	return v;
}

/* Put a symbol for an object id that the kernel wrote, by the ids bound so far. */
static void put_id(struct text *t, uint64_t v)
{
	for (int i = n_syms - 1; i >= 0; i--)
		if (syms[i].kind == '$' && syms[i].id && syms[i].live && syms[i].val == v) {
			put(t, "\"$%s\"", syms[i].name);
			return;
		}
	put_num(t, v);
}

/*
 * Bind an output. How it is compared is told by the first character of the name:
 * none: a new object id; '?': an object id that may be one already known;
 * '=': a plain value; '~': a value that is not compared; '@': a file descriptor.
 */
static void bind_value(struct text *t, struct text *raw, const char *name, uint64_t v,
		       int size, struct node *expected)
{
	char how = strchr("?=~@", *name) ? *name++ : 0;
	if (how == '@') {
		sym_set('@', name, size == 4 ? (uint64_t)(int64_t)(int32_t)v : v, 0);
		fd_opened((int32_t)v);
		put(t, (int32_t)v >= 0 ? "\"@%s\"" : "\"bad fd\"", name);
		return;
	}
	if (how == '=' || how == '~') {
		sym_set('$', name, v, 0);
		if (how == '~')
			put(t, "\"any\"");
		else if (opt_loose && expected)
			put_node(t, expected, NULL);
		else
			put_num(t, v);
		return;
	}
	put(raw, "%s\"%s\":%llu", raw->n ? "," : "", name, (unsigned long long)v);
	if (how == '?') {
		const char *same = NULL;
		if (expected && expected->type == J_STR && expected->s[0] == '$') {
			struct sym *y = sym_find('$', expected->s + 1, strlen(expected->s + 1));
			if (y && y->val == v)
				same = y->name;
		} else if (!expected) {
			for (int i = 0; i < n_syms; i++)
				if (syms[i].kind == '$' && syms[i].id && syms[i].live && syms[i].val == v)
					same = syms[i].name;
		}
		if (same && strcmp(same, name)) {
			put(t, "\"$%s\"", same);
			sym_set('$', name, v, 1);
			return;
		}
	}
	sym_set('$', name, v, 1);
	put(t, v && v != UNKNOWN_ID ? "\"$%s\"" : "\"no id\"", name);
}

static const char *errno_name(int e)
{
	static char b[16];
#define E(x) case x: return #x;
	switch (e) {
	E(EPERM) E(ENOENT) E(EINTR) E(EIO) E(ENXIO) E(E2BIG) E(EBADF) E(EAGAIN) E(ENOMEM) E(EACCES)
	E(EFAULT) E(EBUSY) E(EEXIST) E(ENODEV) E(EINVAL) E(ENFILE) E(EMFILE) E(ENOTTY) E(EFBIG)
	E(ENOSPC) E(ESPIPE) E(EROFS) E(EDOM) E(ERANGE) E(EDEADLK) E(ENOSYS) E(EMSGSIZE) E(EOVERFLOW)
	E(EBADFD) E(EOPNOTSUPP) E(EADDRINUSE) E(ETIMEDOUT) E(ENOTCONN) E(ECANCELED) E(EBADE)
	E(ENODATA) E(EILSEQ) E(EXDEV) E(ENOTDIR) E(EISDIR)
	}
#undef E
	snprintf(b, sizeof(b), "E%d", e);
	return b;
}

/* ---- steps --------------------------------------------------------------- */

static struct node *cur_expect;

static void apply_set(struct node *set)
{
	for (struct node *e = set ? set->child : NULL; e; e = e->next) {
		unsigned long at = eval(get_s(e, "at"));
		const char *s;
		if ((s = get_s(e, "hex"))) {
			size_t n = strlen(s) / 2;
			unsigned char *b = take(n + 1);
			poke(at, b, unhex(s, b, n));
		} else if ((s = get_s(e, "str"))) {
			s = host_string(s);
			poke(at, s, strlen(s) + 1);
		} else if ((s = get_s(e, "struct"))) {
			const struct layout *l = layout_find(s);
			unsigned char *b = take((size_t)l->size);
			encode(l, get(e, "v"), b);
			poke(at, b, (size_t)l->size);
		} else {
			size_t n = eval_key(e, "len", 0);
			unsigned char *b = take(n);
			memset(b, (int)eval_key(e, "fill", 0), n);
			poke(at, b, n);
		}
	}
}

static void put_mem(struct text *t, struct text *raw, struct node *mem, struct node *expected)
{
	struct node *x = expected ? expected->child : NULL;
	put(t, ",\"mem\":[");
	for (struct node *e = mem->child; e; e = e->next, x = x ? x->next : NULL) {
		unsigned long at = eval(get_s(e, "at"));
		const char *s = get_s(e, "struct");
		const unsigned char *p = (const unsigned char *)at;
		size_t n = s ? (size_t)layout_find(s)->size : eval_key(e, "len", 0);
		if (!area_at(at, n)) { /* an mmap step that failed */
			put(t, "\"unmapped\"");
		} else if (s) {
			const struct layout *l = layout_find(s);
			struct node *bind = get(e, "bind");
			put(t, "{");
			for (int i = 0; i < l->n; i++) {
				const struct field *f = &l->f[i];
				const char *b = get_s(bind, f->name);
				put(t, "%s\"%s\":", i ? "," : "", f->name);
				if (in_list(get(e, "nocmp"), f->name))
					put(t, "\"any\"");
				else if (b)
					bind_value(t, raw, b, field_get(f, p), f->size, get(x, f->name));
				else if (in_list(get(e, "ids"), f->name))
					put_id(t, field_get(f, p));
				else if (f->size > 8 || f->size == 3)
					put_hex(t, p + f->off, (size_t)f->size);
				else
					put_num(t, field_get(f, p));
			}
			put(t, "}");
		} else if (n <= 32) {
			put_hex(t, p, n);
		} else {
			put(t, "\"crc32:%08x\"", crc32_of(p, n));
		}
		if (e->next)
			put(t, ",");
	}
	put(t, "]");
}

static void put_ret(struct text *t, long long ret, int err)
{
	put(t, "{\"ret\":%lld", ret);
	if (ret == -1)
		put(t, ",\"errno\":\"%s\"", errno_name(err));
}

static int step_ioctl(struct node *st, struct text *t, struct text *raw)
{
	const char *name = get_s(st, "cmd"), *lname = get_s(st, "struct"), *s;
	const struct command *c = NULL;
	const struct layout *l = NULL;
	struct node *in = get(st, "in"), *bind = get(st, "bind"), *xout = get(cur_expect, "out");
	unsigned char before[512], tail[PAGE];
	unsigned long nr, arg = ARG_VA;
	size_t ntail = 0, nguard = 0;

	for (int i = 0; i < COUNT(commands); i++)
		if (!strcmp(commands[i].name, name))
			c = &commands[i];
	nr = c ? c->nr : strtoul(name, NULL, 0);
	if (lname || c)
		l = layout_find(lname ? lname : c->layout);
	if ((s = get_s(st, "arg")))
		arg = eval(s);
	apply_set(get(st, "set"));
	if (in && l) {
		memset(before, 0, sizeof(before));
		if (l->n && (!strcmp(l->f[0].name, "size") || !strcmp(l->f[0].name, "argsz"))) {
			uint32_t z = (uint32_t)l->size;
			memcpy(before, &z, 4);
		}
		if (c && c->op)
			memcpy(before + 4, &c->op, 4);
		encode(l, in, before);
		if ((s = get_s(st, "tail")))
			ntail = unhex_or_zeros(s, tail, sizeof(tail));
		if (arg == ARG_VA) {
			memset((void *)ARG_VA, 0xa5, PAGE);
			nguard = PAGE - (size_t)l->size - ntail;
		}
		poke(arg, before, (size_t)l->size);
		if (ntail)
			poke(arg + (size_t)l->size, tail, ntail);
	}
	errno = 0;
	long long ret = ioctl((int)eval_key(st, "fd", (uint64_t)-1), nr, arg);
	int err = errno;
	if (ret >= 0 && (s = get_s(st, "retfd"))) {
		sym_set('@', s, (uint64_t)ret, 0);
		fd_opened((int)ret);
		ret = 0;
	}
	put_ret(t, ret, err);
	if (in && l) {
		unsigned char after[512];
		int first = 1;
		memcpy(after, (void *)arg, (size_t)l->size);
		for (int i = 0; i < l->n; i++) {
			const struct field *f = &l->f[i];
			const char *b = ret >= 0 ? get_s(bind, f->name) : NULL;
			if (!b && !memcmp(before + f->off, after + f->off, (size_t)f->size))
				continue;
			put(t, "%s\"%s\":", first ? ",\"out\":{" : ",", f->name);
			first = 0;
			if (in_list(get(st, "nocmp"), f->name))
				put(t, "\"any\"");
			else if (b)
				bind_value(t, raw, b, field_get(f, after), f->size, get(xout, f->name));
			else if (f->size > 8 || f->size == 3)
				put_hex(t, after + f->off, (size_t)f->size);
			else
				put_num(t, field_get(f, after));
		}
		if (!first)
			put(t, "}");
		for (size_t i = 0; i < nguard; i++)
			if (((unsigned char *)arg)[(size_t)l->size + ntail + i] != 0xa5) {
				put(t, ",\"guard\":\"changed\"");
				break;
			}
		if (ntail && memcmp(tail, (char *)arg + l->size, ntail))
			put(t, ",\"tail\":\"changed\"");
	}
	/* an id that is gone must not be taken for a later object */
	if (ret == 0 && c && !strcmp(c->name, "IOMMU_DESTROY") && in && (s = get_s(in, "id")) && *s == '$') {
		uint64_t v = eval(s);
		for (int i = 0; i < n_syms; i++)
			if (syms[i].kind == '$' && syms[i].id && syms[i].val == v)
				syms[i].live = 0;
	}
	return ret >= 0;
}

static struct area *area_named(const char *name)
{
	for (int i = 0; i < n_areas; i++)
		if (!strcmp(areas[i].name, name))
			return &areas[i];
	die("no area %s", name);
	return NULL;
}

static void run_step(struct node *st, struct text *t, struct text *raw)
{
	const char *op = get_s(st, "op");
	struct node *mem = get(st, "mem");
	long long ret = 0;
	int err = 0, ret_ok = 1;

	errno = 0;
	if (!strcmp(op, "ioctl")) {
		ret_ok = step_ioctl(st, t, raw);
	} else if (!strcmp(op, "open")) {
		int fd = open(host_string(get_s(st, "path")), O_RDWR | O_CLOEXEC);
		err = errno;
		sym_set('@', get_s(st, "fd") + 1, (uint64_t)(int64_t)fd, 0);
		fd_opened(fd);
		put_ret(t, fd < 0 ? -1 : 0, err);
	} else if (!strcmp(op, "close")) {
		uint64_t fd = eval(get_s(st, "fd"));
		ret = close((int)fd);
		err = errno;
		fd_closed((int)fd);
		for (int i = 0; i < n_syms; i++)
			if (syms[i].kind == '@' && syms[i].val == fd)
				syms[i].val = (uint64_t)-1;
		put_ret(t, ret, err);
	} else if (!strcmp(op, "read") || !strcmp(op, "write")) {
		int fd = (int)eval(get_s(st, "fd"));
		void *at = (void *)eval(get_s(st, "at"));
		size_t len = eval_key(st, "len", 0);
		apply_set(get(st, "set"));
		errno = 0;
		ret = *op == 'r' ? read(fd, at, len) : write(fd, at, len);
		put_ret(t, ret, errno);
	} else if (!strcmp(op, "poll")) {
		struct pollfd p = { .fd = (int)eval(get_s(st, "fd")), .events = (short)eval_key(st, "events", 5) };
		ret = poll(&p, 1, 0);
		put_ret(t, ret, errno);
		put(t, ",\"revents\":%d", p.revents);
	} else if (!strcmp(op, "mmap")) {
		struct area *a = area_named(get_s(st, "area"));
		const char *from = get_s(st, "fd"); /* anonymous memory without it */
		int fd = from ? (int)eval(from) : -1;
		int prot = (int)eval_key(st, "prot", PROT_READ | PROT_WRITE);
		int flags = (int)eval_key(st, "flags", MAP_SHARED) | (from ? 0 : MAP_ANONYMOUS) | MAP_FIXED;
		void *p = mmap((void *)a->va, eval_key(st, "len", a->len), prot, flags, fd,
			       (off_t)eval_key(st, "off", 0));
		put_ret(t, p == MAP_FAILED ? -1 : 0, errno);
		if (p != MAP_FAILED) {
			a->mapped = 1;
			a->prot = prot;
			if (!from && (prot & PROT_WRITE))
				area_fill(a, (unsigned)eval_key(st, "seed", 0));
		}
	} else if (!strcmp(op, "munmap")) {
		struct area *a = area_named(get_s(st, "area"));
		ret = munmap((void *)a->va, a->len);
		put_ret(t, ret, errno);
		a->mapped = 0;
	} else if (!strcmp(op, "mem")) {
		apply_set(get(st, "set"));
		put_ret(t, 0, 0);
	} else {
		die("no operation %s", op);
	}
	if (mem)
		put_mem(t, raw, mem, get(cur_expect, "mem"));
	/* objects that are gone once the step has succeeded */
	for (struct node *f = ret_ok && get(st, "forget") ? get(st, "forget")->child : NULL; f; f = f->next) {
		struct sym *y = sym_find('$', f->s, strlen(f->s));
		if (y)
			y->live = 0;
	}
	put(t, "}");
}

/* ---- programs ------------------------------------------------------------ */

static const char *volatile now_name;
static volatile int now_step;

static void on_alarm(int sig)
{
	char b[200];
	(void)sig;
	int n = snprintf(b, sizeof(b), "TIMEOUT %s step %d\n", now_name, now_step);
	if (write(1, b, (size_t)n) < 0)
		_exit(4);
	_exit(3);
}

static void map_areas(struct node *prog)
{
	n_areas = 0;
	for (struct node *n = get(prog, "areas") ? get(prog, "areas")->child : NULL; n; n = n->next) {
		struct area *a = &areas[n_areas++];
		const char *kind = get_s(n, "kind");
		if (n_areas > COUNT(areas))
			die("too many areas");
		a->name = get_s(n, "id");
		a->va = eval(get_s(n, "va"));
		a->len = eval_key(n, "pages", 1) * PAGE;
		a->fd = -1;
		a->mapped = 0;
		if (!strcmp(kind, "none")) /* declared only: an address range with nothing mapped */
			continue;
		if (!strcmp(kind, "memfd")) {
			a->fd = memfd_create(a->name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
			if (a->fd < 0 || ftruncate(a->fd, (off_t)a->len))
				die("memfd: %s", strerror(errno));
			sym_set('@', a->name, (uint64_t)a->fd, 0);
		}
		void *p = mmap((void *)a->va, a->len, PROT_READ | PROT_WRITE,
			       MAP_FIXED | (a->fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS), a->fd, 0);
		if (p != (void *)a->va)
			die("cannot map area %s at 0x%lx", a->name, a->va);
		area_fill(a, (unsigned)eval_key(n, "seed", 0));
		a->prot = PROT_READ | PROT_WRITE;
		a->mapped = 1;
		if (!strcmp(kind, "ro")) {
			a->prot = PROT_READ;
			mprotect(p, a->len, a->prot);
		}
		const char *seal = get_s(n, "seals");
		if (seal)
			fcntl(a->fd, F_ADD_SEALS, (int)eval(seal));
	}
}

static void cleanup(void)
{
	/* in reverse order of opening: access and event descriptors before the iommufd */
	while (n_open_fds)
		if (open_fds[--n_open_fds] >= 0)
			close(open_fds[n_open_fds]);
	for (int i = 0; i < n_areas; i++) {
		munmap((void *)areas[i].va, areas[i].len);
		if (areas[i].fd >= 0)
			close(areas[i].fd);
	}
	n_syms = 0;
}

static int progs, passed, failed, steps, steps_equal;

static void run_program(const char *line, unsigned timeout, FILE *out)
{
	struct text t = { 0 }, raw = { 0 }, want = { 0 }, o = { 0 };
	int bad = -1, idx = 0;

	pool_used = 0;
	jp = line;
	struct node *prog = parse_value();
	const char *name = get_s(prog, "name");
	if (opt_only && !strstr(name, opt_only))
		return;
	now_name = name;
	now_step = -1;
	alarm(timeout);
	n_syms = 0;
	map_areas(prog);
	progs++;
	for (struct node *st = get(prog, "steps")->child; st; st = st->next, idx++) {
		struct node *x = cur_expect = opt_record ? NULL : get(st, "expect");
		now_step = idx;
		t.n = raw.n = want.n = o.n = 0;
		size_t mark = pool_used;
		run_step(st, &t, &raw);
		steps++;
		if (opt_verbose)
			fprintf(stderr, "%s %d %s %s -> %s\n", name, idx, get_s(st, "op"),
				get_s(st, "cmd") ? get_s(st, "cmd") : "", t.p);
		if (opt_record) {
			t.n--; /* the closing brace */
			if (raw.n)
				put(&t, ",\"raw\":{%s}", raw.p);
			put(&t, "}");
			pool_used = mark;
			jp = dup_n(t.p, t.n);
			struct node *e = parse_value(), *old = get(st, "expect");
			if (old) {
				old->child = e->child;
				old->last = e->last;
			} else {
				e->key = "expect";
				st->last->next = e;
				st->last = e;
			}
			continue;
		}
		if (!x)
			die("%s step %d has no expectation", name, idx);
		put_node(&want, x, "raw");
		int same = t.n == want.n && !memcmp(t.p, want.p, t.n);
		if (same && opt_strict && get(x, "raw")) {
			put(&o, "{%s}", raw.n ? raw.p : "");
			want.n = 0;
			put_node(&want, get(x, "raw"), NULL);
			same = o.n == want.n && !memcmp(o.p, want.p, o.n);
		}
		steps_equal += same;
		if (!same && bad < 0) {
			bad = idx;
			o.n = 0;
			put_node(&o, st, "expect");
			printf("FAIL %s step %d\n  step     %s\n  expected %s\n  got      %s\n", name, idx, o.p,
			       want.p, t.p);
		}
		pool_used = mark;
	}
	cleanup();
	alarm(0);
	if (opt_record) {
		o.n = 0;
		put_node(&o, prog, NULL);
		fprintf(out, "%s\n", o.p);
		fflush(out);
	} else if (bad < 0) {
		passed++;
		printf("PASS %s\n", name);
	} else {
		failed++;
	}
	fflush(stdout);
	free(t.p);
	free(raw.p);
	free(want.p);
	free(o.p);
}

int main(int argc, char **argv)
{
	unsigned timeout = 60;
	int i, check = 0;

	for (i = 1; i < argc && argv[i][0] == '-'; i++) {
		const char *a = argv[i], *v = i + 1 < argc ? argv[i + 1] : "";
		if (!strcmp(a, "--record")) opt_record = 1;
		else if (!strcmp(a, "--check")) check = 1;
		else if (!strcmp(a, "--strict-ids")) opt_strict = 1;
		else if (!strcmp(a, "--loose-values")) opt_loose = 1;
		else if (!strcmp(a, "--reverse")) opt_reverse = 1;
		else if (!strcmp(a, "-v")) opt_verbose = 1;
		else if (!strcmp(a, "--group")) opt_group = v, i++;
		else if (!strcmp(a, "--cdev")) opt_cdev = v, i++;
		else if (!strcmp(a, "--bdf")) opt_bdf = v, i++;
		else if (!strcmp(a, "--only")) opt_only = v, i++;
		else if (!strcmp(a, "--timeout")) timeout = (unsigned)atoi(v), i++;
		else die("unknown option %s", a);
	}
	if (opt_record == check || i >= argc)
		die("usage: replay --check|--record [--strict-ids] [--loose-values] [--reverse] [--only TEXT]\n"
		    "              [--timeout S] [--group PATH --cdev PATH --bdf BDF] [-v] FILE.jsonl ...");
	pool_size = 64UL << 20;
	pool = mmap(NULL, pool_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	/* one page for ioctl structures, then a page that cannot be read */
	if (pool == MAP_FAILED ||
	    mmap((void *)ARG_VA, PAGE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ||
	    mmap((void *)(ARG_VA + PAGE), PAGE, PROT_NONE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
		die("cannot map memory");
	signal(SIGALRM, on_alarm);

	for (; i < argc; i++) {
		FILE *f = fopen(argv[i], "r");
		char **lines = NULL, *line = NULL;
		size_t cap = 0;
		int n = 0;
		if (!f)
			die("%s: %s", argv[i], strerror(errno));
		while (getline(&line, &cap, f) > 0) {
			if (line[0] != '{')
				continue;
			lines = realloc(lines, sizeof(*lines) * (size_t)(n + 1));
			lines[n++] = strdup(line);
		}
		fclose(f);
		free(line);
		for (int k = 0; k < n; k++)
			run_program(lines[opt_reverse ? n - 1 - k : k], timeout, stdout);
		for (int k = 0; k < n; k++)
			free(lines[k]);
		free(lines);
	}
	if (!opt_record)
		printf("%d programs, %d passed, %d failed, %d/%d steps equal\n", progs, passed, failed,
		       steps_equal, steps);
	return failed ? 1 : 0;
}
