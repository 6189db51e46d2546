//! What `selvedge init` is asked for, and what it finds out by itself.

use std::io::{BufRead as _, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use selvedge::topic;
use selvedge_mqtt::settings::{self, Url};

use crate::doctor;
use crate::flags::{Flags, UsageError};
use crate::run;

/// Most devices of one call.
const MAX_DEVICES: usize = 1_000;
/// Most of a password file or a CA file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// The quota of the lane for telemetry: the template's, on a small disk a tenth of what is free, and never less than this.
const QUOTA_MIB: std::ops::RangeInclusive<u64> = 8..=128;

/// What is to be written.
#[derive(Debug)]
pub struct Plan {
    /// The folder, as it was given.
    pub dir: PathBuf,
    /// The same from the root on, as it stands in the files.
    pub folder: String,
    /// `--app-id`, if it was said.
    pub named: Option<String>,
    /// The id that the node gets: what was said, else the host's name.
    pub node: String,
    /// `--data-dir` from the root on, else where the package has it.
    pub data: String,
    /// Where devices come in over MQTT.
    pub listen: SocketAddr,
    /// Where devices come in over CoAP, if they do.
    pub coap: Option<SocketAddr>,
    /// The listener reads a users file.
    pub users: bool,
    /// Names of devices that get a password.
    pub devices: Vec<String>,
    /// Put before topics that go up.
    pub prefix: String,
    /// Quota of the lane for telemetry.
    pub quota_mib: u64,
    /// Where messages go.
    pub broker: Option<Broker>,
}

/// The broker.
#[derive(Debug)]
pub struct Broker {
    /// Its url without user and password.
    pub url: String,
    /// Its url with them.
    pub secret: Option<String>,
    /// PEM of the authorities that its certificate must lead to.
    pub ca: Option<String>,
}

fn usage(text: impl Into<String>) -> UsageError {
    UsageError(text.into())
}

/// A name that is safe in topics, YAML and shells.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && !text.starts_with('-') && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// The host's name without its domain, as far as it is a name; what the package's service calls the box.
fn host_name() -> String {
    let full = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let short: String = full.split('.').next().unwrap_or_default().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(64).collect();
    if is_name(&short) { short } else { "box".to_owned() }
}

/// Text without what YAML's quotes, shells or `${NAME}` would read otherwise.
fn is_plain(text: &str) -> bool {
    !text.contains(['"', '\\', '$']) && !text.contains(char::is_control)
}

/// A path that YAML takes without quotes, inside braces too.
fn is_unquoted(path: &str) -> bool {
    is_plain(path) && !path.contains([' ', '#', '\'', '{', '}', '[', ']', ',', ':'])
}

/// From the root on, without a slash at the end.
fn absolute(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string();
    path.trim_end_matches('/').to_owned()
}

fn file(flag: &str, path: &str) -> Result<String, UsageError> {
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|f| f.take(MAX_FILE_BYTES).read_to_string(&mut text));
    read.map(|_| text).map_err(|e| usage(format!("--{flag}: {path} cannot be read: {e}")))
}

/// A line from standard input: who types it need not end the input.
fn typed() -> Result<String, UsageError> {
    let mut line = String::new();
    let read = std::io::stdin().lock().take(MAX_FILE_BYTES).read_line(&mut line);
    read.map(|_| line).map_err(|e| usage(format!("--password-file -: standard input cannot be read: {e}")))
}

fn encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn broker(flags: &Flags) -> Result<Option<Broker>, UsageError> {
    let Some(text) = flags.text("upstream") else {
        return match ["user", "password-file", "ca-file", "prefix"].into_iter().find(|f| flags.text(f).is_some()) {
            Some(flag) => Err(usage(format!("--{flag} is about a broker: name it with --upstream {}", settings::URL))),
            None => Ok(None),
        };
    };
    let wrong = || usage(format!("--upstream: found {:?}; accepted is {}", settings::redact(text), settings::URL));
    let url = Url::parse(text).filter(|_| is_plain(text)).ok_or_else(wrong)?;
    let (scheme, rest) = text.trim().split_once("://").ok_or_else(wrong)?;
    let address = rest.rsplit_once('@').map_or(rest, |(_, address)| address);
    let (mut user, mut password) = url.credentials.unwrap_or_default();
    if let Some(said) = flags.text("user") {
        if !user.is_empty() {
            return Err(usage("--user: --upstream names a user too; say it once"));
        }
        user = said.to_owned();
    }
    if let Some(path) = flags.text("password-file") {
        if user.is_empty() || !password.is_empty() {
            return Err(usage("--password-file: accepted together with --user NAME, and without a password in --upstream"));
        }
        let text = if path == "-" { typed()? } else { file("password-file", path)? };
        password = text.lines().next().unwrap_or_default().to_owned();
        if password.is_empty() {
            return Err(usage(format!("--password-file: the first line of {path} is empty; the password stands there")));
        }
    }
    if !user.is_empty() && !cfg!(feature = "secrets") {
        return Err(usage("--user: this binary is built without secret stores; write the url with user and password into the YAML yourself"));
    }
    let secret = (!user.is_empty()).then(|| match password.as_str() {
        "" => format!("{scheme}://{}@{address}", encoded(&user)),
        password => format!("{scheme}://{}:{}@{address}", encoded(&user), encoded(password)),
    });
    let ca = match flags.text("ca-file") {
        None => None,
        Some(_) if !url.tls => return Err(usage("--ca-file: the connection is not encrypted; accepted together with --upstream mqtts://...")),
        Some(path) => {
            let text = file("ca-file", path)?;
            let all: Result<Vec<CertificateDer<'_>>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
            if !all.is_ok_and(|all| !all.is_empty()) || !text.is_ascii() {
                return Err(usage(format!("--ca-file: no certificate is found in {path}; accepted is PEM, blocks of BEGIN CERTIFICATE")));
            }
            Some(text)
        }
    };
    Ok(Some(Broker { url: format!("{scheme}://{address}"), secret, ca }))
}

/// `--listen`: an address for MQTT, one with `coap://` before it for CoAP.
fn listen(flags: &Flags, guarded: bool) -> Result<(SocketAddr, Option<SocketAddr>), UsageError> {
    const ACCEPTED: &str = "accepted are ADDRESS:PORT or mqtt://ADDRESS:PORT, and coap://ADDRESS:PORT, each at most once; such as 0.0.0.0:1883";
    let (mut mqtt, mut coap) = (None, None);
    for text in flags.list("listen") {
        let text = text.display().to_string();
        let wrong = || usage(format!("--listen: found {text:?}; {ACCEPTED}"));
        let (protocol, address) = text.split_once("://").unwrap_or(("mqtt", &text));
        let place = match protocol {
            "mqtt" => &mut mqtt,
            "coap" if cfg!(feature = "coap") => &mut coap,
            _ => return Err(wrong()),
        };
        if place.replace(address.parse().map_err(|_| wrong())?).is_some() {
            return Err(wrong());
        }
    }
    // Everyone's network with passwords, this machine alone without.
    Ok((mqtt.unwrap_or_else(|| SocketAddr::from((if guarded { [0, 0, 0, 0] } else { [127, 0, 0, 1] }, 1883))), coap))
}

/// Reads the command line; reads the files that it names, and nothing else.
///
/// # Errors
/// What is wrong, and what is accepted.
pub fn plan(flags: &Flags) -> Result<Plan, UsageError> {
    let dir = match flags.rest.get(1..).unwrap_or_default() {
        [] => PathBuf::from("selvedge"),
        [dir] => PathBuf::from(dir),
        more => return Err(usage(format!("init takes one folder; found {}. A list has commas: --devices attic,cellar", more.join(" ")))),
    };
    let folder = absolute(&dir);
    if !is_unquoted(&folder) {
        return Err(usage(format!("init: the folder {folder:?} would need quotes in YAML; accepted are names without blanks and # ' {{ }} , : $")));
    }
    let mut devices: Vec<String> = flags.list("devices").iter().map(|p| p.display().to_string()).collect();
    if let Some(bad) = devices.iter().find(|n| !is_name(n)) {
        return Err(usage(format!(
            "--devices: found {bad:?}; accepted are names of letters, digits, '-' and '_', at most 64, with commas between them"
        )));
    }
    devices.sort();
    devices.dedup();
    if devices.len() > MAX_DEVICES {
        return Err(usage(format!("--devices: found {} names; accepted are at most {MAX_DEVICES}", devices.len())));
    }
    let named = flags.text("app-id").map(str::to_owned);
    if let Some(bad) = named.as_ref().filter(|n| !is_name(n)) {
        return Err(usage(format!("--app-id: found {bad:?}; accepted is a name of letters, digits, '-' and '_', at most 64")));
    }
    let node = named.clone().unwrap_or_else(host_name);
    let broker = broker(flags)?;
    let mut prefix = flags.text("prefix").map_or_else(|| format!("{node}/"), str::to_owned);
    if !prefix.ends_with('/') {
        prefix.push('/');
    }
    if topic::check_name(&format!("{prefix}x")).is_err() || !is_plain(&prefix) || prefix.starts_with(['/', '$']) {
        return Err(usage(format!("--prefix: found {prefix:?}; accepted is the beginning of topics at the broker, such as site7/")));
    }
    // Accounts that are there already go on.
    let users = !devices.is_empty() || dir.join("users.yaml").exists();
    let (listen, coap) = listen(flags, users)?;
    let data = absolute(Path::new(flags.text("data-dir").unwrap_or("/var/lib/selvedge")));
    if !is_unquoted(&data) {
        return Err(usage(format!("--data-dir: {data:?} would need quotes in YAML; accepted are names without blanks and # ' {{ }} , : $")));
    }
    let quota_mib = doctor::free_bytes(&run::data_dir_of_node(flags))
        .map_or(*QUOTA_MIB.end(), |free| ((free / 10) >> 20).clamp(*QUOTA_MIB.start(), *QUOTA_MIB.end()));
    Ok(Plan { dir, folder, named, node, data, listen, coap, users, devices, prefix, quota_mib, broker })
}

/// Whether the folder is the one that the package's service reads.
pub fn is_packages(dir: &Path) -> bool {
    let same = |a: &Path, b: &str| a.canonicalize().ok().is_some_and(|a| Path::new(b).canonicalize().is_ok_and(|b| a == b));
    same(dir, "/etc/selvedge") && Path::new("/usr/lib/systemd/system/selvedge.service").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Result<Plan, UsageError> {
        plan(&Flags::parse(std::iter::once("init").chain(words.iter().copied()).map(str::to_owned)).unwrap())
    }

    #[test]
    fn mistakes_name_the_flag_and_what_is_accepted() {
        for (words, text) in [
            (&["--upstream", "http://x"][..], "found \"http://x\"; accepted is mqtt://"),
            (&["--upstream", "broker.example:1883"], "accepted is mqtt://"),
            (&["--upstream", "mqtt://me:secret@h:99999"], "found \"mqtt://***@h:99999\""),
            (&["--upstream", "mqtt://a@x", "--user", "b"], "say it once"),
            (&["--upstream", "mqtt://x", "--user", "u", "--password-file", "/nowhere"], "/nowhere cannot be read"),
            (&["--upstream", "mqtt://x", "--password-file", "/nowhere"], "together with --user"),
            (&["--upstream", "mqtt://x", "--ca-file", "/dev/null"], "not encrypted"),
            (&["--upstream", "mqtts://x", "--ca-file", "/dev/null"], "no certificate is found"),
            (&["--user", "u"], "--user is about a broker"),
            (&["--devices", "a/b"], "accepted are names"),
            (&["--devices", "a", "b", "c"], "--devices attic,cellar"),
            (&["--listen", "1883"], "ADDRESS:PORT"),
            (&["--listen", "127.0.0.1:1,127.0.0.1:2"], "at most once"),
            (&["--upstream", "mqtt://x", "--prefix", "a+/"], "beginning of topics"),
            (&["--app-id", "a.b"], "accepted is a name"),
            (&["two words"], "without blanks"),
        ] {
            let error = of(words).err().unwrap_or_else(|| panic!("{words:?} is accepted")).0;
            assert!(error.contains(text), "{words:?}: {error}");
        }
    }

    #[test]
    fn user_and_password_go_into_a_url_of_their_own() {
        let folder = std::env::temp_dir().join(format!("selvedge-init-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("password");
        std::fs::write(&path, "p@ss:/% w\nmore\n").unwrap();
        let with = |words: &[&str]| of(words).unwrap().broker.map(|b| (b.url, b.secret)).unwrap();
        let secret = with(&["--upstream", "mqtts://h:1", "--user", "a b", "--password-file", path.to_str().unwrap()]);
        assert_eq!(secret, ("mqtts://h:1".into(), Some("mqtts://a%20b:p%40ss%3A%2F%25%20w@h:1".into())));
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(with(&["--upstream", "mqtt://u:p@h"]), ("mqtt://h".into(), Some("mqtt://u:p@h".into())));
        assert_eq!(with(&["--upstream", "mqtt://[::1]:5"]), ("mqtt://[::1]:5".into(), None));
        assert!(Url::parse(&secret.1.unwrap()).unwrap().credentials == Some(("a b".into(), "p@ss:/% w".into())));
    }

    #[test]
    fn everyone_s_network_is_for_devices_with_passwords() {
        assert_eq!(of(&[]).unwrap().listen.to_string(), "127.0.0.1:1883");
        assert_eq!(
            of(&["--devices", "b,a,a"]).map(|p| (p.listen.to_string(), p.devices)).unwrap(),
            ("0.0.0.0:1883".into(), vec!["a".into(), "b".into()])
        );
        let both = of(&["--listen", "10.0.0.1:1884,coap://0.0.0.0:5683"]).unwrap();
        assert_eq!((both.listen.to_string(), both.coap.map(|a| a.to_string())), ("10.0.0.1:1884".into(), Some("0.0.0.0:5683".into())));
    }
}
