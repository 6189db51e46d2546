//! The whole way: a device's message through the real binary to a real broker, over outages and `kill -9`.

#![allow(clippy::unwrap_used)]

mod activation;
mod api;
mod budget;
mod cache;
mod clients;
mod commands;
mod configuration;
mod doctor;
mod escape;
mod first;
mod init;
mod mistakes;
mod newcomer;
mod newest;
mod passthrough;
mod queue;
mod reload;
mod routes;
mod sealed;
mod shed;
mod version;
mod way;
mod wire;
