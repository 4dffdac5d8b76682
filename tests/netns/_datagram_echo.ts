/**
 * A UDP echo and its client, run inside the hosts: `server ADDRESS` or `client LOCAL REMOTE COUNT`.
 * The client sends datagrams of growing size and prints how many came back unchanged.
 */
import { createSocket } from "node:dgram";
import process from "node:process";

const PORT = 5005;
const LARGEST_BYTES = 1392 - 48; // IPv6 and UDP headers off the inner MTU

const [role, local = "", remote = "", count = "0"] = process.argv.slice(2);
const socket = createSocket(local.includes(":") ? "udp6" : "udp4");

if (role === "server") {
  socket.on("message", (message, from) => socket.send(message, from.port, from.address));
  socket.bind(PORT, local, () => process.stdout.write("listening\n"));
} else {
  let echoed = 0;
  const body = (n: number) => {
    const bytes = Buffer.alloc(4 + (n * 37) % (LARGEST_BYTES - 4), n & 0xff);
    bytes.writeUInt32BE(n, 0);
    return bytes;
  };
  socket.bind(0, local, async () => {
    for (let n = 0; n < Number(count); n++) {
      const sent = body(n);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, 1000);
        socket.once("message", (message) => {
          clearTimeout(timer);
          if (message.equals(sent)) echoed++;
          resolve();
        });
        socket.send(sent, PORT, remote);
      });
    }
    process.stdout.write(`${JSON.stringify({ sent: Number(count), echoed })}\n`);
    socket.close();
  });
}
