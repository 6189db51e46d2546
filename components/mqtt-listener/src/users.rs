//! Who may come in and what they may do: accounts with hashed passwords, access by topic filter.

use std::num::NonZeroU32;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use selvedge::resource::yaml::{self, Node};
use selvedge::topic;

/// Most accounts of a file.
const MAX_USERS: usize = 10_000;

/// One access rule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    filter: String,
    read: bool,
    write: bool,
}

/// One account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    name: String,
    hash: Option<PasswordHash>,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct PasswordHash {
    iterations: NonZeroU32,
    salt: Vec<u8>,
    hash: Vec<u8>,
}

impl PasswordHash {
    /// `pbkdf2-sha256$ITERATIONS$SALT$HASH`, salt and hash in base64.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('$');
        if parts.next()? != "pbkdf2-sha256" {
            return None;
        }
        let iterations = parts.next()?.parse::<NonZeroU32>().ok().filter(|n| n.get() <= 10_000_000)?;
        let (salt, hash) = (STANDARD.decode(parts.next()?).ok()?, STANDARD.decode(parts.next()?).ok()?);
        (parts.next().is_none() && hash.len() == 32).then_some(Self { iterations, salt, hash })
    }

    fn verify(&self, password: &[u8]) -> bool {
        ring::pbkdf2::verify(ring::pbkdf2::PBKDF2_HMAC_SHA256, self.iterations, &self.salt, password, &self.hash).is_ok()
    }
}

impl User {
    /// Whether it may publish to this topic.
    #[must_use]
    pub fn may_write(&self, topic_name: &str) -> bool {
        self.rules.iter().any(|r| r.write && topic::matches(&r.filter, topic_name))
    }

    /// Whether it may receive this topic.
    #[must_use]
    pub fn may_read(&self, topic_name: &str) -> bool {
        self.rules.iter().any(|r| r.read && topic::matches(&r.filter, topic_name))
    }

    /// Whether some topic of the filter may be readable; what is delivered is checked topic by topic.
    #[must_use]
    pub fn may_subscribe(&self, filter: &str) -> bool {
        self.rules.iter().any(|r| r.read && overlap(&r.filter, filter))
    }
}

/// Whether two filters can cover the same topic.
fn overlap(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('/'), b.split('/'));
    loop {
        match (a.next(), b.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some(x), Some(y)) if x == y || x == "+" || y == "+" => {}
            _ => return false,
        }
    }
}

/// The accounts of a listener.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users(Vec<User>);

fn user(node: &Node, at: usize) -> Result<User, String> {
    let place = |key: &str| format!("line {}: users[{at}].{key}", node.line);
    let text = |key: &str| node.get(key).and_then(Node::scalar).map(str::to_owned);
    if let Some((key, line, _)) = node.entries().iter().find(|(k, _, _)| !["name", "password", "acl"].contains(&k.as_str())) {
        return Err(format!("line {line}: users[{at}].{key} is not a key here; accepted are name, password, acl"));
    }
    let name = text("name").filter(|n| !n.is_empty()).ok_or_else(|| format!("{} is required", place("name")))?;
    let hash = match text("password") {
        None => None,
        Some(t) => Some(
            PasswordHash::parse(&t)
                .ok_or_else(|| format!("{} is no hash; accepted is pbkdf2-sha256$ITERATIONS$SALT$HASH in base64", place("password")))?,
        ),
    };
    let mut rules = Vec::new();
    for rule in node.get("acl").map(Node::items).unwrap_or_default() {
        let flag = |key: &str| rule.get(key).is_some_and(|n| matches!(n.value, yaml::Value::Bool(true, _)));
        let topics = rule.get("topics").map(Node::items).unwrap_or_default();
        if topics.is_empty() {
            return Err(format!("line {}: users[{at}].acl needs topics: a list of topic filters", rule.line));
        }
        for filter in topics.iter().filter_map(Node::scalar) {
            topic::check_filter(filter).map_err(|e| format!("line {}: users[{at}].acl topic {filter:?}: {e}", rule.line))?;
            rules.push(Rule { filter: filter.to_owned(), read: flag("read"), write: flag("write") });
        }
    }
    Ok(User { name, hash, rules })
}

impl Users {
    /// Reads a users file: a list of `name`, `password` (a hash; left out for accounts that come with a client certificate),
    /// `acl` (list of `topics`, `read`, `write`). What no rule allows is denied.
    ///
    /// # Errors
    /// File, line and what is accepted.
    pub fn load(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read the users file {}: {e}", path.display()))?;
        Self::parse(&text).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let documents = yaml::parse(text).map_err(|e| e.to_string())?;
        let list = documents.first().map(Node::items).unwrap_or_default();
        if list.is_empty() || list.len() > MAX_USERS {
            return Err(format!("a list of 1 to {MAX_USERS} users is accepted"));
        }
        list.iter().enumerate().map(|(i, n)| user(n, i)).collect::<Result<Vec<_>, _>>().map(Self)
    }

    /// The same account here, if it still comes with the same password (or with a certificate, as before).
    #[must_use]
    pub fn again(&self, user: &User) -> Option<&User> {
        self.0.iter().find(|u| u.name == user.name && u.hash == user.hash)
    }

    /// How many accounts there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The account that these credentials prove. `certificate` is the common name of a verified client certificate.
    #[must_use]
    pub fn authenticate(&self, name: Option<&str>, password: Option<&[u8]>, certificate: Option<&str>) -> Option<&User> {
        if let Some(subject) = certificate
            && let Some(user) = self.0.iter().find(|u| u.name == subject && u.hash.is_none())
        {
            return Some(user);
        }
        let user = self.0.iter().find(|u| Some(u.name.as_str()) == name)?;
        user.hash.as_ref()?.verify(password?).then_some(user)
    }
}

/// A password's hash as the users file has it.
///
/// # Errors
/// When the system gives no random salt.
pub fn hash_password(password: &[u8], iterations: NonZeroU32) -> Result<String, getrandom::Error> {
    let mut salt = [0u8; 16];
    getrandom::fill(&mut salt)?;
    let mut hash = [0u8; 32];
    ring::pbkdf2::derive(ring::pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, password, &mut hash);
    Ok(format!("pbkdf2-sha256${iterations}${}${}", STANDARD.encode(salt), STANDARD.encode(hash)))
}

/// A password of 128 random bits in hexadecimal digits, which need no quoting anywhere.
///
/// # Errors
/// When the system gives no random numbers.
pub fn random_password() -> Result<String, getrandom::Error> {
    let mut bits = [0u8; 16];
    getrandom::fill(&mut bits)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bits)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_rules() {
        let hash = hash_password(b"secret", NonZeroU32::MIN).unwrap();
        let users =
            Users::parse(&format!("- name: a\n  password: {hash}\n  acl:\n    - {{topics: [\"s/+/t\"], write: true}}\n    - {{topics: [\"c/#\"], read: true}}\n- name: dev1\n")).unwrap();
        let a = users.authenticate(Some("a"), Some(b"secret"), None).unwrap();
        assert!(a.may_write("s/1/t") && !a.may_write("c/x") && a.may_read("c/x") && !a.may_read("s/1/t"));
        assert!(a.may_subscribe("#") && a.may_subscribe("c/+") && !a.may_subscribe("s/#"));
        assert!(users.authenticate(Some("a"), Some(b"wrong"), None).is_none() && users.authenticate(None, None, None).is_none());
        let other = Users::parse(&format!("- name: a\n  password: {}\n- name: dev1\n", hash_password(b"new", NonZeroU32::MIN).unwrap())).unwrap();
        assert!(
            other.again(a).is_none() && users.again(a) == Some(a) && other.again(users.authenticate(None, None, Some("dev1")).unwrap()).is_some()
        );
        assert!(users.authenticate(None, None, Some("dev1")).is_some() && users.authenticate(Some("dev1"), Some(b""), None).is_none());
    }

    #[test]
    fn passwords_that_are_made_differ_and_are_plain() {
        let (one, other) = (random_password().unwrap(), random_password().unwrap());
        assert!(one != other && one.len() == 32 && one.bytes().all(|b| b.is_ascii_hexdigit()), "{one}");
    }

    #[test]
    fn mistakes_name_line_and_key() {
        assert!(Users::parse("- name: a\n  password: plain\n").unwrap_err().contains("users[0].password is no hash"));
        assert!(Users::parse("- name: a\n  pasword: x\n").unwrap_err().contains("line 2: users[0].pasword is not a key"));
    }
}
