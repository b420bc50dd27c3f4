//! A service and its caller: one answer, and one refusal that arrives word for word.
//!
//! Runs by itself; with `MACULA_GATEWAY=HOST:PORT` it uses that gateway instead of its own.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use macula::{CallError, Node, Refusal, Request, Router};

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    run().await
}

pub(crate) async fn run() -> Result<(), Error> {
    let (router, gateway) = gateway().await?;
    let provider = Node::builder().realm("com.example.math").gateway(&gateway).start().await?;
    let service = provider.serve("square_root", square_root).await?;

    let caller = Node::builder().realm("com.example.math").gateway(&gateway).start().await?;
    let root = caller.call("square_root", "2").await?;
    println!("square_root(2) = {}", String::from_utf8_lossy(&root));

    let deadline = Duration::from_secs(1);
    match caller.call_with("square_root").arg("-1").deadline(deadline).send().await {
        Err(CallError::Refused { code, message, .. }) => println!("refused, {code}: {message}"),
        other => return Err(format!("expected a refusal, got {other:?}").into()),
    }
    service.close().await;
    caller.close().await;
    provider.close().await;
    if let Some(router) = router {
        router.close().await;
    }
    Ok(())
}

async fn square_root(request: Request) -> Result<String, Refusal> {
    let text = String::from_utf8_lossy(&request.payload);
    let number: f64 = text.parse().map_err(|_| Refusal::new(400, "not a number"))?;
    if number < 0.0 {
        return Err(Refusal::new(422, "negative numbers have no real root"));
    }
    Ok(number.sqrt().to_string())
}

/// The gateway to use: the one that was named, or one made for this run.
async fn gateway() -> Result<(Option<Router>, String), Error> {
    if let Ok(gateway) = std::env::var("MACULA_GATEWAY") {
        return Ok((None, gateway));
    }
    let router =
        Router::builder().listen("127.0.0.1:0".parse()?).realm("com.example.math").start().await?;
    let gateway = format!("{}@{}", router.id(), router.local_addr());
    Ok((Some(router), gateway))
}
