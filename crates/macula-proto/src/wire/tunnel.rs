//! Packets of QUIC in a stream: what goes through the tunnel to a gateway where UDP does not pass.
//!
//! A tunnel is opened by an HTTP/1.1 upgrade (RFC 9110 §7.8), as proxies and inspecting firewalls know
//! them. After it, each direction is a row of frames: a length of two bytes, big-endian, and one packet
//! of that length. Spec: docs/protocol §10.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::limits::{TUNNEL_HEAD_BYTES_MAX, TUNNEL_PACKET_BYTES_MAX};

/// What is asked for.
pub const PATH: &str = "/macula";
/// The protocol that the stream is upgraded to.
pub const PROTOCOL: &str = "macula-tunnel";
/// Bytes in front of a packet.
pub const HEADER_BYTES: usize = 2;

/// The end of a head.
const HEAD_END: &[u8] = b"\r\n\r\n";
/// Header fields that are looked at in one head.
const FIELDS_MAX: usize = 64;

/// What came through a tunnel is no frame; there is no way to find the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a packet of {bytes} bytes is announced; allowed are 1 to {TUNNEL_PACKET_BYTES_MAX}")]
pub struct BadLength {
    /// The announced length.
    pub bytes: usize,
}

/// Appends one packet as a frame; `false`, and nothing was done, if it is empty or too long.
pub fn push(out: &mut BytesMut, packet: &[u8]) -> bool {
    let Ok(bytes) = u16::try_from(packet.len()) else { return false };
    if packet.is_empty() || packet.len() > TUNNEL_PACKET_BYTES_MAX {
        return false;
    }
    out.reserve(packet.len().saturating_add(HEADER_BYTES));
    out.put_u16(bytes);
    out.put_slice(packet);
    true
}

/// Takes the next packet out of what came; `None`: it is not complete. Whoever calls this whenever
/// bytes came holds less than a frame afterwards.
///
/// # Errors
/// [`BadLength`], as soon as the length is there; the stream is of no use any more.
pub fn pull(came: &mut BytesMut) -> Result<Option<Bytes>, BadLength> {
    let Some(header) = came.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let bytes = usize::from(u16::from_be_bytes(*header));
    if bytes == 0 || bytes > TUNNEL_PACKET_BYTES_MAX {
        return Err(BadLength { bytes });
    }
    if came.len() < bytes.saturating_add(HEADER_BYTES) {
        return Ok(None);
    }
    came.advance(HEADER_BYTES);
    Ok(Some(came.split_to(bytes).freeze()))
}

/// A head cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHead {
    /// It does not end within [`TUNNEL_HEAD_BYTES_MAX`].
    #[error("the head is longer than {TUNNEL_HEAD_BYTES_MAX} bytes")]
    TooLong,
    /// It is not HTTP/1.
    #[error("not HTTP/1")]
    NotHttp,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A tunnel.
    Tunnel,
    /// Some page, as browsers do.
    Page,
    /// Something that there is not: another method.
    Other,
}

/// The head that asks for a tunnel. `host` is the server as people write it; what could not be in a
/// header is left out of it.
pub fn request(host: &str) -> String {
    let host: String = host.chars().filter(|c| c.is_ascii_graphic()).take(255).collect();
    format!(
        "GET {PATH} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: {PROTOCOL}\r\n\r\n"
    )
}

/// The answer to [`Request::Tunnel`]: frames follow.
pub fn accepted() -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {PROTOCOL}\r\n\r\n"
    )
}

/// Takes a request out of what came; `None`: its end is still to come.
///
/// # Errors
/// [`BadHead`].
pub fn read_request(came: &mut BytesMut) -> Result<Option<Request>, BadHead> {
    let Some(head) = take_head(came)? else { return Ok(None) };
    let (line, fields) = lines(&head)?;
    let mut words = line.split(' ');
    let (method, path, version) = (words.next(), words.next(), words.next());
    if words.next().is_some() || !version.is_some_and(|it| it.starts_with("HTTP/1.")) {
        return Err(BadHead::NotHttp);
    }
    Ok(Some(match (method, path) {
        (Some("GET"), Some(PATH)) if is_upgrade(fields) => Request::Tunnel,
        (Some("GET" | "HEAD"), _) => Request::Page,
        _ => Request::Other,
    }))
}

/// Takes the answer to [`request`] out of what came: the status, and whether frames follow; `None`: its
/// end is still to come.
///
/// # Errors
/// [`BadHead`].
pub fn read_answer(came: &mut BytesMut) -> Result<Option<(u16, bool)>, BadHead> {
    let Some(head) = take_head(came)? else { return Ok(None) };
    let (line, fields) = lines(&head)?;
    let mut words = line.split(' ');
    let version = words.next().filter(|it| it.starts_with("HTTP/1."));
    let status = words.next().and_then(|it| it.parse().ok());
    let (Some(_), Some(status)) = (version, status) else { return Err(BadHead::NotHttp) };
    Ok(Some((status, status == 101 && is_upgrade(fields))))
}

fn take_head(came: &mut BytesMut) -> Result<Option<BytesMut>, BadHead> {
    let seen = came.get(..TUNNEL_HEAD_BYTES_MAX).unwrap_or(came);
    match seen.windows(HEAD_END.len()).position(|it| it == HEAD_END) {
        Some(at) => Ok(Some(came.split_to(at.saturating_add(HEAD_END.len())))),
        None if came.len() >= TUNNEL_HEAD_BYTES_MAX => Err(BadHead::TooLong),
        None => Ok(None),
    }
}

fn lines(head: &[u8]) -> Result<(&str, impl Iterator<Item = (&str, &str)>), BadHead> {
    let head = std::str::from_utf8(head).map_err(|_| BadHead::NotHttp)?;
    let mut lines = head.split("\r\n");
    let first = lines.next().ok_or(BadHead::NotHttp)?;
    let fields = lines.take(FIELDS_MAX).filter_map(|line| line.split_once(':'));
    Ok((first, fields.map(|(name, value)| (name, value.trim()))))
}

fn is_upgrade<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> bool {
    let (mut connection, mut upgrade) = (false, false);
    for (name, value) in fields {
        let has = |token: &str| value.split(',').any(|it| it.trim().eq_ignore_ascii_case(token));
        connection |= name.eq_ignore_ascii_case("connection") && has("upgrade");
        upgrade |= name.eq_ignore_ascii_case("upgrade") && has(PROTOCOL);
    }
    connection && upgrade
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(came: &mut BytesMut) -> Result<Vec<Bytes>, BadLength> {
        std::iter::from_fn(|| pull(came).transpose()).collect()
    }

    proptest! {
        #[test]
        fn packets_come_out_as_they_went_in_however_the_stream_is_cut(
            packets in prop::collection::vec(
                prop::collection::vec(any::<u8>(), 1..=TUNNEL_PACKET_BYTES_MAX), 0..8),
            cut in 1..4000usize,
        ) {
            let mut stream = BytesMut::new();
            for packet in &packets {
                prop_assert!(push(&mut stream, packet));
            }
            let (mut came, mut out) = (BytesMut::new(), Vec::new());
            for piece in stream.chunks(cut) {
                came.extend_from_slice(piece);
                out.extend(all(&mut came).unwrap());
                prop_assert!(came.len() < HEADER_BYTES + TUNNEL_PACKET_BYTES_MAX);
            }
            prop_assert!(came.is_empty());
            prop_assert_eq!(out, packets);
        }

        #[test]
        fn heads_of_any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
            let mut came = BytesMut::from(&bytes[..]);
            let answer = read_request(&mut came);
            prop_assert!(answer != Ok(None) || came.len() < TUNNEL_HEAD_BYTES_MAX);
            let mut came = BytesMut::from(&bytes[..]);
            let answer = read_answer(&mut came);
            prop_assert!(answer != Ok(None) || came.len() < TUNNEL_HEAD_BYTES_MAX);
        }
    }

    #[test]
    fn lengths_outside_the_limits_are_refused_before_their_bytes_come() {
        let mut out = BytesMut::new();
        assert!(!push(&mut out, &[]) && !push(&mut out, &[0; TUNNEL_PACKET_BYTES_MAX + 1]));
        assert!(!push(&mut out, &[0; 70_000]) && out.is_empty());
        let long = TUNNEL_PACKET_BYTES_MAX as u16 + 1;
        for (bytes, header) in [(0, [0, 0]), (usize::from(long), long.to_be_bytes())] {
            assert_eq!(pull(&mut BytesMut::from(&header[..])), Err(BadLength { bytes }));
        }
        assert_eq!(pull(&mut BytesMut::from(&[0][..])), Ok(None));
    }

    #[test]
    fn what_is_asked_is_understood_and_what_follows_is_kept() {
        let mut came = BytesMut::from(request("gw.example.com:443").as_bytes());
        came.extend_from_slice(b"rest");
        assert_eq!(read_request(&mut came), Ok(Some(Request::Tunnel)));
        assert_eq!(&came[..], b"rest");
        let mut came = BytesMut::from(accepted().as_bytes());
        assert_eq!(read_answer(&mut came), Ok(Some((101, true))));
        for (text, expected) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Ok(Some(Request::Page))),
            ("GET /macula HTTP/1.1\r\nHost: a\r\n\r\n", Ok(Some(Request::Page))),
            ("POST /macula HTTP/1.1\r\n\r\n", Ok(Some(Request::Other))),
            (
                "GET /macula HTTP/1.1\r\nconnection: keep-alive, upgrade\r\nupgrade:macula-tunnel\r\n\r\n",
                Ok(Some(Request::Tunnel)),
            ),
            ("GET /macula HTTP/1.1\r\nUpgrade: macula-tunnel\r\n", Ok(None)),
            ("GET / SPDY\r\n\r\n", Err(BadHead::NotHttp)),
            ("\r\n\r\n", Err(BadHead::NotHttp)),
        ] {
            assert_eq!(read_request(&mut BytesMut::from(text)), expected, "{text}");
        }
        let refused = "HTTP/1.1 403 Forbidden\r\n\r\n";
        assert_eq!(read_answer(&mut BytesMut::from(refused)), Ok(Some((403, false))));
        let endless = "x".repeat(TUNNEL_HEAD_BYTES_MAX);
        assert_eq!(read_request(&mut BytesMut::from(&endless[..])), Err(BadHead::TooLong));
    }

    #[test]
    fn a_host_cannot_add_lines_to_the_request() {
        assert!(request("a\r\nEvil: 1").contains("Host: aEvil:1\r\n"));
    }
}
