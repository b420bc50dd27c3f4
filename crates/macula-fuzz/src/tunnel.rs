//! The stream of a tunnel.

use bytes::BytesMut;
use macula_proto::limits::{TUNNEL_HEAD_BYTES_MAX, TUNNEL_PACKET_BYTES_MAX};
use macula_proto::wire::tunnel::{HEADER_BYTES, pull, push, read_answer, read_request};

use crate::script::Script;

/// The input is a distance between cuts and a stream.
///
/// However the stream is cut, the same packets come out and then the same error, and they make up the
/// stream again; little is held. Read as the heads before it, it is understood or refused.
pub fn tunnel(data: &[u8]) {
    let mut script = Script::new(data);
    let cut = usize::from(script.byte()) + 1;
    let stream = script.rest();

    let whole = packets(stream, stream.len().max(1));
    assert_eq!(packets(stream, cut), whole, "cut every {cut}");
    let mut again = BytesMut::new();
    for packet in &whole.0 {
        assert!(push(&mut again, packet));
    }
    assert!(stream.starts_with(&again));

    let mut came = BytesMut::from(stream);
    let request = read_request(&mut came);
    assert!(request != Ok(None) || came.len() < TUNNEL_HEAD_BYTES_MAX);
    let mut came = BytesMut::from(stream);
    let answer = read_answer(&mut came);
    assert!(answer != Ok(None) || came.len() < TUNNEL_HEAD_BYTES_MAX);
}

fn packets(stream: &[u8], cut: usize) -> (Vec<Vec<u8>>, bool) {
    let (mut came, mut out) = (BytesMut::new(), Vec::new());
    for piece in stream.chunks(cut) {
        came.extend_from_slice(piece);
        loop {
            match pull(&mut came) {
                Ok(Some(packet)) => out.push(packet.to_vec()),
                Ok(None) => break,
                Err(_) => return (out, true),
            }
        }
        assert!(came.len() < HEADER_BYTES + TUNNEL_PACKET_BYTES_MAX);
    }
    (out, false)
}
