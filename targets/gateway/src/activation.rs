//! Takes the sockets that the service manager hands over (`sd_listen_fds(3)`): `LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`.

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;
use selvedge::component::{InheritedSocket, InheritedSockets};

/// All of them. To be called once, before any thread is started: the variables are taken out of the environment, so that a program
/// beside the node does not think that they are meant for it.
///
/// # Errors
/// When the variables make no sense.
pub fn take() -> Result<InheritedSockets, String> {
    // Checks that they are meant for this process, and keeps programs that are started from inheriting the descriptors.
    let names = sd_notify::listen_fds_with_names().map_err(|e| format!("the sockets of the service manager cannot be taken: {e}"))?;
    let names: Vec<String> = names.map(|(_, name)| name).collect();
    if names.is_empty() {
        return Ok(InheritedSockets::default());
    }
    let mut descriptors = ListenFd::from_env();
    Ok(InheritedSockets::new(names.into_iter().enumerate().map(|(at, name)| (name, socket(&mut descriptors, at)))))
}

fn socket(descriptors: &mut ListenFd, at: usize) -> InheritedSocket {
    let other = |what: &str| InheritedSocket::Other(what.to_owned());
    if let Ok(Some(udp)) = descriptors.take_udp_socket(at) {
        return InheritedSocket::Udp(udp);
    }
    match descriptors.take_tcp_listener(at) {
        Ok(Some(tcp)) => match socket_acceptconn(&tcp) {
            Ok(true) => InheritedSocket::Tcp(tcp),
            // systemd hands single connections over with Accept=yes.
            _ => other("a TCP socket that does not listen (set Accept=no)"),
        },
        _ => match descriptors.take_unix_listener(at) {
            Ok(Some(_)) => other("a Unix socket"),
            _ => other("no TCP or UDP socket"),
        },
    }
}
