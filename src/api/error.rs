//! One table: what a failure is as HTTP status, gRPC code and Dapr error code (Dapr 1.18).

use serde_json::{Map, Value, json};

/// A failure that a caller of the API sees.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// gRPC code.
    pub grpc: u8,
    /// Dapr's error code.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// Rich details: error info first.
    pub details: Vec<Value>,
    /// Answer headers that go with it.
    pub headers: Vec<(String, String)>,
}

const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";
const RESOURCE_INFO: &str = "type.googleapis.com/google.rpc.ResourceInfo";
const BAD_REQUEST: &str = "type.googleapis.com/google.rpc.BadRequest";
const HELP: &str = "type.googleapis.com/google.rpc.Help";

impl ApiError {
    /// A failure without details.
    pub fn plain(status: u16, grpc: u8, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, grpc, code, message: message.into(), details: Vec::new(), headers: Vec::new() }
    }

    fn info(mut self, reason: &str, metadata: &[(&str, &str)]) -> Self {
        let metadata: Map<String, Value> = metadata.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        let metadata = if metadata.is_empty() { Value::Null } else { Value::Object(metadata) };
        self.details.push(json!({"@type": ERROR_INFO, "reason": reason, "domain": "dapr.io", "metadata": metadata}));
        self
    }

    fn resource(mut self, kind: &str, name: &str) -> Self {
        self.details.push(json!({"@type": RESOURCE_INFO, "resource_type": kind, "resource_name": name, "owner": "", "description": ""}));
        self
    }

    fn field(mut self, field: &str, description: &str) -> Self {
        self.details.push(json!({"@type": BAD_REQUEST, "field_violations": [{"field": field, "description": description}]}));
        self
    }

    /// The body of an HTTP answer.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut body = json!({"errorCode": self.code, "message": self.message});
        if !self.details.is_empty() {
            body["details"] = Value::Array(self.details.clone());
        }
        body
    }

    /// The family that the error counts under in `dapr_error_code_total`.
    #[must_use]
    pub fn category(&self) -> &'static str {
        let code = self.code;
        if self.details.iter().any(|d| d["reason"].as_str().is_some_and(|r| r.starts_with("DAPR_STATE"))) || code.starts_with("ERR_STATE") {
            "state"
        } else if code.contains("PUBSUB") || code == "ERR_TOPIC_NAME_EMPTY" {
            "pubsub"
        } else if code.contains("BINDING") {
            "binding"
        } else if code.contains("SECRET") {
            "secret"
        } else if code.contains("CONFIGURATION") {
            "configuration"
        } else if code.contains("HEALTH") {
            "health"
        } else if code.contains("INVOKE") {
            "service-invocation"
        } else if code == "ERR_MALFORMED_REQUEST" {
            "state"
        } else {
            "common"
        }
    }
}

/// State.
pub mod state {
    use super::{ApiError, HELP, json};
    use crate::component::StateError;

    /// No store at all.
    #[must_use]
    pub fn not_configured(store: &str, app: &str) -> ApiError {
        ApiError::plain(500, 9, "ERR_STATE_STORE_NOT_CONFIGURED", format!("state store {store} is not configured"))
            .info("DAPR_STATE_NOT_CONFIGURED", &[("appID", app)])
    }

    /// No store of this name.
    #[must_use]
    pub fn not_found(store: &str, app: &str) -> ApiError {
        ApiError::plain(400, 3, "ERR_STATE_STORE_NOT_FOUND", format!("state store {store} is not found"))
            .info("DAPR_STATE_NOT_FOUND", &[("appID", app)])
    }

    /// A key with the separator in it.
    #[must_use]
    pub fn illegal_key(store: &str, key: &str) -> ApiError {
        let message = format!("input key/keyPrefix '{key}' can't contain '||'");
        ApiError::plain(400, 3, "ERR_MALFORMED_REQUEST", message.clone())
            .field(key, &message)
            .resource("state", store)
            .info("DAPR_STATE_ILLEGAL_KEY", &[])
    }

    /// A body that makes no sense.
    pub fn malformed(detail: impl std::fmt::Display) -> ApiError {
        ApiError::plain(400, 3, "ERR_MALFORMED_REQUEST", format!("failed deserializing HTTP body: {detail}"))
    }

    /// The store has no transactions.
    #[must_use]
    pub fn no_transactions(store: &str) -> ApiError {
        let mut error = ApiError::plain(500, 12, "ERR_STATE_STORE_NOT_SUPPORTED", format!("state store {store} doesn't support transactions"));
        error.details.push(json!({"@type": HELP, "links": [{
            "url": "https://docs.dapr.io/reference/components-reference/supported-state-stores/",
            "description": "Check the list of state stores and the features they support",
        }]}));
        error.resource("state", store).info("DAPR_STATE_TRANSACTIONS_NOT_SUPPORTED", &[])
    }

    /// The store has no queries.
    #[must_use]
    pub fn no_queries(store: &str) -> ApiError {
        ApiError::plain(500, 13, "ERR_STATE_STORE_NOT_SUPPORTED", "state store does not support querying")
            .resource("state", store)
            .info("DAPR_STATE_QUERYING_NOT_SUPPORTED", &[])
    }

    /// More operations than the store takes.
    #[must_use]
    pub fn too_many(store: &str, count: usize, most: usize) -> ApiError {
        let message = format!("the transaction contains {count} operations, which is more than what the state store supports: {most}");
        ApiError::plain(400, 3, "ERR_STATE_STORE_TOO_MANY_TRANSACTIONS", message)
            .resource("state", store)
            .info("DAPR_STATE_TOO_MANY_TRANSACTIONS", &[("currentOpsTransaction", &count.to_string()), ("maxOpsPerTransaction", &most.to_string())])
    }

    /// An operation that is neither upsert nor delete.
    #[must_use]
    pub fn operation(operation: &str) -> ApiError {
        ApiError::plain(400, 12, "ERR_NOT_SUPPORTED_STATE_OPERATION", format!("operation type {operation} not supported"))
    }

    fn by_store(error: &StateError, code: &'static str, message: String) -> ApiError {
        let (status, grpc) = match error {
            StateError::EtagMismatch(_) => (409, 10),
            StateError::EtagInvalid(_) => (400, 3),
            _ => (500, 13),
        };
        ApiError::plain(status, grpc, code, message)
    }

    /// Reading failed.
    #[must_use]
    pub fn get(store: &str, key: &str, error: &StateError) -> ApiError {
        ApiError::plain(500, 13, "ERR_STATE_GET", format!("fail to get {key} from state store {store}: {error}"))
    }

    /// Writing failed.
    #[must_use]
    pub fn save(store: &str, error: &StateError) -> ApiError {
        by_store(error, "ERR_STATE_SAVE", format!("failed saving state in state store {store}: {error}"))
    }

    /// Deleting failed.
    #[must_use]
    pub fn delete(key: &str, error: &StateError) -> ApiError {
        by_store(error, "ERR_STATE_DELETE", format!("failed deleting state with key {key}: {error}"))
    }

    /// A transaction failed, whatever the cause.
    #[must_use]
    pub fn transaction(error: &StateError) -> ApiError {
        ApiError::plain(500, 13, "ERR_STATE_TRANSACTION", format!("error while executing state transaction: {error}"))
    }
}

/// Pub/sub.
pub mod pubsub {
    use super::ApiError;
    use crate::component::PubSubError;

    fn rich(status: u16, grpc: u8, code: &'static str, reason: &str, pubsub: &str, metadata: &[(&str, &str)], message: String) -> ApiError {
        ApiError::plain(status, grpc, code, message).resource("pubsub", pubsub).info(reason, metadata)
    }

    /// No pub/sub of this name.
    #[must_use]
    pub fn not_found(pubsub: &str) -> ApiError {
        ApiError::plain(404, 3, "ERR_PUBSUB_NOT_FOUND", format!("pubsub {pubsub} is not found")).info("DAPR_PUBSUB_NOT_FOUND", &[])
    }

    /// No topic.
    #[must_use]
    pub fn topic_empty(pubsub: &str) -> ApiError {
        rich(404, 3, "ERR_TOPIC_NAME_EMPTY", "DAPR_PUBSUB_TOPIC_NAME_EMPTY", pubsub, &[], format!("topic is empty in pubsub {pubsub}"))
    }

    /// No name.
    #[must_use]
    pub fn name_empty() -> ApiError {
        rich(404, 3, "ERR_PUBSUB_EMPTY", "DAPR_PUBSUB_NAME_EMPTY", "", &[], "pubsub name is empty".to_owned())
    }

    /// Not for this application.
    #[must_use]
    pub fn forbidden(pubsub: &str, topic: &str, app: &str) -> ApiError {
        let message = format!("topic {topic} is not allowed for app id {app}");
        rich(403, 7, "ERR_PUBSUB_FORBIDDEN", "DAPR_PUBSUB_FORBIDDEN", pubsub, &[("appID", app)], message)
    }

    /// Request metadata that makes no sense.
    pub fn metadata(pubsub: &str, app: &str, detail: impl std::fmt::Display) -> ApiError {
        let message = format!("failed deserializing metadata. Error: {detail}");
        rich(400, 3, "ERR_PUBSUB_REQUEST_METADATA", "DAPR_PUBSUB_METADATA_DESERIALIZATION", pubsub, &[("appID", app)], message)
    }

    /// No CloudEvent can be made of it.
    pub fn cloud_event(pubsub: &str, app: &str, detail: impl std::fmt::Display) -> ApiError {
        let detail = detail.to_string();
        rich(
            500,
            3,
            "ERR_PUBSUB_CLOUD_EVENTS_SER",
            "DAPR_PUBSUB_CLOUD_EVENT_CREATION",
            pubsub,
            &[("appID", app), ("error", &detail)],
            "cannot create cloudevent".to_owned(),
        )
    }

    /// The body of a bulk publish cannot be read.
    pub fn unmarshal(pubsub: &str, topic: &str, app: &str, detail: impl std::fmt::Display) -> ApiError {
        let message = format!("error when unmarshaling the request for topic {topic} pubsub {pubsub}: {detail}");
        rich(400, 3, "ERR_PUBSUB_EVENTS_SER", "DAPR_PUBSUB_UNMARSHAL_EVENTS", pubsub, &[("appID", app)], message)
    }

    /// Entries of a bulk publish are wrong.
    pub fn entries(pubsub: &str, topic: &str, app: &str, detail: impl std::fmt::Display) -> ApiError {
        let message = format!("error marshaling events to bytes for topic {topic} pubsub {pubsub}. error: {detail}");
        rich(400, 3, "ERR_PUBSUB_EVENTS_SER", "DAPR_PUBSUB_MARSHAL_EVENTS", pubsub, &[("appID", app)], message)
    }

    /// A state transaction cannot be told of.
    pub fn outbox(pubsub: &str, app: &str, detail: impl std::fmt::Display) -> ApiError {
        let message = format!("error while publishing outbox message: {detail}");
        let details: &[(&str, &str)] = &[("appID", app), ("error", &message)];
        rich(500, 13, "ERR_PUBLISH_OUTBOX", "DAPR_PUBSUB_OUTBOX", pubsub, details, message.clone())
    }

    /// The pub/sub refused or failed.
    #[must_use]
    pub fn publish(pubsub: &str, topic: &str, cause: &PubSubError) -> ApiError {
        let message = format!("error when publishing to topic {topic} in pubsub {pubsub}: {cause}");
        let of = |status, grpc| rich(status, grpc, "ERR_PUBSUB_PUBLISH_MESSAGE", "DAPR_PUBSUB_PUBLISH_MESSAGE", pubsub, &[], message);
        match cause {
            PubSubError::Full { retry_seconds, .. } => {
                ApiError { headers: vec![("retry-after".to_owned(), retry_seconds.to_string())], ..of(429, 8) }
            }
            _ => of(500, 13),
        }
    }
}

/// Secrets.
pub mod secret {
    use super::ApiError;

    /// No store at all.
    #[must_use]
    pub fn not_configured() -> ApiError {
        ApiError::plain(500, 9, "ERR_SECRET_STORES_NOT_CONFIGURED", "secret store is not configured")
    }

    /// No store of this name. 401 is Dapr's own choice.
    #[must_use]
    pub fn not_found(store: &str) -> ApiError {
        ApiError::plain(401, 3, "ERR_SECRET_STORE_NOT_FOUND", format!("failed finding secret store with key {store}"))
    }

    /// Denied by the configuration's scopes.
    #[must_use]
    pub fn denied(store: &str, secret: &str) -> ApiError {
        ApiError::plain(403, 7, "ERR_PERMISSION_DENIED", format!("access denied by policy to get \"{secret}\" from \"{store}\""))
    }

    /// The store failed, or has no such secret.
    pub fn get(store: &str, secret: &str, detail: impl std::fmt::Display) -> ApiError {
        ApiError::plain(500, 13, "ERR_SECRET_GET", format!("failed getting secret with key {secret} from secret store {store}: {detail}"))
    }
}

/// Configuration.
pub mod configuration {
    use super::ApiError;

    /// No store at all.
    #[must_use]
    pub fn not_configured() -> ApiError {
        ApiError::plain(500, 9, "ERR_CONFIGURATION_STORE_NOT_CONFIGURED", "configuration stores not configured")
    }

    /// No store of this name.
    #[must_use]
    pub fn not_found(store: &str) -> ApiError {
        ApiError::plain(400, 3, "ERR_CONFIGURATION_STORE_NOT_FOUND", format!("configuration store {store} not found"))
    }

    /// The store failed.
    pub fn get(store: &str, keys: &[String], detail: impl std::fmt::Display) -> ApiError {
        let message = format!("failed to get [{}] from Configuration store {store}: {detail}", keys.join(" "));
        ApiError::plain(500, 13, "ERR_CONFIGURATION_GET", message)
    }

    /// The store does not tell of changes.
    pub fn subscribe(store: &str, keys: &[String], detail: impl std::fmt::Display) -> ApiError {
        let message = format!("failed to subscribe [{}] from Configuration store {store}: {detail}", keys.join(" "));
        ApiError::plain(500, 3, "ERR_CONFIGURATION_SUBSCRIBE", message)
    }

    /// There is no application to tell.
    #[must_use]
    pub fn no_app() -> ApiError {
        ApiError::plain(500, 13, "ERR_APP_CHANNEL_NIL", "app channel is not initialized")
    }
}

/// An output binding could not be called.
pub fn binding(name: &str, detail: impl std::fmt::Display) -> ApiError {
    ApiError::plain(500, 13, "ERR_INVOKE_OUTPUT_BINDING", format!("error invoking output binding {name}: {detail}"))
}

/// Service invocation.
pub mod invoke {
    use super::ApiError;

    /// The call did not take place.
    #[must_use]
    pub fn failed(id: &str, detail: impl std::fmt::Display) -> ApiError {
        ApiError::plain(500, 13, "ERR_DIRECT_INVOKE", format!("failed to invoke, id: {id}, err: {detail}"))
    }

    /// The method is no path.
    #[must_use]
    pub fn method(id: &str, method: &str) -> ApiError {
        failed(id, format!("{method:?} is no method; characters of control, # and ? are not accepted"))
    }
}

/// A call that met a defect of the node.
#[must_use]
pub fn defect() -> ApiError {
    ApiError::plain(500, 13, "ERR_INTERNAL", "the node met a defect; its log has the place")
}

/// A route that leads nowhere, which Dapr takes for a service invocation without a target.
#[must_use]
pub fn no_target() -> ApiError {
    ApiError::plain(404, 3, "ERR_DIRECT_INVOKE", "failed getting app id either from the URL path or the header dapr-app-id")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::{PubSubError, StateError};

    #[test]
    fn every_row_has_its_status_and_codes() {
        let mismatch = StateError::EtagMismatch(None);
        let rows = [
            (state::not_configured("s", "a"), 500, 9, "ERR_STATE_STORE_NOT_CONFIGURED", 1),
            (state::not_found("s", "a"), 400, 3, "ERR_STATE_STORE_NOT_FOUND", 1),
            (state::illegal_key("s", "a||b"), 400, 3, "ERR_MALFORMED_REQUEST", 3),
            (state::malformed("x"), 400, 3, "ERR_MALFORMED_REQUEST", 0),
            (state::no_transactions("s"), 500, 12, "ERR_STATE_STORE_NOT_SUPPORTED", 3),
            (state::no_queries("s"), 500, 13, "ERR_STATE_STORE_NOT_SUPPORTED", 2),
            (state::too_many("s", 5, 4), 400, 3, "ERR_STATE_STORE_TOO_MANY_TRANSACTIONS", 2),
            (state::operation("x"), 400, 12, "ERR_NOT_SUPPORTED_STATE_OPERATION", 0),
            (state::get("s", "k", &mismatch), 500, 13, "ERR_STATE_GET", 0),
            (state::save("s", &mismatch), 409, 10, "ERR_STATE_SAVE", 0),
            (state::save("s", &StateError::EtagInvalid(None)), 400, 3, "ERR_STATE_SAVE", 0),
            (state::delete("k", &StateError::Unavailable("x".into())), 500, 13, "ERR_STATE_DELETE", 0),
            (state::transaction(&mismatch), 500, 13, "ERR_STATE_TRANSACTION", 0),
            (pubsub::not_found("p"), 404, 3, "ERR_PUBSUB_NOT_FOUND", 1),
            (pubsub::topic_empty("p"), 404, 3, "ERR_TOPIC_NAME_EMPTY", 2),
            (pubsub::name_empty(), 404, 3, "ERR_PUBSUB_EMPTY", 2),
            (pubsub::forbidden("p", "t", "a"), 403, 7, "ERR_PUBSUB_FORBIDDEN", 2),
            (pubsub::metadata("p", "a", "x"), 400, 3, "ERR_PUBSUB_REQUEST_METADATA", 2),
            (pubsub::cloud_event("p", "a", "x"), 500, 3, "ERR_PUBSUB_CLOUD_EVENTS_SER", 2),
            (pubsub::unmarshal("p", "t", "a", "x"), 400, 3, "ERR_PUBSUB_EVENTS_SER", 2),
            (pubsub::entries("p", "t", "a", "x"), 400, 3, "ERR_PUBSUB_EVENTS_SER", 2),
            (pubsub::publish("p", "t", &PubSubError::Closed), 500, 13, "ERR_PUBSUB_PUBLISH_MESSAGE", 2),
            (pubsub::publish("p", "t", &PubSubError::Full { text: "x".into(), retry_seconds: 60 }), 429, 8, "ERR_PUBSUB_PUBLISH_MESSAGE", 2),
            (secret::not_configured(), 500, 9, "ERR_SECRET_STORES_NOT_CONFIGURED", 0),
            (secret::not_found("s"), 401, 3, "ERR_SECRET_STORE_NOT_FOUND", 0),
            (secret::denied("s", "k"), 403, 7, "ERR_PERMISSION_DENIED", 0),
            (secret::get("s", "k", "x"), 500, 13, "ERR_SECRET_GET", 0),
            (configuration::not_configured(), 500, 9, "ERR_CONFIGURATION_STORE_NOT_CONFIGURED", 0),
            (configuration::not_found("s"), 400, 3, "ERR_CONFIGURATION_STORE_NOT_FOUND", 0),
            (configuration::get("s", &[], "x"), 500, 13, "ERR_CONFIGURATION_GET", 0),
            (configuration::subscribe("s", &[], "x"), 500, 3, "ERR_CONFIGURATION_SUBSCRIBE", 0),
            (configuration::no_app(), 500, 13, "ERR_APP_CHANNEL_NIL", 0),
            (binding("b", "x"), 500, 13, "ERR_INVOKE_OUTPUT_BINDING", 0),
            (invoke::failed("a", "x"), 500, 13, "ERR_DIRECT_INVOKE", 0),
            (defect(), 500, 13, "ERR_INTERNAL", 0),
            (no_target(), 404, 3, "ERR_DIRECT_INVOKE", 0),
        ];
        for (error, status, grpc, code, details) in rows {
            assert_eq!((error.status, error.grpc, error.code, error.details.len()), (status, grpc, code, details), "{error:?}");
        }
    }
}
