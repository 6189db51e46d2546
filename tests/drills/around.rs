//! What stands around a box in a drill: disks, certificates, clocks, networks. Each is taken down when it is dropped.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Something that this machine must have or allow; else why not.
pub type Need = fn() -> Result<(), String>;

/// Runs a command; gives what it prints, or what is wrong.
pub fn command(words: &[&str]) -> Result<String, String> {
    let output = Command::new(words[0]).args(&words[1..]).output().map_err(|e| format!("{}: {e}", words[0]))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(format!("`{}`: {}", words.join(" "), text(&output.stderr))) }
}

fn must(words: &[&str]) -> String {
    command(words).unwrap_or_else(|e| panic!("{e}"))
}

fn has(program: &str, package: &str) -> Result<(), String> {
    let found = ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"].iter().any(|dir| Path::new(dir).join(program).exists());
    if found { Ok(()) } else { Err(format!("{program} is missing (Debian package {package})")) }
}

/// A folder that every user may read: mosquitto becomes one of its own when root starts it.
pub fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn readable(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
}

/// Accounts of the broker.
pub fn passwords(folder: &Path, password: &str) {
    let file = folder.join("passwords");
    let made = command(&["mosquitto_passwd", "-b", "-c", &file.display().to_string(), "box", password]);
    assert!(made.is_ok(), "mosquitto_passwd makes a file (Debian package mosquitto): {made:?}");
    readable(&file);
}

/// A file system of its own under the box's data folder.
pub struct Disk {
    at: PathBuf,
    image: Option<PathBuf>,
}

pub fn may_mount() -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    Disk::tmpfs(folder.path(), 1).map(drop).map_err(|e| format!("no file system may be mounted here: {e}"))
}

pub fn may_mount_image() -> Result<(), String> {
    has("mkfs.ext4", "e2fsprogs")?;
    let (folder, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Disk::ext4(folder.path(), at.path(), 8).map(drop).map_err(|e| format!("no image may be mounted here: {e}"))
}

impl Disk {
    /// In memory.
    pub fn tmpfs(at: &Path, mib: u32) -> Result<Self, String> {
        command(&["mount", "-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs", &at.display().to_string()])?;
        Ok(Self { at: at.to_owned(), image: None })
    }

    /// ext4 in an image file; an error makes it read-only, as on most boxes.
    pub fn ext4(folder: &Path, at: &Path, mib: u32) -> Result<Self, String> {
        let image = folder.join("disk.img");
        std::fs::File::create(&image).and_then(|f| f.set_len(u64::from(mib) << 20)).map_err(|e| e.to_string())?;
        command(&["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", &image.display().to_string()])?;
        let disk = Self { at: at.to_owned(), image: Some(image) };
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Result<(), String> {
        let image = self.image.as_deref().ok_or("it is no image")?.display().to_string();
        command(&["mount", "-o", "loop,errors=remount-ro", &image, &self.at.display().to_string()]).map(drop)
    }

    fn image(&self) -> &Path {
        self.image.as_deref().expect("the drill asked for an image")
    }

    /// What the file system meets with a defect: it allows no writing any more.
    pub fn fail(&self) {
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let at = self.at.display().to_string();
        let device = mounts.lines().find(|l| l.split(' ').nth(1) == Some(at.as_str())).and_then(|l| l.split(' ').next()).expect("it is mounted");
        let trigger = format!("/sys/fs/ext4/{}/trigger_fs_error", device.trim_start_matches("/dev/"));
        std::fs::write(&trigger, "1").unwrap_or_else(|e| panic!("{trigger}: {e}"));
    }

    /// A boot: checked and mounted anew. Nobody may use it meanwhile.
    pub fn repair(&self) {
        must(&["umount", &self.at.display().to_string()]);
        // 1: errors were corrected.
        let checked = Command::new("e2fsck").args(["-fy"]).arg(self.image()).output().unwrap();
        assert!(matches!(checked.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&checked.stdout));
        self.mount().unwrap();
    }

    /// What a power cut at this moment would leave: a copy of the device, without what the file system holds in memory. The processes
    /// that write to it stand still meanwhile.
    pub fn picture(&self) -> Vec<u8> {
        let mut picture = std::fs::read(self.image()).unwrap();
        // Until two readings are the same: nothing was written in between, so it is the state of one moment.
        loop {
            let again = std::fs::read(self.image()).unwrap();
            if again == picture {
                return picture;
            }
            picture = again;
        }
    }

    /// Power is back: the device has this content. Nobody may use it meanwhile.
    pub fn restore(&self, picture: &[u8]) {
        must(&["umount", &self.at.display().to_string()]);
        std::fs::File::options().write(true).open(self.image()).and_then(|f| f.write_all_at(picture, 0)).unwrap();
        self.mount().unwrap();
    }

    /// Uses up all the room; gives the file that does.
    pub fn fill(&self) -> PathBuf {
        let filler = self.at.join("filler");
        let mut file = std::fs::File::create(&filler).unwrap();
        while file.write_all(&[0; 64 << 10]).is_ok() {}
        while file.write_all(&[0; 512]).is_ok() {}
        filler
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = command(&["umount", "-l", &self.at.display().to_string()]);
    }
}

/// A library that makes the box's disk refuse or slow down (`shim.c`).
pub struct Shim {
    library: PathBuf,
    control: PathBuf,
}

pub fn has_compiler() -> Result<(), String> {
    has("cc", "gcc")
}

impl Shim {
    pub fn new(folder: &Path) -> Self {
        let (source, library, control) = (folder.join("shim.c"), folder.join("shim.so"), folder.join("shim.control"));
        std::fs::write(&source, include_str!("shim.c")).unwrap();
        let (from, to) = (source.display().to_string(), library.display().to_string());
        must(&["cc", "-shared", "-fPIC", "-O1", "-o", &to, &from, "-ldl"]);
        std::fs::write(&control, [0; 4096]).unwrap();
        Self { library, control }
    }

    pub fn environment(&self, data: &Path) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        vec![("LD_PRELOAD".to_owned(), text(&self.library)), ("SHIM_CONTROL".to_owned(), text(&self.control)), ("SHIM_FOLDER".to_owned(), text(data))]
    }

    /// See `shim.c`.
    pub fn set(&self, how: char) {
        std::fs::File::options().write(true).open(&self.control).and_then(|f| f.write_all_at(&[how as u8], 0)).unwrap();
    }
}

/// A wall clock of the box's own (libfaketime); time for intervals goes on as it does.
pub struct WallClock {
    library: PathBuf,
    setting: PathBuf,
}

fn faketime_library() -> Result<PathBuf, String> {
    let missing = || "libfaketime is missing (Debian package faketime)".to_owned();
    let folders = std::fs::read_dir("/usr/lib").map_err(|_| missing())?;
    folders.flatten().map(|e| e.path().join("faketime/libfaketimeMT.so.1")).find(|p| p.exists()).ok_or_else(missing)
}

pub fn has_faketime() -> Result<(), String> {
    faketime_library().map(drop)
}

impl WallClock {
    pub fn new(folder: &Path) -> Self {
        let this = Self { library: faketime_library().unwrap(), setting: folder.join("clock") };
        this.set("+0");
        this
    }

    pub fn environment(&self) -> Vec<(String, String)> {
        let pairs = [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.setting.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ];
        pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
    }

    /// `+0`, `+10y`, `-3d`, or `@1970-01-01 00:00:10` for a start at that time.
    pub fn set(&self, to: &str) {
        let new = self.setting.with_extension("new");
        std::fs::write(&new, format!("{to}\n")).unwrap();
        std::fs::rename(&new, &self.setting).unwrap();
    }
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Valid {
    Now,
    /// Until six years ago.
    Past,
    /// From in ten years.
    Future,
}

/// A broker's certificates, and who has signed them.
pub struct Certificates {
    folder: PathBuf,
}

pub fn has_openssl() -> Result<(), String> {
    has("openssl", "openssl")?;
    has("faketime", "faketime")
}

impl Certificates {
    pub fn new(folder: &Path) -> Self {
        let this = Self { folder: folder.to_owned() };
        for name in ["ca.key", "server.key"] {
            must(&["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &this.path(name)]);
            readable(Path::new(&this.path(name)));
        }
        // Valid for long enough that no drill's clock is outside of it.
        let name = ["-subj", "/CN=drills", "-days", "36500", "-key", &this.path("ca.key"), "-out", &this.path("ca.pem")].map(str::to_owned);
        let words = ["faketime", "2000-01-01 00:00:00", "openssl", "req", "-x509", "-new"].into_iter().chain(name.iter().map(String::as_str));
        must(&words.collect::<Vec<_>>());
        must(&["openssl", "req", "-new", "-key", &this.path("server.key"), "-subj", "/CN=cloud", "-out", &this.path("server.csr")]);
        std::fs::write(this.path("extensions"), "subjectAltName=IP:127.0.0.1\n").unwrap();
        this.issue(Valid::Now);
        this
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Writes the broker's certificate; it reads it when it is told to.
    pub fn issue(&self, valid: Valid) {
        let (from, days) = match valid {
            Valid::Now => ("-1d", "30"),
            Valid::Past => ("-2200d", "5"),
            Valid::Future => ("+3650d", "30"),
        };
        let new = self.path("server.new");
        let signer = ["-CA", &self.path("ca.pem"), "-CAkey", &self.path("ca.key"), "-CAcreateserial"].map(str::to_owned);
        let rest = ["-extfile", &self.path("extensions"), "-days", days, "-in", &self.path("server.csr"), "-out", &new].map(str::to_owned);
        let words = ["faketime", "-f", from, "openssl", "x509", "-req"].into_iter().chain(signer.iter().chain(&rest).map(String::as_str));
        must(&words.collect::<Vec<_>>());
        readable(Path::new(&new));
        std::fs::rename(&new, self.path("server.pem")).unwrap();
    }

    pub fn ca_path(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Lines for a broker that listens with them.
    pub fn listener(&self, port: u16) -> String {
        format!("listener {port} 127.0.0.1\ncertfile {}\nkeyfile {}\n", self.path("server.pem"), self.path("server.key"))
    }
}

/// A network of its own for a broker, at the other end of a cable that may lose packets.
pub struct Apart {
    name: String,
    net: [u8; 3],
    device: String,
}

pub fn may_lose_packets() -> Result<(), String> {
    has("ip", "iproute2")?;
    has("nft", "nftables")?;
    let apart = Apart::new().map_err(|e| format!("no network of our own here: {e}"))?;
    apart.lose(1).map_err(|e| format!("no packets may be dropped here: {e}"))
}

impl Apart {
    pub fn new() -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (pid, n) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let name = format!("drills{pid}n{n}");
        let (device, far) = (format!("dr{pid}n{n}a"), format!("dr{pid}n{n}b"));
        let this = Self { name: name.clone(), net: [10, 64 + (pid % 128) as u8, (pid / 128 * 8 + n) as u8], device };
        let [a, b, c] = this.net;
        let near = format!("{a}.{b}.{c}.1/24");
        command(&["ip", "netns", "add", &name])?;
        command(&["ip", "link", "add", &this.device, "type", "veth", "peer", "name", &far, "netns", &name])?;
        command(&["ip", "addr", "add", &near, "dev", &this.device])?;
        for address in [this.lossy(), this.clean()] {
            command(&["ip", "-n", &name, "addr", "add", &format!("{address}/24"), "dev", &far])?;
        }
        command(&["ip", "link", "set", &this.device, "up"])?;
        command(&["ip", "-n", &name, "link", "set", &far, "up"])?;
        command(&["ip", "-n", &name, "link", "set", "lo", "up"])?;
        Ok(this)
    }

    /// Where the broker is reached over what may lose packets.
    pub fn lossy(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.net[0], self.net[1], self.net[2], 2)
    }

    /// Where it is reached without loss.
    pub fn clean(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.net[0], self.net[1], self.net[2], 3)
    }

    /// The command that starts something there.
    pub fn wrapper(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).to_vec()
    }

    /// Loses so many packets of a hundred, at random, in each direction.
    pub fn lose(&self, percent: u32) -> Result<(), String> {
        let device = format!("{}b", self.device.trim_end_matches('a'));
        let lossy = self.lossy();
        let mut rules = "add table netdev loss\ndelete table netdev loss\n".to_owned();
        if percent > 0 {
            for (hook, end) in [("ingress", "daddr"), ("egress", "saddr")] {
                rules += &format!(
                    "table netdev loss {{ chain {hook} {{ type filter hook {hook} device \"{device}\" priority 0; ip {end} {lossy} numgen random mod 100 < {percent} drop; }}; }}\n"
                );
            }
        }
        let mut nft = Command::new("ip")
            .args(["netns", "exec", &self.name, "nft", "-f", "-"])
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        nft.stdin.take().expect("it is piped").write_all(rules.as_bytes()).map_err(|e| e.to_string())?;
        let done = nft.wait_with_output().map_err(|e| e.to_string())?;
        if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()) }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = command(&["ip", "netns", "del", &self.name]);
        let _ = command(&["ip", "link", "del", &self.device]);
    }
}

pub fn may_change_names() -> Result<(), String> {
    has("unshare", "util-linux")?;
    selvedge_tests::names::NameServer::start().map_err(|e| format!("port 53 cannot be used here: {e}"))?;
    command(&["unshare", "-m", "true"]).map(drop).map_err(|e| format!("no name space for mounts here: {e}"))
}

/// The command that starts a box which asks another name server than this machine does.
pub fn with_name_server(folder: &Path, address: &str) -> Vec<String> {
    let (resolver, hosts) = (folder.join("resolv.conf"), folder.join("hosts"));
    std::fs::write(&resolver, format!("nameserver {address}\n")).unwrap();
    std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let script = format!("mount --bind {} /etc/resolv.conf && mount --bind {} /etc/hosts && exec \"$0\" \"$@\"", resolver.display(), hosts.display());
    ["unshare", "-m", "sh", "-c", &script].map(str::to_owned).to_vec()
}
