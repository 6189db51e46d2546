# What a machine needs to build, test and package Selvedge: looked for, installed through Debian's package manager where we may, else named.
# Sourced by ./demo, tests/run, cross/build and others, from the root of the repository.

# The oldest Rust that builds this (rust-version in Cargo.toml).
RUST_VERSION=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml | head -1)

may_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; }

# Installs Debian packages; what it printed stands in target/install.log.
install_packages() { # package...
  mkdir -p target
  echo "installing $*" >&2
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"; } >target/install.log 2>&1 && return 0
  tail -3 target/install.log >&2
  return 1
}

# A program, by name or as a path; from these Debian packages where it is not there.
need() { # program package...
  local program=$1; shift
  { command -v "$program" || [ -e "$program" ] || [ -x "/usr/sbin/$program" ]; } >/dev/null 2>&1 && return 0
  may_install && install_packages "$@" && return 0
  missing "$program (Debian packages $*): install it and run again"
  return 1
}

# Says what is missing; scripts that sum up at their end define it anew.
missing() { echo "missing: $*" >&2; }

rust_is_new_enough() {
  local found
  found=$(cargo --version 2>/dev/null | cut -d' ' -f2) && [ -n "$found" ] && [ "$(printf '%s\n' "$RUST_VERSION" "$found" | sort -V | head -1)" = "$RUST_VERSION" ]
}

# Cargo, a C compiler and linker (for SQLite and ring). rustup's cargo is taken where there is one; else Debian's packages for building
# browsers, which are kept recent.
need_rust() {
  if ! rust_is_new_enough; then
    # One that is too old (rustup's, say) may stand before Debian's.
    if { [ -x /usr/bin/cargo ] || { may_install && install_packages rustc-web cargo-web gcc libc6-dev; }; } && PATH=/usr/bin:$PATH rust_is_new_enough; then
      export PATH=/usr/bin:$PATH
    else
      missing "cargo $RUST_VERSION or later (https://rustup.rs; on Debian as root: apt-get install rustc-web cargo-web); found $(cargo --version 2>/dev/null || echo none)"
      return 1
    fi
  fi
  need cc gcc libc6-dev
}
