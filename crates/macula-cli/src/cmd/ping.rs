//! `macula ping`.

use std::time::{Duration, Instant};

use macula::{CallError, EndpointId, Node, PathKind};
use macula_gateway::signal::StopSignal;
use serde_json::json;

use crate::args::{GatewayOrLocalArg, PingArgs};
use crate::connect::{self, Asker};
use crate::failure::{Exit, Failure};
use crate::out;

/// Built-in procedure of every endpoint that answers with its argument.
const PING_PROCEDURE: &str = "macula.ping";

/// Measures the round trip to the gateway, or through it to a peer.
pub(crate) async fn run(args: PingArgs) -> Result<(), Failure> {
    let mut stop = StopSignal::listen()?;
    let peer = args.peer.as_deref().map(parse_peer).transpose()?;
    let GatewayOrLocalArg { gateway, connect } = &args.gateway;
    // Peers are seen only by members of their realms.
    if peer.is_some() && args.realm.is_none() && args.grant.grant.is_none() {
        return Err(Failure::new(
            Exit::Usage,
            "a peer is seen only by members of its realm",
            "name the realm with --realm NAME, or with --grant FILE",
        ));
    }
    let realm = peer.and(args.realm.as_deref());
    let grant = peer.and(args.grant.grant.as_deref());
    if let Some(peer) = peer.filter(|_| args.until_direct) {
        let (node, watch) = connect::node(gateway, connect, (realm, grant)).await?;
        let pinged = until_direct(&args, &node, peer, &mut stop).await;
        connect::close(node, watch).await;
        return pinged;
    }
    let asker = Asker::connect(gateway, connect, (realm, grant)).await?;
    let name = match &peer {
        Some(peer) => peer.short(),
        None => gateway.host_port(),
    };
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
        let mut call = asker.builtin(PING_PROCEDURE).deadline(args.timeout);
        if let Some(peer) = peer {
            call = call.to(peer);
        }
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
        let via = if is_tunnelled { "tls" } else { "udp" };
        report(&args, &name, number, via, answer.map(|_| elapsed))?;
    }
    asker.close().await;
    if !args.json {
        summary(&name, args.count, &times)?;
    }
    match failure {
        Some(error) if times.is_empty() => {
            let failure = Failure::from(error).context(format_args!("ping {name}"));
            // Whoever does not answer to ping is not there.
            let exit = if failure.exit == Exit::Nobody { Exit::Unreachable } else { failure.exit };
            Err(Failure { exit, ..failure })
        }
        _ => Ok(()),
    }
}

/// Pings over a link of its own until that is direct.
async fn until_direct(
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
    let link = linked.map_err(|error| Failure::from(error).context(format_args!("peer {name}")))?;
    for number in 1..=args.count {
        if number > 1 {
            tokio::select! {
                () = tokio::time::sleep(args.interval) => {}
                _ = stop.received() => return Ok(()),
            }
        }
        let pinged = tokio::select! {
            pinged = tokio::time::timeout(args.timeout, link.ping()) => pinged,
            _ = stop.received() => return Ok(()),
        };
        let answer = pinged.unwrap_or(Err(CallError::Deadline { retry_safe: true }));
        let path = link.path();
        let kind = path.map_or("none", |path| path.kind.as_str());
        let remote = path.and_then(|path| path.remote).map(|remote| remote.to_string());
        let is_direct = answer.is_ok() && kind == PathKind::Direct.as_str();
        match (answer, args.json) {
            (Ok(rtt), true) => out::json(&json!({
                "ok": true, "number": number, "us": rtt.as_micros() as u64,
                "path": kind, "remote": remote,
            }))?,
            (Ok(rtt), false) => {
                let way = remote.map_or_else(|| kind.to_owned(), |it| format!("{kind} {it}"));
                let rtt = out::human_duration(rtt);
                out::line(format_args!("{name}: {number} in {rtt}, {way}"))?;
            }
            (Err(error), _) => {
                let via = node.status().await.is_ok_and(|it| it.is_tunnelled);
                let via = if via { "tls" } else { "udp" };
                report(args, &name, number, via, Err(error))?;
            }
        }
        if is_direct {
            return Ok(());
        }
    }
    Err(Failure::new(
        Exit::Timeout,
        format!("no direct path to {name} after {} pings", args.count),
        "some NATs let none through; what goes through the gateway works all the same",
    ))
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
