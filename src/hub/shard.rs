//! One of several upstreams for each message, by a key of it: rendezvous hashing, so that an upstream more or less moves only its own share.

use crate::message::Inbound;

use super::when::Payload;

/// What a message is shared out by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ShardKey {
    /// Its topic, so that order per topic is kept.
    #[default]
    Topic,
    /// The user property of this name; its topic when it has none.
    Property(String),
    /// The field of its payload, which is JSON, by path; its topic when there is none.
    Payload(String),
}

impl ShardKey {
    /// Reads `topic`, `property:NAME` or `payload:FIELD.FIELD`.
    ///
    /// # Errors
    /// What is accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "topic" => Ok(Self::Topic),
            Some(("property", name)) if !name.is_empty() => Ok(Self::Property(name.to_owned())),
            Some(("payload", path)) if !path.is_empty() => Ok(Self::Payload(path.to_owned())),
            _ => Err("topic, property:NAME (a user property) or payload:FIELD.FIELD (of JSON)".to_owned()),
        }
    }

    /// Which of the upstreams of these names gets the message; none when there are none.
    pub(super) fn pick<'n>(&self, message: &Inbound<'_>, payload: &Payload<'_>, names: impl Iterator<Item = &'n str>) -> Option<usize> {
        let field;
        let key = match self {
            Self::Topic => message.topic,
            Self::Property(name) => message.attributes.user.iter().find(|(n, _)| n == name).map_or(message.topic, |(_, value)| *value),
            Self::Payload(path) => match path.split('.').try_fold(payload.value(), |value, part| value.get(part)) {
                Some(serde_json::Value::String(text)) => text.as_str(),
                Some(value) => {
                    field = value.to_string();
                    &field
                }
                None => message.topic,
            },
        };
        names.enumerate().max_by_key(|(_, name)| weight(name, key)).map(|(at, _)| at)
    }
}

/// FNV-1a over both, then mixed as SplitMix64 mixes. The shares are kept over restarts and versions: do not change it.
fn weight(name: &str, key: &str) -> u64 {
    let bytes = name.bytes().chain([0]).chain(key.bytes());
    let hash = bytes.fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01B3));
    crate::escape::SplitMix::new(hash).draw()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(key: &ShardKey, topic: &str, payload: &str, user: &[(&str, &str)], names: &[&str]) -> usize {
        let mut message = Inbound::new(topic, payload.as_bytes());
        message.attributes.user = user;
        key.pick(&message, &Payload::new(payload.as_bytes()), names.iter().copied()).unwrap()
    }

    #[test]
    fn shares_are_even_and_another_upstream_moves_only_its_own() {
        let topics: Vec<String> = (0..3_000).map(|n| format!("sensors/{n}/temperature")).collect();
        let of = |names: &[&str]| topics.iter().map(|t| names[pick(&ShardKey::Topic, t, "", &[], names)].to_owned()).collect::<Vec<_>>();
        let (two, three) = (of(&["a", "b"]), of(&["c", "b", "a"]));
        let share = |all: &[String], name: &str| all.iter().filter(|n| *n == name).count();
        assert!((1_350..1_650).contains(&share(&two, "a")), "{}", share(&two, "a"));
        for name in ["a", "b", "c"] {
            assert!((850..1_150).contains(&share(&three, name)), "{name}: {}", share(&three, name));
        }
        assert!(two.iter().zip(&three).all(|(before, after)| before == after || after == "c"), "nothing moves but to the new one");
    }

    #[test]
    fn the_key_is_the_topic_a_property_or_a_field_of_the_payload() {
        let names = ["a", "b", "c", "d"];
        let by = |text: &str| ShardKey::parse(text).unwrap();
        for n in 0..50 {
            let (value, topic) = (format!("s{n}"), format!("t/{n}"));
            let expected = pick(&ShardKey::Topic, &value, "", &[], &names);
            assert_eq!(pick(&by("property:site"), &topic, "", &[("site", &value)], &names), expected);
            assert_eq!(pick(&by("payload:device.id"), &topic, &format!(r#"{{"device":{{"id":"{value}"}}}}"#), &[], &names), expected);
            let own = pick(&ShardKey::Topic, &topic, "", &[], &names);
            assert_eq!(pick(&by("property:site"), &topic, "", &[], &names), own, "without it, by topic");
            assert_eq!(pick(&by("payload:device.id"), &topic, "no JSON", &[], &names), own);
        }
        for wrong in ["", "topics", "property:", "payload", "header:x"] {
            assert!(ShardKey::parse(wrong).unwrap_err().contains("property:NAME"), "{wrong}");
        }
    }
}
