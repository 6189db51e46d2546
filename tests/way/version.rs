//! The version of the data folder, over upgrades and downgrades of the program.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use selvedge_tests::mqtt::Client;
use selvedge_tests::{Mosquitto, Place, binary, eventually, free_port, yaml};

const LONG: Duration = Duration::from_secs(30);

fn files(dir: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.is_file() {
            found.insert(path.display().to_string(), std::fs::read(&path).unwrap());
        }
    }
}

#[test]
fn a_newer_data_folder_is_left_as_it_is_and_an_older_one_is_brought_forward() {
    let broker = Mosquitto::start();
    let (cloud, devices) = (free_port(), free_port());
    let documents = |cloud: u16| {
        format!(
            "{}{}apiVersion: selvedge/v1alpha1\nkind: Forwarding\nmetadata: {{name: up}}\nspec: {{routes: [{{from: local, topics: [\"s/#\"], to: [cloud]}}]}}\n",
            yaml::cloud(cloud),
            yaml::devices(devices)
        )
    };
    let place = Place::new(&documents(cloud));
    let node = place.start();
    let mut device = Client::connect(devices, "d", true).unwrap();
    for n in 0..50 {
        device.publish("s/x", format!("{n}").as_bytes()).unwrap();
    }
    assert_eq!(node.terminate(), Some(0));
    let version = place.data().join("store-version");
    let present = std::fs::read_to_string(&version).unwrap();
    assert!(present.starts_with("3\n"), "{present}");

    // The same folder, as a later program would leave it: by the version file, and by the outbox's own number.
    let manifest = place.data().join("outbox/manifest");
    let original = std::fs::read(&manifest).unwrap();
    let program = "import sys,zlib;p=sys.argv[1];b=open(p,'rb').read()[9:].replace(b'\"version\":1',b'\"version\":9,\"more\":[1]');\
                   open(p,'wb').write(b'%08x\\n'%zlib.crc32(b)+b)";
    for (what, texts) in [("folder", ["its version is 4 (written by 9.9.9)", "knows versions up to 3"]), ("manifest", ["is of version 9", "up to 1"])]
    {
        if what == "folder" {
            std::fs::write(&version, "4\n9.9.9\n").unwrap();
        } else {
            std::fs::write(&version, &present).unwrap();
            assert!(Command::new("python3").args(["-c", program]).arg(&manifest).status().unwrap().success());
        }
        let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
        files(&place.data(), &mut before);
        let mut command = Command::new(binary());
        command.args(["--app-id", "box", "--resources-path"]).arg(place.resources()).arg("--data-dir").arg(place.data()).args(&place.flags);
        let output = command.output().unwrap();
        let log = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{log}");
        for text in texts {
            assert!(log.contains(text), "{text}\n{log}");
        }
        assert!(log.contains("nothing was changed"), "{log}");
        files(&place.data(), &mut after);
        assert!(before == after, "{what}: files have changed: {:?}", after.keys());
    }
    std::fs::write(&manifest, original).unwrap();

    // Without its file it is a folder from before there were versions.
    std::fs::remove_file(&version).unwrap();
    place.rewrite(&documents(broker.port));
    let mut cloud = Client::connect(broker.port, "cloud", true).unwrap();
    cloud.subscribe("#").unwrap();
    let node = place.start();
    eventually(LONG, "the log says so", || node.has_logged("the data directory is brought to a newer version"));
    assert_eq!(std::fs::read_to_string(&version).unwrap(), present);
    for n in 0..50 {
        assert_eq!(cloud.receive(LONG).unwrap().unwrap(), ("s/x".to_owned(), format!("{n}").into_bytes()));
    }
    eventually(LONG, "the books close", || node.ledger("upstream/cloud", "queued") == 0);
    assert_eq!(node.terminate(), Some(0));
}
