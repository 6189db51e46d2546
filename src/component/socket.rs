//! Sockets that the service manager hands over at start (socket activation), and those that listeners bind themselves.
//!
//! The target reads the environment and takes the descriptors (`sd_listen_fds(3)`); here they are only names and sockets. The manager
//! keeps its own copy of a listening socket: when the node stops and drops it, connections wait in the system's queue for the next start.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::{TcpListener, UdpSocket};

use super::InitError;

/// How `bind` of a listener asks for inherited sockets.
const INHERITED: &str = "systemd:";

/// A socket as it was handed over.
#[derive(Debug)]
pub enum InheritedSocket {
    /// Listens for TCP connections.
    Tcp(std::net::TcpListener),
    /// Receives UDP datagrams.
    Udp(std::net::UdpSocket),
    /// What nothing here can serve, in words.
    Other(String),
}

impl InheritedSocket {
    /// Another descriptor of the same socket.
    fn copy(&self) -> Option<Self> {
        match self {
            Self::Tcp(socket) => socket.try_clone().ok().map(Self::Tcp),
            Self::Udp(socket) => socket.try_clone().ok().map(Self::Udp),
            Self::Other(_) => None,
        }
    }

    /// What it is, for people.
    fn kind(&self) -> String {
        let at = |address: io::Result<SocketAddr>| address.map_or_else(|e| e.to_string(), |a| a.to_string());
        match self {
            Self::Tcp(socket) => format!("tcp {}", at(socket.local_addr())),
            Self::Udp(socket) => format!("udp {}", at(socket.local_addr())),
            Self::Other(what) => what.clone(),
        }
    }
}

type Named = BTreeMap<String, Vec<InheritedSocket>>;

#[derive(Debug, Default)]
struct Sockets {
    left: Named,
    /// Copies of those that are taken, for a listener that is bound anew.
    taken: Named,
}

/// The sockets that were handed over and are not taken yet, by name (`FileDescriptorName=`). Clones share them.
#[derive(Debug, Clone, Default)]
pub struct InheritedSockets(Arc<Mutex<Sockets>>);

impl InheritedSockets {
    /// These sockets; several may have one name.
    #[must_use]
    pub fn new(sockets: impl IntoIterator<Item = (String, InheritedSocket)>) -> Self {
        let mut left = Named::new();
        for (name, socket) in sockets {
            left.entry(name).or_default().push(socket);
        }
        Self(Arc::new(Mutex::new(Sockets { left, taken: Named::new() })))
    }

    /// Those that were taken, to be taken once more: for a listener that has failed. The service manager keeps a copy as well, so that these ones
    /// hold no port open which it would not.
    #[must_use]
    pub fn again(&self) -> Self {
        let taken = &self.lock().taken;
        let copies = |sockets: &Vec<InheritedSocket>| sockets.iter().filter_map(InheritedSocket::copy).collect();
        let left = taken.iter().map(|(name, sockets)| (name.clone(), copies(sockets))).collect();
        Self(Arc::new(Mutex::new(Sockets { left, taken: Named::new() })))
    }

    fn lock(&self) -> MutexGuard<'_, Sockets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that nobody has taken, as `name (what it is)`.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        let kinds = |sockets: &[InheritedSocket]| sockets.iter().map(InheritedSocket::kind).collect::<Vec<_>>().join(", ");
        self.lock().left.iter().map(|(name, sockets)| format!("{name} ({})", kinds(sockets))).collect()
    }

    /// Takes all sockets of a name; empty when there is none.
    fn take<T>(&self, name: &str, wanted: &str, pick: impl Fn(InheritedSocket) -> Result<T, InheritedSocket>) -> Result<Vec<T>, String> {
        let mut all = self.lock();
        let Some(sockets) = all.left.remove(name) else { return Ok(Vec::new()) };
        all.taken.insert(name.to_owned(), sockets.iter().filter_map(InheritedSocket::copy).collect());
        drop(all);
        let wrong = |socket: InheritedSocket| format!("the inherited socket {name:?} is {}; accepted is a {wanted} socket", socket.kind());
        sockets.into_iter().map(|socket| pick(socket).map_err(wrong)).collect()
    }

    fn need<T>(&self, name: &str, found: Vec<T>) -> Result<Vec<T>, String> {
        if !found.is_empty() {
            return Ok(found);
        }
        let left = self.left();
        let there = if left.is_empty() { "none is left, or none was handed over".to_owned() } else { format!("there are {}", left.join(", ")) };
        Err(format!("no inherited socket has the name {name:?}: {there}; set FileDescriptorName={name} in the socket unit"))
    }

    /// Takes the TCP listeners of a name, ready for the event loop; empty when the name is not there.
    ///
    /// # Errors
    /// When one of them is something else.
    pub fn tcp(&self, name: &str) -> Result<Vec<TcpListener>, String> {
        let sockets = self.take(name, "listening TCP", |s| if let InheritedSocket::Tcp(t) = s { Ok(t) } else { Err(s) })?;
        let ready = |socket: std::net::TcpListener| {
            socket.set_nonblocking(true)?;
            TcpListener::from_std(socket)
        };
        sockets.into_iter().map(|s| ready(s).map_err(|e| format!("the inherited socket {name:?} cannot be used: {e}"))).collect()
    }

    /// Takes the UDP sockets of a name, ready for the event loop; empty when the name is not there.
    ///
    /// # Errors
    /// When one of them is something else.
    pub fn udp(&self, name: &str) -> Result<Vec<UdpSocket>, String> {
        let sockets = self.take(name, "UDP", |s| if let InheritedSocket::Udp(u) = s { Ok(u) } else { Err(s) })?;
        let ready = |socket: std::net::UdpSocket| {
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket)
        };
        sockets.into_iter().map(|s| ready(s).map_err(|e| format!("the inherited socket {name:?} cannot be used: {e}"))).collect()
    }

    /// The TCP listeners that `bind` names: all inherited ones of `systemd:NAME`, else one that is bound to the address.
    ///
    /// # Errors
    /// What is not there or cannot be bound, and the way out.
    pub async fn listen(&self, bind: &str) -> Result<Vec<TcpListener>, InitError> {
        if let Some(name) = bind.strip_prefix(INHERITED) {
            return self.tcp(name).and_then(|found| self.need(name, found)).map_err(InitError::Failed);
        }
        match TcpListener::bind(bind).await {
            Ok(socket) => Ok(vec![socket]),
            Err(error) => {
                Err(InitError::failed(format!("cannot bind {bind} (is another program using the port? `selvedge doctor` says which)"), error))
            }
        }
    }

    /// The UDP sockets that `bind` names: all inherited ones of `systemd:NAME`, else one that is bound to the address.
    ///
    /// # Errors
    /// What is not there or cannot be bound, and the way out.
    pub async fn receive(&self, bind: &str) -> Result<Vec<UdpSocket>, InitError> {
        if let Some(name) = bind.strip_prefix(INHERITED) {
            return self.udp(name).and_then(|found| self.need(name, found)).map_err(InitError::Failed);
        }
        match UdpSocket::bind(bind).await {
            Ok(socket) => Ok(vec![socket]),
            Err(error) => {
                Err(InitError::failed(format!("cannot bind udp {bind} (is another program using the port? `selvedge doctor` says which)"), error))
            }
        }
    }
}

/// The addresses of sockets that serve one purpose, as text.
pub fn addresses(each: impl IntoIterator<Item = io::Result<SocketAddr>>) -> String {
    each.into_iter().map(|a| a.map_or_else(|e| e.to_string(), |a| a.to_string())).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handed() -> InheritedSockets {
        let tcp = || InheritedSocket::Tcp(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let udp = InheritedSocket::Udp(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let other = InheritedSocket::Other("a FIFO".to_owned());
        InheritedSockets::new([("mqtt".to_owned(), tcp()), ("mqtt".to_owned(), tcp()), ("coap".to_owned(), udp), ("pipe".to_owned(), other)])
    }

    #[tokio::test]
    async fn all_sockets_of_a_name_are_taken_once() {
        let sockets = handed();
        assert_eq!(sockets.listen("systemd:mqtt").await.unwrap().len(), 2);
        assert_eq!(sockets.receive("systemd:coap").await.unwrap().len(), 1);
        assert_eq!(sockets.left(), ["pipe (a FIFO)"]);
        let again = sockets.listen("systemd:mqtt").await.unwrap_err().to_string();
        assert!(again.contains("no inherited socket has the name \"mqtt\": there are pipe (a FIFO)"), "{again}");
        assert!(sockets.tcp("http").unwrap().is_empty(), "what is asked for only if it is there");
        assert_eq!(sockets.again().listen("systemd:mqtt").await.unwrap().len(), 2, "a listener that has failed takes them once more");
    }

    #[tokio::test]
    async fn a_socket_of_another_kind_is_named() {
        for (bind, is) in [("systemd:coap", "is udp 127.0.0.1:"), ("systemd:pipe", "is a FIFO")] {
            let error = handed().listen(bind).await.unwrap_err().to_string();
            assert!(error.contains(is) && error.contains("accepted is a listening TCP socket"), "{error}");
        }
        let error = handed().receive("systemd:mqtt").await.unwrap_err().to_string();
        assert!(error.contains("is tcp 127.0.0.1:") && error.contains("accepted is a UDP socket"), "{error}");
        let error = InheritedSockets::default().listen("systemd:x").await.unwrap_err().to_string();
        assert!(error.contains("none was handed over"), "{error}");
    }
}
