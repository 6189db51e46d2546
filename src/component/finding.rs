//! What an examination finds: for `selvedge doctor`, and for every component that can say something of itself.

use std::fmt;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingLevel {
    /// As it should be.
    Good,
    /// Worth knowing.
    Note,
    /// It works, and something will be lost or fail one day.
    Warning,
    /// It does not work.
    Problem,
}

impl FindingLevel {
    /// The word for people and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub level: FindingLevel,
    /// What was looked at: `upstream cloud: tls`.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What to do; empty when there is nothing to be done.
    pub remedy: String,
}

impl Finding {
    /// As it should be.
    pub fn good(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self { level: FindingLevel::Good, subject: subject.into(), found: found.into(), remedy: String::new() }
    }

    /// Worth knowing.
    pub fn note(subject: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: FindingLevel::Note, subject: subject.into(), found: found.into(), remedy: remedy.into() }
    }

    /// Something will be lost or fail one day.
    pub fn warning(subject: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: FindingLevel::Warning, subject: subject.into(), found: found.into(), remedy: remedy.into() }
    }

    /// It does not work.
    pub fn problem(subject: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: FindingLevel::Problem, subject: subject.into(), found: found.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {}: {}", self.level.as_str(), self.subject, self.found)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "\n         -> {}", self.remedy) }
    }
}
