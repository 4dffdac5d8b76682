// A WireGuard node whose inner side is a TCP/IP stack in the process: wireguard-go with the stack of gVisor. It carries TCP connections
// from a port of this host into the tunnel, or from a port of its inner address to one of this host.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"
)

const mtuBytes = 1420

func main() {
	config := flag.String("config", "", "`file` with the keys and the peer, as the configuration protocol has it")
	address := flag.String("address", "", "inner `address`")
	forward := flag.String("forward", "", "`ADDRESS:PORT=ADDRESS:PORT` of this host and inside")
	reverse := flag.String("reverse", "", "`ADDRESS:PORT=ADDRESS:PORT` inside and of this host")
	flag.Parse()
	if err := run(*config, *address, *forward, *reverse); err != nil {
		log.Fatal(err)
	}
}

func run(config, address, forward, reverse string) error {
	inner, err := netip.ParseAddr(address)
	if err != nil {
		return err
	}
	peers, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	tun, stack, err := netstack.CreateNetTUN([]netip.Addr{inner}, nil, mtuBytes)
	if err != nil {
		return err
	}
	node := device.NewDevice(tun, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	if err := node.IpcSet(string(peers)); err != nil {
		return err
	}
	if err := node.Up(); err != nil {
		return err
	}
	var listener net.Listener
	var dial func() (net.Conn, error)
	if from, to, ok := strings.Cut(forward, "="); ok {
		listener, err = net.Listen("tcp", from)
		dial = func() (net.Conn, error) { return stack.Dial("tcp", to) }
	} else if from, to, ok := strings.Cut(reverse, "="); ok {
		var port netip.AddrPort
		if port, err = netip.ParseAddrPort(from); err == nil {
			listener, err = stack.ListenTCPAddrPort(port)
		}
		dial = func() (net.Conn, error) { return net.Dial("tcp", to) }
	} else {
		err = fmt.Errorf("-forward or -reverse must say what to carry")
	}
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return serve(listener, dial)
}

func serve(listener net.Listener, dial func() (net.Conn, error)) error {
	for {
		from, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer from.Close()
			to, err := dial()
			if err != nil {
				log.Print(err)
				return
			}
			defer to.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				copyHalf(to, from)
			}()
			copyHalf(from, to)
			<-done
		}()
	}
}

// copyHalf moves what from sends until its end, and then ends that direction.
func copyHalf(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}
