use std::sync::Mutex;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use selvedge_conformance::Bench;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

const CA: &str = include_str!("../testdata/ca.pem");
const SERVER: &str = include_str!("../testdata/server.pem");
const SERVER_KEY: &str = include_str!("../testdata/server.key.pem");
const CLIENT: &str = include_str!("../testdata/client.pem");
const CLIENT_KEY: &str = include_str!("../testdata/client.key.pem");

/// What the server was asked: heads and bodies, as they came.
type Asked = Arc<Mutex<Vec<String>>>;

/// Answers each request on a connection of its own with what `answer` makes of its text.
async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, asked: &Asked, answer: fn(&str) -> String) {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    loop {
        let complete = text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
            let length =
                head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length:").map(|n| n.trim().parse::<usize>().unwrap()));
            body.len() >= length.unwrap_or(0)
        });
        if complete {
            break;
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => text.push_str(std::str::from_utf8(&buffer[..n]).unwrap()),
        }
    }
    asked.lock().unwrap().push(text.clone());
    let reply = answer(&text);
    if reply.is_empty() {
        std::future::pending::<()>().await;
    }
    // A client that has read enough closes early.
    let _ = stream.write_all(reply.as_bytes()).await;
    let _ = stream.shutdown().await;
}

async fn plain_server(answer: fn(&str) -> String) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Asked::default();
    let seen = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move { serve(stream, &seen, answer).await });
        }
    });
    (url, asked)
}

async fn tls_server(answer: fn(&str) -> String) -> (String, Asked) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CA.as_bytes()).unwrap()).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(SERVER.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(SERVER_KEY.as_bytes()).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let asked = Asked::default();
    let seen = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (seen, acceptor) = (seen.clone(), acceptor.clone());
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve(stream, &seen, answer).await;
                }
            });
        }
    });
    (url, asked)
}

async fn open(url: &str, settings: &[(&str, &str)]) -> Arc<dyn OutputBinding> {
    let bench = Bench::new().await;
    // After the certificates of these tests were made.
    bench.clock.advance(Duration::from_secs(86_400));
    let all: Vec<_> = [("url", url)].iter().chain(settings).copied().collect();
    binding(bench.context("bindings.http", &all)).await.unwrap().output.unwrap()
}

async fn call(
    binding: &Arc<dyn OutputBinding>,
    operation: &str,
    data: &'static str,
    metadata: &[(&str, &str)],
) -> Result<InvokeResponse, BindingError> {
    let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    binding.invoke(InvokeRequest { operation: operation.into(), data: data.into(), metadata }).await
}

fn ok(_: &str) -> String {
    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 5\r\n\r\nhello".into()
}

#[tokio::test]
async fn it_passes_the_shared_suite() {
    let (url, _) = plain_server(ok).await;
    selvedge_conformance::output_binding(&*open(&url, &[]).await).await;
}

#[tokio::test]
async fn a_call_goes_out_and_its_answer_comes_back() {
    let (url, asked) = plain_server(ok).await;
    let binding = open(&format!("{url}/base"), &[("securityToken", "secret"), ("securityTokenHeader", "X-Token")]).await;
    let response = call(&binding, "create", "{\"a\":1}", &[("path", "/x"), ("X-Own", "yes")]).await.unwrap();
    assert_eq!(response.data.as_deref(), Some(&b"hello"[..]));
    assert_eq!(response.content_type.as_deref(), Some("text/plain"));
    assert_eq!((response.metadata["statusCode"].as_str(), response.metadata["status"].as_str()), ("200", "200 OK"));
    assert_eq!(response.metadata["X-A"], "1, 2");
    let text = asked.lock().unwrap()[0].clone();
    assert!(text.starts_with("POST /base/x HTTP/1.1\r\n") && text.ends_with("\r\n\r\n{\"a\":1}"), "{text}");
    for header in ["X-Own: yes", "X-Token: secret", "Content-Type: application/json; charset=utf-8", "Accept: application/json; charset=utf-8"] {
        assert!(text.contains(header), "{header} in {text}");
    }
}

#[tokio::test]
async fn an_answer_that_is_no_success_is_an_error_unless_told_otherwise() {
    let (url, _) = plain_server(|_| "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope".into()).await;
    let binding = open(&url, &[]).await;
    match call(&binding, "get", "", &[]).await {
        Err(BindingError::Rejected { message, response }) => {
            assert_eq!(message, "received status code 404");
            assert_eq!((response.data.as_deref(), response.metadata["status"].as_str()), (Some(&b"nope"[..]), "404 Not Found"));
        }
        other => panic!("{other:?}"),
    }
    let response = call(&binding, "get", "", &[("errorIfNot2XX", "false")]).await.unwrap();
    assert_eq!(response.metadata["statusCode"], "404");
    let lenient = open(&url, &[("errorIfNot2XX", "false")]).await;
    assert!(call(&lenient, "get", "", &[]).await.is_ok());
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_cut() {
    let (url, _) = plain_server(|_| format!("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{}", "x".repeat(100_000))).await;
    let response = call(&open(&url, &[("maxResponseBodySize", "1Ki")]).await, "get", "", &[]).await.unwrap();
    assert_eq!(response.data.unwrap().len(), 1024);
    let response = call(&open(&url, &[("maxResponseBodySize", "0")]).await, "get", "", &[]).await.unwrap();
    assert_eq!(response.data.unwrap().len(), 100_000);
}

#[tokio::test]
async fn redirections_are_followed_up_to_a_number() {
    let (url, asked) = plain_server(|text| {
        if text.starts_with("GET /there") { ok(text) } else { "HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n".into() }
    })
    .await;
    let response = call(&open(&url, &[]).await, "post", "{}", &[]).await.unwrap();
    assert_eq!(response.data.as_deref(), Some(&b"hello"[..]));
    assert_eq!(asked.lock().unwrap().len(), 2);
    let (url, asked) = plain_server(|_| "HTTP/1.1 307 Temporary Redirect\r\nLocation: /round\r\nContent-Length: 0\r\n\r\n".into()).await;
    assert!(matches!(call(&open(&url, &[]).await, "get", "", &[]).await, Err(BindingError::Invalid(_))));
    assert_eq!(asked.lock().unwrap().len(), REDIRECTIONS + 1);
}

#[tokio::test]
async fn a_server_that_is_not_there_or_silent_may_be_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://me:hush@{}", listener.local_addr().unwrap());
    drop(listener);
    match call(&open(&url, &[]).await, "get", "", &[]).await {
        Err(BindingError::Unavailable(text)) => assert!(text.contains("127.0.0.1") && !text.contains("hush"), "{text}"),
        other => panic!("{other:?}"),
    }
    let (url, _) = plain_server(|_| String::new()).await;
    let silent = call(&open(&url, &[("responseTimeout", "50ms")]).await, "get", "", &[]).await;
    assert!(matches!(silent, Err(BindingError::Unavailable(text)) if text.contains("50ms")));
}

#[tokio::test]
async fn both_sides_prove_who_they_are_over_tls() {
    let (url, asked) = tls_server(ok).await;
    let mutual = [("mtlsRootCA", CA), ("mtlsClientCert", CLIENT), ("mtlsClientKey", CLIENT_KEY)];
    let response = call(&open(&url, &mutual).await, "get", "", &[]).await.unwrap();
    assert_eq!(response.metadata["statusCode"], "200");
    assert_eq!(asked.lock().unwrap().len(), 1);

    // The node's clock counts, not the system's.
    let early = Bench::new().await;
    let mut settings = vec![("url", url.as_str())];
    settings.extend(mutual);
    let early = binding(early.context("bindings.http", &settings)).await.unwrap().output.unwrap();
    let early = call(&early, "get", "", &[]).await;
    assert!(matches!(&early, Err(BindingError::Unavailable(text)) if text.contains("not valid yet")), "{early:?}");
    let anonymous = call(&open(&url, &[("mtlsRootCA", CA)]).await, "get", "", &[]).await;
    assert!(matches!(anonymous, Err(BindingError::Unavailable(_))), "{anonymous:?}");
    let distrusting = call(&open(&url, &mutual[1..]).await, "get", "", &[]).await;
    assert!(matches!(distrusting, Err(BindingError::Unavailable(_))), "{distrusting:?}");
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn certificates_may_be_files_and_bad_ones_are_named() {
    let bench = Bench::new().await;
    let path = bench.dir().join("ca.pem");
    std::fs::write(&path, CA).unwrap();
    let build = async |name: &str, value: &str| {
        let settings = [("url", "https://h"), (name, value)];
        binding(bench.context("bindings.http", &settings)).await.map(|_| ())
    };
    build("mtlsRootCA", &path.display().to_string()).await.unwrap();
    for bad in ["/nowhere.pem", "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----", SERVER_KEY] {
        let error = build("mtlsRootCA", bad).await.unwrap_err().to_string();
        assert!(error.contains("mtlsRootCA") && !error.contains("PRIVATE"), "{error}");
    }
}
