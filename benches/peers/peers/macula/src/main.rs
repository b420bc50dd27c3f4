//! Macula as a hub: a router with one open realm, and nodes that keep one link to it.
//! --qos 0|1, --policy block|drop (what the subscriber asks for; block is compared, as for zenoh).
//! RPC is a served procedure. There is no direct topology yet.
use benchkit::*;
use macula::{Node, Publisher as MaculaPublisher, Qos, Router, SlowPolicy};
use std::time::Duration;

const REALM: &str = "perf";

async fn node(o: &Opts) -> Result<Node> {
    Ok(Node::builder().realm(REALM).gateway(o.addr()?).start().await?)
}

struct P {
    publisher: MaculaPublisher,
    is_acknowledged: bool,
}
impl Publisher for P {
    async fn publish(&mut self, m: Bytes) -> Result<bool> {
        self.publisher.publish(m).await?;
        Ok(true)
    }
    async fn flush(&mut self) -> Result<()> {
        if self.is_acknowledged {
            self.publisher.flush().await?;
        }
        Ok(())
    }
}

struct R(Node);
impl RpcClient for R {
    async fn call(&self, m: Bytes) -> Result<usize> {
        Ok(self.0.call("rpc", m).await?.len())
    }
}

struct M;
impl Peer for M {
    type Pub = P;
    type Rpc = R;

    async fn hub(_: Opts) -> Result<(String, Option<u32>, Guard)> {
        let router =
            Router::builder().listen("127.0.0.1:0".parse()?).realm(REALM).start().await?;
        let addr = format!("{}@{}", router.id(), router.local_addr());
        Ok((addr, None, Box::new(router)))
    }

    async fn publisher(o: Opts) -> Result<(String, P)> {
        let node = node(&o).await?;
        let is_acknowledged = o.num("qos", 0) == 1;
        let qos = if is_acknowledged { Qos::AtLeastOnce } else { Qos::AtMostOnce };
        let publisher = node.publisher("perf").qos(qos).open()?;
        std::mem::forget(node);
        Ok((String::new(), P { publisher, is_acknowledged }))
    }

    async fn subscriber(o: Opts, sink: Sink) -> Result<Guard> {
        let node = node(&o).await?;
        let policy = match o.str("policy", "block") {
            "drop" => SlowPolicy::DropOldest,
            _ => SlowPolicy::Block,
        };
        let mut messages = node.subscription("perf").policy(policy).open().await?;
        let task = tokio::spawn(async move {
            while let Some(batch) = messages.next_batch().await {
                for payload in batch.into_payloads() {
                    sink.on(&payload);
                }
            }
        });
        Ok(Box::new((node, task)))
    }

    async fn rpc_server(o: Opts) -> Result<(String, Guard)> {
        let node = node(&o).await?;
        let service = node
            .serve("rpc", |request: macula::Request| async move {
                Ok::<_, macula::Refusal>(request.payload)
            })
            .await?;
        Ok((String::new(), Box::new((node, service))))
    }

    async fn rpc_client(o: Opts) -> Result<R> {
        let node = node(&o).await?;
        // the provider may still be registering
        while node.call_with("rpc").deadline(Duration::from_secs(1)).send().await.is_err() {}
        Ok(R(node))
    }

    async fn idle(o: Opts) -> Result<Guard> {
        Ok(Box::new(node(&o).await?))
    }
}

fn main() -> Result<()> {
    benchkit::main::<M>()
}
