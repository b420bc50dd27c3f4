//! Two hosts behind NATs of their own, with the gateway outside. Needs root, `ip` and `nft`.
//!
//! Both NATs map independently of the endpoint, to ports that differ from the local ones, and let in
//! only what was asked for by address and port (port-restricted cone).

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Running, macula, wait_for};

/// Five network namespaces: the internet, two NATs, two hosts; removed when dropped.
struct Net {
    prefix: String,
}

impl Net {
    /// `None` where this machine does not let us.
    fn make() -> Option<Self> {
        let net = Self { prefix: format!("mcp{}", std::process::id()) };
        let script = format!(
            "set -e
            which nft > /dev/null
            for n in inet na nb ha hb; do ip netns add $P-$n; ip -n $P-$n link set lo up; done
            for s in a,1 b,2; do
                x=${{s%,*}}; i=${{s#*,}}
                ip link add name wan netns $P-n$x type veth peer name w$i netns $P-inet
                ip -n $P-n$x addr add 198.18.$i.2/24 dev wan
                ip -n $P-n$x link set wan up
                ip -n $P-inet addr add 198.18.$i.1/24 dev w$i
                ip -n $P-inet link set w$i up
                ip -n $P-n$x route add default via 198.18.$i.1
                ip link add name lan netns $P-n$x type veth peer name eth0 netns $P-h$x
                ip -n $P-n$x addr add 192.168.1.1/24 dev lan
                ip -n $P-n$x link set lan up
                ip -n $P-h$x addr add 192.168.1.2/24 dev eth0
                ip -n $P-h$x link set eth0 up
                ip -n $P-h$x route add default via 192.168.1.1
                ip netns exec $P-n$x sysctl -qw net.ipv4.ip_forward=1
                ip netns exec $P-n$x nft -f - <<N
{NAT}
N
            done
            ip netns exec $P-inet sysctl -qw net.ipv4.ip_forward=1"
        );
        let made = net.shell(&script);
        if !made {
            return None; // what was made is removed by drop
        }
        Some(net)
    }

    fn shell(&self, script: &str) -> bool {
        let mut command = Command::new("sh");
        let ran = command.args(["-c", script]).env("P", &self.prefix).output();
        ran.is_ok_and(|done| {
            if !done.status.success() {
                eprintln!("{}", String::from_utf8_lossy(&done.stderr));
            }
            done.status.success()
        })
    }

    /// A program in one of the namespaces.
    fn start(&self, place: &str, home: &std::path::Path, arguments: &[&str]) -> Running {
        let inner = macula(home, arguments);
        let mut command = Command::new("ip");
        let name = format!("{}-{place}", self.prefix);
        command.args(["netns", "exec", &name]).arg(inner.get_program()).args(inner.get_args());
        for (key, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        Running::spawn(&mut command)
    }

    /// Whether hosts reach each other without the gateway.
    fn set_direct(&self, on: bool) {
        let script = if on {
            "ip netns exec $P-inet nft delete table inet cut"
        } else {
            "ip netns exec $P-inet nft -f - <<N
table inet cut {
  chain passing {
    type filter hook forward priority 0; policy accept;
    meta l4proto udp drop
  }
}
N"
        };
        assert!(self.shell(script), "nft");
    }
}

/// `$i` is set by the shell around it.
const NAT: &str = "table ip nat {
  chain outgoing {
    type nat hook postrouting priority 100; policy accept;
    oifname wan ip protocol udp snat to 198.18.$i.2 : jhash udp sport mod 8192 seed 7 offset 20000
    oifname wan masquerade
  }
  chain passing {
    type filter hook forward priority 0; policy accept;
    iifname wan ct state established,related accept
    iifname wan drop
  }
  chain incoming {
    type filter hook input priority 0; policy accept;
    iifname wan ct state established,related accept
    iifname wan drop
  }
}";

impl Drop for Net {
    fn drop(&mut self) {
        self.shell("for n in inet na nb ha hb; do ip netns del $P-$n 2>/dev/null; done; true");
    }
}

fn events(program: &Running) -> Vec<Value> {
    let text = program.stdout();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Paths that were told, the first one included, and when (ms).
fn paths(program: &Running) -> Vec<(String, u64)> {
    events(program)
        .iter()
        .filter(|event| event["event"] == "connected" || event["event"] == "path")
        .map(|event| (event["path"].as_str().unwrap().to_owned(), event["ms"].as_u64().unwrap()))
        .collect()
}

#[test]
fn behind_nats_a_link_is_relayed_then_direct_and_survives_the_loss_of_its_path() {
    let Some(net) = Net::make() else {
        eprintln!("SKIPPED: needs root, network namespaces and nft");
        return;
    };
    let home = TempDir::new().unwrap();
    let homes: Vec<TempDir> = (0..2).map(|_| TempDir::new().unwrap()).collect();
    let listen = ["gateway", "--listen", "198.18.1.1:4433", "--realm", "lab", "--json"];
    let gateway = net.start("inet", home.path(), &listen);
    wait_for("the gateway", || !gateway.stdout().is_empty());
    let lab = |role: &'static str| {
        vec!["lab", role, "-g", "198.18.1.1:4433", "-r", "lab", "--interval", "20ms", "--json"]
    };
    let responder = net.start("hb", homes[0].path(), &lab("responder"));
    wait_for("the responder", || !events(&responder).is_empty());
    let id = events(&responder)[0]["id"].as_str().unwrap().to_owned();
    let mut arguments = lab("initiator");
    arguments.extend(["--peer", &id]);
    let initiator = net.start("ha", homes[1].path(), &arguments);
    let is = |wanted: &str| paths(&initiator).last().is_some_and(|(path, _)| path == wanted);
    wait_for("a direct path", || is("direct"));
    // Without delays it may be direct before anybody has told that it was relayed.
    let seen = paths(&initiator);
    let upgrade = seen[seen.len() - 1].1 - seen[0].1;

    net.set_direct(false);
    wait_for("the relay", || is("relayed"));
    // beats go on through it
    let beats = || events(&initiator).iter().filter(|event| event["event"] == "beat").count();
    let before = beats();
    wait_for("beats over the relay", || beats() > before + 20);
    let healed = Instant::now();
    net.set_direct(true);
    wait_for("a direct path again", || is("direct"));
    let back = healed.elapsed();

    initiator.signal(rustix::process::Signal::INT);
    let done = initiator.finish().expect_code(0);
    let last = done.text().lines().last().unwrap().to_owned();
    let last: Value = serde_json::from_str(&last).unwrap();
    eprintln!("direct after {upgrade} ms, back after {back:?}: {last}");
    for name in ["lost", "duplicated", "reordered"] {
        assert_eq!(last[name], 0, "{name}: {last}");
    }
    assert_eq!(last["path"], "direct");
    assert!(last["longest_silence_ms"].as_u64().unwrap() < 1_000, "{last}");
    assert!(back < Duration::from_secs(5), "{back:?}");
    drop((responder, gateway));
}
