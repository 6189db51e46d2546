//! What TLS connections are made with.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use selvedge::component::InitError;
use selvedge::time::Clock;
use selvedge::tls_time::TlsTime;

use crate::settings::Settings;

/// Reads certificates and keys; they are valid by this clock. Blocks on files.
///
/// # Errors
/// Names the setting that cannot be used; never shows a key.
pub(crate) fn config(settings: &Settings, clock: Arc<dyn Clock>) -> Result<Arc<ClientConfig>, InitError> {
    let mut roots = RootCertStore::empty();
    match &settings.root_ca {
        // An own authority stands in for those of the system.
        Some(own) => {
            for certificate in certificates("mtlsRootCA", own)? {
                roots.add(certificate).map_err(|e| InitError::failed("mtlsRootCA", e))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let why = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
                tracing::warn!(error = %why, "no certificate authorities of the system: only servers under mtlsRootCA can be trusted");
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_details(provider, Arc::new(TlsTime(clock)))
        .with_safe_default_protocol_versions()
        .map_err(|e| InitError::failed("TLS", e))?
        .with_root_certificates(roots);
    let mut config = match (&settings.client_cert, &settings.client_key) {
        (Some(cert), Some(key)) => {
            let chain = certificates("mtlsClientCert", cert)?;
            let key = PrivateKeyDer::from_pem_slice(&pem("mtlsClientKey", key)?).map_err(|e| InitError::failed("mtlsClientKey", e))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| InitError::failed("mtlsClientCert", e))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(name: &'static str, text: &str) -> Result<Vec<CertificateDer<'static>>, InitError> {
    let pem = pem(name, text)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let all = all.map_err(|e| InitError::failed(name, e))?;
    if all.is_empty() { Err(InitError::failed(name, "it holds no certificate")) } else { Ok(all) }
}

/// The PEM text, or what the file holds whose path it is.
fn pem(name: &'static str, text: &str) -> Result<Vec<u8>, InitError> {
    if text.contains("-----BEGIN") {
        return Ok(text.as_bytes().to_vec());
    }
    std::fs::read(text.trim()).map_err(|e| InitError::failed(format_args!("{name}: neither PEM nor a file that can be read"), e))
}
