//! Answers and notifications: cut to size and put on their way.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use bytes::Bytes;
use coap_lite::{CoapOption, MessageType, Packet};
use selvedge::message::Message;
use selvedge::time::Monotonic;

use super::peers::{Exchange, Outgoing, Purpose};
use super::{Action, Answer, Endpoint, Reply};
use crate::block::{self, Block};
use crate::observe::Due;
use crate::packet::{self, Code, Token};
use crate::settings::{MAX_SZX, UNPROVEN_SZX};

/// A response with the options that the answer itself says.
pub(super) fn packet(kind: MessageType, message_id: u16, token: &Token, answer: &Answer) -> Packet {
    let mut packet = packet::message(kind, message_id, answer.code, token.as_slice());
    if let Some(format) = answer.content_format {
        packet::add_uint(&mut packet, CoapOption::ContentFormat, u32::from(format));
    }
    if let Some(seconds) = answer.max_age_seconds {
        packet::add_uint(&mut packet, CoapOption::MaxAge, seconds);
    }
    if let Some(size) = answer.size1 {
        packet::add_uint(&mut packet, CoapOption::Size1, size);
    }
    packet.payload = answer.payload.to_vec();
    packet
}

/// Puts the asked part of the payload into the packet. False when the body ends before it.
fn put_slice(packet: &mut Packet, body: &Bytes, asked: Option<Block>, largest: u8) -> bool {
    let Some(slice) = block::slice(body.len(), asked, largest) else { return false };
    packet.payload = body[slice.range].to_vec();
    if let Some(block) = slice.block {
        packet::add_uint(packet, CoapOption::Block2, block.value());
        if block.more || block.number > 0 {
            // So that the peer notices when the body changes under it (RFC 7959, section 2.4).
            let tag = BuildHasherDefault::<DefaultHasher>::default().hash_one(body);
            packet.add_option(CoapOption::ETag, tag.to_be_bytes().to_vec());
        }
        if block.number == 0 && block.more {
            packet::add_uint(packet, CoapOption::Size2, u32::try_from(body.len()).unwrap_or(u32::MAX));
        }
    }
    true
}

impl Endpoint {
    fn largest_block(&self, peer: std::net::SocketAddr) -> u8 {
        if self.peers.get(peer).is_some_and(|p| p.proven) { MAX_SZX } else { UNPROVEN_SZX }
    }

    pub(super) fn respond(&mut self, now: Monotonic, reply: Reply, mut answer: Answer, out: &mut Vec<Action>) {
        if answer.code == Code::NOT_FOUND
            && let Some(topic) = &reply.topic
        {
            if reply.block2.is_some_and(|b| b.number > 0)
                && let Some(latest) = self.observers.latest(topic)
            {
                // The later blocks of a notification about a message that is not retained.
                answer = Answer::message(&latest);
            } else if reply.observe {
                // A topic is there from the moment that somebody observes it; until a message comes it is empty.
                answer = Answer::of(Code::CONTENT);
            }
        }
        if answer.code == Code::CONTENT && reply.accept.is_some_and(|accept| answer.content_format.is_some_and(|format| format != accept)) {
            answer = Answer::of(Code::NOT_ACCEPTABLE);
        }
        let kind = match (reply.confirmable, reply.acknowledged) {
            (true, false) => MessageType::Acknowledgement,
            (true, true) => MessageType::Confirmable,
            (false, _) => MessageType::NonConfirmable,
        };
        let largest = self.largest_block(reply.peer);
        let Some(peer) = self.peers.get_mut(reply.peer) else { return };
        let message_id = if kind == MessageType::Acknowledgement { reply.message_id } else { peer.message_id() };

        let body = if answer.code.is_success() { std::mem::take(&mut answer.payload) } else { Bytes::new() };
        let mut response = packet(kind, message_id, &reply.token, &answer);
        if answer.code == Code::CONTENT && !put_slice(&mut response, &body, reply.block2, largest) {
            answer = Answer::text(Code::BAD_REQUEST, "the body ends before this block");
            response = packet(kind, message_id, &reply.token, &answer);
        }
        if response.get_option(CoapOption::Block2).is_some() {
            self.metrics.blocks.inc();
        }
        if let Some(block) = reply.block1 {
            let more = block.more && answer.code == Code::CONTINUE;
            packet::add_uint(&mut response, CoapOption::Block1, Block { more, ..block }.value());
        }
        if reply.observe {
            if answer.code.is_success() {
                if let Some(sequence) = self.observers.establish(reply.peer, reply.token) {
                    packet::add_uint(&mut response, CoapOption::Observe, sequence);
                }
            } else {
                out.extend(self.observers.remove(reply.peer, reply.token).map(Action::Unwatch));
            }
        }
        self.metrics.answered(reply.method, answer.code);

        let bytes = packet::encode(&response);
        let again = match kind {
            MessageType::Acknowledgement => Some(bytes.clone()),
            MessageType::Confirmable => Some(packet::empty_ack(reply.message_id)),
            _ => None,
        };
        self.note(reply.peer, reply.message_id, Exchange::Done(again));
        if kind == MessageType::Confirmable {
            self.send_confirmable(now, reply.peer, Outgoing { message_id, bytes, purpose: Purpose::Response }, out);
        } else {
            out.push(Action::Send(reply.peer, bytes));
        }
    }

    /// Answers a request of which nothing is remembered. One that is not confirmable goes without an answer.
    pub(super) fn respond_without_state(&mut self, reply: &Reply, answer: &Answer, out: &mut Vec<Action>) {
        self.metrics.answered(reply.method, answer.code);
        if reply.confirmable {
            let packet = packet(MessageType::Acknowledgement, reply.message_id, &reply.token, answer);
            out.push(Action::Send(reply.peer, packet::encode(&packet)));
        }
    }

    pub(super) fn notify_one(&mut self, now: Monotonic, due: &Due, message: &Arc<Message>, out: &mut Vec<Action>) {
        let largest = self.largest_block(due.peer);
        let Some(peer) = self.peers.get_mut(due.peer) else { return };
        // A message that its sender wants delivered is; so is every n-th, and all while the address is not proven.
        let confirm = due.confirm || message.qos > 0 || !peer.proven;
        let message_id = peer.message_id();
        let kind = if confirm { MessageType::Confirmable } else { MessageType::NonConfirmable };
        let mut answer = Answer::message(message);
        let body = std::mem::take(&mut answer.payload);
        let mut notification = packet(kind, message_id, &due.token, &answer);
        packet::add_uint(&mut notification, CoapOption::Observe, due.sequence);
        put_slice(&mut notification, &body, None, largest);
        if notification.get_option(CoapOption::Block2).is_some() {
            self.metrics.blocks.inc();
        }
        self.metrics.notifications.inc();
        self.observers.sent(due.peer, due.token, message_id, confirm);
        let bytes = packet::encode(&notification);
        if confirm {
            self.send_confirmable(now, due.peer, Outgoing { message_id, bytes, purpose: Purpose::Notification(due.token) }, out);
        } else {
            out.push(Action::Send(due.peer, bytes));
        }
    }
}
