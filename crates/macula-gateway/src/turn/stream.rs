//! Clients by TCP and TLS: the same messages, framed by their lengths (RFC 8656 §3.1, §12.5).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use macula_nat::address::canonical;
use macula_nat::stun::frame_length;
use macula_nat::turn::{Client, ListenerId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::hub::Hub;

/// Packets that wait for one stream; more are dropped, as a network would.
const QUEUE_PACKETS_MAX: usize = 256;
/// A client that says nothing is put out after this: an allocation must be refreshed sooner.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3_700);
/// What the first message may take.
const FIRST_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that does not read what it asked for is put out after this.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// After an error of the listener, for example too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes read at once.
const READ_BYTES: usize = 16 << 10;

/// How many connections there may be, and their numbers.
#[derive(Debug)]
pub(super) struct Connections {
    permits: Arc<Semaphore>,
    next: AtomicU32,
}

impl Connections {
    pub(super) fn new(max: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(max)), next: AtomicU32::new(1) }
    }

    /// Each connection is a listener of its own to the server, so that a port used again is no
    /// longer the same client.
    fn number(&self) -> ListenerId {
        ListenerId(self.next.fetch_add(1, Ordering::Relaxed).max(1))
    }
}

/// Takes connections.
pub(super) async fn accept(
    hub: Arc<Hub>,
    listener: TcpListener,
    connections: Arc<Connections>,
    tls: Option<TlsAcceptor>,
) {
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok((stream, remote)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&connections.permits).try_acquire_owned() else {
            // Dropping the stream closes it.
            tracing::debug!(%remote, "too many TURN connections");
            continue;
        };
        stream.set_nodelay(true).ok();
        let client = Client { listener: connections.number(), remote: canonical(remote) };
        let (hub, tls) = (Arc::clone(&hub), tls.clone());
        tasks.spawn(async move {
            let served = match tls {
                None => serve(&hub, client, stream).await,
                Some(tls) => match timeout(FIRST_TIMEOUT, tls.accept(stream)).await {
                    Ok(Ok(stream)) => serve(&hub, client, stream).await,
                    Ok(Err(error)) => Err(error),
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                },
            };
            if let Err(error) = served {
                tracing::debug!(%error, ?client, "TURN connection");
            }
            hub.remove_stream(client);
            drop(permit);
        });
    }
}

/// Serves one connection until it ends.
async fn serve(
    hub: &Arc<Hub>,
    client: Client,
    stream: impl AsyncRead + AsyncWrite,
) -> io::Result<()> {
    let (reader, writer) = tokio::io::split(stream);
    let (sender, queue) = mpsc::channel(QUEUE_PACKETS_MAX);
    hub.add_stream(client, sender);
    tokio::select! {
        read = read(hub, client, reader) => read,
        written = write(queue, writer) => written,
    }
}

async fn read(
    hub: &Arc<Hub>,
    client: Client,
    mut reader: impl AsyncRead + Unpin,
) -> io::Result<()> {
    // The longest frame is 65,555 bytes, so the buffer is bounded by that and one read.
    let mut buffer = Vec::new();
    let mut patience = FIRST_TIMEOUT;
    let mut chunk = vec![0; READ_BYTES];
    loop {
        let read = timeout(patience, reader.read(&mut chunk)).await;
        let read = read.map_err(|_| io::ErrorKind::TimedOut)??;
        if read == 0 {
            return Ok(());
        }
        buffer.extend_from_slice(chunk.get(..read).unwrap_or_default());
        let mut rest = &buffer[..];
        while let Some(length) = frame_length(rest).map_err(io::Error::other)? {
            let Some((frame, after)) = rest.split_at_checked(length) else { break };
            hub.frame(client, frame);
            rest = after;
            patience = IDLE_TIMEOUT;
        }
        let taken = buffer.len() - rest.len();
        buffer.drain(..taken);
    }
}

async fn write(
    mut queue: mpsc::Receiver<Vec<u8>>,
    mut writer: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    while let Some(mut packet) = queue.recv().await {
        // What waits goes out together.
        while packet.len() < READ_BYTES
            && let Ok(more) = queue.try_recv()
        {
            packet.extend(more);
        }
        let written = timeout(WRITE_TIMEOUT, writer.write_all(&packet)).await;
        written.map_err(|_| io::ErrorKind::TimedOut)??;
        writer.flush().await?;
    }
    Ok(())
}
