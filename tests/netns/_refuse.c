/*
 * Usage: refuse PID PORT. Takes the checksums from the UDP sockets of a running process that are bound to a port, so that the
 * kernel refuses from then on to cut what is sent on them (EINVAL from `udp_send_skb` in net/ipv4/udp.c). Prints how many
 * sockets that were.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Since Linux 5.6; the headers may be older. */
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

static int is_udp_on(int fd, int port) {
  struct sockaddr_storage name;
  int kind = 0;
  socklen_t length = sizeof kind;
  if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &length) != 0 || kind != SOCK_DGRAM) return 0;
  length = sizeof name;
  if (getsockname(fd, (struct sockaddr *)&name, &length) != 0) return 0;
  if (name.ss_family == AF_INET) return ntohs(((struct sockaddr_in *)&name)->sin_port) == port;
  return name.ss_family == AF_INET6 && ntohs(((struct sockaddr_in6 *)&name)->sin6_port) == port;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  char folder[64];
  snprintf(folder, sizeof folder, "/proc/%d/fd", atoi(argv[1]));
  int process = (int)syscall(SYS_pidfd_open, atoi(argv[1]), 0);
  DIR *descriptors = opendir(folder);
  if (process < 0 || !descriptors) {
    perror(folder);
    return 1;
  }
  int refused = 0;
  for (struct dirent *entry; (entry = readdir(descriptors));) {
    if (entry->d_name[0] == '.') continue;
    int fd = (int)syscall(SYS_pidfd_getfd, process, atoi(entry->d_name), 0);
    if (fd < 0) continue;
    const int on = 1;
    if (is_udp_on(fd, atoi(argv[2])) && setsockopt(fd, SOL_SOCKET, SO_NO_CHECK, &on, sizeof on) == 0) refused++;
    close(fd);
  }
  printf("%d\n", refused);
  return refused > 0 ? 0 : 1;
}
