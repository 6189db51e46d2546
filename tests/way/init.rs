//! `selvedge init`: a folder that starts and forwards as it is.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use selvedge_tests::mqtt5::{Connect, Properties, Wire};
use selvedge_tests::{Mosquitto, Place, binary, eventually, free_port};

/// `selvedge init FOLDER WORDS`: exit code and what it prints.
fn init(folder: &Path, words: &[&str]) -> (i32, String) {
    let output = Command::new(binary()).arg("init").arg(folder).args(words).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// A place whose folder of YAML is empty, and the folder above it.
fn empty() -> (Place, std::path::PathBuf) {
    let place = Place::new("");
    std::fs::remove_file(place.resources().join("node.yaml")).unwrap();
    let folder = place.resources().parent().unwrap().to_owned();
    (place, folder)
}

#[test]
fn the_folder_starts_and_forwards_for_devices_with_their_passwords() {
    let secrets = tempfile::tempdir().unwrap();
    let file = secrets.path().join("passwords");
    assert!(
        Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&file).args(["box", "p@ss: w"]).stderr(Stdio::null()).status().unwrap().success()
    );
    std::fs::write(secrets.path().join("password"), "p@ss: w\n").unwrap();
    for path in [secrets.path(), &file] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let broker = Mosquitto::with(&format!("allow_anonymous false\npassword_file {}\n", file.display()));
    let port = free_port();
    let (place, folder) = empty();
    let upstream = format!("mqtt://127.0.0.1:{}", broker.port);
    let password_file = secrets.path().join("password").display().to_string();
    let listen = format!("127.0.0.1:{port}");
    let words = [
        "--upstream",
        &upstream,
        "--user",
        "box",
        "--password-file",
        &password_file,
        "--devices",
        "attic,cellar",
        "--listen",
        &listen,
        "--prefix",
        "site9",
    ];
    let (code, said) = init(&folder, &words);
    assert!(code == 0 && said.contains("all well") && said.contains("takes the box (MQTT 5)") && !said.contains("warning"), "{said}");
    let password = |name: &str| {
        let line = said.lines().find(|l| l.trim_start().starts_with(&format!("{name}  "))).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    for name in ["users.yaml", "secrets.json"] {
        let path = folder.join(name);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640, "{name}");
        assert!(!std::fs::read_to_string(path).unwrap().contains(&password("attic")));
    }
    let yaml = std::fs::read_to_string(place.resources().join("gateway.yaml")).unwrap();
    assert!(!yaml.contains("p@ss") && !yaml.contains("p%40ss") && !yaml.contains("/etc/selvedge") && !yaml.contains("site7/"), "{yaml}");

    let node = place.start();
    let device = |name: &str, password: String| Connect { id: name.into(), clean: true, user: Some((name.into(), password)), ..Connect::default() };
    let (mut cloud, _) = Wire::connect(broker.port, &Connect { user: Some(("box".into(), "p@ss: w".into())), ..device("cloud", String::new()) });
    cloud.subscribe("site9/sensors/attic/#", 1, &Properties::new());
    cloud.subscribe("site9/alarm/#", 1, &Properties::new());
    assert_eq!(Wire::open(port).hello(&device("attic", "wrong".into())).body[1], 0x86);
    let (mut attic, _) = Wire::connect(port, &device("attic", password("attic")));
    let (mut cellar, _) = Wire::connect(port, &device("cellar", password("cellar")));
    attic.subscribe("cmd/attic/#", 1, &Properties::new());
    assert_eq!(attic.publish(2, "sensors/attic", &Properties::new(), "21"), 0);
    assert_eq!(cellar.publish(2, "alarm/cellar/water", &Properties::new(), "1"), 0);
    assert_eq!(cellar.publish(2, "sensors/attic", &Properties::new(), "1"), 0x87);
    let mut arrived: Vec<String> = (0..2).map(|_| cloud.message().topic).collect();
    arrived.sort();
    assert_eq!(arrived, ["site9/alarm/cellar/water", "site9/sensors/attic"]);
    // Retained, so that it also comes to a box that subscribes a moment later.
    assert_eq!(cloud.publish(3, "site9/cmd/attic/set", &Properties::new(), "on"), 0);
    assert_eq!(attic.message().topic, "cmd/attic/set");
    // Who is refused, and why, is in the log: a client of MQTT 3.1.1 hears nothing of it.
    for line in [
        "a client is refused: no account of the users file has this name and password\" listener=devices client_id=attic user=attic",
        "a client may not publish to this topic: no rule of its account in the users file says so\" listener=devices client_id=cellar mqtt.topic=sensors/attic",
    ] {
        eventually(Duration::from_secs(10), line, || node.has_logged(line));
    }
    assert_eq!(node.terminate(), Some(0));

    // A second time nothing is written over, unless it is asked for.
    let before = std::fs::read_to_string(folder.join("users.yaml")).unwrap();
    let (code, said) = init(&folder, &words);
    assert!(code == 1 && said.contains("nothing is written") && said.contains("users.yaml") && said.contains("--force"), "{said}");
    assert_eq!(std::fs::read_to_string(folder.join("users.yaml")).unwrap(), before);
    assert_eq!(init(&folder, &[&words[..], &["--force"]].concat()).0, 0);
    assert_ne!(std::fs::read_to_string(folder.join("users.yaml")).unwrap(), before);
    // Without --devices the accounts that are there go on.
    let before = std::fs::read_to_string(folder.join("users.yaml")).unwrap();
    let (code, said) = init(&folder, &["--force", "--listen", &listen]);
    assert!(code == 0 && said.contains("no broker is named") && said.contains("with a password"), "{said}");
    assert_eq!(std::fs::read_to_string(folder.join("users.yaml")).unwrap(), before);
    assert!(std::fs::read_to_string(place.resources().join("gateway.yaml")).unwrap().contains("\n  users: {file: "));
}

#[test]
fn what_the_packages_bring_is_what_init_writes_and_is_replaced_without_force() {
    let (place, folder) = empty();
    let template = include_str!("../../packaging/etc/gateway.yaml");
    std::fs::write(place.resources().join("gateway.yaml"), template).unwrap();
    let (code, said) = init(&folder, &[]);
    let written = std::fs::read_to_string(place.resources().join("gateway.yaml")).unwrap();
    assert_eq!(code, 0, "{said}");
    assert_eq!(written, template.replace("/etc/selvedge", folder.to_str().unwrap()));
    // With a line of somebody's own it is somebody's.
    std::fs::write(place.resources().join("gateway.yaml"), format!("{template}# mine\n")).unwrap();
    let (code, said) = init(&folder, &[]);
    assert!(code == 1 && said.contains("gateway.yaml is there already"), "{said}");
}

#[test]
fn a_broker_that_is_away_is_said_and_a_url_that_is_none_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (code, said) =
        init(folder.path(), &["--upstream", &format!("mqtt://127.0.0.1:{}", free_port()), "--listen", &format!("127.0.0.1:{}", free_port())]);
    assert!(code == 0 && said.contains("problem  upstream cloud: tcp") && said.contains("does not take the box yet"), "{said}");
    let (code, said) = init(&folder.path().join("x"), &["--upstream", "broker.example"]);
    assert!(code == 2 && said.contains("--upstream: found \"broker.example\"; accepted is mqtt://"), "{said}");
    assert!(!folder.path().join("x").exists());
    // A port that somebody has is said with who it is.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, said) = init(&folder.path().join("y"), &["--listen", &taken.local_addr().unwrap().to_string()]);
    assert!(code == 0 && said.contains(&format!("is taken by process {}", std::process::id())), "{said}");
    let (code, said) = init(Path::new("/proc/nowhere"), &[]);
    assert!(code == 1 && said.contains("/proc/nowhere/resources/gateway.yaml cannot be written"), "{said}");
}

#[test]
fn a_broker_that_speaks_mqtt_3_alone_is_found_out_by_trying() {
    let broker = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = broker.local_addr().unwrap().port();
    // Answers CONNECT as MQTT 3.1.1 has it (section 3.2.2.3): 1 for a protocol level that it does not know.
    std::thread::spawn(move || {
        for mut stream in broker.incoming().flatten() {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).is_ok() {
                let code = u8::from(head[8] != 4);
                let _ = stream.write_all(&[0x20, 2, 0, code]);
            }
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let (code, said) = init(folder.path(), &["--upstream", &format!("mqtt://127.0.0.1:{port}"), "--listen", &format!("127.0.0.1:{}", free_port())]);
    assert!(code == 0 && said.contains("takes the box (MQTT 3.1.1)"), "{said}");
    assert!(std::fs::read_to_string(folder.path().join("resources/gateway.yaml")).unwrap().contains("\n  type: pubsub.mqtt3 "));
}

#[test]
fn a_broker_with_a_certificate_of_its_own_authority_is_trusted_by_its_file_and_not_without() {
    let dir = tempfile::tempdir().unwrap();
    let openssl = |words: &str| {
        assert!(Command::new("openssl").args(words.split(' ')).current_dir(dir.path()).stderr(Stdio::null()).status().unwrap().success(), "{words}");
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca-key -out ca -days 30 -subj /CN=authority"));
    openssl(&format!("req {key} -keyout key -out request -subj /CN=localhost"));
    std::fs::write(dir.path().join("names"), "subjectAltName=DNS:localhost\n").unwrap();
    openssl("x509 -req -in request -CA ca -CAkey ca-key -CAcreateserial -days 30 -extfile names -out cert");
    for name in [".", "key"] {
        std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let (port, at) = (free_port(), dir.path().display());
    let _broker = Mosquitto::with(&format!("listener {port} 127.0.0.1\ncertfile {at}/cert\nkeyfile {at}/key\nallow_anonymous true\n"));
    let (upstream, listen) = (format!("mqtts://localhost:{port}"), format!("127.0.0.1:{}", free_port()));
    let words = ["--upstream", &upstream, "--listen", &listen];
    let (place, folder) = empty();
    let (code, said) = init(&folder, &words);
    assert!(code == 0 && said.contains("problem  upstream cloud: tls") && said.contains("does not take the box yet"), "{said}");
    let ca = dir.path().join("ca").display().to_string();
    let (code, said) = init(&folder, &[&words[..], &["--ca-file", &ca, "--force"]].concat());
    assert!(code == 0 && said.contains("takes the box (MQTT 5)"), "{said}");
    let node = place.start();
    eventually(Duration::from_secs(20), "the link is up", || node.link("cloud") == "up");
    assert_eq!(node.terminate(), Some(0));
}
