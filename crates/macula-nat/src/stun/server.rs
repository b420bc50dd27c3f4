//! The server of Binding requests.

use std::net::SocketAddr;

use stun_types::attribute::{
    Attribute, AttributeType, ErrorCode, Fingerprint, MessageIntegrity, Nonce, RawAttribute, Realm,
    UnknownAttributes, Username, XorMappedAddress,
};
use stun_types::message::{
    BINDING, Message, MessageClass, MessageWrite, MessageWriteExt, MessageWriteVec,
};
use stun_types::prelude::{AttributeStaticType, AttributeWrite};

use super::{
    CHANGE_IP, CHANGE_PORT, CHANGE_REQUEST, OTHER_ADDRESS, PADDING, RESPONSE_ORIGIN, RESPONSE_PORT,
    address_attribute, parse, read_u32,
};

/// One of up to four addresses that a server listens at for RFC 5780: bit 0 says that it has the
/// other port, bit 1 that it has the other IP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener(u8);

impl Listener {
    /// The first address and port.
    pub const PRIMARY: Self = Self(0);
    /// The first address, the other port.
    pub const OTHER_PORT: Self = Self(1);
    /// The other address, the first port.
    pub const OTHER_IP: Self = Self(2);
    /// The other address and port.
    pub const OTHER_BOTH: Self = Self(3);
    /// All of them, in the order of [`Listener::index`].
    pub const ALL: [Self; 4] = [Self::PRIMARY, Self::OTHER_PORT, Self::OTHER_IP, Self::OTHER_BOTH];

    /// 0 to 3.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    fn changed(self, flags: u32) -> Self {
        let ip = if flags & CHANGE_IP == 0 { 0 } else { 2 };
        let port = if flags & CHANGE_PORT == 0 { 0 } else { 1 };
        Self(self.0 ^ ip ^ port)
    }
}

/// Answers Binding requests (RFC 8489 §6.3.1), also those of RFC 5780 §6.1 as far as it listens at
/// other addresses. Keeps nothing about clients.
#[derive(Clone, Debug, Default)]
pub struct Binding {
    /// Where the server can be reached, by [`Listener::index`]; the first is there always.
    pub addresses: [Option<SocketAddr>; 4],
}

/// What goes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// From which of the server's addresses.
    pub from: Listener,
    /// To where.
    pub to: SocketAddr,
    /// The message.
    pub data: Vec<u8>,
}

/// What may be in a request and must be understood by a server.
const KNOWN: [AttributeType; 10] = [
    CHANGE_REQUEST,
    PADDING,
    RESPONSE_PORT,
    // Of clients that check connectivity or have credentials: nothing is done with it.
    Username::TYPE,
    Realm::TYPE,
    Nonce::TYPE,
    MessageIntegrity::TYPE,
    Fingerprint::TYPE,
    // PRIORITY and USE-CANDIDATE (RFC 8445 §16.1)
    AttributeType::new(0x0024),
    AttributeType::new(0x0025),
];

impl Binding {
    /// Answers a packet if it is a Binding request; `from` is its source in canonical form, `at`
    /// where it came in. `None`: it is something else, or an answer of a kind that nobody sends.
    pub fn answer(&self, packet: &[u8], from: SocketAddr, at: Listener) -> Option<Answer> {
        let request = parse(packet)?;
        if !request.has_method(BINDING) || !request.has_class(MessageClass::Request) {
            return None;
        }
        let mut unknown: Vec<AttributeType> = request
            .iter_attributes()
            .map(|(_, attribute)| attribute.get_type())
            .filter(|kind| kind.comprehension_required() && !KNOWN.contains(kind))
            .collect();
        unknown.truncate(UNKNOWN_MAX);
        let refuse = |code, unknown: &[AttributeType]| {
            Some(Answer { from: at, to: from, data: refusal(&request, code, unknown) })
        };
        let flags = match read_u32(&request, CHANGE_REQUEST) {
            None => 0,
            Some(Some(flags)) => flags,
            Some(None) => return refuse(ErrorCode::BAD_REQUEST, &[]),
        };
        let origin = at.changed(flags);
        let origin_address = self.address(origin);
        if origin_address.is_none() {
            unknown.push(CHANGE_REQUEST);
        }
        let Some(origin_address) = origin_address.filter(|_| unknown.is_empty()) else {
            return refuse(ErrorCode::UNKNOWN_ATTRIBUTE, &unknown);
        };
        let mut to = from;
        if let Some(port) = response_port(&request) {
            to.set_port(port);
        }
        let mut response = Message::builder_success(&request, MessageWriteVec::new());
        add(&mut response, &XorMappedAddress::new(from, request.transaction_id()));
        add(&mut response, &address_attribute(RESPONSE_ORIGIN, origin_address));
        // Only a server with two IP addresses has one: with one, its clients would take every NAT
        // for one that maps independently of the destination.
        if let Some(other) = self.address(at.changed(CHANGE_IP | CHANGE_PORT)) {
            add(&mut response, &address_attribute(OTHER_ADDRESS, other));
        }
        // As long as the request's, so that both are in fragments or neither.
        if let Some(padding) = request.raw_attribute(PADDING) {
            let length = padding.value.len().min(PADDING_BYTES_MAX);
            add(&mut response, &RawAttribute::new_owned(PADDING, vec![0; length].into()));
        }
        Some(Answer { from: origin, to, data: finish(response) })
    }

    fn address(&self, listener: Listener) -> Option<SocketAddr> {
        self.addresses.get(listener.index()).copied().flatten()
    }
}

/// No answer is padded by more: about the MTU of the internet (RFC 5780 §7.6).
const PADDING_BYTES_MAX: usize = 1_500;
/// As many unknown attributes are named.
const UNKNOWN_MAX: usize = 8;

fn response_port(request: &Message<'_>) -> Option<u16> {
    let raw = request.raw_attribute(RESPONSE_PORT)?;
    let (port, _) = raw.value.split_first_chunk::<2>()?;
    Some(u16::from_be_bytes(*port)).filter(|port| *port != 0)
}

fn refusal(request: &Message<'_>, code: u16, unknown: &[AttributeType]) -> Vec<u8> {
    let mut response = Message::builder_error(request, MessageWriteVec::new());
    if let Ok(error) = ErrorCode::builder(code).build() {
        add(&mut response, &error);
    }
    if !unknown.is_empty() {
        add(&mut response, &UnknownAttributes::new(unknown));
    }
    finish(response)
}

/// Adds an attribute; what cannot be written is left out, which only a bug here can cause.
pub(crate) fn add(message: &mut MessageWriteVec, attribute: &dyn AttributeWrite) {
    let written = message.add_attribute(attribute);
    debug_assert!(written.is_ok(), "{written:?}");
}

pub(crate) fn finish(mut message: MessageWriteVec) -> Vec<u8> {
    let written = message.add_fingerprint();
    debug_assert!(written.is_ok(), "{written:?}");
    message.finish()
}
