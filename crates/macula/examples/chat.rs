//! Two people in one room: both publish on a topic, and both see every line.
//!
//! Runs by itself; with `MACULA_GATEWAY=HOST:PORT` it uses that gateway instead of its own.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use macula::{Node, Router, Subscription};

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    run().await
}

pub(crate) async fn run() -> Result<(), Error> {
    let (router, gateway) = gateway().await?;
    let (ada, mut ada_sees) = enter(&gateway).await?;
    let (bob, mut bob_sees) = enter(&gateway).await?;

    ada.publish("room.lobby", "ada: hello").await?;
    bob_sees.next().await.ok_or("the chat has ended")?;
    bob.publish("room.lobby", "bob: hello yourself").await?;

    for line in 1..=2 {
        let message = ada_sees.next().await.ok_or("the chat has ended")?;
        println!("{line}. {}", String::from_utf8_lossy(&message.payload));
    }
    ada.close().await;
    bob.close().await;
    if let Some(router) = router {
        router.close().await;
    }
    Ok(())
}

/// Joins the realm and listens in the room.
async fn enter(gateway: &str) -> Result<(Node, Subscription), Error> {
    let node = Node::builder().realm("com.example.chat").gateway(gateway).start().await?;
    let lines = node.subscribe("room.lobby").await?;
    Ok((node, lines))
}

/// The gateway to use: the one that was named, or one made for this run.
async fn gateway() -> Result<(Option<Router>, String), Error> {
    if let Ok(gateway) = std::env::var("MACULA_GATEWAY") {
        return Ok((None, gateway));
    }
    let router =
        Router::builder().listen("127.0.0.1:0".parse()?).realm("com.example.chat").start().await?;
    let gateway = format!("{}@{}", router.id(), router.local_addr());
    Ok((Some(router), gateway))
}
