// A clock that can be moved, for processes that this is preloaded into: wall-clock time plus the seconds that the file
// named by CHAOS_CLOCK holds as an int64.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset_s;
static int (*real_gettimeofday)(struct timeval *, void *);
static int (*real_clock_gettime)(clockid_t, struct timespec *);

// When the library is loaded, or before, should somebody else's constructor ask for the time.
__attribute__((constructor)) static void open_clock(void)
{
    if (real_clock_gettime) {
        return;
    }
    const char *path = getenv("CHAOS_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    real_gettimeofday = (int (*)(struct timeval *, void *))dlsym(RTLD_NEXT, "gettimeofday");
    real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    if (file >= 0) {
        void *page = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
        offset_s = page == MAP_FAILED ? NULL : page;
        close(file);
    }
}

static int64_t shift(void)
{
    return offset_s ? *offset_s : 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    open_clock();
    int status = real_gettimeofday(now, zone);
    now->tv_sec += shift();
    return status;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    open_clock();
    int status = real_clock_gettime(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) {
        now->tv_sec += shift();
    }
    return status;
}

time_t time(time_t *into)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into) {
        *into = now.tv_sec;
    }
    return now.tv_sec;
}
