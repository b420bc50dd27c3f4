//! `macula turn-credentials`.

use macula::CallError;
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
    let answer = node.nat_services().await;
    connect::close(node, watch).await;
    let services = match answer {
        Ok(services) => services,
        Err(CallError::NoProvider) => {
            return Err(Failure::new(
                Exit::Failure,
                format!("gateway {} has no TURN server", gateway.host_port()),
                "its operator can turn it on: [turn] in its configuration",
            ));
        }
        Err(error) => return Err(Failure::from(error).context("ask for TURN credentials")),
    };
    let Some(turn) = services.turn else {
        return Err(Failure::new(
            Exit::Denied,
            format!("gateway {} gives this member no TURN credentials", gateway.host_port()),
            "in a guarded realm that takes a grant that allows relay:* and denies no relay",
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
