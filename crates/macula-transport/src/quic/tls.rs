//! TLS 1.3 with Ed25519 raw public keys (RFC 7250) on both sides.

use std::sync::{Arc, OnceLock};

use macula_proto::id::EndpointId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, ring as provider, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerIncompatible, ServerConfig, SignatureScheme, version,
};

use crate::key::SecretKey;

/// What this protocol is called in the handshake.
const ALPN: &[u8] = b"macula/1";

/// DER in front of the 32 bytes of an Ed25519 public key: SubjectPublicKeyInfo (RFC 8410 §4).
const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The endpoint whose raw public key this is; `None` when it is not an Ed25519 key.
pub(super) fn id_of_spki(spki: &[u8]) -> Option<EndpointId> {
    let key = spki.strip_prefix(&SPKI_PREFIX)?;
    Some(EndpointId::from_bytes(key.try_into().ok()?))
}

/// Makes the TLS configurations of one identity.
///
/// Session resumption is off on both sides: it saves no round trip without 0-RTT (which would be
/// open to replay), a restarted server could not honour the tickets, and each costs memory.
#[derive(Debug)]
pub(super) struct Tls {
    server: Arc<ServerConfig>,
    client: ClientConfig,
}

impl Tls {
    pub(super) fn new(key: &SecretKey) -> Result<Self, Error> {
        let signer = provider::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(key.pkcs8()))?;
        let spki = [SPKI_PREFIX.as_slice(), key.id().as_bytes()].concat();
        let certified = Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], signer));
        let provider = Arc::new(provider::default_provider());
        let algorithms = provider.signature_verification_algorithms;

        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(Arc::new(AnyClient { algorithms }))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::clone(
                &certified,
            ))));
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});

        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            // Replaced in every dial.
            .with_custom_certificate_verifier(Arc::new(ServerKey {
                expected: None,
                found: OnceLock::new(),
                algorithms,
            }))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified)));
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.enable_sni = false;
        client.resumption = Resumption::disabled();
        Ok(Self { server: Arc::new(server), client })
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// The configuration of one dial.
    pub(super) fn client(&self, server_key: &Arc<ServerKey>) -> Arc<ClientConfig> {
        let mut client = self.client.clone();
        let verifier = Arc::clone(server_key) as Arc<dyn ServerCertVerifier>;
        client.dangerous().set_certificate_verifier(verifier);
        Arc::new(client)
    }

    /// A check for one dial: accepts `expected` only, or any key without it.
    pub(super) fn server_key(&self, expected: Option<EndpointId>) -> Arc<ServerKey> {
        let algorithms = self.client.crypto_provider().signature_verification_algorithms;
        Arc::new(ServerKey { expected, found: OnceLock::new(), algorithms })
    }
}

/// Checks the key of the server that one dial reaches, and remembers it.
#[derive(Debug)]
pub(super) struct ServerKey {
    expected: Option<EndpointId>,
    found: OnceLock<EndpointId>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerKey {
    /// The expected and the presented key, when they differ.
    pub(super) fn mismatch(&self) -> Option<(EndpointId, EndpointId)> {
        let (expected, found) = (self.expected?, *self.found.get()?);
        (expected != found).then_some((expected, found))
    }
}

impl ServerCertVerifier for ServerKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = single_key(end_entity, intermediates)?;
        let found = *self.found.get_or_init(|| found);
        match self.expected {
            Some(expected) if expected != found => {
                Err(Error::InvalidCertificate(CertificateError::NotValidForName))
            }
            Some(_) | None => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Accepts every client that proves to own an Ed25519 key; who may do what is decided above.
#[derive(Debug)]
struct AnyClient {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        single_key(end_entity, intermediates).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

fn single_key(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<EndpointId, Error> {
    match id_of_spki(end_entity) {
        Some(id) if intermediates.is_empty() => Ok(id),
        Some(_) | None => Err(Error::InvalidCertificate(CertificateError::BadEncoding)),
    }
}

fn verify_signature(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let key = SubjectPublicKeyInfoDer::from(cert.as_ref());
    verify_tls13_signature_with_raw_key(message, &key, dss, algorithms)
}
