//! What the tests have in common.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use macula::{Event, Events, Message, Node, NodeBuilder, Router, SecretKey, Subscription};

/// Nothing in these tests takes so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// The realm of tests that need only one.
pub(crate) const REALM: &str = "test";

/// Fails instead of hanging.
#[track_caller]
pub(crate) fn within<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(PATIENCE, future).await {
            Ok(output) => output,
            Err(_) => panic!("nothing happened for {PATIENCE:?} at {caller}"),
        }
    }
}

pub(crate) fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A router on loopback that hosts what is asked for.
pub(crate) async fn router() -> Router {
    within(Router::builder().listen(loopback()).any_open_realm().start()).await.unwrap()
}

/// A router on both address families.
pub(crate) async fn dual_router() -> Router {
    let listen = "[::]:0".parse().unwrap();
    within(Router::builder().listen(listen).any_open_realm().start()).await.unwrap()
}

/// A node with a socket of its own at `bind`, attached to such a router by the same address family.
pub(crate) fn bound(router: &Router, bind: &str) -> NodeBuilder {
    let host = if bind.starts_with('[') { "[::1]" } else { "127.0.0.1" };
    let gateway = format!("{}@{host}:{}", router.id(), router.local_addr().port());
    Node::builder().realm(REALM).gateway(gateway).bind(bind.parse().unwrap())
}

/// A router with a given key and address; the port may take a moment to be free.
pub(crate) async fn router_at(listen: SocketAddr, key: SecretKey) -> Router {
    within(async {
        loop {
            let builder = Router::builder().listen(listen).any_open_realm().key(key.clone());
            match builder.start().await {
                Ok(router) => return router,
                Err(macula::StartError::Bind(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
}

/// Where a router is, with its key.
pub(crate) fn address(router: &Router) -> String {
    format!("{}@{}", router.id(), router.local_addr())
}

pub(crate) fn builder(router: &Router) -> NodeBuilder {
    Node::builder().realm(REALM).gateway(address(router))
}

/// A node attached to a router.
pub(crate) async fn node(router: &Router) -> Node {
    within(builder(router).start()).await.unwrap()
}

/// The next message.
pub(crate) async fn next(subscription: &mut Subscription) -> Message {
    within(subscription.next()).await.expect("the subscription lives")
}

/// The payload of the next message, as text.
pub(crate) async fn next_text(subscription: &mut Subscription) -> String {
    String::from_utf8(next(subscription).await.payload.to_vec()).unwrap()
}

/// The next event that `pick` takes.
pub(crate) async fn event<T>(events: &mut Events, pick: impl Fn(&Event) -> Option<T>) -> T {
    within(async {
        loop {
            let event = events.next().await.expect("the endpoint lives");
            if let Some(picked) = pick(&event) {
                return picked;
            }
        }
    })
    .await
}

/// A folder for the files of one test, removed when dropped.
pub(crate) struct TestDir(PathBuf);

impl TestDir {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("macula-it-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}
