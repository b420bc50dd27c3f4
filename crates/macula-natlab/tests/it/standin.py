#!/usr/bin/env python3
"""A stand-in for `macula`: gateway, responder and initiator with real UDP hole punching through a rendezvous.

It tells the same JSON lines as the real commands, punches with the ports that the gateway observed, and
falls back to being relayed by it. Enough to test the harness; nothing else.
"""
import json, os, re, select, socket, sys, time

BEGUN = time.monotonic()


def ms():
    return (time.monotonic() - BEGUN) * 1e3


def tell(**event):
    print(json.dumps(event), flush=True)


def gateway(listen):
    port = int(listen.rsplit(":", 1)[1])
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", port))
    tell(event="listening", id="standin", addr=listen)
    places = {}
    while True:
        ready, _, _ = select.select([sock, sys.stdin], [], [])
        if sys.stdin in ready and not sys.stdin.readline():
            return
        if sock not in ready:
            continue
        packet, place = sock.recvfrom(2048)
        message = json.loads(packet)
        places[message["from"]] = place
        other = places.get(message.get("to"))
        if other is None:
            continue
        if message["what"] == "meet":
            # Both hear where the other was seen.
            for to, seen in [(place, other), (other, place)]:
                text = json.dumps({"what": "try", "at": [seen[0].removeprefix("::ffff:"), seen[1]]})
                sock.sendto(text.encode(), to)
        else:
            sock.sendto(packet, other)


def peer(address, own, other, seconds, interval):
    host, port = re.fullmatch(r".*@\[?([^\]]*?)\]?:(\d+)", address).groups()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    relay = (host, int(port))
    direct, trying, seen = None, None, False
    sent, got, last, longest = 0, set(), None, 0.0
    due, until = time.monotonic(), time.monotonic() + seconds

    def say(message, place):
        try:
            sock.sendto(json.dumps(message).encode(), place)
        except OSError:
            pass

    tell(event="ready", id=own, ms=ms())
    while time.monotonic() < until:
        if time.monotonic() >= due:
            due += interval
            if other is None:
                say({"what": "hello", "from": own}, relay)
            elif not direct:
                say({"what": "meet", "from": own, "to": other}, relay)
            if trying and not direct:
                say({"what": "punch"}, trying)
            if other is not None:
                sent += 1
                say({"what": "beat", "from": own, "to": other, "n": sent}, direct or relay)
        if not select.select([sock], [], [], max(0.0, due - time.monotonic()))[0]:
            continue
        try:
            packet, place = sock.recvfrom(2048)
        except OSError:
            continue
        message = json.loads(packet)
        what = message["what"]
        if what == "try":
            trying = tuple(message["at"])
        elif what == "punch":
            # Its port may be another than the gateway saw.
            if not direct:
                say({"what": "punch"}, place)
            say({"what": "punched"}, place)
        elif what == "punched" and not direct:
            direct = place
            tell(event="path", path="direct", remote=f"{place[0]}:{place[1]}", ms=ms())
        elif what == "beat":
            say(message | {"what": "echo", "from": own, "to": message["from"]}, place)
        elif what == "echo":
            now = time.monotonic()
            path = "direct" if place == direct else "relayed"
            if not seen:
                seen = True
                tell(event="connected", path=path, ms=ms())
            longest = max(longest, now - (last or now))
            last = now
            got.add(message["n"])
            tell(event="beat", n=message["n"], ms=ms(), path=path)
    tell(event="done", sent=sent, received=len(got), lost=sent - len(got), duplicated=0, reordered=0,
         longest_silence_ms=longest * 1e3, path="direct" if direct else "relayed")


def main(arguments):
    value = lambda name: arguments[arguments.index(name) + 1]
    if arguments[0] == "gateway":
        gateway(value("--listen"))
    elif arguments[1] == "responder":
        peer(value("-g"), os.urandom(8).hex(), None, 3600, 0.1)
    else:
        peer(value("-g"), os.urandom(8).hex(), value("--peer"), float(value("--for")),
             float(value("--interval").removesuffix("ms")) / 1e3)


main(sys.argv[1:])
