//! Many v0.7 clients for one door, to measure it.
//!
//! ```text
//! cargo run --release -p macula-gateway --example v07_load -- 127.0.0.1:9443 com.example.lab 1000 60
//! ```
//!
//! Connects so many clients, each with a CONNECT and a subscription of its own, lets them PING every
//! 30 s as the original does, and ends after so many seconds. With a fifth argument one of them
//! publishes so many messages a second on a topic that all of them have subscribed to. Prints what came.

#![allow(clippy::print_stdout, reason = "a program")]
#![allow(missing_docs, reason = "a program")]

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use macula_gateway::compat07::ALPN;
use macula_gateway::compat07::core::dialect::Value;
use macula_gateway::compat07::core::wire::{FrameReader, Next, frame, kind};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring as provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme, version};

/// Clients that connect at the same time.
const CONNECTING_MAX: usize = 32;
/// Topic that all have.
const TOPIC: &str = "load.all";
/// As of the original.
const PING_INTERVAL: Duration = Duration::from_secs(30);

type Fault = Box<dyn Error + Send + Sync>;

#[derive(Debug, Default)]
struct Counters {
    pongs: AtomicU64,
    messages: AtomicU64,
    lost: AtomicU64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Fault> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, realm, clients, seconds, rate @ ..] = arguments.as_slice() else {
        return Err("usage: v07_load ADDRESS REALM CLIENTS SECONDS [MESSAGES_PER_SECOND]".into());
    };
    let (address, clients): (SocketAddr, usize) = (address.parse()?, clients.parse()?);
    let run = Duration::from_secs(seconds.parse()?);
    let rate: u32 = rate.first().map_or(Ok(0), |rate| rate.parse())?;
    let quic = noq::Endpoint::client("0.0.0.0:0".parse()?)?;
    quic.set_default_client_config(config()?);
    let counters = Arc::new(Counters::default());
    let gate = Arc::new(tokio::sync::Semaphore::new(CONNECTING_MAX));
    let begin = Instant::now();
    let mut connecting = tokio::task::JoinSet::new();
    for number in 0..clients {
        let (quic, gate) = (quic.clone(), Arc::clone(&gate));
        let (realm, counters) = (realm.clone(), Arc::clone(&counters));
        connecting.spawn(async move {
            let _permit = gate.acquire().await?;
            client(&quic, address, &realm, number, counters).await
        });
    }
    let mut senders = Vec::new();
    while let Some(client) = connecting.join_next().await {
        senders.push(client??);
    }
    println!("{} clients connected in {:.2?}", senders.len(), begin.elapsed());
    // The door waits a second to see what a client's receiver does.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut published = 0u64;
    let begin = Instant::now();
    if rate > 0 {
        let sender = senders.first_mut().ok_or("a publisher is needed")?;
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
        while begin.elapsed() < run {
            ticks.tick().await;
            published += 1;
            sender.write_all(&publish(published)).await?;
        }
    } else {
        let mut ticks = tokio::time::interval(PING_INTERVAL);
        let end = tokio::time::Instant::now() + run;
        while tokio::time::timeout_at(end, ticks.tick()).await.is_ok() {
            for sender in &mut senders {
                sender.write_all(&ping()).await?;
            }
        }
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    // Until nothing comes any more.
    let mut before = None;
    while before != Some(count(&counters.messages)) {
        before = Some(count(&counters.messages));
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    println!(
        "{published} published, {} messages and {} PONGs came, {} connections lost",
        count(&counters.messages),
        count(&counters.pongs),
        count(&counters.lost)
    );
    Ok(())
}

/// Connects, subscribes, and counts what comes from then on.
async fn client(
    quic: &noq::Endpoint,
    address: SocketAddr,
    realm: &str,
    number: usize,
    counters: Arc<Counters>,
) -> Result<noq::SendStream, Fault> {
    let connection = quic.connect(address, "localhost")?.await?;
    let (mut sender, mut receiver) = connection.open_bi().await?;
    let node_id = [&[0; 24][..], &(number as u64).to_be_bytes()].concat();
    let connect = Value::map([
        ("version", Value::text("1.0")),
        ("node_id", Value::Bin(node_id.into())),
        ("realm_id", Value::text(realm)),
        ("endpoint", Value::text("https://localhost:9443")),
    ]);
    sender.write_all(&frame(kind::CONNECT, &connect)).await?;
    let topics = vec![Value::text(TOPIC), Value::text(&format!("load.{number}"))];
    let subscribe = Value::map([("topics", Value::List(topics)), ("qos", Value::Int(0))]);
    sender.write_all(&frame(kind::SUBSCRIBE, &subscribe)).await?;
    let mut reader = FrameReader::new(1 << 20);
    let first = receiver.read_chunk(4_096).await?.ok_or("no PONG")?;
    reader.push(&first);
    tokio::spawn(async move {
        loop {
            while let Some(next) = reader.take() {
                match next {
                    Next::Frame(frame) if frame.kind == kind::PUBLISH => &counters.messages,
                    _ => &counters.pongs,
                }
                .fetch_add(1, Ordering::Relaxed);
            }
            match receiver.read_chunk(65_536).await {
                Ok(Some(bytes)) => reader.push(&bytes),
                _ => break,
            }
        }
        counters.lost.fetch_add(1, Ordering::Relaxed);
        drop(connection);
    });
    Ok(sender)
}

fn ping() -> Bytes {
    frame(kind::PING, &Value::map([("timestamp", Value::Int(1))]))
}

fn publish(number: u64) -> Bytes {
    let fields = [
        ("topic", Value::text(TOPIC)),
        ("payload", Value::Bin(vec![b'x'; 100].into())),
        ("qos", Value::Int(0)),
        ("retain", Value::Bool(false)),
        ("message_id", Value::Bin(Bytes::copy_from_slice(&u128::from(number).to_be_bytes()))),
    ];
    frame(kind::PUBLISH, &Value::map(fields))
}

fn config() -> Result<noq::ClientConfig, Fault> {
    let mut tls = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AsV07))
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = noq::crypto::rustls::QuicClientConfig::try_from(tls)?;
    Ok(noq::ClientConfig::new(Arc::new(crypto)))
}

/// Checks nothing, as v0.7 clients do.
#[derive(Debug)]
struct AsV07;

impl ServerCertVerifier for AsV07 {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
