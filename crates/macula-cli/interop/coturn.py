#!/usr/bin/env python3
"""Links between our endpoints through TURN servers: coturn, and the gateway's own. Needs root.

    crates/macula-cli/interop/coturn.py target/debug/macula

Needs the Debian packages coturn, openssl and iproute2. Three namespaces: the internet with a gateway
and coturn, and two hosts that reach it but not each other.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time

NET, ONE, TWO = (f"mct{os.getpid()}{name}" for name in ("n", "a", "b"))
SERVER, USER, PASSWORD = "198.18.0.1", "carol", "open sesame"
PATIENCE = 40


def run(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def inside(namespace, *command):
    return run("ip", "netns", "exec", namespace, *command)


def build():
    for namespace in (NET, ONE, TWO):
        run("ip", "netns", "add", namespace)
        inside(namespace, "ip", "link", "set", "lo", "up")
    # What one host sends to the other ends here.
    inside(NET, "sysctl", "-qw", "net.ipv4.ip_forward=0")
    inside(NET, "ip", "addr", "add", f"{SERVER}/32", "dev", "lo")
    for number, host in enumerate((ONE, TWO), 1):
        run("ip", "link", "add", f"h{number}", "netns", NET, "type", "veth", "peer", "name", "net",
            "netns", host)
        for namespace, link, address in [(NET, f"h{number}", 1), (host, "net", 2)]:
            inside(namespace, "ip", "addr", "add", f"198.18.{number}.{address}/24", "dev", link)
            inside(namespace, "ip", "link", "set", link, "up")
        inside(host, "ip", "route", "add", "default", "via", f"198.18.{number}.1")


def clean():
    for namespace in (NET, ONE, TWO):
        subprocess.run(["ip", "netns", "del", namespace], stderr=subprocess.DEVNULL)


def check(what, is_true, detail=""):
    print(f"{'ok  ' if is_true else 'FAIL'} {what}", flush=True)
    if not is_true:
        sys.exit(f"{what}\n{detail}")


class Program:
    """One of our programs, or coturn; its lines of JSON are events."""

    all = []

    def __init__(self, namespace, command, env=None):
        self.lines, self.seen = queue.Queue(), []
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, *command], env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.all.append(self.process)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.lines.put(line)

    def until(self, what, wanted):
        end = time.monotonic() + PATIENCE
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                sys.exit(f"{what}: not within {PATIENCE} s; last lines:\n" + "".join(self.seen[-20:]))
            self.seen.append(line)
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if wanted(event):
                return event

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait(timeout=20)


def coturn(directory):
    cert, key = (os.path.join(directory, name) for name in ("cert.pem", "key.pem"))
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
                    f"/CN={SERVER}", "-addext", f"subjectAltName=IP:{SERVER}",
                    "-addext", "basicConstraints=critical,CA:FALSE",
                    "-keyout", key, "-out", cert],
                   check=True, stderr=subprocess.DEVNULL)
    program = Program(NET, [
        "turnserver", "-n", "--no-cli", "--no-software-attribute", "-L", SERVER, "-E", SERVER,
        "-p", "3478", "--tls-listening-port", "5349", "--cert", cert, "--pkey", key,
        "--lt-cred-mech", "-u", f"{USER}:{PASSWORD}", "-r", "coturn", "--log-file", "stdout",
        "--pidfile", os.path.join(directory, "pid"), "--userdb", os.path.join(directory, "db")])
    end = time.monotonic() + PATIENCE
    while True:
        # The tool waits for ever when nobody listens yet.
        probe = subprocess.run(["ip", "netns", "exec", ONE, "timeout", "1", "turnutils_stunclient",
                                SERVER], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if b"reflexive addr" in probe.stdout:
            return program, cert
        if time.monotonic() > end:
            sys.exit("coturn does not answer")
        time.sleep(0.2)


class World:
    def __init__(self, macula, directory, cert):
        self.macula, self.directory = macula, directory
        self.env = dict(os.environ, MACULA_HOME=directory, SSL_CERT_FILE=cert)

    def gateway(self, *settings):
        config = os.path.join(self.directory, "gateway.toml")
        with open(config, "w") as file:
            file.write(f'listen = "{SERVER}:4433"\n' + "\n".join(settings) + "\n")
        gateway = Program(NET, [self.macula, "gateway", "--config", config, "--json",
                                "--until-stdin-closes"], self.env)
        gateway.until("the gateway", lambda event: "turn" in event or "listening" in str(event))
        return gateway

    def lab(self, host, role, *options, password=PASSWORD):
        env = dict(self.env, MACULA_TURN_USER=USER, MACULA_TURN_PASSWORD=password)
        return Program(host, [self.macula, "lab", role, "-g", f"{SERVER}:4433", "-r", "lab",
                              "--json", "--interval", "50ms", *options], env)


def is_turn(event):
    return event.get("event") == "path" and event["path"] == "turn"


def through(world, what, initiator=(), responder=(), own_turn=()):
    """A link gets a path by TURN, and lives on it when the gateway is killed, if that is not it."""
    turn = own_turn or ('listen = "198.18.0.1:3479"',)
    gateway = world.gateway("[turn]", *turn)
    two = world.lab(TWO, "responder", *responder)
    two.until("the responder", lambda event: event["event"] == "ready")
    one = world.lab(ONE, "initiator", *initiator)
    first = one.until("a link", lambda event: event["event"] == "connected")
    path = one.until(what, is_turn)
    two.until(what, is_turn)
    check(f"{what}: a path after {path['ms'] - first['ms']} ms, "
          f"{path['remote']} by {path.get('server', 'the peer`s server')}", True)
    at = one.until("a beat", lambda event: event["event"] == "beat")["n"]
    if not own_turn:
        # Nothing is relayed by the gateway any more, nor arranged.
        gateway.end(signal.SIGKILL)
    one.until("beats", lambda event: event["event"] == "beat" and event["n"] > at + 100)
    one.process.send_signal(signal.SIGINT)
    done = one.until("the end", lambda event: event["event"] == "done")
    how = "" if own_turn else ", without the gateway"
    check(f"{what}: {done['received']} beats, none lost{how}",
          done["lost"] == done["duplicated"] == done["reordered"] == 0 and done["path"] == "turn", done)
    two.end()
    one.process.wait(timeout=20)
    if gateway.process.poll() is None:
        gateway.end()


def main():
    macula = os.path.abspath(sys.argv[1])
    clean()
    try:
        build()
        with tempfile.TemporaryDirectory() as directory:
            server, cert = coturn(directory)
            world = World(macula, directory, cert)
            udp, tcp = (f"turn:{SERVER}?transport={name}" for name in ("udp", "tcp"))
            through(world, "coturn of who dials, UDP", initiator=("--turn-server", udp))
            through(world, "coturn of who is dialled, UDP", responder=("--turn-server", udp))
            through(world, "coturn of both, UDP and TCP", ("--turn-server", udp),
                    ("--turn-server", tcp))
            through(world, "coturn, TCP", initiator=("--turn-server", tcp))
            through(world, "coturn, TLS", initiator=("--turn-server", f"turns:{SERVER}"))
            through(world, "coturn after a server that is not there",
                    initiator=("--turn-server", f"turn:{SERVER}:9,{udp}"))
            server.end()
            own = ('listen = "198.18.0.1:3478"', "allow_private = true")
            through(world, "the gateway's own", initiator=("--turn-server", "gateway"), own_turn=own)
    finally:
        for process in Program.all:
            if process.poll() is None:
                process.kill()
                process.wait()
        clean()


if __name__ == "__main__":
    main()
