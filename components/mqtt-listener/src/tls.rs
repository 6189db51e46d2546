//! TLS for the listener: certificate, key, and roots for client certificates from PEM files.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use selvedge::component::InitError;
use selvedge::resource::ListenerTls;

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, InitError> {
    let fail = |e: &dyn std::fmt::Display| InitError::failed(format!("cannot read certificates from {}", path.display()), e);
    let all = CertificateDer::pem_file_iter(path).map_err(|e| fail(&e))?.collect::<Result<Vec<_>, _>>().map_err(|e| fail(&e))?;
    if all.is_empty() { Err(fail(&"the file holds none (accepted is PEM)")) } else { Ok(all) }
}

/// What speaks TLS, and what its files held.
#[derive(Clone)]
pub struct Acceptor {
    /// The acceptor.
    pub acceptor: tokio_rustls::TlsAcceptor,
    /// SHA-256 over the files: whether they have changed.
    pub files: [u8; 32],
}

fn digest(tls: &ListenerTls) -> Result<[u8; 32], InitError> {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for path in [Some(&tls.cert_file), Some(&tls.key_file), tls.client_ca_file.as_ref()].into_iter().flatten() {
        let bytes = std::fs::read(path).map_err(|e| InitError::failed(format!("cannot read {}", path.display()), e))?;
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(&bytes);
    }
    let mut all = [0; 32];
    all.copy_from_slice(context.finish().as_ref());
    Ok(all)
}

/// The acceptor for these files.
pub fn acceptor(tls: &ListenerTls) -> Result<Acceptor, InitError> {
    let files = digest(tls)?;
    let chain = certificates(&tls.cert_file)?;
    let key = PrivateKeyDer::from_pem_file(&tls.key_file)
        .map_err(|e| InitError::failed(format!("cannot read a private key from {}", tls.key_file.display()), e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| InitError::failed("cannot set up TLS", e))?;
    let builder = match &tls.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(path)? {
                roots.add(root).map_err(|e| InitError::failed(format!("a root in {} cannot be used", path.display()), e))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|e| InitError::failed("cannot set up the check of client certificates", e))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let config = builder.with_single_cert(chain, key).map_err(|e| InitError::failed("certificate and key do not fit", e))?;
    Ok(Acceptor { acceptor: tokio_rustls::TlsAcceptor::from(Arc::new(config)), files })
}

/// The common name in a certificate that has been verified: the value after the attribute type 2.5.4.3, the last one, which is the
/// subject's (the issuer stands before it; RFC 5280, section 4.1).
pub fn common_name(der: &[u8]) -> Option<String> {
    const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];
    let at = der.windows(COMMON_NAME.len()).rposition(|w| w == COMMON_NAME)? + COMMON_NAME.len();
    let (tag, length) = (*der.get(at)?, usize::from(*der.get(at + 1)?));
    // UTF8String, PrintableString, IA5String; shorter than 128 bytes, as the length's short form has it.
    if !matches!(tag, 0x0C | 0x13 | 0x16) || length > 127 {
        return None;
    }
    std::str::from_utf8(der.get(at + 2..at + 2 + length)?).ok().map(str::to_owned)
}
