//! A call with items in both directions: lines go up, shouted lines come back, then a summary.
//!
//! Runs by itself; with `MACULA_GATEWAY=HOST:PORT` it uses that gateway instead of its own.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use macula::{ItemReceiver, ItemSender, Node, Refusal, Request, Router};

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    run().await
}

pub(crate) async fn run() -> Result<(), Error> {
    let (router, gateway) = gateway().await?;
    let provider = Node::builder().realm("com.example.text").gateway(&gateway).start().await?;
    let service = provider.serve_streaming("shout", shout).await?;

    let caller = Node::builder().realm("com.example.text").gateway(&gateway).start().await?;
    let mut stream = caller.open("shout", "!").await?;
    for line in ["first", "second", "third"] {
        stream.send(line).await?;
        let shouted = stream.next().await.ok_or("the stream has ended early")?;
        println!("{line} -> {}", String::from_utf8_lossy(&shouted));
    }
    stream.finish();
    println!("{}", String::from_utf8_lossy(&stream.result().await?));

    service.close().await;
    caller.close().await;
    provider.close().await;
    if let Some(router) = router {
        router.close().await;
    }
    Ok(())
}

/// Answers each line at once; the result comes when the caller has no more.
async fn shout(
    request: Request,
    mut lines: ItemReceiver,
    answers: ItemSender,
) -> Result<String, Refusal> {
    let mark = String::from_utf8_lossy(&request.payload).into_owned();
    let mut count = 0;
    while let Some(line) = lines.next().await {
        let shouted = String::from_utf8_lossy(&line).to_uppercase() + &mark;
        answers.send(shouted).await.map_err(|error| Refusal::new(1, error.to_string()))?;
        count += 1;
    }
    Ok(format!("{count} lines"))
}

/// The gateway to use: the one that was named, or one made for this run.
async fn gateway() -> Result<(Option<Router>, String), Error> {
    if let Ok(gateway) = std::env::var("MACULA_GATEWAY") {
        return Ok((None, gateway));
    }
    let listen = "127.0.0.1:0".parse()?;
    let router = Router::builder().listen(listen).realm("com.example.text").start().await?;
    let gateway = format!("{}@{}", router.id(), router.local_addr());
    Ok((Some(router), gateway))
}
