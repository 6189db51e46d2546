//! In-memory state store and pub/sub.
