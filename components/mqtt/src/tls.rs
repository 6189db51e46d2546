//! TLS of a connection: roots, client identity, and what a failed handshake means.

use std::io;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use selvedge::component::{LinkCause, PropertyError};
use selvedge::time::Clock;
use selvedge::tls_time::TlsTime;

/// A client's TLS settings.
#[derive(Clone)]
pub struct Tls {
    /// Ready to use.
    pub config: Arc<ClientConfig>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

/// A certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {detail}")]
pub struct TlsError {
    key: &'static str,
    detail: String,
}

impl TlsError {
    /// The same as an error of the component's setting. PEM texts are not repeated: they may be secret.
    #[must_use]
    pub fn into_property(self) -> PropertyError {
        PropertyError::invalid(self.key, self.detail, "PEM text: CERTIFICATE blocks for caCert and clientCert, one PRIVATE KEY block for clientKey")
    }
}

fn fail(key: &'static str, detail: impl std::fmt::Display) -> TlsError {
    TlsError { key, detail: detail.to_string() }
}

fn certificates(key: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|e| fail(key, e))?;
    if all.is_empty() { Err(fail(key, "no CERTIFICATE block")) } else { Ok(all) }
}

impl Tls {
    /// TLS 1.2 and 1.3 with these roots (the system's when there is no `ca`) and this identity; certificates are valid by this clock.
    ///
    /// # Errors
    /// Names the setting that cannot be used.
    pub fn from_pem(ca: Option<&str>, certificate: Option<&str>, key: Option<&str>, clock: Arc<dyn Clock>) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        match ca {
            Some(pem) => {
                for root in certificates("caCert", pem)? {
                    roots.add(root).map_err(|e| fail("caCert", e))?;
                }
            }
            None => {
                let system = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(system.certs);
                if roots.is_empty() {
                    let why = system.errors.first().map_or_else(|| "the system has no root certificates".to_owned(), ToString::to_string);
                    return Err(fail("caCert", format!("not set, and {why}")));
                }
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_details(provider, Arc::new(TlsTime(clock)))
            .with_safe_default_protocol_versions()
            .map_err(|e| fail("url", e))?
            .with_root_certificates(roots);
        let config = match (certificate, key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(chain), Some(key)) => {
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| fail("clientKey", e))?;
                builder.with_client_auth_cert(certificates("clientCert", chain)?, key).map_err(|e| fail("clientKey", e))?
            }
            (Some(_), None) => return Err(fail("clientKey", "not set, but clientCert is")),
            (None, Some(_)) => return Err(fail("clientCert", "not set, but clientKey is")),
        };
        Ok(Self { config: Arc::new(config) })
    }

    /// The name that the peer's certificate must carry.
    ///
    /// # Errors
    /// When the host is neither a DNS name nor an address.
    pub fn server_name(host: &str) -> io::Result<ServerName<'static>> {
        ServerName::try_from(host.to_owned()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
    }
}

/// The class of an error of a TLS stream; `None` when it is not TLS that failed.
#[must_use]
pub fn classify(error: &io::Error) -> Option<LinkCause> {
    let tls = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match tls {
        rustls::Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
            | CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. },
        ) => LinkCause::TlsTime,
        // The peer complains about the certificate that we showed, or did not show.
        rustls::Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::UnknownPSKIdentity,
        ) => LinkCause::Auth,
        rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => LinkCause::TlsTime,
        _ => LinkCause::TlsTrust,
    })
}
