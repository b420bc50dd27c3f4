//! Port mapping: asks the router for an outer port of the endpoint's socket, by PCP (RFC 6887),
//! NAT-PMP (RFC 6886) and UPnP IGD, all at once.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crab_nat::{
    GatewayAddress, InternetProtocol, PortMapping, PortMappingOptions, PortMappingType,
    TimeoutConfig, natpmp, pcp,
};
use igd_next::{Gateway, PortMappingProtocol, SearchOptions, search_gateway};
use macula_nat::path::{Kind, is_private};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::Peers;
use crate::sync::lock;

/// A mapping is asked for so long, and renewed at half of it.
const LIFETIME: Duration = Duration::from_secs(600);
/// Whether something is to be done is looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Where no router maps ports it is asked again after this.
const AGAIN: Duration = Duration::from_secs(600);
/// Requests of PCP and NAT-PMP: 0, 0.25, 0.75 and 1.75 s.
const PATIENCE: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(250),
    max_retries: 3,
    max_retry_timeout: None,
};
/// UPnP routers have so long to be found.
const UPNP_TIMEOUT: Duration = Duration::from_secs(3);
/// What UPnP routers show their owner.
const DESCRIPTION: &str = "macula";

/// How a port was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MappedBy {
    /// RFC 6887.
    Pcp,
    /// RFC 6886.
    NatPmp,
    /// UPnP's Internet Gateway Device.
    Upnp,
}

impl MappedBy {
    /// Its name in output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        }
    }
}

/// A mapped port.
#[derive(Debug)]
pub(super) struct Lease {
    by: MappedBy,
    external: SocketAddr,
    renew_at: Instant,
    how: How,
}

#[derive(Debug)]
enum How {
    Pmp(PortMapping),
    Upnp(Gateway, SocketAddr),
}

impl Lease {
    async fn renew(&mut self) -> bool {
        self.renew_at = Instant::now() + LIFETIME / 2;
        match &mut self.how {
            How::Pmp(mapping) => {
                let renewed = mapping.renew().await.is_ok();
                self.external.set_port(mapping.external_port().get());
                renewed
            }
            How::Upnp(gateway, local) => {
                let (gateway, local, port) = (gateway.clone(), *local, self.external.port());
                let renew = move || {
                    let udp = PortMappingProtocol::UDP;
                    gateway.add_port(udp, port, local, seconds(), DESCRIPTION).ok()
                };
                apart(renew).await.is_some()
            }
        }
    }

    /// Gives the port back; a router that does not answer forgets it by itself.
    async fn withdraw(self) {
        match self.how {
            How::Pmp(mapping) => drop(mapping.try_drop().await),
            How::Upnp(gateway, _) => {
                let port = self.external.port();
                let remove = move || gateway.remove_port(PortMappingProtocol::UDP, port).ok();
                apart(remove).await;
            }
        }
    }
}

/// Maps a UDP port and gives it back at once: which protocols the router speaks, and the outer
/// address that each gave. Takes up to some seconds.
pub async fn probe_port_mapping(port: NonZeroU16) -> Vec<(MappedBy, SocketAddr)> {
    let mut found = Vec::new();
    let mut asking = ask(port);
    while let Some(answer) = asking.join_next().await {
        if let Ok(Some(lease)) = answer {
            found.push((lease.by, lease.external));
            lease.withdraw().await;
        }
    }
    found
}

/// Keeps the endpoint's port mapped as long as there are links to peers.
pub(super) async fn keep(peers: Arc<Peers>) {
    let Some(port) = NonZeroU16::new(peers.port) else { return };
    loop {
        let hosts = lock(&peers.known).of(Kind::Host).to_vec();
        let asked = Instant::now();
        let mut asking = ask(port);
        while let Some(answer) = asking.join_next().await {
            // Behind a second NAT such an address leads nowhere.
            let Ok(Some(lease)) = answer else { continue };
            tracing::debug!(by = lease.by.as_str(), external = %lease.external, "port mapped");
            if is_private(lease.external) {
                lease.withdraw().await;
                continue;
            }
            peers.mapped.lock().await.push(lease);
            offer(&peers).await;
        }
        loop {
            sleep(LOOK_EVERY).await;
            if peers.candidates.receiver_count() == 0 {
                withdraw(&peers).await;
                peers.maps.store(false, Ordering::Release);
                // A link that came meanwhile may have seen that somebody cares.
                let is_needed = peers.candidates.receiver_count() > 0;
                if !is_needed || peers.maps.swap(true, Ordering::AcqRel) {
                    return;
                }
                break;
            }
            let has_moved = lock(&peers.known).of(Kind::Host) != hosts;
            let is_empty = !renew(&peers).await;
            if has_moved || (is_empty && asked.elapsed() >= AGAIN) {
                withdraw(&peers).await;
                break;
            }
        }
    }
}

/// Renews what is due; returns whether any mapping is left.
async fn renew(peers: &Peers) -> bool {
    let mut leases = peers.mapped.lock().await;
    let mut kept = Vec::new();
    for mut lease in leases.drain(..) {
        if lease.renew_at > Instant::now() || lease.renew().await {
            kept.push(lease);
        }
    }
    *leases = kept;
    let is_any = !leases.is_empty();
    drop(leases);
    offer(peers).await;
    is_any
}

async fn offer(peers: &Peers) {
    let addrs: Vec<_> = peers.mapped.lock().await.iter().map(|lease| lease.external).collect();
    peers.set_candidates(Kind::PortMapped, &addrs, false);
}

/// Gives all ports back.
pub(super) async fn withdraw(peers: &Peers) {
    let leases = std::mem::take(&mut *peers.mapped.lock().await);
    peers.set_candidates(Kind::PortMapped, &[], false);
    let mut going: JoinSet<()> = leases.into_iter().map(Lease::withdraw).collect();
    while going.join_next().await.is_some() {}
}

/// Asks by all protocols.
fn ask(port: NonZeroU16) -> JoinSet<Option<Lease>> {
    let mut asking = JoinSet::new();
    asking.spawn(upnp(port));
    for gateway in gateways() {
        asking.spawn(by_pcp(gateway, port));
        asking.spawn(by_natpmp(gateway, port));
    }
    asking
}

fn options() -> PortMappingOptions {
    PortMappingOptions {
        external_port: None,
        lifetime_seconds: Some(seconds()),
        timeout_config: Some(PATIENCE),
    }
}

fn seconds() -> u32 {
    u32::try_from(LIFETIME.as_secs()).unwrap_or(u32::MAX)
}

async fn by_pcp(gateway: Ipv4Addr, port: NonZeroU16) -> Option<Lease> {
    let client = local_to(gateway.into())?;
    let gateway = GatewayAddress::IpV4(gateway);
    let request = pcp::BaseMapRequest::new(gateway, client, InternetProtocol::Udp, port);
    let mapping = pcp::port_mapping(request, None, None, options()).await.ok()?;
    let PortMappingType::Pcp { external_ip, .. } = mapping.mapping_type() else { return None };
    Some(leased(MappedBy::Pcp, external_ip.to_canonical(), mapping))
}

async fn by_natpmp(gateway: Ipv4Addr, port: NonZeroU16) -> Option<Lease> {
    let gateway = GatewayAddress::IpV4(gateway);
    let ip = natpmp::external_address(gateway, Some(PATIENCE)).await.ok()?;
    let mapping = natpmp::port_mapping(gateway, InternetProtocol::Udp, port, options()).await;
    Some(leased(MappedBy::NatPmp, ip.into(), mapping.ok()?))
}

fn leased(by: MappedBy, ip: IpAddr, mapping: PortMapping) -> Lease {
    let lifetime = Duration::from_secs(mapping.lifetime().into()).min(LIFETIME);
    Lease {
        by,
        external: SocketAddr::new(ip, mapping.external_port().get()),
        renew_at: Instant::now() + lifetime / 2,
        how: How::Pmp(mapping),
    }
}

async fn upnp(port: NonZeroU16) -> Option<Lease> {
    let (gateway, local, external) = apart(move || {
        let mut search = SearchOptions::default();
        search.timeout = Some(UPNP_TIMEOUT);
        search.single_search_timeout = Some(UPNP_TIMEOUT);
        let gateway = search_gateway(search).ok()?;
        let local = SocketAddr::new(local_to(gateway.addr.ip())?, port.get());
        let udp = PortMappingProtocol::UDP;
        let external = gateway.get_any_address(udp, local, seconds(), DESCRIPTION).ok()?;
        Some((gateway, local, external))
    })
    .await?;
    let renew_at = Instant::now() + LIFETIME / 2;
    Some(Lease { by: MappedBy::Upnp, external, renew_at, how: How::Upnp(gateway, local) })
}

/// Does what blocks on a thread of its own, which nobody waits for at the end of the program.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> Option<T> + Send + 'static) -> Option<T> {
    let (done, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name("macula-upnp".to_owned());
    // Fails when nobody waits any more.
    thread.spawn(move || done.send(work()).ok()).ok()?;
    ended.await.ok()?
}

/// Our address on the way to `to`.
fn local_to(to: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match to {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // Connecting sends nothing: it asks the routing table which address would be used.
    socket.connect((to, crab_nat::GATEWAY_PORT)).ok()?;
    socket.local_addr().ok().map(|local| local.ip())
}

/// Routers to ask: on Linux those of default routes, elsewhere the first address of each private network.
fn gateways() -> Vec<Ipv4Addr> {
    match std::fs::read_to_string("/proc/net/route") {
        Ok(table) => default_routes(&table),
        Err(_) => first_of_networks(),
    }
}

/// At most so many are asked.
const GATEWAYS_MAX: usize = 4;

/// Reads the kernel's table: interface, destination, gateway, both as little-endian hexadecimal.
fn default_routes(table: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    for line in table.lines().skip(1) {
        let mut fields = line.split_whitespace().skip(1);
        let (Some("00000000"), Some(gateway)) = (fields.next(), fields.next()) else { continue };
        let gateway = u32::from_str_radix(gateway, 16).map(|it| Ipv4Addr::from(it.to_le_bytes()));
        if let Ok(gateway) = gateway
            && !gateway.is_unspecified()
            && !found.contains(&gateway)
        {
            found.push(gateway);
        }
    }
    found.truncate(GATEWAYS_MAX);
    found
}

fn first_of_networks() -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    for interface in if_addrs::get_if_addrs().unwrap_or_default() {
        if let if_addrs::IfAddr::V4(v4) = interface.addr
            && v4.ip.is_private()
        {
            let first = (u32::from(v4.ip) & u32::from(v4.netmask)) + 1;
            found.push(Ipv4Addr::from(first));
        }
    }
    found.truncate(GATEWAYS_MAX);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_are_read_from_the_kernels_table() {
        let table = "Iface\tDestination\tGateway \tFlags\n\
                     eth0\t00000000\t0101A8C0\t0003\t0\n\
                     eth0\t0001A8C0\t00000000\t0001\t0\n\
                     wg0\t00000000\t00000000\t0001\t0\n\
                     eth1\t00000000\t0101A8C0\t0003\t9\n";
        assert_eq!(default_routes(table), [Ipv4Addr::new(192, 168, 1, 1)]);
        for junk in ["", "a\nb", "h\ne 00000000 zz", "h\ne 00000000 FFFFFFFFFF"] {
            assert_eq!(default_routes(junk), [] as [Ipv4Addr; 0]);
        }
    }
}
