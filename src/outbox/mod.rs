//! The outbox: a durable store-and-forward log on disk.
//!
//! One log per lane, one cursor per destination. A record is stored once, however many destinations it has, and the
//! segment it stands in is unlinked when every destination is past it or when the lane's policy says so.
//! Memory is constant whatever the backlog, and opening does not read the backlog.
//!
//! Appending is synchronous and cheap (encode into the lane's buffer); a single writer thread writes and syncs for
//! everyone (group commit) and then raises the lane's durable sequence, which is the one number that senders wait for.
