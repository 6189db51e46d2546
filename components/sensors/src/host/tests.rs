use std::collections::BTreeMap;
use std::fs;

use super::*;
use crate::reading::Value;

/// A machine made of files.
struct Fake(tempfile::TempDir);

impl Fake {
    fn new(files: &[(&str, &str)]) -> Self {
        let fake = Self(tempfile::tempdir().unwrap());
        for (path, text) in files {
            fake.write(path, text);
        }
        fake
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn host(&self) -> Host {
        Host::new(self.0.path().to_owned())
    }
}

fn values(sample: &Sample) -> BTreeMap<&str, (Value, &str)> {
    sample.readings.iter().map(|r| (r.topic.as_str(), (r.value, r.unit))).collect()
}

#[test]
fn chips_and_zones_are_named_by_what_they_are() {
    let fake = Fake::new(&[
        ("sys/class/hwmon/hwmon0/name", "cpu_thermal\n"),
        ("sys/class/hwmon/hwmon0/temp1_input", "48312\n"),
        ("sys/class/hwmon/hwmon1/name", "nct6775\n"),
        ("sys/class/hwmon/hwmon1/temp1_input", "31000\n"),
        ("sys/class/hwmon/hwmon1/temp1_label", "SYSTIN\n"),
        ("sys/class/hwmon/hwmon1/temp2_input", "-5500\n"),
        ("sys/class/hwmon/hwmon1/fan1_input", "1200\n"),
        ("sys/class/hwmon/hwmon1/in0_input", "3312\n"),
        ("sys/class/hwmon/hwmon1/in0_label", "+3.3V\n"),
        ("sys/class/hwmon/hwmon1/power1_average", "12500000\n"),
        ("sys/class/hwmon/hwmon2/name", "nvme\n"),
        ("sys/class/hwmon/hwmon2/temp1_input", "40000\n"),
        ("sys/class/hwmon/hwmon10/name", "nvme\n"),
        ("sys/class/hwmon/hwmon10/temp1_input", "41000\n"),
        ("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
        ("sys/class/thermal/thermal_zone0/temp", "48312\n"),
        ("sys/class/thermal/thermal_zone1/type", "gpu\n"),
        ("sys/class/thermal/thermal_zone1/temp", "50000\n"),
    ]);
    let sample = fake.host().sample(&Group::ALL);
    assert_eq!(sample.failures, []);
    let expected = [
        ("fan/nct6775", (Value::Real(1_200.0), "rpm")),
        ("power/nct6775", (Value::Real(12.5), "watt")),
        ("temperature/cpu-thermal", (Value::Real(48.312), "celsius")),
        ("temperature/gpu", (Value::Real(50.0), "celsius")),
        ("temperature/nct6775/systin", (Value::Real(31.0), "celsius")),
        ("temperature/nct6775/temp2", (Value::Real(-5.5), "celsius")),
        ("temperature/nvme", (Value::Real(40.0), "celsius")),
        ("temperature/nvme-2", (Value::Real(41.0), "celsius")),
        ("voltage/nct6775", (Value::Real(3.312), "volt")),
    ];
    assert_eq!(values(&sample), expected.into_iter().collect());
    let only = fake.host().sample(&[Group::Fan]);
    assert_eq!(values(&only).keys().copied().collect::<Vec<_>>(), ["fan/nct6775"]);
}

#[test]
fn proc_gives_load_memory_network_and_disks() {
    let fake = Fake::new(&[
        ("proc/loadavg", "0.52 0.58 0.59 1/389 12345\n"),
        ("proc/meminfo", "MemTotal:        1000 kB\nMemFree: 1 kB\nMemAvailable:    600 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"),
        (
            "proc/net/dev",
            "Inter-|   Receive  |  Transmit\n face |bytes packets\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 1000 10 1 0 0 0 0 0 2000 20 2 0 0 0 0 0\n",
        ),
        ("proc/mounts", "/dev/root / ext4 rw 0 0\n"),
        (
            "proc/diskstats",
            "   8       0 sda 100 0 200 0 50 0 80 0 0 0 0\n   8       1 sda1 1 0 2 0 3 0 4 0 0 0 0\n   7 0 loop0 1 0 2 0 3 0 4 0 0 0 0\n",
        ),
        ("sys/block/sda/size", "1\n"),
    ]);
    let sample = fake.host().sample(&Group::ALL);
    assert_eq!(sample.failures, []);
    let values = values(&sample);
    for (topic, value) in [
        ("load/1m", Value::Real(0.52)),
        ("load/15m", Value::Real(0.59)),
        ("memory/total", Value::Whole(1_024_000)),
        ("memory/available", Value::Whole(614_400)),
        ("network/eth0/received", Value::Whole(1_000)),
        ("network/eth0/sent", Value::Whole(2_000)),
        ("network/eth0/receive-errors", Value::Whole(1)),
        ("network/eth0/send-errors", Value::Whole(2)),
        ("disk/sda/read", Value::Whole(200 * 512)),
        ("disk/sda/written", Value::Whole(80 * 512)),
    ] {
        assert_eq!(values.get(topic).map(|(v, _)| *v), Some(value), "{topic}");
    }
    assert!(matches!(values["disk/root/size"], (Value::Whole(bytes), "bytes") if bytes > 0));
    assert!(!values.keys().any(|t| t.contains("loop") || t.contains("sda1") || t.contains("/lo/")));
}

#[test]
fn processor_usage_is_the_difference_of_two_samples() {
    let fake = Fake::new(&[("proc/stat", "cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 1 1 1\n")]);
    let mut host = fake.host();
    assert!(host.sample(&[Group::Cpu]).readings.is_empty());
    fake.write("proc/stat", "cpu  120 0 120 730 130 0 0 0 0 0\n");
    let sample = host.sample(&[Group::Cpu]);
    assert_eq!(
        values(&sample),
        [("cpu/usage", (Value::Real(40.0), "percent")), ("cpu/iowait", (Value::Real(30.0), "percent"))].into_iter().collect()
    );
    assert!(host.sample(&[Group::Cpu]).readings.is_empty(), "no tick has passed");
}

#[test]
fn what_fails_is_left_out_and_named_and_the_rest_goes_on() {
    let fake = Fake::new(&[
        ("sys/class/hwmon/hwmon0/name", "a\n"),
        ("sys/class/hwmon/hwmon0/temp1_input", "warm\n"),
        ("sys/class/hwmon/hwmon0/temp2_input", "20000\n"),
        ("proc/loadavg", "\n"),
        ("proc/stat", "intr 5\n"),
        ("proc/meminfo", "nothing: here\n"),
        ("proc/net/dev", "a\nb\neth0: 1 2\n"),
    ]);
    let sample = fake.host().sample(&Group::ALL);
    let mut failed: Vec<Group> = sample.failures.iter().map(|f| f.group).collect();
    failed.sort();
    assert_eq!(failed, [Group::Temperature, Group::Load, Group::Cpu, Group::Memory, Group::Network]);
    assert_eq!(values(&sample).keys().copied().collect::<Vec<_>>(), ["temperature/a/temp2"]);
}

#[test]
fn an_empty_machine_has_no_sensors_and_no_failures() {
    assert_eq!(Fake::new(&[]).host().sample(&Group::ALL), Sample::default());
}

#[test]
fn there_are_no_more_sensors_than_the_bound() {
    let fake = Fake::new(&[]);
    let mut text = String::from("a\nb\n");
    for n in 0..200 {
        text.push_str(&format!("veth{n}: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n"));
    }
    fake.write("proc/net/dev", &text);
    let sample = fake.host().sample(&[Group::Network]);
    assert_eq!((sample.readings.len(), sample.beyond_limit), (MAX_SENSORS, 800 - MAX_SENSORS));
}

#[test]
fn this_machine_can_be_looked_at() {
    let mut host = Host::new("/".into());
    let sample = host.sample(&Group::ALL);
    let values = values(&sample);
    assert!(values.contains_key("load/1m") && values.contains_key("memory/total") && values.contains_key("disk/root/free"), "{sample:?}");
    assert!(sample.readings.iter().all(|r| selvedge::topic::check_name(&r.topic).is_ok()));
}
