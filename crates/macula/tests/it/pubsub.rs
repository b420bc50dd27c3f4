//! Publishing and subscribing through a router.

use std::time::Duration;

use macula::{
    Bytes, DeliveryMode, PublishError, PublishOptions, Qos, Router, SlowPolicy, SubscribeError,
    TryPublishError,
};

use crate::support::{REALM, loopback, next, next_text, node, router, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_publisher_loses_nothing_and_keeps_the_order() {
    const MESSAGES: u64 = 200_000;
    let router = router().await;
    let (publishing, subscribing) = (node(&router).await, node(&router).await);
    let mut messages =
        within(subscribing.subscription("fast").policy(SlowPolicy::Block).open()).await.unwrap();
    let publisher = publishing.publisher("fast").open().unwrap();
    let publishing = tokio::spawn(async move {
        for number in 0..MESSAGES {
            publisher.publish(number.to_be_bytes().to_vec()).await.unwrap();
        }
        publisher.flush().await.unwrap()
    });
    for number in 0..MESSAGES {
        let message = next(&mut messages).await;
        assert_eq!(message.payload[..], number.to_be_bytes());
        assert_eq!(message.sequence, number + 1);
    }
    assert_eq!(within(publishing).await.unwrap().published, MESSAGES);
    assert_eq!(messages.lost(), 0);
}

#[tokio::test]
async fn messages_say_where_they_come_from() {
    let router = router().await;
    let (publishing, subscribing) = (node(&router).await, node(&router).await);
    let mut messages = within(subscribing.subscribe("a.b")).await.unwrap();
    within(publishing.publish("a.b", "hello")).await.unwrap();
    let message = next(&mut messages).await;
    assert_eq!(message.topic(), "a.b");
    assert_eq!(message.payload, "hello");
    assert_eq!(message.publisher, publishing.id());
    assert_eq!((message.sequence, message.qos, message.retained), (1, Qos::AtMostOnce, false));
}

#[tokio::test]
async fn payloads_of_all_sizes_arrive_in_order() {
    let router = router().await;
    let (publishing, subscribing) = (node(&router).await, node(&router).await);
    let mut messages =
        within(subscribing.subscription("sizes").policy(SlowPolicy::Block).open()).await.unwrap();
    let sizes = [0, 1, 4095, 4096, 65_536, 65_537, 3, 1 << 20, 0, 8 << 20, 5];
    let sending = async {
        for size in sizes {
            publishing.publish("sizes", vec![7u8; size]).await.unwrap();
        }
    };
    let receiving = async {
        for size in sizes {
            assert_eq!(next(&mut messages).await.payload.len(), size);
        }
    };
    within(async { tokio::join!(sending, receiving) }).await;
    let too_large = publishing.publish("sizes", vec![0u8; (8 << 20) + 1]).await;
    assert!(matches!(too_large, Err(PublishError::TooLarge { .. })));
}

#[tokio::test]
async fn wildcards_match_segments_and_rests() {
    let router = router().await;
    let (publishing, subscribing) = (node(&router).await, node(&router).await);
    let mut one = within(subscribing.subscribe("sensor.*.temperature")).await.unwrap();
    let mut rest = within(subscribing.subscribe("sensor.**")).await.unwrap();
    for topic in ["sensor.1.temperature", "sensor.1.humidity", "other.1.temperature", "sensor.2"] {
        let options = PublishOptions::default().qos(Qos::AtLeastOnce);
        within(publishing.publish_with(topic, topic.to_owned(), options)).await.unwrap();
    }
    assert_eq!(next_text(&mut one).await, "sensor.1.temperature");
    for topic in ["sensor.1.temperature", "sensor.1.humidity", "sensor.2"] {
        assert_eq!(next_text(&mut rest).await, topic);
    }
    assert!(one.try_next().is_none() && rest.try_next().is_none());
}

#[tokio::test]
async fn qos_1_is_accepted_and_then_delivered() {
    let router = router().await;
    let (publishing, subscribing) = (node(&router).await, node(&router).await);
    let mut messages = within(subscribing.subscribe("sure")).await.unwrap();
    let options = PublishOptions::default().qos(Qos::AtLeastOnce);
    let published = within(publishing.publish_with("sure", "1", options)).await.unwrap();
    assert!(published.is_accepted);
    assert_eq!((published.sequence, published.receivers), (1, 1));
    let publisher = publishing.publisher("sure").qos(Qos::AtLeastOnce).open().unwrap();
    for number in 2..=100 {
        within(publisher.publish(number.to_string())).await.unwrap();
    }
    let report = within(publisher.flush()).await.unwrap();
    assert_eq!((report.published, report.accepted, report.delivered), (100, 100, 100));
    for number in 1..=100 {
        assert_eq!(next_text(&mut messages).await, number.to_string());
    }
}

#[tokio::test]
async fn a_retained_message_greets_later_subscribers() {
    let router = router().await;
    let (publishing, subscribing) = (node(&router).await, node(&router).await);
    let options = PublishOptions::default().qos(Qos::AtLeastOnce).retain(true);
    for payload in ["old", "new"] {
        within(publishing.publish_with("state.door", payload, options)).await.unwrap();
    }
    let mut messages = within(subscribing.subscribe("state.*")).await.unwrap();
    let message = next(&mut messages).await;
    assert_eq!((message.payload, message.retained), (Bytes::from("new"), true));
    within(publishing.publish_with("state.door", "live", options)).await.unwrap();
    let message = next(&mut messages).await;
    assert_eq!((message.payload, message.retained), (Bytes::from("live"), false));

    let mut fresh =
        within(subscribing.subscription("state.*").retained(false).open()).await.unwrap();
    within(publishing.publish_with("state.door", "last", options)).await.unwrap();
    assert_eq!(next_text(&mut fresh).await, "last");
}

#[tokio::test]
async fn realms_do_not_hear_each_other() {
    let router = router().await;
    let here = node(&router).await;
    let there = within(here.realm("other")).await.unwrap();
    assert_eq!((here.realm_name(), there.realm_name()), (REALM, "other"));
    let mut heard_here = within(here.subscribe("topic")).await.unwrap();
    let mut heard_there = within(there.subscribe("topic")).await.unwrap();
    let options = PublishOptions::default().qos(Qos::AtLeastOnce);
    within(here.publish_with("topic", "for here", options)).await.unwrap();
    within(there.publish_with("topic", "for there", options)).await.unwrap();
    assert_eq!(next_text(&mut heard_here).await, "for here");
    assert_eq!(next_text(&mut heard_there).await, "for there");
    assert!(heard_here.try_next().is_none() && heard_there.try_next().is_none());
    let service = within(here.serve("name", |_| async { Ok("here") })).await.unwrap();
    assert!(matches!(within(there.call("name", "")).await, Err(macula::CallError::NoProvider)));
    assert_eq!(within(here.call("name", "")).await.unwrap(), "here");
    service.close().await;
}

#[tokio::test]
async fn a_router_has_local_nodes() {
    let router = router().await;
    let (local, remote) = (router.node(REALM).await.unwrap(), node(&router).await);
    let mut at_router = within(local.subscribe("up")).await.unwrap();
    let mut at_leaf = within(remote.subscribe("down")).await.unwrap();
    let options = PublishOptions::default().qos(Qos::AtLeastOnce);
    within(remote.publish_with("up", "to the router", options)).await.unwrap();
    within(local.publish_with("down", "to the leaf", options)).await.unwrap();
    assert_eq!(next_text(&mut at_router).await, "to the router");
    assert_eq!(next_text(&mut at_leaf).await, "to the leaf");
}

#[tokio::test]
async fn bad_names_are_refused_before_anything_is_sent() {
    let router = router().await;
    let node = node(&router).await;
    for topic in ["", "a..b", "a.*", "a b"] {
        let published = within(node.publish(topic, "x")).await;
        assert!(matches!(published, Err(PublishError::BadTopic(_))), "{topic:?}: {published:?}");
    }
    assert!(matches!(within(node.subscribe("a.**.b")).await, Err(SubscribeError::BadPattern(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_does_not_read_does_not_stop_another() {
    const MESSAGES: usize = 2_000;
    let router = router().await;
    let publishing = node(&router).await;
    let (idle, busy) = (node(&router).await, node(&router).await);
    let mut unread = within(idle.subscription("load").queue(64 * 1024, 16).open()).await.unwrap();
    let mut read =
        within(busy.subscription("load").policy(SlowPolicy::Block).open()).await.unwrap();
    let publisher = publishing.publisher("load").open().unwrap();
    let publishing = tokio::spawn(async move {
        for _ in 0..MESSAGES {
            publisher.publish(vec![1u8; 4096]).await.unwrap();
        }
    });
    for _ in 0..MESSAGES {
        next(&mut read).await;
    }
    within(publishing).await.unwrap();
    assert_eq!(read.lost(), 0);
    // Where the oldest were dropped, the newest are left.
    within(async {
        while unread.lost() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(next(&mut unread).await.sequence > 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocking_subscriber_makes_the_publisher_wait() {
    let router = router().await;
    let (publishing, subscribing) = (node(&router).await, node(&router).await);
    let mut messages = within(
        subscribing.subscription("slow").policy(SlowPolicy::Block).queue(64 * 1024, 16).open(),
    )
    .await
    .unwrap();
    let publisher = publishing.publisher("slow").open().unwrap();
    let payload = Bytes::from(vec![1u8; 32 * 1024]);
    // How much fits before nobody takes more is nobody's promise; that it ends is.
    let mut published = 0u64;
    let mut refusals = 0;
    within(async {
        while refusals < 50 {
            match publisher.try_publish(payload.clone()) {
                Ok(()) => (published, refusals) = (published + 1, 0),
                Err(TryPublishError::WouldBlock) => {
                    refusals += 1;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
    for number in 1..=published {
        assert_eq!(next(&mut messages).await.sequence, number);
    }
    assert_eq!(messages.lost(), 0);
    within(publisher.publish("room again")).await.unwrap();
    assert_eq!(next_text(&mut messages).await, "room again");
}

#[tokio::test]
async fn batches_come_whole() {
    let router = router().await;
    let (publishing, subscribing) = (node(&router).await, node(&router).await);
    let mut messages = within(
        subscribing
            .subscription("batch")
            .mode(DeliveryMode::AsArrives)
            .policy(SlowPolicy::Block)
            .open(),
    )
    .await
    .unwrap();
    let publisher = publishing.publisher("batch").open().unwrap();
    for number in 0..100u8 {
        publisher.try_publish(vec![number]).unwrap();
    }
    let mut expected = 0u8;
    while expected < 100 {
        let batch = within(messages.next_batch()).await.unwrap();
        assert_eq!((batch.topic(), batch.publisher()), ("batch", publishing.id()));
        for payload in batch.into_payloads() {
            assert_eq!(payload[..], [expected]);
            expected += 1;
        }
    }
}

#[tokio::test]
async fn a_dropped_subscription_is_gone_at_the_router() {
    let router = router().await;
    let node = node(&router).await;
    let subscriptions = async || {
        let status = within(router.status()).await.unwrap();
        status.realms.iter().map(|realm| realm.summary.subscriptions).sum::<usize>()
    };
    let subscription = within(node.subscribe("here")).await.unwrap();
    assert_eq!(subscriptions().await, 1);
    drop(subscription);
    within(async {
        while subscriptions().await > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_flush_tells_of_a_retained_message_that_found_no_room() {
    let builder = Router::builder().listen(loopback()).realm(REALM);
    let router = builder.limits(|limits| limits.retained_bytes_max = 100).start();
    let router = within(router).await.unwrap();
    let publishing = node(&router).await;
    let publisher = publishing.publisher("state").retain(true).open().unwrap();
    within(publisher.publish("x".repeat(1_000))).await.unwrap();
    let flushed = within(publisher.flush()).await;
    assert!(matches!(flushed, Err(PublishError::Refused { .. })), "{flushed:?}");
}
