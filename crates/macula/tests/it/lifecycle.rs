//! How endpoints end.

use std::time::Duration;

use macula::{CallError, Event, PublishError, Qos, Refusal, Request, Router, SlowPolicy};
use tokio::sync::mpsc;

use crate::support::{address, builder, event, loopback, next, node, router, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_loses_nothing_that_was_published() {
    const MESSAGES: u64 = 20_000;
    for qos in [Qos::AtMostOnce, Qos::AtLeastOnce] {
        let router = router().await;
        let (publishing, subscribing) = (node(&router).await, node(&router).await);
        let mut messages =
            within(subscribing.subscription("last.words").policy(SlowPolicy::Block).open())
                .await
                .unwrap();
        let publisher = publishing.publisher("last.words").qos(qos).open().unwrap();
        for number in 0..MESSAGES {
            within(publisher.publish(number.to_string())).await.unwrap();
        }
        within(publishing.close()).await;
        assert_eq!(publisher.publish("late").await, Err(PublishError::Closed));
        for number in 0..MESSAGES {
            assert_eq!(next(&mut messages).await.payload, number.to_string(), "{qos:?}");
        }
    }
}

#[tokio::test]
async fn everything_that_waits_ends_when_the_node_closes() {
    let router = router().await;
    let (provider, node) = (node(&router).await, node(&router).await);
    let (began, mut begins) = mpsc::channel(1);
    let _service = within(provider.serve("hang", move |request: Request| {
        let began = began.clone();
        async move {
            began.send(()).await.unwrap();
            request.cancelled().await;
            Err::<&str, _>(Refusal::new(1, "cancelled"))
        }
    }))
    .await
    .unwrap();
    let mut messages = within(node.subscribe("silence")).await.unwrap();
    let mut events = node.events();
    let call = tokio::spawn({
        let node = node.clone();
        async move { node.call_with("hang").deadline(Duration::from_secs(60)).send().await }
    });
    within(begins.recv()).await.unwrap();
    within(node.close()).await;
    within(call).await.unwrap().unwrap_err();
    assert_eq!(within(messages.next()).await, None);
    assert!(messages.end_reason().is_some());
    event(&mut events, |event| matches!(event, Event::Closed { failure: None }).then_some(()))
        .await;
    assert_eq!(within(events.next()).await, None);
    assert_eq!(within(node.call("hang", "")).await, Err(CallError::Closed));
    assert_eq!(within(node.publish("a", "b")).await, Err(PublishError::Closed));
    within(node.status()).await.unwrap_err();
    within(node.close()).await;
}

#[tokio::test]
async fn dropping_the_last_handle_stops_the_endpoint() {
    let router = router().await;
    let mut events = router.events();
    let node = node(&router).await;
    let id = node.id();
    let mut messages = within(node.subscribe("a")).await.unwrap();
    drop(node);
    // A subscription is a handle too.
    let local = router.node(crate::support::REALM).await.unwrap();
    within(local.publish("a", "still here")).await.unwrap();
    assert_eq!(next(&mut messages).await.payload, "still here");
    drop(messages);
    event(&mut events, |event| match event {
        Event::PeerDisconnected { peer, .. } if *peer == id => Some(()),
        _ => None,
    })
    .await;
}

#[tokio::test]
async fn a_draining_router_tells_its_nodes_when_to_come_back() {
    let router = router().await;
    let node = node(&router).await;
    let mut events = node.events();
    let window = Duration::from_secs(3);
    within(router.drain(window)).await;
    let reconnect_in = event(&mut events, |event| match event {
        Event::PeerLeaving { reconnect_in, .. } => Some(*reconnect_in),
        _ => None,
    })
    .await;
    assert!(reconnect_in <= window, "{reconnect_in:?}");
    event(&mut events, |event| matches!(event, Event::Disconnected { .. }).then_some(())).await;
    within(router.status()).await.unwrap_err();
}

#[tokio::test]
async fn a_full_router_refuses_more_links() {
    let starting = Router::builder().listen(loopback()).any_open_realm().links_max(1).start();
    let router = within(starting).await.unwrap();
    let first = node(&router).await;
    let second = builder(&router).connect_timeout(Duration::from_millis(1500)).start();
    let refused = within(second).await.unwrap_err();
    assert!(refused.to_string().contains("links"), "{refused}");
    within(first.close()).await;
    node(&router).await;
}

#[tokio::test]
async fn status_shows_links_realms_and_counters() {
    let router = router().await;
    let node = node(&router).await;
    within(node.publish("a", "b")).await.unwrap();
    within(node.ping(None)).await.unwrap();
    let status = within(node.status()).await.unwrap();
    assert_eq!(status.id, node.id());
    assert_eq!(status.gateway, Some(router.local_addr().to_string()));
    assert_eq!(status.realms.first().and_then(|realm| realm.name.as_deref()), Some("test"));
    assert_eq!(status.stats.messages_in, 1);
    let status = within(router.status()).await.unwrap();
    assert_eq!(status.links.first().map(|link| link.peer), Some(node.id()));
    assert!(within(router.stats()).await.unwrap().links_up >= 1);
    assert!(address(&router).ends_with(&router.local_addr().to_string()));
}
