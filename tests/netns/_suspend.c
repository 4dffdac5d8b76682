/*
 * Preloaded into a node, this moves its clocks as a suspend or a step of the wall clock does: offsets in nanoseconds, first
 * CLOCK_BOOTTIME's, then CLOCK_REALTIME's, come from a file that the test changes while the node runs. CLOCK_MONOTONIC
 * stands still during a suspend, and is left alone.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offsets;

__attribute__((constructor)) static void map_offsets(void) {
  const char *path = getenv("ICX_TEST_CLOCK_OFFSETS");
  int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  void *map = fd < 0 ? MAP_FAILED : mmap(NULL, 2 * sizeof *offsets, PROT_READ, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) abort();
  offsets = map;
  close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
  int result = (int)syscall(SYS_clock_gettime, clock, time);
  if (result != 0 || !offsets) return result;
  int which = clock == CLOCK_BOOTTIME ? 0 : clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE ? 1 : -1;
  if (which < 0) return 0;
  int64_t ns = time->tv_sec * INT64_C(1000000000) + time->tv_nsec + offsets[which];
  time->tv_sec = ns / INT64_C(1000000000);
  time->tv_nsec = ns % INT64_C(1000000000);
  return 0;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
  (void)zone;
  struct timespec now;
  if (clock_gettime(CLOCK_REALTIME, &now) != 0) return -1;
  time->tv_sec = now.tv_sec;
  time->tv_usec = now.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}
