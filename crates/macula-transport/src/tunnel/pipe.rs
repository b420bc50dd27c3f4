//! Carries packets between QUIC and the stream of a tunnel.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use macula_proto::wire::tunnel::pull;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::{End, READ_BYTES};
use crate::quic::{Outlet, Tunnel};

/// What the connection in a tunnel may say after its end: that it closed.
const LINGER: Duration = Duration::from_millis(500);
/// A peer that takes nothing for so long is gone; QUIC's idle timeout mostly comes first.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// What the last bytes of the stream itself may take.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);
/// Bytes written at once: a record of TLS.
const WRITE_BYTES: usize = 16 * 1024;

/// A stream that can carry a tunnel.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Runs a tunnel until its stream breaks, or until the connection in it is over, or when there is
/// none after `unused`. `came` is what was read already.
pub(crate) async fn run(
    stream: Box<dyn Stream>,
    came: BytesMut,
    tunnel: Tunnel,
    unused: Duration,
) -> End {
    let state = tunnel.state();
    let over = async {
        tokio::select! {
            biased;
            () = state.in_use.cancelled() => state.done.cancelled().await,
            () = state.done.cancelled() => {}
            () = sleep(unused) => return End::Unused,
        }
        sleep(LINGER).await;
        End::Over
    };
    let (reader, mut writer) = tokio::io::split(stream);
    let (end, error) = tokio::select! {
        end = over => (end, None),
        (end, error) = read(reader, came, &tunnel) => (end, error),
        error = write(&mut writer, tunnel.outlet()) => (End::Over, Some(error)),
    };
    if let Some(error) = error {
        tracing::debug!(%error, remote = %state.remote, ?end, "tunnel");
    }
    state.broken.cancel();
    // What cannot be said is not missed.
    timeout(SHUTDOWN_TIMEOUT, writer.shutdown()).await.ok();
    end
}

async fn read(
    mut reader: impl AsyncRead + Unpin,
    mut came: BytesMut,
    tunnel: &Tunnel,
) -> (End, Option<io::Error>) {
    loop {
        loop {
            match pull(&mut came) {
                Ok(Some(packet)) => tunnel.receive(&packet).await,
                Ok(None) => break,
                Err(error) => return (End::Malformed, Some(io::Error::other(error))),
            }
        }
        came.reserve(READ_BYTES);
        match reader.read_buf(&mut came).await {
            Ok(0) => return (End::Over, None),
            Ok(_) => {}
            Err(error) => return (End::Over, Some(error)),
        }
    }
}

async fn write(writer: &mut (impl AsyncWrite + Unpin), outlet: &Outlet) -> io::Error {
    loop {
        let piece = outlet.next(WRITE_BYTES).await;
        let written = timeout(WRITE_TIMEOUT, async {
            writer.write_all(&piece).await?;
            writer.flush().await
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(_elapsed) => return io::ErrorKind::TimedOut.into(),
        }
    }
}
