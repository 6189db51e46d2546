//! Who observes what (RFC 7641).

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use selvedge::message::Message;

use crate::packet::Token;
use crate::settings::{CONFIRM_EVERY, MAX_OBSERVED_PER_PEER, Settings, UNPROVEN_BLOCK_BYTES};

/// Notifications whose message ids are remembered, so that a reset can be told (section 3.6).
const REMEMBERED_IDS: usize = 4;

#[derive(Debug)]
struct Observer {
    topic: String,
    /// Value of the Observe option; 24 bits, wrapping (section 3.4).
    sequence: u32,
    /// Notifications since the last confirmable one.
    unconfirmed: u32,
    recent: [Option<u16>; REMEMBERED_IDS],
    /// The first answer has gone out.
    established: bool,
}

#[derive(Debug, Default)]
struct Topic {
    observers: Vec<(SocketAddr, Token)>,
    /// The last message, when its later blocks cannot be had otherwise.
    latest: Option<Arc<Message>>,
}

/// What a registration did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Registered {
    /// The first observer of its topic: messages are wanted from now on.
    pub watch: bool,
    /// A topic that nobody observes any more, since the same token now stands for another.
    pub unwatch: Option<String>,
}

/// The table of observers.
#[derive(Debug)]
pub(crate) struct Observers {
    by_key: BTreeMap<(SocketAddr, Token), Observer>,
    topics: HashMap<String, Topic>,
    limit: usize,
    latest_limit: usize,
    latest_bytes: usize,
}

/// One notification to make.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub peer: SocketAddr,
    pub token: Token,
    pub sequence: u32,
    /// It is time for a confirmable one.
    pub confirm: bool,
}

impl Observers {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self { by_key: BTreeMap::new(), topics: HashMap::new(), limit: settings.observers, latest_limit: settings.latest_bytes, latest_bytes: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    fn of_peer(&self, peer: SocketAddr) -> impl Iterator<Item = (&(SocketAddr, Token), &Observer)> {
        self.by_key.range((peer, Token::FIRST)..).take_while(move |((p, _), _)| *p == peer)
    }

    pub(crate) fn has(&self, peer: SocketAddr) -> bool {
        self.of_peer(peer).next().is_some()
    }

    /// Adds an observer, or moves it to another topic; none when there is no room.
    pub(crate) fn register(&mut self, peer: SocketAddr, token: Token, topic: &str) -> Option<Registered> {
        let mut unwatch = None;
        match self.by_key.get_mut(&(peer, token)) {
            Some(there) if there.topic == topic => return Some(Registered { watch: false, unwatch: None }),
            Some(_) => unwatch = self.remove(peer, token),
            None => {
                if self.by_key.len() >= self.limit || self.of_peer(peer).count() >= MAX_OBSERVED_PER_PEER {
                    return None;
                }
            }
        }
        let observer = Observer { topic: topic.to_owned(), sequence: 1, unconfirmed: 0, recent: [None; REMEMBERED_IDS], established: false };
        self.by_key.insert((peer, token), observer);
        let entry = self.topics.entry(topic.to_owned()).or_default();
        entry.observers.push((peer, token));
        Some(Registered { watch: entry.observers.len() == 1, unwatch })
    }

    /// The sequence for the first answer; none when it is not registered (any more).
    pub(crate) fn establish(&mut self, peer: SocketAddr, token: Token) -> Option<u32> {
        let observer = self.by_key.get_mut(&(peer, token))?;
        observer.established = true;
        Some(observer.next())
    }

    /// Removes an observer; returns the topic when nobody observes it any more.
    pub(crate) fn remove(&mut self, peer: SocketAddr, token: Token) -> Option<String> {
        let gone = self.by_key.remove(&(peer, token))?;
        let topic = self.topics.get_mut(&gone.topic)?;
        topic.observers.retain(|key| *key != (peer, token));
        if !topic.observers.is_empty() {
            return None;
        }
        if let Some(latest) = self.topics.remove(&gone.topic).and_then(|t| t.latest) {
            self.latest_bytes -= latest.payload.len();
        }
        Some(gone.topic)
    }

    /// Removes all observers of a peer; returns the topics that nobody observes any more.
    pub(crate) fn remove_peer(&mut self, peer: SocketAddr) -> Vec<String> {
        let tokens: Vec<Token> = self.of_peer(peer).map(|((_, token), _)| *token).collect();
        tokens.into_iter().filter_map(|token| self.remove(peer, token)).collect()
    }

    /// All observers that have had their first answer.
    pub(crate) fn all(&self) -> Vec<(SocketAddr, Token)> {
        self.by_key.iter().filter(|(_, o)| o.established).map(|(key, _)| *key).collect()
    }

    /// Who has to be told of a message.
    pub(crate) fn notify(&mut self, name: &str, message: &Arc<Message>) -> Vec<Due> {
        let Some(topic) = self.topics.get_mut(name) else { return Vec::new() };
        if let Some(old) = topic.latest.take() {
            self.latest_bytes -= old.payload.len();
        }
        let length = message.payload.len();
        if length > UNPROVEN_BLOCK_BYTES && self.latest_bytes + length <= self.latest_limit {
            self.latest_bytes += length;
            topic.latest = Some(message.clone());
        }
        let mut due = Vec::with_capacity(topic.observers.len());
        for (peer, token) in &topic.observers {
            if let Some(observer) = self.by_key.get_mut(&(*peer, *token)).filter(|o| o.established) {
                observer.unconfirmed += 1;
                let confirm = observer.unconfirmed >= CONFIRM_EVERY;
                due.push(Due { peer: *peer, token: *token, sequence: observer.next(), confirm });
            }
        }
        due
    }

    /// A notification went out under this message id.
    pub(crate) fn sent(&mut self, peer: SocketAddr, token: Token, message_id: u16, confirmable: bool) {
        if let Some(observer) = self.by_key.get_mut(&(peer, token)) {
            observer.recent.rotate_right(1);
            observer.recent[0] = Some(message_id);
            if confirmable {
                observer.unconfirmed = 0;
            }
        }
    }

    /// Whose notification had this message id.
    pub(crate) fn by_message_id(&self, peer: SocketAddr, message_id: u16) -> Option<Token> {
        self.of_peer(peer).find(|(_, o)| o.recent.contains(&Some(message_id))).map(|((_, token), _)| *token)
    }

    /// The last message of an observed topic, if it was kept.
    pub(crate) fn latest(&self, topic: &str) -> Option<Arc<Message>> {
        self.topics.get(topic)?.latest.clone()
    }
}

impl Observer {
    fn next(&mut self) -> u32 {
        self.sequence = (self.sequence + 1) & 0x00FF_FFFF;
        self.sequence
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet;

    fn peer(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn token(byte: u8) -> Token {
        Token::of(&packet::message(coap_lite::MessageType::Confirmable, 0, packet::Code::CONTENT, &[byte]))
    }

    fn message(length: usize) -> Arc<Message> {
        Arc::new(Message::from(&selvedge::message::Inbound::new("t", &vec![1; length])))
    }

    #[test]
    fn the_same_peer_may_observe_twice_by_two_tokens() {
        let mut observers = Observers::new(&Settings::default());
        assert!(observers.register(peer(1), token(1), "t").unwrap().watch);
        assert!(!observers.register(peer(1), token(2), "t").unwrap().watch);
        assert_eq!(observers.notify("t", &message(1)).len(), 0, "neither has had its first answer");
        for t in [1, 2] {
            assert_eq!(observers.establish(peer(1), token(t)), Some(2));
        }
        assert_eq!(observers.notify("t", &message(1)).len(), 2);
        assert_eq!(observers.remove(peer(1), token(1)), None);
        assert_eq!(observers.remove(peer(1), token(2)), Some("t".into()));
        assert_eq!(observers.remove(peer(1), token(2)), None);
    }

    #[test]
    fn a_token_that_moves_leaves_its_old_topic() {
        let mut observers = Observers::new(&Settings::default());
        let _ = observers.register(peer(1), token(1), "a");
        assert_eq!(observers.register(peer(1), token(1), "b"), Some(Registered { watch: true, unwatch: Some("a".into()) }));
        assert_eq!(observers.len(), 1);
    }

    #[test]
    fn sequences_wrap_at_24_bits_and_every_nth_is_confirmable() {
        let mut observers = Observers::new(&Settings::default());
        let _ = observers.register(peer(1), token(1), "t");
        let _ = observers.establish(peer(1), token(1));
        observers.by_key.get_mut(&(peer(1), token(1))).unwrap().sequence = 0x00FF_FFFE;
        let mut seen = Vec::new();
        for n in 0..9u16 {
            let due = observers.notify("t", &message(1)).remove(0);
            observers.sent(peer(1), token(1), n, due.confirm);
            seen.push((due.sequence, due.confirm));
        }
        assert_eq!(seen[..3], [(0x00FF_FFFF, false), (0, false), (1, false)]);
        assert_eq!(seen.iter().filter(|(_, confirm)| *confirm).count(), 1);
        assert_eq!(observers.by_message_id(peer(1), 8), Some(token(1)));
        assert_eq!(observers.by_message_id(peer(1), 1), None, "long ago");
        assert_eq!(observers.by_message_id(peer(2), 8), None);
    }

    #[test]
    fn numbers_of_observers_and_kept_bytes_are_bounded() {
        let mut observers = Observers::new(&Settings { observers: 40, latest_bytes: 1_000, ..Settings::default() });
        for n in 0..MAX_OBSERVED_PER_PEER {
            assert!(observers.register(peer(1), token(n as u8), &format!("t{n}")).is_some());
        }
        assert!(observers.register(peer(1), token(99), "t").is_none());
        for n in 0..8 {
            assert!(observers.register(peer(2), token(n), "t0").is_some());
        }
        assert!(observers.register(peer(3), token(0), "t0").is_none());
        observers.notify("t0", &message(600));
        observers.notify("t1", &message(600));
        assert_eq!((observers.latest("t0").is_some(), observers.latest("t1").is_some()), (true, false));
        observers.notify("t0", &message(1));
        assert_eq!(observers.latest_bytes, 0);
        observers.notify("t1", &message(600));
        assert_eq!(observers.remove_peer(peer(1)).len(), MAX_OBSERVED_PER_PEER - 1, "t0 has others");
        assert_eq!((observers.len(), observers.latest_bytes), (8, 0));
    }
}
