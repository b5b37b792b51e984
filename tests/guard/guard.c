/* An allocator that finds what compiled code does beyond the memory it was given; `make guard` preloads it.
 *
 * Each block of LEAST bytes or more ends where an unmapped page begins, so that reading or writing behind it is a
 * fault at that instruction; what alignment leaves between them, and the page's part before the block, holds a pattern
 * that is checked when the block is freed. A freed block is unmapped and its addresses are never used again. Smaller
 * blocks are the C library's. In the manner of Bruce Perens' Electric Fence (1987), which reuses addresses and checks
 * no pattern.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE ((size_t)4096)
#define SPAN ((size_t)32 << 40)
#define PATTERN 0xA5
/* What a new block holds, so that what is read unwritten shows: as float32 and bfloat16 -2.7e7. */
#define UNWRITTEN 0xCB
#define MAGIC 0x6a09e667f3bcc908ull

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

/* In a page of its own before the block's first. */
struct head {
    uint64_t magic;
    size_t size, num_pages;
};

#define LEAST ((size_t)1024)
/* Live blocks, of two maps each: Linux allows a process 65,530 maps. Beyond it blocks are the C library's. */
#define MOST_BLOCKS 24000

static char *span;
static _Atomic size_t used, num_blocks;
static int errors = 2;

__attribute__((constructor(101))) static void begin(void) {
    void *made = mmap(NULL, SPAN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (made != MAP_FAILED) span = made;
    errors = dup(2); /* before anybody captures it */
}

static void say(const char *text) {
    if (write(errors, text, strlen(text)) < 0) _exit(134);
}

static void die(const char *what, size_t size) {
    char digits[24], *at = digits + sizeof digits - 1;
    *at = 0;
    do *--at = (char)('0' + size % 10);
    while (size /= 10);
    say("guard: ");
    say(what);
    say(" a block of ");
    say(at);
    say(" bytes\n");
    abort();
}

static int is_guarded(const void *block) {
    return span && (const char *)block >= span && (const char *)block < span + SPAN;
}

static struct head *head_of(const void *block) {
    struct head *head = (struct head *)(((uintptr_t)block & ~(PAGE - 1)) - PAGE);
    if (head->magic != MAGIC) die("freed what is no block, or written before", 0);
    return head;
}

static void *take(size_t alignment, size_t size) {
    if (alignment < 16) alignment = 16;
    size_t body = (size + alignment - 1) & ~(alignment - 1), num_pages = (body + PAGE - 1) / PAGE;
    size_t at = atomic_fetch_add(&used, (num_pages + 2) * PAGE);
    if (at + (num_pages + 2) * PAGE > SPAN) die("no addresses are left for", size);
    struct head *head = (struct head *)(span + at);
    if (mprotect(head, (num_pages + 1) * PAGE, PROT_READ | PROT_WRITE)) die("no map is left for", size);
    *head = (struct head){MAGIC, size, num_pages};
    num_blocks++;
    char *pages = (char *)head + PAGE, *block = pages + num_pages * PAGE - body;
    memset(pages, PATTERN, (size_t)(block - pages));
    memset(block + size, PATTERN, body - size);
    return block;
}

static int is_taken(size_t alignment, size_t size) {
    return span && size >= LEAST && alignment <= PAGE && num_blocks < MOST_BLOCKS;
}

static void give_back(void *block) {
    struct head *head = head_of(block);
    const unsigned char *pages = (unsigned char *)head + PAGE, *end = pages + head->num_pages * PAGE, *at;
    for (at = pages; at < (unsigned char *)block; at++)
        if (*at != PATTERN) die("written before", head->size);
    for (at = (unsigned char *)block + head->size; at < end; at++)
        if (*at != PATTERN) die("written behind", head->size);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    if (mmap(head, (head->num_pages + 1) * PAGE, PROT_NONE, flags, -1, 0) == MAP_FAILED) die("could not unmap", 0);
    num_blocks--;
}

void *malloc(size_t size) {
    if (!is_taken(16, size)) return __libc_malloc(size);
    return memset(take(16, size), UNWRITTEN, size);
}

void *calloc(size_t num, size_t each) {
    size_t size;
    if (__builtin_mul_overflow(num, each, &size) || !is_taken(16, size)) return __libc_calloc(num, each);
    return take(16, size);
}

void free(void *block) {
    if (is_guarded(block)) give_back(block);
    else __libc_free(block);
}

size_t malloc_usable_size(void *block) {
    if (!block) return 0;
    if (is_guarded(block)) return head_of(block)->size;
    size_t word = ((size_t *)block)[-1]; /* glibc's chunk: its size, with flags; bit 1 says that it is a map */
    return (word & ~(size_t)7) - (word & 2 ? 16 : 8);
}

void *realloc(void *block, size_t size) {
    if (!block) return malloc(size);
    if (!is_guarded(block) && !is_taken(16, size)) return __libc_realloc(block, size);
    size_t old = malloc_usable_size(block);
    void *made = size ? malloc(size) : NULL;
    if (made) memcpy(made, block, old < size ? old : size);
    if (made || !size) free(block);
    return made;
}

void *memalign(size_t alignment, size_t size) {
    if (!is_taken(alignment, size)) return __libc_memalign(alignment, size);
    return memset(take(alignment, size), UNWRITTEN, size);
}

void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void **block, size_t alignment, size_t size) {
    void *made = memalign(alignment, size);
    if (!made) return ENOMEM;
    *block = made;
    return 0;
}
