//! A peer without manners: bare QUIC with a key, to do what the library never would.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use macula::SecretKey;
use macula_proto::id::RealmId;
use macula_proto::wire::encode;
use macula_proto::wire::message::{Hello, Message, RealmOffer};
use noq::crypto::rustls::QuicClientConfig;
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{ring as provider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

/// First byte of the control stream, of a streaming call's, of a bulk frame's.
pub(crate) const CONTROL: u8 = 0x01;
pub(crate) const STREAM: u8 = 0x02;
pub(crate) const BULK: u8 = 0x20;

/// A socket with a key that dials.
pub(crate) struct Raw {
    endpoint: noq::Endpoint,
    config: noq::ClientConfig,
}

impl Raw {
    pub(crate) fn new() -> Self {
        let endpoint = noq::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let key = SecretKey::generate().unwrap();
        let id = key.id();
        // PKCS#8 (RFC 8410 §7) and SubjectPublicKeyInfo (§4) of Ed25519 keys.
        let secret = [
            &[0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70][..],
            &[0x04, 0x22, 0x04, 0x20],
            key.seed(),
        ];
        let public = [
            &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00][..],
            id.as_bytes(),
        ];
        let signer =
            provider::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(secret.concat())).unwrap();
        let certified = CertifiedKey::new(vec![CertificateDer::from(public.concat())], signer);
        let resolver = AlwaysResolvesClientRawPublicKeys::new(Arc::new(certified));
        let mut tls = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_client_cert_resolver(Arc::new(resolver));
        tls.alpn_protocols = vec![b"macula/1".to_vec()];
        tls.enable_sni = false;
        let tls = QuicClientConfig::try_from(tls).unwrap();
        Self { endpoint, config: noq::ClientConfig::new(Arc::new(tls)) }
    }

    /// Dials; always with the same key.
    pub(crate) async fn dial(
        &self,
        gateway: &str,
    ) -> Result<noq::Connection, noq::ConnectionError> {
        let addr: SocketAddr = gateway.parse().unwrap();
        self.endpoint.connect_with(self.config.clone(), addr, "gateway").unwrap().await
    }

    /// Dials and takes part in `realm`. The streams of control are all that is open.
    pub(crate) async fn member(
        &self,
        gateway: &str,
        realm: &str,
    ) -> (noq::Connection, noq::SendStream, noq::RecvStream) {
        let connection = self.dial(gateway).await.unwrap();
        let (mut send, recv) = connection.open_bi().await.unwrap();
        send.write_all(&[CONTROL]).await.unwrap();
        send.write_all(&hello(realm)).await.unwrap();
        (connection, send, recv)
    }
}

/// A `Hello` as it goes over the wire.
pub(crate) fn hello(realm: &str) -> Vec<u8> {
    let realm = RealmOffer { realm: RealmId::of_name(realm), grant: Default::default() };
    let frame = encode(&Message::Hello(Hello {
        version_min: 1,
        version_max: 1,
        capabilities: 0,
        is_router: false,
        instance: 1,
        resumes: 0,
        observed: String::new(),
        agent: "hostile".to_owned(),
        realms: vec![realm],
    }));
    [frame.head, frame.body].concat()
}

/// Trusts whoever answers.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(cert.as_ref());
        let algorithms = provider::default_provider().signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
