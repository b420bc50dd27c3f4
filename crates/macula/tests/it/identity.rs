//! Keys of gateways and nodes.

use std::time::Duration;

use macula::{EndpointId, Event, Node, Router, SecretKey, StartError};

use crate::support::{
    REALM, TestDir, address, builder, event, loopback, node, router, router_at, within,
};

#[tokio::test]
async fn a_gateway_with_another_key_is_refused_with_both_ids() {
    let router = router().await;
    let expected = SecretKey::generate().unwrap().id();
    let gateway = format!("{expected}@{}", router.local_addr());
    match within(Node::builder().realm(REALM).gateway(gateway).start()).await {
        Err(StartError::WrongKey(wrong)) => {
            assert_eq!((wrong.expected, wrong.found), (expected, Some(router.id())));
            assert!(wrong.to_string().contains(&router.id().to_string()));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_next_gateway_in_the_list_is_taken_when_one_is_wrong() {
    let router = router().await;
    let stranger = SecretKey::generate().unwrap().id();
    let node = within(
        Node::builder()
            .realm(REALM)
            .gateway(format!("{stranger}@{}", router.local_addr()))
            .gateway(address(&router))
            .start(),
    )
    .await
    .unwrap();
    let status = within(node.status()).await.unwrap();
    assert_eq!(status.gateway, Some(router.local_addr().to_string()));
    assert_eq!(status.links.first().map(|link| link.peer), Some(router.id()));
}

#[tokio::test]
async fn a_pinned_gateway_must_keep_its_key() {
    let dir = TestDir::new("pins");
    let pins = dir.file("known_gateways");
    let first = router_at(loopback(), SecretKey::generate().unwrap()).await;
    let (listen, pinned) = (first.local_addr(), first.id());
    let connect = || {
        let builder = Node::builder().realm(REALM).gateway(listen.to_string());
        builder.known_gateways(&pins).start()
    };
    within(within(connect()).await.unwrap().close()).await;
    let text = std::fs::read_to_string(&pins).unwrap();
    assert_eq!(text, format!("{listen} {pinned}\n"));
    within(within(connect()).await.unwrap().close()).await;
    assert_eq!(std::fs::read_to_string(&pins).unwrap(), text, "pinned once");

    within(first.close()).await;
    let second = router_at(listen, SecretKey::generate().unwrap()).await;
    match within(connect()).await {
        Err(StartError::WrongKey(wrong)) => {
            assert_eq!((wrong.expected, wrong.found), (pinned, Some(second.id())));
            assert_eq!(wrong.pin_file.as_ref(), Some(&pins));
            assert!(wrong.to_string().contains("remove its line"), "{wrong}");
        }
        other => panic!("{other:?}"),
    }
    std::fs::remove_file(&pins).unwrap();
    within(connect()).await.unwrap();
}

#[tokio::test]
async fn a_gateway_that_comes_back_with_another_key_is_not_trusted() {
    let first = router_at(loopback(), SecretKey::generate().unwrap()).await;
    let listen = first.local_addr();
    let node =
        within(Node::builder().realm(REALM).gateway(listen.to_string()).start()).await.unwrap();
    let mut events = node.events();
    within(first.close()).await;
    let second = router_at(listen, SecretKey::generate().unwrap()).await;
    let wrong = event(&mut events, |event| match event {
        Event::WrongKey(wrong) => Some(wrong.clone()),
        Event::Reconnected { .. } => panic!("trusted a changed key"),
        _ => None,
    })
    .await;
    assert_eq!((wrong.expected, wrong.found), (first.id(), Some(second.id())));
}

#[tokio::test]
async fn a_key_file_keeps_the_identity() {
    let dir = TestDir::new("key");
    let router = router().await;
    let id = async || -> EndpointId {
        let node = within(builder(&router).key_file(dir.file("key")).start()).await.unwrap();
        let id = node.id();
        within(node.close()).await;
        id
    };
    assert_eq!(id().await, id().await);
    std::fs::write(dir.file("key"), "nonsense").unwrap();
    let error = within(builder(&router).key_file(dir.file("key")).start()).await.unwrap_err();
    assert!(matches!(error, StartError::Key(_)), "{error}");
}

#[tokio::test]
async fn a_realm_that_is_not_hosted_is_denied() {
    let hosting = Router::builder().listen(loopback()).realm("hosted").start();
    let router = within(hosting).await.unwrap();
    let denied = within(Node::builder().realm("other").gateway(address(&router)).start()).await;
    match denied {
        Err(StartError::Denied { realm, .. }) => assert_eq!(realm, "other"),
        other => panic!("{other:?}"),
    }
    let node = Node::builder().realm("hosted").gateway(address(&router)).start();
    let node = within(node).await.unwrap();
    assert!(matches!(within(node.realm("other")).await, Err(macula::JoinError::Denied { .. })));
}

#[tokio::test]
async fn an_unreachable_gateway_ends_the_start_in_time() {
    // Bound, so that nobody else is there, and silent.
    let socket = std::net::UdpSocket::bind(loopback()).unwrap();
    let gateway = socket.local_addr().unwrap().to_string();
    let start = Node::builder()
        .realm(REALM)
        .gateway(&gateway)
        .connect_timeout(Duration::from_millis(1500))
        .start();
    match within(start).await {
        Err(StartError::Unreachable { reason, .. }) => {
            assert!(reason.contains(&gateway), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn settings_are_checked() {
    let check = async |builder: macula::NodeBuilder| match within(builder.start()).await {
        Err(StartError::Config(text)) => text,
        other => panic!("{other:?}"),
    };
    assert!(check(Node::builder().gateway("gw:1")).await.contains("realm"));
    assert!(check(Node::builder().realm(REALM)).await.contains("gateway"));
    assert!(check(Node::builder().realm("a b").gateway("gw:1")).await.contains("realm name"));
    assert!(check(Node::builder().realm(REALM).gateway("gw")).await.contains("HOST:PORT"));
}

#[tokio::test]
async fn ephemeral_keys_differ() {
    let router = router().await;
    assert_ne!(node(&router).await.id(), node(&router).await.id());
}
