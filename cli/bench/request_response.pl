# One byte there and one back over a TCP connection, with blocking calls and nothing between them and the kernel:
# an event loop would add its own time to every round trip. Perl is part of every Debian system.
#
#   request_response.pl serve ADDRESS PORT           prints "listening", answers one connection, ends with it
#   request_response.pl call ADDRESS PORT SECONDS    prints the number of answers and the seconds they took
use strict;
use warnings;
use Socket qw(:DEFAULT IPPROTO_TCP TCP_NODELAY inet_pton);
use Time::HiRes qw(time);

my ($role, $address, $port, $seconds) = @ARGV;
$| = 1;
my $v6 = $address =~ /:/;
my $packed = inet_pton($v6 ? AF_INET6 : AF_INET, $address) // die "not an address: $address\n";
my $where = $v6 ? Socket::pack_sockaddr_in6($port, $packed) : pack_sockaddr_in($port, $packed);
socket(my $socket, $v6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0) or die "socket: $!\n";

if ($role eq "serve") {
    setsockopt($socket, SOL_SOCKET, SO_REUSEADDR, 1) or die "SO_REUSEADDR: $!\n";
    bind($socket, $where) or die "bind $address port $port: $!\n";
    listen($socket, 1) or die "listen: $!\n";
    print "listening\n";
    accept(my $client, $socket) or die "accept: $!\n";
    setsockopt($client, IPPROTO_TCP, TCP_NODELAY, 1) or die "TCP_NODELAY: $!\n";
    while (sysread($client, my $byte, 1)) {
        syswrite($client, $byte) or last;
    }
} else {
    connect($socket, $where) or die "connect to $address port $port: $!\n";
    setsockopt($socket, IPPROTO_TCP, TCP_NODELAY, 1) or die "TCP_NODELAY: $!\n";
    my ($count, $started) = (0, time);
    my $until = $started + $seconds;
    while (time < $until) {
        syswrite($socket, "x") or die "write: $!\n";
        sysread($socket, my $byte, 1) or die "the other end closed the connection: $!\n";
        $count++;
    }
    printf "%d %.6f\n", $count, time - $started;
}
