//! The settings of `bindings.http`, by Dapr's names.

use std::time::Duration;

use http::Uri;
use selvedge::component::{Properties, PropertyError};

/// Bytes of an answer's body that are kept unless set otherwise.
const MAX_BODY_BYTES: usize = 100 << 20;

/// Settings, checked.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Without user name and password.
    pub url: String,
    /// `Authorization` header that the URL's user name and password make.
    pub credentials: Option<String>,
    pub error_if_not_2xx: bool,
    /// Header and value.
    pub security_token: Option<(String, String)>,
    /// From the call to the last byte of the answer; `None` = the caller's patience.
    pub response_timeout: Option<Duration>,
    /// The rest is cut; `None` = all is kept.
    pub max_body_bytes: Option<usize>,
    /// Each a PEM text or a file's path.
    pub client_cert: Option<String>,
    pub client_key: Option<String>,
    pub root_ca: Option<String>,
}

impl Settings {
    pub fn read(properties: &Properties) -> Result<Self, PropertyError> {
        let text = properties.require("url", "an http or https URL")?;
        let (url, credentials) = split_credentials(text);
        let parsed: Option<Uri> = url.parse().ok();
        let good = parsed.as_ref().is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some());
        if !good {
            return Err(PropertyError::invalid("url", &url, "an http or https URL"));
        }
        let token = properties.first_of(&["securityToken"]);
        let header = properties.first_of(&["securityTokenHeader"]);
        let response_timeout = properties.duration("responseTimeout", Duration::ZERO)?;
        if let Some(renegotiation) = properties.first_of(&["mtlsRenegotiation"]) {
            match renegotiation {
                "RenegotiateNever" => {}
                "RenegotiateOnceAsClient" | "RenegotiateFreelyAsClient" => {
                    tracing::warn!("mtlsRenegotiation: this runtime does not renegotiate TLS sessions; a peer that asks for it ends the connection");
                }
                other => {
                    let accepted = "RenegotiateNever, RenegotiateOnceAsClient or RenegotiateFreelyAsClient";
                    return Err(PropertyError::invalid("mtlsRenegotiation", other, accepted));
                }
            }
        }
        let own = |name: &str| properties.first_of(&[name]).map(str::to_owned);
        let (client_cert, client_key) = (own("mtlsClientCert"), own("mtlsClientKey"));
        match (&client_cert, &client_key) {
            (Some(_), None) => return Err(PropertyError::Missing { name: "mtlsClientKey", accepted: "the key of mtlsClientCert" }),
            (None, Some(_)) => return Err(PropertyError::Missing { name: "mtlsClientCert", accepted: "the certificate of mtlsClientKey" }),
            _ => {}
        }
        Ok(Self {
            url,
            credentials,
            // Dapr looks for this one in exactly this spelling.
            error_if_not_2xx: properties.get_exact("errorIfNot2XX").is_none_or(is_truthy),
            security_token: header.zip(token).map(|(h, t)| (h.to_owned(), t.to_owned())),
            response_timeout: (!response_timeout.is_zero()).then_some(response_timeout),
            max_body_bytes: max_body(properties)?,
            client_cert,
            client_key,
            root_ca: own("mtlsRootCA"),
        })
    }

    pub fn is_https(&self) -> bool {
        self.url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
    }
}

/// Dapr's reading of a boolean text.
pub(crate) fn is_truthy(text: &str) -> bool {
    Properties::from_iter([("it", text)]).boolean("it", false)
}

fn max_body(properties: &Properties) -> Result<Option<usize>, PropertyError> {
    match properties.get("maxResponseBodySize").map(str::trim) {
        Some(negative) if negative.starts_with('-') => Ok(None),
        _ => {
            let bytes = properties.size("maxResponseBodySize", MAX_BODY_BYTES as u64)?;
            Ok((bytes > 0).then_some(usize::try_from(bytes).unwrap_or(usize::MAX)))
        }
    }
}

/// Takes `user:password@` out of a URL and makes the header of it that a browser would.
fn split_credentials(url: &str) -> (String, Option<String>) {
    use base64::Engine as _;
    let url = url.trim();
    let Some((scheme, rest)) = url.split_once("://") else { return (url.to_owned(), None) };
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let Some(at) = rest[..authority_end].rfind('@') else { return (url.to_owned(), None) };
    let decoded: Vec<u8> = percent_encoding::percent_decode_str(&rest[..at]).collect();
    let user = if decoded.contains(&b':') { decoded } else { [&decoded[..], b":"].concat() };
    let header = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(user));
    (format!("{scheme}://{}", &rest[at + 1..]), Some(header))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(settings: &[(&str, &str)]) -> Result<Settings, PropertyError> {
        Settings::read(&settings.iter().copied().collect())
    }

    #[test]
    fn defaults_and_spellings() {
        let settings = read(&[("URL", "http://h/x")]).unwrap();
        assert!(settings.error_if_not_2xx && settings.response_timeout.is_none() && !settings.is_https());
        assert_eq!(settings.max_body_bytes, Some(100 << 20));
        assert!(!read(&[("url", "http://h"), ("errorIfNot2XX", "false")]).unwrap().error_if_not_2xx);
        assert!(read(&[("url", "http://h"), ("errorifnot2xx", "false")]).unwrap().error_if_not_2xx, "this one counts in its own spelling alone");
        for (size, bytes) in [("0", None), ("-1", None), ("10Ki", Some(10 << 10)), ("", Some(100 << 20))] {
            assert_eq!(read(&[("url", "https://h"), ("maxResponseBodySize", size)]).unwrap().max_body_bytes, bytes, "{size:?}");
        }
    }

    #[test]
    fn user_name_and_password_leave_the_url() {
        let settings = read(&[("url", "https://me:p%40ss@h:1/x?y=a@b")]).unwrap();
        assert_eq!(settings.url, "https://h:1/x?y=a@b");
        assert_eq!(settings.credentials.as_deref(), Some("Basic bWU6cEBzcw=="));
        assert_eq!(read(&[("url", "http://h/a@b")]).unwrap().credentials, None);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (name, value) in [
            ("url", ""),
            ("url", "ftp://h"),
            ("url", "/path"),
            ("responseTimeout", "soon"),
            ("maxResponseBodySize", "much"),
            ("mtlsRenegotiation", "x"),
            ("mtlsClientCert", "x"),
        ] {
            let error = Settings::read(&[(name, value), ("url", "http://h")].into_iter().collect()).err();
            assert!(error.is_some_and(|e| e.to_string().contains(&name[..3])), "{name}");
        }
    }
}
