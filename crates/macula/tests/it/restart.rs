//! A gateway goes and comes back while others live on.

use macula::{Event, Qos, SecretKey, SlowPolicy};

use crate::support::{event, loopback, next, node, router_at, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qos_1_survives_a_restart_complete_and_in_order() {
    const MESSAGES: u64 = 3_000;
    let key = SecretKey::generate().unwrap();
    let router = router_at(loopback(), key.clone()).await;
    let listen = router.local_addr();
    let (publishing, subscribing) = (node(&router).await, node(&router).await);
    let mut messages =
        within(subscribing.subscription("steady").policy(SlowPolicy::Block).open()).await.unwrap();
    let (mut publisher_events, mut subscriber_events) = (publishing.events(), subscribing.events());
    let publisher = publishing.publisher("steady").qos(Qos::AtLeastOnce).open().unwrap();

    for number in 1..=MESSAGES / 2 {
        within(publisher.publish(number.to_string())).await.unwrap();
    }
    // In the middle of the flow, without a word, as a crash would be.
    drop(router);
    for number in MESSAGES / 2 + 1..=MESSAGES {
        within(publisher.publish(number.to_string())).await.unwrap();
    }
    let router = router_at(listen, key).await;
    let is_back = |event: &Event| matches!(event, Event::Reconnected { .. }).then_some(());
    event(&mut publisher_events, is_back).await;
    event(&mut subscriber_events, is_back).await;
    for number in 1..=MESSAGES {
        let message = next(&mut messages).await;
        assert_eq!(message.payload, number.to_string());
        assert_eq!(message.sequence, number);
    }
    let report = within(publisher.flush()).await.unwrap();
    assert_eq!((report.accepted, report.delivered), (MESSAGES, MESSAGES));
    assert_eq!(messages.lost(), 0);
    within(router.close()).await;
}

#[tokio::test]
async fn services_come_back_after_a_restart() {
    let key = SecretKey::generate().unwrap();
    let router = router_at(loopback(), key.clone()).await;
    let listen = router.local_addr();
    let (provider, caller) = (node(&router).await, node(&router).await);
    let _service = within(provider.serve("hello", |_| async { Ok("hello") })).await.unwrap();
    let mut events = caller.events();
    assert_eq!(within(caller.call("hello", "")).await.unwrap(), "hello");
    within(router.close()).await;
    drop(router);
    let _router = router_at(listen, key).await;
    event(&mut events, |event| matches!(event, Event::Reconnected { .. }).then_some(())).await;
    // The caller may be back before the provider is.
    within(async {
        while caller.call("hello", "").await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
