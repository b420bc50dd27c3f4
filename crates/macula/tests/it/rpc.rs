//! Calls through a router.

use std::sync::Arc;
use std::time::{Duration, Instant};

use macula::{CallError, Refusal, Request, ServeError};
use tokio::sync::{Notify, mpsc};

use crate::support::{node, router, within};

async fn echo(request: Request) -> Result<macula::Bytes, Refusal> {
    Ok(request.payload)
}

#[tokio::test]
async fn calls_are_answered_by_the_provider() {
    let router = router().await;
    let (provider, caller) = (node(&router).await, node(&router).await);
    let service = within(provider.serve("echo", echo)).await.unwrap();
    assert_eq!(service.procedure(), "echo");
    for size in [0, 1, 65_536, 65_537, 1 << 20] {
        let arg = vec![3u8; size];
        assert_eq!(within(caller.call("echo", arg.clone())).await.unwrap(), arg);
    }
    // A node can call itself.
    assert_eq!(within(provider.call("echo", "self")).await.unwrap(), "self");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_at_once_keep_their_answers() {
    let router = router().await;
    let (provider, caller) = (node(&router).await, node(&router).await);
    let _service = within(provider.serve("echo", echo)).await.unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..200u32 {
        let caller = caller.clone();
        calls.spawn(async move {
            let answer = caller.call("echo", number.to_string()).await.unwrap();
            assert_eq!(answer, number.to_string());
        });
    }
    within(calls.join_all()).await;
}

#[tokio::test]
async fn requests_know_their_caller_and_deadline() {
    let router = router().await;
    let (provider, caller) = (node(&router).await, node(&router).await);
    let id = caller.id();
    let _service = within(provider.serve("who", move |request: Request| async move {
        assert_eq!((request.caller, request.procedure()), (id, "who"));
        let left = request.deadline.saturating_duration_since(Instant::now());
        assert!(left > Duration::from_secs(5) && left <= Duration::from_secs(20), "{left:?}");
        assert_eq!(request.traceparent, "00-aa-bb-01");
        Ok("ok")
    }))
    .await
    .unwrap();
    let call = caller
        .call_with("who")
        .deadline(Duration::from_secs(20))
        .traceparent("00-aa-bb-01")
        .to(provider.id());
    assert_eq!(within(call.send()).await.unwrap(), "ok");
}

#[tokio::test]
async fn without_a_provider_a_call_fails_at_once_and_safely() {
    let router = router().await;
    let node = node(&router).await;
    let error = within(node.call("nobody", "")).await.unwrap_err();
    assert_eq!(error, CallError::NoProvider);
    assert!(error.retry_safe());
}

#[tokio::test]
async fn refusals_arrive_word_for_word() {
    let router = router().await;
    let (provider, caller) = (node(&router).await, node(&router).await);
    let _service = within(
        provider.serve("no", |_| async { Err::<&str, _>(Refusal::new(409, "not now, später")) }),
    )
    .await
    .unwrap();
    match within(caller.call("no", "")).await {
        Err(CallError::Refused { code, message, .. }) => {
            assert_eq!((code, message.as_str()), (409, "not now, später"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_panic_in_a_handler_is_an_internal_error_and_the_service_lives() {
    let router = router().await;
    let (provider, caller) = (node(&router).await, node(&router).await);
    let _service = within(provider.serve("fragile", |request: Request| async move {
        assert_ne!(request.payload, "break", "as asked");
        Ok("fine")
    }))
    .await
    .unwrap();
    let error = within(caller.call("fragile", "break")).await.unwrap_err();
    assert!(matches!(error, CallError::Internal { .. }), "{error:?}");
    assert_eq!(within(caller.call("fragile", "")).await.unwrap(), "fine");
}

/// A service that says when a request begins and when it is cancelled, and never answers.
async fn hanging(provider: &macula::Node) -> (macula::Service, mpsc::Receiver<&'static str>) {
    let (said, says) = mpsc::channel(16);
    let service = within(provider.service("hang").concurrency(1).serve(move |request: Request| {
        let said = said.clone();
        async move {
            said.send("began").await.unwrap();
            request.cancelled().await;
            said.send("cancelled").await.unwrap();
            Err::<&str, _>(Refusal::new(1, "too late"))
        }
    }))
    .await
    .unwrap();
    (service, says)
}

#[tokio::test]
async fn a_deadline_ends_the_call_at_both_ends() {
    let router = router().await;
    let (provider, caller) = (node(&router).await, node(&router).await);
    let (_service, mut says) = hanging(&provider).await;
    let start = Instant::now();
    let call = caller.call_with("hang").deadline(Duration::from_millis(300));
    let error = within(call.send()).await.unwrap_err();
    assert!(matches!(error, CallError::Deadline { .. }), "{error:?}");
    assert!(start.elapsed() >= Duration::from_millis(290), "{:?}", start.elapsed());
    assert_eq!(within(says.recv()).await, Some("began"));
    assert_eq!(within(says.recv()).await, Some("cancelled"));
}

#[tokio::test]
async fn dropping_a_call_cancels_the_handler() {
    let router = router().await;
    let (provider, caller) = (node(&router).await, node(&router).await);
    let (_service, mut says) = hanging(&provider).await;
    let call = tokio::spawn({
        let caller = caller.clone();
        async move { caller.call_with("hang").deadline(Duration::from_secs(60)).send().await }
    });
    assert_eq!(within(says.recv()).await, Some("began"));
    call.abort();
    assert_eq!(within(says.recv()).await, Some("cancelled"));
}

#[tokio::test]
async fn a_full_service_is_busy() {
    let router = router().await;
    let (provider, caller) = (node(&router).await, node(&router).await);
    let (_service, mut says) = hanging(&provider).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let call = caller.call_with("hang").deadline(Duration::from_secs(60));
        calls.spawn(call.send());
    }
    assert_eq!(within(says.recv()).await, Some("began"));
    // One runs and one may wait; the others hear that there is no room.
    for _ in 0..6 {
        let error = within(calls.join_next()).await.unwrap().unwrap().unwrap_err();
        assert!(matches!(error, CallError::Busy { .. }), "{error:?}");
        assert!(error.retry_safe());
    }
}

#[tokio::test]
async fn a_closed_service_finishes_what_it_has_begun() {
    let router = router().await;
    let (provider, caller) = (node(&router).await, node(&router).await);
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (begun.clone(), go.clone());
    let service = within(provider.serve("slow", move |_| {
        let (tell, wait) = (tell.clone(), wait.clone());
        async move {
            tell.notify_one();
            wait.notified().await;
            Ok("done")
        }
    }))
    .await
    .unwrap();
    let call = tokio::spawn({
        let caller = caller.clone();
        async move { caller.call("slow", "").await }
    });
    within(begun.notified()).await;
    assert_eq!(service.running(), 1);
    let closing = tokio::spawn(service.close());
    go.notify_one();
    assert_eq!(within(call).await.unwrap().unwrap(), "done");
    within(closing).await.unwrap();
    // The router hears of it on another channel than that of calls.
    within(async {
        while !matches!(caller.call("slow", "").await, Err(CallError::NoProvider)) {
            go.notify_one();
        }
    })
    .await;
}

#[tokio::test]
async fn ping_reaches_the_router_and_other_nodes() {
    let router = router().await;
    let (one, other) = (node(&router).await, node(&router).await);
    assert!(within(one.ping(None)).await.unwrap() > Duration::ZERO);
    assert!(within(one.ping(Some(other.id()))).await.unwrap() > Duration::ZERO);
}

#[tokio::test]
async fn builtin_names_cannot_be_served() {
    let router = router().await;
    let node = node(&router).await;
    let served = within(node.serve("macula.ping", echo)).await;
    assert!(matches!(served, Err(ServeError::Refused { .. })), "{served:?}");
}
