//! Where files may be.

use std::io;
use std::path::{Component, Path, PathBuf};

/// Folders that hold the system, or its secrets.
const FORBIDDEN: [&str; 5] = ["/proc", "/sys", "/boot", "/var/run/secrets", "/run/secrets"];

/// A folder that all files stay in.
#[derive(Debug, Clone)]
pub(crate) struct Root(PathBuf);

/// Why a folder or name is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("{} is or lies in {forbidden}, which is not open to this binding", .path.display())]
    Forbidden { path: PathBuf, forbidden: &'static str },
    #[error("{name:?} leads out of the folder")]
    Outside { name: String },
    #[error("a file name must have at least one character and no NUL")]
    NoName,
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl Root {
    /// Makes the folder and checks that it is a permitted one, links followed.
    pub fn make(path: &Path) -> Result<Self, PlaceError> {
        let io = |source| PlaceError::Io { path: path.to_owned(), source };
        let lexical = lexical(&std::path::absolute(path).map_err(io)?);
        permitted(&lexical)?; // before anything is made there
        std::fs::create_dir_all(&lexical).map_err(io)?;
        let real = lexical.canonicalize().map_err(io)?;
        permitted(&real)?;
        Ok(Self(real))
    }

    #[cfg(test)]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The place of a name below the folder. `..` stops at the folder, and a name that begins with a slash is below it too; a link
    /// that leads outside is refused.
    pub fn place(&self, name: &str) -> Result<PathBuf, PlaceError> {
        if name.contains('\0') {
            return Err(PlaceError::NoName);
        }
        let below = lexical(&Path::new("/").join(name.trim_start_matches('/')));
        let path = self.0.join(below.strip_prefix("/").unwrap_or(&below));
        // The deepest part that exists shows where the path really leads.
        let mut there = path.as_path();
        loop {
            match there.canonicalize() {
                Ok(real) if real.starts_with(&self.0) => return Ok(path),
                Ok(_) => return Err(PlaceError::Outside { name: name.to_owned() }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if there.symlink_metadata().is_ok() {
                        // A link to something that does not exist: writing through it would make that.
                        return Err(PlaceError::Outside { name: name.to_owned() });
                    }
                    there = there.parent().unwrap_or(&self.0);
                }
                Err(source) => return Err(PlaceError::Io { path, source }),
            }
        }
    }

    /// As [`place`](Self::place), for a file: the folder itself is none.
    pub fn file(&self, name: &str) -> Result<PathBuf, PlaceError> {
        let path = self.place(name)?;
        if path == self.0 { Err(PlaceError::NoName) } else { Ok(path) }
    }

    /// The name of a path below the folder.
    pub fn name(&self, path: &Path) -> String {
        path.strip_prefix(&self.0).unwrap_or(path).to_string_lossy().into_owned()
    }
}

fn permitted(path: &Path) -> Result<(), PlaceError> {
    match FORBIDDEN.into_iter().find(|forbidden| path.starts_with(forbidden)) {
        Some(forbidden) => Err(PlaceError::Forbidden { path: path.to_owned(), forbidden }),
        None => Ok(()),
    }
}

/// An absolute path without `.` and `..`, which go no higher than the top.
fn lexical(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::make(&dir.path().join("made/deep")).unwrap();
        let base = root.path().to_owned();
        for (name, place) in [
            ("a.txt", "a.txt"),
            ("x/../a.txt", "a.txt"),
            ("../../etc/passwd", "etc/passwd"),
            ("/etc/passwd", "etc/passwd"),
            ("//a//b/./c", "a/b/c"),
            ("..", ""),
            ("", ""),
        ] {
            assert_eq!(root.place(name).unwrap(), base.join(place), "{name}");
        }
        for none in ["", "..", "/", ".", "a\0b"] {
            assert!(matches!(root.file(none), Err(PlaceError::NoName)), "{none:?}");
        }
        assert_eq!(root.name(&base.join("a/b")), "a/b");
    }

    #[test]
    fn links_that_lead_outside_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        let root = Root::make(&dir.path().join("root")).unwrap();
        std::os::unix::fs::symlink(&outside, root.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.join("nothing yet"), root.path().join("dangling")).unwrap();
        std::fs::create_dir(root.path().join("inside")).unwrap();
        std::os::unix::fs::symlink(root.path().join("inside"), root.path().join("good")).unwrap();
        for bad in ["link", "link/x", "link/new/x", "dangling"] {
            assert!(matches!(root.place(bad), Err(PlaceError::Outside { .. })), "{bad}");
        }
        assert!(root.place("good/x").is_ok());
    }

    #[test]
    fn system_folders_are_no_root() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/proc", dir.path().join("p")).unwrap();
        let linked = dir.path().join("p").display().to_string();
        for path in ["/proc", "/proc/x", "/sys/y", "/boot", "/var/run/secrets/z", "/tmp/../proc", linked.as_str()] {
            assert!(matches!(Root::make(Path::new(path)), Err(PlaceError::Forbidden { .. })), "{path}");
        }
        assert!(!Path::new("/procs").starts_with("/proc"), "names are compared whole");
    }
}
