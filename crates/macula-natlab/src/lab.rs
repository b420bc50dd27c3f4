//! The laboratory itself: an Internet, a place for gateways, and sites behind routers.
//!
//! ```text
//! host --- router(NAT) ===wire=== net ------ gw (gateway, observers)
//! host --- router ---- carrier(NAT) ===wire=== net
//! ```
//! Site N: WAN 198.18.N.0/24 and 2001:db8:N::/64, LAN 192.168.1.0/24 (the same everywhere, on purpose) and
//! 2001:db8:N:1::/64, a carrier's access network 100.64.N.0/24.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::error::LabError;
use crate::kind::{NatKind, Shared};
use crate::mapper::Mapper;
use crate::netns::{self, Netns};
use crate::probe::{Echo, Observers};
use crate::rules::{self, HOST_RULES, Inbound, Nat, Router};
use crate::tap;
use crate::wire::{Weather, Wire};

/// Where gateways and observers are: two addresses of each family.
pub const RELAYS_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 18, 0, 2), Ipv4Addr::new(198, 18, 0, 3)];
/// The same of IPv6.
pub const RELAYS_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3),
];

/// How a laboratory is to be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of every site's link to the Internet; `None` uses the kernel's own links.
    pub weather: Option<Weather>,
    /// What random loss and jitter come from.
    pub seed: u64,
}

/// Asks a laboratory to end early. May be set from any thread.
#[derive(Debug, Default)]
pub struct Stop(AtomicBool);

impl Stop {
    /// A wish that nobody has yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Asks.
    pub fn ask(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    pub(crate) fn check(&self) -> Result<(), LabError> {
        if self.is_asked() { Err(LabError::stopped()) } else { Ok(()) }
    }
}

/// What is behind one link to the Internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// One host.
    Single(NatKind),
    /// Two hosts.
    Shared(Shared),
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Single(kind) => kind.fmt(f),
            Self::Shared(shared) => shared.fmt(f),
        }
    }
}

/// A host and how the world may see it.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) netns: Netns,
    /// Lines that bring its addresses and routes (back), for `ip -batch`.
    addressing: String,
}

/// Hosts, their routers, and their link.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) access: Access,
    pub(crate) hosts: Vec<Host>,
    /// With the rules of each; the first has the WAN address.
    routers: Vec<(Netns, Router)>,
    number: u8,
    wire: Option<Wire>,
    /// Answers while it is kept.
    mapper: Option<Mapper>,
}

/// A running laboratory; everything is gone when it is dropped.
#[derive(Debug)]
pub struct Lab {
    // Sites go before the Internet that their links end in.
    pub(crate) sites: Vec<Site>,
    /// They answer while they are kept.
    _observers: Observers,
    pub(crate) gateway: Netns,
    net: Netns,
    settings: Settings,
}

/// What a laboratory needs is there; the error says what is missing and what to do.
///
/// # Errors
/// Of kind [`CannotRun`](crate::LabErrorKind::CannotRun).
pub fn check_ability() -> Result<(), LabError> {
    const ROOT: &str = "run it as root, or as root of a user namespace: unshare --user \
         --map-root-user --net --mount sh -c 'mount -t tmpfs none /run && exec macula lab nat'";
    for (program, package) in [("ip", "iproute2"), ("nft", "nftables"), ("sysctl", "procps")] {
        if netns::find_program(program).is_none() {
            let what = format!("program `{program}` is not in PATH; install package {package}");
            return Err(LabError::cannot_run("the laboratory cannot run here", what));
        }
    }
    let cannot = |tried: &str, error: LabError, advice: &str| {
        LabError::cannot_run(tried, format_args!("{error}; {advice}"))
    };
    let netns = Netns::make("able").map_err(|e| cannot("no network namespace", e, ROOT))?;
    let advice = "this kernel needs nf_tables with NAT";
    netns
        .nft(&Router::of(NatKind::FullCone, Ipv4Addr::new(198, 18, 1, 2)).rules(1))
        .map_err(|error| cannot("no nftables rules", error, advice))?;
    Ok(())
}

impl Lab {
    /// Builds the Internet and the place for gateways. What an earlier laboratory left is removed.
    ///
    /// # Errors
    /// What a command said; [`check_ability`] first says why it cannot work.
    pub fn build(settings: Settings) -> Result<Self, LabError> {
        netns::remove_stale();
        check_ability()?;
        let net = Netns::make("net")?;
        let gateway = Netns::make("gw")?;
        veth(&net, "gw", &gateway, "eth0")?;
        net.ip(
            "address add 198.18.0.1/24 dev gw\naddress add 2001:db8::1/64 dev gw nodad\nlink set gw up\n",
        )?;
        let mut lines = String::new();
        for (v4, v6) in RELAYS_V4.iter().zip(RELAYS_V6) {
            lines += &format!("address add {v4}/24 dev eth0\naddress add {v6}/64 dev eth0 nodad\n");
        }
        lines +=
            "link set eth0 up\nroute add default via 198.18.0.1\nroute add ::/0 via 2001:db8::1\n";
        gateway.ip(&lines)?;
        let observers = Observers::start(&gateway)?;
        Ok(Self { sites: Vec::new(), _observers: observers, gateway, net, settings })
    }

    /// Names of the hosts' namespaces, for `ip netns exec`.
    #[must_use]
    pub fn namespaces(&self) -> Vec<&str> {
        let hosts = self.sites.iter().flat_map(|site| &site.hosts);
        hosts.map(|host| host.netns.name()).collect()
    }

    /// Adds a site; gives its index.
    pub(crate) fn add_site(&mut self, access: Access) -> Result<usize, LabError> {
        let index = self.sites.len();
        let number = u8::try_from(index + 1)
            .map_err(|_| LabError::new("too many sites", "255 are possible"))?;
        let site = Site::build(&self.net, number, access, &self.settings)?;
        self.sites.push(site);
        Ok(index)
    }

    /// Whether an address is a gateway's or an observer's.
    pub(crate) fn is_relay(address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => RELAYS_V4.contains(&v4),
            IpAddr::V6(v6) => RELAYS_V6.contains(&v6),
        }
    }

    /// One way, without jitter.
    pub(crate) fn delay(&self) -> Duration {
        self.settings.weather.map_or(Duration::ZERO, |weather| weather.delay)
    }

    /// Changes the loss of a site's link. Only links of this program have any.
    pub(crate) fn set_loss(&self, site: usize, loss: f64) -> Result<(), LabError> {
        let wire = self.sites.get(site).and_then(|site| site.wire.as_ref());
        wire.map(|wire| wire.set_loss(loss))
            .ok_or_else(|| LabError::new("loss", "needs links in user space: leave out --no-delay"))
    }

    /// Moves a host of `from` to the LAN of `to`, where it gets another address.
    pub(crate) fn roam(&mut self, from: usize, to: usize) -> Result<(), LabError> {
        let [from, to] = self
            .sites
            .get_disjoint_mut([from, to])
            .map_err(|error| LabError::new("roam", error))?;
        let host = from.hosts.first_mut().ok_or_else(|| LabError::new("roam", "no host"))?;
        host.netns.ip("link delete eth0\n")?;
        let lan = to.lan_of(0);
        host.addressing = plug(&host.netns, lan, &to.routers[lan.router].0, to.number, "p9")?;
        host.netns.ip(&host.addressing)
    }
}

/// Where a host is plugged in.
#[derive(Clone, Copy, Debug)]
struct Lan {
    router: usize,
    bridge: &'static str,
    /// Third byte of 192.168.x.0.
    network: u8,
    /// Last byte of the address.
    host: u8,
    v4: bool,
    v6: bool,
    /// The host has a public address.
    public: bool,
}

impl Site {
    fn build(
        net: &Netns,
        number: u8,
        access: Access,
        settings: &Settings,
    ) -> Result<Self, LabError> {
        let wan = Ipv4Addr::new(198, 18, number, 2);
        let mut site = Self {
            access,
            hosts: Vec::new(),
            routers: Vec::new(),
            number,
            wire: None,
            mapper: None,
        };
        let outer = match access {
            Access::Single(kind) => Router::of(kind, wan),
            Access::Shared(Shared::SameLan) => Router::home(wan),
            Access::Shared(shared) => Router {
                nat: Nat::Hashed(Inbound::ContactedPort),
                hairpin: shared.hairpins(),
                ..Router::home(wan)
            },
        };
        let outside = Netns::make(&format!("s{number}-wan"))?;
        site.wire = connect(net, &outside, number, settings)?;
        let homes = match access {
            Access::Single(kind) if kind.is_behind_carrier() => 1,
            Access::Shared(Shared::SameCgn | Shared::SameCgnNoHairpin) => 2,
            _ => 0,
        };
        bridge(&outside, "lan")?;
        if homes > 0 {
            outside.ip(&format!("address add 100.64.{number}.1/24 dev lan\n"))?;
        }
        site.routers.push((outside, outer));
        for home in 0..homes {
            site.add_home(home)?;
        }
        if matches!(access, Access::Shared(Shared::Hairpin | Shared::NoHairpin)) {
            bridge(&site.routers[0].0, "lan2")?;
        }
        let hosts = if matches!(access, Access::Shared(_)) { 2 } else { 1 };
        for host in 0..hosts {
            let netns = Netns::make(&format!("s{number}-h{host}"))?;
            let lan = site.lan_of(host);
            let port = format!("p{host}");
            let addressing = plug(&netns, lan, &site.routers[lan.router].0, number, &port)?;
            netns.nft(HOST_RULES)?;
            netns.ip(&addressing)?;
            site.hosts.push(Host { netns, addressing });
        }
        for (netns, router) in &site.routers {
            netns.nft(&router.rules(next_seed()))?;
        }
        if access == Access::Single(NatKind::PortMap) {
            let inside = Ipv4Addr::new(192, 168, 1, 1);
            site.mapper = Some(Mapper::start(&site.routers[0].0, inside, wan)?);
        }
        if access == Access::Single(NatKind::ShortTimeout) {
            for timeout in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
                let setting = format!("net.netfilter.{timeout}=5");
                site.routers[0].0.command("sysctl", &["-qw", &setting])?;
            }
        }
        Ok(site)
    }

    /// A home router on the carrier's access network.
    fn add_home(&mut self, home: u8) -> Result<(), LabError> {
        let (number, carrier) = (self.number, &self.routers[0].0);
        let netns = Netns::make(&format!("s{number}-r{home}"))?;
        let port = format!("r{home}");
        veth(carrier, &port, &netns, "wan")?;
        carrier.ip(&format!("link set {port} master lan up\n"))?;
        let address = Ipv4Addr::new(100, 64, number, 2 + home);
        netns.ip(&format!(
            "address add {address}/24 dev wan\nlink set wan up\nroute add default via 100.64.{number}.1\n"
        ))?;
        bridge(&netns, "lan")?;
        self.routers.push((netns, Router::home(address)));
        Ok(())
    }

    /// Where the host of this index belongs; the address of one that comes later differs.
    fn lan_of(&self, host: u8) -> Lan {
        let mut lan = Lan {
            router: 0,
            bridge: "lan",
            network: 1,
            host: 10 + host + 10 * u8::from(usize::from(host) < self.hosts.len()),
            v4: true,
            v6: false,
            public: false,
        };
        match self.access {
            Access::Single(kind) => {
                (lan.v4, lan.v6) = (kind.has_v4(), kind.has_v6());
                lan.public = matches!(kind, NatKind::Public | NatKind::Fw);
                lan.router = usize::from(kind.is_behind_carrier());
            }
            Access::Shared(Shared::Hairpin | Shared::NoHairpin) if host == 1 => {
                (lan.bridge, lan.network) = ("lan2", 2);
            }
            Access::Shared(Shared::SameCgn | Shared::SameCgnNoHairpin) => {
                lan.router = 1 + usize::from(host);
            }
            Access::Shared(_) => {}
        }
        lan
    }

    /// All routers forget all flows, ports and permissions, as after a loss of power.
    pub(crate) fn reboot(&self) -> Result<(), LabError> {
        for (netns, router) in &self.routers {
            netns.nft(&router.rules(next_seed()))?;
            netns.flush_conntrack()?;
        }
        Ok(())
    }

    /// The same before the next pair, so that no run helps or hinders another.
    pub(crate) fn forget(&self) -> Result<(), LabError> {
        self.reboot()
    }

    /// Drops UDP between its hosts and everybody but gateways, or lets it pass again.
    pub(crate) fn cut_direct(&self, is_cut: bool) -> Result<(), LabError> {
        let text =
            if is_cut { rules::cut(&RELAYS_V4, &RELAYS_V6) } else { rules::UNCUT.to_owned() };
        self.outer_router().map_or(Ok(()), |router| router.nft(&text))
    }

    /// Address of the router's outer end.
    pub(crate) fn outer_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, 2)
    }

    /// The namespace of the router that has it.
    pub(crate) fn outer_router(&self) -> Option<&Netns> {
        self.routers.first().map(|(netns, _)| netns)
    }

    /// Starts an echo at the router's outer address.
    pub(crate) fn echo(&self) -> Result<Echo, LabError> {
        let router = self.outer_router().ok_or_else(|| LabError::new("echo", "no router"))?;
        Echo::start(router, IpAddr::V4(self.outer_address()))
    }
}

impl Host {
    /// Pulls the cable.
    pub(crate) fn unplug(&self) -> Result<(), LabError> {
        self.netns.ip("link set eth0 down\n")
    }

    /// Puts it back, with the same address.
    pub(crate) fn replug(&self) -> Result<(), LabError> {
        // IPv4 addresses survive that the link is down; routes and IPv6 addresses do not.
        self.netns.ip(&format!("address flush dev eth0\n{}", self.addressing))
    }
}

/// For the ports of a router that starts (again).
fn next_seed() -> u32 {
    static SEED: AtomicU32 = AtomicU32::new(1);
    SEED.fetch_add(1, Ordering::Relaxed)
}

/// The link between a site and the Internet.
fn connect(
    net: &Netns,
    outside: &Netns,
    number: u8,
    settings: &Settings,
) -> Result<Option<Wire>, LabError> {
    let near = format!("s{number}");
    let wire = match settings.weather {
        Some(weather) if !weather.is_clear() => {
            let ends = [tap::open(net, &near)?, tap::open(outside, "wan")?];
            let seed = settings.seed.wrapping_add(u64::from(number) << 32);
            let wire = Wire::start(ends, weather, seed);
            Some(wire.map_err(|error| LabError::new("a link's thread", error))?)
        }
        _ => {
            veth(net, &near, outside, "wan")?;
            None
        }
    };
    net.ip(&format!(
        "address add 198.18.{number}.1/25 dev {near}\n\
         address add 2001:db8:{number:x}::1/64 dev {near} nodad\n\
         link set {near} up\n\
         route add 198.18.{number}.128/25 via 198.18.{number}.2\n\
         route add 2001:db8:{number:x}:1::/64 via 2001:db8:{number:x}::2\n"
    ))?;
    outside.ip(&format!(
        "address add 198.18.{number}.2/25 dev wan\n\
         address add 2001:db8:{number:x}::2/64 dev wan nodad\n\
         link set wan up\n\
         route add default via 198.18.{number}.1\n\
         route add ::/0 via 2001:db8:{number:x}::1\n"
    ))?;
    Ok(wire)
}

fn veth(one: &Netns, name: &str, other: &Netns, peer: &str) -> Result<(), LabError> {
    let other = other.name();
    one.ip(&format!("link add {name} type veth peer name {peer} netns {other}\n"))
}

fn bridge(netns: &Netns, name: &str) -> Result<(), LabError> {
    netns.ip(&format!("link add {name} type bridge\nlink set {name} up\n"))
}

/// Gives a host an interface in a LAN, and the router its address there; the result are the
/// lines that give the host its own.
fn plug(
    host: &Netns,
    lan: Lan,
    router: &Netns,
    number: u8,
    port: &str,
) -> Result<String, LabError> {
    veth(router, port, host, "eth0")?;
    let Lan { bridge, network, host: last, .. } = lan;
    let mut lines = format!("link set {port} master {bridge} up\n");
    let mut own = "link set eth0 up\n".to_owned();
    if lan.v4 {
        let (inside, address, length) = if lan.public {
            let of = |last| Ipv4Addr::new(198, 18, number, last);
            (of(129), of(128 + last), 25)
        } else {
            let of = |last| Ipv4Addr::new(192, 168, network, last);
            (of(1), of(last), 24)
        };
        lines += &format!("address replace {inside}/{length} dev {bridge}\n");
        own += &format!(
            "address replace {address}/{length} dev eth0\nroute replace default via {inside}\n"
        );
    }
    if lan.v6 {
        let of = |last: u8| format!("2001:db8:{number:x}:1::{last:x}");
        lines += &format!("address replace {}/64 dev {bridge} nodad\n", of(1));
        own += &format!(
            "address replace {}/64 dev eth0 nodad\nroute replace ::/0 via {}\n",
            of(last),
            of(1)
        );
    }
    router.ip(&lines)?;
    Ok(own)
}
