//! The TLS around a tunnel. It proves nothing to anybody: see the module above.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, PeerIncompatible, ServerConfig, SignatureScheme,
    version,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What firewalls see that is spoken inside.
const ALPN: &[u8] = b"http/1.1";
/// The name in a certificate that is made for want of one.
const OWN_NAME: &str = "macula.invalid";

/// Shows the certificate in these files, or one made now.
pub(super) fn acceptor(certificate: Option<(&Path, &Path)>) -> io::Result<TlsAcceptor> {
    let (chain, key) = match certificate {
        Some((chain, key)) => read(chain, key)?,
        None => make()?,
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(io::Error::other)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(TlsAcceptor::from(Arc::new(config)))
}

type Certified = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read(chain: &Path, key: &Path) -> io::Result<Certified> {
    let in_file = |path: &Path, error: &dyn std::fmt::Display| {
        io::Error::other(format!("{}: {error}", path.display()))
    };
    let certificates = CertificateDer::pem_file_iter(chain).map_err(|e| in_file(chain, &e))?;
    let certificates: Result<Vec<_>, _> = certificates.collect();
    let certificates = certificates.map_err(|error| in_file(chain, &error))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| in_file(key, &error))?;
    Ok((certificates, secret))
}

fn make() -> io::Result<Certified> {
    let made = rcgen::generate_simple_self_signed([OWN_NAME.to_owned()]);
    let made = made.map_err(io::Error::other)?;
    let key = made.signing_key.serialize_der();
    let key = PrivateKeyDer::try_from(key).map_err(io::Error::other)?;
    Ok((vec![made.cert.der().clone()], key))
}

/// Takes whatever certificate is shown.
pub(super) fn connector() -> io::Result<TlsConnector> {
    let provider = Arc::new(default_provider());
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody { schemes }))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Who the gateway is, the QUIC handshake inside finds out.
#[derive(Debug)]
struct Anybody {
    schemes: Vec<SignatureScheme>,
}

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
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}
