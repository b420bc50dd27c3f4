//! Garbage for a gateway: what somebody sends who wants to keep it busy.
//!
//! First packets of QUIC are encrypted with keys that derive from the connection id in them (RFC 9001
//! §5.2), so anybody can make genuine ones. These are made from one that the library really sends,
//! recorded by dialling a socket of our own, with a new connection id each.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use macula::Node;
use ring::aead::{self, quic};
use ring::hkdf;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::worker::Meter;

/// Packets made beforehand, so that sending them costs little.
const STOCK: usize = 4_096;
/// Between two bursts of packets.
const TICK: Duration = Duration::from_millis(1);
/// The library sends its first packet within this.
const RECORD_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a packet that opens a connection.
const OPENING_BYTES: usize = 1200;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Garbage {
    /// All of the others but `proved`, in turn
    Mix,
    /// Genuine beginnings of a handshake that is never finished
    Openings,
    /// The same, with the request to prove the address obeyed
    Proved,
    /// Genuinely encrypted packets without a handshake in them
    Empty,
    /// First packets whose contents are noise
    Noise,
    /// The same with an invented address token
    Tokens,
    /// Large packets of an unknown version of QUIC
    Versions,
    /// Small packets of an unknown version, each with another one to guess
    Tiny,
    /// No QUIC at all
    Junk,
}

const MIXED: [Garbage; 7] = [
    Garbage::Openings,
    Garbage::Noise,
    Garbage::Empty,
    Garbage::Tokens,
    Garbage::Versions,
    Garbage::Tiny,
    Garbage::Junk,
];

/// How much is sent, and when.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Packets per second.
    pub(crate) rate: u32,
    /// Counts them.
    pub(crate) meter: Arc<Meter>,
    /// Whether to send.
    pub(crate) going: watch::Receiver<bool>,
}

/// A flood that goes on until dropped.
#[derive(Debug)]
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flood {
    /// Sends to `to` from so many addresses.
    pub(crate) async fn start(
        to: SocketAddr,
        garbage: Garbage,
        sources: u8,
        pace: Pace,
    ) -> Result<Self> {
        let opening = Opening::record().await?;
        let sockets =
            (0..sources.max(1)).map(|index| socket(to, index)).collect::<Result<Vec<_>>>()?;
        let kinds = if garbage == Garbage::Mix { MIXED.as_slice() } else { &[garbage] };
        let stock = (0..STOCK)
            .map(|index| packet(*kinds.get(index % kinds.len())?, &opening).ok())
            .collect::<Option<Vec<_>>>()
            .context("packets")?;
        let stop = Arc::new(AtomicBool::new(false));
        let spray = Spray { sockets, stock, pace, stop: stop.clone() };
        let proving = (garbage == Garbage::Proved).then_some(opening);
        let thread = std::thread::Builder::new().name("flood".to_owned());
        let thread = thread.spawn(move || spray.run(proving.as_ref()))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// A socket at one of loopback's many addresses, where there are such.
fn socket(to: SocketAddr, index: u8) -> Result<UdpSocket> {
    let from: IpAddr = match to.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Ipv4Addr::new(127, 0, 1, index + 1).into(),
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    // Not all systems give the whole of 127.0.0.0/8 to loopback.
    let socket = UdpSocket::bind((from, 0)).or_else(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)));
    let socket = socket.context("a socket for the flood")?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

struct Spray {
    sockets: Vec<UdpSocket>,
    stock: Vec<Vec<u8>>,
    pace: Pace,
    stop: Arc<AtomicBool>,
}

impl Spray {
    fn run(&self, proving: Option<&Opening>) {
        let mut next = 0usize;
        while !self.stop.load(Ordering::Relaxed) {
            let (started, mut done) = (Instant::now(), 0u64);
            while *self.pace.going.borrow() && !self.stop.load(Ordering::Relaxed) {
                let due = (started.elapsed().as_secs_f64() * f64::from(self.pace.rate)) as u64;
                while done < due {
                    let socket = &self.sockets[next % self.sockets.len()];
                    // A full buffer loses packets, as floods do.
                    if socket.send(&self.stock[next % self.stock.len()]).is_ok() {
                        self.pace.meter.add(1);
                    }
                    (next, done) = (next + 1, done + 1);
                }
                if let Some(opening) = proving {
                    self.sockets.iter().for_each(|socket| prove(socket, opening));
                }
                std::thread::sleep(TICK);
            }
            std::thread::sleep(TICK);
        }
    }
}

/// Answers requests to prove the address.
fn prove(socket: &UdpSocket, opening: &Opening) {
    let mut answer = [0u8; 2048];
    while let Ok(length) = socket.recv(&mut answer) {
        let proof = answer.get(..length).and_then(retry_of).and_then(|(id, token)| {
            Packet { id, token, payload: &opening.payload, ..opening.header() }.seal().ok()
        });
        if let Some(proof) = proof {
            // As above.
            socket.send(&proof).ok();
        }
    }
}

/// Connection id and token of a Retry packet (RFC 9000 §17.2.5).
fn retry_of(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut rest = Reader(packet);
    if rest.take(1)?.first()? & 0xf0 != 0xf0 {
        return None;
    }
    rest.take(4)?;
    rest.short()?;
    let id = rest.short()?;
    Some((id, rest.0.get(..rest.0.len().checked_sub(16)?)?))
}

fn packet(garbage: Garbage, opening: &Opening) -> Result<Vec<u8>> {
    let id: [u8; 20] = random()?;
    let header = Packet { id: &id, ..opening.header() };
    // PING and padding.
    let empty = [&[1u8][..], &[0; OPENING_BYTES]].concat();
    Ok(match garbage {
        Garbage::Mix | Garbage::Openings | Garbage::Proved => {
            Packet { payload: &opening.payload, ..header }.seal()?
        }
        Garbage::Empty => Packet { payload: &empty, ..header }.seal()?,
        Garbage::Noise | Garbage::Tokens => {
            let token: [u8; 64] = random()?;
            let token = if garbage == Garbage::Tokens { token.as_slice() } else { &[] };
            let noise: [u8; OPENING_BYTES] = random()?;
            let mut packet = Packet { token, payload: &noise, ..header }.seal()?;
            let body = packet.len() - OPENING_BYTES;
            packet.splice(body.., random::<OPENING_BYTES>()?);
            packet
        }
        Garbage::Versions => {
            let mut packet = random::<OPENING_BYTES>()?.to_vec();
            packet[..6].copy_from_slice(&[0xc0, 0x0a, 0x1a, 0x2a, 0x3a, 8]);
            packet[14] = 8;
            packet
        }
        Garbage::Tiny => vec![0xc0, 0x0a, 0x1a, 0x2a, 0x3a, 0, 0],
        Garbage::Junk => {
            let mut packet = random::<OPENING_BYTES>()?.to_vec();
            packet[0] &= 0x3f;
            packet
        }
    })
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0u8; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow::anyhow!("no randomness"))?;
    Ok(bytes)
}

/// The first packet of a genuine handshake, decrypted.
#[derive(Debug)]
pub(crate) struct Opening {
    /// The id that its sender chose for itself.
    own_id: Vec<u8>,
    payload: Vec<u8>,
}

impl Opening {
    /// Lets the library dial a socket here and keeps what it says.
    async fn record() -> Result<Self> {
        let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = socket.local_addr()?.to_string();
        let dialling = Node::builder().gateway(address).realm("flood");
        let dialling = dialling.connect_timeout(RECORD_TIMEOUT).start();
        let mut packet = [0u8; 2048];
        let received = tokio::select! {
            received = socket.recv(&mut packet) => received?,
            _ = dialling => bail!("the library gave up before it dialled"),
        };
        Self::open(packet.get_mut(..received).context("a packet")?)
    }

    fn header(&self) -> Packet<'_> {
        Packet { id: &[], own_id: &self.own_id, token: &[], payload: &[] }
    }

    /// Decrypts a client's Initial packet (RFC 9001 §5).
    fn open(packet: &mut [u8]) -> Result<Self> {
        let mut rest = Reader(packet);
        ensure!(rest.take(1).context("short")?[0] & 0xf0 == 0xc0, "no first packet of QUIC");
        rest.take(4).context("short")?;
        let id = rest.short().context("short")?.to_vec();
        let own_id = rest.short().context("short")?.to_vec();
        let token_bytes = rest.varint().context("short")?;
        rest.take(token_bytes).context("short")?;
        let bytes = rest.varint().context("short")?;
        let at = packet.len() - rest.0.len();
        let keys = Keys::of(&id)?;
        let sample = packet.get(at + 4..at + 20).context("short")?;
        let mask = keys.header.new_mask(sample).map_err(|_| anyhow::anyhow!("mask"))?;
        packet[0] ^= mask[0] & 0x0f;
        let number_bytes = usize::from(packet[0] & 3) + 1;
        let mut number = 0u64;
        for index in 0..number_bytes {
            packet[at + index] ^= mask[1 + index];
            number = number << 8 | u64::from(packet[at + index]);
        }
        let (head, body) = packet.split_at_mut(at + number_bytes);
        let body = body.get_mut(..bytes - number_bytes).context("short")?;
        let opened = keys.packet.open_in_place(keys.nonce(number), aead::Aad::from(head), body);
        let payload = opened.map_err(|_| anyhow::anyhow!("it does not open"))?.to_vec();
        Ok(Self { own_id, payload })
    }
}

/// A client's Initial packet, number 0.
struct Packet<'a> {
    id: &'a [u8],
    own_id: &'a [u8],
    token: &'a [u8],
    payload: &'a [u8],
}

impl Packet<'_> {
    fn seal(&self) -> Result<Vec<u8>> {
        let keys = Keys::of(self.id)?;
        // A number of four bytes, so that the sample begins with the payload.
        let mut packet = vec![0xc3, 0, 0, 0, 1];
        for part in [self.id, self.own_id] {
            packet.push(u8::try_from(part.len())?);
            packet.extend_from_slice(part);
        }
        let two_bytes =
            |length: usize| Ok::<_, anyhow::Error>((u16::try_from(length)? | 0x4000).to_be_bytes());
        packet.extend(two_bytes(self.token.len())?);
        packet.extend_from_slice(self.token);
        packet.extend(two_bytes(4 + self.payload.len() + 16)?);
        let at = packet.len();
        packet.extend([0; 4]);
        let mut body = self.payload.to_vec();
        let aad = aead::Aad::from(packet.as_slice());
        let sealed = keys.packet.seal_in_place_append_tag(keys.nonce(0), aad, &mut body);
        sealed.map_err(|_| anyhow::anyhow!("it does not seal"))?;
        let sample = body.get(..16).context("an empty packet")?;
        let mask = keys.header.new_mask(sample).map_err(|_| anyhow::anyhow!("mask"))?;
        packet[0] ^= mask[0] & 0x0f;
        packet[at..].iter_mut().zip(&mask[1..]).for_each(|(byte, mask)| *byte ^= mask);
        packet.extend(body);
        Ok(packet)
    }
}

/// Keys of a client's first packets (RFC 9001 §5.2).
struct Keys {
    packet: aead::LessSafeKey,
    iv: [u8; 12],
    header: quic::HeaderProtectionKey,
}

impl Keys {
    fn of(id: &[u8]) -> Result<Self> {
        const SALT: [u8; 20] = [
            0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8,
            0x0c, 0xad, 0xcc, 0xbb, 0x7f, 0x0a,
        ];
        let failed = |_| anyhow::anyhow!("keys");
        let initial = hkdf::Salt::new(hkdf::HKDF_SHA256, &SALT).extract(id);
        let secret: [u8; 32] = expand(&initial, "client in")?;
        let secret = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &secret);
        let key: [u8; 16] = expand(&secret, "quic key")?;
        let header: [u8; 16] = expand(&secret, "quic hp")?;
        Ok(Self {
            packet: aead::LessSafeKey::new(
                aead::UnboundKey::new(&aead::AES_128_GCM, &key).map_err(failed)?,
            ),
            iv: expand(&secret, "quic iv")?,
            header: quic::HeaderProtectionKey::new(&quic::AES_128, &header).map_err(failed)?,
        })
    }

    fn nonce(&self, number: u64) -> aead::Nonce {
        let mut nonce = self.iv;
        nonce.iter_mut().skip(4).zip(number.to_be_bytes()).for_each(|(byte, n)| *byte ^= n);
        aead::Nonce::assume_unique_for_key(nonce)
    }
}

/// HKDF-Expand-Label (RFC 8446 §7.1) without a context.
fn expand<const N: usize>(secret: &hkdf::Prk, label: &str) -> Result<[u8; N]> {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let length = u16::try_from(N)?.to_be_bytes();
    let label_bytes = [u8::try_from(6 + label.len())?];
    let info = [&length[..], &label_bytes, b"tls13 ", label.as_bytes(), &[0]];
    let mut out = [0u8; N];
    let okm = secret.expand(&info, Length(N)).map_err(|_| anyhow::anyhow!("expand"))?;
    okm.fill(&mut out).map_err(|_| anyhow::anyhow!("expand"))?;
    Ok(out)
}

/// Reads a header from its front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    /// Bytes behind their number in one byte.
    fn short(&mut self) -> Option<&'a [u8]> {
        let bytes = *self.take(1)?.first()?;
        self.take(bytes.into())
    }

    /// A number of one, two, four or eight bytes (RFC 9000 §16).
    fn varint(&mut self) -> Option<usize> {
        let first = *self.take(1)?.first()?;
        let more = self.take((1 << (first >> 6)) - 1)?;
        let fold = |value: usize, byte: &u8| value << 8 | usize::from(*byte);
        Some(more.iter().fold(usize::from(first & 0x3f), fold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_standard() {
        // RFC 9001 appendix A.1.
        let keys = Keys::of(&[0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08]).unwrap();
        let iv = [0xfa, 0x04, 0x4b, 0x2f, 0x42, 0xa3, 0xfd, 0x3b, 0x46, 0xfb, 0x25, 0x5c];
        assert_eq!(keys.iv, iv);
    }

    #[tokio::test]
    async fn a_recorded_opening_is_sealed_again_under_another_id() {
        let opening = Opening::record().await.unwrap();
        let mut packet = packet(Garbage::Openings, &opening).unwrap();
        assert!(packet.len() >= OPENING_BYTES);
        let again = Opening::open(&mut packet).unwrap();
        assert_eq!(again.payload, opening.payload);
        // A CRYPTO frame at offset 0, with a ClientHello in it.
        assert_eq!((again.payload[0], again.payload[1]), (0x06, 0x00));
    }

    #[test]
    fn the_token_of_a_retry_is_found() {
        let packet = [&[0xf5, 0, 0, 0, 1, 1, 9, 2, 7, 8][..], b"token", &[0; 16]].concat();
        assert_eq!(retry_of(&packet), Some((&[7, 8][..], &b"token"[..])));
        assert_eq!(retry_of(&packet[..20]), None);
        assert_eq!(retry_of(&[0xc5; 60]), None);
    }
}
