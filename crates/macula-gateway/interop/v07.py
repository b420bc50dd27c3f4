#!/usr/bin/env python3
"""The door for v0.7 clients against a QUIC client of other hands: aioquic, with its own codec.

    crates/macula-gateway/interop/v07.py target/debug/macula [--quick]

Needs the Python package aioquic. Everything runs on loopback, on free ports. --quick leaves out the
70 seconds of silence.
"""

import asyncio
import hashlib
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time

from aioquic.asyncio import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StreamDataReceived

HOST = "127.0.0.1"
REALM = "com.example.lab"
CONNECT, PING, PONG, PUBLISH, SUBSCRIBE, UNSUBSCRIBE = 0x01, 0x03, 0x04, 0x10, 0x11, 0x12
CALL, REPLY, RPC_ROUTE, FIND_NODE, FIND_NODE_REPLY = 0x20, 0x21, 0x23, 0x40, 0x41
STORE, FIND_VALUE, FIND_VALUE_REPLY = 0x42, 0x43, 0x44


# --- the dialect, written from its description ---------------------------------------------------

def pack(value):
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        for low, high, sign, form in [
                (0, 0x7f, b"", ">B"), (0, 0xff, b"\xcc", ">B"), (0, 0xffff, b"\xcd", ">H"),
                (0, 0xffffffff, b"\xce", ">I"), (0, 2**64 - 1, b"\xcf", ">Q"), (-32, -1, b"", ">b"),
                (-2**63, -1, b"\xd3", ">q")]:
            if low <= value <= high:
                return sign + struct.pack(form, value)
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        for limit, sign, form in [(0xff, b"\xc4", ">B"), (0xffff, b"\xc5", ">H"), (2**32, b"\xc6", ">I")]:
            if len(value) <= limit:
                return sign + struct.pack(form, len(value)) + value
    if isinstance(value, list):
        if not value:
            return b"\xa0"
        return b"\xdc" + struct.pack(">H", len(value)) + b"".join(map(pack, value))
    if isinstance(value, dict):
        items = b"".join(pack(key) + pack(item) for key, item in value.items())
        return bytes([0x80 | len(value)]) + items
    raise TypeError(value)


def unpack(data, at=0):
    sign = data[at]
    at += 1

    def number(form):
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)

    def many(count, at):
        items = []
        for _ in range(count):
            item, at = unpack(data, at)
            items.append(item)
        return items, at

    if sign <= 0x7f:
        return sign, at
    if sign >= 0xe0:
        return sign - 256, at
    if sign in (0xc0, 0xc2, 0xc3):
        return {0xc0: None, 0xc2: False, 0xc3: True}[sign], at
    forms = {0xcc: ">B", 0xcd: ">H", 0xce: ">I", 0xcf: ">Q", 0xd0: ">b", 0xd1: ">h", 0xd2: ">i",
             0xd3: ">q", 0xcb: ">d"}
    if sign in forms:
        return number(forms[sign])
    if sign in (0xc4, 0xc5, 0xc6):
        length, at = number({0xc4: ">B", 0xc5: ">H", 0xc6: ">I"}[sign])
        return data[at:at + length], at + length
    if sign == 0xa0:
        return [], at
    if 0x80 <= sign <= 0x8f or sign in (0xde, 0xdf):
        count = sign & 0x0f
        if sign >= 0xde:
            count, at = number(">H" if sign == 0xde else ">I")
        items, at = many(2 * count, at)
        assert all(isinstance(key, bytes) for key in items[::2]), "keys are bin"
        return {key.decode(): item for key, item in zip(items[::2], items[1::2])}, at
    if 0x90 <= sign <= 0x9f or sign in (0xdc, 0xdd):
        count = sign & 0x0f
        if sign >= 0xdc:
            count, at = number(">H" if sign == 0xdc else ">I")
        return many(count, at)
    raise ValueError(f"a v0.7 program does not take {sign:#x} for what it is")


def frame(kind, fields):
    payload = pack(fields)
    return struct.pack(">BBBBI", 1, kind, 0, 0, len(payload)) + payload


def key(text):
    return hashlib.sha256(text.encode()).digest()


# --- a client --------------------------------------------------------------------------------------

class Protocol(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.buffers, self.frames, self.ended, self.terminated = {}, asyncio.Queue(), set(), asyncio.Event()
        self.changed = asyncio.Event()

    def quic_event_received(self, event):
        if isinstance(event, StreamDataReceived):
            buffer = self.buffers.setdefault(event.stream_id, bytearray())
            buffer += event.data
            while len(buffer) >= 8:
                version, kind, _, _, length = struct.unpack_from(">BBBBI", buffer)
                if len(buffer) < 8 + length:
                    break
                assert version == 1
                value, end = unpack(bytes(buffer[8:8 + length]))
                assert end == length, "one value and nothing behind it"
                self.frames.put_nowait((event.stream_id, kind, value))
                del buffer[:8 + length]
            if event.end_stream:
                self.ended.add(event.stream_id)
        elif isinstance(event, ConnectionTerminated):
            self.terminated.set()
        self.changed.set()


class Client:
    """What the original does: one stream, CONNECT first. `marked`: each SUBSCRIBE has its STORE."""

    def __init__(self, port, node_id=None, realm=REALM, marked=False, idle=30.0):
        self.port, self.realm, self.marked, self.idle = port, realm, marked, idle
        self.node_id = node_id or os.urandom(32)
        self.message_id = 1

    async def __aenter__(self):
        settings = QuicConfiguration(is_client=True, alpn_protocols=["macula"],
                                     verify_mode=ssl.CERT_NONE, idle_timeout=self.idle)
        self.context = connect(HOST, self.port, configuration=settings, create_protocol=Protocol)
        self.quic = await self.context.__aenter__()
        self.stream = self.quic._quic.get_next_available_stream_id()
        return self

    async def __aexit__(self, *_):
        self.quic.close()
        await self.context.__aexit__(None, None, None)

    def write(self, data, stream=None, end=False):
        self.quic._quic.send_stream_data(self.stream if stream is None else stream, data, end)
        self.quic.transmit()

    def send(self, kind, fields, stream=None):
        self.write(frame(kind, fields), stream)

    def connect_frame(self):
        return frame(CONNECT, {"version": "1.0", "node_id": self.node_id, "realm_id": self.realm,
                               "capabilities": ["pubsub", "rpc"], "endpoint": "https://localhost:9443"})

    async def connect(self):
        self.write(self.connect_frame())
        pong = await self.expect(PONG)
        assert pong["timestamp"] == pong["server_time"] and abs(pong["timestamp"] / 1000 - time.time()) < 60
        return self

    def store(self, name, value):
        value = {"node_id": self.node_id, "endpoint": f"https://{HOST}:{self.port}", "ttl": 300, **value}
        self.send(STORE, {"type": "store", "key": key(name), "value": value})

    async def subscribe(self, topic):
        self.send(SUBSCRIBE, {"topics": [topic], "qos": 0})
        if self.marked:
            self.store(topic, {})
        # Nothing answers; a PONG says that all before it was read.
        await self.ping()

    async def ping(self, stream=None):
        stamp = int.from_bytes(os.urandom(5), "big")
        self.send(PING, {"timestamp": stamp}, stream)
        assert (await self.expect(PONG, stream))["timestamp"] == stamp

    def publish(self, topic, payload, qos=0, again=False):
        if not again:
            self.message_id += 2
        self.send(PUBLISH, {"topic": topic, "payload": payload, "qos": qos, "retain": False,
                            "message_id": self.message_id.to_bytes(16, "big")})

    async def expect(self, kind, stream=None, seconds=10):
        """The next frame of a kind; what else comes meanwhile must not."""
        stream = self.stream if stream is None else stream
        found = await asyncio.wait_for(self.quic.frames.get(), seconds)
        assert found[0] == stream and found[1] == kind, (stream, hex(kind), found)
        return found[2]

    async def silence(self, seconds=1.5):
        try:
            found = await asyncio.wait_for(self.quic.frames.get(), seconds)
        except asyncio.TimeoutError:
            return
        raise AssertionError(f"nothing should come: {found}")

    async def stream_ends(self, stream=None, seconds=5):
        stream = self.stream if stream is None else stream
        deadline = time.monotonic() + seconds
        while stream not in self.quic.ended:
            self.quic.changed.clear()
            await asyncio.wait_for(self.quic.changed.wait(), deadline - time.monotonic())


# --- the gateway and native peers ----------------------------------------------------------------

def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind((HOST, 0))
        return found.getsockname()[1]


class Gateway:
    def __init__(self, macula, settings="", realms=(REALM,)):
        self.macula, self.directory = macula, tempfile.TemporaryDirectory()
        self.env = dict(os.environ, MACULA_HOME=self.directory.name)
        self.membership = ["-r", REALM]
        config = os.path.join(self.directory.name, "gateway.toml")
        with open(config, "w") as file:
            file.write(f'listen = "{HOST}:0"\nrealms = {json.dumps(list(realms))}\n[turn]\nenabled = false\n')
            file.write(f'[v07]\nlisten = "{HOST}:0"\n{settings}')
        self.process = subprocess.Popen(
            [macula, "gateway", "--config", config, "--json", "--until-stdin-closes"],
            env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        listening = json.loads(self.process.stdout.readline())
        self.address = f'{listening["id"]}@{listening["addr"]}'
        self.v07 = int(listening["v07"].rsplit(":", 1)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(timeout=10)
        self.process.stdout.close()
        self.directory.cleanup()

    def command(self, name, *arguments):
        return [self.macula, name, "-g", self.address, *self.membership, *arguments]

    async def start(self, name, *arguments):
        return await asyncio.create_subprocess_exec(
            *self.command(name, *arguments), env=self.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    async def run(self, name, *arguments):
        process = await self.start(name, *arguments)
        output, _ = await asyncio.wait_for(process.communicate(), 60)
        return output.decode(), process.returncode

    async def status(self):
        output, code = await self.run("status", "--json")
        assert code == 0, output
        return json.loads(output)

    async def until(self, what, is_true, seconds=20):
        deadline = time.monotonic() + seconds
        while True:
            status = await self.status()
            if is_true(status):
                return status
            assert time.monotonic() < deadline, f"{what} did not come: {status}"
            await asyncio.sleep(0.1)


def of_realm(status, field):
    return status["realms"][0][field] if status["realms"] else 0


# --- what must hold --------------------------------------------------------------------------------

async def publishes(gateway):
    async with Client(gateway.v07) as one, Client(gateway.v07) as other:
        await one.connect()
        await other.connect()
        await one.subscribe("sensors.*.temp")
        await one.subscribe("**.temp")
        native = await gateway.start("sub", "sensors.**", "-C", "2")
        await gateway.until("subscriptions", lambda it: of_realm(it, "subscriptions") >= 3)
        for _ in range(3):
            other.publish("sensors.room1.temp", "21.5", qos=1, again=_ > 0)
        got = await one.expect(PUBLISH)
        assert got == {"topic": b"sensors.room1.temp", "payload": b"21.5", "qos": 1, "retain": False,
                       "message_id": other.message_id.to_bytes(16, "big")}, got
        await one.silence()
        other.publish("sensors.room2.temp", b"\xff\x00")
        assert (await one.expect(PUBLISH))["payload"] == b"\xff\x00"
        output, _ = await asyncio.wait_for(native.communicate(), 20)
        assert b"21.5" in output, output
        check("publishes reach clients once each, with the same five fields, and native peers")

        _, code = await gateway.run("pub", "sensors.hall.temp", "19")
        assert code == 0
        got = await one.expect(PUBLISH)
        assert (got["topic"], got["payload"], got["retain"]) == (b"sensors.hall.temp", b"19", False), got
        assert len(got["message_id"]) == 16 and got["qos"] == 0
        _, code = await gateway.run("pub", "sensors.hall.temp", "20", "-q", "1")
        assert code == 0 and (await one.expect(PUBLISH))["payload"] == b"20"
        await one.silence()
        check("native publishes reach a client once, though two of its patterns match")

        one.send(UNSUBSCRIBE, {"topics": ["sensors.*.temp", "**.temp"]})
        await one.ping()
        other.publish("sensors.room1.temp", "gone")
        await gateway.run("pub", "sensors.hall.temp", "gone")
        await one.silence()
        check("UNSUBSCRIBE ends it")


async def legacy(gateway):
    async with Client(gateway.v07, marked=True) as old, Client(gateway.v07) as new:
        await old.connect()
        await new.connect()
        await old.subscribe("news")
        await new.subscribe("news")
        new.publish("news", "x")
        assert (await new.expect(PUBLISH))["payload"] == b"x"
        await old.silence()
        status = await gateway.status()
        assert status["v07_clients_legacy"] == 1 and status["v07_held_back"] >= 1, status
        check("legacy_delivery auto: who shows the mark of v0.7.4 to v0.7.14 is spared, and counted")


async def calls(gateway):
    native = await gateway.start("serve", "math.native", "--command", "tr 1 7")
    await gateway.until("a registration", lambda it: of_realm(it, "registrations") >= 1)
    async with Client(gateway.v07) as client, Client(gateway.v07) as provider:
        await client.connect()
        await provider.connect()
        call = {"call_id": (1).to_bytes(16, "big"), "realm": REALM}
        client.send(CALL, {**call, "procedure": "math.native", "args": '{"a":1}'})
        got = await client.expect(REPLY)
        assert got["call_id"] == call["call_id"] and got["result"].strip() == b'{"a":7}', got
        check("a client's CALL reaches a native provider")

        client.send(CALL, {**call, "procedure": "no.such", "args": "{}"})
        got = await client.expect(REPLY)
        assert got["error"] == {"code": b"no_such_procedure",
                                "message": b"No handler registered for no.such"}, got
        route = {"destination_node_id": os.urandom(32), "source_node_id": client.node_id, "hop_count": 0,
                 "max_hops": 10, "payload_type": "call",
                 "payload": {**call, "procedure": "math.native", "args": "1"}}
        client.send(RPC_ROUTE, route)
        got = await client.expect(RPC_ROUTE)
        assert got["destination_node_id"] == client.node_id and got["payload_type"] == b"reply", got
        assert got["payload"]["result"].strip() == b"7", got
        check("no_such_procedure, and RPC_ROUTE with its answer")

        provider.store("math.old", {"metadata": {}})
        await gateway.until("the offer", lambda it: it["v07_procedures"] == 1)
        await gateway.until("the registration", lambda it: of_realm(it, "registrations") >= 2)
        asked = asyncio.create_task(gateway.run("call", "math.old", "[1,2]"))
        got = await provider.expect(CALL)
        assert (got["procedure"], got["args"], got["realm"]) == (b"math.old", b"[1,2]", REALM.encode()), got
        provider.send(REPLY, {"call_id": got["call_id"], "result": "3"})
        output, code = await asked
        assert code == 0 and output.strip() == "3", (output, code)
        asked = asyncio.create_task(gateway.run("call", "math.old", "[1,2]"))
        got = await provider.expect(CALL)
        provider.send(REPLY, {"call_id": got["call_id"], "error": {"code": "tired", "message": "not now"}})
        _, code = await asked
        assert code == 7, code
        check("a native peer's call reaches a client, with result and fault")

        client.send(CALL, {**call, "procedure": "math.old", "args": "5"})
        got = await provider.expect(CALL)
        provider.send(REPLY, {"call_id": got["call_id"], "result": "6"})
        assert (await client.expect(REPLY))["result"] == b"6"
        provider.store("secret.name", {"metadata": {}})
        await provider.ping()
        client.send(CALL, {**call, "procedure": "secret.name", "args": ""})
        got = await provider.expect(CALL)
        provider.send(REPLY, {"call_id": got["call_id"], "result": "found"})
        assert (await client.expect(REPLY))["result"] == b"found"
        check("clients call each other, also by names that are configured nowhere")
    native.terminate()
    await native.wait()


async def values(gateway):
    async with Client(gateway.v07) as one, Client(gateway.v07) as other:
        await one.connect()
        await other.connect()
        other.send(FIND_VALUE, {"type": "find_value", "key": key("kept")})
        got = await other.expect(FIND_VALUE_REPLY)
        assert got["result"] == b"nodes" and {it["node_id"] for it in got["nodes"]} >= {one.node_id}, got
        one.store("kept", {"metadata": {"v": "1"}})
        await one.ping()
        other.send(FIND_VALUE, {"type": "find_value", "key": key("kept")})
        got = await other.expect(FIND_VALUE_REPLY)
        assert got["result"] == b"value" and got["value"]["metadata"] == {"v": b"1"}, got
        other.send(FIND_NODE, {"type": "find_node", "target": one.node_id})
        got = await other.expect(FIND_NODE_REPLY)
        assert got["nodes"][0]["node_id"] == one.node_id, got
        check("STORE, FIND_VALUE and FIND_NODE")


async def frames(gateway):
    async with Client(gateway.v07) as client:
        for byte in client.connect_frame():
            client.write(bytes([byte]))
            await asyncio.sleep(0)
        await client.expect(PONG)
        ping = frame(PING, {"timestamp": 7})
        client.write(ping + ping + ping[:5])
        await asyncio.sleep(0.05)
        client.write(ping[5:])
        for _ in range(3):
            assert (await client.expect(PONG))["timestamp"] == 7
        bad = [b"\x02" + ping[1:], b"\x01\x7e" + ping[2:], b"\x01\x10\0\0\0\0\0\1\xc1", b"\x01\x03\0\0\0\0\0\0"]
        client.write(b"".join(bad) + ping)
        assert (await client.expect(PONG))["timestamp"] == 7
        second = client.quic._quic.get_next_available_stream_id()
        client.write(b"", second)
        await client.ping(second)
        await client.ping()
        client.write(b"", second, end=True)
        await client.stream_ends(second)
        await client.ping()
        check("frames in any cut; what is no frame is skipped; a second stream is answered there; FIN by FIN")


async def realms(gateway):
    async with Client(gateway.v07, realm="com.example.other") as stranger, Client(gateway.v07) as client:
        stranger.write(stranger.connect_frame())
        await stranger.stream_ends()
        await stranger.silence(0.5)
        await client.connect()
        await client.ping()
        check("another realm: FIN and no PONG, and others are served")
    settings = QuicConfiguration(is_client=True, alpn_protocols=["other"], verify_mode=ssl.CERT_NONE)
    try:
        async with connect(HOST, gateway.v07, configuration=settings):
            raise AssertionError("another ALPN is accepted")
    except ConnectionError:
        check("another ALPN is refused")


async def reconnect(gateway):
    node_id = os.urandom(32)
    async with Client(gateway.v07, node_id) as old, Client(gateway.v07) as other:
        await old.connect()
        await other.connect()
        await old.subscribe("again")
        # As after a crash: the stream ends, the gateway's half follows, and the node comes anew.
        old.write(b"", end=True)
        await old.stream_ends()
        async with Client(gateway.v07, node_id) as new:
            await new.connect()
            await asyncio.wait_for(old.quic.terminated.wait(), 5)
            await new.subscribe("again")
            other.publish("again", "x")
            assert (await new.expect(PUBLISH))["payload"] == b"x"
            status = await gateway.status()
            assert status["v07_replaced"] >= 1 and status["v07_clients"] == 2, status
    check("the newest connection of a node id wins")


async def limits(macula):
    with Gateway(macula, "connections_per_address_max = 2\nbytes_per_second_per_client = \"64KiB\"\n") as gateway:
        async with Client(gateway.v07) as one, Client(gateway.v07) as two:
            await one.connect()
            await two.connect()
            try:
                async with Client(gateway.v07):
                    raise AssertionError("a third connection from one address is accepted")
            except ConnectionError:
                pass
            status = await gateway.status()
            assert status["v07_connections"] == 2 and status["v07_turned_away"] >= 1, status
            for number in range(40):
                one.publish("flood", b"x" * 4096)
            await gateway.until("the brake", lambda it: it["v07_slowed"] >= 1)
            await two.ping()
    check("connections of one address and the rate of a client are limited, and counted")


async def guarded(macula):
    with tempfile.TemporaryDirectory() as directory:
        file = lambda name: os.path.join(directory, name)
        env = dict(os.environ, MACULA_HOME=directory)

        def tell(*arguments):
            return subprocess.run([macula, *arguments], env=env, check=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, text=True).stdout.strip()

        realm = tell("realm", "new", REALM, "--out", file("root")).split()[-1]
        assert realm.startswith(REALM + "@"), realm
        # One each: programs with the same key push each other off the gateway.
        for name in ("listener", "other"):
            tell("keygen", "--out", file(name))
            tell("realm", "grant", "--root", file("root"), "--for", file(name), "--out", file(name + ".grant"))
        member = lambda name: ["--key", file(name), "--grant", file(name + ".grant")]
        with Gateway(macula, "", [realm, "com.example.open"]) as gateway:
            async with Client(gateway.v07) as client:
                client.write(client.connect_frame())
                await client.stream_ends()
                await client.silence(0.5)
        with Gateway(macula, f"realms = {json.dumps([realm])}\n", [realm]) as gateway:
            async with Client(gateway.v07) as client:
                await client.connect()
                await client.subscribe("hall.**")
                gateway.membership = member("listener")
                native = await gateway.start("sub", "old.**", "-C", "1")
                gateway.membership = member("other")
                await gateway.until("subscriptions", lambda it: of_realm(it, "subscriptions") >= 2)
                _, code = await gateway.run("pub", "hall.1", "inside")
                assert code == 0 and (await client.expect(PUBLISH))["payload"] == b"inside"
                client.publish("old.1", "from outside")
                output, _ = await asyncio.wait_for(native.communicate(), 20)
                assert b"from outside" in output, output
    check("a guarded realm is closed to the door unless it is named for it")


async def idle(gateway):
    async with Client(gateway.v07) as client:
        await client.connect()
        await client.subscribe("later")
        await asyncio.sleep(70)
        # aioquic's own limit is 30 s, as that of v0.7.4: only the gateway's packets keep it alive.
        await client.ping()
        async with Client(gateway.v07) as other:
            await other.connect()
            other.publish("later", "x")
            assert (await client.expect(PUBLISH))["payload"] == b"x"
        check("70 s of silence")


def check(what):
    print(f"ok   {what}", flush=True)


async def main():
    macula, quick = sys.argv[1], "--quick" in sys.argv[2:]
    with Gateway(macula, 'procedures = ["math.old"]\n') as gateway:
        silent = asyncio.create_task(idle(gateway)) if not quick else None
        await frames(gateway)
        for part in (realms, values):
            await part(gateway)
        if silent:
            # The rest counts clients.
            await silent
        await gateway.until("all to be gone", lambda it: it["v07_connections"] == 0)
        for part in (publishes, legacy, calls, reconnect):
            await part(gateway)
            await gateway.until("all to be gone", lambda it: it["v07_connections"] == 0)
        status = await gateway.status()
        assert status["v07_subscriptions"] == 0 and status["v07_procedures"] == 0, status
        assert status["v07_handshakes"] > 5 and status["v07_malformed"] == 0, status
        check("nothing is left of clients that are gone")
    await limits(macula)
    await guarded(macula)


if __name__ == "__main__":
    asyncio.run(main())
