"""A Debian machine in a container: built once by debootstrap, booted with its own systemd, without a link to the outside."""
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "systemd"
SUITE = "bookworm"
# What a Raspberry Pi OS Lite has of it anyway.
PACKAGES = "systemd,systemd-sysv,dbus,man-db,mosquitto-clients"


class Unable(Exception):
    """This machine lacks a right or a program; nothing is said about the package."""


def wait_for(condition, seconds, what):
    """The first true value of `condition`; it is asked until then. Raises after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.1)


def need(*programs):
    """(program, Debian package): installed when we may; else `Unable`."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = sorted({package for program, package in programs if not shutil.which(program, path=path)})
    if not missing:
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing {' '.join(missing)}", flush=True)
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ, DEBIAN_FRONTEND="noninteractive"))
        subprocess.run(["apt-get", "update", "-q"], **quiet)
        if subprocess.run(["apt-get", "install", "-qy", "--no-install-recommends", *missing], **quiet).returncode == 0:
            return
    raise Unable(f"missing: Debian packages {' '.join(missing)}: install them and run again")


def mirror():
    """Where this machine's apt takes the suite from; debootstrap's own choice where it does not."""
    if not shutil.which("apt-get"):
        return []
    lines = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"], capture_output=True, text=True
    ).stdout.splitlines()
    return next(([uri] for name, component, uri in (line.split(None, 2) for line in lines if line.count(" ") >= 2) if (name, component) == (SUITE, "main")), [])


def base():
    """The tar of a Debian as debootstrap makes it; made when it is not there."""
    tar = FOLDER / f"{SUITE}.tar"
    if tar.exists():
        return tar
    FOLDER.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        root = pathlib.Path(folder, "root")
        log = FOLDER / "debootstrap.log"
        with open(log, "w", encoding="utf-8") as file:
            command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root), *mirror()]
            if subprocess.run(command, stdout=file, stderr=file).returncode:
                raise Unable(f"debootstrap cannot make a Debian here: {log.read_text(encoding='utf-8').splitlines()[-1]} (all of it: {log})")
        for name in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
            shutil.rmtree(root / name, ignore_errors=True)
            (root / name).mkdir(parents=True)
        # The first boot makes an id of its own.
        (root / "etc/machine-id").write_text("")
        part = tar.with_suffix(".part")
        subprocess.run(["tar", "--one-file-system", "-C", str(root), "-cf", str(part), "."], check=True)
        part.rename(tar)
    print(f"debootstrap: {time.monotonic() - begun:.0f} s, kept in {tar.relative_to(ROOT) if tar.is_relative_to(ROOT) else tar}", flush=True)
    return tar


class Machine:
    """Runs from `with` to its end."""

    def __init__(self):
        self.folder = self.process = self.leader = None

    def __enter__(self):
        if os.geteuid() != 0:
            raise Unable("not root: a container with a systemd of its own cannot be started")
        tar = base()
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=FOLDER, prefix="run-"))
        self.root = self.folder / "selvedge-test"
        self.root.mkdir()
        try:
            subprocess.run(["tar", "-C", str(self.root), "-xf", str(tar)], check=True)
            (self.root / "etc/hostname").write_text("attic\n")
            (self.root / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 attic\n")
            nspawn = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network", "--resolv-conf=off", "-D", str(self.root)]
            tried = subprocess.run([*nspawn, "/bin/true"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if tried.returncode:
                raise Unable(f"systemd-nspawn does not work here: {(tried.stderr.strip().splitlines() or ['no reason given'])[-1]}")
            self.console = open(FOLDER / "console.log", "w", encoding="utf-8")
            self.process = subprocess.Popen([*nspawn, "--boot", "--console=pipe"], stdin=subprocess.DEVNULL, stdout=self.console, stderr=self.console)
            self.leader = wait_for(self._leader, 60, "systemd starts")
            state = wait_for(self._state, 180, "the machine has booted")
            if state != "running":
                raise AssertionError(f"the machine without the package is {state}: {self.sh('systemctl --failed --plain --no-legend')}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _leader(self):
        if self.process.poll() is not None:
            raise Unable(f"systemd does not boot in a container here; its last words are in {FOLDER / 'console.log'}")
        for child in pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if pathlib.Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
        return None

    def _state(self):
        said = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return said if said in ("running", "degraded") else None

    def __exit__(self, *_):
        if self.process and self.process.poll() is None:
            if self.leader:
                # systemd's word for power off, from outside.
                os.kill(self.leader, signal.SIGRTMIN + 4)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command, check=True, **more):
        """A command inside."""
        more = {"capture_output": True, "text": True, "timeout": 180, "stdin": subprocess.DEVNULL} | more
        inside = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "--", *command]
        done = subprocess.run(inside, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}, **more)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: exit code {done.returncode}: {(done.stdout + done.stderr).strip()[-600:]}")
        return done

    def sh(self, script, check=True):
        """Output of a shell script inside."""
        return self.run("sh", "-euc", script, check=check).stdout.strip()

    def beside(self, *command, **more):
        """A program of this machine, in the other one's network."""
        return subprocess.Popen(["nsenter", "-t", str(self.leader), "-n", "--", *command], **more)

    def put(self, path, text, mode=0o644):
        """Writes a file inside."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        file.chmod(mode)

    def copy(self, file):
        """Copies a file of this machine inside; where it is there."""
        shutil.copy(file, self.root / "root" / file.name)
        return f"/root/{file.name}"

    def show(self, name, unit="selvedge.service"):
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()
