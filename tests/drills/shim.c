/* A disk that refuses or is slow, for one process (LD_PRELOAD). The first byte of the file $SHIM_CONTROL says how, at each call:
 *   'e'  fsync and fdatasync fail with EIO
 *   'r'  everything that changes a regular file or a folder below $SHIM_FOLDER fails with EROFS
 *   's'  fsync and fdatasync take 50 ms longer
 *   'S'  fsync and fdatasync take 5 s longer
 *   else nothing
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const volatile char *control;
static const char *folder;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("SHIM_CONTROL");
    folder = getenv("SHIM_FOLDER");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED) control = page;
    close(fd);
}

static char now(void) { return control ? *control : 0; }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int before_sync(void) {
    switch (now()) {
    case 'e': errno = EIO; return -1;
    case 's': { struct timespec t = {0, 50000000}; nanosleep(&t, NULL); return 0; }
    case 'S': { struct timespec t = {5, 0}; nanosleep(&t, NULL); return 0; }
    default: return 0;
    }
}

int fsync(int fd) { return before_sync() ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return before_sync() ? -1 : REAL(fdatasync)(fd); }

/* Whether a descriptor is a file below the folder, while that cannot be written. */
static int refused(int fd) {
    char link[64], path[PATH_MAX];
    struct stat s;
    if (now() != 'r' || !folder || fstat(fd, &s) || !S_ISREG(s.st_mode)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    if (strncmp(path, folder, strlen(folder))) return 0;
    errno = EROFS;
    return 1;
}

static int refused_path(const char *path) {
    if (now() != 'r' || !folder || strncmp(path, folder, strlen(folder))) return 0;
    errno = EROFS;
    return 1;
}

ssize_t write(int fd, const void *b, size_t n) { return refused(fd) ? -1 : REAL(write)(fd, b, n); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t at) { return refused(fd) ? -1 : REAL(pwrite)(fd, b, n, at); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t at) { return refused(fd) ? -1 : REAL(pwrite64)(fd, b, n, at); }
int ftruncate(int fd, off_t n) { return refused(fd) ? -1 : REAL(ftruncate)(fd, n); }
int ftruncate64(int fd, off64_t n) { return refused(fd) ? -1 : REAL(ftruncate64)(fd, n); }
int rename(const char *a, const char *b) { return refused_path(a) ? -1 : REAL(rename)(a, b); }
int unlink(const char *a) { return refused_path(a) ? -1 : REAL(unlink)(a); }
int mkdir(const char *a, mode_t m) { return refused_path(a) ? -1 : REAL(mkdir)(a, m); }

#define WRITES(flags) (((flags) & O_ACCMODE) != O_RDONLY || ((flags) & O_CREAT))
#define OPEN(name)                                                  \
    int name(const char *path, int flags, ...) {                    \
        mode_t mode = 0;                                            \
        if (flags & (O_CREAT | O_TMPFILE)) {                        \
            va_list rest;                                           \
            va_start(rest, flags);                                  \
            mode = va_arg(rest, mode_t);                            \
            va_end(rest);                                           \
        }                                                           \
        if (WRITES(flags) && refused_path(path)) return -1;         \
        return REAL(name)(path, flags, mode);                       \
    }
OPEN(open)
OPEN(open64)
