//! `macula ping`.

use std::time::{Duration, Instant};

use macula::{CallError, EndpointId, Node, PathInfo, PathKind};
use macula_gateway::signal::StopSignal;
use serde_json::json;

use crate::args::{GatewayOrLocalArg, PingArgs};
use crate::connect::{self, Asker};
use crate::failure::{Exit, Failure};
use crate::out;

/// Built-in procedure of every endpoint that answers with its argument.
const PING_PROCEDURE: &str = "macula.ping";

/// Measures the round trip to the gateway, or to a peer.
pub(crate) async fn run(args: PingArgs) -> Result<(), Failure> {
    let mut stop = StopSignal::listen()?;
    let peer = args.peer.as_deref().map(parse_peer).transpose()?;
    let GatewayOrLocalArg { gateway, connect } = &args.gateway;
    // Peers are seen only by members of their realms.
    if peer.is_some() && args.realm.is_none() && args.grant.grant.is_none() {
        return Err(no_realm());
    }
    if let Some(peer) = peer {
        let (realm, grant) = (args.realm.as_deref(), args.grant.grant.as_deref());
        let (node, watch) = connect::node(gateway, connect, (realm, grant)).await?;
        let pinged = ping_peer(&args, &node, peer, &mut stop).await;
        connect::close(node, watch).await;
        return pinged;
    }
    let asker = Asker::connect(gateway, connect, (None, None)).await?;
    let name = gateway.host_port();
    let is_tunnelled = asker.is_tunnelled().await;
    if is_tunnelled && !args.json {
        out::note(format_args!("the gateway is reached by TLS over TCP"));
    }
    let mut times = Vec::new();
    let mut failure = None;
    for number in 1..=args.count {
        if number > 1 {
            tokio::select! {
                () = tokio::time::sleep(args.interval) => {}
                _ = stop.received() => break,
            }
        }
        let call = asker.builtin(PING_PROCEDURE).deadline(args.timeout);
        let started = Instant::now();
        let answer = tokio::select! {
            answer = call.send() => answer,
            _ = stop.received() => break,
        };
        let elapsed = started.elapsed();
        match &answer {
            Ok(_) => times.push(elapsed),
            Err(error) => failure = Some(error.clone()),
        }
        report(&args, &name, number, via(is_tunnelled), answer.map(|_| elapsed))?;
    }
    asker.close().await;
    if !args.json {
        summary(&name, args.count, &times)?;
    }
    ended(&name, times.is_empty(), failure)
}

/// How the gateway is reached.
const fn via(is_tunnelled: bool) -> &'static str {
    if is_tunnelled { "tls" } else { "udp" }
}

/// Fails when no ping was answered.
fn ended(name: &str, is_silent: bool, failure: Option<CallError>) -> Result<(), Failure> {
    match failure {
        Some(error) if is_silent => {
            let failure = Failure::from(error).context(format_args!("ping {name}"));
            // Whoever does not answer to ping is not there.
            let exit = if failure.exit == Exit::Nobody { Exit::Unreachable } else { failure.exit };
            Err(Failure { exit, ..failure })
        }
        _ => Ok(()),
    }
}

/// Pings a peer over a link of its own, and tells the path of each answer.
async fn ping_peer(
    args: &PingArgs,
    node: &Node,
    peer: EndpointId,
    stop: &mut StopSignal,
) -> Result<(), Failure> {
    let name = peer.short();
    let linked = tokio::select! {
        linked = node.peer(peer) => linked,
        _ = stop.received() => return Ok(()),
    };
    let link = match linked {
        Ok(link) => Some(link),
        Err(error) if args.until_direct => {
            return Err(Failure::from(error).context(format_args!("peer {name}")));
        }
        // Pings go through the gateway; if none gets there, they say so.
        Err(error) => {
            tracing::info!(%error, "no link to the peer");
            None
        }
    };
    let (mut times, mut failure) = (Vec::new(), None);
    for number in 1..=args.count {
        if number > 1 {
            tokio::select! {
                () = tokio::time::sleep(args.interval) => {}
                _ = stop.received() => break,
            }
        }
        let pinging = tokio::time::timeout(args.timeout, node.ping(Some(peer)));
        let pinged = tokio::select! {
            pinged = pinging => pinged,
            _ = stop.received() => break,
        };
        let answer = pinged.unwrap_or(Err(CallError::Deadline { retry_safe: true }));
        let path = link.as_ref().and_then(|link| link.path());
        match answer {
            Ok(rtt) => {
                times.push(rtt);
                report_path(args, &name, number, rtt, path)?;
            }
            Err(error) => {
                failure = Some(error.clone());
                let is_tunnelled = node.status().await.is_ok_and(|it| it.is_tunnelled);
                report(args, &name, number, via(is_tunnelled), Err(error))?;
                continue;
            }
        }
        if args.until_direct && path.is_some_and(|path| path.kind == PathKind::Direct) {
            return Ok(());
        }
    }
    if args.until_direct {
        return Err(Failure::new(
            Exit::Timeout,
            format!("no direct path to {name} after {} pings", args.count),
            "some NATs let none through; what goes through a relay works all the same",
        ));
    }
    if !args.json {
        summary(&name, args.count, &times)?;
    }
    ended(&name, times.is_empty(), failure)
}

/// Without a link answers come by the gateway's router, as those of other calls do.
fn report_path(
    args: &PingArgs,
    name: &str,
    number: u32,
    rtt: Duration,
    path: Option<PathInfo>,
) -> Result<(), Failure> {
    let kind = path.map_or("routed", |path| path.kind.as_str());
    let remote = path.and_then(|path| path.remote).map(|remote| remote.to_string());
    let server = path.and_then(|path| path.server).map(|server| server.to_string());
    let carrier = path.and_then(|path| path.carrier).map(|carrier| carrier.to_string());
    if args.json {
        return out::json(&json!({
            "ok": true, "number": number, "us": rtt.as_micros() as u64,
            "path": kind, "remote": remote, "turn_server": server, "carrier": carrier,
        }));
    }
    let mut way = remote.map_or_else(|| kind.to_owned(), |it| format!("{kind} {it}"));
    if let Some(server) = server {
        way = format!("{way} by server {server}");
    }
    if let Some(carrier) = carrier {
        way = format!("{way} {}", carrier.chars().take(10).collect::<String>());
    }
    out::line(format_args!("{name}: {number} in {}, {way}", out::human_duration(rtt)))
}

pub(crate) fn no_realm() -> Failure {
    Failure::new(
        Exit::Usage,
        "a peer is seen only by members of its realm",
        "name the realm with --realm NAME, or with --grant FILE",
    )
}

pub(crate) fn parse_peer(text: &str) -> Result<EndpointId, Failure> {
    text.parse().map_err(|e| {
        Failure::new(
            Exit::Usage,
            format!("`{text}` is not an endpoint id: {e}"),
            "take it from the peer's key file (`macula keygen --show FILE`)",
        )
    })
}

fn report(
    args: &PingArgs,
    name: &str,
    number: u32,
    gateway_via: &str,
    answer: Result<Duration, CallError>,
) -> Result<(), Failure> {
    match (answer, args.json) {
        (Ok(elapsed), true) => {
            let us = elapsed.as_micros() as u64;
            out::json(&json!({"ok": true, "number": number, "us": us, "gateway_via": gateway_via}))
        }
        (Ok(elapsed), false) => {
            out::line(format_args!("{name}: {number} in {}", out::human_duration(elapsed)))
        }
        (Err(error), true) => {
            let message = error.to_string();
            out::json(&json!({
                "ok": false, "number": number, "message": message, "gateway_via": gateway_via,
            }))
        }
        (Err(error), false) => out::line(format_args!("{name}: {number} failed: {error}")),
    }
}

fn summary(name: &str, sent: u32, times: &[Duration]) -> Result<(), Failure> {
    let (Some(least), Some(most)) = (times.iter().min(), times.iter().max()) else { return Ok(()) };
    let mean = times.iter().sum::<Duration>() / u32::try_from(times.len()).unwrap_or(u32::MAX);
    out::line(format_args!(
        "{name}: {} of {sent} answered, min {} mean {} max {}",
        times.len(),
        out::human_duration(*least),
        out::human_duration(mean),
        out::human_duration(*most),
    ))
}
