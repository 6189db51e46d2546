//! Requests: told from their repeats, admitted, put together from blocks, handed on.

use std::net::SocketAddr;

use bytes::Bytes;
use coap_lite::Packet;
use selvedge::time::Monotonic;

use super::peers::Exchange;
use super::timers::Timer;
use super::{Action, Answer, Endpoint, Pending, Publish, Reply, Request, RequestId, is_confirmable};
use crate::block::{Block, Part, Upload, UploadKey};
use crate::metrics::Dropped;
use crate::packet::{self, Code, Token};
use crate::resource::{Options, Target};
use crate::settings::{MAX_DATAGRAM_BYTES, MAX_SZX, PROCESSING_DELAY};

/// Observe option: register (RFC 7641, section 2).
const REGISTER: u32 = 0;

impl Endpoint {
    pub(super) fn request(&mut self, now: Monotonic, from: SocketAddr, packet: &Packet, cut: bool, out: &mut Vec<Action>) {
        let id = packet.header.message_id;
        if let Some(exchange) = self.peers.get(from).and_then(|p| p.exchange(id)) {
            self.metrics.duplicates.inc();
            match exchange {
                Exchange::Done(Some(answer)) => out.push(Action::Send(from, answer.clone())),
                Exchange::Working { acknowledged: true } => out.push(Action::Send(from, packet::empty_ack(id))),
                Exchange::Done(None) | Exchange::Working { acknowledged: false } => {}
            }
            return;
        }
        let mut reply = Reply {
            peer: from,
            message_id: id,
            token: Token::of(packet),
            confirmable: is_confirmable(packet),
            acknowledged: false,
            method: packet.header.code.into(),
            block1: None,
            block2: None,
            accept: None,
            topic: None,
            observe: false,
        };
        if let Some(refusal) = self.admit(now, from) {
            self.metrics.dropped(Dropped::Overload);
            return self.respond_without_state(&reply, &refusal, out);
        }
        let forgotten = self.peers.begin(now, from, id);
        self.forgotten(forgotten);
        match self.interpret(now, packet, cut, &mut reply, out) {
            Ok(request) => {
                self.next_request += 1;
                let request_id = RequestId(self.next_request);
                let timer = reply.confirmable.then(|| self.timers.set(now.plus(PROCESSING_DELAY), Timer::Acknowledge(request_id)));
                if let Some(peer) = self.peers.get_mut(from) {
                    peer.pending += 1;
                }
                self.pending.insert(request_id, Pending { reply, timer });
                out.push(Action::Request(request_id, request));
            }
            Err(Some(answer)) => self.respond(now, reply, answer, out),
            Err(None) => {
                // Rejected (RFC 7252, section 4.3): a critical option in a message that is not confirmable.
                self.note(from, id, Exchange::Done(None));
                self.metrics.answered(reply.method, Code::BAD_OPTION);
                out.push(Action::Send(from, packet::reset(id)));
            }
        }
    }

    /// Makes sure that there is room for the peer and for one more request of it.
    fn admit(&mut self, now: Monotonic, from: SocketAddr) -> Option<Answer> {
        if self.draining {
            return Some(Answer::try_again(5, "the box stops"));
        }
        let random = &mut self.random;
        let observers = &self.observers;
        if !self.peers.admit(now, from, || random() as u16, |address| observers.has(address)) {
            return Some(Answer::try_again(10, "too many clients"));
        }
        self.sweep_later(now);
        let of_peer = self.peers.get(from).map_or(0, |p| p.pending);
        (of_peer >= self.settings.window || self.pending.len() >= self.settings.pending)
            .then(|| Answer::try_again(1, "too many requests wait for their answer"))
    }

    /// What to hand on; else the answer, or none where the message is to be reset.
    fn interpret(&mut self, now: Monotonic, packet: &Packet, cut: bool, reply: &mut Reply, out: &mut Vec<Action>) -> Result<Request, Option<Answer>> {
        let options = match Options::of(packet) {
            Ok(options) => options,
            Err(refusal) if refusal.critical && !reply.confirmable => return Err(None),
            Err(refusal) => return Err(Some(refusal.answer)),
        };
        reply.block2 = options.block2;
        reply.accept = options.accept;
        if cut {
            // The hint says how to come back (RFC 7959, section 2.9.3).
            reply.block1 = Some(Block { number: 0, more: false, szx: MAX_SZX });
            return Err(Some(Answer::too_large(MAX_DATAGRAM_BYTES)));
        }
        match options.target(reply.method).map_err(Some)? {
            Target::Discover => Ok(Request::Discover),
            Target::Read { topic } => {
                self.observation(&options, &topic, reply, out);
                reply.topic = Some(topic.clone());
                Ok(Request::Read(topic))
            }
            Target::Publish { topic, retain, ttl_seconds } => {
                let payload = self.body(now, packet, &options, reply).map_err(Some)?;
                Ok(Request::Publish(Publish { topic, payload, content_format: options.content_format, retain, ttl_seconds }))
            }
        }
    }

    /// Registers or removes an observer as the request says.
    fn observation(&mut self, options: &Options, topic: &str, reply: &mut Reply, out: &mut Vec<Action>) {
        // Later blocks of a notification are read without touching the registration (RFC 7959, section 3.4).
        if options.observe.is_none() || options.block2.is_some_and(|b| b.number > 0) {
            return;
        }
        if options.observe == Some(REGISTER) {
            if let Some(registered) = self.observers.register(reply.peer, reply.token, topic) {
                reply.observe = true;
                out.extend(registered.unwatch.map(Action::Unwatch));
                out.extend(registered.watch.then(|| Action::Watch(topic.to_owned())));
            }
        } else {
            out.extend(self.observers.remove(reply.peer, reply.token).map(Action::Unwatch));
        }
    }

    /// The body of the request, once it is whole.
    fn body(&mut self, now: Monotonic, packet: &Packet, options: &Options, reply: &mut Reply) -> Result<Bytes, Answer> {
        let limit = self.settings.body_bytes;
        let Some(block) = options.block1 else {
            return if packet.payload.len() > limit { Err(Answer::too_large(limit)) } else { Ok(Bytes::copy_from_slice(&packet.payload)) };
        };
        self.metrics.blocks.inc();
        reply.block1 = Some(block);
        let key = UploadKey { peer: reply.peer, method: reply.method, target: options.upload_target() };
        let part = Part { block, payload: &packet.payload, format: options.content_format, announced: options.size1 };
        match self.uploads.offer(now, key, part) {
            Upload::Complete(body) => Ok(Bytes::from(body)),
            Upload::Continue => Err(Answer::of(Code::CONTINUE)),
            Upload::Incomplete => Err(Answer::text(Code::INCOMPLETE, "blocks are missing; begin again")),
            Upload::TooLarge => Err(Answer::too_large(limit)),
            Upload::BadSize => Err(Answer::text(Code::BAD_REQUEST, "the payload has not the size that the block option says")),
            Upload::Busy => Err(Answer::try_again(10, "too many uploads")),
        }
    }
}
