import { deepStrictEqual, match, ok, strictEqual } from "node:assert/strict";
import { forward, proxyAt, reverse } from "./service_values.ts";

Deno.test("a proxy is given where it listens, who may use it, or both", () => {
  const usual = { host: "127.0.0.1", port: 1080 };
  const rows = [
    ["1080", { listen: usual, usersFile: undefined }, "127.0.0.1:1080"],
    ["81", { listen: { host: "127.0.0.1", port: 81 }, usersFile: undefined }, "127.0.0.1:81"],
    ["0.0.0.0:3128", { listen: { host: "0.0.0.0", port: 3128 }, usersFile: undefined }, "0.0.0.0:3128"],
    ["[::1]:3128", { listen: { host: "::1", port: 3128 }, usersFile: undefined }, "[::1]:3128"],
    ["/etc/users", { listen: usual, usersFile: "/etc/users" }, "127.0.0.1:1080,/etc/users"],
    ["users,old", { listen: usual, usersFile: "users,old" }, "127.0.0.1:1080,users,old"],
    ["81,users", { listen: { host: "127.0.0.1", port: 81 }, usersFile: "users" }, "127.0.0.1:81,users"],
    ["81,users,old", { listen: { host: "127.0.0.1", port: 81 }, usersFile: "users,old" }, "127.0.0.1:81,users,old"],
    ["[::]:81,./81", { listen: { host: "::", port: 81 }, usersFile: "./81" }, "[::]:81,./81"],
  ] as const;
  for (const [text, expected, written] of rows) {
    const result = proxyAt(1080).parse(text);
    ok(result.success, text);
    deepStrictEqual(result.value, expected, text);
    strictEqual(proxyAt(1080).format(result.value), written);
    const again = proxyAt(1080).parse(written);
    ok(again.success, written);
    deepStrictEqual(again.value, expected, written);
  }
  for (const text of ["", "0", "65536", "123456", ",users", "1080,", "0,users", "127.0.0.1:1080,"]) {
    ok(!proxyAt(1080).parse(text).success, text);
  }
});

Deno.test("a forward leads from a port of this host to a host and port", () => {
  const rows = [
    ["8080=10.9.0.2:80", "tcp:127.0.0.1:8080=10.9.0.2:80"],
    ["tcp:8080=web.example:80", "tcp:127.0.0.1:8080=web.example:80"],
    ["udp:53=[fd09::2]:53", "udp:127.0.0.1:53=[fd09::2]:53"],
    ["0.0.0.0:1=a:65535", "tcp:0.0.0.0:1=a:65535"],
    ["udp:[::1]:53=10.9.0.2:53", "udp:[::1]:53=10.9.0.2:53"],
    ["tcp:192.0.2.1:8080=10-9.example:80", "tcp:192.0.2.1:8080=10-9.example:80"],
  ] as const;
  for (const [text, written] of rows) {
    const result = forward().parse(text);
    ok(result.success, text);
    strictEqual(forward().format(result.value), written);
    const again = forward().parse(written);
    ok(again.success, written);
    deepStrictEqual(again.value, result.value, written);
  }
  for (
    const text of [
      ...["", "8080", "8080=", "=10.9.0.2:80", "8080=10.9.0.2", "8080=10.9.0.2:0", "8080=10.9.0.2:65536", "0=a:1"],
      // A name does not end in a number, brackets are for IPv6, and IPv6 stands in brackets.
      ...["8080=300.0.0.1:80", "8080=10.9.0:80", "8080=[10.9.0.2]:80", "8080=fd09::2:80", "8080=[web.example]:80"],
      // Where it listens is an address.
      ...["localhost:8080=10.9.0.2:80", "300.0.0.1:8080=10.9.0.2:80", "::1:8080=10.9.0.2:80"],
      ...["sctp:8080=10.9.0.2:80", "UDP:8080=10.9.0.2:80", "8080=10.9.0.2:80=1", "8080=a b:80", "8080=a/b:80"],
    ]
  ) ok(!forward().parse(text).success, text);
});

Deno.test("a reverse forward leads from a port inside to a host and port of this side", () => {
  const rows = [
    ["80=127.0.0.1:8080", "tcp:80=127.0.0.1:8080"],
    ["udp:53=[::1]:53", "udp:53=[::1]:53"],
    ["tcp:22=git.example:2222", "tcp:22=git.example:2222"],
  ] as const;
  for (const [text, written] of rows) {
    const result = reverse().parse(text);
    ok(result.success, text);
    strictEqual(reverse().format(result.value), written);
    const again = reverse().parse(written);
    ok(again.success, written);
    deepStrictEqual(again.value, result.value, written);
  }
  for (const text of ["", "80", "0=a:1", "65536=a:1", "80=a", "80=a:0", "udp:=a:1", "a:80=b:80", "[::1]:80=a:1"]) {
    ok(!reverse().parse(text).success, text);
  }
});

Deno.test("whoever names an inner address to listen on is told that the port is on all of them", () => {
  for (const text of ["10.9.0.1:80=127.0.0.1:8080", "udp:10.9.0.1:53=127.0.0.1:53"]) {
    const result = reverse().parse(text);
    ok(!result.success, text);
    match(JSON.stringify(result.error), /name the port alone/);
  }
});
