//! Streaming calls through a router.

use std::time::Duration;

use macula::{CallError, ItemReceiver, ItemSender, Refusal, Request, StreamError};
use tokio::sync::mpsc;

use crate::support::{node, router, within};

fn refuse(error: StreamError) -> Refusal {
    Refusal::new(1, error.to_string())
}

/// Sends the numbers below the argument, then says how many.
async fn count(request: Request, _: ItemReceiver, items: ItemSender) -> Result<String, Refusal> {
    let end: u32 = String::from_utf8_lossy(&request.payload)
        .parse()
        .map_err(|_| Refusal::new(400, "no number"))?;
    for number in 0..end {
        items.send(number.to_string()).await.map_err(refuse)?;
    }
    Ok(end.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_streams_to_a_caller() {
    let router = router().await;
    let (provider, caller) = (node(&router).await, node(&router).await);
    let _service = within(provider.serve_streaming("count", count)).await.unwrap();
    let mut stream = within(caller.open("count", "20000")).await.unwrap();
    stream.finish();
    for number in 0..20_000 {
        assert_eq!(within(stream.next()).await.unwrap(), number.to_string());
    }
    assert_eq!(within(stream.next()).await, None);
    assert_eq!(within(stream.result()).await.unwrap(), "20000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_streams_to_a_provider() {
    let router = router().await;
    let (provider, caller) = (node(&router).await, node(&router).await);
    let handler = |_: Request, mut items: ItemReceiver, _: ItemSender| async move {
        let mut sum = 0;
        while let Some(item) = items.next().await {
            sum += item.len();
        }
        Ok(sum.to_string())
    };
    let _service = within(provider.serve_streaming("sum", handler)).await.unwrap();
    let stream = within(caller.open("sum", "")).await.unwrap();
    for _ in 0..200 {
        within(stream.send(vec![0u8; 64 * 1024])).await.unwrap();
    }
    let too_large = within(stream.send(vec![0u8; 64 * 1024 + 1])).await;
    assert!(matches!(too_large, Err(StreamError::TooLarge { .. })));
    assert_eq!(within(stream.result()).await.unwrap(), (200 * 64 * 1024).to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_flow_in_both_directions_at_once() {
    let router = router().await;
    let (provider, caller) = (node(&router).await, node(&router).await);
    let handler = |_: Request, mut items: ItemReceiver, answers: ItemSender| async move {
        while let Some(item) = items.next().await {
            answers.send(item).await.map_err(refuse)?;
        }
        Ok("over")
    };
    let _service = within(provider.serve_streaming("mirror", handler)).await.unwrap();
    let (sender, mut receiver, result) = within(caller.open("mirror", "")).await.unwrap().split();
    let sender = sender.unwrap();
    let sending = tokio::spawn(async move {
        for number in 0..5000u32 {
            sender.send(number.to_string()).await.unwrap();
        }
    });
    for number in 0..5000u32 {
        assert_eq!(within(receiver.next()).await.unwrap(), number.to_string());
    }
    within(sending).await.unwrap();
    assert_eq!(within(result.wait()).await.unwrap(), "over");
}

#[tokio::test]
async fn a_refusal_ends_the_stream_and_is_its_result() {
    let router = router().await;
    let (provider, caller) = (node(&router).await, node(&router).await);
    let _service = within(provider.serve_streaming("count", count)).await.unwrap();
    let mut stream = within(caller.open("count", "many")).await.unwrap();
    assert_eq!(within(stream.next()).await, None);
    let error = within(stream.result()).await.unwrap_err();
    assert!(matches!(error, CallError::Refused { code: 400, .. }), "{error:?}");
}

#[tokio::test]
async fn dropping_the_stream_cancels_the_handler() {
    let router = router().await;
    let (provider, caller) = (node(&router).await, node(&router).await);
    let (said, mut says) = mpsc::channel(4);
    let handler = move |request: Request, _: ItemReceiver, items: ItemSender| {
        let said = said.clone();
        async move {
            items.send("first").await.map_err(refuse)?;
            request.cancelled().await;
            said.send("cancelled").await.unwrap();
            Ok("never seen")
        }
    };
    let _service = within(provider.serve_streaming("endless", handler)).await.unwrap();
    let mut stream = within(caller.open("endless", "")).await.unwrap();
    assert_eq!(within(stream.next()).await.unwrap(), "first");
    drop(stream);
    assert_eq!(within(says.recv()).await, Some("cancelled"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_waits_stops_the_sender_and_loses_nothing() {
    let router = router().await;
    let (provider, caller) = (node(&router).await, node(&router).await);
    let (sent, mut sends) = mpsc::channel(100_000);
    let handler = move |_: Request, _: ItemReceiver, items: ItemSender| {
        let sent = sent.clone();
        async move {
            for number in 0..1000u32 {
                let mut item = vec![0u8; 60_000];
                item[..4].copy_from_slice(&number.to_be_bytes());
                items.send(item).await.map_err(refuse)?;
                sent.try_send(number).unwrap();
            }
            Ok("over")
        }
    };
    let _service = within(provider.serve_streaming("flood", handler)).await.unwrap();
    let mut stream = within(caller.open("flood", "")).await.unwrap();
    stream.finish();
    // Nobody reads: the sender must come to a stop well before the end.
    let mut last = 0;
    while let Ok(Some(number)) =
        tokio::time::timeout(Duration::from_millis(500), sends.recv()).await
    {
        last = number;
    }
    assert!(last < 999, "the sender was never stopped");
    for number in 0..1000u32 {
        let Some(item) = within(stream.next()).await else {
            panic!("no item {number} after {last} sent: {:?}", within(stream.result()).await);
        };
        assert_eq!(item[..4], number.to_be_bytes());
    }
    assert_eq!(within(stream.result()).await.unwrap(), "over");
}
