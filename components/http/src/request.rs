//! From a call to a request, from an answer to metadata, and where a redirection leads: no IO here.

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, COOKIE, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use selvedge::component::{BindingError, InvokeRequest, Metadata};

use crate::settings::{Settings, is_truthy};

/// In the order that users see.
pub(crate) const OPERATIONS: [&str; 9] = ["create", "get", "head", "post", "put", "patch", "delete", "options", "trace"];

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// A request, ready to send, and again after a redirection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// An answer that is not 2xx is an error.
    pub error_if_not_2xx: bool,
}

fn invalid(text: impl Into<String>) -> BindingError {
    BindingError::Invalid(text.into())
}

impl Outgoing {
    /// Builds the request of a call.
    ///
    /// # Errors
    /// `Invalid` with what cannot be sent.
    pub fn build(settings: &Settings, call: InvokeRequest) -> Result<Self, BindingError> {
        let method = match call.operation.as_str() {
            "create" | "post" => Method::POST,
            "get" => Method::GET,
            "head" => Method::HEAD,
            "put" => Method::PUT,
            "patch" => Method::PATCH,
            "delete" => Method::DELETE,
            "options" => Method::OPTIONS,
            "trace" => Method::TRACE,
            other => return Err(invalid(format!("unsupported operation {other}"))),
        };
        let mut url = settings.url.clone();
        if let Some(path) = call.metadata.get("path").filter(|p| !p.is_empty()) {
            url = format!("{}/{}", url.trim_end_matches('/'), path.trim_start_matches('/'));
            if url.contains("..") {
                return Err(invalid(format!("invalid path: {path}")));
            }
        }
        let uri = url.parse::<Uri>().map_err(|e| invalid(format!("invalid URL {url}: {e}")))?;
        let mut headers = HeaderMap::new();
        let mut set = |name: &str, value: &str| -> Result<(), BindingError> {
            let bad = || invalid(format!("header {name} cannot be sent"));
            headers.insert(HeaderName::try_from(name).map_err(|_| bad())?, HeaderValue::try_from(value).map_err(|_| bad())?);
            Ok(())
        };
        if let Some(credentials) = &settings.credentials {
            set("Authorization", credentials)?;
        }
        let is_header = |name: &str| name.starts_with(|c: char| c.is_ascii_uppercase()) || matches!(name, "traceparent" | "tracestate");
        for (name, value) in call.metadata.iter().filter(|(name, value)| is_header(name) && !value.is_empty()) {
            set(name, value)?;
        }
        if let Some((header, token)) = &settings.security_token {
            set(header, token)?;
        }
        let has_body = matches!(method, Method::POST | Method::PUT | Method::PATCH);
        if has_body {
            headers.entry(CONTENT_TYPE).or_insert(JSON);
        }
        headers.entry(ACCEPT).or_insert(JSON);
        let error_if_not_2xx = call.metadata.get("errorIfNot2XX").map_or(settings.error_if_not_2xx, |text| is_truthy(text));
        Ok(Self { method, uri, headers, body: if has_body { call.data } else { Bytes::new() }, error_if_not_2xx })
    }

    /// The request that an answer redirects to, if it does: 301, 302 and 303 become GET (HEAD stays), 307 and 308 repeat the request.
    /// What proves who we are is not sent to another host.
    ///
    /// # Errors
    /// `Invalid` when the place named is none.
    pub fn redirected(&self, status: StatusCode, headers: &HeaderMap, settings: &Settings) -> Result<Option<Self>, BindingError> {
        let keep = match status.as_u16() {
            301..=303 => matches!(self.method, Method::GET | Method::HEAD),
            307 | 308 => true,
            _ => return Ok(None),
        };
        let Some(location) = headers.get(LOCATION) else { return Ok(None) };
        let uri = location.to_str().ok().and_then(|place| resolve(&self.uri, place)).ok_or_else(|| invalid("the answer redirects to no URL"))?;
        let mut next = self.clone();
        if !keep {
            next.method = Method::GET;
            next.body = Bytes::new();
            next.headers.remove(CONTENT_TYPE);
        }
        if uri.authority() != self.uri.authority() || uri.scheme() != self.uri.scheme() {
            next.headers.remove(AUTHORIZATION);
            next.headers.remove(COOKIE);
            if let Some(token) = settings.security_token.as_ref().and_then(|(header, _)| HeaderName::try_from(header.as_str()).ok()) {
                next.headers.remove(token);
            }
        }
        next.uri = uri;
        Ok(Some(next))
    }
}

/// A reference against a base, without dot segments worked out (a server does that).
fn resolve(base: &Uri, place: &str) -> Option<Uri> {
    let place = place.split('#').next().unwrap_or_default();
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let text = if place.contains("://") {
        place.to_owned()
    } else if let Some(rest) = place.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if place.starts_with('/') {
        format!("{scheme}://{authority}{place}")
    } else if place.starts_with('?') {
        format!("{scheme}://{authority}{}{place}", base.path())
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{place}")
    };
    let uri: Uri = text.parse().ok()?;
    matches!(uri.scheme_str(), Some("http" | "https")).then_some(uri)
}

/// An answer's metadata: `statusCode`, `status`, and the headers under the names that Go gives them.
pub(crate) fn answer_metadata(status: StatusCode, headers: &HeaderMap) -> Metadata {
    let mut metadata = Metadata::new();
    for name in headers.keys() {
        let values: Vec<_> = headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes())).collect();
        metadata.insert(go_name(name.as_str()), values.join(", "));
    }
    metadata.insert("statusCode".into(), status.as_u16().to_string());
    metadata.insert("status".into(), format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or_default()).trim_end().to_owned());
    metadata
}

/// `content-type` as `Content-Type`.
fn go_name(name: &str) -> String {
    let mut upper = true;
    let case = |c: char| {
        let out = if upper { c.to_ascii_uppercase() } else { c };
        upper = c == '-';
        out
    };
    name.chars().map(case).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(more: &[(&str, &str)]) -> Settings {
        let all: Vec<_> = [("url", "http://h:1/base/")].iter().chain(more).copied().collect();
        Settings::read(&all.into_iter().collect()).unwrap()
    }

    fn call(operation: &str, metadata: &[(&str, &str)]) -> InvokeRequest {
        let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        InvokeRequest { operation: operation.into(), data: "{}".into(), metadata }
    }

    fn build(operation: &str, metadata: &[(&str, &str)]) -> Result<Outgoing, BindingError> {
        Outgoing::build(&settings(&[]), call(operation, metadata))
    }

    fn header<'a>(request: &'a Outgoing, name: &str) -> Option<&'a str> {
        request.headers.get(name).map(|v| v.to_str().unwrap())
    }

    #[test]
    fn operations_are_methods_and_only_some_carry_a_body() {
        for operation in OPERATIONS {
            let request = build(operation, &[]).unwrap();
            let expected = if operation == "create" { "POST".to_owned() } else { operation.to_uppercase() };
            assert_eq!(request.method.as_str(), expected);
            let has_body = matches!(operation, "create" | "post" | "put" | "patch");
            assert_eq!((!request.body.is_empty(), request.headers.contains_key(CONTENT_TYPE)), (has_body, has_body), "{operation}");
            assert_eq!(header(&request, "accept"), Some("application/json; charset=utf-8"));
        }
        assert!(matches!(build("list", &[]), Err(BindingError::Invalid(_))));
    }

    #[test]
    fn metadata_sets_path_headers_and_the_rule_for_errors() {
        let metadata = [
            ("path", "/a/b?c=1"),
            ("Content-Type", "text/plain"),
            ("X-Own", "1"),
            ("lower", "no"),
            ("errorIfNot2XX", "false"),
            ("traceparent", "00-x"),
        ];
        let request = build("post", &metadata).unwrap();
        assert_eq!(request.uri, "http://h:1/base/a/b?c=1");
        assert_eq!(header(&request, "content-type"), Some("text/plain"));
        assert_eq!((header(&request, "x-own"), header(&request, "lower"), header(&request, "traceparent")), (Some("1"), None, Some("00-x")));
        assert!(!request.error_if_not_2xx);
        for bad in [("path", "../up"), ("path", "a b"), ("Bad Name", "x"), ("X-Own", "a\nb")] {
            assert!(matches!(build("get", &[bad]), Err(BindingError::Invalid(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_redirection_keeps_secrets_from_other_hosts() {
        let settings = settings(&[("securityToken", "t"), ("securityTokenHeader", "X-Token")]);
        let request = Outgoing::build(&settings, call("post", &[("Authorization", "Bearer x")])).unwrap();
        let follow = |status: u16, place: &str| {
            let headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_str(place).unwrap())]);
            request.redirected(StatusCode::from_u16(status).unwrap(), &headers, &settings)
        };
        let next = follow(302, "/other").unwrap().unwrap();
        assert_eq!((next.method.as_str(), next.uri.to_string().as_str(), next.body.len()), ("GET", "http://h:1/other", 0));
        assert!(header(&next, "x-token").is_some() && header(&next, "content-type").is_none());
        let next = follow(307, "https://else.where/x#part").unwrap().unwrap();
        assert_eq!((next.method.as_str(), next.uri.to_string().as_str(), next.body.len()), ("POST", "https://else.where/x", 2));
        assert!(header(&next, "x-token").is_none() && header(&next, "authorization").is_none());
        assert_eq!(follow(301, "side?x=1").unwrap().unwrap().uri, "http://h:1/base/side?x=1");
        assert_eq!(follow(200, "/x").unwrap(), None);
        assert!(follow(302, "file:///etc/passwd").is_err());
    }

    #[test]
    fn answers_tell_status_and_headers_as_go_names_them() {
        let mut headers = HeaderMap::new();
        headers.append("x-many", HeaderValue::from_static("a"));
        headers.append("x-many", HeaderValue::from_static("b"));
        headers.append("content-type", HeaderValue::from_static("text/plain"));
        let metadata = answer_metadata(StatusCode::NOT_FOUND, &headers);
        let expected = [("Content-Type", "text/plain"), ("X-Many", "a, b"), ("status", "404 Not Found"), ("statusCode", "404")];
        assert!(metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).eq(expected));
    }
}
