//! `/v1.0/invoke/{id}/method/{method}`.

use axum::body::Body;
use axum::http::HeaderMap;
use axum::response::Response;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::{Answer, Call};
use crate::api::error::{ApiError, invoke};
use crate::app::{MethodCall, end_to_end};
use crate::block::Blocks;

/// What may not stand in a segment of a path as it is (RFC 3986, section 3.3).
const SEGMENT: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'/')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}')
    .add(b'\\');

/// A method's path: `.` and `..` resolved, encoded again.
fn path(id: &str, segments: &[&str]) -> Result<String, ApiError> {
    let mut out: Vec<String> = Vec::new();
    for segment in segments.iter().flat_map(|s| s.split('/')) {
        match segment {
            "" | "." => {}
            ".." => {
                out.pop();
            }
            s if s.contains(['#', '?']) || s.chars().any(char::is_control) => return Err(invoke::method(id, &segments.join("/"))),
            s => out.push(utf8_percent_encode(s, SEGMENT).to_string()),
        }
    }
    Ok(out.join("/"))
}

/// What the application is to see of the caller's headers: not the token for this API.
fn headers(given: &HeaderMap) -> HeaderMap {
    let mut headers = end_to_end(given);
    headers.remove("dapr-api-token");
    headers.remove("dapr-app-id");
    headers
}

pub(super) async fn call(blocks: &Blocks, id: &str, method: &[&str], mut call: Call) -> Answer {
    let body = call.bytes().await.map_err(|e| ApiError::plain(400, 3, "ERR_BODY_READ", e))?;
    let call =
        MethodCall { path: path(id, method)?, verb: call.method.clone(), query: call.raw_query.clone(), headers: headers(&call.headers), body };
    let answer = blocks.invoke(id, call).await?;
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_resolved_and_encoded_again_and_what_is_none_is_refused() {
        assert_eq!(path("a", &["x", "..", "y z", "ä%"]).unwrap(), "y%20z/%C3%A4%25");
        assert_eq!(path("a", &["..", "..", "etc/./passwd"]).unwrap(), "etc/passwd");
        for bad in ["a#b", "a?b", "a\n"] {
            assert_eq!(path("a", &[bad]).unwrap_err().code, "ERR_DIRECT_INVOKE", "{bad:?}");
        }
    }
}
