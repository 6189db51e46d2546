//! State store and small durable tables on SQLite.
