//! `macula netcheck`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use macula::{CallError, Node, Via};
use macula_gateway::turn::DEFAULT_PORT;
use macula_nat::address::canonical;
use macula_nat::report::{
    Check, CheckConfig, Lifetime, LifetimeReport, Patience, Report, Socket, StunServer,
};
use macula_nat::search::{Behaviour, Facts};
use macula_proto::Time;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::address::GatewayAddress;
use crate::args::NetcheckArgs;
use crate::failure::{Exit, Failure};
use crate::{known, out};

/// Requests are sent at 0, 0.25, 0.75 and 1.75 s, and given up at 2.75 s: people wait for the end.
const PATIENCE: Patience = Patience { rto: Duration::from_millis(250), requests: 4, last: 4 };
/// Built-in procedure of every endpoint that answers with its argument.
const PING_PROCEDURE: &str = "macula.ping";
/// Largest answer that is looked at.
const ANSWER_BYTES_MAX: usize = 2_048;

/// Finds out what the network does with UDP.
pub(crate) async fn run(args: NetcheckArgs) -> Result<(), Failure> {
    if args.gateway.is_empty() && args.stun.is_empty() {
        return Err(Failure::new(
            Exit::Usage,
            "there is nobody to ask",
            "name a gateway with -g, or a STUN server with --stun HOST:PORT",
        ));
    }
    let mut gateways = Vec::new();
    let mut servers = Vec::new();
    // Whether TLS over TCP reaches a gateway.
    let mut tls = None;
    for gateway in &args.gateway {
        let (asked, by_tls) =
            tokio::join!(ask(gateway, Via::Auto, &args), ask(gateway, Via::Tls, &args));
        tls = Some(by_tls.is_ok() || tls == Some(true));
        match &asked {
            Ok((_, Some((host, port, other_port)))) => {
                servers.extend(resolve(host, *port, *other_port).await);
            }
            Ok((_, None)) => {}
            // It could not say where its STUN server is; if that is not there either, we know why.
            Err(_) => servers.extend(resolve(&gateway.host, DEFAULT_PORT, None).await),
        }
        gateways.push((gateway, asked, by_tls));
    }
    for server in &args.stun {
        let (host, port) = split(server)?;
        let found = resolve(host, port, None).await;
        if found.is_empty() {
            out::note(format_args!("{server}: the name has no address"));
        }
        servers.extend(found);
    }
    // The nearest first, those that do not answer last.
    gateways.sort_by_key(|(_, asked, _)| asked.as_ref().map_or(Duration::MAX, |(took, _)| *took));
    let (report, mapped) = tokio::join!(check(servers), port_mapping());
    let mut report = report?;
    report.tls_works = tls;
    remember(&report);
    let lifetime = match args.lifetime {
        Some(max) => Some(lifetime(&report, max).await?),
        None => None,
    };
    if args.json {
        let mut json = as_json(&gateways, &report);
        json["mapping_lifetime"] = lifetime.map_or(Value::Null, |it| {
            json!({
                "at_least_s": it.at_least.map(|it| it.as_secs()),
                "below_s": it.below.map(|it| it.as_secs()), "known": it.is_supported,
            })
        });
        json["port_mapping"] = mapped
            .iter()
            .map(|(by, external)| json!({"by": by, "external": external.to_string()}))
            .collect();
        return out::json(&json);
    }
    human(&gateways, &report, lifetime)?;
    let named = mapped.iter().map(|(by, external)| format!("{by} ({external})"));
    let named = named.collect::<Vec<_>>().join(", ");
    let named = if named.is_empty() { "none" } else { &*named };
    out::line(format_args!("{:<11} {named}", "mapping by"))
}

/// The file in Macula's directory with what was found last, which `macula status` shows.
const FILE_NAME: &str = "netcheck.json";

/// Keeps the report for `macula status`. It is no harm if that does not work.
fn remember(report: &Report) {
    let Some(directory) = macula_gateway::home::directory() else { return };
    let mut found = as_json(&[], report);
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    found["at_unix"] = at.as_secs().into();
    let kept = macula_gateway::home::create(&directory)
        .and_then(|()| std::fs::write(directory.join(FILE_NAME), found.to_string()));
    if let Err(error) = kept {
        tracing::info!(%error, "the report is not kept");
    }
}

/// What the last `macula netcheck` of this user found, with its age in seconds as `age_s`.
pub(crate) fn remembered() -> Option<Value> {
    let path = macula_gateway::home::directory()?.join(FILE_NAME);
    let mut found: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(found["at_unix"].as_u64()?);
    let age = SystemTime::now().duration_since(at).unwrap_or_default();
    found.as_object_mut()?.insert("age_s".to_owned(), age.as_secs().into());
    Some(found)
}

/// What a gateway said: how long it took, and where its STUN server is.
type Asked = Result<(Duration, Option<(String, u16, Option<u16>)>), String>;

/// A gateway and what it said, by whichever way worked and by TLS over TCP.
type Gateways<'a> = [(&'a GatewayAddress, Asked, Asked)];

async fn ask(gateway: &GatewayAddress, via: Via, args: &NetcheckArgs) -> Asked {
    let mut builder = Node::builder()
        .gateway(gateway.to_string())
        .connect_timeout(args.connect_timeout)
        .via(via)
        .agent(concat!("macula-cli/", env!("CARGO_PKG_VERSION")));
    if gateway.id.is_none() {
        builder = builder.known_gateways(known::file_of_user().map_err(|e| e.what)?);
    }
    let visitor = builder.visit().await.map_err(|error| error.to_string())?;
    let begin = Instant::now();
    let ping = visitor.builtin(PING_PROCEDURE).send().await;
    let took = begin.elapsed();
    let services = visitor.nat_services().await;
    visitor.close().await;
    ping.map_err(|error| error.to_string())?;
    match services {
        Ok(it) => Ok((took, Some((it.host, it.stun_port, it.stun_other_port)))),
        Err(CallError::NoProvider) => Ok((took, None)),
        Err(error) => Err(error.to_string()),
    }
}

fn split(server: &str) -> Result<(&str, u16), Failure> {
    let parts = server.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    parts.filter(|(host, _)| !host.is_empty()).ok_or_else(|| {
        Failure::new(
            Exit::Usage,
            format!("`{server}` is not a STUN server"),
            "write HOST:PORT, for example stun.example.com:3478",
        )
    })
}

/// One server for each family that the name has.
async fn resolve(host: &str, port: u16, other_port: Option<u16>) -> Vec<StunServer> {
    let name = format!("{host}:{port}");
    let host = host.trim_matches(['[', ']']);
    let found: Vec<SocketAddr> = match tokio::net::lookup_host((host, port)).await {
        Ok(found) => found.map(canonical).collect(),
        Err(_) => Vec::new(),
    };
    let first = |is_v6: bool| found.iter().find(|address| address.is_ipv6() == is_v6).copied();
    let both = [first(false), first(true)].into_iter().flatten();
    both.map(|address| StunServer { name: name.clone(), address, other_port }).collect()
}

/// A socket of the family of `servers`' first address that fits, and its address as routed to it.
async fn socket(servers: &[StunServer], is_v6: bool) -> Option<(UdpSocket, SocketAddr)> {
    let to = servers.iter().find(|server| server.address.is_ipv6() == is_v6)?.address;
    let any: IpAddr =
        if is_v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await.ok()?;
    // Connecting sends nothing: it asks the routing table which address would be used.
    let route = UdpSocket::bind((any, 0)).await.ok()?;
    route.connect(to).await.ok()?;
    let local = SocketAddr::new(route.local_addr().ok()?.ip(), socket.local_addr().ok()?.port());
    Some((socket, local))
}

async fn check(servers: Vec<StunServer>) -> Result<Report, Failure> {
    let mut seed = [0; 32];
    SystemRandom::new().fill(&mut seed).map_err(|_| anyhow::anyhow!("no randomness"))?;
    let main = socket(&servers, false).await;
    let quiet = socket(&servers, false).await;
    let v6 = socket(&servers, true).await;
    let local = |socket: &Option<(UdpSocket, SocketAddr)>| socket.as_ref().map(|(_, local)| *local);
    let config = CheckConfig {
        servers,
        main: local(&main),
        quiet: local(&quiet),
        v6: local(&v6),
        patience: PATIENCE,
        seed,
    };
    let begin = Instant::now();
    let now = || Time::START + begin.elapsed();
    let mut check = Check::new(now(), config);
    let sockets = [(Socket::Main, &main), (Socket::Quiet, &quiet), (Socket::V6, &v6)];
    loop {
        while let Some(packet) = check.poll_transmit() {
            let socket = sockets.iter().find(|(name, _)| *name == packet.socket);
            if let Some((_, Some((socket, _)))) = socket {
                // What cannot be sent is as good as lost; it is tried again.
                socket.send_to(&packet.data, packet.to).await.ok();
            }
        }
        let Some(due) = check.poll_timeout() else { return Ok(check.report()) };
        let (mut a, mut b, mut c) =
            ([0; ANSWER_BYTES_MAX], [0; ANSWER_BYTES_MAX], [0; ANSWER_BYTES_MAX]);
        let (name, received, buffer) = tokio::select! {
            received = receive(&main, &mut a) => (Socket::Main, received, &a),
            received = receive(&quiet, &mut b) => (Socket::Quiet, received, &b),
            received = receive(&v6, &mut c) => (Socket::V6, received, &c),
            () = tokio::time::sleep(due.saturating_since(now())) => {
                check.handle_timeout(now());
                continue;
            }
        };
        let (length, from) = received;
        check.handle_packet(now(), name, from, buffer.get(..length).unwrap_or_default());
    }
}

/// Tries how long mappings last, with the nearest server of the report.
async fn lifetime(report: &Report, max: Duration) -> Result<LifetimeReport, Failure> {
    let nearest = report.servers.iter().find(|it| it.is_alive && it.address.is_ipv4());
    let Some(server) = nearest.map(|server| server.address) else {
        return Ok(LifetimeReport::default());
    };
    let mut seed = [0; 32];
    SystemRandom::new().fill(&mut seed).map_err(|_| anyhow::anyhow!("no randomness"))?;
    let begin = Instant::now();
    let now = || Time::START + begin.elapsed();
    let mut trial = Lifetime::new(now(), server, max, &seed);
    let (sender, mut received) = mpsc::channel(64);
    let mut sockets = Vec::new();
    let mut readers = JoinSet::new();
    for number in 0..trial.sockets() {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await;
        let socket = Arc::new(socket.map_err(|e| anyhow::anyhow!("no socket: {e}"))?);
        let (reader, sender) = (Arc::clone(&socket), sender.clone());
        readers.spawn(async move {
            let mut buffer = [0; ANSWER_BYTES_MAX];
            loop {
                // An error is news of a packet sent before.
                let Ok((length, from)) = reader.recv_from(&mut buffer).await else { continue };
                let packet = buffer.get(..length).unwrap_or_default().to_vec();
                if sender.send((number, from, packet)).await.is_err() {
                    return;
                }
            }
        });
        sockets.push(socket);
    }
    let mut told = None;
    loop {
        while let Some((socket, packet)) = trial.poll_transmit() {
            if let Some(socket) = sockets.get(socket) {
                // What cannot be sent is as good as lost; it is tried again.
                socket.send_to(&packet, server).await.ok();
            }
        }
        let Some(due) = trial.poll_timeout() else { return Ok(trial.report()) };
        let so_far = trial.report().at_least;
        if so_far != told
            && let Some(so_far) = so_far
        {
            told = Some(so_far);
            out::note(format_args!("a mapping lasts {} s at least", so_far.as_secs()));
        }
        tokio::select! {
            Some((socket, from, packet)) = received.recv() => {
                trial.handle_packet(now(), socket, from, &packet);
            }
            () = tokio::time::sleep(due.saturating_since(now())) => trial.handle_timeout(now()),
        }
    }
}

fn lifetime_in_words(lifetime: LifetimeReport) -> String {
    let seconds = |time: Duration| time.as_secs();
    match (lifetime.at_least, lifetime.below) {
        _ if !lifetime.is_supported => {
            "not known: no server here answers to other ports (RFC 5780), as gateways do".to_owned()
        }
        (Some(at_least), Some(below)) => {
            format!("{} to {} s without packets", seconds(at_least), seconds(below))
        }
        (Some(at_least), None) => format!("more than {} s without packets", seconds(at_least)),
        (None, Some(below)) => {
            format!("less than {} s: links cannot be kept by usual means", seconds(below))
        }
        (None, None) => "not known".to_owned(),
    }
}

/// Which protocols the router maps ports by, and the outer addresses that it gave. The port is given
/// back at once.
#[cfg(feature = "portmap")]
async fn port_mapping() -> Vec<(&'static str, SocketAddr)> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok();
    let port = socket.as_ref().and_then(|socket| socket.local_addr().ok()?.port().try_into().ok());
    let Some(port) = port else { return Vec::new() };
    let found = macula_transport::probe_port_mapping(port).await;
    found.into_iter().map(|(by, external)| (by.as_str(), external)).collect()
}

#[cfg(not(feature = "portmap"))]
async fn port_mapping() -> Vec<(&'static str, SocketAddr)> {
    Vec::new()
}

/// What a search for ports (`macula_nat::search`) would make of this NAT.
fn search(report: &Report) -> Option<Behaviour> {
    Facts::new(report, report.mapped).map(|facts| facts.behaviour)
}

/// The next packet; never, if there is no such socket.
async fn receive(
    socket: &Option<(UdpSocket, SocketAddr)>,
    buffer: &mut [u8],
) -> (usize, SocketAddr) {
    let Some((socket, _)) = socket else { return std::future::pending().await };
    loop {
        // An error is news of a packet sent before: nobody is there.
        if let Ok(received) = socket.recv_from(buffer).await {
            return received;
        }
    }
}

fn as_json(gateways: &Gateways<'_>, report: &Report) -> Value {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let gateways = gateways.iter().map(|(gateway, asked, by_tls)| match asked {
        Ok((took, stun)) => json!({
            "gateway": gateway.to_string(), "ok": true, "us": micros(*took),
            "stun": stun.is_some(),
            "tls_us": by_tls.as_ref().ok().map(|(took, _)| micros(*took)),
        }),
        Err(error) => json!({"gateway": gateway.to_string(), "ok": false, "message": error}),
    });
    let servers = report.servers.iter().map(|server| {
        json!({
            "name": server.name, "address": server.address.to_string(), "ok": server.is_alive,
            "mapped": server.mapped.map(|it| it.to_string()), "us": server.rtt.map(micros),
        })
    });
    json!({
        "gateways": gateways.collect::<Vec<_>>(),
        "stun": servers.collect::<Vec<_>>(),
        "udp_blocked": report.udp_blocked,
        "tls_works": report.tls_works,
        "local": report.local.map(|it| it.to_string()),
        "mapped": report.mapped.map(|it| it.to_string()),
        "mapping": report.mapping.map(|it| it.as_str()),
        "mapped_ports": report.mapped_ports,
        "filtering": report.filtering.map(|it| it.as_str()),
        "hairpin": report.hairpin,
        "preserves_port": report.preserves_port,
        "ipv6": report.v6.map(|(local, mapped)| {
            json!({"local": local.to_string(), "mapped": mapped.to_string()})
        }),
        "port_search": search(report).map(Behaviour::as_str),
        "cgnat_suspected": report.cgnat_suspected,
        "verdict": report.verdict(),
    })
}

fn human(
    gateways: &Gateways<'_>,
    report: &Report,
    lifetime: Option<LifetimeReport>,
) -> Result<(), Failure> {
    for (gateway, asked, by_tls) in gateways {
        let host = gateway.host_port();
        match asked {
            Ok((took, stun)) => {
                let without = if stun.is_some() { "" } else { ", without STUN" };
                let took = out::human_duration(*took);
                out::line(format_args!("gateway     {host} in {took}{without}"))?;
            }
            Err(error) => out::line(format_args!("gateway     {host}: {error}"))?,
        }
        match by_tls {
            Ok((took, _)) => {
                let took = out::human_duration(*took);
                out::line(format_args!("by TLS      {host} in {took}"))?;
            }
            // The reason is above.
            Err(_) if asked.is_err() => {}
            Err(error) => out::line(format_args!("by TLS      {host}: {error}"))?,
        }
    }
    for server in &report.servers {
        let what = match (server.is_alive, server.rtt) {
            (true, Some(rtt)) => format!("in {}", out::human_duration(rtt)),
            (true, None) => "after a repetition".to_owned(),
            (false, _) => "no answer".to_owned(),
        };
        out::line(format_args!("stun        {} ({}) {what}", server.name, server.address))?;
    }
    let fact = |name: &str, value: Option<String>| match value {
        Some(value) => out::line(format_args!("{name:<11} {value}")),
        None => Ok(()),
    };
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    fact("local", report.local.map(|it| it.to_string()))?;
    fact("mapped", report.mapped.map(|it| it.to_string()))?;
    fact("mapping", report.mapping.map(|it| it.to_string()))?;
    if !report.mapped_ports.is_empty() {
        fact("ports", Some(format!("{:?}", report.mapped_ports)))?;
    }
    fact("filtering", report.filtering.map(|it| it.to_string()))?;
    fact("lifetime", lifetime.map(lifetime_in_words))?;
    fact("same port", report.preserves_port.map(yes))?;
    fact("hairpin", report.hairpin.map(yes))?;
    fact("ipv6", report.v6.map(|(_, mapped)| mapped.to_string()))?;
    if report.cgnat_suspected {
        fact("provider", Some("a carrier's NAT is suspected (RFC 6598 address)".to_owned()))?;
    }
    let meaning = search(report).map(|behaviour| match behaviour {
        Behaviour::Independent => "easy: peers behind harder NATs find this one",
        Behaviour::Random => "random: peers behind easy NATs are found with many sockets",
        Behaviour::Sequential { .. } => "sequential: peers behind easy NATs predict the next port",
    });
    fact("search", meaning.map(str::to_owned))?;
    fact("verdict", Some(report.verdict()))
}
