#!/usr/bin/env python3
"""The gateway's STUN and TURN server against clients of other hands: coturn's tools and aioice.

    crates/macula-gateway/interop/turn.py target/debug/macula

Needs the Debian package coturn (for its turnutils_* programs; its service need not run) and the
Python package aioice. Everything runs on loopback, on free ports.
"""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile

TOOLS = ["openssl", "turnutils_stunclient", "turnutils_natdiscovery", "turnutils_uclient", "turnutils_peer"]
HOST, OTHER = "127.0.0.1", "127.0.0.2"


def certificate(directory):
    """A certificate that nobody trusts, and its key."""
    cert, key = (os.path.join(directory, name) for name in ("cert.pem", "key.pem"))
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
                    "/CN=localhost", "-keyout", key, "-out", cert],
                   check=True, stderr=subprocess.DEVNULL)
    return cert, key


def free_port():
    """A port that is free for UDP and TCP at both addresses."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first:
            first.bind((HOST, 0))
            port = first.getsockname()[1]
            try:
                for kind, host in [(socket.SOCK_STREAM, HOST), (socket.SOCK_DGRAM, OTHER)]:
                    with socket.socket(socket.AF_INET, kind) as other:
                        other.bind((host, port))
                return port
            except OSError:
                continue


class Gateway:
    """A gateway with what a test needs in its configuration."""

    def __init__(self, macula, settings):
        self.macula, self.directory = macula, tempfile.TemporaryDirectory()
        self.port, self.turn, self.other = free_port(), free_port(), free_port()
        self.tls = free_port()
        cert, key = certificate(self.directory.name)
        self.env = dict(os.environ, MACULA_HOME=self.directory.name)
        config = os.path.join(self.directory.name, "gateway.toml")
        with open(config, "w") as file:
            file.write(f'listen = "{HOST}:{self.port}"\n[turn]\nlisten = "{HOST}:{self.turn}"\n')
            file.write(f'other_port = {self.other}\nother_ip = "{OTHER}"\n')
            file.write(f'tls_cert = "{cert}"\ntls_key = "{key}"\ntls_port = {self.tls}\n')
            file.write("\n".join(settings) + "\n")
        command = [macula, "gateway", "--config", config, "--json", "--until-stdin-closes"]
        self.process = subprocess.Popen(
            command, env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        listening = json.loads(self.process.stdout.readline())
        assert listening["turn"] == f"{HOST}:{self.turn}", listening

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(timeout=10)
        self.process.stdout.close()
        self.directory.cleanup()

    def run(self, *arguments):
        output = subprocess.run([self.macula, *arguments], env=self.env, check=True,
                                stdout=subprocess.PIPE, text=True, timeout=30).stdout
        return json.loads(output)

    def credentials(self):
        answer = self.run("turn-credentials", "-g", f"{HOST}:{self.port}", "-r", "lab", "--json")
        return answer["username"], answer["credential"]

    def counter(self, name):
        return self.run("status", "-g", f"{HOST}:{self.port}", "--json")[name]


def tool(*command):
    """Output and exit code; these tools print much and are not consistent about their codes."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    return done.stdout.decode(errors="replace"), done.returncode


def check(what, is_true, detail=""):
    print(f"{'ok  ' if is_true else 'FAIL'} {what}", flush=True)
    if not is_true:
        sys.exit(f"{what}\n{detail}")


def stun(gateway):
    output, _ = tool("turnutils_stunclient", "-p", str(gateway.turn), HOST)
    check("turnutils_stunclient is told its address",
          "UDP reflexive addr: 127.0.0.1:" in output and "error" not in output, output)
    output, _ = tool("turnutils_natdiscovery", "-m", "-f", "-p", str(gateway.turn), HOST)
    check("turnutils_natdiscovery finds no NAT that maps",
          "NAT with Endpoint Independent Mapping" in output
          or "No NAT detected" in output, output)
    check("turnutils_natdiscovery finds no NAT that filters",
          "Endpoint Independent Filtering" in output, output)


def uclient(gateway):
    user, password = gateway.credentials()
    peer_port = free_port()
    peer = subprocess.Popen(["turnutils_peer", "-p", str(peer_port), "-L", HOST],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        common = ["turnutils_uclient", "-c", "-m", "2", "-n", "50", "-p", str(gateway.turn)]
        over_tls = ["-t", "-S", "-p", str(gateway.tls)]
        to_peer = ["-e", HOST, "-r", str(peer_port)]
        for what, options in [
            ("channels by UDP", to_peer),
            ("indications by UDP", [*to_peer, "-s"]),
            ("channels by TCP", [*to_peer, "-t"]),
            ("indications by TCP", [*to_peer, "-s", "-t"]),
            ("channels by TLS", [*to_peer, *over_tls]),
            ("between its own allocations", ["-y"]),
        ]:
            output, _ = tool(*common, *options, "-u", user, "-w", password, HOST)
            is_whole = "tot_send_msgs=100, tot_recv_msgs=100" in output
            check(f"turnutils_uclient: {what}, none lost", is_whole, output)
        before = gateway.counter("turn_allocated")
        output, _ = tool(*common, *to_peer, "-m", "1", "-u", user, "-w", "wrong", HOST)
        refused = "Cannot complete Allocation" in output
        check("turnutils_uclient: a wrong password is refused", refused, output)
        check("nothing was allocated for it", gateway.counter("turn_allocated") == before)
    finally:
        peer.terminate()
        peer.wait()


def forbidden(gateway):
    user, password = gateway.credentials()
    output, _ = tool("turnutils_uclient", "-c", "-m", "1", "-n", "1", "-p", str(gateway.turn),
                     "-e", HOST, "-r", "9", "-u", user, "-w", password, HOST)
    check("a peer at 127.0.0.1 is refused by default", "403" in output, output)
    check("and counted", gateway.counter("turn_refused_peer") > 0)


async def ice_pair(gateway, transport):
    import aioice

    user, password = gateway.credentials()
    options = dict(turn_server=(HOST, gateway.turn), turn_username=user, turn_password=password,
                   turn_transport=transport, transport_policy=aioice.TransportPolicy.RELAY)
    first = aioice.Connection(ice_controlling=True, **options)
    second = aioice.Connection(ice_controlling=False, **options)
    try:
        for connection in (first, second):
            await connection.gather_candidates()
            assert [it.type for it in connection.local_candidates] == ["relay"]
        for one, other in [(first, second), (second, first)]:
            for candidate in one.local_candidates:
                await other.add_remote_candidate(candidate)
            await other.add_remote_candidate(None)
            other.remote_username, other.remote_password = one.local_username, one.local_password
        await asyncio.gather(first.connect(), second.connect())
        for number in range(100):
            await first.send(b"ping %d" % number)
            assert await second.recv() == b"ping %d" % number
            await second.send(b"pong %d" % number)
            assert await first.recv() == b"pong %d" % number
    finally:
        await first.close()
        await second.close()


def main():
    missing = [name for name in TOOLS if not shutil.which(name)]
    try:
        import aioice  # noqa: F401
    except ImportError:
        missing.append("aioice")
    if missing:
        sys.exit(f"missing: {', '.join(missing)} (apt install coturn; pip install aioice)")
    macula = os.path.abspath(sys.argv[1])
    with Gateway(macula, ["allow_loopback = true"]) as gateway:
        stun(gateway)
        uclient(gateway)
        for transport in ("udp", "tcp"):
            asyncio.run(asyncio.wait_for(ice_pair(gateway, transport), 60))
            check(f"aioice: two agents reach each other by relays alone, {transport}", True)
        check("all data went out", gateway.counter("turn_unsent") == 0)
    with Gateway(macula, []) as gateway:
        forbidden(gateway)


if __name__ == "__main__":
    main()
