//! CoAP for devices: an endpoint free of IO and clocks, and the UDP server around it (RFC 7252, 7641, 7959).
//!
//! The path is the topic: `coap://box/sensors/a` is topic `sensors/a` of the listener's pub/sub.
//!
//! | request | meaning | answer |
//! | --- | --- | --- |
//! | POST, PUT `/TOPIC` | publish the payload unchanged; `?retain`, `?ttl=SECONDS` | 2.04 once the message is as durable as its lane says |
//! | GET `/TOPIC` | the retained message | 2.05, or 4.04 |
//! | GET `/TOPIC` with Observe 0 | the same, then every message of the topic | 2.05, empty while there is no message |
//! | GET `/.well-known/core` | the retained topics as link format | 2.05 |
//! | anything else | | 4.05 |
//!
//! What the store cannot take now is 5.03 with Max-Age, what it can never take is 4.13 with Size1. Bodies larger than a
//! datagram come by Block1 and go by Block2.
//!
//! Absent on purpose: DTLS and OSCORE (a listener with `tls` or `users` does not start rather than serve without them),
//! multicast discovery, and the Echo option (RFC 9175). Until a peer has shown that it receives at its address, by
//! acknowledging a confirmable message of ours, an answer to it carries at most [`UNPROVEN_BLOCK_BYTES`] of payload and what
//! it observes comes one confirmable message at a time.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod block;
mod client;
pub mod endpoint;
mod formats;
mod metrics;
mod observe;
mod packet;
mod resource;
mod server;
mod settings;

pub use client::{Client, ClientError, Response};
pub use endpoint::{Action, Answer, Endpoint, Publish, Random, Request, RequestId};
pub use metrics::CoapMetrics;
pub use packet::Code;
pub use server::bind;
pub use settings::{Settings, UNPROVEN_BLOCK_BYTES};

/// Registers the listener for the protocol `coap`.
pub fn register(registry: &mut selvedge::component::Registry) {
    registry.add_listener("coap", bind);
}
