#!/usr/bin/env python3
"""`macula netcheck` behind real NATs: Linux network namespaces with nftables. Needs root.

    crates/macula-cli/netns/netcheck.py target/debug/macula

Three namespaces: a host, its router, and the internet with a gateway at two addresses.
"""

import json
import os
import subprocess
import sys
import tempfile

NET, ROUTER, HOST = (f"mnc{os.getpid()}{name}" for name in ("n", "r", "h"))
GATEWAY, OTHER, WAN = "198.18.0.1", "198.18.0.2", "198.18.1.2"
TRANSLATE = "type nat hook postrouting priority srcnat; oifname wan"
ESTABLISHED = "iifname wan ct state established,related accept; iifname wan drop"

# Rules of the router, whether the host's address is private, and what must be found.
KINDS = {
    "open": ("", False, dict(mapping="none", filtering="endpoint-independent", hairpin=None)),
    "firewall": (
        f"chain f {{ type filter hook forward priority 0; {ESTABLISHED}; }}", False,
        dict(mapping="none", filtering="address-and-port-dependent"),
    ),
    # Keeps the mapping for all destinations, but not the port.
    "portrestricted": (
        f"chain n {{ {TRANSLATE} meta l4proto udp "
        f"snat to {WAN} : jhash ip saddr . udp sport mod 16384 seed 0x7 offset 20000; }} "
        f"chain f {{ type filter hook forward priority 0; {ESTABLISHED}; }} "
        "chain i { type filter hook input priority 0; iifname wan drop; }", True,
        dict(mapping="endpoint-independent", filtering="address-and-port-dependent",
             preserves_port=False, udp_blocked=False, hairpin=False),
    ),
    # The usual home router.
    "linux": (
        f"chain n {{ {TRANSLATE} masquerade; }} "
        f"chain f {{ type filter hook forward priority 0; {ESTABLISHED}; }} "
        "chain i { type filter hook input priority 0; iifname wan drop; }", True,
        dict(mapping="endpoint-independent", filtering="address-and-port-dependent",
             preserves_port=True),
    ),
    "symmetric": (
        f"chain n {{ {TRANSLATE} masquerade fully-random; }} "
        f"chain f {{ type filter hook forward priority 0; {ESTABLISHED}; }}", True,
        dict(mapping="address-and-port-dependent", filtering="address-and-port-dependent",
             preserves_port=False),
    ),
    "udpblock": (
        f"chain n {{ {TRANSLATE} masquerade; }} "
        "chain f { type filter hook forward priority 0; meta l4proto udp drop; }", True,
        dict(mapping=None, udp_blocked=True),
    ),
}


def run(*command, stdin=None):
    return subprocess.run(command, check=True, input=stdin, stdout=subprocess.PIPE, text=True).stdout


def inside(namespace, *command, **options):
    return run("ip", "netns", "exec", namespace, *command, **options)


def build():
    for namespace in (NET, ROUTER, HOST):
        run("ip", "netns", "add", namespace)
        inside(namespace, "ip", "link", "set", "lo", "up")
    pairs = [(NET, "wan", f"{WAN[:-1]}1/24", ROUTER, "wan", f"{WAN}/24"),
             (ROUTER, "lan", "192.168.1.1/24", HOST, "lan", "192.168.1.2/24")]
    for one, name, address, other, other_name, other_address in pairs:
        run("ip", "link", "add", name, "netns", one, "type", "veth",
            "peer", "name", other_name, "netns", other)
        for namespace, link, ip in [(one, name, address), (other, other_name, other_address)]:
            inside(namespace, "ip", "addr", "add", ip, "dev", link)
            inside(namespace, "ip", "link", "set", link, "up")
    for address in (GATEWAY, OTHER):
        inside(NET, "ip", "addr", "add", f"{address}/32", "dev", "lo")
    # A public network behind the router, for hosts without NAT.
    inside(HOST, "ip", "addr", "add", "198.18.2.2/24", "dev", "lan")
    inside(ROUTER, "ip", "addr", "add", "198.18.2.1/24", "dev", "lan")
    inside(NET, "ip", "route", "add", "198.18.2.0/24", "via", WAN)
    inside(ROUTER, "ip", "route", "add", "default", "via", f"{WAN[:-1]}1")
    inside(ROUTER, "sysctl", "-qw", "net.ipv4.ip_forward=1")


def check(macula, env, kind, gateway, *options):
    rules, is_private, expected = KINDS[kind]
    rules = rules.replace("} ", "}\n")
    inside(ROUTER, "nft", "-f", "-", stdin=f"flush ruleset\ntable ip t {{\n{rules}\n}}\n")
    via, source = ("192.168.1.1", "192.168.1.2") if is_private else ("198.18.2.1", "198.18.2.2")
    inside(HOST, "ip", "route", "replace", "default", "via", via, "src", source)
    output = subprocess.run(
        ["ip", "netns", "exec", HOST, macula, "netcheck", "--json", "-g", gateway, *options],
        env=env, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout
    report = json.loads(output)
    wrong = {key: report[key] for key, value in expected.items() if report[key] != value}
    print(f"{'FAIL' if wrong else 'ok  '} {kind}: {report['verdict']}", flush=True)
    if wrong:
        sys.exit(f"{kind}: {wrong}, expected {expected}\n{json.dumps(report, indent=1)}")
    return report


def lifetime(macula, env, gateway):
    """A router that forgets after 12 s."""
    for name in ("udp_timeout", "udp_timeout_stream"):
        inside(ROUTER, "sysctl", "-qw", f"net.netfilter.nf_conntrack_{name}=12")
    report = check(macula, env, "portrestricted", gateway, "--lifetime", "20s")
    found = report["mapping_lifetime"]
    is_right = found == {"at_least_s": 10, "below_s": 15, "known": True}
    print(f"{'ok  ' if is_right else 'FAIL'} a mapping of 12 s lasts 10 to 15 s", flush=True)
    if not is_right:
        sys.exit(f"lifetime: {found}")


def main():
    if os.geteuid() != 0:
        sys.exit("network namespaces need root")
    macula = os.path.abspath(sys.argv[1])
    process = None
    with tempfile.TemporaryDirectory() as directory:
        env = dict(os.environ, MACULA_HOME=directory)
        try:
            build()
            config = os.path.join(directory, "gateway.toml")
            with open(config, "w") as file:
                file.write(f'listen = "{GATEWAY}:4433"\n[turn]\nlisten = "{GATEWAY}:3478"\n')
                file.write(f'other_ip = "{OTHER}"\n')
            process = subprocess.Popen(
                ["ip", "netns", "exec", NET, macula, "gateway", "--config", config, "--json",
                 "--until-stdin-closes"],
                env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            listening = json.loads(process.stdout.readline())
            gateway = f"{listening['id']}@{listening['addr']}"
            for kind in KINDS:
                check(macula, env, kind, gateway)
            lifetime(macula, env, gateway)
        finally:
            if process:
                process.stdin.close()
                process.wait(timeout=10)
            for namespace in (NET, ROUTER, HOST):
                subprocess.run(["ip", "netns", "del", namespace], stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
