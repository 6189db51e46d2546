//! Dapr's gRPC API: the same blocks as over HTTP, other encodings.

mod configuration;
mod stream;

use bytes::Bytes;
use prost::Message as _;
use selvedge_proto::common::{Etag, StateItem, StateOptions, state_options};
use selvedge_proto::runtime::dapr_server::{Dapr, DaprServer};
use selvedge_proto::runtime::{
    BulkPublishRequest, BulkPublishResponse, BulkPublishResponseFailedEntry, BulkStateItem, DeleteBulkStateRequest, DeleteStateRequest,
    ExecuteStateTransactionRequest, GetBulkSecretRequest, GetBulkSecretResponse, GetBulkStateRequest, GetBulkStateResponse, GetConfigurationRequest,
    GetConfigurationResponse, GetMetadataRequest, GetMetadataResponse, GetSecretRequest, GetSecretResponse, GetStateRequest, GetStateResponse,
    InvokeBindingRequest, InvokeBindingResponse, PublishEventRequest, PubsubSubscription, PubsubSubscriptionRule, PubsubSubscriptionRules,
    PubsubSubscriptionType, RegisteredComponents, SaveStateRequest, SecretResponse, SetMetadataRequest, ShutdownRequest,
    SubscribeConfigurationRequest, SubscribeTopicEventsRequestAlpha1, UnsubscribeConfigurationRequest, UnsubscribeConfigurationResponse,
};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::api::door;
use crate::api::error::{ApiError, state};
use crate::api::http::Lifecycle;
use crate::block::{Blocks, BulkPublishEntry, PublishCall, SetItem, Trace, TransactionItem};
use crate::component::{InvokeRequest, Metadata, StateValue, item_metadata};

/// How the server behaves.
#[derive(Debug, Clone)]
pub struct GrpcOptions {
    /// Largest message; 0 = no limit.
    pub max_message_bytes: u64,
    /// `DAPR_API_TOKEN`.
    pub api_token: Option<String>,
}

/// `google.rpc` messages that travel as error details; numbers are those of google/rpc/status.proto and error_details.proto.
mod rpc {
    use std::collections::HashMap;

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Status {
        #[prost(int32, tag = "1")]
        pub code: i32,
        #[prost(string, tag = "2")]
        pub message: String,
        #[prost(message, repeated, tag = "3")]
        pub details: Vec<prost_types::Any>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ErrorInfo {
        #[prost(string, tag = "1")]
        pub reason: String,
        #[prost(string, tag = "2")]
        pub domain: String,
        #[prost(map = "string, string", tag = "3")]
        pub metadata: HashMap<String, String>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ResourceInfo {
        #[prost(string, tag = "1")]
        pub resource_type: String,
        #[prost(string, tag = "2")]
        pub resource_name: String,
        #[prost(string, tag = "3")]
        pub owner: String,
        #[prost(string, tag = "4")]
        pub description: String,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct FieldViolation {
        #[prost(string, tag = "1")]
        pub field: String,
        #[prost(string, tag = "2")]
        pub description: String,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct BadRequest {
        #[prost(message, repeated, tag = "1")]
        pub field_violations: Vec<FieldViolation>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Link {
        #[prost(string, tag = "1")]
        pub description: String,
        #[prost(string, tag = "2")]
        pub url: String,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Help {
        #[prost(message, repeated, tag = "1")]
        pub links: Vec<Link>,
    }
}

/// One detail of the error table as a message.
fn detail(value: &Value) -> Option<prost_types::Any> {
    let text = |v: &Value, k: &str| v.get(k).and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = |k: &str| value.get(k).and_then(Value::as_array).cloned().unwrap_or_default();
    let type_url = text(value, "@type");
    let bytes = match type_url.rsplit('.').next()? {
        "ErrorInfo" => rpc::ErrorInfo {
            reason: text(value, "reason"),
            domain: text(value, "domain"),
            metadata: value
                .get("metadata")
                .and_then(Value::as_object)
                .map(|m| m.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect())
                .unwrap_or_default(),
        }
        .encode_to_vec(),
        "ResourceInfo" => rpc::ResourceInfo {
            resource_type: text(value, "resource_type"),
            resource_name: text(value, "resource_name"),
            owner: text(value, "owner"),
            description: text(value, "description"),
        }
        .encode_to_vec(),
        "BadRequest" => {
            let fields = list("field_violations");
            let field_violations =
                fields.iter().map(|f| rpc::FieldViolation { field: text(f, "field"), description: text(f, "description") }).collect();
            rpc::BadRequest { field_violations }.encode_to_vec()
        }
        "Help" => {
            let links = list("links");
            rpc::Help { links: links.iter().map(|l| rpc::Link { description: text(l, "description"), url: text(l, "url") }).collect() }
                .encode_to_vec()
        }
        _ => return None,
    };
    Some(prost_types::Any { type_url, value: bytes })
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let code = Code::from_i32(i32::from(error.grpc));
        let mut details: Vec<prost_types::Any> = error.details.iter().filter_map(detail).collect();
        if details.is_empty() && !error.code.contains("SECRET") && error.code != "ERR_PERMISSION_DENIED" {
            // Errors without rich details still tell their Dapr code.
            let info = rpc::ErrorInfo { reason: error.code.to_owned(), domain: "dapr.io".to_owned(), ..rpc::ErrorInfo::default() };
            details.push(prost_types::Any { type_url: "type.googleapis.com/google.rpc.ErrorInfo".to_owned(), value: info.encode_to_vec() });
        }
        let status = rpc::Status { code: i32::from(error.grpc), message: error.message.clone(), details };
        Self::with_details(code, error.message, Bytes::from(status.encode_to_vec()))
    }
}

struct Service {
    blocks: Blocks,
    lifecycle: Lifecycle,
    /// Set when the API ends.
    stop: watch::Receiver<bool>,
}

type Answer<T> = Result<Response<T>, Status>;
type Map = std::collections::HashMap<String, String>;

fn metadata(map: Map) -> Metadata {
    map.into_iter().collect()
}

/// Marks an answer that comes from a cache since its source is gone.
fn aged<T>(message: T, age: Option<std::time::Duration>) -> Response<T> {
    let mut response = Response::new(message);
    if let Some(age) = age {
        response.metadata_mut().insert(crate::api::CACHE_AGE, age.as_secs().into());
    }
    response
}

fn is_json(metadata: &Metadata) -> bool {
    metadata.iter().any(|(k, v)| k.eq_ignore_ascii_case("contentType") && v.starts_with("application/json"))
}

fn concurrency(options: Option<&StateOptions>) -> String {
    match options.map(StateOptions::concurrency) {
        Some(state_options::StateConcurrency::ConcurrencyFirstWrite) => "first-write".to_owned(),
        Some(state_options::StateConcurrency::ConcurrencyLastWrite) => "last-write".to_owned(),
        _ => String::new(),
    }
}

fn consistency(consistency: state_options::StateConsistency) -> String {
    match consistency {
        state_options::StateConsistency::ConsistencyEventual => "eventual".to_owned(),
        state_options::StateConsistency::ConsistencyStrong => "strong".to_owned(),
        state_options::StateConsistency::ConsistencyUnspecified => String::new(),
    }
}

fn etag(etag: Option<Etag>) -> Option<String> {
    etag.map(|e| e.value).filter(|v| !v.is_empty())
}

fn set_item(store: &str, item: StateItem) -> Result<SetItem, Status> {
    if item.key.is_empty() {
        let cause = crate::component::StateError::Invalid("state key is empty".to_owned());
        return Err(ApiError { status: 400, grpc: 3, ..state::save(store, &cause) }.into());
    }
    let options = item.options.as_ref();
    let (concurrency, consistency) = (concurrency(options), options.map(|o| consistency(o.consistency())).unwrap_or_default());
    let metadata = metadata(item.metadata);
    Ok(SetItem {
        key: item.key,
        value: StateValue { json: is_json(&metadata), bytes: item.value },
        etag: etag(item.etag),
        metadata,
        concurrency,
        consistency,
    })
}

impl Service {
    async fn bulk_publish(&self, request: Request<BulkPublishRequest>) -> Answer<BulkPublishResponse> {
        let (trace_parent, trace_state) = trace(request.metadata());
        let request = request.into_inner();
        let like = PublishCall {
            pubsub: request.pubsub_name,
            topic: request.topic,
            metadata: metadata(request.metadata),
            trace_parent,
            trace_state,
            ..PublishCall::default()
        };
        let entries = request
            .entries
            .into_iter()
            .map(|e| BulkPublishEntry { entry_id: e.entry_id, event: e.event, content_type: e.content_type, metadata: metadata(e.metadata) })
            .collect();
        let outcome = self.blocks.bulk_publish(&like, entries).await?;
        let failed_entries = outcome.failed.into_iter().map(|(entry_id, error)| BulkPublishResponseFailedEntry { entry_id, error }).collect();
        Ok(Response::new(BulkPublishResponse { failed_entries }))
    }
}

/// The caller's trace, or what stands for none.
fn trace(metadata: &tonic::metadata::MetadataMap) -> (String, String) {
    let get = |name: &str| metadata.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    (crate::api::http::trace_parent(&get("traceparent")), get("tracestate"))
}

#[tonic::async_trait]
impl Dapr for Service {
    type SubscribeTopicEventsAlpha1Stream = stream::Answers;
    type SubscribeConfigurationStream = configuration::Changes;
    type SubscribeConfigurationAlpha1Stream = configuration::Changes;

    async fn get_configuration(&self, request: Request<GetConfigurationRequest>) -> Answer<GetConfigurationResponse> {
        configuration::get(&self.blocks, request.into_inner()).await
    }

    async fn get_configuration_alpha1(&self, request: Request<GetConfigurationRequest>) -> Answer<GetConfigurationResponse> {
        configuration::get(&self.blocks, request.into_inner()).await
    }

    async fn subscribe_configuration(&self, request: Request<SubscribeConfigurationRequest>) -> Answer<configuration::Changes> {
        configuration::subscribe(&self.blocks, request.into_inner(), self.stop.clone()).await
    }

    async fn subscribe_configuration_alpha1(&self, request: Request<SubscribeConfigurationRequest>) -> Answer<configuration::Changes> {
        configuration::subscribe(&self.blocks, request.into_inner(), self.stop.clone()).await
    }

    async fn unsubscribe_configuration(&self, request: Request<UnsubscribeConfigurationRequest>) -> Answer<UnsubscribeConfigurationResponse> {
        configuration::unsubscribe(&self.blocks, request.into_inner()).await
    }

    async fn unsubscribe_configuration_alpha1(&self, request: Request<UnsubscribeConfigurationRequest>) -> Answer<UnsubscribeConfigurationResponse> {
        configuration::unsubscribe(&self.blocks, request.into_inner()).await
    }

    async fn subscribe_topic_events_alpha1(&self, request: Request<Streaming<SubscribeTopicEventsRequestAlpha1>>) -> Answer<stream::Answers> {
        Ok(Response::new(stream::serve(self.blocks.clone(), request.into_inner(), self.stop.clone())))
    }

    async fn get_state(&self, request: Request<GetStateRequest>) -> Answer<GetStateResponse> {
        let r = request.into_inner();
        let wanted = consistency(r.consistency());
        let found = self.blocks.get_state(&r.store_name, &r.key, &wanted, metadata(r.metadata)).await?;
        Ok(Response::new(found.map_or_else(GetStateResponse::default, |item| GetStateResponse {
            metadata: item_metadata(&item).into_iter().collect(),
            etag: item.etag.unwrap_or_default(),
            data: item.value.bytes,
        })))
    }

    async fn get_bulk_state(&self, request: Request<GetBulkStateRequest>) -> Answer<GetBulkStateResponse> {
        let r = request.into_inner();
        let parallelism = usize::try_from(r.parallelism).unwrap_or(0);
        let items = self.blocks.bulk_get_state(&r.store_name, &r.keys, parallelism, &metadata(r.metadata)).await?;
        let items = items
            .into_iter()
            .map(|i| {
                let key = i.key;
                match i.result {
                    Ok(Some(item)) => BulkStateItem {
                        key,
                        metadata: item_metadata(&item).into_iter().collect(),
                        etag: item.etag.unwrap_or_default(),
                        data: item.value.bytes,
                        error: String::new(),
                    },
                    Ok(None) => BulkStateItem { key, ..BulkStateItem::default() },
                    Err(error) => BulkStateItem { key, error: error.to_string(), ..BulkStateItem::default() },
                }
            })
            .collect();
        Ok(Response::new(GetBulkStateResponse { items }))
    }

    async fn save_state(&self, request: Request<SaveStateRequest>) -> Answer<()> {
        let r = request.into_inner();
        self.blocks.check_store(&r.store_name)?;
        let items = r.states.into_iter().map(|i| set_item(&r.store_name, i)).collect::<Result<Vec<_>, _>>()?;
        self.blocks.save_state(&r.store_name, items).await?;
        Ok(Response::new(()))
    }

    async fn delete_state(&self, request: Request<DeleteStateRequest>) -> Answer<()> {
        let r = request.into_inner();
        let options = r.options.as_ref();
        let item = SetItem {
            key: r.key,
            etag: etag(r.etag),
            metadata: metadata(r.metadata),
            concurrency: concurrency(options),
            consistency: options.map(|o| consistency(o.consistency())).unwrap_or_default(),
            ..SetItem::default()
        };
        self.blocks.delete_state(&r.store_name, item).await?;
        Ok(Response::new(()))
    }

    async fn delete_bulk_state(&self, request: Request<DeleteBulkStateRequest>) -> Answer<()> {
        let r = request.into_inner();
        self.blocks.check_store(&r.store_name)?;
        let mut first = None;
        for item in r.states {
            let item = set_item(&r.store_name, item)?;
            if let Err(error) = self.blocks.delete_state(&r.store_name, item).await {
                // The others are deleted all the same; the first failure is told.
                first.get_or_insert(ApiError { code: "ERR_STATE_BULK_DELETE", ..error });
            }
        }
        first.map_or(Ok(Response::new(())), |error| Err(error.into()))
    }

    async fn execute_state_transaction(&self, request: Request<ExecuteStateTransactionRequest>) -> Answer<()> {
        let (parent, trace_state) = trace(request.metadata());
        let r = request.into_inner();
        self.blocks.check_store(&r.store_name)?;
        let mut items = Vec::with_capacity(r.operations.len());
        for operation in r.operations {
            let item = set_item(&r.store_name, operation.request.unwrap_or_default());
            items.push(match operation.operation_type.as_str() {
                "upsert" => TransactionItem::Upsert(item?),
                "delete" => TransactionItem::Delete(item?),
                other => return Err(state::operation(other).into()),
            });
        }
        self.blocks.transact_state(&r.store_name, items, metadata(r.metadata), &Trace { parent, state: trace_state }).await?;
        Ok(Response::new(()))
    }

    async fn publish_event(&self, request: Request<PublishEventRequest>) -> Answer<()> {
        let (trace_parent, trace_state) = trace(request.metadata());
        let r = request.into_inner();
        let call = PublishCall {
            pubsub: r.pubsub_name,
            topic: r.topic,
            data: r.data,
            content_type: r.data_content_type,
            metadata: metadata(r.metadata),
            trace_parent,
            trace_state,
        };
        let published = self.blocks.publish(call).await?;
        let mut response = Response::new(());
        if let Some(id) = published.record_id.and_then(|id| id.parse().ok()) {
            response.metadata_mut().insert("selvedge-record-id", id);
            let queued = if published.queued { "true" } else { "false" };
            response.metadata_mut().insert("selvedge-queued", tonic::metadata::MetadataValue::from_static(queued));
            if let Some(mode) = self.blocks.mode() {
                response.metadata_mut().insert("selvedge-mode", tonic::metadata::MetadataValue::from_static(mode.as_str()));
            }
        }
        Ok(response)
    }

    async fn bulk_publish_event(&self, request: Request<BulkPublishRequest>) -> Answer<BulkPublishResponse> {
        self.bulk_publish(request).await
    }

    async fn bulk_publish_event_alpha1(&self, request: Request<BulkPublishRequest>) -> Answer<BulkPublishResponse> {
        self.bulk_publish(request).await
    }

    async fn invoke_binding(&self, request: Request<InvokeBindingRequest>) -> Answer<InvokeBindingResponse> {
        let r = request.into_inner();
        let call = InvokeRequest { operation: r.operation, data: r.data, metadata: metadata(r.metadata) };
        let answer = self.blocks.invoke_binding(&r.name, call).await?;
        Ok(Response::new(InvokeBindingResponse { data: answer.data.unwrap_or_default(), metadata: answer.metadata.into_iter().collect() }))
    }

    async fn get_secret(&self, request: Request<GetSecretRequest>) -> Answer<GetSecretResponse> {
        let r = request.into_inner();
        let data = self.blocks.secret(&r.store_name, &r.key, &metadata(r.metadata)).await?;
        Ok(aged(GetSecretResponse { data: data.value.into_iter().collect() }, data.age))
    }

    async fn get_bulk_secret(&self, request: Request<GetBulkSecretRequest>) -> Answer<GetBulkSecretResponse> {
        let r = request.into_inner();
        let all = self.blocks.bulk_secret(&r.store_name, &metadata(r.metadata)).await?;
        let data = all.value.into_iter().map(|(name, secret)| (name, SecretResponse { secrets: secret.into_iter().collect() })).collect();
        Ok(aged(GetBulkSecretResponse { data }, all.age))
    }

    async fn get_metadata(&self, _request: Request<GetMetadataRequest>) -> Answer<GetMetadataResponse> {
        let all = self.blocks.metadata();
        let text = |v: &Value, k: &str| v.get(k).and_then(Value::as_str).unwrap_or_default().to_owned();
        let texts = |v: &Value, k: &str| -> Vec<String> {
            v.get(k).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let list = |k: &str| all.get(k).and_then(Value::as_array).cloned().unwrap_or_default();
        let map = |v: &Value, k: &str| -> Map {
            v.get(k).and_then(Value::as_object).into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
        };
        let subscriptions = list("subscriptions")
            .iter()
            .map(|s| PubsubSubscription {
                pubsub_name: text(s, "pubsubname"),
                topic: text(s, "topic"),
                metadata: map(s, "metadata"),
                rules: Some(PubsubSubscriptionRules {
                    rules: s
                        .get("rules")
                        .and_then(Value::as_array)
                        .into_iter()
                        .flatten()
                        .map(|r| PubsubSubscriptionRule { r#match: text(r, "match"), path: text(r, "path") })
                        .collect(),
                }),
                dead_letter_topic: text(s, "deadLetterTopic"),
                r#type: PubsubSubscriptionType::from_str_name(&text(s, "type")).unwrap_or(PubsubSubscriptionType::Unknown).into(),
            })
            .collect();
        Ok(Response::new(GetMetadataResponse {
            id: text(&all, "id"),
            runtime_version: text(&all, "runtimeVersion"),
            enabled_features: texts(&all, "enabledFeatures"),
            extended_metadata: map(&all, "extended"),
            registered_components: list("components")
                .iter()
                .map(|c| RegisteredComponents {
                    name: text(c, "name"),
                    r#type: text(c, "type"),
                    version: text(c, "version"),
                    capabilities: texts(c, "capabilities"),
                })
                .collect(),
            subscriptions,
        }))
    }

    async fn set_metadata(&self, request: Request<SetMetadataRequest>) -> Answer<()> {
        let r = request.into_inner();
        self.blocks.set_metadata(&r.key, &r.value);
        Ok(Response::new(()))
    }

    async fn shutdown(&self, request: Request<ShutdownRequest>) -> Answer<()> {
        let force = request.metadata().get("dapr-force-shutdown").and_then(|v| v.to_str().ok()).is_some_and(|v| v.eq_ignore_ascii_case("true"));
        self.lifecycle.shutdown.send_replace(Some(force));
        Ok(Response::new(()))
    }
}

/// Serves the API on these sockets until `stop` says so; calls that run may end.
pub async fn serve(blocks: Blocks, listeners: Vec<TcpListener>, options: GrpcOptions, lifecycle: Lifecycle, stop: watch::Receiver<bool>) {
    let limit = if options.max_message_bytes == 0 { usize::MAX } else { usize::try_from(options.max_message_bytes).unwrap_or(usize::MAX) };
    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners {
        let service = Service { blocks: blocks.clone(), lifecycle: lifecycle.clone(), stop: stop.clone() };
        let server = DaprServer::new(service).max_decoding_message_size(limit).max_encoding_message_size(limit);
        let token = options.api_token.clone();
        let guarded =
            tonic::service::interceptor::InterceptedService::new(server, move |request: Request<()>| check_token(request, token.as_deref()));
        let (stop, supervisor) = (stop.clone(), blocks.node_status().supervisor().clone());
        tasks.spawn(async move {
            door::keep(&supervisor, "api/grpc", listener, stop, |listener, ended| {
                // Answers are small and complete: none may wait for the acknowledgement of the one before (40 ms on Linux).
                let incoming = TcpListenerStream::new(listener).map(|accepted| {
                    accepted.inspect(|stream| {
                        let _ = stream.set_nodelay(true);
                    })
                });
                let server = tonic::transport::Server::builder().add_service(guarded.clone());
                async move { server.serve_with_incoming_shutdown(incoming, ended).await.map_err(|e| e.to_string()) }
            })
            .await;
        });
    }
    while tasks.join_next().await.is_some() {}
}

fn check_token(request: Request<()>, token: Option<&str>) -> Result<Request<()>, Status> {
    let Some(token) = token else { return Ok(request) };
    match request.metadata().get("dapr-api-token") {
        None => Err(Status::unauthenticated("missing api token in request metadata")),
        Some(given) if crate::api::http::same_token(given.as_bytes(), token.as_bytes()) => Ok(request),
        Some(_) => Err(Status::unauthenticated("authentication error: api token mismatch")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_table_travels_with_its_code_and_details() {
        let status = Status::from(state::illegal_key("s", "a||b"));
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = rpc::Status::decode(status.details()).unwrap();
        let kinds: Vec<&str> = details.details.iter().filter_map(|d| d.type_url.rsplit('.').next()).collect();
        assert_eq!(kinds, ["BadRequest", "ResourceInfo", "ErrorInfo"]);
        let info = rpc::ErrorInfo::decode(details.details[2].value.as_slice()).unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("DAPR_STATE_ILLEGAL_KEY", "dapr.io"));
    }
}
