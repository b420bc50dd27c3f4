//! Reading stdin as a stream: bounded memory, bytes and not only text.

use std::io::{self, Read};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use crate::failure::{Exit, Failure};

/// How much is read at once, bytes.
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks that may wait for the publisher.
const CHUNKS_MAX: usize = 8;

/// The lines of some of the input, in order, without their newlines.
pub(crate) type Lines = Result<Vec<Bytes>, Failure>;

/// Reads lines on a thread of its own and hands them over in the groups in which they came.
///
/// At most about `CHUNKS_MAX * CHUNK_BYTES` plus one line wait. A line longer than
/// `line_bytes_max` ends the input with an error. The last line counts without a newline too.
pub(crate) fn lines(
    source: impl Read + Send + 'static,
    line_bytes_max: usize,
) -> mpsc::Receiver<Lines> {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    std::thread::spawn(move || {
        if let Err(failure) = read_lines(source, line_bytes_max, &sender) {
            // Without a receiver there is nobody left to tell.
            sender.blocking_send(Err(failure)).ok();
        }
    });
    receiver
}

fn read_lines(
    mut source: impl Read,
    line_bytes_max: usize,
    sender: &mpsc::Sender<Lines>,
) -> Result<(), Failure> {
    let mut buffer = BytesMut::new();
    let mut count = 0u64;
    loop {
        let held = buffer.len();
        buffer.resize(held + CHUNK_BYTES, 0);
        let read = match source.read(&mut buffer[held..]) {
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                buffer.truncate(held);
                continue;
            }
            Err(e) => return Err(Failure::from(e).context("cannot read stdin")),
        };
        buffer.truncate(held + read);
        let at_end = read == 0;
        // Everything before `held` was searched already.
        let complete = match buffer[held..].iter().rposition(|byte| *byte == b'\n') {
            Some(last) => buffer.split_to(held + last + 1).freeze(),
            None => Bytes::new(),
        };
        let mut group = split(&complete);
        if at_end && !buffer.is_empty() {
            group.push(buffer.split().freeze());
        }
        let too_long = group
            .iter()
            .position(|line| line.len() > line_bytes_max)
            .or_else(|| (buffer.len() > line_bytes_max).then_some(group.len()));
        if let Some(index) = too_long {
            return Err(Failure::new(
                Exit::Failure,
                format!(
                    "line {} is longer than the {line_bytes_max} bytes that a message may have",
                    count + index as u64 + 1
                ),
                "split it, or send the whole input as a single smaller message without --lines",
            ));
        }
        count += group.len() as u64;
        if !group.is_empty() && sender.blocking_send(Ok(group)).is_err() {
            return Ok(());
        }
        if at_end {
            return Ok(());
        }
    }
}

/// Splits at newlines without copying; `complete` ends with one.
fn split(complete: &Bytes) -> Vec<Bytes> {
    let mut lines = Vec::new();
    let mut start = 0;
    for (index, byte) in complete.iter().enumerate() {
        if *byte == b'\n' {
            lines.push(complete.slice(start..index));
            start = index + 1;
        }
    }
    lines
}

/// Reads a whole payload from stdin, at most `bytes_max`.
pub(crate) async fn payload(bytes_max: usize) -> Result<Bytes, Failure> {
    let read = tokio::task::spawn_blocking(move || whole(io::stdin().lock(), bytes_max));
    read.await.map_err(anyhow::Error::from)?
}

fn whole(source: impl Read, bytes_max: usize) -> Result<Bytes, Failure> {
    let mut payload = Vec::new();
    source
        .take(bytes_max as u64 + 1)
        .read_to_end(&mut payload)
        .map_err(|e| Failure::from(e).context("cannot read stdin"))?;
    if payload.len() > bytes_max {
        return Err(Failure::new(
            Exit::Failure,
            format!("stdin has more than the {bytes_max} bytes that a message may have"),
            "send it in parts; with --lines every line is a message of its own",
        ));
    }
    Ok(payload.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives out at most `step` bytes at a time.
    struct Slow(Vec<u8>, usize, usize);

    impl Read for Slow {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let (from, step) = (self.1, self.2);
            let count = step.min(into.len()).min(self.0.len() - from);
            into[..count].copy_from_slice(&self.0[from..from + count]);
            self.1 += count;
            Ok(count)
        }
    }

    fn read_all(input: &[u8], step: usize, line_bytes_max: usize) -> Result<Vec<Bytes>, Failure> {
        let mut receiver = lines(Slow(input.to_vec(), 0, step), line_bytes_max);
        let mut all = Vec::new();
        while let Some(group) = receiver.blocking_recv() {
            all.extend(group?);
        }
        Ok(all)
    }

    fn check(input: &[u8], expected: &[&[u8]]) {
        for step in [1, 2, 3, 7, 100_000] {
            let found = read_all(input, step, 1_000).unwrap();
            assert_eq!(found, expected, "step {step}");
        }
    }

    #[test]
    fn lines_are_split_at_newlines_only() {
        check(b"", &[]);
        check(b"a\n", &[b"a"]);
        check(b"a", &[b"a"]);
        check(b"a\nb", &[b"a", b"b"]);
        check(b"\n\na\n\n", &[b"", b"", b"a", b""]);
        check(b"a\r\nb\0c\n\xff\xfe\n", &[b"a\r", b"b\0c", b"\xff\xfe"]);
    }

    #[test]
    fn lines_longer_than_a_chunk_are_whole() {
        let long = vec![b'x'; 3 * CHUNK_BYTES + 5];
        let mut input = long.clone();
        input.extend_from_slice(b"\nshort\n");
        let found = read_all(&input, usize::MAX, 1 << 20).unwrap();
        assert_eq!(found, [&long[..], b"short"]);
    }

    #[test]
    fn a_line_that_is_too_long_is_named() {
        for (input, line) in [(&b"ab\nabcd\nab\n"[..], 2), (b"ab\nab\nabcde", 3), (b"abcd", 1)] {
            for step in [1, 100] {
                let error = read_all(input, step, 3).unwrap_err();
                assert!(error.what.starts_with(&format!("line {line} ")), "{error}");
            }
        }
    }

    #[test]
    fn a_payload_has_a_limit() {
        assert_eq!(whole(&b"abc"[..], 3).unwrap(), "abc");
        assert!(whole(&b"abcd"[..], 3).is_err());
    }
}
