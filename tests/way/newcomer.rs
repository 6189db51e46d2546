//! The first hour: what the binary says to somebody who gets things wrong. Each answer says what, where and what is accepted.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use selvedge_tests::mqtt::Client;
use selvedge_tests::{Mosquitto, Place, binary, eventually, free_port, yaml};

const LONG: Duration = Duration::from_secs(30);

fn said(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned())
}

fn selvedge(words: &[&str]) -> (Option<i32>, String) {
    said(&Command::new(binary()).args(words).output().unwrap())
}

#[test]
fn a_command_line_that_is_not_understood_says_what_is() {
    for (words, part) in [
        (&["strat"][..], "unknown command \"strat\"; accepted are run, demo, init, check"),
        (&[], "--app-id is required; `selvedge run` needs none, `selvedge help` shows all there is"),
        (&["run", "--resource-path", "x"], "unknown flag: --resource-path; is --resources-path meant?"),
        (&["check"], "check needs a folder"),
        (&["queue", "foo"], "accepted are ls, show"),
    ] {
        let (code, text) = selvedge(words);
        assert!(code == Some(2) && text.contains(part) && text.lines().count() == 1, "{words:?}: {text}");
    }
    for words in [["--help"], ["-h"], ["help"]] {
        let (code, text) = selvedge(&words);
        assert!(code == Some(0) && text.contains("selvedge init [FOLDER]") && text.contains("--resources-path"), "{words:?}: {text}");
    }
    assert!(selvedge(&["init", "--help"]).1.contains("--password-file FILE"));
}

#[test]
fn who_reads_only_the_beginning_of_an_answer_meets_no_defect() {
    let mut help = Command::new(binary()).arg("help").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(help.stdout.take());
    let output = help.wait_with_output().unwrap();
    assert_eq!(said(&output), (Some(0), String::new()));
}

#[test]
fn a_folder_without_yaml_and_a_broker_without_url_are_not_well() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display().to_string();
    let check = || selvedge(&["check", &at]);
    let (code, text) = check();
    assert!(code == Some(1) && text.contains("no file ends in .yaml or .yml: there is nothing to check\n"), "{text}");
    std::fs::create_dir(folder.path().join("resources")).unwrap();
    std::fs::write(folder.path().join("resources/a.yaml"), yaml::cloud(1)).unwrap();
    assert!(check().1.contains(&format!("is {at}/resources meant?")), "{}", check().1);
    for (property, part) in [
        ("{name: ulr, value: \"mqtt://x\"}", "a.yaml:1: component cloud: spec.metadata has no url (it has ulr); accepted is mqtt://"),
        ("{name: url, value: \"mqtt://me:secret@x:y\"}", "component cloud: url: found \"mqtt://***@x:y\"; accepted is mqtt://"),
    ] {
        let text = yaml::cloud(1).replace("{name: url, value: \"mqtt://127.0.0.1:1\"}", property);
        std::fs::write(folder.path().join("a.yaml"), text).unwrap();
        let (code, text) = check();
        assert!(code == Some(1) && text.contains(part) && text.contains("1 to mend") && !text.contains("secret@"), "{text}");
    }
    for (path, part) in [("/nowhere", "/nowhere: No such file"), ("/dev/null", "/dev/null: Not a directory")] {
        let (code, text) = selvedge(&["check", path]);
        assert!(code == Some(1) && text.contains(part) && text.contains("accepted is a folder of .yaml and .yml files"), "{text}");
    }
}

#[test]
fn a_start_that_fails_says_where_and_what_else_would_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let place = Place::new(&yaml::devices(port));
    let start = |data: &str, more: &[String]| {
        let mut command = Command::new(binary());
        command.args(["run", "--resources-path"]).arg(place.resources()).args(["--data-dir", data]).args(&place.flags).args(more);
        said(&command.output().unwrap())
    };
    let data = place.data().display().to_string();
    let (code, text) = start(&data, &[]);
    assert!(
        code == Some(1)
            && text.contains(&format!("listener devices: cannot bind 127.0.0.1:{port} (is another program using the port? `selvedge doctor`")),
        "{text}"
    );
    let (code, text) = start(&data, &[format!("--dapr-http-port={port}")]);
    assert!(code == Some(1) && text.contains(&format!("0.0.0.0:{port} is taken by process {}", std::process::id())), "{text}");
    assert!(text.contains("choose another port with --dapr-http-port"), "{text}");
    let (code, text) = start("/proc/nowhere", &[]);
    assert!(
        code == Some(1) && text.contains("the data directory /proc/nowhere cannot be used") && text.contains("choose another with --data-dir"),
        "{text}"
    );
}

#[test]
fn who_asks_where_no_node_is_hears_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().display().to_string();
    let (code, text) = selvedge(&["queue", "--data-dir", &data]);
    assert!(
        code == Some(1) && text.contains(&format!("no node answers at {data}/control.sock")) && text.contains("start one (`selvedge run`)"),
        "{text}"
    );
    drop(std::os::unix::net::UnixListener::bind(folder.path().join("control.sock")).unwrap());
    let (code, text) = selvedge(&["queue", "--data-dir", &data]);
    assert!(code == Some(1) && text.contains("the node that was there has ended"), "{text}");
}

#[test]
fn an_upstream_with_a_wrong_password_is_named_beside_what_waits_for_it() {
    let broker = Mosquitto::with("allow_anonymous false\n");
    let port = free_port();
    let place = Place::new(&format!(
        "{}{}apiVersion: selvedge/v1alpha1\nkind: Forwarding\nmetadata: {{name: up}}\nspec: {{routes: [{{from: local, topics: [\"s/#\"], to: [cloud]}}]}}\n",
        yaml::cloud(broker.port).replace("mqtt://", "mqtt://me:wrong@"),
        yaml::devices(port)
    ));
    let node = place.start();
    Client::connect(port, "device", true).unwrap().publish("s/1", b"x").unwrap();
    assert_eq!(place.data().metadata().unwrap().permissions().mode() & 0o007, 0, "what waits is not for everybody on the box");
    let data = place.data().display().to_string();
    eventually(LONG, "the link's reason is shown", || {
        let (code, text) = selvedge(&["queue", "ls", "--data-dir", &data]);
        code == Some(0)
            && text.contains("upstream cloud: fenced (auth: ")
            && text.contains("`selvedge doctor` says what to do")
            && text.contains("upstream/cloud")
    });
    let resources = place.resources().display().to_string();
    let (code, text) = selvedge(&["doctor", &resources, "--data-dir", &data]);
    assert!(code == Some(1) && text.contains("problem  upstream cloud: mqtt") && text.contains("check user name and password in `url`"), "{text}");
    assert_eq!(node.terminate(), Some(0));
}
