/* A disk that is full from the n-th call on that needs room: loaded before a program's libraries (LD_PRELOAD).

   write, fsync, rename, mkdir, creating a file: the calls by which Python and torch keep anything. The n-th call, if it
   writes, still writes half of what it is given, as a disk does whose last block is taken. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long limit = -1, calls = 0; /* -1: never full */

void disk_full_from(long n) { limit = n; calls = 0; }
long disk_calls(void) { return calls; }

static int full(void) {
    calls++;
    if (limit < 0 || calls <= limit) return 0;
    errno = ENOSPC;
    return 1;
}

static int on_disk(int fd) { /* not a pipe, not a terminal */
    struct stat found;
    return fstat(fd, &found) == 0 && S_ISREG(found.st_mode);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
    if (on_disk(fd) && full()) {
        if (calls > limit + 1 || size < 2) return -1;
        size /= 2;
    }
    return REAL(write)(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    return on_disk(fd) && full() ? -1 : REAL(writev)(fd, parts, count);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    return on_disk(fd) && full() ? -1 : REAL(pwrite)(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    return on_disk(fd) && full() ? -1 : REAL(pwrite64)(fd, data, size, at);
}

int fsync(int fd) { return full() ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return full() ? -1 : REAL(fdatasync)(fd); }
int mkdir(const char *path, mode_t mode) { return full() ? -1 : REAL(mkdir)(path, mode); }
int rename(const char *from, const char *to) { return full() ? -1 : REAL(rename)(from, to); }

#define OPENS(name)                                                   \
    int name(const char *path, int flags, ...) {                      \
        va_list more;                                                 \
        va_start(more, flags);                                        \
        mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;     \
        va_end(more);                                                 \
        if (flags & O_CREAT && access(path, F_OK) && full()) return -1; \
        return REAL(name)(path, flags, mode);                         \
    }
OPENS(open)
OPENS(open64)
