//! An application that speaks gRPC: the service `AppCallback`.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct};
use selvedge_proto::common::http_extension::Verb;
use selvedge_proto::common::{HttpExtension, InvokeRequest};
use selvedge_proto::runtime::app_callback_alpha_client::AppCallbackAlphaClient;
use selvedge_proto::runtime::app_callback_client::AppCallbackClient;
use selvedge_proto::runtime::app_callback_health_check_client::AppCallbackHealthCheckClient;
use selvedge_proto::runtime::topic_event_bulk_request_entry::Event;
use selvedge_proto::runtime::topic_event_response::TopicEventResponseStatus;
use selvedge_proto::runtime::{
    BindingEventRequest, TopicEventBulkRequest, TopicEventBulkRequestEntry, TopicEventBulkResponse, TopicEventCeRequest, TopicEventRequest,
    TopicSubscription,
};
use serde_json::{Map, Value};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::{
    AppAddress, AppError, BULK_TYPE, BindingAnswer, BulkEvent, MAX_ANSWER_BYTES, MethodAnswer, MethodCall, TopicEvent, Verdict, by_item, trace_of,
};
use crate::block::go_json;
use crate::component::BindingReading;
use crate::resource::{BulkSubscribe, RouteRule, SubscriptionSpec};

pub(super) struct GrpcApp {
    address: String,
    token: Option<MetadataValue<tonic::metadata::Ascii>>,
    channel: Channel,
}

impl GrpcApp {
    pub fn new(address: &AppAddress) -> Result<Self, AppError> {
        let at = format!("{}:{}", address.host, address.port);
        let fail = |detail: String| AppError { address: at.clone(), detail };
        let endpoint = Endpoint::from_shared(format!("http://{at}")).map_err(|e| fail(e.to_string()))?;
        let token = address.token.as_deref().map(str::parse).transpose().map_err(|_| fail("APP_API_TOKEN is no text for a header".to_owned()))?;
        Ok(Self { address: at.clone(), token, channel: endpoint.tcp_nodelay(true).connect_lazy() })
    }

    fn client(&self) -> AppCallbackClient<Channel> {
        AppCallbackClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// The message with the application's token and what else travels beside it; what cannot stand in a header is left out.
    fn request<T>(&self, message: T, beside: &[(&str, &str)]) -> Request<T> {
        let mut request = Request::new(message);
        for (name, value) in beside {
            let name = name.to_ascii_lowercase().parse::<tonic::metadata::MetadataKey<tonic::metadata::Ascii>>();
            if let (Ok(name), Ok(value), false) = (name, value.parse(), value.is_empty()) {
                request.metadata_mut().insert(name, value);
            }
        }
        let trace = beside.iter().find(|(name, _)| *name == "traceparent").and_then(|(_, trace)| trace_bin(trace));
        if let Some(trace) = trace {
            request.metadata_mut().insert_bin("grpc-trace-bin", MetadataValue::from_bytes(&trace));
        }
        if let Some(token) = &self.token {
            request.metadata_mut().insert("dapr-api-token", token.clone());
        }
        request
    }

    pub async fn subscriptions(&self) -> Result<Vec<SubscriptionSpec>, AppError> {
        match self.client().list_topic_subscriptions(self.request((), &[])).await {
            Ok(answer) => Ok(answer.into_inner().subscriptions.into_iter().map(subscription).collect()),
            Err(status) if status.code() == Code::Unimplemented => {
                tracing::info!("pubsub subscriptions: gRPC app does not implement ListTopicSubscriptions");
                Ok(Vec::new())
            }
            Err(status) => Err(AppError { address: self.address.clone(), detail: describe(&status) }),
        }
    }

    pub async fn deliver(&self, event: TopicEvent<'_>) -> Verdict {
        let message = match topic_event(event) {
            Ok(message) => message,
            Err(cause) => return Verdict::Retry(cause),
        };
        let beside = [("pubsubname", event.pubsub), ("traceparent", trace_of(event.event))];
        match self.client().on_topic_event(self.request(message, &beside)).await {
            Ok(answer) => status_verdict(answer.into_inner().status),
            Err(status) if status.code() == Code::Unimplemented => {
                tracing::warn!("non-retriable error returned from app while processing pub/sub event: {}", describe(&status));
                Verdict::Unwanted
            }
            Err(status) => Verdict::Retry(format!("error returned from app while processing pub/sub event: {}", describe(&status))),
        }
    }

    pub async fn deliver_bulk(&self, event: BulkEvent<'_>) -> Result<Vec<Verdict>, String> {
        let mut entries = Vec::with_capacity(event.items.len());
        for item in event.items {
            let content = match &item.event {
                Some(e) => Event::CloudEvent(cloud_event(e)?),
                None => Event::Bytes(item.data.clone()),
            };
            entries.push(TopicEventBulkRequestEntry {
                entry_id: item.entry_id.clone(),
                content_type: item.content_type.clone(),
                metadata: item.metadata.clone().into_iter().collect(),
                event: Some(content),
            });
        }
        let message = TopicEventBulkRequest {
            id: uuid::Uuid::new_v4().to_string(),
            entries,
            metadata: HashMap::from([("pubsubName".to_owned(), event.pubsub.to_owned())]),
            topic: event.topic.to_owned(),
            pubsub_name: event.pubsub.to_owned(),
            r#type: BULK_TYPE.to_owned(),
            path: event.path.to_owned(),
        };
        match self.call_bulk(message, event.pubsub).await {
            Ok(answer) => {
                let answers = answer.into_inner().statuses.into_iter().map(|s| (s.entry_id, status_verdict(s.status))).collect();
                Ok(by_item(event.items, answers))
            }
            Err(status) if status.code() == Code::Unimplemented => {
                tracing::warn!("non-retriable error returned from app while processing bulk pub/sub event: {}", describe(&status));
                Ok(vec![Verdict::Unwanted; event.items.len()])
            }
            Err(status) => Err(format!("error returned from app while processing bulk pub/sub event: {}", describe(&status))),
        }
    }

    /// Applications of before 1.16 know the alpha call alone.
    async fn call_bulk(&self, message: TopicEventBulkRequest, pubsub: &str) -> Result<Response<TopicEventBulkResponse>, Status> {
        let beside = [("pubsubname", pubsub)];
        match self.client().on_bulk_topic_event(self.request(message.clone(), &beside)).await {
            Err(status) if status.code() == Code::Unimplemented => {
                let mut alpha = AppCallbackAlphaClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES);
                alpha.on_bulk_topic_event_alpha1(self.request(message, &beside)).await
            }
            other => other,
        }
    }

    /// A gRPC application's answer as an HTTP one: its status mapped, an error's body as JSON.
    pub async fn invoke(&self, call: MethodCall) -> MethodAnswer {
        let verb = Verb::from_str_name(call.verb.as_str()).unwrap_or(Verb::None);
        let content_type = call.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let message = InvokeRequest {
            method: percent_encoding::percent_decode_str(&call.path).decode_utf8_lossy().into_owned(),
            data: Some(prost_types::Any { type_url: String::new(), value: call.body.to_vec() }),
            content_type,
            http_extension: Some(HttpExtension { verb: verb.into(), querystring: call.query.clone() }),
        };
        let mut request = self.request(message, &[]);
        for (name, value) in &call.headers {
            let name = name.as_str();
            // Content is described by the message; `-bin` names would have to be base64.
            if name.starts_with("content-") || name.ends_with("-bin") || name.starts_with("grpc-") || matches!(name, "host" | "user-agent" | "accept")
            {
                continue;
            }
            let name = name.parse::<tonic::metadata::MetadataKey<tonic::metadata::Ascii>>();
            if let (Ok(name), Ok(value)) = (name, MetadataValue::try_from(value.as_bytes())) {
                request.metadata_mut().entry(name).map(|e| e.or_insert(value)).ok();
            }
        }
        let mut headers = http::HeaderMap::new();
        let (status, content_type, body) = match self.client().on_invoke(request).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                (http::StatusCode::OK, answer.content_type, Bytes::from(answer.data.unwrap_or_default().value))
            }
            Err(status) => {
                let text = serde_json::json!({"code": i32::from(status.code()), "message": status.message(), "details": []});
                (http_status(status.code()), "application/json".to_owned(), Bytes::from(text.to_string()))
            }
        };
        if let Ok(value) = content_type.parse::<http::HeaderValue>()
            && !content_type.is_empty()
        {
            headers.insert("content-type", value);
        }
        MethodAnswer { status, headers, body }
    }

    pub async fn is_well(&self) -> bool {
        AppCallbackHealthCheckClient::new(self.channel.clone()).health_check(self.request((), &[])).await.is_ok()
    }

    pub async fn wants_binding(&self, name: &str) -> bool {
        match self.client().list_input_bindings(self.request((), &[])).await {
            Ok(answer) => answer.into_inner().bindings.iter().any(|b| b == name),
            Err(_) => false,
        }
    }

    pub async fn binding_event(&self, name: &str, reading: BindingReading) -> Result<BindingAnswer, String> {
        let message = BindingEventRequest { name: name.to_owned(), data: reading.data, metadata: reading.metadata.into_iter().collect() };
        let answer = self.client().on_binding_event(self.request(message, &[])).await;
        let answer = answer.map_err(|status| format!("error invoking app: {}", describe(&status)))?.into_inner();
        Ok(BindingAnswer { data: (!answer.data.is_empty()).then_some(answer.data), to: answer.to })
    }
}

/// HTTP status of a gRPC code (google.rpc.Code).
fn http_status(code: Code) -> http::StatusCode {
    use http::StatusCode as S;
    match code {
        Code::Ok => S::OK,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => S::BAD_REQUEST,
        Code::Unauthenticated => S::UNAUTHORIZED,
        Code::PermissionDenied => S::FORBIDDEN,
        Code::NotFound => S::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => S::CONFLICT,
        Code::ResourceExhausted => S::TOO_MANY_REQUESTS,
        Code::Cancelled => S::REQUEST_TIMEOUT,
        Code::Unimplemented => S::NOT_IMPLEMENTED,
        Code::Unavailable => S::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => S::GATEWAY_TIMEOUT,
        Code::Unknown | Code::Internal | Code::DataLoss => S::INTERNAL_SERVER_ERROR,
    }
}

/// A W3C trace parent in OpenCensus' binary form: version 0, then field number and value of trace id, span id and flags.
fn trace_bin(trace_parent: &str) -> Option<[u8; 29]> {
    let mut parts = trace_parent.split('-').skip(1);
    let mut hex = |length: usize| parts.next().filter(|p| p.len() == length * 2 && p.is_ascii());
    let (trace, span, flags) = (hex(16)?, hex(8)?, hex(1)?);
    let mut out = [0u8; 29];
    for (at, field, digits) in [(1, 0, trace), (18, 1, span), (27, 2, flags)] {
        out[at] = field;
        for (i, byte) in out[at + 1..].iter_mut().take(digits.len() / 2).enumerate() {
            *byte = u8::from_str_radix(digits.get(i * 2..i * 2 + 2)?, 16).ok()?;
        }
    }
    Some(out)
}

fn describe(status: &Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

/// What the application made of an event. A number that is not known is no success.
pub(crate) fn status_verdict(status: i32) -> Verdict {
    match TopicEventResponseStatus::try_from(status) {
        Ok(TopicEventResponseStatus::Success) => Verdict::Done,
        Ok(TopicEventResponseStatus::Drop) => Verdict::Drop,
        Ok(TopicEventResponseStatus::Retry) => Verdict::Retry("RETRY status returned from app while processing pub/sub event".to_owned()),
        Err(_) => Verdict::Retry(format!("unknown status {status} returned from app while processing pub/sub event")),
    }
}

/// One subscription of the application's list. Without any route everything goes to the empty path.
fn subscription(s: TopicSubscription) -> SubscriptionSpec {
    let routes = s.routes.unwrap_or_default();
    let mut rules: Vec<RouteRule> = routes.rules.into_iter().map(|r| RouteRule { matches: r.r#match, path: r.path }).collect();
    if rules.is_empty() && routes.default.is_empty() {
        rules.push(RouteRule { matches: String::new(), path: String::new() });
    }
    let bulk = s.bulk_subscribe.unwrap_or_default();
    SubscriptionSpec {
        name: String::new(),
        pubsub: s.pubsub_name,
        topic: s.topic,
        rules,
        default_path: routes.default,
        metadata: s.metadata.into_iter().collect(),
        dead_letter_topic: s.dead_letter_topic,
        bulk: BulkSubscribe {
            enabled: bulk.enabled,
            max_messages: u32::try_from(bulk.max_messages_count).unwrap_or(0),
            max_await_ms: u32::try_from(bulk.max_await_duration_ms).unwrap_or(0),
        },
        scopes: Vec::new(),
    }
}

/// Attributes that have fields of their own.
const OWN_FIELDS: [&str; 7] = ["id", "source", "type", "specversion", "datacontenttype", "data", "data_base64"];

fn text(event: &Map<String, Value>, name: &str) -> String {
    event.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The event's data as bytes, by its content type as daprd does it: decoded base64, text as it is, JSON as JSON. What is neither arrives
/// empty (daprd's rule; its suite asks for it): such payloads travel as `data_base64` when their type says that they are binary.
fn data(event: &Map<String, Value>) -> Result<Bytes, String> {
    if let Some(encoded) = event.get("data_base64").filter(|v| !v.is_null()) {
        let encoded = encoded.as_str().ok_or("data_base64 of the event is no text")?;
        return STANDARD.decode(encoded).map(Bytes::from).map_err(|e| format!("data_base64 of the event cannot be decoded: {e}"));
    }
    let content_type = text(event, "datacontenttype").to_ascii_lowercase();
    let media = content_type.split(';').next().unwrap_or_default().trim();
    let is_json = media == "application/json" || media.ends_with("+json");
    let is_text = media.starts_with("text/") || media == "application/xml";
    match event.get("data") {
        Some(Value::String(t)) if is_text => Ok(Bytes::from(t.clone())),
        None | Some(Value::Null) => Ok(Bytes::new()),
        Some(_) if is_text => Err("the event's data is no text, though its content type says so".to_owned()),
        Some(data) if is_json => Ok(Bytes::from(go_json(data))),
        Some(_) => Ok(Bytes::new()),
    }
}

fn extensions(event: &Map<String, Value>) -> Option<Struct> {
    let fields: BTreeMap<String, prost_types::Value> =
        event.iter().filter(|(k, _)| !OWN_FIELDS.contains(&k.as_str())).map(|(k, v)| (k.clone(), value(v))).collect();
    Some(Struct { fields })
}

fn value(v: &Value) -> prost_types::Value {
    let kind = match v {
        Value::Null => Kind::NullValue(0),
        Value::Bool(b) => Kind::BoolValue(*b),
        Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or(f64::NAN)),
        Value::String(t) => Kind::StringValue(t.clone()),
        Value::Array(list) => Kind::ListValue(ListValue { values: list.iter().map(value).collect() }),
        Value::Object(map) => Kind::StructValue(Struct { fields: map.iter().map(|(k, v)| (k.clone(), value(v))).collect() }),
    };
    prost_types::Value { kind: Some(kind) }
}

/// An event as `OnTopicEvent` and streams carry it.
///
/// # Errors
/// When its data cannot be decoded.
pub(crate) fn topic_event(e: TopicEvent<'_>) -> Result<TopicEventRequest, String> {
    Ok(TopicEventRequest {
        id: text(e.event, "id"),
        source: text(e.event, "source"),
        r#type: text(e.event, "type"),
        spec_version: text(e.event, "specversion"),
        data_content_type: text(e.event, "datacontenttype"),
        data: data(e.event)?,
        topic: e.topic.to_owned(),
        pubsub_name: e.pubsub.to_owned(),
        path: e.path.to_owned(),
        extensions: extensions(e.event),
    })
}

fn cloud_event(event: &Map<String, Value>) -> Result<TopicEventCeRequest, String> {
    Ok(TopicEventCeRequest {
        id: text(event, "id"),
        source: text(event, "source"),
        r#type: text(event, "type"),
        spec_version: text(event, "specversion"),
        data_content_type: text(event, "datacontenttype"),
        data: data(event)?,
        extensions: extensions(event),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn data_is_decoded_by_what_it_is() {
        let check = |json: &str| data(&event(json)).map(|b| String::from_utf8(b.to_vec()).unwrap());
        assert_eq!(check(r#"{"data_base64":"aGk="}"#), Ok("hi".to_owned()));
        assert_eq!(check(r#"{"datacontenttype":"text/plain","data":"hi"}"#), Ok("hi".to_owned()));
        assert_eq!(check(r#"{"datacontenttype":"application/json","data":"hi"}"#), Ok("\"hi\"".to_owned()));
        assert_eq!(check(r#"{"datacontenttype":"application/json","data":{"a":1}}"#), Ok(r#"{"a":1}"#.to_owned()));
        assert_eq!(check("{}"), Ok(String::new()));
        assert_eq!(check(r#"{"datacontenttype":"foo/bar","data":"hi"}"#), Ok(String::new()));
        assert!(check(r#"{"datacontenttype":"text/plain","data":1}"#).is_err());
        assert!(check(r#"{"data_base64":"?"}"#).is_err() && check(r#"{"data_base64":1}"#).is_err());
    }

    #[test]
    fn what_has_no_field_of_its_own_is_an_extension() {
        let e = event(r#"{"id":"1","topic":"t","n":[1,{"b":true}],"data":"x"}"#);
        let built = topic_event(TopicEvent { pubsub: "p", topic: "t", path: "", event: &e }).unwrap();
        let extensions = built.extensions.unwrap().fields;
        assert_eq!(extensions.keys().collect::<Vec<_>>(), ["n", "topic"]);
        assert_eq!(extensions["n"], value(&serde_json::json!([1, {"b": true}])));
    }

    #[test]
    fn a_subscription_without_routes_takes_everything_on_the_empty_path() {
        let s = subscription(TopicSubscription { topic: "t".to_owned(), ..TopicSubscription::default() });
        assert_eq!((s.rules.len(), s.rules[0].matches.as_str(), s.rules[0].path.as_str()), (1, "", ""));
    }

    #[test]
    fn a_trace_in_binary_form() {
        let bin = trace_bin("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        assert_eq!((bin[..4].to_vec(), bin[18..21].to_vec(), bin[27..].to_vec()), (vec![0, 0, 0x4b, 0xf9], vec![1, 0, 0xf0], vec![2, 1]));
        for bad in ["", "00-xx", "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e47zz-00f067aa0ba902b7-01"]
        {
            assert!(trace_bin(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn an_unknown_status_is_no_success() {
        assert_eq!((status_verdict(0), status_verdict(2)), (Verdict::Done, Verdict::Drop));
        assert!(matches!(status_verdict(1), Verdict::Retry(_)) && matches!(status_verdict(9), Verdict::Retry(_)));
    }
}
