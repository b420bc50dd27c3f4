//! `macula gateway`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use macula_gateway::config::{DEFAULT_FILE, DEFAULT_PORT};
use macula_gateway::signal::StopSignal;
use macula_gateway::turn::Turn;
use macula_gateway::{End, Gateway, GatewayConfig, GatewayError, Told};
use serde_json::json;
use tokio::io::AsyncReadExt;

use super::config::{bad_config, load};
use crate::args::GatewayArgs;
use crate::failure::{Exit, Failure};
use crate::out::{self, Paint};

/// Runs a gateway until it is told to stop.
pub(crate) async fn run(args: GatewayArgs) -> Result<(), Failure> {
    if args.print_config {
        return out::line(DEFAULT_FILE.trim_end());
    }
    let config = effective(&args)?;
    let mut stop = StopSignal::listen()?;
    let gateway = Gateway::start(config).await.map_err(start_failure)?;
    announce(&args, &gateway)?;
    let json = args.json;
    let serve = gateway.run_until(&mut stop, move |told| tell(json, &told));
    let end = tokio::select! {
        end = serve => end,
        // Whoever started this gateway is gone; nobody is left to drain for.
        () = stdin_closed(), if args.until_stdin_closes => return Ok(()),
    };
    match end {
        End::Drained => Ok(()),
        End::Forced => Err(Failure::new(Exit::Failure, "ended by a second signal", "")),
        End::Failed(why) => Err(Failure::new(
            Exit::Failure,
            format!("the gateway broke down: {}", why.as_deref().unwrap_or("for unknown reasons")),
            "start it again; --log debug tells more",
        )),
        _ => Ok(()),
    }
}

/// File, then environment, then flags.
fn effective(args: &GatewayArgs) -> Result<GatewayConfig, Failure> {
    let mut config = match &args.config {
        Some(path) => load(path)?,
        None => GatewayConfig::default(),
    };
    if let Some(listen) = &args.listen {
        config.listen = parse_listen(listen)?;
    }
    if let Some(key) = &args.key {
        config.key = Some(key.clone());
    }
    if args.no_turn {
        config.turn.enabled = false;
    }
    if let Some(listen) = args.turn_listen {
        config.turn.listen = Some(listen);
    }
    if let Some(listen) = args.v07_listen {
        config.v07.listen = Some(listen);
    }
    if args.no_tunnel {
        config.tunnel.enabled = false;
    }
    if !args.tunnel_listen.is_empty() {
        config.tunnel.listen.clone_from(&args.tunnel_listen);
    }
    if !args.realm.is_empty() {
        config.realms.clone_from(&args.realm);
    }
    config.check().map_err(|error| bad_config(&error))?;
    Ok(config)
}

/// `ADDR:PORT`, `ADDR`, `:PORT`, or the name of an address of this machine with a port.
fn parse_listen(text: &str) -> Result<SocketAddr, Failure> {
    let wrong = |why: String| {
        Failure::new(
            Exit::Usage,
            format!("`{text}` is not an address to listen on{why}"),
            "write ADDR:PORT, for example 127.0.0.1:4433, [::]:4433 or 0.0.0.0:0",
        )
    };
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, DEFAULT_PORT));
    }
    if let Some(port) = text.strip_prefix(':') {
        let port = port.parse().map_err(|_| wrong(String::new()))?;
        return Ok(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port));
    }
    if !text.contains(':') {
        return Err(wrong(String::new()));
    }
    let mut found = text.to_socket_addrs().map_err(|e| wrong(format!(" ({e})")))?;
    found.next().ok_or_else(|| wrong(" (the name has no address)".to_owned()))
}

fn start_failure(error: GatewayError) -> Failure {
    let (what, advice) = (error.to_string(), error.advice());
    match error {
        GatewayError::Start(error) => Failure::from(error),
        _ => Failure::new(Exit::Failure, what, advice),
    }
}

/// Tells that the gateway is there, and what to try.
fn announce(args: &GatewayArgs, gateway: &Gateway) -> Result<(), Failure> {
    let (id, local, config) = (gateway.id(), gateway.local_addr(), gateway.config());
    let addrs = gateway.dial_addrs();
    let turn = gateway.turn().and_then(Turn::local_addr);
    let v07 = gateway.v07();
    let tunnels: Vec<String> = gateway.tunnels().iter().map(ToString::to_string).collect();
    if args.json {
        let addrs: Vec<String> = addrs.iter().map(ToString::to_string).collect();
        out::json(&json!({
            "event": "listening", "id": id.to_string(), "addr": local.to_string(),
            "dial": addrs, "realms": config.realms, "any_open_realm": config.realms.is_empty(),
            "turn": turn.map(|it| it.to_string()), "tunnel": tunnels,
            "v07": v07.map(|it| it.local_addr().to_string()), "pid": std::process::id(),
        }))?;
        return Ok(());
    }
    let paint = Paint::stderr();
    let field = |name: &str, value: &dyn std::fmt::Display| {
        out::note(format_args!("{} {value}", paint.dim(format_args!("{name:<9}"))));
    };
    out::note(paint.bold("macula gateway is listening"));
    field("id", &paint.cyan(id));
    field("address", &format_args!("{local} (UDP)"));
    if let Some(turn) = turn {
        field("turn", &format_args!("{turn} (STUN and TURN)"));
    }
    if let Some(v07) = v07 {
        let realms = match v07.realms() {
            [] => "any open realm".to_owned(),
            names => names.join(", "),
        };
        field("v0.7", &format_args!("{} (UDP), into {realms}", v07.local_addr()));
        let loud =
            "clients of v0.7 have NO authentication: whoever reaches that port may be anybody.";
        field("", &paint.yellow(loud));
    }
    if !tunnels.is_empty() {
        field("tunnel", &format_args!("{} (TLS over TCP, for who has no UDP)", tunnels.join(", ")));
    }
    field("key file", &gateway.key_path().display());
    let realm = match config.realms.as_slice() {
        [] => {
            let loud = "ANY open realm is admitted: everybody who reaches this port may use it.";
            field("realms", &paint.yellow(loud));
            field("", &"Name the realms with --realm NAME to change that.");
            "lab"
        }
        [first, ..] => {
            field("realms", &config.realms.join(", "));
            first
        }
    };
    let reach = addrs.last().copied().unwrap_or(local);
    let gateway = format!("{id}@{reach}");
    out::note(paint.dim("try, in other terminals:"));
    let member = if realm.contains('@') {
        // Each needs a key and a grant of its own.
        "--key KEYFILE --grant GRANTFILE".to_owned()
    } else {
        format!("-r {realm}")
    };
    out::note(format_args!("  macula sub -g {gateway} {member} 'hello.**' -v"));
    out::note(format_args!("  macula pub -g {gateway} {member} hello.world 'it works'"));
    Ok(())
}

fn tell(json: bool, told: &Told) {
    if json {
        let event = match told {
            Told::PeerConnected(peer) => {
                json!({"event": "peer_connected", "peer": peer.to_string()})
            }
            Told::PeerDisconnected(peer) => {
                json!({"event": "peer_disconnected", "peer": peer.to_string()})
            }
            Told::Expelled { peer, realm, reason } => json!({
                "event": "expelled", "peer": peer.to_string(), "realm": realm, "reason": reason,
            }),
            Told::Revoked { realm, sequence, expelled } => json!({
                "event": "revoked", "realm": realm, "sequence": sequence, "expelled": expelled,
            }),
            Told::Handshakes(stats) => json!({
                "event": "handshakes", "running": stats.running, "completed": stats.completed,
                "retried": stats.retried, "pauses": stats.pauses,
                "refused_full": stats.refused_full, "refused_rate": stats.refused_rate,
                "ignored_source": stats.ignored_source, "refused_key": stats.refused_key,
                "timed_out": stats.timed_out, "displaced": stats.displaced,
                "failed": stats.failed, "junk": stats.junk,
            }),
            Told::Draining { signal, reconnect_window } => json!({
                "event": "draining", "signal": signal,
                "reconnect_window_ms": reconnect_window.as_millis() as u64,
            }),
            _ => return,
        };
        // A gateway serves its peers also when nobody reads what it tells.
        out::json(&event).ok();
        return;
    }
    match told {
        Told::Draining { signal, reconnect_window } => {
            let window = out::human_duration(*reconnect_window);
            out::note(format_args!(
                "{signal}: draining; peers come back within {window}. Again to end at once."
            ));
        }
        Told::Expelled { peer, realm, reason } => {
            out::note(format_args!("put {peer} out of realm {realm}: {reason}"));
        }
        Told::Revoked { realm, sequence, expelled } => out::note(format_args!(
            "realm {realm}: revocations {sequence} hold now; {expelled} peers were put out"
        )),
        _ => {}
    }
}

/// Completes when stdin has come to its end.
async fn stdin_closed() {
    let mut stdin = tokio::io::stdin();
    let mut ignored = [0u8; 256];
    while let Ok(1..) = stdin.read(&mut ignored).await {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_to_listen_on() {
        let check = |text: &str, address: &str| {
            assert_eq!(parse_listen(text).unwrap(), address.parse().unwrap(), "{text}");
        };
        check("127.0.0.1:0", "127.0.0.1:0");
        check("[::]:4433", "[::]:4433");
        check("[::1]", "[::1]:4433");
        check("::", "[::]:4433");
        check("0.0.0.0", "0.0.0.0:4433");
        check(":5000", "[::]:5000");
        for text in ["", "4433", "nowhere", "127.0.0.1:x", ":x", "127.0.0.1:99999"] {
            assert_eq!(parse_listen(text).unwrap_err().exit, Exit::Usage, "{text}");
        }
    }
}
