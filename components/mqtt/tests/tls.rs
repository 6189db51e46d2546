//! TLS to a real broker, with certificates made here. Where openssl or mosquitto is missing each test says so in one line and ends.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use common::{Mosquitto, Rig};
use selvedge::component::LinkCause;
use selvedge::escape::LinkState;
use selvedge_mqtt::Version;

fn openssl(dir: &Path, command: &str) {
    let output = Command::new("openssl").args(command.split_whitespace()).current_dir(dir).stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "openssl {command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A CA, a server certificate for 127.0.0.1 and localhost, one that has expired, and a client certificate.
fn certificates() -> Option<tempfile::TempDir> {
    if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
        println!("SKIPPED: openssl is not installed");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(path, &format!("req -x509 {key} -keyout ca.key -out ca.crt -days 30 -subj /CN=ca"));
    openssl(path, &format!("req -x509 {key} -keyout other.key -out other.crt -days 30 -subj /CN=other"));
    std::fs::write(path.join("server.ext"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
    std::fs::write(path.join("client.ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    for (name, days, ext) in [("server", "30", "server"), ("client", "30", "client")] {
        openssl(path, &format!("req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        openssl(path, &format!("x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days {days} -extfile {ext}.ext"));
    }
    // `x509 -req` takes no end in the past; the CA's own tool does.
    std::fs::write(path.join("index.txt"), "").unwrap();
    std::fs::write(
        path.join("ca.conf"),
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\nserial=ca.srl\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n",
    )
    .unwrap();
    openssl(
        path,
        "ca -batch -config ca.conf -in server.csr -cert ca.crt -keyfile ca.key -out expired.crt -startdate 20200101000000Z -enddate 20210101000000Z -extfile server.ext -notext",
    );
    Some(dir)
}

async fn broker(certificate: &str, lines: &str) -> Option<(Mosquitto, impl Fn(&str) -> String)> {
    let dir = certificates()?;
    let path = dir.path().to_owned();
    let at = path.display();
    let listener = format!(
        "listener PORT 127.0.0.1\nallow_anonymous true\ncafile {at}/ca.crt\ncertfile {at}/{certificate}.crt\nkeyfile {at}/server.key\n{lines}"
    );
    let broker = Mosquitto::start_in(dir, &listener, "").await?;
    Some((broker, move |name: &str| std::fs::read_to_string(path.join(name)).unwrap()))
}

#[tokio::test]
async fn records_arrive_over_tls_with_a_client_certificate() {
    let Some((broker, pem)) = broker("server", "require_certificate true").await else { return };
    for version in [Version::V3, Version::V5] {
        let url = format!("mqtts://127.0.0.1:{}", broker.port);
        let properties = [("url", url), ("caCert", pem("ca.crt")), ("clientCert", pem("client.crt")), ("clientKey", pem("client.key"))];
        let properties: Vec<_> = properties.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let rig = Rig::with(version, &properties).await;
        let forwarder = rig.forward();
        rig.accept("t/", 3, 2_000);
        rig.wait(|s| s.state == LinkState::Up && s.queued == 0).await;
        forwarder.stop().await;
        assert_eq!((rig.delivered(), rig.status().connects), (2_000, 1));
    }
}

async fn fails_with(certificate: &str, lines: &str, ca: &str, cause: LinkCause) {
    let Some((broker, pem)) = broker(certificate, lines).await else { return };
    let url = format!("mqtts://127.0.0.1:{}", broker.port);
    let ca = pem(ca);
    let rig = Rig::with(Version::V5, &[("url", &url), ("caCert", &ca)]).await;
    let forwarder = rig.forward();
    rig.accept("t/", 1, 1);
    // The first attempt may come before the broker listens; what counts is the cause once it answers.
    rig.wait(|s| s.cause == Some(cause)).await;
    forwarder.stop().await;
}

#[tokio::test]
async fn an_expired_certificate_is_a_matter_of_time() {
    fails_with("expired", "", "ca.crt", LinkCause::TlsTime).await;
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_a_matter_of_trust() {
    fails_with("server", "", "other.crt", LinkCause::TlsTrust).await;
}

#[tokio::test]
async fn a_missing_client_certificate_is_a_matter_of_identity() {
    fails_with("server", "require_certificate true", "ca.crt", LinkCause::Auth).await;
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_named() {
    for (key, value) in [("caCert", "nonsense"), ("clientCert", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")] {
        let context = common::context(&[("url", "mqtts://h"), (key, value)], std::sync::Arc::new(selvedge::time::SystemClock::new())).await;
        let error = selvedge_mqtt::pubsub_v3(context).await.err().unwrap().to_string();
        assert!(error.contains(key) || error.contains("clientKey"), "{error}");
    }
}
