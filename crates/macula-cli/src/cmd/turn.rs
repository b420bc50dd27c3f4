//! `macula turn-credentials`.

use serde_json::json;

use crate::args::TurnCredentialsArgs;
use crate::connect;
use crate::failure::{Exit, Failure};
use crate::out;

/// Prints what a TURN client needs.
pub(crate) async fn run(args: TurnCredentialsArgs) -> Result<(), Failure> {
    let gateway = &args.gateway.gateway;
    let (node, watch) =
        connect::node(gateway, &args.gateway.connect, args.realm.membership()).await?;
    let answer = node.turn_credentials().await;
    connect::close(node, watch).await;
    let answer = answer.map_err(|e| Failure::from(e).context("ask for TURN credentials"))?;
    let Some(turn) = answer else {
        return Err(Failure::new(
            Exit::Failure,
            format!("gateway {} has no TURN server", gateway.host_port()),
            "its operator can turn it on: [turn] in its configuration",
        ));
    };
    if args.json {
        return out::json(&json!({
            "urls": turn.uris, "username": turn.username, "credential": turn.password,
            "realm": turn.realm, "lifetime_s": turn.lifetime.as_secs(),
        }));
    }
    for uri in &turn.uris {
        out::line(format_args!("uri       {uri}"))?;
    }
    out::line(format_args!("username  {}", turn.username))?;
    out::line(format_args!("password  {}", turn.password))?;
    out::line(format_args!("realm     {}", turn.realm))?;
    out::line(format_args!("lifetime  {}", out::human_duration(turn.lifetime)))
}
